"""Data that each process opens for itself: training reads the right records with SAGE too."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sage_torch import SageSampler

N, NUMBERS, EPOCHS = 48, 256, 20


class Opened(Dataset[Any]):
    """Opens its file when it is first read. An example tells whether its record was the right one.

    Attributes:
        file: The open file; None in a process that has read nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.file = str(folder / "records"), None
        self.write()

    def write(self) -> None:
        raise NotImplementedError

    def open(self) -> Any:
        raise NotImplementedError

    def record(self, index: int) -> np.ndarray[Any, Any]:
        raise NotImplementedError

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int, bool]:
        if self.file is None:
            self.file = self.open()
        record = self.record(index)
        is_right = len(record) == NUMBERS and bool((record == index).all())
        inputs = torch.full((4,), float(index % 5)) + torch.arange(4) * (index % 3)
        return inputs, index % 3, is_right


class Plain(Opened):
    def write(self) -> None:
        records = np.repeat(np.arange(N, dtype=np.int32), NUMBERS)
        Path(self.path).write_bytes(records.tobytes())

    def open(self) -> Any:
        return open(self.path, "rb", buffering=0)

    def record(self, index: int) -> np.ndarray[Any, Any]:
        self.file.seek(4 * NUMBERS * index)
        parts = [self.file.read(NUMBERS) for _ in range(4)]
        return np.frombuffer(b"".join(parts), np.int32)


class Sqlite(Opened):
    def write(self) -> None:
        with sqlite3.connect(self.path) as connection:
            connection.execute("create table records (place integer primary key, numbers blob)")
            rows = [(i, np.full(NUMBERS, i, np.int32).tobytes()) for i in range(N)]
            connection.executemany("insert into records values (?, ?)", rows)
        connection.close()

    def open(self) -> Any:
        return sqlite3.connect(self.path)

    def record(self, index: int) -> np.ndarray[Any, Any]:
        query = "select numbers from records where place = ?"
        return np.frombuffer(self.file.execute(query, (index,)).fetchone()[0], np.int32)


class Hdf5(Opened):
    def write(self) -> None:
        h5py = pytest.importorskip("h5py")
        with h5py.File(self.path, "w") as file:
            file["records"] = np.repeat(np.arange(N, dtype=np.int32), NUMBERS).reshape(N, NUMBERS)

    def open(self) -> Any:
        import h5py

        return h5py.File(self.path, "r")

    def record(self, index: int) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self.file["records"][index]
        return found


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


WORKERS: dict[str, dict[str, Any]] = {
    "no workers": {},
    "fork": {"num_workers": 2, "multiprocessing_context": "fork"},
    "fork persistent": {
        "num_workers": 2,
        "multiprocessing_context": "fork",
        "persistent_workers": True,
    },
    "spawn": {"num_workers": 2, "multiprocessing_context": "spawn"},
    "spawn persistent": {
        "num_workers": 2,
        "multiprocessing_context": "spawn",
        "persistent_workers": True,
    },
}
QUICK = {
    *((kind, how) for kind in (Plain, Sqlite, Hdf5) for how in ("no workers", "fork persistent")),
    (Plain, "fork"),
}


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        pytest.param(
            kind,
            how,
            marks=() if (kind, how) in QUICK else pytest.mark.slow,
            id=f"{kind.__name__}-{how}",
        )
        for kind in (Plain, Sqlite, Hdf5)
        for how in WORKERS
    ],
)
def test_training_reads_the_right_records(kind: type[Opened], how: str, tmp_path: Path) -> None:
    options = WORKERS[how]
    context = options.get("multiprocessing_context")
    if context is not None and context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {context} here")
    data, model = kind(tmp_path), nn.Linear(4, 3)
    every = 10 if context == "spawn" else 4
    sampler = SageSampler(model, keep=0.5, loss=loss, refresh_every=every, progress=False)
    loader = DataLoader(data, 4, sampler=sampler, **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    read = 0
    for _ in range(EPOCHS):
        for batch in loader:
            assert bool(batch[2].all())
            optimizer.zero_grad()
            loss(model, batch).mean().backward()
            optimizer.step()
            read += len(batch[2])
        assert (data.file is None) == bool(options)
    assert read == EPOCHS * N // 2
