"""Histograms of agreement: how many examples were kept and dropped at each score."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sage_torch.plots.style import (
    DROPPED,
    GREY,
    KEPT,
    bare,
    is_kept,
    known_scores,
    members,
    name_of,
)
from sage_torch.selection import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_UNTRIMMED_RULES = ("agreement", "random", None)
_COLUMNS = 5


def score_histogram(selection: Selection, ax: Axes | None = None) -> Axes:
    """Draw how many examples were kept and dropped at each agreement.

    Args:
        selection: A selection with scores.
        ax: Where to draw; None for a new figure.

    Returns:
        The axes; counts on a log scale, because the interesting tail is thin.

    Raises:
        ValueError: The selection has no scores.

    Cost:
        O(N).
    """
    from matplotlib import pyplot

    scores = known_scores(selection)
    if ax is None:
        _, ax = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    kept = is_kept(selection)
    _draw(ax, scores, kept, _bins(scores, 50))
    _label(ax, 0, f"kept ({kept.sum():,})")
    _label(ax, 1, f"dropped ({(~kept).sum():,})")
    if _trims_below_zero(selection, scores):
        _draw_trim(ax)
    ax.set_xlabel("agreement with the consensus of the class (1: the same direction)")
    ax.set_ylabel("examples, log scale")
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return ax


def score_histogram_by_class(
    selection: Selection,
    *,
    classes: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draw `score_histogram` of each class, small and on the same scales.

    A class with a longer tail to the left is more mixed, or holds more wrong labels.

    Args:
        selection: A selection with scores and labels.
        classes: Labels to show; None for the first ten.
        class_names: Names by label; None for the labels.

    Returns:
        A new figure with one axes a class.

    Raises:
        ValueError: The selection has no scores or no labels, or a label of `classes` does not
            occur.

    Cost:
        O(N).
    """
    from matplotlib import pyplot

    scores = known_scores(selection)
    if selection.labels is None:
        raise ValueError("expected a selection with labels; use score_histogram without them")
    shown = members(selection, classes)
    columns = min(_COLUMNS, len(shown))
    rows = ceil(len(shown) / columns)
    figure, grid = pyplot.subplots(
        rows,
        columns,
        figsize=(max(1.85 * columns, 4.2), 1.5 * rows + 0.8),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    kept = is_kept(selection)
    bins = _bins(scores[np.concatenate([ids for _, ids in shown])], 25)
    for place, ax in enumerate(grid.flat):
        if place >= len(shown):
            ax.remove()  # the last row is short
            continue
        label, ids = shown[place]
        _draw(ax, scores[ids], kept[ids], bins)
        ax.set_title(f"{name_of(label, class_names)}: {kept[ids].sum():,} of {len(ids):,}", size=9)
        ax.tick_params(labelsize=8)
        if place + columns >= len(shown):
            ax.tick_params(labelbottom=True)  # nothing below it
    _label(grid[0, 0], 0, "kept")
    _label(grid[0, 0], 1, "dropped")
    if _trims_below_zero(selection, scores):
        for ax in grid.flat[: len(shown)]:
            _draw_trim(ax)
    handles, words = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, words, frameon=False, loc="outside upper left", ncols=3)
    figure.supxlabel("agreement with the consensus of the class", size="medium")
    figure.supylabel("examples, log scale", size="medium")
    return figure


def _bins(scores: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return edges of about `count` equal bins; one edge is 0, where the trim cuts."""
    width = float(scores.max() - scores.min()) / count or 0.02
    first, last = np.floor(scores.min() / width), np.floor(scores.max() / width)
    bins: NDArray[np.float64] = width * np.arange(first, last + 2)
    return bins


def _draw(
    ax: Axes, scores: NDArray[np.float64], kept: NDArray[np.bool_], bins: NDArray[np.float64]
) -> None:
    """Draw two outlines: first that of the kept examples, filled, then that of the dropped."""
    scores = scores.clip(bins[0], bins[-1])  # rounding may have put an extreme outside
    look = {"bins": bins.tolist(), "histtype": "stepfilled", "linewidth": 1.5}
    ax.hist(scores[kept], fc=(KEPT, 0.25), ec=KEPT, **look)
    ax.hist(scores[~kept], fc="none", ec=DROPPED, **look)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:,.0f}")
    bare(ax)


def _label(ax: Axes, place: int, words: str) -> None:
    ax.patches[place].set_label(words)


def _draw_trim(ax: Axes) -> None:
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1, label="trim: below 0")


def _trims_below_zero(selection: Selection, scores: NDArray[np.float64]) -> bool:
    """Whether examples were dropped for a negative one among these very scores."""
    settings = selection.settings
    return bool(
        scores.min() < 0
        and settings.get("rule") not in _UNTRIMMED_RULES
        and settings.get("trim") == "negative"
        and settings.get("basis") == "weighted"
        and settings.get("trimmed", 1) > 0
    )
