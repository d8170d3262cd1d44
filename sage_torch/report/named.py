"""Rows that name examples: labels to check and near duplicates; and how many labels look wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sage_torch.plots.style import is_kept, known_values, most_telling, written
from sage_torch.selection.issues import is_share
from sage_torch.selection.result import Selection

_ROWS, _KINDS, _MEMBERS = 20, 20, 12
_SMALL = 0.01

Name = Callable[[int], str]  # of a label


@dataclass(frozen=True)
class IssueRow:
    """An example whose label is worth a look."""

    index: int
    given: str  # its label
    suggested: str  # the label that it should have; empty where nobody knows
    value: str  # probability of its label, or its margin
    is_issue: bool  # whether the label is probably wrong
    is_kept: bool


@dataclass(frozen=True)
class KindRow:
    """Near duplicates of each other."""

    first: int  # the example that stands for all
    label: str
    count: int  # the first included
    others: list[int]  # the first few
    is_kept: bool


def issue_rows(selection: Selection, name: Name) -> list[IssueRow]:
    """Return the examples whose labels are most likely wrong, those first; none without margins."""
    of = most_telling(selection)
    if of == "scores":
        return []
    values, kept = known_values(selection, of), is_kept(selection)
    suggested, is_issue = selection.predicted_labels, selection.is_label_issue
    return [
        IssueRow(
            index=i,
            given="" if selection.labels is None else name(int(selection.labels[i])),
            suggested="" if suggested is None else name(int(suggested[i])),
            value=written(values[i], of),
            is_issue=is_issue is not None and bool(is_issue[i]),
            is_kept=bool(kept[i]),
        )
        for i in doubtful_first(selection)[:_ROWS].tolist()
    ]


def doubtful_first(selection: Selection) -> NDArray[np.int64]:
    """Return all examples, those first whose labels are most likely wrong, int64 (N,)."""
    if selection.label_scores is not None:
        return np.argsort(selection.label_scores, kind="stable")
    return np.argsort(known_values(selection, most_telling(selection)), kind="stable")


def kinds(selection: Selection) -> list[tuple[int, NDArray[np.int64]]]:
    """Return the near duplicates that stand for others, and those others; the most first."""
    if selection.duplicate_of is None:
        return []
    others = np.flatnonzero(selection.duplicate_of >= 0)
    others = others[np.argsort(selection.duplicate_of[others], kind="stable")]
    firsts, starts = np.unique(selection.duplicate_of[others], return_index=True)
    parts = np.split(others, starts[1:]) if len(firsts) else []
    found = list(zip(firsts.tolist(), parts, strict=True))
    return sorted(found, key=lambda kind: -len(kind[1]))[:_KINDS]


def kind_rows(selection: Selection, name: Name) -> list[KindRow]:
    """Return the kinds with the most near duplicates."""
    kept = is_kept(selection)
    return [
        KindRow(
            first=first,
            label="" if selection.labels is None else name(int(selection.labels[first])),
            count=1 + len(others),
            others=others[:_MEMBERS].tolist(),
            is_kept=bool(kept[first]),
        )
        for first, others in kinds(selection)
    ]


def kind_words(selection: Selection) -> str:
    """Return how many near duplicates there are, or that nobody has looked for them."""
    if selection.duplicate_of is None:
        return (
            'Nobody has looked for them. select_subset(..., duplicates="drop") leaves them out; '
            "Selection.find_duplicates() finds them where keep_coordinates=True was given."
        )
    count = int((selection.duplicate_of >= 0).sum())
    if not count:
        return "No example nearly repeats another one of its class."
    firsts = len(np.unique(selection.duplicate_of[selection.duplicate_of >= 0]))
    return (
        f"{count:,} examples nearly repeat one of {firsts:,} others of their class, as the model "
        "sees them."
    )


def noise_words(selection: Selection) -> list[str]:
    """Return what is known of wrong labels, as sentences."""
    issues, rho = selection.is_label_issue, selection.settings.get("rho")
    if issues is None or not is_share(rho):
        return ["How many labels are wrong was not estimated."]
    share = "under 1 %" if rho < _SMALL else f"about {100 * rho:.0f} %"
    return [
        f"By what contradicts confident predictions, {share} of the labels are wrong.",
        f"{int(issues.sum()):,} labels are worth a look; "
        f"{int(issues[selection.indices].sum()):,} of them are kept.",
    ]
