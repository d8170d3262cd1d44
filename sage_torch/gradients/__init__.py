"""Per-example gradients: what a computer of them must offer, and which one to take.

A computer turns a batch of n examples into rows (n, D), row i the gradient `g_i = dL_i/dw` of
example i's loss with respect to the chosen parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeAlias, cast

from torch import Tensor, nn

from sage_torch.gradients import batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.count_sketch import DEFAULT_WIDTH
from sage_torch.gradients.functional import FunctionalGradients
from sage_torch.gradients.last_layer import LastLayerGradients
from sage_torch.gradients.loss import LossFunction, unwrap
from sage_torch.gradients.parameters import ParameterChoice, choose_parameters
from sage_torch.gradients.projected.projected_gradients import ProjectedGradients

__all__ = [
    "Batch",
    "FunctionalGradients",
    "GradientChoice",
    "GradientComputer",
    "LastLayerGradients",
    "LossFunction",
    "ParameterChoice",
    "ProjectedGradients",
    "choose_gradients",
    "handling_of",
    "reason_of",
    "rows_of",
    "unwrap",
]

# Exact gradients up to this length go into the sketch as they are; above, projecting them layer by
# layer is cheaper than computing them (benchmarks/gradients.py).
LONGEST_EXACT = DEFAULT_WIDTH


class GradientComputer(Protocol):
    """What turns batches into per-example gradients; any object of this form can take part.

    An attribute `handling`, a dict from each parameter's name to words, is shown in the selection.
    A plain function `batch -> (n, D)` will do as well: selection then takes D from the first rows,
    takes `covers_whole_network` for False, and shows its name for a description.

    Both passes of a selection must use the same computer. Rows must not depend on which other
    examples share the batch, and the model's parameters, gradients, buffers and mode must be as
    before after each call.

    Example:
        >>> import torch
        >>> class InputGradients:
        ...     dim, covers_whole_network = 4, False
        ...     def __call__(self, batch):
        ...         return batch[0].flatten(1).float()
        ...     def describe(self):
        ...         return "the inputs themselves"
        >>> from sage_torch.gradients import choose_gradients
        >>> choose_gradients(torch.nn.Linear(4, 3), kind=InputGradients()).describe()
        'the inputs themselves'
    """

    @property
    def dim(self) -> int:
        """Number of columns D, from construction on where possible, else after the first call.

        Raises:
            RuntimeError: It is not known before the first call.
        """
        ...

    @property
    def covers_whole_network(self) -> bool:
        """Whether the columns cover every parameter that requires grad.

        Only then does a negative margin mark an example to be trimmed.
        """
        ...

    def __call__(self, batch: Batch) -> Tensor:
        """Return the gradients of a batch.

        Args:
            batch: n examples on the model's device, as the loader collates them.

        Returns:
            Tensor (n, D) float32 on the model's device, detached, row i for example i.

        Raises:
            ValueError: The batch or its losses do not have the form the computer needs.
            SageError: A loss is not finite; `row` is its position in the batch.
        """
        ...

    def describe(self) -> str:
        """Say in one line what is computed, for the log and the selection.

        Returns:
            For example "functional: vmap(grad) over 10 parameters, D = 106,000".
        """
        ...


def rows_of(gradients: GradientComputer | Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """Return the gradients of a batch where the sketch can read them: on the CPU or a CUDA device.

    Args:
        gradients: Any computer.
        batch: n examples on the model's device.

    Returns:
        Tensor (n, D).

    Raises:
        TypeError: The computer returned no tensor.
        ValueError: It did not return one row an example.
    """
    rows = gradients(batch)
    n = batches.length(batch)
    if not isinstance(rows, Tensor):
        raise TypeError(f"expected gradients as a torch.Tensor, got {type(rows).__name__}")
    if rows.ndim != 2 or len(rows) != n:
        raise ValueError(
            f"expected one gradient an example, shape ({n}, D), got {tuple(rows.shape)}"
        )
    return rows if rows.device.type in ("cpu", "cuda") else rows.cpu()


GradientChoice: TypeAlias = str | GradientComputer | Callable[[Batch], Tensor]

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
        loss: `loss(model, batch) -> (n,)` losses, one per example; None as `ExampleLoss` says. A
            computer of the user's own has its own loss.
        kind: `"functional"` (exact, one gradient of length D an example), `"projected"` (the whole
            network, cheaper than a training step), `"last_layer"` (the classifier only), `"auto"`
            (functional up to D = 8,192 chosen parameters, which the sketch takes as they are; else
            projected), or a computer of the user's own, which is returned as it is, attributes
            missing or not.
        params: Which parameters: None for all that require grad, names or fnmatch patterns
            (`"blocks.11.*"`, `"*lora*"`), or a predicate `(name, parameter) -> bool`.
        seed: Seed of the projections.
        memory_budget: Bytes for the temporaries of `"functional"` and `"projected"`.

    Returns:
        The computer.

    Raises:
        ValueError: `kind` is an unknown name, `params` matches nothing or does not go with `kind`,
            or the model has no parameter that requires grad.
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
    reason = reason_of(inner, kind, params)
    if kind == "auto":
        kind = "functional" if _length(inner, params) <= LONGEST_EXACT else "projected"
    if kind == "functional":
        chosen: GradientComputer = FunctionalGradients(
            inner, loss, params, memory_budget=memory_budget
        )
    elif kind == "projected":
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
    """Say why `choose_gradients` chooses what it does.

    Returns:
        For example "auto: D = 106,000 > 8,192".

    Raises:
        ValueError: As `choose_gradients`.
    """
    if not isinstance(kind, str):
        return "given by the caller"
    length = _length(unwrap(model), params)  # also where it does not matter: it may be refused
    if kind != "auto":
        return "as asked for"
    return f"auto: D = {length:,} {'<=' if length <= LONGEST_EXACT else '>'} {LONGEST_EXACT:,}"


def check_choice(kind: object, params: object = None) -> None:
    """Refuse what `choose_gradients` does not know, before there is a model or a batch.

    Raises:
        ValueError: An unknown name, or `params` beside a computer that does not take it.
        TypeError: Neither a name nor callable, or a class instead of its instance.
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
            f"{'the last layer' if kind == 'last_layer' else 'a computer of your own'} chooses "
            "its parameters itself"
        )


def handling_of(model: nn.Module, computer: object) -> dict[str, str]:
    """Say of each parameter of a model how its gradient is computed.

    Args:
        model: The model.
        computer: Its gradient computer, after the first batch.

    Returns:
        Names and words, such as `{"conv1.weight": "conv2d: (64, 27) projected to (64, 27)"}`; empty
        for a computer that does not say.
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
