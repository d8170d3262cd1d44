"""The page names the labels to check, and says how they were found."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
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
    assert f"example {lowest[0]} {lowest[0] % 3} <0.001 " in words
    assert f"example {lowest[1]} {lowest[1] % 3} 0.011 " in words


def named(judged: Selection) -> Selection:
    """With suggested labels, three of which are of wrong labels, and near duplicates."""
    assert judged.labels is not None
    predicted, is_wrong = judged.labels.astype(np.int32), np.zeros(90, np.float32)
    wrong = [7, 30, 44]
    predicted[wrong] = (predicted[wrong] + 1) % 3
    is_wrong[wrong] = 0.9
    likely = np.full(90, 0.8, np.float32)
    likely[wrong] = [0.02, 0.01, 0.03]
    duplicate_of = np.full(90, -1)
    duplicate_of[[12, 15, 18, 51]] = [9, 9, 9, 48]
    return dataclasses.replace(
        judged,
        predicted=predicted,
        is_wrong=is_wrong,
        label_scores=likely,
        settings=judged.settings | {"rho": 0.04},
        probabilities=likely,
        duplicate_of=duplicate_of,
    )


@pytest.mark.parametrize("has_data", [False, True])
def test_every_example_is_named_with_what_is_known(judged: Selection, has_data: bool) -> None:
    made = named(judged)
    data = Items(lambda i, label: (torch.rand(4, 4), label)) if has_data else None
    names = ["ant", "bee", "cat"]
    words = read(page(made, data, class_names=names, table="subset.csv")).words
    to_check = words.partition("Labels to check")[2].partition("Near duplicates")[0]
    kept = "yes" if 30 in made.indices else "no"
    assert "example given label suggested label probability likely wrong kept" in to_check
    assert f"30 ant bee 0.010 yes {kept}" in to_check
    assert "All rows: subset.csv" in to_check
    if has_data:
        assert "example 30 ant rather bee 0.010" in to_check
    alike = words.partition("Near duplicates")[2].partition("What was kept, by class")[0]
    assert "4 examples nearly repeat one of 2 others of their class" in alike
    assert "stands for all label of its kind others kept 9 ant 4 12, 15, 18" in alike
    assert "48 ant 2 51" in alike
    sure = words.partition("How sure")[2]
    assert "about 4 % of the labels are wrong" in sure
    assert "3 labels are worth a look" in sure


def test_a_selection_without_near_duplicates_says_so(judged: Selection) -> None:
    none = dataclasses.replace(judged, duplicate_of=np.full(90, -1))
    assert "No example nearly repeats another one of its class." in read(page(none)).words
