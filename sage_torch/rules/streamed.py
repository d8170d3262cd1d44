"""Herding on a stream: block by block and shard by shard, without all coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import sage_torch._core as _core
from sage_torch.options import Options
from sage_torch.passes.scoring import Scored, ScoredBatch
from sage_torch.reading.classes import ClassBook
from sage_torch.rules.chosen import Chosen, Task
from sage_torch.rules.trimming import Trimming
from sage_torch.rules.whole import ORDER_BLOCK
from sage_torch.selection.draws import Draws

_STREAM_BLOCK = 1024  # examples herded together if only the quota is picked

_Order = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # order, starts, classes


@dataclass(frozen=True)
class _Picked:
    """The picks of herding in one shard."""

    trimmed: int
    order: NDArray[np.int64]  # (k,) as picked
    blocks: _Order | None = None  # of all untrimmed examples


class HerdingInBlocks:
    """Herding on a stream: block by block and shard by shard, without all coordinates."""

    def __init__(
        self,
        job: Task,
        options: Options,
        classes: ClassBook,
        quotas: NDArray[np.int64],
        width: int,
        trimming: Trimming,
    ) -> None:
        self._job, self._options = job, options
        self._quotas, self._trimming = quotas, trimming
        self._class_ids = classes.groups()
        self._is_order = options.draw == "rotate"
        of_shards = self._quotas_of_shards()
        self._streams = {
            shard.number: _core.BlockStream(
                classes.sizes(shard.places),
                of_shards[shard.number],
                width=width,
                trim=options.trim,
                whole_order=self._is_order,
                block_size=ORDER_BLOCK if self._is_order else _STREAM_BLOCK,
            )
            for shard in job.own
        }

    def take(self, batch: ScoredBatch) -> None:
        """Put a batch's examples into their blocks; herd full blocks."""
        stream = self._streams[batch.shard.number]
        groups = self._class_ids[batch.indices]
        trimmed_by = self._trimming.read(batch)
        masses = self._trimming.masses(batch)
        stream.add(batch.coordinates, trimmed_by, groups, batch.indices, masses=masses)

    def finish(self, scored: Scored) -> Chosen:
        """Choose the subset."""
        job = self._job
        parts = job.ranks.gather(
            job.ranks.together(lambda: [self._picked(shard.number) for shard in job.own])
        )
        picked = [part for of_rank in parts for part in of_rank]
        trimmed = sum(part.trimmed for part in picked)
        settings = self._trimming.settings(scored)
        if self._is_order:
            draws = self._joined([part.blocks for part in picked if part.blocks is not None])
            return Chosen(draws.epoch(0), trimmed, draws, settings=settings)
        order = np.concatenate([part.order for part in picked])
        turns = np.concatenate([(np.arange(n) + 0.5) / n for n in (len(p.order) for p in picked)])
        in_turn = np.lexsort((order, turns))  # shards take turns, as blocks do
        return Chosen.in_order(order[in_turn], trimmed, settings=settings)

    def _quotas_of_shards(self) -> NDArray[np.int64]:
        """Return how many of each class to keep in each shard, (S, C); they add up to quotas."""
        ids, classes = self._class_ids, len(self._quotas)
        counts = np.stack([np.bincount(ids[s.places], minlength=classes) for s in self._job.shards])
        parts = np.zeros_like(counts)
        for class_id in np.flatnonzero(self._quotas):
            of_class = counts[:, class_id].copy()
            parts[:, class_id] = _core.class_quotas(of_class, self._quotas[class_id])
        return parts

    def _picked(self, number: int) -> _Picked:
        stream = self._streams[number]
        if self._is_order:
            blocks = stream.finish_order()
            return _Picked(stream.trimmed, np.empty(0, np.int64), blocks=blocks)
        return _Picked(stream.trimmed, stream.finish())

    def _joined(self, orders: list[_Order]) -> Draws:
        blocks: list[tuple[int, NDArray[np.int64]]] = []
        for order, starts, of_blocks in orders:
            blocks += zip(of_blocks.tolist(), np.split(order, starts[1:-1]), strict=True)
        blocks.sort(key=lambda block: block[0])  # stable: within a class by shard
        return Draws(
            draw="rotate",
            order=np.concatenate([members for _, members in blocks]),
            starts=np.cumsum([0, *(len(members) for _, members in blocks)]),
            classes=np.array([class_id for class_id, _ in blocks], np.int64),
            quotas=self._quotas,
            seed=self._options.seed,
            is_herded=True,
        )
