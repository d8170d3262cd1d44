"""Selections that are killed, fail or find something else in their folder."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from sage_torch import Selection, select_subset
from sage_torch.checkpoint import snapshots

snapshots.SECONDS_BETWEEN = 0.0  # a snapshot after every batch, in forked children too

N, BATCH = 640, 32
BATCHES = N // BATCH  # of one pass


def digits() -> TensorDataset:
    pixels, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(pixels[:N] / 16).float(), torch.tensor(labels[:N]))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def select(dataset: Dataset[Any] | None = None, **options: Any) -> Selection:
    with warnings.catch_warnings():  # a thread pool exists where tests fork
        warnings.simplefilter("ignore", DeprecationWarning)
        data = digits() if dataset is None else dataset
        return select_subset(network(), data, 0.2, batch_size=BATCH, progress=False, **options)


def assert_same(ours: Selection, expected: Selection) -> None:
    """Not nearly: bit by bit."""
    for name in (
        "indices", "scores", "labels", "margins", "weights", "singular_values", "probabilities",
    ):  # fmt: skip
        assert np.array_equal(getattr(ours, name), getattr(expected, name)), name
    for certificate in (ours.certificate, expected.certificate):
        assert certificate is not None
    np.testing.assert_equal(asdict(ours.certificate), asdict(expected.certificate))  # NaN is NaN
    assert (ours.draws is None) == (expected.draws is None)
    if expected.draws is not None:
        assert np.array_equal(ours.epoch_indices(5), expected.epoch_indices(5))


class Counting:
    """A collate function that takes its time and writes down each batch that was read."""

    def __init__(self, path: Path, seconds: float = 0.0) -> None:
        self.path, self.seconds = path, seconds

    def __call__(self, items: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        time.sleep(self.seconds)
        with open(self.path, "a") as file:
            file.write("x")
        return [torch.stack(column) for column in zip(*items, strict=True)]

    @property
    def batches(self) -> int:
        return len(self.path.read_text()) if self.path.exists() else 0


def in_child(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    """Start `work` in a forked process, where importing torch costs nothing."""

    def child() -> None:
        torch.set_num_threads(1)
        work()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
    return process


class Failing(Dataset[tuple[Tensor, Tensor]]):
    """The digits, of which one cannot be read until it is mended."""

    def __init__(self, place: int) -> None:
        self.data, self.place = digits(), place

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.place:
            raise OSError("the disk is gone")
        return self.data[index]


def partly(folder: Path, **options: Any) -> None:
    """Leave snapshots of a selection that fails in pass 2."""

    class FailingLate:
        left = 2 + BATCHES + BATCHES // 2  # first the look for features and the probe

        def __call__(self, items: list[Any]) -> list[Tensor]:
            self.left -= 1
            if self.left < 0:
                raise OSError("gone")
            return [torch.stack(column) for column in zip(*items, strict=True)]

    with pytest.raises(OSError, match="gone"):
        select(checkpoint=folder, collate_fn=FailingLate(), **options)


def collate(items: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [torch.stack(column) for column in zip(*items, strict=True)]
