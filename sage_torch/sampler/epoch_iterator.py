"""Iterates over an epoch index by index, and resumes where another process stopped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sage_torch.checks import shown, whole_number
from sage_torch.sampler.epoch_order import EpochOrder
from sage_torch.selection.result import Selection

_CHUNK = 8_192
_CURE = "pass what state_dict() gave"


@dataclass(frozen=True)
class Place:
    """How far a rank has got in an epoch.

    Attributes:
        epoch: Its number.
        position: How many of its indices have been yielded.
        total: How many indices it has on this rank; None before it begins.
        num_replicas: Over how many ranks it is split; None before it begins.
        seed: Names its order: the sampler's seed or the number drawn from its generator; None
            before it begins.
        selection: Its selection, where the sampler has made another one since.
    """

    epoch: int
    position: int = 0
    total: int | None = None
    num_replicas: int | None = None
    seed: int | None = None
    selection: Selection | None = None

    @property
    def has_begun(self) -> bool:
        """Whether an iterator should resume here instead of beginning the epoch."""
        return self.position > 0 or self.total is not None

    @property
    def is_end(self) -> bool:
        """Whether no index of the epoch is left."""
        return self.total is not None and self.position >= self.total

    def position_in(self, order: EpochOrder) -> int:
        """Return the position at which to resume in an order.

        Raises:
            RuntimeError: This place belongs to another order.
        """
        if self.total is not None:
            ours, theirs = (self.num_replicas, self.total), (order.split.num_replicas, len(order))
            if ours != theirs:
                raise RuntimeError(
                    f"expected to go on with epoch {self.epoch} on {ours[0]} ranks with {ours[1]} "
                    f"indices each, got {theirs[0]} with {theirs[1]}: resume as before, or at the "
                    "start of an epoch"
                )
        return min(self.position, len(order))

    def as_state(self) -> dict[str, Any]:
        """Return numbers and tensors; epoch and position are plain entries."""
        order = None
        if self.total is not None:
            order = {
                "epoch": self.epoch,
                "seed": self.seed,
                "total": self.total,
                "num_replicas": self.num_replicas,
                "selection": None if self.selection is None else as_tensor(self.selection),
            }
        return {"epoch": self.epoch, "position": self.position, "order": order}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Place:
        """Read what `as_state` gave; other entries are ignored.

        If `"epoch"` is not the epoch of the order, it has not begun.

        Raises:
            ValueError: An entry is missing or of a wrong form.
        """
        try:
            epoch = whole_number("epoch", state["epoch"])
            position = whole_number("position", state["position"])
            order = state["order"]
            if order is None or order["epoch"] != epoch:
                return cls(epoch, position)
            selection = order["selection"]
            return cls(
                epoch,
                position,
                whole_number("total", order["total"]),
                whole_number("num_replicas", order["num_replicas"], least=1),
                whole_number("seed", order["seed"]),
                None if selection is None else from_tensor(selection),
            )
        except KeyError as error:
            raise ValueError(
                f"expected a state with the entry {error}, got none; {_CURE}"
            ) from error
        except TypeError as error:
            raise ValueError(f"expected the place in an epoch: {error}; {_CURE}") from error


class Running:
    """An epoch under way: its order, its selection, and how many indices have been yielded."""

    def __init__(self, order: EpochOrder, selection: Selection | None, position: int) -> None:
        self.order, self.selection, self.position = order, selection, position

    @property
    def is_over(self) -> bool:
        """Whether no index is left."""
        return self.position >= len(self.order)

    def place(self, current: Selection | None) -> Place:
        """Return the place reached, with its selection unless that is the current one."""
        order = self.order
        return Place(
            epoch=order.epoch,
            position=self.position,
            total=len(order),
            num_replicas=order.split.num_replicas,
            seed=order.seed,
            selection=None if self.selection is current else self.selection,
        )


class Epochs(Protocol):
    """The part of a sampler that an iterator uses."""

    @property
    def selection(self) -> Selection | None:
        """The current selection."""
        ...

    @property
    def _named(self) -> int | None: ...

    def set_epoch(self, epoch: int) -> None:
        """Name the coming epoch."""
        ...

    def _begin(self, place: Place | None, *, is_loaded: bool) -> Running: ...

    def _end(self, epoch: int) -> None: ...


class EpochIterator(Iterator[int]):
    """The indices of one epoch, one Python int at a time; it begins at the first `next`.

    Loaders make iterators that they never draw from, before they restore their state. So nothing is
    selected, drawn from a generator or counted as an epoch before the first `next`.

    Args:
        epochs: The sampler.
    """

    def __init__(self, epochs: Epochs) -> None:
        self._epochs = epochs
        self._running: Running | None = None
        self._chunk: Iterator[int] = iter(())
        self._loaded: Place | None = None
        self._is_loaded = False  # if so, begin at `_loaded`; None: at an epoch's start
        self._is_over = False

    def __iter__(self) -> EpochIterator:
        return self

    def __next__(self) -> int:
        if self._running is None and not self._is_over:
            self._running = self._epochs._begin(self._loaded, is_loaded=self._is_loaded)
            if self._running.is_over:  # none for this rank, or none left
                self._end(self._running.order.epoch)
        if self._running is None or self._is_over:
            raise StopIteration
        index = next(self._chunk, None)
        if index is None:
            self._chunk = iter(_next_chunk(self._running))
            index = next(self._chunk)
        self._running.position += 1
        if self._running.is_over:
            # Not at the next call: a caller that knows the length may never make it.
            self._end(self._running.order.epoch)
        return index

    def state_dict(self) -> dict[str, Any]:
        """Return where the iterator is: numbers, and a tensor where it needs an earlier selection.

        Returns:
            A dict whose `"epoch"` is None before the first `next`.
        """
        if self._running is not None:
            return self._running.place(self._epochs.selection).as_state()
        if self._loaded is not None:
            return self._loaded.as_state()
        return {"epoch": None, "position": 0, "order": None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Move to where another iterator was; earlier indices are not yielded.

        The subset belongs to the sampler: load the sampler's own state first, as
        `StatefulDataLoader` does. Positions count from the epoch's start: loading twice skips once.

        Args:
            state_dict: What `state_dict` gave.

        Raises:
            ValueError: It is something else. The iterator has not changed then.
        """
        if not isinstance(state_dict, dict) or "epoch" not in state_dict:
            raise ValueError(
                "expected the state of a SageSampler's iterator, a dict with epoch, position and "
                f"order, got {type(state_dict).__name__}; {_CURE}"
            )
        place = None if state_dict["epoch"] is None else Place.from_state(state_dict)
        named = self._epochs._named
        if place is not None and named is not None and named != place.epoch:
            # `StatefulDataLoader` restores when iterated: the caller has named another by then.
            place = None
            self._epochs.set_epoch(named)
        self._loaded, self._is_loaded = place, True
        self._running, self._chunk, self._is_over = None, iter(()), False
        if place is not None and place.is_end:
            self._end(place.epoch)

    def _end(self, epoch: int) -> None:
        self._is_over = True
        self._epochs._end(epoch)


