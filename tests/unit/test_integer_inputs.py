"""Integers given to layers that want floats, and models under no_grad: errors say what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage_torch import select_subset
from sage_torch.gradients import FunctionalGradients, LastLayerGradients, ProjectedGradients

FEATURES, WORDS = 6, 11


class Tagger(nn.Module):
    """Token ids (n, T) in, logits (n, T, V) out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(WORDS, FEATURES), nn.Linear(FEATURES, WORDS)

    def forward(self, input_ids: Tensor) -> Any:
        return self.head(self.embedding(input_ids))


def tokens() -> tuple[Tensor, Tensor]:
    return torch.randint(WORDS, (5, 7)), torch.randint(WORDS, (5, 7))


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


LAYERS: list[tuple[Callable[[], nn.Module], tuple[int, ...], str]] = [
    (lambda: nn.Linear(FEATURES, 3), (FEATURES,), "the Linear"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), (1, 6, 6), "Linear '1'"),
    (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3)),
        (1, 6, 6),
        "Conv2d '0'",
    ),
    (
        lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(36, 3)).eval(),
        (1, 6, 6),
        "BatchNorm2d '0'",
    ),
    (
        lambda: nn.Sequential(nn.LayerNorm(FEATURES), nn.Linear(FEATURES, 3)),
        (FEATURES,),
        "LayerNorm '0'",
    ),
    (lambda: nn.Sequential(nn.ConvTranspose1d(1, 1, 3), nn.Flatten(), nn.Linear(8, 3)), (1, 6), ""),
    (lambda: nn.TransformerEncoderLayer(FEATURES, 2, 12, batch_first=True), (4, FEATURES), ""),
    (Own, (FEATURES,), "the Own"),
]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize(("build", "shape", "layer"), LAYERS, ids=[str(i) for i in range(8)])
def test_integer_inputs_are_to_be_converted(
    build: Callable[[], nn.Module], shape: tuple[int, ...], layer: str, dtype: torch.dtype
) -> None:
    inputs = (4 * torch.rand(4, *shape)).to(dtype)
    batch = (inputs, torch.tensor([0, 1, 2, 0]))
    message = rf"{layer}.* was given inputs of dtype {dtype}; convert them to floating point in"
    for computer in (FunctionalGradients, LastLayerGradients, ProjectedGradients):
        model = build()
        if computer is LastLayerGradients and not any(
            isinstance(module, nn.Linear) for module in model.modules()
        ):
            continue
        with pytest.raises(ValueError, match=message) as caught:
            computer(model)(batch)
        assert isinstance(caught.value.__cause__, RuntimeError)


def test_integer_inputs_of_a_selection_are_to_be_converted() -> None:
    data = [(torch.ones(1, 6, 6, dtype=torch.uint8), i % 3) for i in range(12)]
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3))
    with pytest.raises(ValueError, match=r"Conv2d '0' was given inputs of dtype torch\.uint8"):
        select_subset(model, data, 0.5)  # type: ignore[arg-type]


def test_integers_that_a_model_can_use_are_no_error() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, 3)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x / 255)

    batch = (torch.randint(255, (4, FEATURES)).byte(), torch.tensor([0, 1, 2, 0]))
    assert FunctionalGradients(Scaled())(batch).shape == (4, 21)


def wrong_targets(model: nn.Module, batch: Any) -> Tensor:
    return F.nll_loss(model(batch[0]).mT, batch[1].float(), reduction="none").mean(1)


class MixedPrecision(Tagger):
    def forward(self, input_ids: Tensor) -> Any:
        return F.linear(self.embedding(input_ids).bfloat16(), self.head.weight)


class WrongIndices(Tagger):
    def forward(self, input_ids: Tensor) -> Any:
        return self.head(self.embedding(input_ids.byte()))


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (Tagger(), wrong_targets, "Long.*Float"),
        (MixedPrecision(), None, "same dtype"),
        (WrongIndices(), None, "scalar types: Long, Int"),
        (nn.Sequential(Tagger(), nn.Linear(3, 3)), None, "shape|size mismatch"),
    ],
)
@pytest.mark.parametrize("computer", [FunctionalGradients, LastLayerGradients])
def test_other_errors_of_models_with_integer_inputs_stay_as_they_are(
    computer: Any, model: nn.Module, loss: Any, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        computer(model, loss)(tokens())


class WithoutGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 3)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


@pytest.mark.parametrize("computer", [FunctionalGradients, LastLayerGradients, ProjectedGradients])
def test_model_that_runs_under_no_grad(computer: Any) -> None:
    batch = (torch.randn(4, FEATURES), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ValueError, match=r"call the model outside torch\.no_grad\(\)"):
        computer(WithoutGrad())(batch)
