"""Histograms of agreement, margin or label probability, for kept and for dropped examples."""

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
    Values,
    bare,
    is_kept,
    known_values,
    members,
    name_of,
)
from sage_torch.selection.facts import trims_by_margin
from sage_torch.selection.result import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 5
_WORDS: dict[Values, tuple[str, str]] = {
    "scores": ("agreement with the consensus of the class", " (1: the same direction)"),
    "margins": ("margin: agreement less half the opposition to another class", ""),
    "probabilities": ("probability of the label", ", by the features of the other examples"),
}


def score_histogram(selection: Selection, ax: Axes | None = None, *, of: Values = "scores") -> Axes:
    """Draw the number of examples kept and dropped at each agreement, margin or probability.

    Args:
        selection: A selection with scores.
        ax: The axes to draw in; None for a new figure.
        of: `"scores"`; `"margins"`, with a line at 0 if the trim removed examples below it; or
            `"probabilities"` of the labels.

    Returns:
        The axes, with counts on a log scale because the interesting tail is thin.

    Raises:
        ValueError: The selection lacks the values, or `of` is none of the three.

    Cost:
        O(N).
    """
    from matplotlib import pyplot

    values = known_values(selection, of)
    if ax is None:
        _, ax = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    kept = is_kept(selection)
    _draw(ax, values, kept, _bins(values, 50, of))
    _label(ax, 0, f"kept ({kept.sum():,})")
    _label(ax, 1, f"dropped ({(~kept).sum():,})")
    if of == "margins" and _trimmed_below_zero(selection):
        _draw_trim(ax)
    ax.set_xlabel("".join(_WORDS[of]))
    ax.set_ylabel("examples, log scale")
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return ax


def score_histogram_by_class(
    selection: Selection,
    *,
    of: Values = "scores",
    classes: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draw a small `score_histogram` of each class, all on the same scales.

    A class with a longer tail to the left is more mixed, or has more wrong labels.

    Args:
        selection: A selection with scores and labels.
        of: As in `score_histogram`.
        classes: Labels to show; None for the first ten.
        class_names: Names by label; None to show the labels.

    Returns:
        A new figure with one axes per class.

    Raises:
        ValueError: The selection lacks the values or labels, a label of `classes` does not occur,
            or `of` is none of the three.

    Cost:
        O(N).
    """
    from matplotlib import pyplot

    values = known_values(selection, of)
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
    bins = _bins(values[np.concatenate([ids for _, ids in shown])], 25, of)
    for place, ax in enumerate(grid.flat):
        if place >= len(shown):
            ax.remove()  # the last row is short
            continue
        label, ids = shown[place]
        _draw(ax, values[ids], kept[ids], bins)
        ax.set_title(f"{name_of(label, class_names)}: {kept[ids].sum():,} of {len(ids):,}", size=9)
        ax.tick_params(labelsize=8)
        if place + columns >= len(shown):
            ax.tick_params(labelbottom=True)  # no other axes below
    _label(grid[0, 0], 0, "kept")
    _label(grid[0, 0], 1, "dropped")
    if of == "margins" and _trimmed_below_zero(selection):
        for ax in grid.flat[: len(shown)]:
            _draw_trim(ax)
    handles, words = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, words, frameon=False, loc="outside upper left", ncols=3)
    figure.supxlabel(_WORDS[of][0], size="medium")
    figure.supylabel("examples, log scale", size="medium")
    return figure


def _bins(values: NDArray[np.float64], count: int, of: Values) -> NDArray[np.float64]:
    """Return edges of about `count` equal bins, one at 0 because the trim cuts margins there."""
    if of == "probabilities":
        return np.linspace(0, 1, count + 1)
    width = float(values.max() - values.min()) / count or 0.02
    first, last = np.floor(values.min() / width), np.floor(values.max() / width)
    bins: NDArray[np.float64] = width * np.arange(first, last + 2)
    return bins


def _draw(
    ax: Axes, values: NDArray[np.float64], kept: NDArray[np.bool_], bins: NDArray[np.float64]
) -> None:
    """Draw two histograms: kept examples filled, then dropped examples as an outline."""
    values = values.clip(bins[0], bins[-1])  # rounding may leave an extreme value outside
    look = {"bins": bins.tolist(), "histtype": "stepfilled", "linewidth": 1.5}
    ax.hist(values[kept], fc=(KEPT, 0.25), ec=KEPT, **look)
    ax.hist(values[~kept], fc="none", ec=DROPPED, **look)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:,.0f}")
    bare(ax)


def _label(ax: Axes, place: int, words: str) -> None:
    ax.patches[place].set_label(words)


def _draw_trim(ax: Axes) -> None:
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1, label="trim: below 0")


def _trimmed_below_zero(selection: Selection) -> bool:
    """Return whether examples were dropped because of a negative margin."""
    settings = selection.settings
    return bool(
        trims_by_margin(settings)
        and settings.get("trim") in ("auto", "negative")
        and settings.get("trimmed", 0) > 0
    )
