"""Near duplicates (to be replaced)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def near_duplicates(
    coordinates: NDArray[Any],
    groups: NDArray[Any] | None,
    label_scores: NDArray[np.float32] | None,
    *,
    threshold: float,
) -> NDArray[np.int64]:
    """Return the representative of each near duplicate, else -1 (N,)."""
    rows = coordinates.astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    near = np.tril(rows @ rows.T >= threshold, -1)
    if groups is not None:
        near &= groups[:, None] == groups[None]
    found = np.where(near.any(1), near.argmax(1), -1)
    is_open = found >= 0
    found[is_open] = np.where(found[found[is_open]] >= 0, -1, found[is_open])
    return found.astype(np.int64)
