"""Learns the class of each example while the data is read, and whether labels are classes at all.

Consensus, agreement and margin go by class wherever there are classes. Quotas and rules go by
group: the classes, or one group of all examples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_torch.reading.labels import CLASSES, KINDS, MISSING, NUMBERS, ONES, Certainty, kind_of

_CHUNK = 8_192
# After this many examples of a shard, labels that nearly all differ are given up: an index must not
# fill the memory before the end of the data shows that it is one.
EARLY = 4_096
_NEARLY_ALL = 0.9


class Classes:
    """Labels and their class ids, numbered in order of appearance.

    Args:
        wanted: `"auto"`: groups are classes if the data has them; True: it must; False: all
            examples are one group.
        certainty: Whether labels are classes, or their values decide.

    Attributes:
        kind: What the labels are: `CLASSES`, or why there are no classes; None before the first
            batch.
    """

    def __init__(self, wanted: bool | str, certainty: Certainty = "said") -> None:
        self._wanted, self._certainty = wanted, certainty
        self._positions: dict[int, int] = {}  # label -> class id, in order of appearance
        self.kind: int | None = None

    @classmethod
    def known(
        cls, wanted: bool | str, certainty: Certainty, values: Any, kind: int | None
    ) -> Classes:
        """Return classes whose labels are numbered already, as `values().tolist()` gave them.

        Raises:
            ValueError: They are not distinct whole numbers.
        """
        is_numbers = isinstance(values, list) and all(type(value) is int for value in values)
        if not is_numbers or len(set(values)) < len(values):
            raise ValueError(f"expected different labels in the order they came, got {values}")
        if kind is not None and kind not in KINDS:
            raise ValueError(f"expected a kind of labels or None, got {kind!r}")
        classes = cls(wanted, certainty)
        classes._positions = {value: place for place, value in enumerate(values)}
        classes.kind = kind
        return classes

    @property
    def are_classes(self) -> bool:
        """Whether examples have classes, as far as is known."""
        return self.kind == CLASSES

    @property
    def is_balanced(self) -> bool:
        """Whether the rules choose within each class."""
        return self.are_classes and self._wanted is not False

    @property
    def count(self) -> int:
        """How many classes the consensus sees; 1 without classes."""
        return len(self._positions) if self.are_classes else 1

    @property
    def group_count(self) -> int:
        """How many groups the rules see."""
        return self.count if self.is_balanced else 1

    def values(self) -> NDArray[np.int64]:
        """Return the label of each class id (C,)."""
        return np.fromiter(self._positions, np.int64, len(self._positions))

    def ids_of(self, labels: NDArray[Any] | None, n: int) -> NDArray[np.int32]:
        """Number the labels of a batch; return its class ids (n,), all 0 without classes.

        Raises:
            ValueError: Labels are missing although they are wanted, or other batches have them.
        """
        found = self._looked_at(labels)
        return np.zeros(n, np.int32) if found is None else self._number(found)

    def groups_of(self, class_ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the groups of examples of these classes."""
        return class_ids if self.is_balanced else np.zeros_like(class_ids)

    def doubt(self, different: int, seen: int) -> bool:
        """Give up labels if nearly all of those seen are different and nobody calls them classes.

        Args:
            different: Number of different labels.
            seen: Number of examples.

        Returns:
            Whether they were given up.
        """
        is_doubted = self._certainty == "guessed" and different > _NEARLY_ALL * seen
        if is_doubted:
            self._give_up(ONES)
        return is_doubted

    def _looked_at(self, labels: NDArray[Any] | None) -> NDArray[np.int64] | None:
        """Return labels as whole numbers; None if there are no classes."""
        kind = _kind_at_sight(labels)
        if self._wanted is True and kind != CLASSES:
            raise ValueError(
                "expected integer class labels for class_balanced=True, but batches have none: "
                "give (inputs, labels) batches with labels of shape (n,) and an integer dtype (a "
                'dict needs "labels"), say labels=, or pass class_balanced=False'
            )
        if self.kind is not None and (self.kind == MISSING) != (kind == MISSING):
            raise ValueError("expected every batch to have integer labels, or none to")
        if self.kind in (None, CLASSES) and kind != CLASSES:
            self._give_up(kind)
        self.kind = kind if self.kind is None else self.kind
        return labels.astype(np.int64) if labels is not None and self.are_classes else None

    def _number(self, labels: NDArray[np.int64]) -> NDArray[np.int32]:
        values, inverse = np.unique(labels, return_inverse=True)
        return self._ids_of_values(values)[inverse]

    def _ids_of_values(self, values: NDArray[np.int64]) -> NDArray[np.int32]:
        positions = self._positions
        return np.array(
            [positions.setdefault(value, len(positions)) for value in values.tolist()], np.int32
        )

    def _give_up(self, kind: int) -> None:
        """Note that there are no classes, and why."""
        self.kind, self._positions = kind, {}


