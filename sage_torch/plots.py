"""Pictures of a selection: what was kept, what was dropped, and how the examples scored.

They need matplotlib (`pip install 'sage-torch[demo]'`), imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sage_torch.selection import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Blue and vermilion of Okabe and Ito: told apart by every kind of colour vision, and in grey.
_KEPT, _DROPPED = "#0072B2", "#D55E00"
_GAP = 0.18  # between images, in image widths
_SCORE_ROOM = 0.36  # under an image, for its score, in image heights
_IMAGE_INCHES = 0.6
_ROWS = 10
_HISTOGRAM_INCHES = 3.0


def score_histogram(selection: Selection, ax: Axes | None = None) -> Axes:
    """Draw how many examples were kept and dropped at each agreement.

    Args:
        selection: A selection with scores (any rule but `"random"`).
        ax: Where to draw; None for a new figure.

    Returns:
        The axes; counts on a log scale, because the interesting tail is thin.

    Raises:
        ValueError: The selection has no scores.

    Cost:
        O(N).
    """
    from matplotlib import pyplot

    scores = np.asarray(selection.scores, np.float64)
    if not np.isfinite(scores).any():
        raise ValueError(
            "expected a selection with scores, got one of rule='random', which scores nothing"
        )
    if ax is None:
        _, ax = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    width = float(scores.max() - scores.min()) / 50 or 0.02
    first, last = np.floor(scores.min() / width), np.floor(scores.max() / width)
    bins = (width * np.arange(first, last + 2)).tolist()  # one edge is 0, where the trim cuts
    scores = scores.clip(bins[0], bins[-1])  # rounding may have put an extreme outside
    is_kept = _is_kept(selection)
    kept, dropped = scores[is_kept], scores[~is_kept]
    look = {"bins": bins, "histtype": "stepfilled", "linewidth": 1.5}
    ax.hist(kept, fc=(_KEPT, 0.25), ec=_KEPT, label=f"kept ({len(kept):,})", **look)
    ax.hist(dropped, fc="none", ec=_DROPPED, label=f"dropped ({len(dropped):,})", **look)
    trimmed_by_these = {"rule": "herding", "trim": "negative", "basis": "weighted"}
    if scores.min() < 0 and trimmed_by_these.items() <= selection.settings.items():
        ax.axvline(0, color="0.4", linestyle="--", linewidth=1, label="trim: below 0")
    ax.set_yscale("log")
    ax.set_xlabel("agreement with the consensus of the class (1: the same direction)")
    ax.set_ylabel("examples, log scale")
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return ax


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

    In each row they go from the highest agreement to the lowest, evenly over the ranks, so that
    the ends are the extremes and the middle is the median; the score stands under each.

    Args:
        selection: What was kept.
        dataset: The data set it was chosen from. The image is the first of an item's parts (or the
            item), of shape (H, W), (C, H, W) or (H, W, C) with one or three channels, in any range.
        columns: Images kept, and images dropped, in each row.
        classes: Labels to show; None for the first ten.
        class_names: Names by label; None for the labels.
        figure: Where to draw; None for a new figure.

    Returns:
        The figure, with one axes for kept and one for dropped images.

    Raises:
        ValueError: The data set has another length than the selection, an item is no image, a label
            of `classes` does not occur, or `columns` is below 1.

    Cost:
        `2 * columns` items of each class are read.
    """
    from matplotlib import pyplot

    if len(dataset) != len(selection.scores):  # type: ignore[arg-type]
        raise ValueError(
            f"expected the data set that the selection was made from, {len(selection.scores):,} "
            f"examples, got {len(dataset):,}"  # type: ignore[arg-type]
        )
    if columns < 1:
        raise ValueError(f"expected at least one column, got {columns}")
    rows = _members(selection, classes)
    if figure is None:
        figure = pyplot.figure(figsize=_size(len(rows), columns), layout="constrained")
    is_kept = _is_kept(selection)
    kept, dropped = (
        [_spread(selection, ids[is_kept[ids] == wanted], columns) for _, ids in rows]
        for wanted in (True, False)
    )
    images = {int(i): _image(dataset[int(i)]) for i in np.concatenate(kept + dropped)}
    # One scale for all, so that a pale image stays pale; standardised pixels are brought back.
    low, high = min(map(np.min, images.values())), max(map(np.max, images.values()))
    images = {i: (image - low) / (high - low or 1.0) for i, image in images.items()}
    names = [_name(label, class_names) for label, _ in rows]
    for place, shown, title, colour in (
        (1, kept, "kept", _KEPT),
        (2, dropped, "dropped", _DROPPED),
    ):
        ax = figure.add_subplot(1, 2, place)
        _montage(ax, [[images[int(i)] for i in row] for row in shown], columns)
        _write_scores(ax, [selection.scores[row] for row in shown])
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
        dataset: The data set it was chosen from: images.
        columns: Images kept, and images dropped, in each row.
        class_names: Names by label; None for the labels.

    Returns:
        The figure.

    Raises:
        ValueError: As the two functions.
    """
    from matplotlib import pyplot

    width, height = _size(len(_members(selection, None)), columns)
    figure = pyplot.figure(figsize=(width, height + _HISTOGRAM_INCHES))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    rule = selection.settings.get("rule", "SAGE")
    figure.suptitle(f"{len(selection):,} of {len(selection.scores):,} examples kept by {rule}")
    parts = figure.add_gridspec(2, 1, height_ratios=(height, _HISTOGRAM_INCHES))
    above, below = figure.add_subfigure(parts[0]), figure.add_subfigure(parts[1])
    kept_and_dropped(selection, dataset, columns=columns, class_names=class_names, figure=above)
    score_histogram(selection, below.add_subplot())
    return figure


def _size(rows: int, columns: int) -> tuple[float, float]:
    """Return width and height in inches of a figure of images, with room for its words."""
    width = 2 * _IMAGE_INCHES * (columns * (1 + _GAP) + _GAP) + 1.3
    return width, _IMAGE_INCHES * rows * (1 + _SCORE_ROOM) + 1.1


def _is_kept(selection: Selection) -> NDArray[np.bool_]:
    is_kept = np.zeros(len(selection.scores), bool)
    is_kept[selection.indices] = True
    return is_kept


def _members(
    selection: Selection, classes: Sequence[int] | None
) -> list[tuple[int | None, NDArray[np.int64]]]:
    """Return the examples of each class to show; all of them in one row where there are none."""
    if selection.labels is None:
        if classes is not None:
            raise ValueError("expected no classes: the selection was made without labels")
        return [(None, np.arange(len(selection.scores)))]
    known = np.unique(selection.labels)
    wanted = known[:_ROWS] if classes is None else np.asarray(classes)
    unknown = np.setdiff1d(wanted, known)
    if len(unknown):
        raise ValueError(f"expected labels that occur in the data, got {unknown.tolist()}")
    return [(int(label), np.flatnonzero(selection.labels == label)) for label in wanted]


def _name(label: int | None, class_names: Sequence[str] | None) -> str:
    if label is None:
        return ""
    return str(label) if class_names is None else class_names[label]


def _spread(selection: Selection, ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return `count` of the examples, evenly over their ranks, highest score first."""
    ranked = ids[np.argsort(-selection.scores[ids], kind="stable")]
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked)))
    spread: NDArray[np.int64] = ranked[places.round().astype(np.int64)]
    return spread


def _image(item: Any) -> NDArray[np.float64]:
    """Return an item's image as (H, W) or (H, W, 3), in the range it has."""
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


def _montage(ax: Axes, rows: list[list[NDArray[np.float64]]], columns: int) -> None:
    """Draw images in a grid: column x at `x * (1 + gap)`, row y at `y * (1 + room)`, 1 wide."""
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            left, top = x * (1 + _GAP), y * (1 + _SCORE_ROOM)
            ax.imshow(image, cmap="gray_r", vmin=0, vmax=1, extent=(left, left + 1, top + 1, top))
    ax.set_xlim(-_GAP, columns * (1 + _GAP))
    ax.set_ylim(len(rows) * (1 + _SCORE_ROOM), -_GAP)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _write_scores(ax: Axes, scores: Sequence[ArrayLike]) -> None:
    for y, row in enumerate(scores):
        for x, score in enumerate(np.asarray(row)):
            if np.isfinite(score):
                left, bottom = x * (1 + _GAP), y * (1 + _SCORE_ROOM) + 1.05
                ax.text(left + 0.5, bottom, f"{score:.2f}", ha="center", va="top", fontsize=7)
