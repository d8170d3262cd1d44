"""Weights that are functions of parameters, row by row: exact, without a matrix per example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from microbatches import assert_rows, by_microbatches, cross_entropy
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import TensorDataset

import sage_torch.gradients.projected.recorder as recorder
import sage_torch.gradients.projected.rowwise as rowwise
from sage_torch import Selection, select_subset
from sage_torch.gradients import FunctionalGradients, ProjectedGradients
from sage_torch.gradients.projected.columns import DerivedTarget

WIDTH, EXACT = 160, 10**6  # WIDTH^2 entries are enough to look for rows


class Standardised(nn.Linear):
    """Each row has mean 0 and deviation 1, times a gain."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.gain = nn.Parameter(torch.rand(outputs) + 0.5)

    def made(self) -> Tensor:
        w = self.weight
        w = (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-3)
        return w * self.gain[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.made(), self.bias)


class Through(Standardised):
    """`x @ W`: the rows of the weight are those of its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.made() + self.bias


class UnitRows(nn.Linear):
    """Rows of length `exp(scale)`, which all rows share."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.scale = nn.Parameter(torch.tensor([0.3]))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1) * self.scale.exp(), self.bias)


class OneLength(nn.Linear):
    """The whole weight is divided by its length."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 9 * self.weight / self.weight.norm(), self.bias)


class Clamped(nn.Linear):
    """Entry by entry, so that a row has no common factor."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.tanh(), self.bias)


class Mixed(nn.Linear):
    """Each row depends on all rows."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight - self.weight.mean(0) / 2, self.bias)


class StandardisedConv(nn.Conv2d):
    """As in NFNets: batch norm of the weight, whose rows are its channels."""

    def __init__(self, *sizes: int, groups: int = 1) -> None:
        super().__init__(*sizes, padding=1, stride=2, groups=groups)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * 0.1).view(-1)
        w = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(
            x, w.reshape_as(self.weight), self.bias, self.stride, self.padding, groups=self.groups
        )


def between(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, WIDTH), nn.Tanh(), layer, nn.Tanh(), nn.Linear(WIDTH, 3))


def images(layer: nn.Module) -> nn.Module:
    first, last = nn.Conv2d(2, 64, 3), nn.Linear(64, 3)
    return nn.Sequential(first, nn.Tanh(), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


BY_ROWS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: between(parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
    "standardised": lambda: between(Standardised(WIDTH, WIDTH)),
    "matmul": lambda: between(Through(WIDTH, WIDTH)),
    "one scale": lambda: between(UnitRows(WIDTH, WIDTH)),
    "conv": lambda: images(StandardisedConv(64, 64, 3)),
    "conv of weight norm": lambda: images(parametrizations.weight_norm(nn.Conv2d(64, 64, 3))),
    "spectral": lambda: between(parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))).eval(),
    "spectral of old": lambda: between(nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH))).eval(),
    "spectral conv": lambda: images(parametrizations.spectral_norm(nn.Conv2d(64, 64, 3))).eval(),
    "of length one": lambda: between(OneLength(WIDTH, WIDTH)),
    "groups": lambda: images(StandardisedConv(64, 64, 3, groups=2)),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "entry by entry": lambda: between(Clamped(WIDTH, WIDTH)),
    "rows mixed": lambda: between(Mixed(WIDTH, WIDTH)),
    "by columns": lambda: between(parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH), dim=1)),
}


def batch_for(model: nn.Module, n: int = 12) -> tuple[Tensor, Tensor]:
    shape = (2, 9, 9) if isinstance(next(model.children()), nn.Conv2d) else (6,)
    return torch.randn(n, *shape), torch.arange(n) % 3


@pytest.fixture
def no_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid exact gradients of large tensors that are made of parameters."""

    def refuse(self: DerivedTarget, values: Tensor) -> None:
        raise AssertionError(f"a gradient {tuple(values.shape)} for each example")

    monkeypatch.setattr(DerivedTarget, "add_projected", refuse)


