"""The order of one epoch: shuffled, repeated to a length, and split over ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch.checks import whole_number

_VALUES = 2**62  # a number below it names a repetition, and is itself a seed


@dataclass(frozen=True)
class Split:
    """One rank's share of an epoch: places rank, rank + num_replicas, ... of its order.

    All ranks get equally many: the order is padded from its start, or with `drop_last` cut.

    Raises:
        TypeError: An argument is no number.
        ValueError: There is no such rank.
    """

    num_replicas: int = 1
    rank: int = 0
    drop_last: bool = False

    def __post_init__(self) -> None:
        whole_number("num_replicas", self.num_replicas, least=1)
        if whole_number("rank", self.rank) >= self.num_replicas:
            raise ValueError(
                f"expected a rank below num_replicas={self.num_replicas}, got {self.rank}; count "
                "ranks from 0"
            )

    @classmethod
    def given(cls, num_replicas: int | None, rank: int | None, drop_last: bool) -> Split | None:
        """Return the split that both numbers name; None where both are None.

        Raises:
            ValueError: One is given without the other, or there is no such rank.
        """
        if num_replicas is None and rank is None:
            return None
        if num_replicas is None or rank is None:
            raise ValueError(
                f"expected num_replicas and rank, or neither, got {num_replicas} and {rank}; give "
                "both"
            )
        return cls(num_replicas, rank, drop_last)

    def share(self, total: int) -> int:
        """Return how many of `total` places each rank gets."""
        return total // self.num_replicas if self.drop_last else -(-total // self.num_replicas)


class EpochOrder:
    """The indices of one epoch, in order, for one rank.

    Args:
        kept: int64 (k,), the epoch's examples; None for all of `0..size`.
        size: k, or N.
        length: Places in the epoch before the split. Beyond `size`, the examples repeat, each time
            in another order.
        seed: Names the order, together with `epoch`.
        epoch: From 0 on.
        shuffle: False for the order of `kept`.
        split: Which places belong to this rank.

    Cost:
        O(1) memory beside `kept`; O(1) time per place (of all ranks).

    Example:
        >>> import numpy as np
        >>> from sage_torch.sampler.epoch_order import EpochOrder, Split
        >>> kept = np.array([2, 3, 5])
        >>> order = EpochOrder(
        ...     kept, size=3, length=5, seed=0, epoch=0, shuffle=False, split=Split(2, 1)
        ... )
        >>> order.take(0, len(order)).tolist()
        [3, 2, 2]
    """

    def __init__(
        self,
        kept: NDArray[np.int64] | None,
        *,
        size: int,
        length: int,
        seed: int,
        epoch: int,
        shuffle: bool,
        split: Split,
    ) -> None:
        self.seed, self.epoch, self.split = seed, epoch, split
        self._kept, self._size, self._length, self._shuffle = kept, size, length, shuffle

    def __len__(self) -> int:
        return self.split.share(self._length)

    def take(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the indices at this rank's places `start` to `start + count`."""
        step, rank = self.split.num_replicas, self.split.rank
        first = start * step + rank
        return self._of_all_ranks(first, first + (count - 1) * step + 1)[::step]

    def _of_all_ranks(self, first: int, last: int) -> NDArray[np.int64]:
        parts = []
        while first < last:
            place = first % self._length  # beyond the end: padding, from the start
            repetition, within = divmod(place, self._size)
            count = min(last - first, self._size - within, self._length - place)
            parts.append(self._of_repetition(repetition, within, count))
            first += count
        return np.concatenate(parts)

    def _of_repetition(self, repetition: int, start: int, count: int) -> NDArray[np.int64]:
        if self._shuffle:
            seed = self.seed
            if repetition:
                names = _core.Permutation(_VALUES, self.seed, self.epoch)
                seed = int(names.take(repetition, 1)[0])
            places = _core.Permutation(self._size, seed, self.epoch).take(start, count)
        else:
            places = np.arange(start, start + count)
        return places if self._kept is None else self._kept[places]
