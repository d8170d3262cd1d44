"""Whether the loss of an example depends on the other examples of its batch, or on chance."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from textwrap import shorten
from typing import Any
from warnings import catch_warnings, filterwarnings

import torch
from torch import Tensor, nn

import sage_torch.gradients.batches as batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.chunks import is_out_of_memory
from sage_torch.gradients.exchange import exchanged, is_plain
from sage_torch.gradients.loss import ExampleLoss, differentiable, ordinary

__all__ = [
    "FirstBatch",
    "all_zero",
    "losses_of",
    "refuse_if_examples_interact",
    "refuse_zeros",
    "tolerance_of",
]

# Relative distance between results in a batch and alone: rounding depends on the batch size, much
# more so in low precision.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 2e-3}
_TOLERANCE_LOW = 0.1
_TOGETHER, _ALONE = 8, 4  # examples of the first batch that are compared
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError)


def tolerance_of(model: nn.Module, dtypes: Iterable[torch.dtype]) -> float:
    """Return the relative distance allowed for a model that computes in these dtypes.

    Quantised weights are as low precision: their kernels round by the number of examples.
    """
    parameters = list(model.parameters())
    if any(not is_plain(p) or not (p.is_floating_point() or p.is_complex()) for p in parameters):
        return _TOLERANCE_LOW
    return max((_TOLERANCE.get(dtype, _TOLERANCE_LOW) for dtype in dtypes), default=_TOLERANCE_LOW)


class FirstBatch:
    """Checks the first batch of a computer.

    A computer that looks at each example alone cannot see a loss over the batch: of an in-batch
    contrastive loss, all its gradients are zero. It also cannot see the error of a loss that takes
    the mean of the batch.

    Args:
        losses: Model and loss.
        or_else: What else can be done about examples that interact, for the error.
    """

    def __init__(self, losses: ExampleLoss, or_else: str = "") -> None:
        self._losses, self._or_else = losses, or_else
        self._is_checked = self._has_rows = False

    def check(self, batch: Batch) -> None:
        """Compare, once, the losses of a few examples together with the losses of each alone.

        A batch of one example shows nothing and does not count. A model that draws random numbers
        passes: its losses differ from run to run, whatever the batch is.

        Args:
            batch: n examples, on the model's device.

        Raises:
            ValueError: They differ, or one example alone fails.

        Cost:
            Once, forward passes of 8 examples and of 4 times one example.
        """
        n = batches.length(batch)
        if self._is_checked or n < 2:
            return
        count = min(n, _TOGETHER)
        some = batches.places(batch, [i * n // count for i in range(count)])
        try:
            together = losses_of(self._losses, some)
        except RuntimeError as error:
            if is_out_of_memory(error):
                return  # a later batch may be shorter
            raise
        if not bool(torch.isfinite(together).all()):
            return  # the computer says which example it is
        checked = sorted({i * (count - 1) // (_ALONE - 1) for i in range(_ALONE)})
        alone = []
        for place in checked:
            try:
                alone.append(losses_of(self._losses, batches.take(some, place, place + 1)))
            except _FAILURES as error:
                raise ValueError(_fails_alone(error, count)) from error
        tolerance = self._tolerance(together.dtype)
        if _are_apart(together[checked], torch.cat(alone), tolerance):
            if not _are_apart(together, losses_of(self._losses, some), tolerance / 10):
                where = _where(self._losses, some, tolerance)
                raise ValueError(_interact(where) + self._or_else)
            logging.getLogger("sage_torch").info(
                "the losses depend on chance: a second run of the same examples gives others"
            )
        self._is_checked = True

    def refuse_zeros(self, rows: Tensor) -> None:
        """Raise an error if all gradients (n, ...) of the first batch are zero.

        Raises:
            ValueError: They are.
        """
        if not self._has_rows and len(rows) > 1:
            refuse_zeros(rows)
            self._has_rows = True

    def _tolerance(self, dtype: torch.dtype) -> float:
        # Looser than for gradients: activations that are quantised by the batch differ a little.
        model = self._losses.model
        dtypes = {dtype, *(parameter.dtype for parameter in model.parameters())}
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            dtypes.add(torch.bfloat16)
        return min(_TOLERANCE_LOW, 5 * tolerance_of(model, dtypes))


def refuse_zeros(rows: Tensor) -> None:
    """Raise an error if all gradients (n, ...) are zero.

    Raises:
        ValueError: They are.
    """
    if not bool(rows.any()):
        raise all_zero(f"{len(rows)} examples of the first batch")


def all_zero(of: str) -> ValueError:
    """Return the error for gradients that are all zero.

    Args:
        of: The examples.
    """
    return ValueError(
        f"the gradients of all {of} are zero, so that there is nothing to choose by; the loss of "
        "each example must change with the chosen parameters: look for a loss over the batch, "
        "labels that are all ignored, or a saturated model"
    )


def refuse_if_examples_interact(
    losses: ExampleLoss, batch: Batch, tolerance: float, or_else: str
) -> None:
    """Raise an error if the loss of an example depends on chance, or on the rest of its batch.

    Args:
        losses: Model and loss.
        batch: Some examples.
        tolerance: Relative distance allowed.
        or_else: What else can be done about examples that interact, for the error.

    Raises:
        ValueError: It does; the error names the first module whose output changes.
    """
    one = batches.take(batch, 0, 1)
    alone, alone_loss = _outputs(losses, one)
    again, loss_again = _outputs(losses, one)
    if _differ(loss_again, alone_loss, tolerance / 10):
        places = (
            name
            for (name, _, first), (_, _, second) in zip(alone, again, strict=False)
            if first.shape != second.shape or _differ(second, first, tolerance / 10)
        )
        raise ValueError(_chance(_short(next(places, "the loss"))))
    if _differ(losses_of(losses, batch)[:1], alone_loss, tolerance):
        raise ValueError(_interact(_where(losses, batch, tolerance)) + or_else)


def _where(losses: ExampleLoss, batch: Batch, tolerance: float) -> str:
    """Return the first module whose output for one example depends on the others."""
    alone, _ = _outputs(losses, batches.take(batch, 0, 1))
    together, _ = _outputs(losses, batch)
    for (name, module, one), (_, _, several) in zip(alone, together, strict=False):
        first = _first_example(several, one.shape)
        if first is not None and one.is_floating_point() and _differ(first, one, tolerance):
            return f"{_short(name)} ({_short(type(module).__name__)})"
    return "the loss"


def _short(name: str) -> str:
    """Return the end of a long name, because an error has at most 500 characters."""
    return name if len(name) <= 40 else f"...{name[-37:]}"


def _interact(where: str) -> str:
    return (
        f"examples interact in {where}: its result for one example depends on the others in the "
        "batch, so that there is no gradient per example; call model.eval(), normalise within "
        "examples, give a loss= of each example alone (for a contrastive loss, against a fixed "
        "set of negatives), or gradients=, a function of your own batch -> (n, D)"
    )


def _chance(where: str) -> str:
    return (
        "the loss of an example depends on chance: two runs of the same example differ, first in "
        f"the output of {where}; draw no random numbers in evaluation mode (call model.eval(); "
        'let a VAE return its mean unless self.training), or pass gradients="functional", which '
        "does not compare"
    )


def _fails_alone(error: Exception, count: int) -> str:
    return (
        f"the model or its loss fails on a batch of one example, but not on {count}: "
        f"{shorten(str(error), 150)}; gradients are of one example each: use squeeze(1) or "
        "flatten() instead of squeeze(), which also removes a first dimension of 1, and call "
        "model.eval()"
    )


def _are_apart(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Return whether losses (n,) differ by more than rounding; NaN differs from everything."""
    first, second = first.double(), second.double()
    scale = torch.maximum(first.abs().max(), second.abs().max())
    # Rounding is not relative to the loss where that is near 0, as in a trained model.
    return not bool((first - second).abs().max() <= tolerance * (scale + 0.05))


