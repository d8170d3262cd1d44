"""The selection behind a sampler: made when it is due, with the live model, and kept until then."""

from __future__ import annotations

import copy
import re
import shutil
import warnings
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn

from sage_torch.checkpoint.snapshots import OtherSnapshotsError
from sage_torch.options import Options, SelectionOptions, budget, count_examples
from sage_torch.reading.ranks import Ranks, ranks
from sage_torch.sampler.binding import Source
from sage_torch.sampler.drift import DriftWatch, Reading, read_probe
from sage_torch.sampler.epoch_iterator import as_tensor, from_tensor
from sage_torch.sampler.schedule import Schedule
from sage_torch.select import select_subset
from sage_torch.selection.draws import whole_number
from sage_torch.selection.result import Selection

_OURS = re.compile(r"sage-epoch-\d{8}")
_OF_TRAINING = (
    "another model",
    "other gradients (another loss, other parameters or another computer)",
)


class Refresher:
    """Selects for an epoch when the schedule, or drift, says so; ranks decide and select together.

    Args:
        model: The live model.
        keep: As in `select_subset`.
        seed: As in `select_subset`.
        schedule: What is due when.
        watch: Looks for drift, where the schedule follows it.
        options: Of `select_subset`; a checkpoint folder gets a folder of its own for each epoch.

    Attributes:
        selection: The last good one; None before the first.
    """

    def __init__(
        self,
        model: nn.Module,
        keep: float,
        seed: int,
        schedule: Schedule,
        watch: DriftWatch,
        options: SelectionOptions,
    ) -> None:
        self.model, self.watch = model, watch
        self.selection: Selection | None = None
        self._keep, self._seed, self._schedule, self._options = keep, seed, schedule, options
        self._since = 0  # the epoch that the selection was made for

    def selection_for(self, epoch: int, source: Source) -> Selection:
        """Return the selection of an epoch after the warm-up; selects first if that is due.

        Raises:
            RuntimeError: The selection is of another data set.
            TypeError, ValueError, SageError: As `select_subset`; the last selection stays.
        """
        is_due = self.selection is None or self._schedule.is_due(epoch, self._since)
        if callable(self._schedule.refresh_every):  # one rank's opinion, maybe
            is_due = self._ranks().broadcast(is_due)
        if is_due or self.selection is None:
            return self.select(epoch, source)
        self.check(self.selection, source)
        if self._schedule.follows_drift and self.watch.has_moved(
            epoch, lambda: self._reading(source), self._ranks().broadcast
        ):
            return self.select(epoch, source)
        return self.selection

    @staticmethod
    def check(selection: Selection, source: Source) -> None:
        """Refuse a selection from a data set of another size.

        Raises:
            RuntimeError: It is one.
        """
        ours, theirs = len(selection.scores), count_examples(source[0])
        if ours != theirs:
            raise RuntimeError(
                f"expected the data set of {ours} examples that the selection was made from, got "
                f"one of {theirs}; make a new SageSampler for it"
            )

    def select(self, epoch: int, source: Source) -> Selection:
        """Select now, for this epoch and those to come.

        Raises:
            TypeError, ValueError, SageError: As `select_subset`; the last selection stays.
        """
        options, folder = self._options_of(source), self._folder(epoch)
        if folder is not None:
            options["checkpoint"] = folder
            if self.selection is not None and self._since == epoch:
                self._remove([folder])  # of a model that has changed since
        try:
            selection = select_subset(self.model, source[0], self._keep, seed=self._seed, **options)
        except OtherSnapshotsError as error:
            if folder is None or error.differs not in _OF_TRAINING:
                raise
            # Training again from an earlier state leads to another model: a refresh then is due.
            warnings.warn(
                f"selecting anew: {folder} holds snapshots of {error.differs}",
                UserWarning,
                stacklevel=2,
            )
            self._remove([folder])
            selection = select_subset(self.model, source[0], self._keep, seed=self._seed, **options)
        if self._schedule.follows_drift:
            self.watch.selected(epoch, self._reading(source))
        if folder is not None:
            ours = [old for old in folder.parent.glob("sage-epoch-*") if _OURS.fullmatch(old.name)]
            self._remove([old for old in ours if old.name < folder.name])
        self.selection, self._since = selection, epoch
        return selection

    def identity(self) -> dict[str, Any]:
        """Return what a state must have been made with."""
        is_count = isinstance(self._keep, Integral)
        return {
            "seed": int(self._seed),
            "keep": int(self._keep) if is_count else float(self._keep),
            "rule": self._options.get("rule", Options.rule),
            "draw": self._options.get("draw", Options.draw),
            "drift_probe": self.watch.size if self._schedule.follows_drift else None,
        }

    def as_state(self) -> dict[str, Any]:
        """Return numbers and tensors."""
        return {
            "since": self._since,
            "selection": None if self.selection is None else as_tensor(self.selection),
            "drift": self.watch.as_state() if self._schedule.follows_drift else None,
        }

    def loaded(self, state: dict[str, Any]) -> Refresher:
        """Return another one, with what `as_state` gave, among other entries.

        Raises:
            ValueError: It is damaged.
        """
        other = copy.copy(self)
        saved = state["selection"]
        other.selection = selection = None if saved is None else from_tensor(saved)
        if selection is not None:
            k = budget(self._keep, len(selection.scores))
            if len(selection) != k:
                raise ValueError(f"expected a selection of {k} examples, got {len(selection)}")
        try:
            other._since = whole_number("since", state["since"])
        except TypeError as error:
            raise ValueError(f"expected the epoch of a selection: {error}") from error
        other.watch = self.watch.loaded(state["drift"])
        return other

    def _reading(self, source: Source) -> Reading:
        options = Options(keep=self._keep, seed=self._seed, **self._options_of(source))
        return self._ranks().together(
            lambda: read_probe(self.model, source[0], options, size=self.watch.size)
        )

    def _options_of(self, source: Source) -> SelectionOptions:
        options = self._options.copy()
        if options.get("collate_fn") is None:
            options["collate_fn"] = source[1]
        return options

    def _folder(self, epoch: int) -> Path | None:
        checkpoint = self._options.get("checkpoint")
        return None if checkpoint is None else Path(checkpoint) / f"sage-epoch-{epoch:08d}"

    def _remove(self, folders: list[Path]) -> None:
        together = self._ranks()

        def remove() -> None:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)  # as far as another rank has left it

        together.together(remove)  # before anybody makes one of them again

    def _ranks(self) -> Ranks:
        return ranks(self._options.get("distributed", True))
