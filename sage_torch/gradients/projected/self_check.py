"""The check of the rows of a batch against single examples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sage_torch.gradients.projected.maps import Block

__all__ = ["wrong_blocks"]


def wrong_blocks(
    blocks: Sequence[Block], rows: Tensor, exact: Tensor, tolerance: float
) -> dict[str, int]:
    """Return the parameters whose gradients in a batch differ from those of single examples.

    Args:
        blocks: The columns of each parameter.
        rows: Tensor (n, d), computed for all examples together.
        exact: Tensor (n, d), computed by one backward pass per example, then projected.
        tolerance: Relative distance allowed.

    Returns:
        For each, in how many examples; empty if the rows differ by rounding only.
    """
    lengths = exact.norm(dim=1)
    allowed = tolerance * lengths + 1e-12
    difference = rows - exact
    # If a whole row is too far off, at least one block exceeds its share of the distance. A small
    # block may be all wrong and still not show in the row, so that each is also tested loosely.
    is_off = (difference.norm(dim=1) > allowed).any()
    wrong = {}
    for block in blocks:
        error = block.of(difference).flatten(1).norm(dim=1)
        own = block.of(exact).flatten(1).norm(dim=1)
        loosely = min(0.5, 25 * tolerance) * own + tolerance / 100 * lengths + 1e-12
        share = allowed / len(blocks) ** 0.5
        are_wrong = ~(error <= loosely) | (is_off & ~(error <= share))  # NaN is wrong, too
        if are_wrong.any():
            wrong[block.name] = int(are_wrong.sum())
    return wrong
