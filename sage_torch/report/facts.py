"""The text and numbers of a report, without its pictures."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from markupsafe import Markup

from sage_torch.options import Options
from sage_torch.plots.style import is_kept
from sage_torch.report.charts import is_drawable, strip
from sage_torch.selection.certificate import Certificate
from sage_torch.selection.result import Selection

_CLASSES = 100  # shown on their own; all further classes share one row
_LONGEST = 400  # characters of a setting
_INDIFFERENT = ("keep", "progress", "distributed", "checkpoint", "num_workers")
_WORDS = {
    "pass_1": "pass 1: read and sketch",
    "pass_2": "pass 2: score every example",
    "rule": "trim and choose",
    "total": "together",
}


@dataclass(frozen=True)
class ClassRow:
    """One class, or all classes after the first hundred.

    Attributes:
        name: Name of the class.
        kept: Number of its examples that are kept.
        total: Number of its examples.
        median: Median agreement of its examples; None without scores.
        strip: Small histogram of its agreement; None without scores.
    """

    name: str
    kept: int
    total: int
    median: float | None
    strip: Markup | None


def class_rows(selection: Selection, class_names: Sequence[str] | None) -> list[ClassRow]:
    """Return one row per class, by label; all classes after the first hundred share one row.

    Args:
        selection: Any selection; without labels, all examples are one class.
        class_names: Names by label; None to show the labels.

    Raises:
        ValueError: A label has no name.
    """
    if selection.labels is None:
        return [_row(selection, "all", np.arange(len(selection.scores)))]
    labels = np.unique(selection.labels)
    first = labels[:_CLASSES]
    rows = [
        _row(selection, label_name(int(label), class_names), np.flatnonzero(same))
        for label in first
        for same in [selection.labels == label]
    ]
    if len(labels) > _CLASSES:
        rest = np.flatnonzero(~np.isin(selection.labels, first))
        rows.append(_row(selection, f"{len(labels) - _CLASSES:,} other classes", rest))
    return rows


def label_name(label: int | None, class_names: Sequence[str] | None) -> str:
    """Return the name of a label.

    Raises:
        ValueError: There are names, but none for this label.
    """
    if label is None:
        return "all"
    if class_names is None:
        return str(label)
    if not 0 <= label < len(class_names):
        raise ValueError(
            f"expected a name for each label, got {len(class_names)} names and label {label}; give "
            "more names"
        )
    return str(class_names[label])


def certificate_words(certificate: Certificate | None) -> list[str]:
    """Return the statements of a certificate as sentences."""
    if certificate is None:
        return ["No certificate: the draw went by no gradients, so that there is no sketch."]
    low, high = certificate.energy_kept, certificate.energy_kept_at_most
    between = f"{low:.1%}" if f"{low:.1%}" == f"{high:.1%}" else f"between {low:.1%} and {high:.1%}"
    words = [
        f"The sketch holds {between} of the energy of all (compressed) gradients.",
        "Along no direction does it underestimate the squared length of the gradients by more than "
        f"{certificate.relative_shrinkage:.2%} of that along the strongest direction. It never "
        "overestimates, up to the rounding of 32-bit numbers."
        if certificate.shrinkage > 0
        else "It lost nothing: the gradients fit into its rows, and every length in it is exact up "
        "to the rounding of 32-bit numbers.",
    ]
    cosine = certificate.consensus_cosine
    if math.isnan(cosine):
        words.append(
            "Examples were scored by coordinates kept up to date in one pass; the exact consensus "
            "is not known."
        )
    elif cosine >= 1:
        words.append("Examples were scored against the exact consensus of their class.")
    else:
        words.append(
            "Examples were scored against a consensus kept up to date while reading. Its cosine "
            f"with the exact consensus is at least {cosine:.4f} in every class."
        )
    return words


def timing_rows(seconds: dict[str, float]) -> list[tuple[str, str]]:
    """Return the steps of a selection and their times."""
    return [(_WORDS.get(name, name), f"{value:,.2f} s") for name, value in seconds.items()]


def command_words(settings: dict[str, Any]) -> str:
    """Return the command that made a selection, or otherwise the Python call that repeats it.

    Args:
        settings: The settings of the selection.

    Example:
        >>> from sage_torch.report.facts import command_words
        >>> command_words({"keep": 0.25, "rule": "agreement", "seed": 0})
        "select_subset(model, dataset, 0.25, rule='agreement')"
        >>> command_words({"command": ["python", "-m", "sage_torch", "select", "--out", "a b.npz"]})
        "python -m sage_torch select --out 'a b.npz'"
    """
    command = settings.get("command")
    if isinstance(command, list):
        return shlex.join(map(str, command))
    asked = _as_asked(settings)
    changed = [
        f"{field.name}={asked[field.name]!r}"
        for field in fields(Options)
        if field.name in asked and asked[field.name] != field.default
    ]
    return f"select_subset({', '.join(['model', 'dataset', repr(settings.get('keep')), *changed])})"


def _as_asked(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the options that affect the result, with "auto" instead of its automatic choice."""
    asked = {name: value for name, value in settings.items() if name not in _INDIFFERENT}
    if settings.get("consensus") == "exact":
        del asked["consensus"]  # "auto" chooses the same
    if str(settings.get("gradients_because")).startswith("auto"):
        asked.pop("gradients", None)
    elif isinstance(asked.get("gradients"), str):
        asked["gradients"] = asked["gradients"].partition(":")[0].replace(" ", "_")
    return asked


def setting_rows(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Return settings as short texts, without those that the page shows elsewhere."""
    elsewhere = ("command", "parameters", "versions")
    return [(name, plain(value)) for name, value in settings.items() if name not in elsewhere]


def plain(value: Any) -> str:
    """Return a JSON value as a short text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _row(selection: Selection, name: str, ids: Any) -> ClassRow:
    kept, scores = is_kept(selection)[ids], selection.scores[ids]
    everywhere = selection.scores
    is_scored = is_drawable(everywhere)
    between = (float(everywhere.min()), float(everywhere.max()))
    return ClassRow(
        name=name,
        kept=int(kept.sum()),
        total=len(ids),
        median=float(np.median(scores)) if is_scored else None,
        strip=strip(scores[kept], scores[~kept], between) if is_scored else None,
    )
