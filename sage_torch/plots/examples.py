"""Montages of examples: kept and dropped ones, and those whose labels look wrong."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from sage_torch.plots.images import GAP, draw_grid, read_images, write_under
from sage_torch.plots.scores import score_histogram
from sage_torch.plots.style import (
    DROPPED,
    KEPT,
    NAMES,
    is_kept,
    known_values,
    members,
    most_telling,
    name_of,
    written,
)
from sage_torch.selection.result import Selection

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

_SCORE_ROOM = 0.36  # room under an image for its score, in image heights
_IMAGE_INCHES = 0.6
_HISTOGRAM_INCHES = 3.0
_WORST_INCHES = 0.75
_LINE_INCHES = 0.125


def kept_and_dropped(
    selection: Selection,
    dataset: Dataset[Any],
    *,
    columns: int = 6,
    classes: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Show images of each class: some that were kept, some that were dropped.

    Each row goes from the highest agreement to the lowest, in even steps of rank: its ends are the
    extremes and its middle is the median. The score is written under each image.

    Args:
        selection: Any selection.
        dataset: The data set of the selection. The image is the first part of an item (or the
            item), of shape (H, W), (C, H, W) or (H, W, C) with one or three channels, in any range.
        columns: Number of kept images, and of dropped images, per row.
        classes: Labels to show; None for the first ten.
        class_names: Names by label; None to show the labels.
        figure: The figure to draw in; None for a new one.

    Returns:
        The figure, with one axes for kept and one for dropped images.

    Raises:
        ValueError: The data set has another length than the selection, an item is not an image, a
            label of `classes` does not occur, or `columns` is below 1.

    Cost:
        `2 * columns` items of each class are read.
    """
    from matplotlib import pyplot

    if columns < 1:
        raise ValueError(f"expected at least one column, got {columns}")
    rows = members(selection, classes)
    was_kept = is_kept(selection)
    kept, dropped = (
        [spread(selection, ids[was_kept[ids] == wanted], columns) for _, ids in rows]
        for wanted in (True, False)
    )
    images = read_images(selection, dataset, np.concatenate(kept + dropped))
    if figure is None:
        figure = pyplot.figure(figsize=_size(len(rows), columns), layout="constrained")
    names = [name_of(label, class_names) for label, _ in rows]
    for place, shown, title, colour in (
        (1, kept, "kept", KEPT),
        (2, dropped, "dropped", DROPPED),
    ):
        ax = figure.add_subplot(1, 2, place)
        draw_grid(ax, [[images[int(i)] for i in row] for row in shown], columns, room=_SCORE_ROOM)
        for y, row in enumerate(shown):
            for x, score in enumerate(selection.scores[row]):
                if np.isfinite(score):
                    write_under(ax, x, y, f"{score:.2f}", room=_SCORE_ROOM)
        ax.set_title(title, color=colour, fontweight="bold")
        ax.set_yticks([(1 + _SCORE_ROOM) * row + 0.5 for row in range(len(rows))])
        ax.set_yticklabels(names if place == 1 else [""] * len(rows))
        if not np.isnan(selection.scores).all():
            ax.set_xlabel("highest agreement → lowest")
    return figure