def _differ(first: Tensor, second: Tensor, tolerance: float) -> bool:
    distance = (first.double() - second.double()).norm()
    return not bool(distance <= tolerance * second.double().norm() + 1e-12)


def _first_example(tensor: Tensor, shape: torch.Size) -> Tensor | None:
    """Return the part of an output that belongs to the first example, None if it is unclear."""
    if tensor.ndim != len(shape):
        return None
    changed = [dim for dim, size in enumerate(shape) if tensor.shape[dim] != size]
    if len(changed) > 1:
        return None
    return tensor.narrow(changed[0], 0, shape[changed[0]]) if changed else tensor


def _outputs(
    losses: ExampleLoss, batch: Batch
) -> tuple[list[tuple[str, nn.Module, Tensor]], Tensor]:
    """Return the outputs of every module in the order of computation, and the losses (n,)."""
    found: list[tuple[str, nn.Module, Tensor]] = []

    def noting(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            found.extend((name, module, t.detach().clone()) for t in batches.tensor_leaves(output))

        return note

    handles = [
        module.register_forward_hook(noting(name or "the model"))
        for name, module in losses.model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)  # which takes no hooks
    ]
    try:
        values = losses_of(losses, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found, values


def losses_of(losses: ExampleLoss, batch: Batch) -> Tensor:
    """Return the losses (n,) of a batch, without a graph back to the parameters."""
    with differentiable(), losses.exchangeable() as parameters:  # a loss may compute gradients
        copied = batches.map_tensors(ordinary(batch), torch.clone)
        with exchanged(losses, {**parameters, **losses.copied_buffers()}), catch_warnings():
            # Of reentrant checkpointing, which finds nothing to differentiate here.
            filterwarnings("ignore", message="None of the inputs have requires_grad")
            values: Tensor = losses(copied)
    return values.detach()