@pytest.mark.usefixtures("no_matrices")
@pytest.mark.parametrize("name", BY_ROWS)
def test_rows_of_weights_need_no_matrix_of_an_example(name: str) -> None:
    torch.manual_seed(0)
    model = BY_ROWS[name]()
    batch = batch_for(model)
    gradients = ProjectedGradients(model, EXACT, cross_entropy, fallback=False)
    expected = by_microbatches(model, cross_entropy, batch)
    assert_rows(gradients(batch), expected)
    assert_rows(gradients((batch[0][:1], batch[1][:1])), expected[:1])
    narrow = ProjectedGradients(model, 8, cross_entropy, fallback=False)
    rows, column = narrow(batch), 0
    for block in narrow._blocks.values():
        length = block.left.side * block.right.side
        of_block = expected[:, column : column + length]
        assert_rows(block.of(rows).flatten(1), block.project(of_block).flatten(1), 2e-5)
        column += length


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("are_large", [False, True])
def test_other_weights_are_right_as_well(
    name: str, are_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if are_large:
        monkeypatch.setattr(recorder, "_LARGEST_DERIVED", 2**12)
    torch.manual_seed(0)
    model = OTHERS[name]().eval()
    batch = batch_for(model)
    gradients = ProjectedGradients(model, EXACT, cross_entropy)
    assert_rows(gradients(batch), by_microbatches(model, cross_entropy, batch))
    assert any("large" in how for how in gradients.handling.values()) == are_large


@pytest.mark.usefixtures("no_matrices")
def test_large_weights_made_by_rows_are_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_LARGEST_DERIVED", 2**12)
    model = between(Standardised(WIDTH, WIDTH))
    gradients = ProjectedGradients(model, 8, cross_entropy)
    gradients(batch_for(model))
    assert not any("fallback" in how for how in gradients.handling.values())


@pytest.mark.parametrize("name", ["weight norm", "standardised", "one scale", "spectral"])
def test_a_step_of_training_is_noticed(name: str) -> None:
    torch.manual_seed(0)
    model = BY_ROWS[name]()
    batch = batch_for(model)
    gradients = ProjectedGradients(model, EXACT, cross_entropy)
    gradients(batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    cross_entropy(model, batch).mean().backward()
    optimizer.step()
    assert_rows(gradients(batch), by_microbatches(model, cross_entropy, batch))


def test_they_take_no_memory_for_each_example() -> None:
    sizes = []
    for layer in (nn.Linear(WIDTH, WIDTH), Standardised(WIDTH, WIDTH)):
        model = between(layer)
        gradients = ProjectedGradients(model, 8, cross_entropy, memory_budget=2**22)
        gradients(batch_for(model))
        sizes.append(gradients._chunks.size)
    assert sizes[1] > sizes[0] / 2


class Windows(nn.Module):
    """Attention in windows of 4 positions, with a bias by relative position and head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(2, 7))
        places = torch.arange(4)
        self.places = places[:, None] - places[None, :] + 3

    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(len(x) * 3, 4, 8)  # three of each example
        q, k, v = self.qkv(windows).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        bias = self.table[:, self.places]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.4)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(len(x), 12, 8).mean(1))
        return result


def test_a_bias_of_attention_has_a_rule() -> None:
    torch.manual_seed(0)
    model, batch = Windows(), (torch.randn(5, 12, 8), torch.arange(5) % 3)
    gradients = ProjectedGradients(model, EXACT, cross_entropy, fallback=False)
    assert_rows(gradients(batch), by_microbatches(model, cross_entropy, batch))


@pytest.mark.usefixtures("no_matrices")
@pytest.mark.parametrize("name", BY_ROWS)
def test_a_selection_of_one_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = BY_ROWS[name]()
    data, looks, find = TensorDataset(*batch_for(model, 24)), [], rowwise.rows_of

    def counted(target: DerivedTarget) -> Any:
        looks.append(target.tensor.shape)
        return find(target)

    def select(gradients: Any) -> Selection:
        return select_subset(model, data, 0.5, gradients=gradients, batch_size=32, progress=False)

    monkeypatch.setattr(rowwise, "rows_of", counted)
    narrow = select("projected")
    assert len(looks) == 1  # the only batch is the first one, and finds out how rows are made
    assert not any("fallback" in how for how in narrow.settings["parameters"].values())
    found = select(ProjectedGradients(model, EXACT, cross_entropy, fallback=False))
    exact = select(FunctionalGradients(model, cross_entropy))
    assert found.scores == pytest.approx(exact.scores, rel=2e-3, abs=2e-4)
    assert found.indices.tolist() == exact.indices.tolist()
