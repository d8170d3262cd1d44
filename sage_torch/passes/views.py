"""What pass 2 sees of each example: sketched gradient, features, probability of its label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sage_torch.gradients.outer import Rows
from sage_torch.passes.calibration import Judged
from sage_torch.passes.sketching import Sketched

_OF_LABELS = len(Judged._fields)  # numbers of an example that are known of its label


class Views(NamedTuple):
    """What is seen of n examples; the last two are None without a readout."""

    coordinates: NDArray[np.float32]  # (n, l), weighted by singular values until they are scored
    features: NDArray[np.float32] | None = None  # (n, r) at length 1
    judged: Judged | None = None  # what is known of the labels

    @classmethod
    def of(
        cls,
        sketched: Sketched,
        rows: Rows,
        features: NDArray[np.float32] | None,
        class_ids: NDArray[np.int32],
        own: NDArray[np.float32] | None = None,
    ) -> Views:
        """Return the views of a batch.

        Args:
            sketched: The results of pass 1.
            rows: Gradients of n examples.
            features: float32 (n, H); None without a readout.
            class_ids: int32 (n,).
            own: float32 (n,), the model's own probability of each label; None where not known.
        """
        coordinates, readout = sketched.sketch.sketched(rows), sketched.readout
        if readout is None or features is None:
            return cls(coordinates)
        judged = readout.judged(features, class_ids, own)
        return cls(coordinates, readout.reduced(features), judged)

    @classmethod
    def empty(cls, count: int, sketched: Sketched) -> Views:
        """Return views of so many examples, to be filled by `put`."""
        coordinates = np.empty((count, sketched.sketch.sketch_size), np.float32)
        if sketched.readout is None:
            return cls(coordinates)
        features = np.empty((count, sketched.readout.compared), np.float32)
        return cls(coordinates, features, Judged.empty(count))

    def put(self, places: NDArray[np.int64], part: Views) -> None:
        """Copy the views of some examples to their places."""
        for whole, of_part in zip(self.arrays(), part.arrays(), strict=True):
            whole[places] = of_part

    def arrays(self) -> list[NDArray[Any]]:
        """Return all arrays."""
        if self.features is None or self.judged is None:
            return [self.coordinates]
        return [self.coordinates, self.features, *self.judged]

    @classmethod
    def of_arrays(cls, arrays: Sequence[NDArray[Any]]) -> Views:
        """Return the views that gave these arrays."""
        coordinates, *others = arrays
        return cls(coordinates, others[0], Judged(*others[1:])) if others else cls(coordinates)

    def compared(self) -> NDArray[np.float32]:
        """Return what herding compares (n, w): coordinates, or beside features both at length 1."""
        if self.features is None:
            return self.coordinates
        rows, width = self.coordinates, self.coordinates.shape[1]
        both = np.empty((len(rows), width + self.features.shape[1]), np.float32)
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        np.multiply(rows, scale[:, None], out=both[:, :width], casting="same_kind")
        both[:, width:] = self.features
        return both

    def packed(self) -> NDArray[np.float32]:
        """Return all numbers as rows (n, w), for a snapshot."""
        if self.features is None or self.judged is None:
            return self.coordinates
        of_labels = np.stack(self.judged, axis=1, dtype=np.float32)  # class ids: exact to 2**24
        return np.hstack([self.coordinates, self.features, of_labels])

    @classmethod
    def unpacked(cls, sketched: Sketched, rows: NDArray[np.float32]) -> Views:
        """Return what was packed into rows (n, w)."""
        if sketched.readout is None:
            return cls(rows)
        width = sketched.sketch.sketch_size
        parts = np.split(rows, [width, *range(rows.shape[1] - _OF_LABELS, rows.shape[1])], axis=1)
        coordinates, features, *of_labels = map(np.ascontiguousarray, parts)
        probabilities, is_wrong, predicted, label_scores = (part.ravel() for part in of_labels)
        judged = Judged(probabilities, is_wrong, predicted.astype(np.int32), label_scores)
        return cls(coordinates, features, judged)

    @staticmethod
    def compared_width(sketched: Sketched) -> int:
        """Return the length of a row that herding compares."""
        of_features = 0 if sketched.readout is None else sketched.readout.compared
        return sketched.sketch.sketch_size + of_features

    @staticmethod
    def width(sketched: Sketched) -> int:
        """Return the length w of a packed row."""
        of_features = 0 if sketched.readout is None else sketched.readout.compared + _OF_LABELS
        return sketched.sketch.sketch_size + of_features
