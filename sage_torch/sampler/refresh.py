"""The selection behind a sampler: made with the live model when due, and kept until the next."""

from __future__ import annotations

import copy
import re
import shutil
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from sage_torch.checkpoint.snapshots import OtherSnapshotsError
from sage_torch.checks import count_both, count_examples, warn, whole_number
from sage_torch.options import Options
from sage_torch.passes.calibration import FirstReading
from sage_torch.reading.ranks import Ranks, ranks
from sage_torch.reading.reader import check_length
from sage_torch.sampler.epoch_iterator import as_tensor, from_tensor
from sage_torch.sampler.first_epoch import first_reading
from sage_torch.sampler.schedule import Schedule
from sage_torch.sampler.source import Source
from sage_torch.select import select
from sage_torch.selection.issues import is_share
from sage_torch.selection.result import Selection

_OURS = re.compile(r"sage-epoch-\d{8}")
_OF_TRAINING = (
    "another model",
    "other gradients (another loss, other parameters or another computer)",
)


class Refresher:
    """Selects for an epoch when the schedule says so; ranks decide and select together.

    Args:
        model: The live model.
        schedule: Which epochs begin with a selection.
        options: Options of each selection; in a checkpoint folder, each epoch has its own folder.
        has_workers: Whether `options.num_workers` was given, and not left to the loader.
        score_dataset: The view of the data set that a selection reads; None for the data set.

    Attributes:
        selection: The last good one; None before the first.
        first_reading: What `first_epoch` has read; None where it was not asked.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        options: Options,
        *,
        has_workers: bool,
        score_dataset: Dataset[Any] | None = None,
    ) -> None:
        self.model, self.options, self._schedule = model, options, schedule
        self._has_workers, self._score_dataset = has_workers, score_dataset
        self.selection: Selection | None = None
        self.first_reading: FirstReading | None = None
        self._since = 0  # the epoch that the selection was made for

    def selection_for(self, epoch: int, source: Source) -> Selection:
        """Return the selection of an epoch after the warm-up; select first if a selection is due.

        Raises:
            RuntimeError: The selection is from another data set.
            TypeError, ValueError, SageError: As `select_subset`; the last selection stays.
        """
        is_due = self.selection is None or self._schedule.is_due(epoch, self._since)
        if callable(self._schedule.refresh_every):  # ranks may disagree
            is_due = self._ranks().broadcast(is_due)
        if is_due or self.selection is None:
            return self.select(epoch, source)
        self.check(self.selection, source)
        return self.selection

    def warm_up(self, epoch: int, source: Source) -> None:
        """Read how many labels look wrong, where an epoch of the warm-up is the second one.

        Raises:
            ValueError: The view of the data set has another length.
        """
        if epoch == 1 and self.first_reading is None:
            dataset, viewed = source.dataset, self._score_dataset
            self._ranks().together(lambda: count_both(dataset, viewed))
            read = dataset if viewed is None else viewed
            options = self._read_as(source)
            self.first_reading = first_reading(self.model, read, options, source.loading)

    @staticmethod
    def check(selection: Selection, source: Source) -> None:
        """Refuse a selection from a data set of another size.

        Raises:
            RuntimeError: The sizes differ.
        """
        ours, theirs = len(selection.scores), count_examples(source.dataset)
        if ours != theirs:
            raise RuntimeError(
                f"expected the data set of {ours} examples that the selection was made from, got "
                f"one of {theirs}; make a new SageSampler for it"
            )

    def select(self, epoch: int, source: Source) -> Selection:
        """Select now, for this epoch and later ones.

        Raises:
            TypeError, ValueError, SageError: As `select_subset`; the last selection stays.
        """
        folder, options = self._folder(epoch), self._read_as(source)
        options = replace(options, checkpoint=folder)
        if folder is not None and self.selection is not None and self._since == epoch:
            self._remove([folder])  # its model has changed since
        try:
            selection = self._selected(source, options)
        except OtherSnapshotsError as error:
            if folder is None or error.differs not in _OF_TRAINING:
                raise
            # Training again from an earlier state gives another model, so the refresh is made anew.
            warn(f"selecting anew: {folder} holds snapshots of {error.differs}")
            self._remove([folder])
            selection = self._selected(source, options)
        if folder is not None:
            ours = [old for old in folder.parent.glob("sage-epoch-*") if _OURS.fullmatch(old.name)]
            self._remove([old for old in ours if old.name < folder.name])
        self.selection, self._since = selection, epoch
        return selection

    def identity(self) -> dict[str, Any]:
        """Return the settings that a state must have been made with."""
        keep = self.options.keep
        return {
            "seed": self.options.seed,
            "keep": int(keep) if isinstance(keep, Integral) else float(keep),
            "rule": self.options.rule,
            "draw": self.options.draw,
        }

    def as_state(self) -> dict[str, Any]:
        """Return numbers and tensors."""
        return {
            "since": self._since,
            "selection": None if self.selection is None else as_tensor(self.selection),
            "first_reading": self.first_reading and list(self.first_reading),
        }

    def loaded(self, state: dict[str, Any]) -> Refresher:
        """Return another one with what `as_state` gave; other entries are ignored.

        Raises:
            ValueError: It is damaged.
        """
        other = copy.copy(self)
        saved = state["selection"]
        other.selection = selection = None if saved is None else from_tensor(saved)
        if selection is not None:
            k = self.options.budget(len(selection.scores))
            if len(selection) != k:
                raise ValueError(
                    f"expected a selection of {k} examples, got {len(selection)}; make the sampler "
                    "with the same keep"
                )
        try:
            other._since = whole_number("since", state["since"])
        except TypeError as error:
            raise ValueError(f"expected the epoch of a selection: {error}") from error
        other.first_reading = _read_first(state["first_reading"])
        return other

    def _selected(self, source: Source, options: Options) -> Selection:
        """Select from the data set, or from the other view of it."""
        dataset, viewed, together = source.dataset, self._score_dataset, self._ranks().together
        total = together(lambda: count_both(dataset, viewed))
        read = dataset if viewed is None else viewed
        earlier, first = self.selection, self.first_reading
        selection = select(self.model, read, options, source.loading, earlier, first)
        together(lambda: check_length(dataset, total))  # whose indices these are
        return selection

    def _read_as(self, source: Source) -> Options:
        """Return the options, with those of the loader that the caller has not given."""
        options, loading = self.options, source.loading
        if options.collate_fn is None:
            options = replace(options, collate_fn=loading.collate_fn)
        if not self._has_workers:
            options = replace(options, num_workers=loading.num_workers)
        return options

    def _folder(self, epoch: int) -> Path | None:
        checkpoint = self.options.checkpoint
        return None if checkpoint is None else Path(checkpoint) / f"sage-epoch-{epoch:08d}"

    def _remove(self, folders: list[Path]) -> None:
        together = self._ranks()

        def remove() -> None:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)  # another rank may be removing it too

        together.together(remove)  # before any rank makes one of them again

    def _ranks(self) -> Ranks:
        return ranks(self.options.distributed)


def _read_first(saved: Any) -> FirstReading | None:
    if saved is None:
        return None
    wanted = len(FirstReading._fields)
    if not isinstance(saved, list) or len(saved) != wanted or not all(map(is_share, saved)):
        raise ValueError(
            f"expected first_reading to be {wanted} shares from 0 to 1 or None, got {saved!r}"
        )
    return FirstReading(*saved)
