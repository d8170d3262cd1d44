"""Draws: what each epoch sees of the untrimmed examples, a new subset every time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch.checks import whole_number

_VALUES = 2**62  # numbers drawn lie below: each fits an int64, and is a seed in its turn


@dataclass(frozen=True, eq=False)
class Draws:
    """What each epoch sees of the untrimmed examples: exactly k, by class quotas, no repeats.

    `"rotate"` goes through each class in turns. A turn orders all n of a class, and each epoch
    takes the next q: whatever the number of epochs so far, two examples of a class have been seen
    equally often, or one of them once more. Of a herded order, every window that was measured
    represents its class better than random draws of its size do, though not all as well as the
    head.
    `"random"` draws each epoch afresh, without replacement within the epoch only.

    Attributes:
        draw: `"rotate"` or `"random"`.
        order: int64 (M,), the untrimmed examples: class by class, block by block, each block in
            its herding order.
        starts: int64 (B + 1,), where each block begins in `order`, and M.
        classes: int64 (B,), the class id of each block, ascending.
        quotas: int64 (C,), how many of each class an epoch takes; they sum to k.
        seed: Names the turns and the draws.
        is_herded: False for `rule="random"`: every turn is then a seeded permutation of each class.

    Raises:
        TypeError: The seed is no whole number.
        ValueError: The arrays do not fit together, as in a damaged file.

    Reference:
        Chen, Welling and Smola, "Super-Samples from Kernel Herding", UAI 2010; random turns and
        draws: Okanovic et al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy of
        Learning", ICLR 2024.

    Example:
        >>> import numpy as np
        >>> from sage_torch.selection.draws import Draws
        >>> whole = np.array([0, 6]), np.array([0]), np.array([3])
        >>> draws = Draws("rotate", np.array([4, 1, 5, 0, 3, 2]), *whole, seed=0, is_herded=True)
        >>> draws.epoch(0).tolist(), draws.epoch(1).tolist()
        ([1, 4, 5], [0, 2, 3])
    """

    draw: Literal["rotate", "random"]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    classes: NDArray[np.int64]
    quotas: NDArray[np.int64]
    seed: int
    is_herded: bool

    def __post_init__(self) -> None:
        if self.draw not in ("rotate", "random"):
            raise ValueError(f'expected draw to be one of "rotate", "random", got {self.draw!r}')
        object.__setattr__(self, "seed", whole_number("seed", self.seed))
        self._check_arrays()
        self._protect()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._protect()  # NumPy's read-only flag does not survive pickling and copying

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the examples of an epoch: a function of it, the seed and the arrays alone.

        Args:
            epoch: From 0 on, in any order.

        Returns:
            int64 (k,), ascending, no repeats, `quotas[c]` of each class.

        Raises:
            TypeError: It is no whole number.
            ValueError: It is below 0 or not below 2**63.

        Cost:
            O(M log M) for `"rotate"`, O(k log k) for `"random"`, both O(M) memory.
        """
        epoch = whole_number("epoch", epoch)
        parts = [self._of_class(int(c), epoch) for c in np.flatnonzero(self.quotas)]
        return np.sort(np.concatenate(parts))

    def _of_class(self, class_id: int, epoch: int) -> NDArray[np.int64]:
        first, last = np.searchsorted(self.classes, [class_id, class_id + 1])
        starts = self.starts[first : last + 1]
        turns = _Turns(
            sizes=np.diff(starts),
            seed=int(_core.Permutation(_VALUES, self.seed, class_id).take(0, 1)[0]),
            is_herded=self.is_herded,
        )
        members, quota = self.order[starts[0] : starts[-1]], int(self.quotas[class_id])
        if self.draw == "random":
            return members[_core.Permutation(len(members), turns.seed, epoch).take(0, quota)]
        return members[turns.epoch(epoch, quota)]

    def _check_arrays(self) -> None:
        arrays = {name: getattr(self, name) for name in ("order", "starts", "classes", "quotas")}
        for name, array in arrays.items():
            if array.dtype != np.int64 or array.ndim != 1:
                raise ValueError(
                    f"expected {name} to be int64 with one axis, got {array.dtype} "
                    f"{tuple(array.shape)}"
                )
        order, starts, classes, quotas = arrays.values()
        is_partition = (
            len(starts) == len(classes) + 1
            and starts[0] == 0
            and starts[-1] == len(order)
            and (np.diff(starts) >= 0).all()
        )
        if not is_partition:
            raise ValueError(
                f"expected starts from 0 up to {len(order)} (all of order), one for each of "
                f"{len(classes)} blocks and one more; got {len(starts)}: {starts}"
            )
        is_ascending = (np.diff(classes) >= 0).all() and (classes >= 0).all()
        if not is_ascending or (len(classes) and classes[-1] >= len(quotas)):
            raise ValueError(f"expected ascending class ids in [0, {len(quotas)}), got {classes}")
        sizes = np.zeros(len(quotas), np.int64)
        np.add.at(sizes, classes, np.diff(starts))
        if (quotas < 0).any() or (quotas > sizes).any() or not quotas.any():
            raise ValueError(
                f"expected quotas of at most {sizes} (the untrimmed of each class), at least one "
                f"example in all, got {quotas}"
            )
        if (order < 0).any() or not np.diff(np.sort(order)).all():
            raise ValueError("expected each index in order once and at least 0")

    def _protect(self) -> None:
        for array in (self.order, self.starts, self.classes, self.quotas):
            array.setflags(write=False)


