"""Streams that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset, get_worker_info

Numbered = tuple[Tensor, int, int]


class Repeated(IterableDataset[Any]):
    """`(input, label, place)` of a data set, shuffled and repeated, cut up among workers."""

    def __init__(self, data: TensorDataset, times: int = 1, order: Tensor | None = None) -> None:
        count = len(data)
        self.inputs, self.labels = data.tensors
        self.order = order
        if order is None:
            random = torch.Generator().manual_seed(0)
            self.order = torch.cat([torch.randperm(count, generator=random) for _ in range(times)])

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Numbered]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for place in range(first, len(self.order), step):
            index = self.order[place]
            yield self.inputs[index], int(self.labels[index]), place


class WithState(Repeated):
    """The same, and it can say where it is; it counts what it is asked for."""

    place, given, epoch = 0, 0, 0

    def __iter__(self) -> Iterator[Numbered]:
        while self.place < len(self):
            self.given, self.place = self.given + 1, self.place + 1
            index = self.order[self.place - 1]
            yield self.inputs[index], int(self.labels[index]), self.place - 1
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def without_places(examples: list[Numbered]) -> tuple[Tensor, Tensor]:
    """What is scored: inputs and labels."""
    return torch.stack([one[0] for one in examples]), torch.tensor([one[1] for one in examples])
