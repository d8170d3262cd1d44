"""Shards: contiguous parts of a data set, sketched apart and merged in one fixed tree.

The subset depends on the number of shards and not on the number of processes: each shard is read,
sketched and scored by itself, and the results are joined in the order of the shards' numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from sage_torch.reading.ranks import Ranks

_T = TypeVar("_T")


@dataclass(frozen=True)
class Shard:
    """The examples `start` to `stop` of a data set."""

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def places(self) -> slice:
        """Where its examples stand in arrays of all examples."""
        return slice(self.start, self.stop)


def cut(total: int, count: int) -> list[Shard]:
    """Return shards of nearly equal size.

    Args:
        total: Number of examples N.
        count: Number of shards.

    Raises:
        ValueError: There are more shards than examples.
    """
    if count > total:
        raise ValueError(
            f"expected at most {total} shards, one an example, got shards={count}; pass fewer"
        )
    borders = [total * number // count for number in range(count + 1)]
    return [Shard(i, borders[i], borders[i + 1]) for i in range(count)]


def owner(number: int, count: int, ranks: Ranks) -> int:
    """Return the rank that reads shard `number` of `count`; a rank's shards are neighbours."""
    return number * ranks.size // count


def of_rank(shards: list[Shard], ranks: Ranks) -> list[Shard]:
    """Return the shards that this rank reads: neighbours, or none."""
    return [s for s in shards if owner(s.number, len(shards), ranks) == ranks.rank]


def places_of(neighbours: list[Shard]) -> slice:
    """Return where the examples of some neighbouring shards stand among all."""
    return slice(neighbours[0].start, neighbours[-1].stop) if neighbours else slice(0, 0)


class MergeTree(Generic[_T]):
    """Joins the shards' results, always in the same pairs: (0, 1), (2, 3), (0-1, 2-3), ...

    So rounding does not depend on which rank holds which shard.

    Args:
        shards: All shards.
        ranks: The ranks that share them.
        merge: `merge(first, second)` returns both joined; it may change the first.
    """

    def __init__(self, shards: list[Shard], ranks: Ranks, merge: Callable[[_T, _T], _T]) -> None:
        self._shards, self._ranks, self._merge = shards, ranks, merge
        self._complete: dict[tuple[int, int], _T] = {}  # key: first shard and width of a node
        self._width = 1
        while self._width < len(shards):
            self._width *= 2

    def build(self, make: Callable[[Shard], _T]) -> None:
        """Make the results of this rank's shards in order; merge all that needs no other rank.

        At most log2(shards) results wait at a time.
        """
        self._build_below(0, self._width, make)

    def join(self, send: Callable[[_T, int], object], receive: Callable[[int], _T]) -> _T | None:
        """Merge what the ranks have built; return the whole on rank 0, None on other ranks.

        Args:
            send: `send(part, rank)` sends a part to a rank.
            receive: `receive(rank)` returns the part that a rank sends.
        """
        return self._join_below(0, self._width, send, receive)

    def _owner(self, number: int) -> int:
        return owner(number, len(self._shards), self._ranks)

    def _is_of_one_rank(self, first: int, width: int) -> bool:
        last = min(first + width, len(self._shards)) - 1
        return self._owner(first) == self._owner(last)

    def _build_below(self, first: int, width: int, make: Callable[[Shard], _T]) -> None:
        if first >= len(self._shards):
            return
        if not self._is_of_one_rank(first, width):
            self._build_below(first, width // 2, make)
            self._build_below(first + width // 2, width // 2, make)
        elif self._owner(first) == self._ranks.rank:
            self._complete[first, width] = self._made(first, width, make)

    def _made(self, first: int, width: int, make: Callable[[Shard], _T]) -> _T:
        if width == 1:
            return make(self._shards[first])
        half = width // 2
        whole = self._made(first, half, make)
        if first + half < len(self._shards):
            whole = self._merge(whole, self._made(first + half, half, make))
        return whole

    def _join_below(
        self,
        first: int,
        width: int,
        send: Callable[[_T, int], object],
        receive: Callable[[int], _T],
    ) -> _T | None:
        if self._is_of_one_rank(first, width):
            return self._complete.pop((first, width), None)
        half = width // 2
        left = self._join_below(first, half, send, receive)
        if first + half >= len(self._shards):
            return left
        right = self._join_below(first + half, half, send, receive)
        mine, theirs = self._owner(first), self._owner(first + half)
        if self._ranks.rank == theirs != mine:
            assert right is not None
            send(right, mine)
        elif self._ranks.rank == mine:
            assert left is not None
            other = right if mine == theirs else receive(theirs)
            assert other is not None
            left = self._merge(left, other)
        return left
