"""The ranks that select together, and how they exchange results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from textwrap import shorten
from typing import Any, TypeVar
from weakref import ReferenceType, WeakKeyDictionary, ref

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from sage_torch._core import SageError

_T = TypeVar("_T")
# Ranks wait for each other's passes. A dead rank is noticed at once, since its connection closes.
_PATIENCE = timedelta(days=1)
# Our group beside each default group. References are weak: else a destroyed group would live until
# the interpreter ends, and gloo sometimes aborts the process then.
_side_groups: WeakKeyDictionary[Any, ReferenceType[Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Ranks:
    """The processes of a job, as this one sees them.

    They communicate through the CPU, over a gloo group of their own beside the default one. So your
    collectives are not disturbed, NCCL streams included. Objects are pickled, and travel only
    between processes of one job.

    Attributes:
        rank: The rank of this process.
        size: Number of processes; with 1, nothing below communicates.
    """

    rank: int = 0
    size: int = 1
    _world: Any = field(default=None, repr=False, compare=False)

    @property
    def is_group(self) -> bool:
        """Whether there is a process group, even of one process."""
        return self._world is not None

    def gather(self, value: _T) -> list[_T]:
        """Return every rank's value, by rank, on every rank.

        Raises:
            SageError: A rank is gone, or did not answer within the group's timeout.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        self._communicate(lambda group: dist.all_gather_object(values, value, group=group))
        return values

    def joined_all(self, own: Iterable[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return arrays that hold those of all ranks, rank after rank, on every rank.

        Args:
            own: This rank's arrays; all ranks give as many.

        Raises:
            SageError: As `gather`.
        """
        if self.size == 1:
            return list(own)
        return [np.concatenate(self.gather(each)) for each in own]

    def broadcast(self, value: _T) -> _T:
        """Return rank 0's value on every rank.

        Raises:
            SageError: As `gather`.
        """
        if self.size == 1:
            return value
        values: list[Any] = [value]
        self._communicate(lambda group: dist.broadcast_object_list(values, src=0, group=group))
        received: _T = values[0]
        return received

    def send(self, value: object, to: int) -> None:
        """Send a value to another rank, which must call `receive`.

        Raises:
            SageError: As `gather`.
        """
        self._communicate(lambda group: dist.send_object_list([value], dst=to, group=group))

    def receive(self, source: int) -> Any:
        """Return the value that another rank sends.

        Raises:
            SageError: As `gather`.
        """
        values: list[Any] = [None]
        self._communicate(lambda group: dist.recv_object_list(values, src=source, group=group))
        return values[0]

    def together(self, work: Callable[[], _T]) -> _T:
        """Do this rank's own work; if it fails on one rank, raise on all ranks.

        Raises:
            SageError: Another rank failed; the message says which one and why.
            BaseException: The work raised it on this rank.
        """
        if self.size == 1:
            return work()
        try:
            result = work()
        except BaseException as error:
            self.gather(f"{type(error).__name__}: {error}")
            raise
        told = enumerate(self.gather(""))
        failures = [f"rank {rank}: {shorten(words, 150)}" for rank, words in told if words]
        if failures:
            raise SageError(
                f"expected every rank to select, but {len(failures)} of {self.size} failed, and a "
                f"selection needs all; correct {'; '.join(failures[:2])}"
            )
        return result

    def share_buffers(self, model: nn.Module) -> None:
        """Copy rank 0's buffers to a model, as DistributedDataParallel does before a forward pass.

        Running statistics differ between ranks after a step, since each rank has seen its own
        batch. The caller restores them (`user_state.preserved`).
        """
        if self.size == 1:
            return
        own = list(model.buffers())
        with torch.no_grad():
            for buffer, first in zip(own, self.broadcast([b.cpu() for b in own]), strict=False):
                if buffer.shape == first.shape:  # else another model: its fingerprint will tell
                    buffer.copy_(first)

    def _communicate(self, call: Callable[[Any], object]) -> None:
        try:
            call(self._group())
        except RuntimeError as error:  # gloo: connection closed, or the timeout
            raise SageError(
                f"rank {self.rank} of {self.size} lost another rank during a selection (all must "
                f"call it together, or pass distributed=False): {error}"
            ) from error

    def _group(self) -> Any:
        # The first communication makes it, on all ranks together; reading rank or size does not.
        known = _side_groups.get(self._world)
        group = None if known is None else known()
        if group is None:
            group = dist.new_group(backend="gloo", timeout=_PATIENCE)
            _side_groups[self._world] = ref(group)
        return group


def ranks(distributed: bool = True) -> Ranks:
    """Return the ranks of the default process group, or this process alone if there is none.

    Args:
        distributed: False for this process alone, even in a process group.
    """
    if not (distributed and dist.is_available() and dist.is_initialized()):
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
