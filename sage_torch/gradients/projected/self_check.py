"""The check of the rows of a batch against single examples, and of interaction between examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import sage_torch.gradients.batches as batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.loss import ExampleLoss, differentiable, ordinary
from sage_torch.gradients.projected.maps import Block

__all__ = ["refuse_if_examples_interact", "tolerance_of", "wrong_blocks"]

# Relative distance between a row computed in a batch and alone: rounding depends on the batch size,
# much more so in low precision.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 2e-3}
_TOLERANCE_LOW = 0.1


def tolerance_of(dtypes: Iterable[torch.dtype]) -> float:
    """Return the relative distance allowed for a model that computes in these dtypes."""
    return max((_TOLERANCE.get(dtype, _TOLERANCE_LOW) for dtype in dtypes), default=_TOLERANCE_LOW)


def wrong_blocks(
    blocks: Sequence[Block], rows: Tensor, exact: Tensor, tolerance: float
) -> list[str]:
    """Return the parameters whose gradients in a batch differ from those of single examples.

    Args:
        blocks: The columns of each parameter.
        rows: Tensor (n, d), computed for all examples together.
        exact: Tensor (n, d), computed by one backward pass per example, then projected.
        tolerance: Relative distance allowed.

    Returns:
        Their names; empty if the rows differ by rounding only.
    """
    lengths = exact.norm(dim=1)
    allowed = tolerance * lengths + 1e-12
    difference = rows - exact
    # If a whole row is too far off, at least one block exceeds its share of the distance. A small
    # block may be all wrong and still not show in the row, so that each is also tested loosely.
    is_off = bool((difference.norm(dim=1) > allowed).any())
    wrong = []
    for block in blocks:
        error = block.of(difference).flatten(1).norm(dim=1)
        own = block.of(exact).flatten(1).norm(dim=1)
        loosely = min(0.5, 25 * tolerance) * own + tolerance / 100 * lengths + 1e-12
        share = allowed / len(blocks) ** 0.5
        if not bool((error <= loosely).all()) or (is_off and not bool((error <= share).all())):
            wrong.append(block.name)
    return wrong


def refuse_if_examples_interact(losses: ExampleLoss, batch: Batch, tolerance: float) -> None:
    """Raise an error if the loss of an example depends on the other examples of its batch.

    Args:
        losses: Model and loss.
        batch: Some examples.
        tolerance: Relative distance allowed.

    Raises:
        ValueError: It does; the error names the first module whose output changes.
    """
    alone, alone_loss = _outputs(losses, batches.take(batch, 0, 1))
    together, of_all = _outputs(losses, batch)
    if not _differ(of_all[:1], alone_loss, tolerance):
        return
    where = "the loss"
    for (name, module, one), (_, _, several) in zip(alone, together, strict=False):
        first = _first_example(several, one.shape)
        if first is not None and one.is_floating_point() and _differ(first, one, tolerance):
            where = f"{name} ({type(module).__name__})"
            break
    raise ValueError(
        f"examples interact in {where}: its result for one example depends on the others in the "
        "batch, so that there is no gradient per example; call model.eval(), normalise within "
        "examples, or pass ProjectedGradients(..., self_check=False)"
    )


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

    modules = losses.model.named_modules()
    handles = [m.register_forward_hook(noting(name or "the model")) for name, m in modules]
    try:
        with differentiable():  # a loss may itself compute gradients
            state = {**losses.detached_parameters(), **losses.copied_buffers()}
            copied = batches.map_tensors(ordinary(batch), torch.clone)
            values: Tensor = functional_call(losses, state, (copied,))
    finally:
        for handle in handles:
            handle.remove()
    return found, values.detach()
