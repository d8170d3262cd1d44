"""Scores of examples that come once: an online sketch, its consensus, and where each one stands."""

from __future__ import annotations

from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import sage_torch._core as _core
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.choice import choose_gradients
from sage_torch.gradients.compressed import compressed
from sage_torch.gradients.computer import GradientComputer, rows_of
from sage_torch.gradients.count_sketch import DEFAULT_WIDTH
from sage_torch.options import Options
from sage_torch.passes.job import naming_the_example
from sage_torch.passes.sketching import unit_rows

# The first of a class stand for nothing but themselves, and would all agree with their consensus.
_FIRST_OF_CLASS = 16
# Sketch and consensus stay fresh, and a class that comes seldom keeps enough to have a consensus.
_SHORTEST_HALF_LIFE, _HALF_LIFE_OF_CLASS = 5_000, 500

HalfLife: TypeAlias = Literal["auto"] | int | None


class OnlineScores:
    """Agreement and margin of each example under a sketch that takes it in and slowly forgets.

    Args:
        model: The unwrapped model, read as it is at each call.
        options: `sketch_size`, `gradients`, `params`, `compress`, `loss`, `memory_budget`,
            `class_balanced`, `seed`.
        half_life: Examples after which a row counts half; `"auto"`: 500 for each class so far, at
            least 5,000; None: it always counts in full.
        warm_up: Examples before the first score.

    Cost:
        Memory 4 (l + b + C) d bytes, l sketch rows, b about 1.5 l, C classes so far.
    """

    def __init__(
        self, model: nn.Module, options: Options, half_life: HalfLife, warm_up: int
    ) -> None:
        self._model, self._options = model, options
        self._half_life, self._warm_up = half_life, warm_up
        self._computer = self._new_computer()
        self._is_compressed = options.compress is None
        self._sketch: _core.FrequentDirections | None = None
        self._classes: dict[int, int] = {}  # label -> class id, in order of appearance
        self._counts = [0]  # by class id
        self._has_labels: bool | None = None  # unknown before the first batch

    def __call__(
        self, batch: Batch, labels: Tensor | None, first: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
        """Add a batch to the sketch and score it.

        Args:
            batch: n examples on the model's device.
            labels: Integer (n,) on the CPU, or None.
            first: Place of the first of them in the stream, for errors.

        Returns:
            Agreement and margins (n,) in the weighted basis, NaN during warm-up; class ids (n,).

        Raises:
            SageError: A loss or gradient is not finite; `index` is the example's place.
            ValueError: Labels are missing, or a batch or a loss has a wrong form.
        """
        with naming_the_example(range(first, 2**62), of="the stream"):
            rows = rows_of(self._computer_for(batch), batch)
            class_ids = self._class_ids(labels, len(rows))
            sketch = self._sketch
            if sketch is None:
                sketch = self._new_sketch(rows.shape[1])
            rows = rows.to(sketch.device)
            _refuse_if_not_finite(rows)  # before anything is forgotten for them
            if sketch.rows_seen:
                sketch.forget(self._weight_after(len(rows)))
            sketch.update(rows, class_ids)
        self._sketch = sketch
        for class_id, count in zip(*np.unique(class_ids, return_counts=True), strict=True):
            self._counts[class_id] += int(count)
        if sketch.rows_seen < self._warm_up:
            nothing = np.full(len(rows), np.nan, np.float32)
            return nothing, nothing, class_ids
        directions = unit_rows(sketch.class_directions(orthonormal=False).cpu().numpy())
        weighted = sketch.project(rows).cpu().numpy()
        agreement = _core.agreement(weighted, class_ids, directions)
        margins = _core.margin(weighted, class_ids, directions)
        is_new = np.array(self._counts)[class_ids] <= _FIRST_OF_CLASS
        agreement[is_new] = margins[is_new] = np.nan
        return agreement, margins, class_ids

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain numbers from which `load_state_dict` goes on exactly."""
        return {
            "dim": None if self._sketch is None else self._sketch.dim,
            "sketch": None if self._sketch is None else self._sketch.state_dict(),
            "classes": dict(self._classes),
            "counts": list(self._counts),
            "has_labels": self._has_labels,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the one that gave `state` was.

        Raises:
            ValueError: It has another form. Nothing has changed then.
        """
        sketch = None
        if state["sketch"] is not None:
            dim = self._known_dim()
            if dim is not None and dim != state["dim"]:
                raise ValueError(
                    f"expected gradients of {dim} coordinates, got a sketch of {state['dim']}"
                )
            sketch = self._new_sketch(state["dim"])
            sketch.load_state_dict(state["sketch"])
        classes, counts = dict(state["classes"]), list(state["counts"])
        numbered = list(classes.values()) == list(range(len(classes)))
        if not numbered or not all(type(label) is int for label in classes):
            raise ValueError(f"expected classes numbered as they came, got {classes}")
        if len(counts) < len(classes) or not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError(f"expected a count of at least 0 for each class, got {counts}")
        if state["has_labels"] not in (None, True, False):
            raise ValueError(
                f"expected has_labels True, False or None, got {state['has_labels']!r}"
            )
        self._sketch, self._classes, self._counts = sketch, classes, counts
        self._has_labels = state["has_labels"]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sketch": None, "_computer": None, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.pop("state")
        self.__dict__.update(state)
        self._computer, self._is_compressed = self._new_computer(), self._options.compress is None
        self.load_state_dict(saved)

    def _new_computer(self) -> GradientComputer:
        options = self._options
        return choose_gradients(
            self._model,
            options.loss,
            options.gradients,
            params=options.params,
            seed=options.seed,
            memory_budget=options.memory_budget,
        )

    def _known_dim(self) -> int | None:
        """Return the length of what the sketch gets, where that is known before the first batch."""
        try:
            dim = self._computer.dim
        except (AttributeError, RuntimeError):
            return None
        compress = self._options.compress
        if self._is_compressed or compress is None:
            return dim
        return min(dim, DEFAULT_WIDTH if compress == "auto" else compress)

    def _computer_for(self, batch: Batch) -> GradientComputer:
        """Return the computer; the first batch shows whether its rows are to be compressed."""
        if not self._is_compressed:
            self._computer = compressed(
                self._computer,
                self._options.compress,
                lambda: batch,
                seed=self._options.seed,
                memory_budget=self._options.memory_budget,
            )
            self._is_compressed = True
        return self._computer

    def _weight_after(self, examples: int) -> float:
        """Return what a row's weight is multiplied by while some more examples come."""
        half_life = self._half_life
        if half_life is None:
            return 1.0
        if half_life == "auto":
            half_life = max(_SHORTEST_HALF_LIFE, _HALF_LIFE_OF_CLASS * len(self._classes))
        return float(0.5 ** (examples / half_life))

    def _new_sketch(self, dim: int) -> _core.FrequentDirections:
        device = device_of(self._model)
        sketch = _core.FrequentDirections(
            self._options.first_rows, dim, device=device if device.type == "cuda" else None
        )
        sketch.carry_consensus(orthonormal=False)
        return sketch

    def _class_ids(self, labels: Tensor | None, n: int) -> NDArray[np.int32]:
        wanted = self._options.class_balanced
        if wanted is True and labels is None:
            raise ValueError(
                "expected integer class labels for class_balanced=True, but a batch has none: give "
                '(inputs, label) examples with an integer label (in a dict: "labels"), or pass '
                "class_balanced=False"
            )
        if self._has_labels is None:
            self._has_labels = labels is not None
        if self._has_labels != (labels is not None):
            raise ValueError("expected every batch to have integer labels, or none to")
        if labels is None or wanted is False:
            return np.zeros(n, np.int32)
        values, inverse = np.unique(labels.to(torch.int64).numpy(), return_inverse=True)
        for value in values.tolist():
            self._classes.setdefault(value, len(self._classes))
        self._counts.extend([0] * (len(self._classes) - len(self._counts)))
        ids = np.array([self._classes[value] for value in values.tolist()], np.int32)
        return ids[inverse]


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's first parameter or buffer lives."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _refuse_if_not_finite(rows: Tensor) -> None:
    bad = (~rows.isfinite().all(dim=1)).nonzero()
    if len(bad):
        error = _core.SageError("its gradient has a NaN or an infinite entry")
        error.row = int(bad[0])
        raise error
