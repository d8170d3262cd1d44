"""The page: facts, charts and examples, inserted into the template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from torch.utils.data import Dataset

from sage_torch.plots.style import Values, most_telling, written
from sage_torch.report.charts import charts, is_drawable
from sage_torch.report.facts import (
    certificate_words,
    class_rows,
    command_words,
    label_name,
    plain,
    setting_rows,
    timing_rows,
)
from sage_torch.report.named import issue_rows, kind_rows, kind_words, noise_words
from sage_torch.report.shown import Example, show
from sage_torch.selection.facts import label_facts, trim_facts, trims_by_margin
from sage_torch.selection.result import Selection

_PARAMETERS = 500  # shown
_LOWEST = 12  # margins named beside the least likely labels
_VALUES: dict[Values, str] = {"probabilities": "probability", "margins": "margin"}
_CHECK: dict[Values, str] = {
    "probabilities": "The labels that are least likely by the features of the other examples, with "
    "their probability.",
    "margins": "The examples that agree least with their class, with their margin.",
}


def page(
    selection: Selection,
    dataset: Dataset[Any] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    table: str | None = None,
) -> str:
    """Return the HTML that `write_report` writes, with the same arguments and errors.

    Args:
        selection: As there.
        dataset: As there.
        class_names: As there.
        table: Name of the table beside the page, to link to.
    """
    names = _names_of(dataset, selection) if class_names is None else class_names
    settings = selection.settings
    rows = class_rows(selection, names)  # may raise, so it comes before the slow charts
    shown = None if dataset is None else show(selection, dataset)
    of = most_telling(selection)

    def name(label: int | None) -> str:
        return label_name(label, names)

    return _template().render(
        selection=selection,
        kept=len(selection.indices),
        total=len(selection.scores),
        figures=_figures(selection),
        charts=charts(selection),
        rows=rows,
        scores=_range(selection),
        shown=shown,
        name=name,
        words=lambda example: _words(example, of, names),
        issues=issue_rows(selection, name),
        value_name=_VALUES.get(of, ""),
        check=_CHECK.get(of, ""),
        lowest_margins=_lowest_margins(selection, of),
        kinds=kind_rows(selection, name),
        kind_words=kind_words(selection),
        sure=[*certificate_words(selection.certificate), *noise_words(selection)],
        table=table,
        timings=timing_rows(selection.seconds),
        command=command_words(settings),
        settings=setting_rows(settings),
        parameters=_rows(settings.get("parameters")),
        versions=_rows(settings.get("versions")),
    )


@cache
def _template() -> Template:
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder,
        autoescape=True,  # because labels, texts and settings can contain anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _figures(selection: Selection) -> list[tuple[str, str]]:
    """Return the numbers at the top of the page and their descriptions."""
    settings, total = selection.settings, len(selection.scores)
    found = [(f"{len(selection.indices) / total:.1%}", "of the examples kept")]
    if selection.labels is not None:
        known = np.unique(selection.labels)
        kept = np.unique(selection.labels[selection.indices])
        found.append((f"{len(kept):,} of {len(known):,}", "classes kept"))
    if settings.get("rule") != "random":
        found += trim_facts(settings)
    found += label_facts(selection)
    if selection.margins is not None and trims_by_margin(settings):
        found.append((f"{int((selection.margins < 0).sum()):,}", "margins below 0"))
    if selection.certificate is not None:
        found.append((f"{selection.certificate.energy_kept:.1%}", "of the energy in the sketch"))
    if "total" in selection.seconds:
        found.append((f"{selection.seconds['total']:,.1f} s", "to select"))
    return found


def _lowest_margins(selection: Selection, of: Values) -> str:
    """Return the examples of the lowest margins in words, where the page ranks by probability."""
    if of != "probabilities" or selection.margins is None:
        return ""
    lowest = np.argsort(selection.margins, kind="stable")[:_LOWEST]
    return ", ".join(f"example {index}" for index in lowest)


def _words(example: Example, of: Values, names: Sequence[str] | None) -> list[str]:
    """Return what stands under an example: number, given and suggested label, how likely it is."""
    words = [f"example {example.index}"]  # as in `dataset[index]`, without a thousands separator
    if example.label is not None:
        words.append(label_name(example.label, names))
    if example.suggested not in (None, example.label):
        words.append(f"rather {label_name(example.suggested, names)}")
    if of == "probabilities":
        words.append(written(example.probability, of))
    elif of == "margins":
        words.append(written(example.margin, of))
    elif not math.isnan(example.score):
        words.append(f"{example.score:.2f}")
    return [*words, "kept" if example.is_kept else "dropped"]


def _range(selection: Selection) -> tuple[float, float] | None:
    if not is_drawable(selection.scores):
        return None
    return float(selection.scores.min()), float(selection.scores.max())


def _rows(values: Any) -> list[tuple[str, str]]:
    if not isinstance(values, dict):
        return []
    return [(name, plain(value)) for name, value in islice(values.items(), _PARAMETERS)]


def _names_of(dataset: object, selection: Selection) -> Sequence[str] | None:
    """Return `dataset.classes` if it has a name for each label, otherwise None."""
    names = getattr(dataset, "classes", None)
    labels = selection.labels
    if labels is None or not isinstance(names, (list, tuple)):
        return None
    is_complete = labels.min() >= 0 and labels.max() < len(names)
    return names if is_complete and all(isinstance(name, str) for name in names) else None
