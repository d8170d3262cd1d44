"""Images of a data set, with one common scale, drawn in a grid."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sage_torch.selection.result import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP = 0.18  # between images, in image widths


def read_images(
    selection: Selection, dataset: Dataset[Any], indices: Iterable[int]
) -> dict[int, NDArray[np.float64]]:
    """Return the images of some examples by index, (H, W) or (H, W, 3), within [0, 1].

    All share one scale, so that a pale image stays pale and standardised pixels become visible.

    Raises:
        ValueError: The data set has another length than the selection, or an item is not an image.
    """
    check_length(selection, dataset)
    images = {int(i): _image(dataset[int(i)]) for i in indices}
    low, high = min(map(np.min, images.values())), max(map(np.max, images.values()))
    return {i: (image - low) / (high - low or 1.0) for i, image in images.items()}


def check_length(selection: Selection, dataset: Dataset[Any]) -> None:
    """Raise a ValueError if a data set has another length than a selection."""
    if len(dataset) != len(selection.scores):  # type: ignore[arg-type]
        raise ValueError(
            f"expected the data set that the selection was made from, {len(selection.scores):,} "
            f"examples, got {len(dataset):,}; pass that one"  # type: ignore[arg-type]
        )


def draw_grid(
    ax: Axes, rows: list[list[NDArray[np.float64]]], columns: int, *, room: float
) -> None:
    """Draw images in a grid: column x at `x (1 + GAP)`, row y at `y (1 + room)`, 1 wide.

    Args:
        ax: The axes to draw in, whose scales and lines are removed.
        rows: Images, row by row; a row may be short.
        columns: Images in a full row.
        room: Room under an image for text, in image heights.
    """
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            left, top = x * (1 + GAP), y * (1 + room)
            ax.imshow(image, cmap="gray_r", vmin=0, vmax=1, extent=(left, left + 1, top + 1, top))
    ax.set_xlim(-GAP, columns * (1 + GAP))
    ax.set_ylim(len(rows) * (1 + room), -GAP)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def write_under(
    ax: Axes, x: int, y: int, words: str, *, room: float, line: int = 0, colour: str = "black"
) -> None:
    """Write a line of text under the image in column x of row y; lines count from 0."""
    ax.annotate(
        words,
        (x * (1 + GAP) + 0.5, y * (1 + room) + 1.05),
        xytext=(0, -9 * line),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=7,
        color=colour,
    )


def _image(item: Any) -> NDArray[np.float64]:
    """Return the image of an item as (H, W) or (H, W, 3), in its own range."""
    first = item[0] if isinstance(item, (tuple, list)) else item
    values = np.asarray(first.detach().cpu() if isinstance(first, Tensor) else first)
    shape = values.shape
    if values.ndim == 3 and shape[0] in (1, 3):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 2 and not (values.ndim == 3 and values.shape[-1] == 3):
        raise ValueError(
            "expected images of shape (H, W), (C, H, W) or (H, W, C) with one or three channels, "
            f"got {shape}"
        )
    return values.astype(np.float64)
