"""Has the model moved so far that a selection is out of date? Asked of a probe of the data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

import sage_torch._core as _core
from sage_torch.gradients.choice import choose_gradients
from sage_torch.gradients.compressed import compressed
from sage_torch.gradients.computer import rows_of
from sage_torch.gradients.loss import unwrap
from sage_torch.options import Options, count_both
from sage_torch.passes.job import naming_the_example
from sage_torch.reading.classes import ClassBook
from sage_torch.reading.reader import Examples
from sage_torch.reading.shards import Shard
from sage_torch.reading.user_state import preserved
from sage_torch.selection.draws import whole_number

_LOG = logging.getLogger("sage_torch")
_PROBE_STREAM = 2**33  # apart from epochs and reading orders: see `examples.SeededOrder`


@dataclass(frozen=True, eq=False)
class Reading:
    """How the model sees a probe of the data.

    Attributes:
        directions: float32 (C, d), each class's mean of unit compressed gradients, at length 1.
        scores: float32 (P,), each example's agreement with the direction of its class.
    """

    directions: NDArray[np.float32]
    scores: NDArray[np.float32]

    def distance(self, other: Reading) -> tuple[float, float]:
        """Return how far consensus and ranks are from those of another reading of the same probe.

        Returns:
            `1 - mean cosine of the directions` and `1 - Spearman correlation of the scores`, both
            in [0, 2] and 0 for a model that has not changed.

        Raises:
            ValueError: The readings are not of the same probe and gradients.
        """
        if (
            self.directions.shape != other.directions.shape
            or self.scores.shape != other.scores.shape
        ):
            raise ValueError(
                f"expected a reading of directions {self.directions.shape} and scores "
                f"{self.scores.shape}, got {other.directions.shape} and {other.scores.shape}: read "
                "the same probe with the same gradients"
            )
        ours, theirs = self.directions.astype(np.float64), other.directions.astype(np.float64)
        has_none = ~ours.any(axis=1) & ~theirs.any(axis=1)  # all gradients 0, before and now
        cosines = np.where(has_none, 1.0, (ours * theirs).sum(axis=1))
        return 1.0 - float(cosines.mean()), 1.0 - _correlation(self.scores, other.scores)

    def as_state(self) -> dict[str, Tensor]:
        """Return the numbers as tensors, which are not copies."""
        return {
            "directions": torch.from_numpy(self.directions),
            "scores": torch.from_numpy(self.scores),
        }

    @classmethod
    def from_state(cls, state: object) -> Reading:
        """Read what `as_state` gave.

        Raises:
            ValueError: It is something else.
        """
        if not isinstance(state, dict) or set(state) != {"directions", "scores"}:
            raise ValueError("expected a reading of the probe: directions and scores")
        for name, dimensions in (("directions", 2), ("scores", 1)):
            value = state[name]
            if not (
                isinstance(value, Tensor)
                and value.dtype == torch.float32
                and value.ndim == dimensions
                and bool(value.isfinite().all())
            ):
                raise ValueError(
                    f"expected {name} of the probe as a finite float32 tensor of {dimensions} "
                    f"dimensions, got {type(value).__name__}"
                )
        return cls(state["directions"].cpu().numpy().copy(), state["scores"].cpu().numpy().copy())


class DriftWatch:
    """Compares the model with what it was at the last selection, once an epoch.

    Args:
        threshold: A refresh is due when consensus or ranks have moved by more than this.
        size: Examples of a probe.

    Attributes:
        distance: How far consensus and ranks had moved when last looked at; None before.

    Raises:
        TypeError: One of them is no number.
        ValueError: One of them is out of range.
    """

    def __init__(self, threshold: float, size: int) -> None:
        given: object = threshold
        if isinstance(given, bool) or not isinstance(given, Real):
            raise TypeError(f"expected drift_threshold to be a number, got {threshold!r}")
        if not 0 <= float(threshold) <= 2:
            raise ValueError(f"expected drift_threshold in [0, 2], got {threshold}")
        self.threshold = float(threshold)
        self.size = whole_number("drift_probe", size, least=2)
        self.distance: tuple[float, float] | None = None
        self._reading: Reading | None = None
        self._looked_at = -1  # the last epoch that was looked at

    def has_moved(
        self, epoch: int, read: Callable[[], Reading], agree: Callable[[bool], bool]
    ) -> bool:
        """Return whether an epoch should begin with another selection.

        Args:
            epoch: The coming epoch; asked again of it, the answer needs no second look.
            read: Reads the probe.
            agree: Makes the decision of one rank that of all.
        """
        if epoch <= self._looked_at:
            return False
        reading = read()
        if self._reading is None:  # a selection of elsewhere: compare from here on
            self._reading = reading
        self.distance = reading.distance(self._reading)
        has_moved = agree(max(self.distance) > self.threshold)
        _LOG.info(
            "drift at epoch %d: consensus %.3f, ranks %.3f; %s",
            epoch,
            *self.distance,
            "select again" if has_moved else "the selection stays",
        )
        if not has_moved:
            self._looked_at = epoch
        return has_moved

    def selected(self, epoch: int, reading: Reading) -> None:
        """Compare with this reading from now on."""
        self._reading, self._looked_at = reading, epoch

    def as_state(self) -> dict[str, Any]:
        """Return numbers and tensors."""
        reading = None if self._reading is None else self._reading.as_state()
        return {"looked_at": self._looked_at, "reading": reading}

    def loaded(self, state: object) -> DriftWatch:
        """Return another one, with what `as_state` gave; None for nothing.

        Raises:
            ValueError: It is something else.
        """
        other = DriftWatch(self.threshold, self.size)
        if state is not None:
            if not isinstance(state, dict) or set(state) != {"looked_at", "reading"}:
                raise ValueError("expected the state of a drift watch: looked_at and reading")
            try:
                other._looked_at = whole_number("looked_at", state["looked_at"], least=-1)
            except TypeError as error:
                raise ValueError(f"expected the state of a drift watch: {error}") from error
            if state["reading"] is not None:
                other._reading = Reading.from_state(state["reading"])
        return other


def read_probe(
    model: nn.Module, dataset: Dataset[Any], options: Options, *, size: int = 512
) -> Reading:
    """Score a seeded part of a data set with the model as it is, without a sketch.

    Args:
        model: The live model; it and everything of the user's is afterwards as before.
        dataset: The data set that is selected from.
        options: Of the selection: gradients, params, compress, loss, score_dataset, collate_fn,
            batch_size, num_workers, class_balanced, seed, memory_budget.
        size: P, how many examples; at most all.

    Returns:
        The reading; of the same data set, options and size, always of the same examples.

    Raises:
        ValueError, TypeError, SageError: As `select_subset`.

    Cost:
        P gradients; 4 P d bytes, d the length of a compressed gradient.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from sage_torch.sampler.drift import read_probe
        >>> from sage_torch.options import Options
        >>> data = TensorDataset(torch.randn(80, 5), torch.arange(80) % 3)
        >>> model = torch.nn.Linear(5, 3)
        >>> before = read_probe(model, data, Options(keep=0.25), size=40)
        >>> with torch.no_grad():
        ...     _ = model.weight.neg_()
        >>> consensus, ranks = read_probe(model, data, Options(keep=0.25), size=40).distance(before)
        >>> consensus > 0
        True
    """
    total = count_both(dataset, options.score_dataset)
    order = _core.Permutation(total, options.seed, _PROBE_STREAM)
    chosen = np.sort(order.take(0, min(size, total)))
    read = dataset if options.score_dataset is None else options.score_dataset
    options = replace(options, score_dataset=None, progress=False)
    inner = unwrap(model)
    with preserved(inner):
        parameter = next(inner.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        examples = Examples(Subset(read, chosen.tolist()), device, options)
        probe = Shard(0, 0, len(chosen))
        gradients = choose_gradients(
            inner,
            options.loss,
            options.gradients,
            params=options.params,
            seed=options.seed,
            memory_budget=options.memory_budget,
        )
        gradients = compressed(
            gradients,
            options.compress,
            lambda: examples.first_batch(probe),
            seed=options.seed,
            memory_budget=options.memory_budget,
        )
        classes = ClassBook(examples.total, options.class_balanced)
        parts: list[NDArray[np.float32]] = []
        places: list[NDArray[np.int64]] = []
        for indices, batch, labels in examples.batches(probe):
            classes.add(indices, labels)
            with naming_the_example(chosen[indices]):
                parts.append(_checked(rows_of(gradients, batch)))
            places.append(indices)
        classes.finish()
    rows, ids = np.concatenate(parts), classes.of(np.concatenate(places))
    consensus = _core.Consensus(classes.count, rows.shape[1])
    consensus.add(rows, ids)
    directions = consensus.directions()
    scores = _core.agreement(rows, ids, directions)
    return Reading(directions.astype(np.float32), scores)


def _checked(rows: Tensor) -> NDArray[np.float32]:
    on_host: NDArray[np.float32] = rows.detach().to("cpu", torch.float32).numpy()
    bad = np.flatnonzero(~np.isfinite(on_host).all(axis=1))
    if len(bad):
        error = _core.SageError("its gradient has a NaN or an infinite entry")
        error.row = int(bad[0])
        raise error
    return on_host


def _correlation(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Return Spearman's correlation."""
    before, now = _ranks(theirs), _ranks(ours)
    if not (np.ptp(before) and np.ptp(now)):  # all scores equal: there is nothing to rank
        return float(np.ptp(before) == np.ptp(now))
    return float(np.corrcoef(before, now)[0, 1])


def _ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the rank of each value, equal ones at the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks
