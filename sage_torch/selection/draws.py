"""Draws: a new subset of the untrimmed examples for each epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch.checks import truth, whole_number
from sage_torch.selection import inclusion

_VALUES = 2**62  # drawn numbers are below, so that each fits an int64 and can be a seed


@dataclass(frozen=True, eq=False)
class Draws:
    """A subset of the examples per epoch: exactly k, by class quotas, without repeats.

    `"rotate"` goes through each class in turns. A turn orders all n examples of a class, and each
    epoch takes the next q. After any number of epochs, the numbers of times that two examples of a
    class have been seen differ by at most one. Every measured window of a herded order represents
    its class better than random draws of its size; not all do so as well as the first window.
    `"random"` draws without replacement within an epoch, and independently in each epoch.

    Where it is known what is hard and what is wrong, `"rotate"` shows each example as often as that
    says instead (see `sage_torch/selection/inclusion.py`).

    Attributes:
        draw: `"rotate"` or `"random"`.
        order: int64 (M,), the untrimmed examples: class by class, block by block, each block in
            its herding order.
        starts: int64 (B + 1,), the start of each block in `order`, then M.
        classes: int64 (B,), the class id of each block, ascending.
        quotas: int64 (C,), the number of examples of each class in an epoch; they sum to k.
        seed: Seed of the turns and the draws.
        is_herded: False for `rule="random"`; every turn is then a seeded permutation of each class.
        hard: float32 (M,) in [0, 1], beside `order`: how unlikely the label of each example is;
            None where all untrimmed examples count the same.
        right: float32 (M,) in [0, 1], beside `order`: the probability that the label is right.
        exponent: Of `hard`, at epoch 0; it falls to 0.

    Raises:
        TypeError: The seed is not a whole number, or `is_herded` neither True nor False.
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
    hard: NDArray[np.float32] | None = None
    right: NDArray[np.float32] | None = None
    exponent: float = 0.0

    def __post_init__(self) -> None:
        if self.draw not in ("rotate", "random"):
            raise ValueError(f'expected draw to be one of "rotate", "random", got {self.draw!r}')
        truth("is_herded", self.is_herded)
        object.__setattr__(self, "seed", whole_number("seed", self.seed))
        self._check_arrays()
        self._protect()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._protect()  # NumPy's read-only flag does not survive pickling and copying

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the examples of an epoch, a function of the epoch, the seed and the arrays only.

        Args:
            epoch: The epoch, from 0; epochs can be drawn in any order.

        Returns:
            int64 (k,), ascending, without repeats, `quotas[c]` of each class c.

        Raises:
            TypeError: The epoch is not a whole number.
            ValueError: The epoch is below 0 or not below 2**63.

        Cost:
            O(M log M) for `"rotate"`, O(k log k) for `"random"`, both O(M) memory.
        """
        epoch = whole_number("epoch", epoch)
        parts = [self._of_class(int(c), epoch) for c in np.flatnonzero(self.quotas)]
        return np.sort(np.concatenate(parts))

    def _of_class(self, class_id: int, epoch: int) -> NDArray[np.int64]:
        first, last = np.searchsorted(self.classes, [class_id, class_id + 1])
        starts = self.starts[first : last + 1]
        if self.hard is not None and self.right is not None:
            return self._by_worth(class_id, slice(int(starts[0]), int(starts[-1])), epoch)
        turns = _Turns(
            sizes=np.diff(starts),
            seed=int(_core.Permutation(_VALUES, self.seed, class_id).take(0, 1)[0]),
            is_herded=self.is_herded,
        )
        members, quota = self.order[starts[0] : starts[-1]], int(self.quotas[class_id])
        if self.draw == "random":
            return members[_core.Permutation(len(members), turns.seed, epoch).take(0, quota)]
        return members[turns.epoch(epoch, quota)]

    def _by_worth(self, class_id: int, part: slice, epoch: int) -> NDArray[np.int64]:
        assert self.hard is not None
        assert self.right is not None
        quota, passed = int(self.quotas[class_id]), epoch * int(self.quotas.sum()) / len(self.order)
        worth = inclusion.masses(self.hard[part], self.right[part], self.exponent, passed)
        places = _core.Permutation(len(worth), self.seed, class_id).take(0, len(worth))
        chosen = inclusion.drawn(inclusion.probabilities(worth, quota), places, epoch, quota)
        return self.order[part][chosen]

    def _check_arrays(self) -> None:
        arrays: dict[str, NDArray[Any]]
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
            and (starts[1:] >= starts[:-1]).all()  # differences could overflow
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
        self._check_worth()

    def _check_worth(self) -> None:
        known = [each for each in (self.hard, self.right) if each is not None]
        fits = len(known) in (0, 2) and all(
            each.dtype == np.float32
            and each.shape == self.order.shape
            and ((each >= 0) & (each <= 1)).all()  # nor NaN
            for each in known
        )
        is_number = isinstance(self.exponent, (int, float)) and 0 <= self.exponent <= 1
        if not fits or not is_number or (known and self.draw != "rotate"):
            raise ValueError(
                'expected hard and right to be float32 (M,) within [0, 1], for draw="rotate", or '
                f"neither, and an exponent within [0, 1], got {self.exponent}"
            )

    def _protect(self) -> None:
        for array in (self.order, self.starts, self.classes, self.quotas, self.hard, self.right):
            if array is not None:
                array.setflags(write=False)


@dataclass(frozen=True)
class _Turns:
    """The endless sequence of orders of one class, as places in `0..n`.

    `sizes` are those of the blocks of the class, (B,); `seed` is the seed of its turns.
    """

    sizes: NDArray[np.int64]
    seed: int
    is_herded: bool

    def epoch(self, epoch: int, quota: int) -> NDArray[np.int64]:
        """Return the places that an epoch takes: `quota` of n, at least 1."""
        n = int(self.sizes.sum())
        if 2 * quota <= n:
            return self._window(epoch, quota, from_end=False)
        # More than half: the examples left out rotate instead, from the end of the turn. The counts
        # are then as even. A window of at most n/2 only has to avoid repeats of one earlier turn;
        # larger windows would have to look back through all of them.
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
        """Return the order (n,) in which windows take the examples of a turn.

        A window that began in the turn before does not take its own examples again: they wait until
        it is full. Only the first `width` places can change. The tail, which the next turn looks
        at, has fewer than `width` places and stays as ordered, because 2 width <= n.
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
        """Shift the herding order of each block cyclically, and merge the blocks in proportion.

        For features of finite dimension, herded with replacement, running sums stay within a bound
        of multiples of their mean. The mean of any window is then within O(1 / window) of that of
        the block. Neither condition holds here (an RBF kernel, each example once). Measurements in
        tests/unit/test_draws_over_epochs.py show that windows are nearer than random draws.
        """
        sizes, blocks = self.sizes, len(self.sizes)
        values = _core.Permutation(_VALUES, self.seed, turn).take(0, 2 * blocks)
        # Turn 0 starts at the start of the herding. For a class that is a single block, epoch 0 is
        # therefore the fixed subset. A larger class differs: a whole order has smaller blocks.
        shifts = values[:blocks] % np.maximum(sizes, 1) if turn else np.zeros(blocks, np.int64)
        jitters = values[blocks:] / _VALUES
        begins = np.cumsum(sizes) - sizes
        place = np.arange(sizes.sum()) - np.repeat(begins + shifts, sizes)  # (n,), within block
        size = np.repeat(sizes, sizes)
        return np.argsort((place % size + np.repeat(jitters, sizes)) / size, kind="stable")
