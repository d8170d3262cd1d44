"""Scores examples that come once, by an online sketch and its consensus."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

import sage_torch._core as _core
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.computer import device_of
from sage_torch.gradients.features import Features, find_features, look
from sage_torch.gradients.last_layer import outer_products
from sage_torch.gradients.outer import OuterRows
from sage_torch.options import Options
from sage_torch.passes.job import beside, computer_for
from sage_torch.passes.merging import of_one_class
from sage_torch.passes.mode import first_rows
from sage_torch.passes.scoring import unit_rows
from sage_torch.reading.classes import Classes, may_be_classes
from sage_torch.reading.labels import Labels
from sage_torch.reading.reader import naming_the_example, takes_any
from sage_torch.stream.readout import OnlineReadout

# The first examples of a class are their own consensus, and would all agree with it.
_FIRST_OF_CLASS = 16
# After this many examples, labels that nearly all differ are given up.
_LOOK_AT = 512
# Sketch and consensus stay fresh, and a rare class keeps enough examples for a consensus.
_SHORTEST_HALF_LIFE, _HALF_LIFE_OF_CLASS = 5_000, 500

HalfLife: TypeAlias = Literal["auto"] | int | None


class Judged(NamedTuple):
    """What is known of the n examples of a batch; NaN during warm-up."""

    agreement: NDArray[np.float32]
    # Below 0 goes: margins, or by the readout what odds the label has above the least that stay.
    quality: NDArray[np.float32]
    masses: NDArray[np.float32] | None  # how often each is drawn; None: all the same
    class_ids: NDArray[np.int32]


class OnlineScores:
    """Agreement and margin of each example, under a sketch that includes it and slowly forgets.

    Args:
        model: The unwrapped model; each call uses it as it is then.
        options: `sketch_size`, `gradients`, `params`, `compress`, `loss`, `memory_budget`,
            `labels`, `class_balanced`, `seed`.
        half_life: Examples after which a row counts half; `"auto"`: 500 per class so far, at least
            5,000; None: it always counts in full.
        warm_up: Examples before the first score.

    Cost:
        Memory 4 (l + b + C) d bytes for l sketch rows, b about 1.5 l, and C classes so far.
    """

    def __init__(
        self, model: nn.Module, options: Options, half_life: HalfLife, warm_up: int
    ) -> None:
        self._model, self._options = model, options
        self._half_life, self._warm_up = half_life, warm_up
        self._computer = computer_for(model, options)
        self._sketch: _core.FrequentDirections | None = None
        self.labels = Labels(options)
        self._classes = Classes(options.class_balanced, self.labels.certainty)
        self._counts = np.zeros(1, np.int64)  # by class id
        self._has_looked = False
        self._features: Features | None = None
        self._readout: OnlineReadout | None = None

    def __call__(self, batch: Batch, n: int, labels: NDArray[Any] | None, first: int) -> Judged:
        """Add a batch to the sketch and score it.

        Args:
            batch: n examples on the model's device.
            n: Their number.
            labels: Whole numbers (n,), floats or None.
            first: Place of the first example in the stream, for errors.

        Raises:
            SageError: A loss or gradient is not finite; `index` is the example's place.
            ValueError: Labels are missing, or a batch or a loss has a wrong form.
        """
        with naming_the_example(range(first, 2**62), of="the stream"):
            self._find_features(batch, labels)
            looked = look(self._computer, self._features, batch, n)
            rows = looked.rows
            if isinstance(rows, OuterRows):
                rows = outer_products(rows.delta, rows.hidden, bias=rows.bias)
            class_ids = self._classes.ids_of(labels, len(rows))
            sketch = self._sketch
            if sketch is None:
                sketch = self._new_sketch(rows.shape[1])
            rows = rows.to(sketch.device)
            _refuse_if_not_finite(rows)  # before they make the sketch forget
            weight = self._weight_after(len(rows))
            if sketch.rows_seen:
                sketch.forget(weight)
            sketch.update(rows, class_ids)
        counts = np.bincount(class_ids, minlength=max(self._classes.count, len(self._counts)))
        counts[: len(self._counts)] += self._counts
        seen = int(counts.sum())
        if seen - len(rows) < _LOOK_AT <= seen:
            self._classes.doubt(self._classes.count, seen)
        if len(counts) > 1 and not self._classes.are_classes:  # given up just now
            sketch, counts, class_ids = of_one_class(sketch), np.array([seen]), 0 * class_ids
            self._readout = None
        self._sketch, self._counts = sketch, counts
        agreement, margins = np.full((2, len(rows)), np.nan, np.float32)
        if sketch.rows_seen >= self._warm_up:
            directions = unit_rows(sketch.class_directions().cpu().numpy())
            scorer = _core.Scorer(directions, agreement, margins, first=0)
            weighted = sketch.project(rows).cpu().numpy()
            scorer.score(weighted, class_ids, np.arange(len(rows)))
            is_new = counts[class_ids] <= _FIRST_OF_CLASS
            agreement[is_new] = margins[is_new] = np.nan
        return self._judged(
            agreement,
            margins,
            class_ids,
            None if looked.seen is None else looked.seen.features,
            weight,
        )

    def _judged(
        self,
        agreement: NDArray[np.float32],
        margins: NDArray[np.float32],
        class_ids: NDArray[np.int32],
        features: Tensor | None,
        weight: float,
    ) -> Judged:
        masses, found = None, None
        if features is not None and self._classes.are_classes:
            if self._readout is None:
                self._readout = OnlineReadout(features.shape[1])
            found = self._readout(features, class_ids, weight)
            masses = np.ones_like(margins)
        quality = margins if self.can_trim else 0 * margins
        if masses is not None and found is not None:
            is_known = ~np.isnan(quality) & ~np.isnan(found[0])
            quality = np.where(is_known, found[0], quality)
            masses = np.where(is_known, found[1], masses)
        return Judged(agreement, quality, masses, class_ids)

    def _find_features(self, batch: Batch, labels: NDArray[Any] | None) -> None:
        """Look once, on the first batch, where the features are, if draws go by the readout."""
        options = self._options
        if self._has_looked:
            return
        self._has_looked = True
        if options.rule == "agreement" or takes_any(options) or not may_be_classes(labels):
            return
        self._features = find_features(self._model, options.loss, batch)
        self._computer = beside(self._features, self._computer, options)

    def groups_of(self, class_ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the group of each example, whose share is kept: its class, or all examples."""
        return self._classes.groups_of(class_ids)

    @property
    def can_trim(self) -> bool:
        """Whether margins tell classes apart."""
        return self._classes.count > 1

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain numbers from which `load_state_dict` resumes exactly."""
        return {
            "dim": None if self._sketch is None else self._sketch.dim,
            "sketch": None if self._sketch is None else self._sketch.state_dict(),
            "classes": self._classes.values().tolist(),
            "counts": self._counts.tolist(),
            "kind": self._classes.kind,
            "readout": None if self._readout is None else self._readout.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where the object that gave `state` was.

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
        wanted, certainty = self._options.class_balanced, self.labels.certainty
        classes = Classes.known(wanted, certainty, state["classes"], state["kind"])
        counts = state["counts"]
        if len(counts) < classes.count or not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError(f"expected a count of at least 0 for each class, got {counts}")
        found = state["readout"]
        readout = None if found is None else OnlineReadout.of_state(found)
        self._sketch, self._classes, self._counts = sketch, classes, np.array(counts, np.int64)
        self._readout = readout

    def __getstate__(self) -> dict[str, Any]:
        without = {"_sketch": None, "_computer": None, "_features": None, "_has_looked": False}
        return self.__dict__ | without | {"state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.pop("state")
        self.__dict__.update(state)
        self._computer = computer_for(self._model, self._options)
        self.load_state_dict(saved)

    def _known_dim(self) -> int | None:
        """Return the length of the sketch's rows, if it is known before the first batch."""
        options = self._options
        if options.rule != "agreement" and options.gradients == "auto" and not self._has_looked:
            return None  # the first batch decides which gradients
        try:
            return self._computer.dim
        except (AttributeError, RuntimeError):
            return None

    def _weight_after(self, examples: int) -> float:
        """Return the factor of a row's weight after some more examples."""
        half_life = self._half_life
        if half_life is None:
            return 1.0
        if half_life == "auto":
            half_life = max(_SHORTEST_HALF_LIFE, _HALF_LIFE_OF_CLASS * len(self._classes.values()))
        return float(0.5 ** (examples / half_life))

    def _new_sketch(self, dim: int) -> _core.FrequentDirections:
        device = device_of(self._model)
        sketch = _core.FrequentDirections(
            first_rows(self._options), dim, device=device if device.type == "cuda" else None
        )
        sketch.carry_consensus()
        return sketch


def _refuse_if_not_finite(rows: Tensor) -> None:
    bad = (~rows.isfinite().all(dim=1)).nonzero()
    if len(bad):
        error = _core.SageError("its gradient has a NaN or an infinite entry")
        error.row = int(bad[0])
        raise error
