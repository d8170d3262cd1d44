"""With nothing projected, the rows equal one backward pass per example, for any model."""

from __future__ import annotations

import warnings
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from microbatches import assert_rows
from torch import nn
from zoo import ZOO, Case, case, zoo

from sage_torch.gradients import ProjectedGradients, unwrap
from sage_torch.gradients.batches import take

EXACT = 10**6


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return everything of a model that a gradient computer could have changed."""
    state: dict[str, Any] = {"random numbers": torch.get_rng_state().tolist()}
    state["mode"] = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    for name, p in model.named_parameters():
        hooks = (p._backward_hooks, getattr(p, "_post_accumulate_grad_hooks", None))
        grad = None if p.grad is None else p.grad.flatten().tolist()
        state[name] = (id(p), p.requires_grad, id(p.grad), p._version, hooks, grad)
    for name, b in model.named_buffers():
        state[f"buffer {name}"] = (id(b), b._version, b.flatten().tolist())
    for name, module in model.named_modules():
        kept = {key: value for key, value in vars(module).items() if "hooks" in key}
        state[f"module {name}"] = (type(module), module.training, sorted(vars(module)), kept)
        state[f"hooks of {name}"] = {key: list(value) for key, value in kept.items() if value}
    return state


@zoo
def test_exact_mode_equals_microbatches(case: Case) -> None:
    model, batch = case.make()
    inner = unwrap(model)
    first = next(inner.parameters())
    first.grad = torch.randn_like(first)
    before = state_of(inner)
    chosen = [name for name, p in inner.named_parameters() if p.requires_grad]
    gradients = ProjectedGradients(model, EXACT, case.loss)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="vmap cannot differentiate")
        rows = gradients(batch)
    assert state_of(inner) == before
    assert_rows(rows, case.expected())
    assert gradients.dim == rows.shape[1]
    assert list(gradients.handling) == chosen
    functional = {name for name, how in gradients.handling.items() if how.startswith("functional")}
    if case.functional is not None:
        assert functional == {n for n in chosen if any(fnmatchcase(n, p) for p in case.functional)}
    with torch.no_grad():
        assert_rows(gradients(batch), rows, 1e-6)  # without the first call's self-check
    versions = [p._version for p in inner.parameters()]
    alone = gradients(take(batch, 0, 1))
    assert (alone - rows[:1]).norm() <= 1e-5 * rows.norm()
    assert [p._version for p in inner.parameters()] == versions


@pytest.mark.parametrize("name", ["unused parameter", "lists of parameters"])
def test_unused_parameters_give_zero_columns_and_say_so(name: str) -> None:
    model, batch = case(name).make()
    gradients = ProjectedGradients(model, EXACT)
    rows, column = gradients(batch), 0
    assert any("unused" in how for how in gradients.handling.values())
    for parameter, (where, how) in zip(model.parameters(), gradients.handling.items(), strict=True):
        part = rows[:, column : column + parameter.numel()]
        assert ("unused" in where) == how.startswith("unused") == (part.abs().max() == 0)
        column += parameter.numel()


def test_names_of_the_zoo_are_distinct() -> None:
    assert len({entry.name for entry in ZOO}) == len(ZOO)
