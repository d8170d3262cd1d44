"""One selection, as both passes need it: what is read, by whom, and how."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from sage_torch import _core
from sage_torch.compression import compressed
from sage_torch.distributed import Ranks
from sage_torch.examples import Examples
from sage_torch.fingerprint import difference, fingerprint
from sage_torch.gradients import GradientComputer, choose_gradients, rows_of
from sage_torch.options import Basis, Options
from sage_torch.shards import Shard, of_rank, places_of
from sage_torch.snapshots import Snapshots
from sage_torch.user_state import seed_everything


@dataclass(frozen=True)
class Task:
    """One selection, as both passes need it."""

    examples: Examples
    gradients: GradientComputer
    options: Options
    shards: list[Shard]
    ranks: Ranks
    is_streaming: bool
    snapshots: Snapshots | None = None

    @property
    def own(self) -> list[Shard]:
        """The shards that this rank reads: neighbours, maybe none."""
        return of_rank(self.shards, self.ranks)

    @property
    def own_places(self) -> slice:
        """Where the examples that this rank reads stand among all."""
        return places_of(self.own)

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
    snapshots: Snapshots | None,
) -> Task:
    """Return what both passes work with: a reader of examples and a gradient computer.

    Args:
        model: Unwrapped, in evaluation mode.
        dataset: The examples.
        options: How gradients are taken.
        shards: All shards.
        ranks: Who shares them.
        snapshots: Where to write what must not be lost; None for nowhere.

    Raises:
        TypeError, ValueError: The options do not fit the model or the data set.
    """
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
    if ranks.size > 1 or (snapshots is not None and not snapshots.is_empty):
        # What a computer learns from the first batch that it sees, it learns from the same one,
        # wherever this process begins.
        rows_of(computer, examples.first_batch(shards[0]))
    is_streaming = options.is_streaming(examples.total)
    return Task(examples, computer, options, shards, ranks, is_streaming, snapshots)


def open_snapshots(
    model: nn.Module,
    dataset: Dataset[Any],
    options: Options,
    k: int,
    shards: list[Shard],
    ranks: Ranks,
) -> Snapshots | None:
    """Return the snapshots of this selection after making sure that all ranks want the same one.

    Raises:
        ValueError: They do not, or `options.checkpoint` holds another selection's snapshots.
        OSError: That folder cannot be written.
        SageError: Another rank failed.
    """
    if options.checkpoint is None and ranks.size == 1:
        return None
    seed_everything(options.seed)  # a random transform gives every rank and run the same items
    what = ranks.together(lambda: fingerprint(model, dataset, options, k=k, shards=len(shards)))
    everyone = ranks.gather(what)
    for rank, other in enumerate(everyone):
        if (differs := difference(other, everyone[0])) is not None:
            raise ValueError(
                f"expected every rank to select the same, but rank {rank} has {differs}, compared "
                "with rank 0; give all the same model, data set and options"
            )
    if options.checkpoint is None:
        return None
    folder, every = os.fspath(options.checkpoint), float(options.checkpoint_every)

    def opened(*, is_first: bool) -> Snapshots | None:
        mine = is_first == (ranks.rank == 0)
        return Snapshots(folder, every, what, is_first=is_first) if mine else None

    first = ranks.together(lambda: opened(is_first=True))  # it cleans up before others look
    others = ranks.together(lambda: opened(is_first=False))
    return first or others


@contextmanager
def naming_the_example(indices: NDArray[np.int64]) -> Iterator[None]:
    """Turn the position in a batch that an error names into the example's index."""
    try:
        yield
    except (_core.SageError, ValueError) as error:
        row = getattr(error, "row", None)
        if row is None:
            raise
        named = type(error)(f"example {indices[row]} of the data set: {error}")
        named.row, named.index = row, int(indices[row])  # type: ignore[union-attr]
        raise named from error