class ClassBook(Classes):
    """The class of each of N examples: 4 bytes per example.

    Args:
        total: Number of examples N.
        wanted: As in `Classes`.
        certainty: As in `Classes`.
    """

    def __init__(self, total: int, wanted: bool | str, certainty: Certainty = "said") -> None:
        super().__init__(wanted, certainty)
        self._ids: NDArray[np.int32] | None = None
        self._total = total

    @property
    def why(self) -> str:
        """How many classes there are, in words, or why there are none."""
        return f"{self.count:,} classes" if self.are_classes else KINDS[self.kind or MISSING]

    def add(self, indices: NDArray[np.int64], labels: NDArray[Any] | None) -> NDArray[np.int32]:
        """Note a batch's labels and return its class ids (n,), all 0 without classes."""
        found = self._looked_at(labels)
        if found is not None:
            self._all_ids()[indices] = self._number(found)
        return self.of(indices)

    def look_early(self, first: NDArray[np.int64]) -> None:
        """Give up labels that nearly all differ among the first `EARLY` examples of a shard.

        Args:
            first: Their indices, int64 (EARLY,).
        """
        if self.are_classes:
            self.doubt(len(np.unique(self.of(first))), len(first))

    def adopt(
        self, indices: NDArray[np.int64] | slice, part: dict[str, NDArray[Any]]
    ) -> NDArray[np.int32]:
        """Copy the classes of some examples from another book; return its ids as numbered here.

        Args:
            indices: The examples.
            part: The other book's `part(indices)`.

        Returns:
            int32 (C,): for each class id there, the id here; (1,) without classes.

        Raises:
            ValueError: The part is damaged, or only one of the books has labels.
        """
        values, ids = part["values"], part["ids"]
        kind = int(part["kind"][0])
        fits = values.dtype == np.int64 and ids.dtype == np.int32 and values.ndim == ids.ndim == 1
        if not fits:
            kinds = f"{values.dtype} and {ids.dtype}"
            raise ValueError(f"expected int64 values and int32 ids, got {kinds}")
        if kind not in KINDS or (kind == CLASSES) != (len(values) > 0):
            raise ValueError(f"expected a kind of labels that fits {len(values)} values")
        if len(values) and not ((ids >= 0) & (ids < len(values))).all():
            raise ValueError(f"expected class ids in [0, {len(values)})")
        if self.kind is not None and (self.kind == MISSING) != (kind == MISSING):
            raise ValueError("expected every batch to have integer labels, or none to")
        if kind != CLASSES:
            self._give_up(max(kind, self.kind or MISSING))
        self.kind = kind if self.kind is None else self.kind
        if not self.are_classes:
            return np.zeros(1, np.int32)
        here = self._ids_of_values(values)
        self._all_ids()[indices] = here[ids]
        return here

    def part(self, indices: NDArray[np.int64] | slice) -> dict[str, NDArray[Any]]:
        """Return `values` int64 (C,), the label of each id, `ids` int32 (n,), and `kind`."""
        kind = np.array([MISSING if self.kind is None else self.kind], np.int8)
        return {"values": self.values(), "ids": self.of(indices), "kind": kind}

    def check(self, indices: NDArray[np.int64], labels: NDArray[Any] | None) -> NDArray[np.int32]:
        """Compare labels with those of pass 1; return the class ids (n,) again.

        Raises:
            ValueError: A label has changed.
        """
        kind = _kind_at_sight(labels)
        if (kind == MISSING) != (self.kind == MISSING) or (self.are_classes and kind != CLASSES):
            raise ValueError(
                "expected integer labels in both passes or in neither; do not change the data set "
                "during a selection"
            )
        if self.are_classes:
            is_other = self.values()[self.of(indices)] != labels
            if is_other.any():
                at = int(indices[np.flatnonzero(is_other)[0]])
                raise ValueError(
                    f"expected example {at} to keep its label between the passes; do not change "
                    "the data set during a selection"
                )
        return self.of(indices)

    def of(self, indices: NDArray[np.int64] | slice) -> NDArray[np.int32]:
        """Return the class ids of some examples, as the consensus uses them."""
        if self._ids is None or not self.are_classes:
            count = len(range(self._total)[indices] if isinstance(indices, slice) else indices)
            return np.zeros(count, np.int32)
        return self._ids[indices]

    def groups(self, indices: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.int32]:
        """Return the groups of some examples, as the rules use them."""
        return self.groups_of(self.of(indices))

    def sizes(self, places: slice = slice(None)) -> NDArray[np.int64]:
        """Return the number of examples in each group, among all or some places."""
        return np.bincount(self.groups(places), minlength=self.group_count)

    def finish(self) -> NDArray[np.int64]:
        """Decide whether labels are classes, and renumber those by ascending label.

        Returns:
            int64 (C,), the old id of each new one; (1,), a 0, without classes.
        """
        values = self.values()
        if self.are_classes:
            counts = np.bincount(self.of(slice(None)), minlength=len(values))
            kind = kind_of(values, counts, self._certainty)
            if kind != CLASSES:
                self._give_up(kind)
        if not self.are_classes:
            return np.zeros(1, np.int64)
        order = np.argsort(values)
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        ids = self._all_ids()
        for start in range(0, self._total, _CHUNK):
            part = slice(start, start + _CHUNK)
            ids[part] = rank[ids[part]]
        self._positions = {int(values[old]): new for new, old in enumerate(order)}
        return order

    def labels(self) -> NDArray[np.int64] | None:
        """Return the labels of all examples (N,); None without classes."""
        return self.values()[self.of(slice(None))] if self.are_classes else None

    def _give_up(self, kind: int) -> None:
        super()._give_up(kind)
        self._ids = None

    def _all_ids(self) -> NDArray[np.int32]:
        if self._ids is None:
            self._ids = np.zeros(self._total, np.int32)
        return self._ids


def may_be_classes(labels: NDArray[Any] | None) -> bool:
    """Return whether the labels of one batch may be classes."""
    return _kind_at_sight(labels) == CLASSES


def _kind_at_sight(labels: NDArray[Any] | None) -> int:
    """Return what the labels of one batch may be, whatever those of others are."""
    if labels is None:
        return MISSING
    is_number = labels.dtype.kind == "f" and not np.isin(labels, (0, 1)).all()
    return NUMBERS if is_number else CLASSES
