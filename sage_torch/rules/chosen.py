"""What a rule is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sage_torch.options import Options
from sage_torch.passes.calibration import Judged
from sage_torch.passes.mode import Mode
from sage_torch.passes.scoring import Scored, ScoredBatch
from sage_torch.reading.ranks import Ranks
from sage_torch.reading.shards import Shard
from sage_torch.selection.draws import Draws


class Task(Protocol):
    """What rules need of a job: all but the model and the data."""

    @property
    def options(self) -> Options:
        """The caller's options."""

    @property
    def mode(self) -> Mode:
        """How examples are scored."""

    @property
    def ranks(self) -> Ranks:
        """The ranks that share the work."""

    @property
    def shards(self) -> list[Shard]:
        """All shards."""

    @property
    def own(self) -> Sequence[Shard]:
        """Those of this rank."""


@dataclass(frozen=True)
class Chosen:
    """The subset that a rule has chosen."""

    indices: NDArray[np.int64]  # (k,) ascending
    trimmed: int  # examples that the trim dropped
    draws: Draws | None = None  # None for draw="fixed"
    settings: dict[str, Any] = field(default_factory=dict)  # what the trim went by
    judged: Judged | None = None  # what is known of the labels, if by more than this reading
    ranks: NDArray[np.int64] | None = None  # (k,) when each was chosen; None where none is first

    @classmethod
    def in_order(
        cls, order: NDArray[np.int64], trimmed: int, *, settings: dict[str, Any]
    ) -> Chosen:
        """Return examples that were chosen one after another.

        Args:
            order: int64 (k,), the first choice first.
            trimmed: As above.
            settings: As above.
        """
        return cls(
            np.sort(order),
            trimmed,
            settings=settings,
            ranks=np.argsort(order, kind="stable"),
        )


class Rule(Protocol):
    """Turns scores into a subset.

    It gets batches while they are scored (only herding in streaming mode uses them), and chooses
    when all scores are known. It gives every rank the same subset.
    """

    def take(self, batch: ScoredBatch) -> None:
        """Take a batch of this rank while streaming."""

    def finish(self, scored: Scored) -> Chosen:
        """Choose the subset.

        Raises:
            ValueError: The data set changed between the passes.
            SageError: Another rank failed.
        """
        ...
