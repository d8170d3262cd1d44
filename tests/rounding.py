"""What float32 may add to the guarantees of Frequent Directions."""

from __future__ import annotations

UNIT = 2.0**-24  # half the distance between neighbouring float32 numbers around 1


def allowance(largest: float, sketch_size: int, block: int, shrinks: int) -> float:
    """What float32 may add to an error in ||Sx||^2: `2 u (2 + sqrt(l + b)) lambda_1` a shrink.

    A shrink computes `R [S; G]` in float32. R is rounded (a factor 1 + u on each entry), the sum
    of l + b products is rounded after each (a random walk: u sqrt(l + b)), the result is stored (u
    again). A relative error e of S is 2 e of its square. Storing S alone, perfectly computed,
    costs 2 u = 1.2e-7 on a constant row, so no float32 sketch can promise less.
    """
    return shrinks * 2 * UNIT * (2 + (sketch_size + block) ** 0.5) * largest
