"""Nearest neighbours of rows of length 1: all of them compared, or by faiss where there are many.

Candidates are found in float32 or by short codes; their distances are then computed anew, pair by
pair, so that neither the number of threads nor the rows beside it change what is said of a pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 16  # of each row
EXACT_BELOW = 20_000  # rows
_CANDIDATES = 64  # of each row that the index gives
_LIST = 512  # rows in a list of the index, about
_PROBED = 16  # lists that are searched for each row
_TRAINED_ON = 64  # rows for each list
_BLOCK = 16_384  # rows in float32 at once
_COMPARED_AT_ONCE = 2**24  # pairs, 64 MiB
_MISSING = (
    "expected faiss, to look for near duplicates among {:,} examples (it is needed from "
    "{:,} on); pip install 'sage-torch[duplicates]'"
)


def check_installed(rows: int) -> None:
    """Check that what so many rows need is installed.

    Raises:
        ImportError: There are 20,000 rows or more, and faiss is missing.
    """
    if rows >= EXACT_BELOW and find_spec("faiss") is None:
        raise ImportError(_MISSING.format(rows, EXACT_BELOW))


def nearest(rows: NDArray[np.float16]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the 16 nearest other rows of each row, or all others if there are fewer.

    Args:
        rows: float16 (n, w) of length 1, n at least 2.

    Returns:
        Places int32 (n, k) and distances float32 (n, k), the nearest first, of equals the lowest.
        Where the index finds fewer, -1 at an infinite distance.

    Raises:
        ImportError: There are 20,000 rows or more, and faiss is missing.

    Cost:
        n^2 w multiply-adds. From 20,000 rows on n (n / 512 + 64) w of them, and 8,192 n comparisons
        of codes of w / 4 bytes.

    Reference:
        Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", PAMI 2011;
        Douze et al., "The Faiss Library", arXiv 2401.08281.
    """
    count = min(NEIGHBOURS, len(rows) - 1)
    places = np.empty((len(rows), count), np.int32)
    distances = np.empty((len(rows), count), np.float32)
    candidates = _exact(rows, count) if len(rows) < EXACT_BELOW else _by_index(rows)
    start = 0
    for block in candidates:
        own = np.arange(start, start + len(block))
        block.sort(axis=1)
        far = distances_of(rows, block, own)
        far[(block < 0) | (block == own[:, None])] = np.inf
        order = np.argsort(far, axis=1, kind="stable")[:, :count]
        places[own] = np.take_along_axis(block, order, 1)
        distances[own] = np.take_along_axis(far, order, 1)
        start += len(block)
    places[np.isinf(distances)] = -1
    return places, distances


def distances_of(
    rows: NDArray[np.float16], places: NDArray[Any], own: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the distances float32 (m, k) of rows `places` (m, k) from rows `own` (m,)."""
    found = np.empty(places.shape, np.float32)
    step = max(1, _BLOCK // max(1, places.shape[1]))
    for start in range(0, len(places), step):
        part = slice(start, start + step)
        gaps = rows[places[part]].astype(np.float32)
        gaps -= rows[own[part], None]
        found[part] = np.sqrt(np.einsum("ijk,ijk->ij", gaps, gaps))
    return found


def _exact(rows: NDArray[np.float16], count: int) -> Iterator[NDArray[np.int64]]:
    """Give the nearest rows of each row, in blocks of rows."""
    whole = rows.astype(np.float32)
    squares = np.einsum("ij,ij->i", whole, whole)
    step = max(1, _COMPARED_AT_ONCE // len(rows))
    for start in range(0, len(rows), step):
        far = squares - 2 * whole[start : start + step] @ whole.T
        own = np.arange(len(far))
        far[own, start + own] = np.inf
        yield np.argpartition(far, count - 1, axis=1)[:, :count]


def _by_index(rows: NDArray[np.float16]) -> Iterator[NDArray[np.int64]]:
    """Give more candidates than are needed, itself among them, in blocks of rows."""
    check_installed(len(rows))
    import faiss

    total, width = rows.shape
    lists = max(1, total // _LIST)
    codes = -(-width // 2)  # of four bits, each for two numbers

    def padded(part: NDArray[np.float16]) -> NDArray[np.float32]:
        wide = np.zeros((len(part), 2 * codes), np.float32)
        wide[:, :width] = part
        return wide

    index = faiss.IndexIVFPQFastScan(faiss.IndexFlatL2(2 * codes), 2 * codes, lists, codes, 4)
    index.cp.niter = 10
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # do not warn
    index.nprobe = _PROBED
    index.train(padded(rows[:: max(1, total // (lists * _TRAINED_ON))]))
    for start in range(0, total, _BLOCK):
        index.add(padded(rows[start : start + _BLOCK]))
    for start in range(0, total, _BLOCK):
        yield index.search(padded(rows[start : start + _BLOCK]), _CANDIDATES)[1]