@dataclass(frozen=True)
class _Turns:
    """The endless sequence of orders of one class, as places in `0..n`.

    `sizes` are those of its blocks, (B,); `seed` names the turns of this class.
    """

    sizes: NDArray[np.int64]
    seed: int
    is_herded: bool

    def epoch(self, epoch: int, quota: int) -> NDArray[np.int64]:
        """Return the places that an epoch takes, `quota` of n, at least 1."""
        n = int(self.sizes.sum())
        if 2 * quota <= n:
            return self._window(epoch, quota, from_end=False)
        # More than half: what stays out goes round instead, from the end of the turn. The counts
        # are as even, since all are equal less what was left out; a window of at most n/2 knows
        # what it must not repeat without going back through all the turns before.
        is_taken = np.ones(n, bool)
        if quota < n:
            is_taken[self._window(epoch, n - quota, from_end=True)] = False
        return np.flatnonzero(is_taken)

    def _window(self, epoch: int, width: int, *, from_end: bool) -> NDArray[np.int64]:
        n = int(self.sizes.sum())
        turn, place = divmod(epoch * width, n)
        window = self._taken(turn, width, from_end=from_end)[place : place + width]
        missing = width - len(window)
        if missing == 0:
            return window
        rest = self._taken(turn + 1, width, from_end=from_end)[:missing]
        return np.concatenate([window, rest])

    def _taken(self, turn: int, width: int, *, from_end: bool) -> NDArray[np.int64]:
        """Return the order (n,) in which windows take a turn.

        The window that comes over from the turn before takes none of its own again: those wait
        until it is full. Nobody's tail is touched by that: at most `width` places are looked
        through at the head, fewer than `width` are a tail, and 2 width <= n.
        """
        order = self._ordered(turn, from_end=from_end)
        n = len(order)
        brought = turn * n % width
        if brought == 0:
            return order
        is_repeat = np.zeros(n, bool)
        is_repeat[self._ordered(turn - 1, from_end=from_end)[n - brought :]] = True
        head = np.flatnonzero(~is_repeat[order])[: width - brought]
        return np.concatenate([order[head], np.delete(order, head)])

    def _ordered(self, turn: int, *, from_end: bool) -> NDArray[np.int64]:
        order = self._herded(turn) if self.is_herded else self._shuffled(turn)
        return order[::-1] if from_end else order

    def _shuffled(self, turn: int) -> NDArray[np.int64]:
        n = int(self.sizes.sum())
        return _core.Permutation(n, self.seed, turn).take(0, n)

    def _herded(self, turn: int) -> NDArray[np.int64]:
        """Shift each block's herding order cyclically and merge the blocks in proportion.

        Where features are of finite dimension and herded with replacement, running sums stay
        within a bound of their mean's multiples, so that the mean of any window is within
        O(1 / window) of the block's. Neither holds here (an RBF kernel, each example once): that
        windows are nearer than random draws is measured, in tests/unit/test_draws_over_epochs.py.
        """
        sizes, blocks = self.sizes, len(self.sizes)
        values = _core.Permutation(_VALUES, self.seed, turn).take(0, 2 * blocks)
        # Turn 0 begins where herding began. Epoch 0 is the fixed subset of a class that is one
        # block in both, not of a larger one: blocks of a whole order are smaller than of a subset.
        shifts = values[:blocks] % np.maximum(sizes, 1) if turn else np.zeros(blocks, np.int64)
        jitters = values[blocks:] / _VALUES
        begins = np.cumsum(sizes) - sizes
        place = np.arange(sizes.sum()) - np.repeat(begins + shifts, sizes)  # (n,), within block
        size = np.repeat(sizes, sizes)
        return np.argsort((place % size + np.repeat(jitters, sizes)) / size, kind="stable")
