"""Which epochs see all examples, which begin with a selection, and how long each epoch is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sage_torch.checks import whole_number

Refresh: TypeAlias = int | Callable[[int], bool] | None
Length: TypeAlias = Literal["subset", "fixed"]


@dataclass(frozen=True)
class Schedule:
    """Decides what happens at the start of each epoch.

    Attributes:
        warmup_epochs: How many epochs, from 0 on, yield all examples.
        refresh_every: Epochs from one selection to the next, or a callable that is true for each
            epoch that selects, or None to select once.
        length: `"subset"`: an epoch after the warm-up has k indices; `"fixed"`: N, by repetition.

    Raises:
        TypeError: An attribute is of a wrong kind.
        ValueError: It is out of range.

    Example:
        >>> from sage_torch.sampler.schedule import Schedule
        >>> schedule = Schedule(warmup_epochs=1, refresh_every=3)
        >>> [epoch for epoch in range(8) if schedule.is_due(epoch, since=epoch - 1)]
        [1, 4, 7]
        >>> schedule.indices_in(0, 25, 100), schedule.indices_in(1, 25, 100)
        (100, 25)
    """

    warmup_epochs: int = 0
    refresh_every: Refresh = None
    length: Length = "subset"

    def __post_init__(self) -> None:
        warmup_epochs = whole_number("warmup_epochs", self.warmup_epochs)
        object.__setattr__(self, "warmup_epochs", warmup_epochs)
        if self.length not in ("subset", "fixed"):
            raise ValueError(f'expected length to be "subset" or "fixed", got {self.length!r}')
        every = self.refresh_every
        if every is None or callable(every):
            return
        wanted = "a whole number, a callable epoch -> bool or None"
        every = whole_number("refresh_every", every, least=1, wanted=wanted)
        object.__setattr__(self, "refresh_every", every)

    def is_warming_up(self, epoch: int) -> bool:
        """Return whether an epoch yields all examples."""
        return epoch < self.warmup_epochs

    def is_due(self, epoch: int, since: int) -> bool:
        """Return whether an epoch, after the warm-up, begins with another selection.

        A refresh in a skipped epoch is made up for; a callable is asked about this epoch only.

        Args:
            epoch: The coming epoch.
            since: The epoch that the last selection was made for.
        """
        every = self.refresh_every
        if isinstance(every, int):
            return since < epoch - (epoch - self.warmup_epochs) % every
        if since < self.warmup_epochs:
            return True
        return callable(every) and since < epoch and bool(every(epoch))

    def indices_in(self, epoch: int, k: int, total: int) -> int:
        """Return how many indices an epoch has, over all ranks."""
        return total if self.length == "fixed" or self.is_warming_up(epoch) else k
