"""Parts shared by all pictures: colours, values, and the names and members of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from sage_torch.selection.result import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Blue and vermilion of Okabe and Ito, then their other colours that are visible on white.
KEPT, DROPPED = "#0072B2", "#D55E00"
CYCLE = (KEPT, DROPPED, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
GREY = "0.4"
_CLASSES_SHOWN = 10

Values = Literal["scores", "margins", "probabilities"]
NAMES: dict[Values, str] = {
    "scores": "agreement",
    "margins": "margin",
    "probabilities": "label probability",
}
_LEAST = 0.001  # of a probability that is written as a number


def is_kept(selection: Selection) -> NDArray[np.bool_]:
    """Return whether each example was kept, bool (N,)."""
    kept = np.zeros(len(selection.scores), bool)
    kept[selection.indices] = True
    return kept


def known_values(selection: Selection, of: Values) -> NDArray[np.float64]:
    """Return the scores, the margins or the probabilities (N,).

    Raises:
        ValueError: There are none, or `of` is none of them.
    """
    if of == "scores":
        scores = np.asarray(selection.scores, np.float64)
        if not np.isfinite(scores).any():
            raise ValueError(
                "expected a selection with scores, got one that went by no gradients; draw "
                'of="probabilities" of a rotation, or select again with rule="herding" and '
                'gradients="projected"'
            )
        return scores
    if of == "probabilities":
        if selection.probabilities is None:
            raise ValueError(
                "expected a selection with probabilities, got one without classes or with another "
                'trim; draw of="scores", or select again with labels and trim="auto"'
            )
        return np.asarray(selection.probabilities, np.float64)
    if of != "margins":
        raise ValueError(f'expected of="scores", "margins" or "probabilities", got {of!r}')
    if selection.margins is None:
        raise ValueError(
            "expected a selection with margins, got one that went by no gradients; draw "
            'of="probabilities" of a rotation, or select again with rule="herding" and '
            'gradients="projected"'
        )
    return np.asarray(selection.margins, np.float64)


def most_telling(selection: Selection) -> Values:
    """Return what tells wrong labels best: probabilities, else margins, else scores."""
    if selection.probabilities is not None:
        return "probabilities"
    return "scores" if selection.margins is None else "margins"


def written(value: float, of: Values) -> str:
    """Return a value as it is written beside an example.

    Example:
        >>> from sage_torch.plots.style import written
        >>> written(-0.25, "margins"), written(0.02, "probabilities"), written(0, "probabilities")
        ('-0.25', '0.020', '<0.001')
    """
    if of != "probabilities":
        return f"{value:.2f}"
    return f"{value:.3f}" if value >= _LEAST else f"<{_LEAST}"


def members(
    selection: Selection, classes: Sequence[int] | None
) -> list[tuple[int | None, NDArray[np.int64]]]:
    """Return the labels to show and their examples; without labels, one group of all examples.

    Raises:
        ValueError: A label of `classes` does not occur, or there are no labels.
    """
    if selection.labels is None:
        if classes is not None:
            raise ValueError("expected classes=None: the selection was made without labels")
        return [(None, np.arange(len(selection.scores)))]
    known = np.unique(selection.labels)
    wanted = known[:_CLASSES_SHOWN] if classes is None else np.asarray(classes)
    unknown = np.setdiff1d(wanted, known)
    if len(unknown):
        raise ValueError(f"expected labels that occur in the data, got {unknown.tolist()}")
    return [(int(label), np.flatnonzero(selection.labels == label)) for label in wanted]


def name_of(label: int | None, class_names: Sequence[str] | None) -> str:
    """Return the name of a label, or the label itself."""
    if label is None:
        return ""
    return str(label) if class_names is None else class_names[label]


def bare(ax: Axes) -> None:
    """Remove the lines above and to the right."""
    ax.spines[["top", "right"]].set_visible(False)
