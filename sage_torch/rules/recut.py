"""Another cut of a selection: the rule again, on what was kept of every example."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch.options import Options
from sage_torch.passes.calibration import Calibration, Judged
from sage_torch.passes.job import Plan
from sage_torch.passes.mode import Mode
from sage_torch.passes.scoring import Scored, ScoredBatch
from sage_torch.reading.classes import ClassBook
from sage_torch.reading.ranks import Ranks
from sage_torch.reading.reader import SeededOrder
from sage_torch.reading.shards import Shard
from sage_torch.rules.choice import rule_for
from sage_torch.rules.chosen import Chosen, Rule
from sage_torch.rules.trimming import trims_nothing
from sage_torch.rules.whole import choose_at_random
from sage_torch.selection.coordinates import Coordinates
from sage_torch.selection.result import NO_COORDINATES, Selection, behind

_AT_ONCE = 8_192  # examples that a stream gets at once
_OF_FIRST = ("command", "threshold", "trimmed_by_noise", "trimmed_by_budget", "trimmed_because")
_CHANGES = ("keep", "rule", "trim", "quotas", "seed", "duplicates")
_SAME = ("draw", "class_balanced", "consensus", "shards")


@dataclass(frozen=True)
class _Task:
    """A job without model and data."""

    options: Options
    mode: Mode
    shards: list[Shard]
    own: list[Shard]
    ranks: Ranks


@dataclass(frozen=True)
class _Known:
    """What a rating needs of a readout, from what was kept of it."""

    calibration: Calibration
    of_sample: Judged
    classes: int


@dataclass(frozen=True)
class _Examples:
    """The examples that may be chosen, or all; arrays are theirs alone."""

    rows: NDArray[np.float16]  # (n, w)
    scores: NDArray[np.float32]
    margins: NDArray[np.float32]
    judged: Judged | None

    def scored(self, rows: NDArray[np.float32]) -> Scored:
        return Scored(self.scores, self.margins, rows, np.nan, self.judged)

    def batches(self, task: _Task) -> Iterator[ScoredBatch]:
        """Yield what a stream would, in its reading order."""
        for shard in task.shards:
            order = SeededOrder(shard, task.options.seed)
            for start in range(0, len(shard), _AT_ONCE):
                at = order.indices(start, min(_AT_ONCE, len(shard) - start))
                judged = self.judged and self.judged.of(at)
                rows = self.rows[at].astype(np.float32)
                yield ScoredBatch(shard, at, rows, self.margins[at], judged)


@dataclass(frozen=True)
class Cut:
    """What a rule needs to be applied to a selection again.

    Attributes:
        selection: With coordinates.
        kept: These.
        options: Of the cut.
        places: int64 (n,) ascending, the examples that may be chosen. All else goes by these.
        classes: Their classes.
        quotas: int64 (C,), how many of each group to keep.
    """

    selection: Selection
    kept: Coordinates
    options: Options
    places: NDArray[np.int64]
    classes: ClassBook
    quotas: NDArray[np.int64]

    @classmethod
    def of(cls, selection: Selection, changed: dict[str, Any]) -> Cut:
        """Return the cut of a selection with some options changed; the others are as they were.

        Raises:
            TypeError, ValueError: As `Selection.recut`.
        """
        kept = selection.coordinates
        if kept is None or selection.margins is None:
            raise ValueError(NO_COORDINATES)
        options = _options(selection, kept, changed)
        if options.duplicates == "drop" and selection.duplicate_of is None:
            selection = selection.find_duplicates()
        places = _allowed(selection, options)
        k = options.budget(len(selection.scores))
        if k > len(places):
            raise ValueError(
                f"expected to keep at most {len(places)} examples, one of each kind, got {k}; keep "
                'fewer, or pass duplicates="keep"'
            )
        classes = _classes(selection, places, options)
        quotas = _core.class_quotas(classes.sizes(), k, options.quotas)
        return cls(selection, kept, options, places, classes, quotas)

    def chosen(self) -> Chosen:
        """Return what the rule chooses."""
        if self.options.rule == "random":
            return choose_at_random(self.classes, self.quotas, self.options)
        task, rule, examples = self.ready()
        if task.mode.is_streaming:
            for batch in examples.batches(task):
                rule.take(batch)
            return rule.finish(examples.scored(np.empty((0, examples.rows.shape[1]), np.float32)))
        return rule.finish(examples.scored(examples.rows.astype(np.float32)))

    def ready(self) -> tuple[_Task, Rule, _Examples]:
        """Return a rule other than "random", and what it reads."""
        options, places, selection = self.options, self.places, self.selection
        reads_features = options.rule == "herding" and options.trim == "auto"
        rows = self.kept.rows
        if not reads_features:
            rows = rows[:, : self.kept.gradient_width]
        judged, known, sample = None, None, None
        if reads_features and self.kept.known:
            of_all, labels = _known(selection)
            values, of_sample = np.unique(labels), self.kept.sample
            known = _Known(_calibration(self.kept), of_all.of(of_sample), len(values))
            sample = np.searchsorted(values, labels[of_sample]).astype(np.int32)
            judged = of_all.of(places)
        plan = Plan.of(options, len(places), is_group=False)
        task = _Task(options, plan.mode, plan.shards, plan.shards, Ranks())
        width = rows.shape[1]
        rule = rule_for(task, self.classes, self.quotas, width=width, known=known, sample=sample)
        assert selection.margins is not None
        at = slice(None) if len(places) == len(rows) else places  # all: no copy
        examples = _Examples(rows[at], selection.scores[at], selection.margins[at], judged)
        return task, rule, examples


@behind("recut")
def recut(selection: Selection, changed: dict[str, Any]) -> Selection:
    """Do what `Selection.recut` documents.

    Args:
        selection: With coordinates.
        changed: Options by name; the others are as they were.
    """
    begin = time.perf_counter()
    cut = Cut.of(selection, changed)
    chosen = cut.chosen()
    draws = chosen.draws and replace(chosen.draws, order=cut.places[chosen.draws.order])
    seconds = time.perf_counter() - begin
    return replace(
        cut.selection,
        indices=cut.places[chosen.indices],
        ranks=chosen.ranks,
        weights=None,
        draws=draws,
        seconds={"pass_1": 0.0, "pass_2": 0.0, "rule": seconds, "total": seconds},
        settings=_settings(cut, chosen),
    )


def _options(selection: Selection, kept: Coordinates, changed: dict[str, Any]) -> Options:
    """Return all options of the new cut, checked."""
    before = selection.settings
    missing = [name for name in (*_SAME, *_CHANGES, "classes") if name not in before]
    if missing:
        raise ValueError(
            f"expected the settings of a selection, got none of {', '.join(missing)}; select again"
        )
    given = {name: before[name] for name in (*_SAME, *_CHANGES)} | changed
    options = Options.given(**given)
    if options.rule == "random":
        return options
    needs_look = options.rule == "herding" and options.trim == "auto"
    if needs_look and not kept.looked and before["classes"] >= 2:
        raise ValueError(
            'expected trim="negative", a share or None, got "auto": this selection has not looked '
            'for features; pass trim="negative", or select again with trim="auto"'
        )
    return options


def _allowed(selection: Selection, options: Options) -> NDArray[np.int64]:
    everything = np.arange(len(selection.scores))
    if options.duplicates == "keep" or selection.duplicate_of is None:
        return everything
    return everything[selection.duplicate_of < 0]


def _classes(selection: Selection, places: NDArray[np.int64], options: Options) -> ClassBook:
    labels = selection.labels
    classes = ClassBook(len(places), options.class_balanced)
    classes.add(np.arange(len(places)), None if labels is None else labels[places])
    classes.finish()
    return classes


def _known(selection: Selection) -> tuple[Judged, NDArray[np.int64]]:
    """Return what is known of all labels, and the labels."""
    labels, probabilities = selection.labels, selection.probabilities
    is_wrong, predicted = selection.is_wrong, selection.predicted
    label_scores = selection.label_scores
    if (
        labels is None
        or probabilities is None
        or is_wrong is None
        or predicted is None
        or label_scores is None
    ):
        raise ValueError("expected labels and probabilities beside coordinates; select again")
    return Judged(probabilities, is_wrong, predicted, label_scores), labels


def _calibration(kept: Coordinates) -> Calibration:
    known = kept.known
    return Calibration(
        temperature=1.0,
        noise_share=0.0,
        rho=known["rho"],
        skill=known["skill"],
        mistaken=np.zeros((1, 1)),
        trust=known["trust"],
        to_learn=known["to_learn"],
    )


def _settings(cut: Cut, chosen: Chosen) -> dict[str, Any]:
    options, selection = cut.options, cut.selection
    before = {name: each for name, each in selection.settings.items() if name not in _OF_FIRST}
    now = options.as_json()
    settings = before | {name: now[name] for name in _CHANGES}
    settings |= {"k": int(cut.quotas.sum()), "trimmed": chosen.trimmed, **chosen.settings}
    if "readings" in before:  # a cut reads no labels again
        settings |= {name: before[name] for name in ("rho", "readings")}
    if options.rule == "herding" and trims_nothing(options, cut.classes):
        settings["trimmed_because"] = f'trim="{options.trim}" needs at least two classes'
    if options.duplicates == "drop" and selection.duplicate_of is not None:
        settings["duplicates_dropped"] = int((selection.duplicate_of >= 0).sum())
    return settings
