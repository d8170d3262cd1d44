"""What pass 1 notes of the features: sums for the readout, and the factors that pass 2 needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sage_torch.checks import warn
from sage_torch.gradients.features import Seen, rows_from
from sage_torch.gradients.outer import OuterRows, Rows
from sage_torch.passes.job import Job
from sage_torch.passes.readout import FeatureSums, Readout, sampled
from sage_torch.reading.classes import ClassBook
from sage_torch.reading.shards import Shard

_PREFIX = "features_"
_LOGITS = 2  # the place of their number beside a loss
_AT_ONCE = 1_024  # kept examples that pass 2 takes at once
_KNOWS_NOTHING, _ENOUGH = 0.98, 256  # of the loss of a guess; examples that show it


@dataclass(frozen=True)
class Kept:
    """The factors of all gradients of this rank, on the host: pass 2 then reads no data."""

    delta: NDArray[np.float32]  # (n, C)
    hidden: NDArray[np.float32]  # (n, H)
    bias: bool
    first: int  # example of the first row
    device: torch.device

    def put(self, indices: NDArray[np.int64], outer: OuterRows) -> None:
        """Keep those of a batch."""
        self.delta[indices - self.first] = outer.delta.cpu().numpy()
        self.hidden[indices - self.first] = outer.hidden.cpu().numpy()

    def rows(
        self, job: Job, shard: Shard
    ) -> Iterator[tuple[NDArray[np.int64], Rows, NDArray[np.float32], NDArray[np.float32] | None]]:
        """Yield indices (n,), gradients, features (n, H) and `own_probabilities` of a shard."""
        for start in range(shard.start, shard.stop, _AT_ONCE):
            indices = np.arange(start, min(start + _AT_ONCE, shard.stop))
            place = slice(start - self.first, start - self.first + len(indices))
            outer = OuterRows(
                self._there(self.delta[place]), self._there(self.hidden[place]), self.bias
            )
            own = own_probabilities(job, outer)
            yield indices, rows_from(job.computer, outer), self.hidden[place], own

    def _there(self, rows: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(rows).to(self.device)


def own_probabilities(job: Job, outer: OuterRows | None) -> NDArray[np.float32] | None:
    """Return what the model itself gives to each label, float32 (n,); None where not known."""
    found = _of_labels(job, outer)
    return None if found is None else found.float().cpu().numpy()


def _of_labels(job: Job, outer: OuterRows | None) -> Tensor | None:
    """Return the softmax at the label: `p - y` is negative at the label alone, `p_y - 1`."""
    if outer is None or job.options.loss is not None or outer.delta.shape[1] < 2:
        return None
    return (1.0 + outer.delta.min(1).values).clamp(1e-12, 1.0)


class FeatureBook:
    """Notes the features of the examples that this rank reads in pass 1.

    Args:
        job: `features` is None where nobody needs them; nothing is noted then.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._sums: dict[int, FeatureSums] = {}  # by shard
        self.kept: Kept | None = None
        self._losses: dict[int, Tensor] = {}  # by shard: sum, examples, logits; where known

    def note(
        self,
        shard: Shard,
        indices: NDArray[np.int64],
        class_ids: NDArray[np.int32],
        seen: Seen | None,
    ) -> None:
        """Note a batch; `class_ids` are those of the book at this time."""
        if seen is None:
            return
        if shard.number not in self._sums:
            width = seen.features.shape[1]
            self._sums[shard.number] = FeatureSums(width, self._places(width, shard))
        self._sums[shard.number].add(seen.features, class_ids, indices)
        if seen.outer is None:
            return
        self._note_loss(shard, seen.outer)
        if not self._job.keeps_seen or self._job.judges_alone:
            return
        if self.kept is None:
            own, outer = self._job.own_places, seen.outer
            sides = outer.delta.shape[1], outer.hidden.shape[1]
            delta, hidden = (np.empty((own.stop - own.start, s), np.float32) for s in sides)
            self.kept = Kept(delta, hidden, outer.bias, own.start, outer.delta.device)
        self.kept.put(indices, seen.outer)

    def _note_loss(self, shard: Shard, outer: OuterRows) -> None:
        """Add up the cross-entropy, where it is one."""
        of_labels = _of_labels(self._job, outer)
        if of_labels is None:
            return
        loss = -of_labels.double().log().sum()  # on its device, no wait
        now = torch.stack([loss, torch.full_like(loss, len(of_labels)), torch.zeros_like(loss)])
        now[_LOGITS] = outer.delta.shape[1]
        if shard.number in self._losses:
            now[:_LOGITS] += self._losses[shard.number][:_LOGITS].to(now.device)
        self._losses[shard.number] = now

    def _own_loss(self) -> tuple[float | None, float]:
        """Return the model's mean loss, None where too little is known of it, and that of a guess.

        It is the same on every rank, and for any number of ranks.
        """
        own = {number: found.cpu().numpy() for number, found in self._losses.items()}
        everyone = {
            n: found for of_rank in self._job.ranks.gather(own) for n, found in of_rank.items()
        }
        whole = np.array([everyone[number] for number in sorted(everyone)]).reshape(-1, 3)
        loss, count = whole[:, :_LOGITS].sum(0)
        guess = float(np.log(max(whole[:, _LOGITS].max(initial=1.0), 1.0)))
        return (float(loss / count) if count >= _ENOUGH else None), guess

    def part(self, shard: Shard) -> dict[str, NDArray[Any]]:
        """Return what a snapshot of a shard needs."""
        sums, losses = self._sums.get(shard.number), self._losses.get(shard.number)
        if sums is None:
            return {}
        noted = np.zeros(3) if losses is None else losses.cpu().numpy()
        return {_PREFIX + k: v for k, v in (sums.state() | {"losses": noted}).items()}

    def adopt(
        self, shard: Shard, arrays: dict[str, NDArray[Any]], positions: NDArray[np.int32]
    ) -> None:
        """Go on from a snapshot of a shard.

        Args:
            shard: The shard.
            arrays: What `part` gave.
            positions: int32 (C,), for each class id there the id here.

        Raises:
            ValueError: They do not fit.
        """
        if self._job.features is None:
            return
        state = {name: arrays[_PREFIX + name] for name in ("moments", "of_labels", "sample")}
        width = len(state["moments"]) - 1
        found = FeatureSums.of_state(self._places(width, shard), state)
        self._sums[shard.number] = FeatureSums(width, found.places)
        self._sums[shard.number].merge(found, positions)
        noted = arrays[_PREFIX + "losses"]
        if noted.shape != (3,) or noted.dtype != np.float64 or not np.isfinite(noted).all():
            raise ValueError(f"expected 3 finite numbers of the loss, got {noted.shape}")
        if noted[1] > 0:
            self._losses[shard.number] = torch.from_numpy(noted.copy())

    def finish(self, classes: ClassBook, order: NDArray[np.int64]) -> Readout | None:
        """Return the readout of all examples, the same on every rank; None without classes.

        Args:
            classes: The final classes.
            order: int64 (C,), the id in this book's sums of each final class.
        """
        job = self._job
        if job.features is None or not classes.are_classes or classes.count < 2:
            return None
        positions = np.empty(len(order), np.int32)
        positions[order] = np.arange(len(order), dtype=np.int32)
        own_loss, guess = self._own_loss()
        is_trained = own_loss is None or own_loss < _KNOWS_NOTHING * guess
        if own_loss is not None and not is_trained:
            warn(
                f"the model predicts no better than chance (mean loss {own_loss:.2f}, chance "
                f"{guess:.2f}), so little is known of what is hard or wrong; train it for an epoch "
                "first, or pass warmup_epochs=1 to SageSampler"
            )
        own = {}
        for number, sums in self._sums.items():
            own[number] = FeatureSums(sums.sample.shape[1], sums.places)  # on the host
            own[number].merge(sums, positions)
        self._sums.clear()
        everyone = {n: sums for of_rank in job.ranks.gather(own) for n, sums in of_rank.items()}
        width = everyone[0].sample.shape[1]
        whole = FeatureSums(width, sampled(job.reader.total, width, job.options.seed))
        for shard in job.shards:  # in one order, whoever has read them
            whole.merge(everyone[shard.number])
        return Readout.of(
            whole,
            classes.of(whole.places),
            is_trained=is_trained,
            own_loss=own_loss,
            first_reading=job.first_reading,
        )

    def _places(self, width: int, shard: Shard) -> NDArray[np.int64]:
        """Return the examples of a shard that are in the sample."""
        places = sampled(self._job.reader.total, width, self._job.options.seed)
        return places[(places >= shard.start) & (places < shard.stop)]
