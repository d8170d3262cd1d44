"""One selection, as both passes need it: what is read, by whom, and how."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

import sage_torch._core as _core
from sage_torch.checkpoint.fingerprint import difference, fingerprint, probed
from sage_torch.checkpoint.snapshots import OtherSnapshotsError, Snapshots
from sage_torch.gradients.choice import choose_gradients
from sage_torch.gradients.compressed import compressed
from sage_torch.gradients.computer import GradientComputer, rows_of
from sage_torch.options import Basis, Options
from sage_torch.reading.ranks import Ranks
from sage_torch.reading.reader import Examples
from sage_torch.reading.shards import Shard, of_rank, places_of
from sage_torch.selection.result import Selection


@dataclass(frozen=True)
class Task:
    """One selection, as both passes need it."""

    examples: Examples
    computer: GradientComputer | None  # None where no gradient is asked for
    options: Options
    shards: list[Shard]
    ranks: Ranks
    is_streaming: bool
    snapshots: Snapshots | None = None
    device: torch.device | None = None  # where gradients come out, where one is known

    @property
    def gradients(self) -> GradientComputer:
        """The computer of both passes."""
        assert self.computer is not None  # asked for by the passes only
        return self.computer

    @property
    def own(self) -> list[Shard]:
        """The shards that this rank reads: neighbours, maybe none."""
        return of_rank(self.shards, self.ranks)

    @property
    def own_places(self) -> slice:
        """Where the examples that this rank reads stand among all."""
        return places_of(self.own)

    @property
    def is_one_pass(self) -> bool:
        """Whether pass 1 carries every example's coordinates along, so that no pass 2 is needed."""
        return self.computer is not None and self.options.consensus == "one_pass"

    @property
    def mode(self) -> str:
        """The mode in a word."""
        if self.is_one_pass:
            return "one_pass"
        return "streaming" if self.is_streaming else "exact"

    @property
    def bases(self) -> list[Basis]:
        """The bases whose consensus pass 1 carries along; none in the exact mode."""
        if not self.is_streaming:
            return []
        return ["weighted"] if self.options.basis == "weighted" else ["weighted", "orthonormal"]


def new_task(
    model: nn.Module,
    dataset: Dataset[Any],
    options: Options,
    shards: list[Shard],
    ranks: Ranks,
) -> Task:
    """Return what both passes work with: a reader of examples and a gradient computer.

    Args:
        model: Unwrapped, in evaluation mode.
        dataset: The examples.
        options: How gradients are taken.
        shards: All shards.
        ranks: Who shares them.

    Raises:
        TypeError, ValueError: The options do not fit the model or the data set.
    """
    if options.rule == "random":  # labels are all that it needs
        examples = Examples(dataset, torch.device("cpu"), options)
        return Task(examples, None, options, shards, ranks, is_streaming=False)
    tensor = next(chain(model.parameters(), model.buffers()), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    examples = Examples(dataset, device, options)
    computer = choose_gradients(
        model,
        options.loss,
        options.gradients,
        params=options.params,
        seed=options.seed,
        memory_budget=options.memory_budget,
    )
    if options.compress is not None:
        computer = compressed(
            computer,
            options.compress,
            lambda: examples.first_batch(shards[0]),
            seed=options.seed,
            memory_budget=options.memory_budget,
        )
    is_streaming = options.is_streaming(examples.total)
    return Task(examples, computer, options, shards, ranks, is_streaming)


def identified(
    task: Task, model: nn.Module, dataset: Dataset[Any], k: int
) -> tuple[Task, Selection | None]:
    """Make sure that all ranks want the same selection, and look for snapshots of it.

    Args:
        task: What `new_task` gave.
        model: As there.
        dataset: As there.
        k: The budget.

    Returns:
        The task, with snapshots where a folder was given, and the selection where it is finished.

    Raises:
        OtherSnapshotsError: The folder holds another selection's snapshots.
        ValueError: Ranks do not want the same selection.
        RuntimeError: Another process writes there.
        OSError: The folder cannot be written.
        SageError: Another rank failed.
    """
    options, ranks = task.options, task.ranks
    if options.checkpoint is None and ranks.size == 1:
        return task, None
    what, device = ranks.together(lambda: _identity(task, model, dataset, k))
    everyone = ranks.gather((what, options.checkpoint is None))
    for rank, (other, has_none) in enumerate(everyone):
        differs = difference(other, everyone[0][0])
        if has_none != everyone[0][1]:
            differs = "a checkpoint folder" if everyone[0][1] else "no checkpoint folder"
        if differs is not None:
            raise ValueError(
                f"expected every rank to select the same, but rank {rank} has {differs}, compared "
                "with rank 0; give all the same model, data set and options"
            )
    task = replace(task, device=device)
    if options.checkpoint is None:
        return task, None
    folder, is_first = os.fspath(options.checkpoint), ranks.rank == 0
    snapshots = Snapshots(folder, float(options.checkpoint_every), what)
    found = ranks.broadcast(ranks.together(lambda: snapshots.found() if is_first else None))
    if found is not None and (differs := difference(found, what)) is not None:
        raise OtherSnapshotsError(folder, differs)
    finished = ranks.broadcast(ranks.together(lambda: snapshots.result() if is_first else None))
    if finished is None:
        ranks.together(lambda: snapshots.open(is_first=True) if is_first else None)
        ranks.together(lambda: None if is_first else snapshots.open(is_first=False))
    return replace(task, snapshots=snapshots), finished


def _identity(
    task: Task, model: nn.Module, dataset: Dataset[Any], k: int
) -> tuple[dict[str, Any], torch.device | None]:
    """Return the fingerprint, and the device of gradients.

    A computer learns from the first batch that it sees: here the same one on all ranks, and for a
    selection that goes on.
    """
    indices = probed(task.examples.total)
    batch, rows = task.examples.probe(indices), None
    if task.computer is not None and batch is not None:
        with naming_the_example(indices):
            rows = rows_of(task.computer, batch)
    what = fingerprint(model, dataset, task.options, batch, rows, k=k, shards=len(task.shards))
    return what, None if rows is None else rows.device


@contextmanager
def naming_the_example(
    indices: NDArray[np.int64] | range, *, of: str = "the data set"
) -> Iterator[None]:
    """Turn the position in a batch that an error names into the example's index."""
    try:
        yield
    except (_core.SageError, ValueError) as error:
        row = getattr(error, "row", None)
        if row is None:
            raise
        named = type(error)(f"example {indices[row]} of {of}: {error}")
        named.row, named.index = row, int(indices[row])  # type: ignore[union-attr]
        raise named from error
