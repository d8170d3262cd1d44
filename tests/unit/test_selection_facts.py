"""What a selection says of its trim and its labels, and the summary that the shell shows."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sage_torch import Selection
from sage_torch.command.summary import summary
from sage_torch.selection.facts import label_facts, trim_facts, trims_by_margin

AUTOMATIC = {
    "rule": "herding",
    "draw": "fixed",
    "trim": "auto",
    "trimmed": 1_203,
    "trimmed_by_budget": 1_200,
    "trimmed_by_noise": 3,
    "rho": 0.042,
}
BY_MARGIN = {"rule": "herding", "draw": "fixed", "trim": "negative", "trimmed": 7}


def selection(settings: dict[str, Any], **changes: Any) -> Selection:
    """Four classes of two. Four probabilities are below 1/4, one is 1/4; three margins below 0."""
    given: dict[str, Any] = {
        "indices": np.arange(4),
        "scores": np.linspace(-1, 1, 8, dtype=np.float32),
        "labels": np.arange(8) // 2,
        "certificate": None,
        "seconds": {"total": 1.0},
        "margins": np.array([-0.5, -0.1, -1.5, 0, 0.1, 0.2, 0.3, 1], np.float32),
        "probabilities": np.array([0, 0.1, 0.2, 0.24, 0.25, 0.6, 0.9, 1], np.float32),
        "settings": settings,
    }
    return Selection(**given | changes)


def printed(given: Selection) -> list[str]:
    """The lines of a summary, without the space between the columns."""
    text = io.StringIO()
    Console(file=text, width=100).print(summary(given))
    return [" ".join(line.split()) for line in text.getvalue().splitlines() if line.strip()]


def test_the_terms_of_the_trim_are_told_apart_where_they_are_known() -> None:
    assert trim_facts(AUTOMATIC) == [
        ("1,200", "trimmed as too hard for so small a subset"),
        ("3", "trimmed as probably wrong"),
    ]
    assert trim_facts(BY_MARGIN) == [("7", "trimmed before the rule chose")]
    assert trim_facts({}) == []


@pytest.mark.parametrize(
    ("rho", "words"),
    [
        (0.0, "under 1%"),
        (0.0099, "under 1%"),
        (0.01, "about 1%"),
        (0.042, "about 4%"),
        (1, "about 100%"),
    ],
)
def test_the_share_of_wrong_labels_in_words(rho: float, words: str) -> None:
    share, unlikely = label_facts(selection(AUTOMATIC | {"rho": rho}))
    assert share == (words, "of labels look wrong")
    assert unlikely == ("4", "labels are less likely than a guess")  # 1/4 is a guess itself


def test_nothing_is_said_of_labels_without_probabilities() -> None:
    assert label_facts(selection(AUTOMATIC, probabilities=None)) == []
    assert label_facts(selection(AUTOMATIC, labels=None)) == [("about 4%", "of labels look wrong")]


@pytest.mark.parametrize("odd", [None, "<script>", [1], {}, True, float("nan"), float("inf"), -0.1])
def test_settings_of_a_damaged_file_are_left_out(odd: Any) -> None:
    damaged = AUTOMATIC | {"trimmed": odd, "trimmed_by_budget": odd, "rho": odd}
    assert trim_facts(damaged) == []
    assert [words for _, words in label_facts(selection(damaged))] == [
        "labels are less likely than a guess"
    ]
    assert not [line for line in printed(selection(damaged)) if line.startswith("trimmed")]


@pytest.mark.parametrize(
    ("settings", "is_so"),
    [
        (BY_MARGIN, True),
        (BY_MARGIN | {"trim": 0.2}, True),
        (BY_MARGIN | {"trim": None}, False),
        (BY_MARGIN | {"rule": "agreement"}, False),
        (AUTOMATIC, False),
        (BY_MARGIN | {"trim": "auto", "classes": 3}, True),  # nothing to read probabilities off
        (BY_MARGIN | {"trim": "auto", "classes": 0}, False),
        ({}, False),
    ],
)
def test_margins_are_counted_only_where_they_did_the_trimming(
    settings: dict[str, Any], is_so: bool
) -> None:
    assert trims_by_margin(settings) == is_so
    lines = printed(selection(settings, probabilities=None))
    said = "below 0 3 margins: examples that side with another class"
    assert (said in lines) == is_so


def test_a_summary_says_what_was_trimmed_and_which_labels_look_wrong() -> None:
    lines = printed(selection(AUTOMATIC))
    assert "trimmed 1,200 as too hard for so small a subset, 3 as probably wrong" in lines
    assert "labels about 4% of labels look wrong, 4 labels are less likely than a guess" in lines
    plain = printed(selection(BY_MARGIN, probabilities=None))
    assert "trimmed 7 before the rule chose" in plain
    assert not [line for line in plain if line.startswith("labels")]
