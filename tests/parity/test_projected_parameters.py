"""Projected gradients of some parameters are those columns of all of them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from microbatches import assert_rows, by_microbatches, cross_entropy
from torch import Tensor, nn
from zoo import case
from zoo.parameters import LoRA

from sage_torch.gradients import ProjectedGradients, choose_gradients


def columns_of(model: nn.Module, width: int, **options: Any) -> dict[str, slice]:
    """Return the columns of each parameter in rows over all of them."""
    columns, start = {}, 0
    for name, _ in model.named_parameters():
        dim = ProjectedGradients(model, width, params=name, **options).dim
        columns[name] = slice(start, start + dim)
        start += dim
    return columns


def transformer_blocks_last(name: str, parameter: nn.Parameter) -> bool:
    return name.startswith(("blocks.1.", "norm"))


def all_but_embeddings(name: str, parameter: nn.Parameter) -> bool:
    return not name.startswith(("wte", "head"))  # tied: by either name


@pytest.mark.parametrize("width", [4, 10**6])
@pytest.mark.parametrize(
    "params",
    [
        "blocks.0.attention.weight",
        ["norm.*", "blocks.1.*"],
        "head.weight",  # the tied embedding's other name
        "pos",
        "wte.weight",
        transformer_blocks_last,
        all_but_embeddings,
    ],
)
def test_choice_gives_the_columns_of_all(params: Any, width: int) -> None:
    entry = case("gpt positions sliced")
    model, batch = entry.make()
    everything = ProjectedGradients(model, width, entry.loss)
    rows, columns = everything(batch), columns_of(model, width)
    chosen = ProjectedGradients(model, width, entry.loss, params=params)
    expected = torch.cat([rows[:, columns[name]] for name in chosen.handling], dim=1)
    assert_rows(chosen(batch), expected)
    assert chosen.dim == expected.shape[1]
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if isinstance(params, str):
        assert set(chosen.handling) == {"wte.weight" if params == "head.weight" else params}
    elif isinstance(params, list):
        assert set(chosen.handling) == {n for n in names for p in params if fnmatchcase(n, p)}


class Stop(torch.autograd.Function):
    """The identity; differentiating it is an error."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise AssertionError("earlier layers are in the graph")


class Stopped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stop = False
        self.stem, self.middle = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.last, self.head = nn.Conv2d(4, 5, 3), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Any:
        x = torch.tanh(self.middle(torch.tanh(self.stem(x))))
        if self.stop:
            x = Stop.apply(x)
        return self.head(torch.tanh(self.last(x)).flatten(1))


def test_layers_before_the_last_block_are_not_in_the_graph() -> None:
    torch.manual_seed(0)
    model = Stopped()
    batch = (torch.randn(5, 3, 8, 8), torch.randint(3, (5,)))
    names = ["last.weight", "last.bias", "head.weight", "head.bias"]
    expected = by_microbatches(model, cross_entropy, batch, names)
    model.stop = True
    # The self-check's single examples may go further back.
    gradients = ProjectedGradients(model, 10**6, params=["last.*", "head.*"], self_check=False)
    assert_rows(gradients(batch), expected)
    assert_rows(gradients(batch), expected)
    assert list(gradients.handling) == names
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("merged", [False, True])
def test_adapters_only(merged: bool) -> None:
    model, batch = case("lora merged" if merged else "lora").make()
    model.get_submodule("head").requires_grad_(False)
    gradients = ProjectedGradients(model, 10**6)
    names = ["lora_A.weight", "lora_B.weight"]
    assert_rows(gradients(batch), by_microbatches(model, cross_entropy, batch, names))
    assert list(gradients.handling) == names
    by_name = ProjectedGradients(model, 10**6, params="lora_*")
    assert_rows(by_name(batch), gradients(batch))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("lenet", "conv1.*"),
        ("timm vit", ["cls_token", "patches.weight"]),
        ("gpt positions (T,)", "w?e.weight"),
        ("lstm", "recurrent.weight_hh_l0"),
        ("batch norm 2d", "layers.0.*"),
    ],
)
def test_frozen_parameters_may_be_asked_for(name: str, params: Any) -> None:
    entry = case(name)
    model, batch = entry.make()
    patterns = [params] if isinstance(params, str) else params
    names = [n for n, _ in model.named_parameters() if any(fnmatchcase(n, p) for p in patterns)]
    expected = entry.expected(names)
    model.requires_grad_(False)
    gradients = ProjectedGradients(model, 10**6, entry.loss, params=params)
    assert_rows(gradients(batch), expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_freezing_later_does_not_matter() -> None:
    model, batch = case("lenet").make()
    gradients = ProjectedGradients(model, 4)
    rows = gradients(batch)
    model.requires_grad_(False)
    assert_rows(gradients(batch), rows)


def test_training_goes_on_between_calls() -> None:
    model, batch = case("lenet").make()
    gradients = ProjectedGradients(model, 10**6)
    gradients(batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert_rows(gradients(batch), by_microbatches(model, cross_entropy, batch))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone() * 0.9
    assert_rows(gradients(batch), by_microbatches(model, cross_entropy, batch))


def test_choice_by_name_of_the_computer() -> None:
    torch.manual_seed(0)
    model = LoRA().eval()
    batch = (torch.randn(5, 6), torch.randint(3, (5,)))
    named = choose_gradients(model, kind="projected")
    assert isinstance(named, ProjectedGradients)
    assert_rows(named(batch), ProjectedGradients(model)(batch))
