"""Passes that read labels and need no gradient: for rules that go by labels alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sage_torch.gradients.features import Seen, see
from sage_torch.passes.calibration import Judged
from sage_torch.passes.features import FeatureBook, own_probabilities
from sage_torch.passes.job import Job
from sage_torch.passes.readout import Readout
from sage_torch.reading.classes import EARLY, ClassBook
from sage_torch.reading.reader import naming_the_example
from sage_torch.reading.shards import Shard

Floats = NDArray[np.float32]

_AT_ONCE = 4_096  # examples judged at once


class Labelled(NamedTuple):
    """What is known of all labels, the same on every rank."""

    classes: ClassBook
    readout: Readout
    judged: Judged  # (N,)


def label_pass(job: Job) -> ClassBook:
    """Read only the labels, which are all that `rule="random"` needs.

    Cost:
        The data set is read once; no gradient is computed.
    """
    classes = class_book(job)

    def read() -> None:
        with job.reader.progress("SAGE: read labels", job.own) as bar:
            for shard in job.own:
                done = 0
                for indices, _, labels in job.reader.batches(shard):
                    noted(job, shard, classes, indices, labels, done)
                    done += len(indices)
                    bar.update(len(indices))

    job.ranks.together(read)
    share_classes(job, classes)
    classes.finish()
    return classes


def judging_pass(job: Job) -> Labelled | None:
    """Judge the labels of all examples by their features, without gradients and a sketch.

    Args:
        job: Its features are known. Where `keeps_seen` does not hold, the data are read twice.

    Returns:
        What is known of the labels; None if they turn out to be no classes.

    Raises:
        SageError: A loss or a feature is not finite (names the example), or another rank failed.

    Cost:
        One forward pass per example, or two. Memory: 16 bytes per example, and with `keeps_seen`
        4 (H + 1) more for H features.
    """
    classes, features, held = class_book(job), FeatureBook(job), _Held.of(job)

    def read() -> None:
        title = "SAGE: judge labels" if held else "SAGE pass 1 of 2: read features"
        with job.reader.progress(title, job.own) as bar:
            for shard in job.own:
                done = 0
                for indices, batch, labels in job.reader.batches(shard):
                    class_ids = noted(job, shard, classes, indices, labels, done)
                    with naming_the_example(indices):
                        seen = _see(job, batch)
                    features.note(shard, indices, class_ids, seen)
                    if held:
                        held.put(indices, *_on_host(job, seen))
                    done += len(indices)
                    bar.update(len(indices))

    job.ranks.together(read)
    share_classes(job, classes)
    order = classes.finish()
    readout = job.ranks.together(lambda: features.finish(classes, order))
    if readout is None:
        return None
    own = job.ranks.together(lambda: _judged(job, classes, readout, held))
    return Labelled(classes, readout, Judged(*job.ranks.joined_all(own)))


def _judged(job: Job, classes: ClassBook, readout: Readout, held: _Held | None) -> Judged:
    """Return what is known of the labels of this rank's examples."""
    own = job.own_places
    judged = Judged.empty(own.stop - own.start)
    for indices, hidden, likely in held.parts() if held else _read_again(job, classes):
        found = readout.judged(hidden, classes.of(indices), likely)
        for whole, part in zip(judged, found, strict=True):
            whole[indices - own.start] = part
    return judged


def _read_again(
    job: Job, classes: ClassBook
) -> Iterator[tuple[NDArray[np.int64], Floats, Floats | None]]:
    with job.reader.progress("SAGE pass 2 of 2: judge labels", job.own) as bar:
        for shard in job.own:
            for indices, batch, labels in job.reader.batches(shard):
                classes.check(indices, labels)
                with naming_the_example(indices):
                    hidden, likely = _on_host(job, _see(job, batch))
                yield indices, hidden, likely
                bar.update(len(indices))


def _see(job: Job, batch: Any) -> Seen:
    assert job.features is not None
    return see(job.features, batch)


def _on_host(job: Job, seen: Seen) -> tuple[Floats, Floats | None]:
    """Return features (n, H) and `own_probabilities` (n,)."""
    return seen.features.cpu().numpy(), own_probabilities(job, seen.outer)


@dataclass
class _Held:
    """What the forward pass has shown of this rank's examples, on the host.

    It is made where nothing is to be read again; arrays are made when their width is known.
    """

    first: int
    count: int
    hidden: Floats | None = None  # (n, H)
    likely: Floats | None = None  # (n,), the model's own probabilities of the labels

    @classmethod
    def of(cls, job: Job) -> _Held | None:
        own = job.own_places
        return cls(own.start, own.stop - own.start) if job.keeps_seen else None

    def put(self, indices: NDArray[np.int64], hidden: Floats, likely: Floats | None) -> None:
        """Keep those of a batch."""
        if self.hidden is None:
            self.hidden = np.empty((self.count, hidden.shape[1]), np.float32)
            self.likely = None if likely is None else np.empty(self.count, np.float32)
        self.hidden[indices - self.first] = hidden
        if self.likely is not None and likely is not None:
            self.likely[indices - self.first] = likely

    def parts(self) -> Iterator[tuple[NDArray[np.int64], Floats, Floats | None]]:
        """Yield indices, features and own probabilities, some at once."""
        if self.hidden is None:  # a rank without examples
            return
        for start in range(0, self.count, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            hidden = self.hidden[part]
            indices = self.first + np.arange(start, start + len(hidden))
            yield indices, hidden, None if self.likely is None else self.likely[part]


def class_book(job: Job) -> ClassBook:
    """Return an empty book of the classes of all examples."""
    labels = job.reader.labels
    return ClassBook(job.reader.total, job.options.class_balanced, labels.certainty)


def noted(
    job: Job,
    shard: Shard,
    classes: ClassBook,
    indices: NDArray[np.int64],
    labels: NDArray[Any] | None,
    done: int,
) -> NDArray[np.int32]:
    """Note a batch's labels and return its class ids; after `EARLY` examples, look at them."""
    classes.add(indices, labels)
    if done < EARLY <= done + len(indices):
        classes.look_early(job.reader.indices(shard, 0, EARLY))
    return classes.of(indices)


def share_classes(job: Job, classes: ClassBook) -> None:
    """Send every rank the classes of all examples."""
    if job.ranks.size == 1:
        return
    parts = job.ranks.gather((job.own_places, classes.part(job.own_places)))
    for rank, (places, part) in enumerate(parts):
        if rank != job.ranks.rank and places.stop > places.start:
            classes.adopt(places, part)
