"""Gradients leave the user's model alone, however it is wrapped; and which computer is chosen."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from microbatches import (
    CLASSES,
    MODELS,
    VECTORS,
    Checkpointed,
    HeadFirst,
    N,
    assert_rows,
    make,
    mlp,
)
from torch import Tensor, nn

from sage_torch.gradients import (
    FunctionalGradients,
    GradientComputer,
    LastLayerGradients,
    ProjectedGradients,
    choose_gradients,
    handling_of,
)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("computer", [FunctionalGradients, LastLayerGradients])
@pytest.mark.parametrize("build", [mlp, lambda: Checkpointed(reentrant=True)])
def test_callers_grad_mode_does_not_matter(
    mode: Callable[[], AbstractContextManager[None]],
    computer: Callable[..., GradientComputer],
    build: Callable[[], nn.Module],
) -> None:
    model, batch = make(build, VECTORS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = computer(model)(batch)
        with mode():
            batch = (batch[0] + 0, batch[1])  # made under the mode, as by a loader
            assert_rows(computer(model)(batch), expected)


@pytest.mark.parametrize("wrap", ["parallel", "compiled", "compiled in place"])
@pytest.mark.parametrize("computer", [FunctionalGradients, LastLayerGradients])
def test_wrapped_models(wrap: str, computer: Callable[..., GradientComputer]) -> None:
    compilations = []

    def backend(graph: Any, inputs: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    model, batch = make(HeadFirst, VECTORS)
    expected = computer(copy.deepcopy(model))(batch)
    wrapped: Any = model
    if wrap == "parallel":
        wrapped = nn.DataParallel(model)
    elif wrap == "compiled":
        wrapped = torch.compile(model, backend=backend)
    else:
        model.compile(backend=backend)
    wrapped(batch[0])
    before = len(compilations)
    assert before == (wrap != "parallel")
    assert_rows(computer(wrapped)(batch), expected)
    assert len(compilations) == before  # what was compiled for training stays as it is


def test_train_mode_is_respected() -> None:
    model = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, CLASSES)).train()
    _, batch = make(mlp, VECTORS)
    gradients = FunctionalGradients(model, params="2.weight")
    warnings.simplefilter("error")
    columns = gradients(batch).view(N, CLASSES, 50).abs().sum(1) == 0
    assert 0.3 < columns.float().mean() < 0.7  # each example has its own mask
    assert not torch.equal(columns[0], columns[1])


def state_of(model: nn.Module) -> list[Any]:
    def bits(tensor: Tensor | None) -> bytes | None:
        return None if tensor is None else tensor.detach().numpy().tobytes()

    state: list[Any] = [
        (name, id(p), p.requires_grad, id(p.grad), bits(p.grad), bits(p), p._version)
        for name, p in model.named_parameters()
    ]
    state += [(name, id(b), bits(b), b._version) for name, b in model.named_buffers()]
    state += [(m.training, len(m._forward_hooks)) for m in model.modules()]
    return [*state, torch.get_rng_state().numpy().tobytes()]


class CountsCalls(nn.Module):
    """Writes to a buffer at every call, in eval mode too."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return x


@pytest.mark.parametrize("computer", [FunctionalGradients, LastLayerGradients])
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        MODELS[1][1:],
        MODELS[4][1:],
        (lambda: Checkpointed(reentrant=True), VECTORS),
        (lambda: nn.Sequential(CountsCalls(), nn.Linear(6, CLASSES)), VECTORS),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_users_state_is_untouched(
    computer: Callable[..., GradientComputer],
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    fails: bool,
) -> None:
    model, (inputs, targets) = make(build, shape)
    first, *others = model.parameters()
    first.grad = torch.randn_like(first)
    if others:
        others[-1].requires_grad_(False)
    next(model.children()).train(isinstance(model, Checkpointed))
    before = state_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="outside") if fails else nullcontext():
            computer(model)((inputs, targets + 10 * fails))
    assert state_of(model) == before


def test_choice_by_size(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    model, batch = make(mlp, VECTORS)
    with caplog.at_level("INFO", logger="sage_torch"):
        whole = choose_gradients(model)
    assert isinstance(whole, FunctionalGradients)
    (record,) = caplog.records
    assert record.getMessage() == (
        "gradients of Sequential: functional: vmap(grad) over 4 parameters, D = 83; "
        "auto: D = 83 <= 8,192; budget 1,024 MiB"
    )
    assert isinstance(choose_gradients(model, kind="last_layer"), LastLayerGradients)
    monkeypatch.setattr("sage_torch.gradients.choice.LONGEST_EXACT", 82)
    caplog.clear()
    with caplog.at_level("INFO", logger="sage_torch"):
        projected = choose_gradients(model, seed=3, memory_budget=2**20)
    assert isinstance(projected, ProjectedGradients)
    assert projected.seed == 3
    (record,) = caplog.records
    assert record.getMessage() == (
        "gradients of Sequential: projected: width 32 over 4 parameters, D = 83 -> d = 83; "
        "auto: D = 83 > 82; budget 1 MiB"
    )
    assert isinstance(choose_gradients(model, params="0.*"), FunctionalGradients)  # D = 56
    assert isinstance(choose_gradients(model, kind="functional"), FunctionalGradients)
    assert projected(batch).shape == (N, projected.dim)


@pytest.mark.parametrize("kind", ["last_layer", lambda batch: batch[0]])
def test_params_go_with_computers_that_take_them(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"params goes with .* chooses its parameters itself"):
        choose_gradients(mlp(), kind=kind, params="0.weight")


@pytest.mark.parametrize("kind", ["functional", "projected", "last_layer"])
def test_every_parameter_is_accounted_for(kind: str) -> None:
    model, batch = make(mlp, VECTORS)
    model.get_submodule("0").requires_grad_(False)
    params = None if kind == "last_layer" else "2.weight"
    computer = choose_gradients(model, kind=kind, params=params)
    computer(batch)
    found = handling_of(model, computer)
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert found["0.weight"] == found["0.bias"] == "frozen, left out"
    assert "exact" in found["2.weight"]
    assert ("exact" in found["2.bias"]) == (kind == "last_layer")
    assert handling_of(model, lambda batch: batch[0]) == {}


def test_users_computer_is_passed_through(caplog: pytest.LogCaptureFixture) -> None:
    def inputs_themselves(batch: Any) -> Any:
        return batch[0]

    with caplog.at_level("INFO", logger="sage_torch"):
        chosen = choose_gradients(mlp().requires_grad_(False), kind=inputs_themselves)
    assert chosen is inputs_themselves
    assert "inputs_themselves, given by the caller" in caplog.text