def overview(
    selection: Selection,
    dataset: Dataset[Any],
    *,
    columns: int = 6,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draw `kept_and_dropped` and `score_histogram` in one figure.

    Args:
        selection: A selection with scores.
        dataset: The data set of the selection, of images.
        columns: Number of kept images, and of dropped images, per row.
        class_names: Names by label; None to show the labels.

    Raises:
        ValueError: As the two functions.
    """
    from matplotlib import pyplot

    width, height = _size(len(members(selection, None)), columns)
    figure = pyplot.figure(figsize=(width, height + _HISTOGRAM_INCHES))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    rule = selection.settings.get("rule", "SAGE")
    figure.suptitle(f"{len(selection):,} of {len(selection.scores):,} examples kept by {rule}")
    parts = figure.add_gridspec(2, 1, height_ratios=(height, _HISTOGRAM_INCHES))
    above, below = figure.add_subfigure(parts[0]), figure.add_subfigure(parts[1])
    kept_and_dropped(selection, dataset, columns=columns, class_names=class_names, figure=above)
    score_histogram(selection, below.add_subplot())
    return figure


def worst(
    selection: Selection,
    dataset: Dataset[Any],
    count: int = 20,
    *,
    columns: int = 10,
    truth: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Show the examples whose labels are least likely, lowest first: many labels are wrong.

    Args:
        selection: A selection with probabilities; one without them is ranked by margins, and one
            without margins by scores.
        dataset: The data set of the selection, of images as in `kept_and_dropped`.
        count: Examples to show, at most.
        columns: Images per row.
        truth: Correct labels, int (N,); None if they are not known.
        class_names: Names by label; None to show the labels.

    Returns:
        A new figure. Each image has its probability (margin, score) and its label under it; with
        `truth` also whether the label is right, and otherwise the right label.

    Raises:
        ValueError: The selection has no scores, it has no labels or labels of another shape than
            `truth`, the data set has another length or no images, or `count` or `columns` is below
            1.

    Cost:
        O(N log N), and `count` items are read.
    """
    from matplotlib import pyplot

    if count < 1 or columns < 1:
        raise ValueError(
            f"expected at least one example and one column, got count={count}, columns={columns}"
        )
    of = most_telling(selection)
    values = known_values(selection, of)
    order = np.argsort(values, kind="stable")[:count]
    right = None if truth is None else _right_labels(selection, truth)
    images = read_images(selection, dataset, order)
    columns = min(columns, len(order))
    rows = [order[start : start + columns] for start in range(0, len(order), columns)]
    lines = 1 + (selection.labels is not None) + (right is not None)
    room = (lines * _LINE_INCHES + 0.1) / _WORST_INCHES
    width = _WORST_INCHES * (columns * (1 + GAP) + GAP)
    height = _WORST_INCHES * (1 + room) * ceil(len(order) / columns)
    figure = pyplot.figure(figsize=(max(width, 3.0), height + 0.4), layout="constrained")
    ax = figure.add_subplot()
    draw_grid(ax, [[images[int(i)] for i in row] for row in rows], columns, room=room)
    ax.set_yticks([])
    for y, row in enumerate(rows):
        for x, i in enumerate(row):
            write_under(ax, x, y, written(values[i], of), room=room)
            if selection.labels is None:
                continue
            given = int(selection.labels[i])
            write_under(ax, x, y, f"label {name_of(given, class_names)}", room=room, line=1)
            if right is not None:
                is_right = given == right[i]
                words = "right" if is_right else f"truly {name_of(int(right[i]), class_names)}"
                colour = KEPT if is_right else DROPPED
                write_under(ax, x, y, words, room=room, line=2, colour=colour)
    ax.set_title(f"lowest {NAMES[of]} of {len(values):,} examples, lowest first", size=10)
    return figure


def _right_labels(selection: Selection, truth: ArrayLike) -> NDArray[np.int64]:
    right = np.asarray(truth)
    if selection.labels is None or right.shape != selection.labels.shape:
        labels = "none" if selection.labels is None else f"of shape {selection.labels.shape}"
        raise ValueError(
            "expected truth of the shape of the selection's labels, got truth of shape "
            f"{right.shape} and labels {labels}"
        )
    return right.astype(np.int64)


def _size(rows: int, columns: int) -> tuple[float, float]:
    """Return width and height of a figure of images in inches, with room for text."""
    width = 2 * _IMAGE_INCHES * (columns * (1 + GAP) + GAP) + 1.3
    return width, _IMAGE_INCHES * rows * (1 + _SCORE_ROOM) + 1.1


def spread(selection: Selection, ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return up to `count` of the examples, in even steps of rank, highest score first."""
    ranked = ids[np.argsort(-selection.scores[ids], kind="stable")]
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked)))
    spread: NDArray[np.int64] = ranked[places.round().astype(np.int64)]
    return spread
