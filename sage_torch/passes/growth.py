"""`sketch_size="auto"`: a sketch that gets more rows while too much of the energy is lost.

Agreement needs far fewer rows than energy does. In measurements, 64 rows rank examples nearly as
512 do (Spearman 0.97 and above), whether those 64 keep a third of the energy or nearly all of it
(benchmarks/choices/sketch_size.py). So growth begins at 64. The target, most of the energy, is a
compromise: the data show no threshold.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch.gradients.outer import Rows, add_to, part_of
from sage_torch.passes.job import Job
from sage_torch.reading.classes import ClassBook
from sage_torch.reading.reader import naming_the_example
from sage_torch.reading.shards import Shard

_LOG = logging.getLogger("sage_torch")
MOST_ROWS = 512
TARGET = 0.25  # share of the energy that may be lost
# A sketch of l rows is judged once, after this many times l examples. Later, energy that a larger
# sketch would have kept is lost. Sooner, most rows have never been shrunk.
EXAMPLES_A_ROW = 8
_ROWS_HELD = 3.5  # sketch, waiting rows (1.5 l) and a view of both, over l


class Growth:
    """Feeds a shard's sketch, and decides at fixed places of the shard how many rows it has.

    Args:
        job: `options.memory_budget`, number of examples and shards, mode.
        shard: The shard whose rows come, from the first on.
        classes: The classes of the shard's examples so far.
        size: Rows of the sketch if they are known; None if this shard decides.
    """

    def __init__(self, job: Job, shard: Shard, classes: ClassBook, size: int | None) -> None:
        self._job, self._shard, self._classes, self._size = job, shard, classes, size

    @property
    def first_rows(self) -> int:
        """Number of rows to begin with."""
        return self._job.plan.rows if self._size is None else self._size

    def is_settled(self, sketch: _core.FrequentDirections) -> bool:
        """Return whether a sketch has its final size."""
        place = EXAMPLES_A_ROW * sketch.sketch_size
        return (
            self._size is not None
            or sketch.sketch_size >= MOST_ROWS
            or place <= sketch.rows_seen
            or place > self._job.reader.total // 2  # too late to do much good
            or sketch.rows_seen >= len(self._shard)
        )

    def update(
        self,
        sketch: _core.FrequentDirections,
        rows: Rows,
        class_ids: NDArray[np.int32] | None,
        indices: NDArray[np.int64],
    ) -> None:
        """Add a batch, in parts that end where the sketch is judged.

        Args:
            sketch: The sketch, which may grow.
            rows: (n, d), or their factors.
            class_ids: (n,), if a consensus is carried along.
            indices: (n,), the examples of the rows.

        Raises:
            SageError: As the sketch's `update`; it names the example.
        """
        done, count = 0, len(indices)
        while done < count and not self.is_settled(sketch):
            due = EXAMPLES_A_ROW * sketch.sketch_size - sketch.rows_seen
            part = slice(done, min(done + due, count))
            self._add(sketch, rows, class_ids, indices, part)
            self._look(sketch)
            done = part.stop
        if done < count:
            self._add(sketch, rows, class_ids, indices, slice(done, count))

    def check(self, rows: int) -> None:
        """Refuse a loaded sketch whose number of rows is impossible here.

        Raises:
            ValueError: It is impossible.
        """
        most = MOST_ROWS if self._size is None else self._size
        if not self.first_rows <= rows <= most:
            raise ValueError(f"expected {self.first_rows} to {most} rows of a sketch, got {rows}")

    def _add(
        self,
        sketch: _core.FrequentDirections,
        rows: Rows,
        class_ids: NDArray[np.int32] | None,
        indices: NDArray[np.int64],
        part: slice,
    ) -> None:
        if part.stop - part.start < len(indices):  # else unchanged: `update` names errors
            rows, indices = part_of(rows, part), indices[part]
            class_ids = None if class_ids is None else class_ids[part]
        with naming_the_example(indices):
            add_to(sketch, rows, class_ids)

    def _look(self, sketch: _core.FrequentDirections) -> None:
        if sketch.rows_seen != EXAMPLES_A_ROW * sketch.sketch_size:
            return
        lost = lost_energy(sketch)
        grown = min(2 * sketch.sketch_size, self._most_rows(sketch))
        if lost > TARGET and grown > sketch.sketch_size:
            _LOG.info(
                "%s rows lose %.0f %% of the energy of %s examples: %s rows from here on",
                *(sketch.sketch_size, 100 * lost, sketch.rows_seen, grown),
            )
            sketch.grow(grown)

    def _most_rows(self, sketch: _core.FrequentDirections) -> int:
        """Return the most rows that the memory budget and the data allow."""
        job, seen = self._job, sketch.rows_seen
        total, shards = job.reader.total, len(job.shards)
        at_once = 1 + (shards - 1).bit_length()  # sketches, while shards wait to be merged
        of_row = at_once * _ROWS_HELD * 4 * sketch.dim
        of_sums = 0
        if job.mode.is_streaming:
            known = np.unique(self._classes.of(job.reader.indices(self._shard, 0, seen)))
            of_sums = at_once * len(known) * 4 * sketch.dim
        else:
            of_row += 4 * total  # the coordinates that pass 2 keeps
        room = int(max(0, job.options.memory_budget - of_sums) // of_row)
        return min(room, sketch.dim, total, MOST_ROWS)


def lost_energy(sketch: _core.FrequentDirections) -> float:
    """Return `1 - |S|_F^2 / |A|_F^2`, waiting rows included; 0 if there is no energy."""
    if not sketch.squared_norm > 0:
        return 0.0
    return 1.0 - float(np.sum(sketch.singular_values() ** 2)) / sketch.squared_norm