def check_same(ours: dict[str, Any], theirs: object) -> None:
    """Refuse the state of a sampler with other settings; a setting of None is not known yet.

    Raises:
        ValueError: A setting differs, or `theirs` holds no settings.
    """
    if not isinstance(theirs, dict) or set(theirs) != set(ours):
        raise ValueError(
            f"expected what a state was made for, {ours}, got {shown(theirs)}; {_CURE}"
        )
    for name, value in ours.items():
        other = theirs[name]
        if None not in (value, other) and (type(other) is not type(value) or other != value):
            raise ValueError(
                f"expected the state of a sampler with {name}={value!r}, got that of one with "
                f"{name}={shown(other)}; make both samplers with the same arguments"
            )


def load_generator(generator: torch.Generator, state: object) -> None:
    """Set the state of a generator.

    Raises:
        ValueError: It is no state of a generator.
    """
    try:
        generator.set_state(state)  # type: ignore[arg-type]
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"expected the state of a generator: {error}; {_CURE}") from error


def as_tensor(selection: Selection) -> Tensor:
    """Return a selection as uint8 (n,), which `torch.load` reads with `weights_only=True`."""
    saved = _SAVED.get(selection)
    if saved is None:
        saved = torch.frombuffer(bytearray(selection.to_bytes()), dtype=torch.uint8)
        _SAVED[selection] = saved
    return saved


def from_tensor(saved: object) -> Selection:
    """Return the selection that `as_tensor` turned into a tensor.

    Raises:
        ValueError: It is no selection, or a damaged one.
    """
    if not isinstance(saved, Tensor) or saved.dtype != torch.uint8 or saved.ndim != 1:
        raise ValueError(
            "expected a selection as a uint8 tensor of its bytes, got "
            f"{type(saved).__name__}; {_CURE}"
        )
    selection = Selection.from_bytes(saved.cpu().numpy().tobytes())
    _SAVED[selection] = saved
    return selection


# Loaders with workers ask for the state at every batch.
_SAVED: WeakKeyDictionary[Selection, Tensor] = WeakKeyDictionary()


def _next_chunk(running: Running) -> list[int]:
    order = running.order
    at_once = max(1, _CHUNK // order.split.num_replicas)
    count = min(at_once, len(order) - running.position)
    indices: list[int] = order.take(running.position, count).tolist()
    return indices
