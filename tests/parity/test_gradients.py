"""Every gradient computer equals one ordinary backward pass per example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from microbatches import (
    CLASSES,
    MODELS,
    VECTORS,
    HeadFirst,
    Loss,
    N,
    Text,
    Tied,
    assert_rows,
    by_microbatches,
    cross_entropy,
    make,
    models,
)
from torch import Tensor, nn

from sage_torch.gradients import (
    FunctionalGradients,
    GradientComputer,
    LastLayerGradients,
)


@models
def test_functional_equals_microbatches(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model, batch = make(build, shape)
    gradients = FunctionalGradients(model)
    assert_rows(gradients(batch), by_microbatches(model, cross_entropy, batch))
    assert gradients.dim == sum(p.numel() for p in model.parameters())
    assert gradients.describe().startswith("functional: vmap(grad) over ")


@models
def test_functional_equals_microbatches_in_float64(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model, (inputs, targets) = make(build, shape)
    batch = (inputs.double(), targets)
    expected = by_microbatches(model.double(), cross_entropy, batch)
    assert_rows(FunctionalGradients(model)(batch), expected, tolerance=2e-7)


@models
def test_last_layer_equals_functional_and_microbatches(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model, batch = make(build, shape)
    found = LastLayerGradients(model)
    rows = found(batch)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    name = next(n for n, m in linears.items() if m.out_features == CLASSES)
    names = [f"{name}.weight".lstrip("."), f"{name}.bias".lstrip(".")]
    assert_rows(rows, by_microbatches(model, cross_entropy, batch, names))
    assert_rows(rows, FunctionalGradients(model, params=names)(batch))
    assert found.dim == rows.shape[1]
    by_name, by_module = (LastLayerGradients(model, layer=c) for c in (name, linears[name]))
    assert torch.equal(rows, by_name(batch))
    assert torch.equal(rows, by_module(batch))


def test_unused_parameter_gives_zero_columns() -> None:
    model, batch = make(HeadFirst, VECTORS)
    rows = FunctionalGradients(model)(batch)
    start = CLASSES * (8 + 1)
    assert rows[:, start : start + 6].abs().max() == 0
    assert rows[:, start + 6 :].abs().max() > 0


def test_tied_weights_are_summed_under_either_name() -> None:
    model, _ = make(Tied, VECTORS)
    batch = (torch.randn(N, 6), torch.randint(6, (N,)))
    expected = by_microbatches(model, cross_entropy, batch, ["encoder.weight"])
    for name in ("encoder.weight", "decoder.weight"):
        assert_rows(FunctionalGradients(model, params=name)(batch), expected)


@pytest.mark.parametrize("computer", [FunctionalGradients, LastLayerGradients])
def test_dict_batch(computer: Callable[..., GradientComputer]) -> None:
    torch.manual_seed(0)
    model = Text().eval()
    batch = {
        "input_ids": torch.randint(11, (N, 4)),
        "attention_mask": torch.tensor([[1, 1, 1, 0]] * N),
        "labels": torch.randint(CLASSES, (N,)),
    }

    def loss(model: nn.Module, batch: Any) -> Tensor:
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return F.cross_entropy(output.logits, batch["labels"], reduction="none")

    names = None if computer is FunctionalGradients else ["classifier.weight", "classifier.bias"]
    assert_rows(computer(model)(batch), by_microbatches(model, loss, batch, names))


def squared_error(model: nn.Module, batch: Any) -> Tensor:
    losses: Tensor = (model(batch[0]) - batch[1]).square().mean(1)
    return losses


def multi_label(model: nn.Module, batch: Any) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(model(batch[0]), batch[1], reduction="none")
    return losses.mean(1)


def hides_the_output(model: nn.Module, batch: Any) -> Tensor:
    assert isinstance(model, HeadFirst)  # the user's own object, not a wrapper
    logits = model.head(torch.relu(model.trunk(batch[0])))
    logits /= 2.0  # in place
    losses: Tensor = (logits - batch[1]).square().sum(1)
    return losses


@pytest.mark.parametrize("loss", [squared_error, multi_label, hides_the_output])
def test_users_loss(loss: Loss) -> None:
    model, (inputs, _) = make(HeadFirst, VECTORS)
    batch = (inputs, torch.rand(N, CLASSES).round())
    assert_rows(FunctionalGradients(model, loss)(batch), by_microbatches(model, loss, batch))
    expected = by_microbatches(model, loss, batch, ["head.weight", "head.bias"])
    assert_rows(LastLayerGradients(model, loss)(batch), expected)


@pytest.mark.parametrize("computer", [FunctionalGradients, LastLayerGradients])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_model_gives_float32_rows(
    computer: Callable[..., GradientComputer], dtype: torch.dtype
) -> None:
    smooth = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    model, (inputs, targets) = make(lambda: smooth, VECTORS)
    names = None if computer is FunctionalGradients else ["2.weight", "2.bias"]
    expected = by_microbatches(model, cross_entropy, (inputs, targets), names)
    rows = computer(model.to(dtype))((inputs.to(dtype), targets))
    assert_rows(rows, expected, tolerance=0.05)


class TokenHead(nn.Module):
    """A classifier applied at every position."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.lm_head = nn.Linear(8, CLASSES, bias=bias)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh())

    def forward(self, x: Tensor) -> Any:
        return self.lm_head(self.trunk(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("positions", [(5,), (2, 3)])
def test_last_layer_sums_over_positions(bias: bool, positions: tuple[int, ...]) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        logits = model(batch[0]).movedim(-1, 1)
        return F.cross_entropy(logits, batch[1], reduction="none").flatten(1).mean(1)

    model, _ = make(lambda: TokenHead(bias), VECTORS)
    batch = (torch.randn(N, *positions, 6), torch.randint(CLASSES, (N, *positions)))
    names = ["lm_head.weight", "lm_head.bias"][: 1 + bias]
    rows = LastLayerGradients(model, loss)(batch)
    assert_rows(rows, by_microbatches(model, loss, batch, names))
    assert_rows(rows, FunctionalGradients(model, loss, params=names)(batch))


def test_last_layer_without_bias() -> None:
    model, batch = make(lambda: HeadFirst(bias=False), VECTORS)
    gradients = LastLayerGradients(model)
    assert_rows(gradients(batch), by_microbatches(model, cross_entropy, batch, ["head.weight"]))
    assert gradients.dim == 8 * CLASSES


def test_classifier_behind_a_temperature_is_found() -> None:
    class Cooled(HeadFirst):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) / 0.7

    model, batch = make(Cooled, VECTORS)
    expected = by_microbatches(model, cross_entropy, batch, ["head.weight", "head.bias"])
    assert_rows(LastLayerGradients(model)(batch), expected)


def test_classifier_between_the_users_hooks_and_writes_in_place() -> None:
    class Reusing(HeadFirst):
        def forward(self, x: Tensor) -> Any:
            hidden = torch.relu(self.trunk(x))
            logits = self.head(hidden)
            hidden.zero_()
            return logits

    model, batch = make(Reusing, VECTORS)
    same, _ = make(HeadFirst, VECTORS)
    for network in (model, same):
        head = network.get_submodule("head")
        head.register_forward_hook(lambda module, args, output: 2 * output)
    expected = by_microbatches(same, cross_entropy, batch, ["head.weight", "head.bias"])
    assert_rows(LastLayerGradients(model)(batch), expected)


def test_the_models_output_decides_between_two_heads() -> None:
    class TwoHeads(HeadFirst):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary = nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Any:
            hidden = torch.relu(self.trunk(x))
            logits = self.head(hidden)
            self.extra = self.auxiliary(hidden)
            return logits

    def loss(model: nn.Module, batch: Any) -> Tensor:
        losses = cross_entropy(model, batch)
        assert isinstance(model, TwoHeads)
        return losses + 0.3 * F.cross_entropy(model.extra, batch[1], reduction="none")

    model, batch = make(TwoHeads, VECTORS)
    gradients = LastLayerGradients(model, loss)
    names = ["head.weight", "head.bias"]
    assert_rows(gradients(batch), FunctionalGradients(model, loss, params=names)(batch))
    assert "'head'" in gradients.describe()


@pytest.mark.parametrize("examples", [0, 1, 3])
def test_chunks_do_not_matter(examples: int) -> None:
    model, batch = make(*MODELS[1][1:])
    whole = FunctionalGradients(model)
    budget = max(1, 12 * whole.dim * examples)
    assert_rows(FunctionalGradients(model, memory_budget=budget)(batch), whole(batch), 1e-6)


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ("head.weight", ["head.weight"]),
        (["head.*"], ["head.weight", "head.bias"]),
        (["trunk.bias", "head.bias"], ["head.bias", "trunk.bias"]),  # the model's order
        (lambda name, parameter: parameter.ndim == 2, ["head.weight", "trunk.weight"]),
    ],
)
def test_choice_of_parameters(params: Any, names: list[str]) -> None:
    model, batch = make(HeadFirst, VECTORS)
    del model.unused
    model.get_submodule("head").requires_grad_(False)  # choosing by name includes frozen ones
    gradients = FunctionalGradients(model, params=params)
    model.requires_grad_(True)
    assert_rows(gradients(batch), by_microbatches(model, cross_entropy, batch, names))


def test_frozen_parameters_are_left_out() -> None:
    model, batch = make(HeadFirst, VECTORS)
    model.get_submodule("trunk").requires_grad_(False)
    model.get_submodule("unused").requires_grad_(False)
    functional, last = FunctionalGradients(model), LastLayerGradients(model, layer="head")
    assert_rows(functional(batch), last(batch))
