"""Facts about the trim and the labels of a selection: numbers and their descriptions.

Settings may come from a damaged file, so what has no sensible value is left out.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np

from sage_torch.selection.result import Selection

Fact = tuple[str, str]  # a number and its description
_TERMS = {
    "trimmed_by_budget": "trimmed as too hard for so small a subset",
    "trimmed_by_noise": "trimmed as probably wrong",
}


def trim_facts(settings: dict[str, Any]) -> list[Fact]:
    """Return how many examples the trim dropped, by term of the trim if that is known.

    Example:
        >>> from sage_torch.selection.facts import trim_facts
        >>> trim_facts({"trimmed": 1_200})
        [('1,200', 'trimmed before the rule chose')]
    """
    by_term = [(settings.get(name), words) for name, words in _TERMS.items()]
    if all(_is_count(count) for count, _ in by_term):
        return [(f"{count:,}", words) for count, words in by_term]
    trimmed = settings.get("trimmed")
    return [(f"{trimmed:,}", "trimmed before the rule chose")] if _is_count(trimmed) else []


def label_facts(selection: Selection) -> list[Fact]:
    """Return how many labels look wrong; nothing without probabilities.

    A label is less likely than a guess if its probability is below one over the number of labels
    that occur.

    Cost:
        O(N log N).
    """
    if selection.probabilities is None:
        return []
    facts = []
    rho = selection.settings.get("rho")
    if isinstance(rho, (int, float)) and not isinstance(rho, bool) and 0 <= rho <= 1:  # nor NaN
        facts.append(("under 1%" if rho < 0.01 else f"about {rho:.0%}", "of labels look wrong"))
    if selection.labels is not None:
        guess = 1 / len(np.unique(selection.labels))
        unlikely = int((selection.probabilities < guess).sum())
        facts.append((f"{unlikely:,}", "labels are less likely than a guess"))
    return facts


def trims_by_margin(settings: dict[str, Any]) -> bool:
    """Return whether margins decided what the trim dropped.

    With `trim="auto"` they do where there are classes and no readout of the features.
    """
    trim, has_readout = settings.get("trim"), "rho" in settings
    if trim == "auto" and (has_readout or not settings.get("classes")):
        return False
    return settings.get("rule") == "herding" and trim is not None


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
