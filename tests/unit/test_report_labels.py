"""The page names the labels to check, and says how they were found."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from report_pages import Items, judged_by_features, read

from sage_torch import Selection
from sage_torch.report import page
from sage_torch.report.shown import show


@pytest.fixture(autouse=True)
def without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes the time."""
    monkeypatch.setattr(import_module("sage_torch.report.page"), "charts", lambda selection: [])


@pytest.fixture
def judged() -> Selection:
    return judged_by_features()


def test_it_says_which_labels_look_wrong(judged: Selection) -> None:
    words = read(page(judged)).words
    for expected in (
        "5 trimmed as too hard for so small a subset",
        "2 trimmed as probably wrong",
        "about 4% of labels look wrong",
        "30 labels are less likely than a guess",  # of three classes
    ):
        assert expected in words
    assert "margins below 0" not in words
    assert "before the rule chose" not in words
    with_examples = read(page(judged, Items(lambda i, label: (str(i), label)))).words
    assert judged.margins is not None
    lowest = ", ".join(f"example {i}" for i in np.argsort(judged.margins, kind="stable")[:12])
    assert f"Lowest margins, of gradients that oppose another class: {lowest}." in with_examples


@pytest.mark.parametrize(
    ("changes", "heading", "explained"),
    [
        ({}, "Labels to check", "The labels that are least likely by the features"),
        ({"probabilities": None}, "Labels to check", "agree least with their class"),
        (
            {"probabilities": None, "labels": None},
            "Examples to check",
            "with their margin. dataset[",
        ),
        ({"probabilities": None, "margins": None}, None, ""),
    ],
)
def test_the_labels_to_check_are_explained(
    changes: dict[str, Any], heading: str | None, explained: str, judged: Selection
) -> None:
    given = dataclasses.replace(judged, **changes)
    words = read(page(given, Items(lambda i, label: (str(i), label)))).words
    if heading is None:
        assert "to check" not in words
    else:
        assert explained in words.partition(heading)[2]
        assert ("Look here first for wrong labels." in words) == ("labels" not in changes)


def test_the_least_likely_labels_come_first(judged: Selection) -> None:
    data = Items(lambda i, label: (str(i), label))
    assert judged.probabilities is not None
    lowest = np.argsort(judged.probabilities)[:12].tolist()
    worst = show(judged, data).worst
    assert [e.index for e in worst] == lowest
    assert [e.probability for e in worst] == pytest.approx(np.arange(12) / 90)
    words = read(page(judged, data)).words.partition("Labels to check")[2]
    assert f"example {lowest[0]} <0.001 {lowest[0] % 3} " in words
    assert f"example {lowest[1]} 0.011 {lowest[1] % 3} " in words
