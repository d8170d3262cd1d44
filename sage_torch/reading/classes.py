"""Learns the class of each example while the data is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK = 8_192


class Classes:
    """Labels and their class ids, numbered in order of appearance.

    Args:
        wanted: `"auto"`: balance classes if the data has them; True: it must; False: never.

    Attributes:
        has_labels: Whether batches have integer labels; None before the first batch.
    """

    def __init__(self, wanted: bool | str) -> None:
        self._wanted = wanted
        self._positions: dict[int, int] = {}  # label -> class id, in order of appearance
        self.has_labels: bool | None = None

    @classmethod
    def known(cls, wanted: bool | str, values: Any, has_labels: Any) -> Classes:
        """Return classes whose labels are numbered already, as `values().tolist()` gave them.

        Raises:
            ValueError: They are not distinct whole numbers.
        """
        is_numbers = isinstance(values, list) and all(type(value) is int for value in values)
        if not is_numbers or len(set(values)) < len(values):
            raise ValueError(f"expected different labels in the order they came, got {values}")
        if has_labels not in (None, True, False):
            raise ValueError(f"expected has_labels True, False or None, got {has_labels!r}")
        classes = cls(wanted)
        classes._positions = {value: place for place, value in enumerate(values)}
        classes.has_labels = has_labels
        return classes

    @property
    def is_balanced(self) -> bool:
        """Whether the rules choose within each class."""
        return bool(self.has_labels) and self._wanted is not False

    @property
    def count(self) -> int:
        """How many classes the rules see."""
        return len(self._positions) if self.is_balanced else 1

    def values(self) -> NDArray[np.int64]:
        """Return the label of each class id (C,)."""
        return np.fromiter(self._positions, np.int64, len(self._positions))

    def ids_of(self, labels: Tensor | None, n: int) -> NDArray[np.int32]:
        """Number the labels of a batch; return its class ids (n,), all 0 without classes.

        Raises:
            ValueError: Labels are missing although they are wanted, or other batches have them.
        """
        self._expect_labels(labels is not None)
        if labels is None or self._wanted is False:
            return np.zeros(n, np.int32)
        return self._number(labels)

    def _number(self, labels: Tensor) -> NDArray[np.int32]:
        """Return the id of each label, even if the rules see one class."""
        values, inverse = np.unique(labels.to(torch.int64).numpy(), return_inverse=True)
        return self._ids_of_values(values)[inverse]

    def _ids_of_values(self, values: NDArray[np.int64]) -> NDArray[np.int32]:
        positions = self._positions
        return np.array(
            [positions.setdefault(value, len(positions)) for value in values.tolist()], np.int32
        )

    def _expect_labels(self, are_there: bool) -> None:
        if self.has_labels is None:
            if self._wanted is True and not are_there:
                raise ValueError(
                    "expected integer class labels for class_balanced=True, but batches have "
                    "none: give (inputs, labels) batches with labels of shape (n,) and an integer "
                    'dtype (a dict needs "labels"), or pass class_balanced=False'
                )
            self.has_labels = are_there
        if self.has_labels != are_there:
            raise ValueError("expected every batch to have integer labels, or none to")


class ClassBook(Classes):
    """The class of each of N examples: 4 bytes per example.

    Args:
        total: Number of examples N.
        wanted: As in `Classes`.
    """

    def __init__(self, total: int, wanted: bool | str) -> None:
        super().__init__(wanted)
        self._ids: NDArray[np.int32] | None = None
        self._total = total

    def add(self, indices: NDArray[np.int64], labels: Tensor | None) -> NDArray[np.int32]:
        """Note a batch's labels and return its class ids (n,), all 0 without classes."""
        self._expect_labels(labels is not None)
        if labels is not None:
            self._all_ids()[indices] = self._number(labels)
        return self.of(indices)

    def adopt(
        self, indices: NDArray[np.int64] | slice, part: dict[str, NDArray[Any]]
    ) -> NDArray[np.int32]:
        """Copy the classes of some examples from another book; return its ids as numbered here.

        Args:
            indices: The examples.
            part: The other book's `part(indices)`.

        Returns:
            int32 (C,): for each class id there, the id here.

        Raises:
            ValueError: The part is damaged, or only one of the books has labels.
        """
        values, ids = part["values"], part["ids"]
        fits = values.dtype == np.int64 and ids.dtype == np.int32 and values.ndim == ids.ndim == 1
        if not fits:
            kinds = f"{values.dtype} and {ids.dtype}"
            raise ValueError(f"expected int64 values and int32 ids, got {kinds}")
        if len(values) and not ((ids >= 0) & (ids < len(values))).all():
            raise ValueError(f"expected class ids in [0, {len(values)})")
        self._expect_labels(len(values) > 0)
        if not len(values):
            return np.zeros(1, np.int32)
        here = self._ids_of_values(values)
        self._all_ids()[indices] = here[ids]
        return here if self.is_balanced else np.zeros(1, np.int32)

    def part(self, indices: NDArray[np.int64] | slice) -> dict[str, NDArray[Any]]:
        """Return `values` int64 (C,), the label of each id, and `ids` int32 (n,) of examples."""
        if self._ids is None:
            return {"values": np.empty(0, np.int64), "ids": self._zeros(indices)}
        return {"values": self.values(), "ids": self._ids[indices]}

    def check(self, indices: NDArray[np.int64], labels: Tensor | None) -> NDArray[np.int32]:
        """Compare labels with those of pass 1; return the class ids (n,) again.

        Raises:
            ValueError: A label has changed.
        """
        if (labels is not None) != self.has_labels:
            raise ValueError(
                "expected integer labels in both passes or in neither; do not change the data set "
                "during a selection"
            )
        if labels is not None:
            before, now = self.labels_of(indices), labels.to(torch.int64).numpy()
            if not np.array_equal(before, now):
                at = int(indices[np.flatnonzero(before != now)[0]])
                raise ValueError(
                    f"expected example {at} to keep its label between the passes; do not change "
                    "the data set during a selection"
                )
        return self.of(indices)

    def of(self, indices: NDArray[np.int64] | slice) -> NDArray[np.int32]:
        """Return the class ids of some examples, as the rules use them."""
        if self._ids is None or not self.is_balanced:
            return self._zeros(indices)
        return self._ids[indices]

    def sizes(self, places: slice = slice(None)) -> NDArray[np.int64]:
        """Return the number of examples in each class (C,), among all or some places."""
        return np.bincount(self.of(places), minlength=self.count)

    def finish(self) -> NDArray[np.int64]:
        """Renumber classes by ascending label; return the old id of each new one."""
        values = self.values()
        order = np.argsort(values)
        if self._ids is not None:
            rank = np.empty(len(order), np.int32)
            rank[order] = np.arange(len(order), dtype=np.int32)
            for start in range(0, self._total, _CHUNK):
                part = slice(start, start + _CHUNK)
                self._ids[part] = rank[self._ids[part]]
            self._positions = {int(values[old]): new for new, old in enumerate(order)}
        return order if self.is_balanced else np.zeros(1, np.int64)

    def labels(self) -> NDArray[np.int64] | None:
        """Return the labels of all examples (N,); None if they have none."""
        return self.labels_of(slice(None)) if self.has_labels else None

    def labels_of(self, indices: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """Return the labels of some examples, as the data set has them."""
        return self.values()[self._all_ids()[indices]]

    def _zeros(self, indices: NDArray[np.int64] | slice) -> NDArray[np.int32]:
        count = len(range(self._total)[indices] if isinstance(indices, slice) else indices)
        return np.zeros(count, np.int32)

    def _all_ids(self) -> NDArray[np.int32]:
        if self._ids is None:
            self._ids = np.zeros(self._total, np.int32)
        return self._ids
