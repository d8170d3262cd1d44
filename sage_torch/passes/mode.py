"""The three ways to score, which differ in the data that pass 1 carries along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch.options import Options

FIRST_ROWS = 64  # of a sketch, unless the caller names another number
# Beside features, fewer choose as good a subset in less time: on Fashion-MNIST, CIFAR-10 and the
# text sets, benchmarks/choices/sketch_rows.py.
_BESIDE_FEATURES, _OF_A_LOGIT = 16, 2


@dataclass(frozen=True)
class Mode:
    """How examples are scored.

    Attributes:
        name: `"exact"`: pass 2 keeps all coordinates, then takes the consensus. `"streaming"`: pass
            1 carries the consensus along, and pass 2 scores each batch at once. `"one_pass"`: pass
            1 carries every example's coordinates along, and nothing is read again.
    """

    name: Literal["exact", "streaming", "one_pass"]

    @classmethod
    def of(cls, options: Options, total: int, of_features: int = 0, logits: int = 0) -> Mode:
        """Return the mode of a data set of `total` examples.

        Args:
            options: `consensus`, `sketch_size`, `memory_budget`.
            total: Number of examples N.
            of_features: Numbers of an example's features that herding compares; 0 without any.
            logits: As `first_rows`.
        """
        needed = exact_bytes(first_rows(options, logits), total, of_features)
        if options.consensus == "one_pass":
            return cls("one_pass")
        if options.consensus == "streaming" or (
            options.consensus == "auto" and needed > options.memory_budget
        ):
            return cls("streaming")
        return cls("exact")

    @property
    def is_streaming(self) -> bool:
        """Whether batches are scored and forgotten: the rule then never has all coordinates."""
        return self.name == "streaming"

    @property
    def is_one_pass(self) -> bool:
        """Whether examples are read only once."""
        return self.name == "one_pass"

    def begin(self, sketch: _core.FrequentDirections) -> None:
        """Let a new sketch carry along all that scoring will need."""
        if self.is_streaming:
            sketch.carry_consensus()
        elif self.is_one_pass:
            sketch.carry_coordinates()

    def carried_ids(self, class_ids: NDArray[np.int32]) -> NDArray[np.int32] | None:
        """Return the class ids for the sketch: None unless it carries a consensus."""
        return class_ids if self.is_streaming else None


def exact_bytes(rows: int, total: int, of_features: int) -> int:
    """Return the bytes of exact scoring: coordinates, and beside features a copy of them."""
    return 4 * total * (rows if not of_features else 2 * rows + of_features + 4)


def first_rows(options: Options, logits: int = 0) -> int:
    """Return the rows that a sketch begins with.

    Args:
        options: `sketch_size`.
        logits: Logits of the last layer, if its gradients are sketched beside its inputs; else 0.
    """
    if options.sketch_size is None and logits:
        return min(FIRST_ROWS, max(_BESIDE_FEATURES, _OF_A_LOGIT * logits))
    if options.sketch_size is None or options.sketch_size == "auto":
        return FIRST_ROWS
    return options.sketch_size
