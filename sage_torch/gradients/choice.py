"""The choice of a gradient computer, and the reason for it."""

from __future__ import annotations

import logging
from typing import cast

from torch import nn

from sage_torch.gradients.computer import GradientChoice, GradientComputer
from sage_torch.gradients.count_sketch import DEFAULT_WIDTH
from sage_torch.gradients.functional import FunctionalGradients
from sage_torch.gradients.last_layer import LastLayerGradients
from sage_torch.gradients.loss import LossFunction, unwrap
from sage_torch.gradients.parameters import ParameterChoice, choose_parameters
from sage_torch.gradients.projected.projected_gradients import ProjectedGradients
from sage_torch.gradients.small import SmallGradients
from sage_torch.gradients.supported import check_model

# Exact gradients up to this length enter the sketch as they are. Above it, projecting them layer by
# layer costs less than computing them (benchmarks/speed/gradients.py).
LONGEST_EXACT = DEFAULT_WIDTH

_NAMES = ("auto", "functional", "projected", "last_layer")


def choose_gradients(
    model: nn.Module,
    loss: LossFunction | None = None,
    kind: GradientChoice = "auto",
    *,
    params: ParameterChoice | None = None,
    seed: int = 0,
    memory_budget: int = 2**30,
) -> GradientComputer:
    """Return the gradient computer that `kind` names, and log the choice.

    Args:
        model: The model; DataParallel, DistributedDataParallel and torch.compile are unwrapped.
        loss: `loss(model, batch) -> (n,)`, one loss per example; None for that of `ExampleLoss`. A
            custom computer has its own loss.
        kind: `"functional"` (exact, one gradient of length D per example), `"projected"` (the whole
            network, cheaper than a training step), `"last_layer"` (the classifier only), `"auto"`
            (functional up to D = 8,192 chosen parameters, or its rows by the projected way where
            vmap refuses the model; else projected), or a custom computer, which is returned
            unchanged, even if it lacks attributes, and for which the model may be sharded.
        params: The parameters: None for all that require grad, names or fnmatch patterns
            (`"blocks.11.*"`, `"*lora*"`), or a predicate `(name, parameter) -> bool`.
        seed: Seed of the projections.
        memory_budget: Bytes for the temporaries of `"functional"` and `"projected"`.

    Raises:
        ValueError: `kind` is an unknown name, `params` matches nothing or cannot be combined with
            `kind`, the model has no parameter that requires grad, or as `check_model`.
        TypeError: `kind` is neither a name nor callable.

    Example:
        >>> import torch
        >>> from sage_torch.gradients import choose_gradients
        >>> choose_gradients(torch.nn.Linear(4, 3)).describe()
        'functional: vmap(grad) over 2 parameters, D = 15'
    """
    check_choice(kind, params)
    inner = unwrap(model)
    if not isinstance(kind, str):
        computer = cast(GradientComputer, kind)
        name = getattr(computer, "__name__", type(computer).__name__)
        _log_choice(inner, f"{name}, {reason_of(inner, kind)}")
        return computer
    check_model(inner)
    reason = reason_of(inner, kind, params)
    chosen: GradientComputer
    if kind == "auto" and _length(inner, params) <= LONGEST_EXACT:
        chosen = SmallGradients(inner, loss, params, memory_budget=memory_budget)
    elif kind == "functional":
        chosen = FunctionalGradients(inner, loss, params, memory_budget=memory_budget)
    elif kind in ("auto", "projected"):
        chosen = ProjectedGradients(
            inner, loss=loss, params=params, seed=seed, memory_budget=memory_budget
        )
    else:
        chosen = LastLayerGradients(inner, loss)
    _log_choice(inner, f"{chosen.describe()}; {reason}; budget {memory_budget / 2**20:,.0f} MiB")
    return chosen


def reason_of(
    model: nn.Module, kind: GradientChoice = "auto", params: ParameterChoice | None = None
) -> str:
    """Return the reason for the choice of `choose_gradients`.

    Returns:
        For example "auto: D = 106,000 > 8,192".

    Raises:
        ValueError: As `choose_gradients`.
    """
    if not isinstance(kind, str):
        return "given by the caller"
    length = _length(unwrap(model), params)  # even if unused: this call checks `params`
    if kind != "auto":
        return "as asked for"
    return f"auto: D = {length:,} {'<=' if length <= LONGEST_EXACT else '>'} {LONGEST_EXACT:,}"


def check_choice(kind: object, params: object = None) -> None:
    """Check the arguments of `choose_gradients` before there is a model or a batch.

    Raises:
        ValueError: `kind` is an unknown name, or `params` is given for a computer without it.
        TypeError: `kind` is neither a name nor callable, or is a class instead of its instance.
    """
    if isinstance(kind, str):
        if kind not in _NAMES:
            names = ", ".join(f'"{name}"' for name in _NAMES)
            raise ValueError(
                f"expected gradients to be {names} or a callable batch -> (n, D), got {kind!r}"
            )
    elif isinstance(kind, type):
        raise TypeError(f"expected a gradient computer, got the class {kind.__name__}; call it")
    elif not callable(kind):
        raise TypeError(
            f"expected gradients to be a name or a callable batch -> (n, D), got {kind!r}"
        )
    if params is not None and (kind == "last_layer" or not isinstance(kind, str)):
        raise ValueError(
            'params goes with gradients="auto", "functional" and "projected"; '
            f"{'the last layer' if kind == 'last_layer' else 'a custom computer'} chooses its "
            "parameters itself; remove params or pass one of these names"
        )


def handling_of(model: nn.Module, computer: object) -> dict[str, str]:
    """Return how the gradient of each parameter of a model is computed.

    Args:
        model: The model.
        computer: Its gradient computer, after the first batch.

    Returns:
        For example `{"conv1.weight": "conv2d: (64, 27) projected to (64, 27)"}`. Empty if the
        computer has no attribute `handling`.
    """
    handling = getattr(computer, "handling", None)
    if not isinstance(handling, dict):
        return {}
    return {
        name: handling.get(name, "left out" if parameter.requires_grad else "frozen, left out")
        for name, parameter in model.named_parameters()
    }


def _length(model: nn.Module, params: ParameterChoice | None) -> int:
    return sum(parameter.numel() for parameter in choose_parameters(model, params).values())


def _log_choice(model: nn.Module, choice: str) -> None:
    logging.getLogger("sage_torch").info("gradients of %s: %s", type(model).__name__, choice)
