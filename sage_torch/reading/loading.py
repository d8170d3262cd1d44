"""How a DataLoader reads: in which processes, after which preparation, joined by which function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from textwrap import shorten
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from sage_torch.option_types import Collate
from sage_torch.reading.user_state import seed_everything

Places = tuple[list[int], int]
Ask = Callable[[list[Any], Collate], Any]


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

    def open(self, dataset: Dataset[Any], *, batch_size: int, seed: int) -> OpenLoader:
        """Return a loader of these examples, whose workers stay until it is closed.

        It reads no more examples ahead than the loader that this was taken from, but at least one
        batch in each worker. A larger batch gets more time.

        Args:
            dataset: The examples.
            batch_size: Examples in a batch, at most.
            seed: Seed of the workers when they start.
        """
        places = _Places()
        of_workers: dict[str, Any] = {}
        if self.num_workers:
            ahead = self.prefetch_factor
            of_workers = {
                "worker_init_fn": self.worker_init_fn,
                "multiprocessing_context": self.multiprocessing_context,
                "prefetch_factor": ahead and max(1, ahead * self.batch_size // batch_size),
                "timeout": self.timeout * max(1, -(-batch_size // self.batch_size)),
                "persistent_workers": True,
            }
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=places,
            num_workers=self.num_workers,
            collate_fn=_Answer(self.joins),
            pin_memory=self.pin_memory,
            # With one of its own, it draws no number from the global generators.
            generator=torch.Generator().manual_seed(seed),
            **of_workers,
        )
        return OpenLoader(loader, places)


class OpenLoader:
    """A loader that reads any places, again and again, with the same workers.

    Starting workers can take seconds, and a selection reads each shard twice.

    Args:
        loader: It reads what `places` names; with workers, they stay.
        places: The batches to read next.
    """

    def __init__(self, loader: DataLoader[Any], places: _Places) -> None:
        self._loader: DataLoader[Any] | None = loader
        self._places, self._has_workers = places, loader.num_workers > 0

    def read(self, places: Iterable[Places], ask: Ask | None = None) -> Iterator[Any]:
        """Return the batches of the examples at given places; one reading at a time.

        The generators are seeded before each batch. So the random numbers that its examples draw
        are the same in each reading, whoever reads it.

        Args:
            places: The indices of each batch, and its seed.
            ask: A function of a list of examples and the function that joins them, which is called
                in place of the latter, where they are read; a function of a module.
        """
        assert self._loader is not None  # it is not closed
        make = _Question if self._has_workers else _prepare
        self._places.next = (make(indices, seed, ask) for indices, seed in places)
        with torch.device("cpu"):  # the generator is there, whatever torch's default device
            return iter(self._loader)

    def close(self) -> None:
        """Stop the workers."""
        self._loader = None  # its iterator, which nothing else holds, stops them


class _Places:
    """The batches that a loader reads next; workers that stay cannot be given another sampler."""

    next: Iterable[list[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.next)


class _Question(list[int]):
    """Places of a batch. A worker unpickles them just before it reads them, and is then prepared.

    Without a worker, `_prepare` is called in its place.
    """

    def __init__(self, indices: list[int], seed: int, ask: Ask | None) -> None:
        super().__init__(indices)
        self._seed, self._ask = seed, ask

    def __reduce__(self) -> tuple[Any, ...]:
        return _prepare, (list(self), self._seed, self._ask)


_asked: Ask | None = None  # about the examples that this process reads next


def _prepare(indices: list[int], seed: int, ask: Ask | None) -> list[int]:
    global _asked
    _asked = ask
    seed_everything(seed)
    return indices


@dataclass(frozen=True)
class _Answer:
    """Joins examples, or does what was asked for instead."""

    joins: Collate

    def __call__(self, examples: list[Any]) -> Any:
        return self.joins(examples) if _asked is None else _asked(examples, self.joins)


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
