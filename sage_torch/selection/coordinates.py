"""What a rule reads of every example, kept with a selection for another cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_torch.checks import truth, whole_number

_ARRAYS = ("rows", "sample")
OF_CALIBRATION = ("rho", "skill", "trust", "to_learn")  # all that another cut reads of it
_AT_ONCE = 65_536  # rows that are copied at once


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The rows that herding compares, and what the trim knows of the labels besides.

    Attributes:
        rows: float16 (N, w): the sketched gradient of each example at length 1, and after it,
            where there is a readout, its features at length 1. A gradient of zero is zero.
        gradient_width: How many of the w numbers are the gradient's.
        sample: int64 (m,) ascending, the examples that the calibration was taken from; none
            without a readout.
        known: Of the calibration, the numbers of `OF_CALIBRATION`; nothing without a readout.
        looked: Whether `trim="auto"` looked for features, found or not.
    """

    rows: NDArray[np.float16]
    gradient_width: int
    sample: NDArray[np.int64]
    known: dict[str, float]
    looked: bool

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            getattr(self, name).setflags(write=False)

    @property
    def features(self) -> NDArray[np.float16] | None:
        """The features of each example, (N, w - gradient_width); None without a readout."""
        if self.gradient_width == self.rows.shape[1]:
            return None
        return self.rows[:, self.gradient_width :]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays, by name."""
        return {name: getattr(self, name) for name in _ARRAYS}

    def meta(self) -> dict[str, Any]:
        """Return all else, for JSON."""
        return {"gradient_width": self.gradient_width, "known": self.known, "looked": self.looked}

    @classmethod
    def read(cls, meta: dict[str, Any], arrays: dict[str, Any], total: int) -> Coordinates:
        """Return the coordinates that gave these.

        Raises:
            ValueError: They do not fit together. Damaged ones may raise anything else.
        """
        parts: dict[str, Any] = arrays
        found = cls(**parts, **meta)
        rows, sample, width = found.rows, found.sample, found.gradient_width
        truth("looked", found.looked)
        fits = (
            rows.dtype == np.float16
            and rows.ndim == 2
            and len(rows) == total
            and 0 < whole_number("gradient_width", width) <= rows.shape[1]
            and sample.dtype == np.int64
            and sample.ndim == 1
            and (not len(sample) or (sample[0] >= 0 and sample[-1] < total))
            and bool((sample[1:] > sample[:-1]).all())
            and set(found.known) == (set(OF_CALIBRATION) if len(sample) else set())
            and all(_is_share(value) for value in found.known.values())
        )
        if not fits or not all(
            np.isfinite(rows[start : start + _AT_ONCE]).all() for start in range(0, total, _AT_ONCE)
        ):
            raise ValueError(f"expected finite float16 coordinates of {total} examples")
        return found


def _is_share(value: object) -> bool:
    return isinstance(value, float) and 0 <= value <= 1  # nor NaN


class Keeper:
    """Collects the rows of some examples as float16.

    Args:
        places: The examples.
        width: w.
        gradient_width: As in `Coordinates`.

    Cost:
        2 w bytes per example.
    """

    def __init__(self, places: slice, width: int, gradient_width: int) -> None:
        self._first, self._is_alone = places.start, width == gradient_width
        self.rows = np.empty((places.stop - places.start, width), np.float16)

    def put(self, indices: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Keep the rows (n, w) of a batch; those without features at length 1."""
        if self._is_alone:
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
        self.rows[indices - self._first] = rows

    def put_all(self, rows: NDArray[np.float32]) -> None:
        """Keep the rows of all examples, a part at a time."""
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            self.put(self._first + np.arange(start, start + len(part)), part)
