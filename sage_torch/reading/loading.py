"""How a DataLoader reads: in which processes, after which preparation, joined by which function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from textwrap import shorten
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from sage_torch.options import Collate
from sage_torch.reading.user_state import seed_everything

_T = TypeVar("_T")


@dataclass(frozen=True)
class Loading:
    """The arguments of a DataLoader that say where and how it reads, and not which examples.

    A data set may open a file in the process that reads first, or be made ready by
    `worker_init_fn`. So a selection reads it where the training loop reads it. If this process
    opened the file, workers that are forked would share its place in the file and read wrong parts.

    Attributes:
        num_workers: Processes that read; 0 for this one.
        collate_fn: Joins examples; None for torch's function.
        worker_init_fn: Called in each worker first.
        multiprocessing_context: Starts the workers.
        pin_memory: Whether batches are copied to pinned memory.
        prefetch_factor: Batches that each worker reads ahead; None for torch's choice.
        timeout: Seconds to wait for a batch; 0 for any time.
        batch_size: Examples in a batch, for which the last two were chosen.
    """

    num_workers: int = 0
    collate_fn: Collate | None = None
    worker_init_fn: Callable[[int], object] | None = None
    multiprocessing_context: BaseContext | str | None = None
    pin_memory: bool = False
    prefetch_factor: int | None = None
    timeout: float = 0
    batch_size: int = 1

    @classmethod
    def of(cls, loader: DataLoader[Any]) -> Loading:
        """Return how a loader reads; without a collate function if it makes no batches."""
        makes_batches = loader.batch_sampler is not None
        batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        return cls(
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn if makes_batches else None,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            pin_memory=loader.pin_memory,
            prefetch_factor=loader.prefetch_factor,
            timeout=loader.timeout,
            batch_size=batch_size if isinstance(batch_size, int) and batch_size > 0 else 1,
        )

    @property
    def joins(self) -> Collate:
        """The function that joins examples."""
        given = self.collate_fn
        return joined if given is None or given is default_collate else given

    def read(
        self,
        dataset: Dataset[Any],
        places: Iterable[list[int]],
        *,
        batch_size: int,
        seed: int,
    ) -> Iterator[Any]:
        """Yield batches of the examples at given places.

        The loader draws no number from the global generators. It reads no more examples ahead than
        the one that this was taken from, but at least one batch in each worker. A larger batch gets
        more time.

        Args:
            dataset: The examples.
            places: The indices of each batch.
            batch_size: Examples in a batch, at most.
            seed: Seed of the workers.
        """
        of_workers: dict[str, Any] = {}
        if self.num_workers:
            ahead = self.prefetch_factor
            of_workers = {
                "worker_init_fn": self.worker_init_fn,
                "multiprocessing_context": self.multiprocessing_context,
                "prefetch_factor": ahead and max(1, ahead * self.batch_size // batch_size),
                "timeout": self.timeout * max(1, -(-batch_size // self.batch_size)),
            }
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=places,
            num_workers=self.num_workers,
            collate_fn=self.joins,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(seed),
            **of_workers,
        )
        with torch.device("cpu"):  # the generator is there, whatever torch's default device
            return iter(loader)

    def look(
        self,
        dataset: Dataset[Any],
        places: list[list[int]],
        ask: Callable[[list[Any]], _T],
        *,
        seed: int,
    ) -> Iterator[_T]:
        """Read some examples, by one worker if there are any, and yield what `ask` makes of them.

        Every random number drawn by the examples depends on the seed alone.

        Args:
            dataset: The examples.
            places: The indices of each list that `ask` gets.
            ask: A function of a list of examples, called where they are read; with workers that
                are spawned it can be pickled.
            seed: The seed.
        """
        looking = Loading(
            num_workers=min(1, self.num_workers),
            collate_fn=ask,
            worker_init_fn=_Seeded(self.worker_init_fn, seed),
            multiprocessing_context=self.multiprocessing_context,
            timeout=self.timeout,
            batch_size=self.batch_size,
        )
        seed_everything(seed)
        return looking.read(dataset, places, batch_size=max(map(len, places)), seed=seed)


@dataclass(frozen=True)
class _Seeded:
    """Seeds a worker after it has been made ready."""

    ready: Callable[[int], object] | None
    seed: int

    def __call__(self, worker: int) -> None:
        if self.ready is not None:
            self.ready(worker)
        seed_everything(self.seed)


def joined(examples: list[Any]) -> Any:
    """Return examples as a batch, as torch's own collate function makes it.

    Raises:
        TypeError, RuntimeError: It cannot join them; the message says what to do.
    """
    try:
        return default_collate(examples)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        kind = TypeError if isinstance(error, TypeError) else RuntimeError
        raise kind(
            "expected examples that torch's default collate function joins to a batch (tensors of "
            f"one shape, arrays, numbers, texts), but: {shorten(str(error), 200)}; pass "
            "collate_fn=, a function of a list of examples that pads or converts them"
        ) from error
