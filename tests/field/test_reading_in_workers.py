"""A selection reads as the loader reads, and with workers nothing in the main process."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, get_worker_info

import sage_torch.reading.loading as loading
from sage_torch import SageSampler, select_subset
from sage_torch.sampler.source import given_source, source_of


class WorkersOnly(Dataset[Any]):
    """Raises where the main process reads it; ready for others after `prepare`, if asked to be."""

    def __init__(self, blobs: TensorDataset, *, is_ready: bool = True) -> None:
        self.blobs, self.is_ready = blobs, is_ready

    def __len__(self) -> int:
        return len(self.blobs)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        assert get_worker_info() is not None, "read in the main process"
        assert self.is_ready, "read by a worker that is not prepared"
        return self.blobs[index]

    @property
    def targets(self) -> Tensor:
        raise AssertionError("read in the main process")


def prepare(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.is_ready = True


@pytest.mark.parametrize("rule", ["herding", "random"])
@pytest.mark.parametrize("is_saved", [False, True])
def test_select_subset_with_workers_reads_nothing_here(
    rule: Any, is_saved: bool, network: nn.Module, blobs: TensorDataset, tmp_path: Path
) -> None:
    folder = tmp_path / "snapshots" if is_saved else None
    found = select_subset(
        network, WorkersOnly(blobs), 0.5, rule=rule, num_workers=1, checkpoint=folder
    )
    expected = select_subset(network, blobs, 0.5, rule=rule)
    assert np.array_equal(found.indices, expected.indices)
    if is_saved:  # finished there: nothing but the probe is read again
        again = select_subset(
            network, WorkersOnly(blobs), 0.5, rule=rule, num_workers=2, checkpoint=folder
        )
        assert again.seconds == found.seconds


@pytest.mark.parametrize("is_given", [False, True])
def test_a_sampler_reads_as_its_loader(
    is_given: bool, network: nn.Module, blobs: TensorDataset
) -> None:
    data = WorkersOnly(blobs, is_ready=False)
    sampler = SageSampler(network, data if is_given else None, keep=0.5)
    loader = DataLoader(data, 9, sampler=sampler, num_workers=1, worker_init_fn=prepare)
    assert sum(len(labels) for _, labels in loader) == 45
    assert sampler.selection is not None
    assert sampler.selection.settings["num_workers"] == 1
    assert not data.is_ready


@pytest.mark.parametrize("is_given", [False, True])
def test_workers_given_to_the_sampler_win(
    is_given: bool, network: nn.Module, blobs: TensorDataset
) -> None:
    sampler = SageSampler(network, blobs if is_given else None, keep=0.5, num_workers=0)
    loader = DataLoader(blobs, 9, sampler=sampler, num_workers=2)
    assert len(loader) == 5
    assert sampler.select().settings["num_workers"] == 0
    more = SageSampler(network, blobs if is_given else None, keep=0.5, num_workers=2)
    loader = DataLoader(blobs, 9, sampler=more)
    assert more.select().settings["num_workers"] == 2
    assert loader.num_workers == 0


def doubled(examples: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    inputs, labels = zip(*examples, strict=True)
    return 2 * torch.stack(inputs), torch.stack(labels)


def test_a_data_set_of_its_own_is_joined_as_by_its_loader(
    network: nn.Module, blobs: TensorDataset
) -> None:
    expected = select_subset(network, blobs, 0.5, collate_fn=doubled)
    sampler = SageSampler(network, blobs, keep=0.5)
    loader = DataLoader(blobs, 9, sampler=sampler, collate_fn=doubled)
    assert np.array_equal(sampler.select().scores, expected.scores)
    del loader
    view = DataLoader(TensorDataset(*blobs.tensors), 9, sampler=sampler, collate_fn=doubled)
    plain = select_subset(network, blobs, 0.5)
    assert np.array_equal(sampler.select().scores, plain.scores)  # another view has its own
    assert len(view) == 5


def test_what_is_taken_of_a_loader(blobs: TensorDataset) -> None:
    options: dict[str, Any] = {
        "collate_fn": doubled,
        "worker_init_fn": prepare,
        "multiprocessing_context": "spawn",
        "pin_memory": True,
        "prefetch_factor": 5,
        "timeout": 7,
    }
    busy = DataLoader(blobs, 6, num_workers=3, **options)
    idle = DataLoader(blobs, 4, collate_fn=doubled)
    for found in (source_of([idle, busy]), given_source(blobs, [busy, idle])):
        taken = found.loading
        assert found.dataset is blobs
        assert (taken.num_workers, taken.batch_size) == (3, 6)
        assert taken.collate_fn is doubled
        assert taken.worker_init_fn is prepare
        assert taken.multiprocessing_context is busy.multiprocessing_context
        assert (taken.pin_memory, taken.prefetch_factor, taken.timeout) == (True, 5, 7)
    assert given_source(blobs, []).loading == loading.Loading()
    two = [DataLoader(blobs, 4, collate_fn=doubled), DataLoader(blobs, 4)]
    assert given_source(blobs, two).loading.collate_fn is None
    assert source_of([DataLoader(blobs, batch_size=None)]).loading.collate_fn is None


class Seen(Exception):
    """Holds the arguments of a loader."""


def seen(*_: object, **options: Any) -> None:
    raise Seen(options)


@pytest.mark.parametrize(
    ("batch_size", "ahead", "timeout"), [(6, 5, 7), (3, 10, 7), (16, 1, 21), (600, 1, 700)]
)
def test_no_more_is_read_ahead_than_by_the_loader(
    batch_size: int,
    ahead: int,
    timeout: int,
    blobs: TensorDataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = loading.Loading(num_workers=2, prefetch_factor=5, timeout=7, batch_size=6)
    monkeypatch.setattr(loading, "DataLoader", seen)
    with pytest.raises(Seen) as caught:
        taken.open(blobs, batch_size=batch_size, seed=0)
    options = caught.value.args[0]
    assert (options["prefetch_factor"], options["timeout"]) == (ahead, timeout)


class Sometimes(Dataset[Any]):
    """Turned around with a probability drawn from one of the global generators."""

    def __init__(self, draw: Callable[[], float], share: float = 0.5, total: int = 60) -> None:
        self.draw, self.share, self.total, self.readings = draw, share, total, 0

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.readings += 1
        inputs = torch.arange(6.0) + index
        return (inputs.flip(0) if self.draw() < self.share else inputs), index % 3


DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand(())),
    "numpy": lambda: float(np.random.rand()),  # noqa: NPY002
    "python": random.random,
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_view_drawn_in_half_of_the_readings_is_noticed(name: str, network: nn.Module) -> None:
    warned = 0
    for seed in range(20):
        with pytest.warns(UserWarning, match="score_dataset=") as caught:
            select_subset(network, Sometimes(DRAWS[name], total=60 + seed), 0.5, seed=seed)
        warned += len(caught)
    assert warned == 20


def test_a_rare_change_is_noticed_often(network: nn.Module) -> None:
    warned = 0
    for seed in range(20):
        data = Sometimes(DRAWS["torch"], share=0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            select_subset(network, data, 0.5, seed=seed)
        warned += any("score_dataset=" in str(warning.message) for warning in caught)
    assert warned > 10


@pytest.mark.parametrize("total", [3, 4, 60])
def test_few_readings_look_for_it(total: int, network: nn.Module) -> None:
    data = Sometimes(DRAWS["torch"], share=0.0, total=total)
    select_subset(network, data, 3)
    assert data.readings <= 2 * total + 16


def test_a_worker_looks_for_it(network: nn.Module) -> None:
    for num_workers in (1, 2):
        data = Sometimes(DRAWS["torch"])
        with pytest.warns(UserWarning, match="score_dataset="):
            select_subset(network, data, 0.5, num_workers=num_workers)
        assert data.readings == 0


class Noted:
    """A `worker_init_fn` that notes each worker that starts, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, worker: int) -> None:
        with self.path.open("a") as file:
            file.write(f"{worker}\n")


def test_workers_start_once_for_all_shards_and_passes(
    network: nn.Module, blobs: TensorDataset, tmp_path: Path
) -> None:
    before = set(multiprocessing.active_children())
    notes = tmp_path / "started"
    sampler = SageSampler(network, keep=0.5, shards=5)
    loader = DataLoader(blobs, 9, sampler=sampler, num_workers=2, worker_init_fn=Noted(notes))
    sampler.select()
    assert len(loader) == 5
    assert sorted(notes.read_text().split()) == ["0", "1"]
    assert set(multiprocessing.active_children()) <= before


def test_workers_stop_after_an_error(network: nn.Module, blobs: TensorDataset) -> None:
    before = set(multiprocessing.active_children())
    calls = itertools.count()

    def fails(batch: Any) -> Tensor:
        if next(calls) == 4:
            raise OSError("no more")
        return batch[0]

    with pytest.raises(OSError, match="no more"):
        select_subset(
            network, blobs, 0.5, gradients=fails, num_workers=2, batch_size=9, progress=False
        )
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("name", DRAWS)
def test_a_random_view_is_that_of_its_batch_whoever_reads_it(name: str, network: nn.Module) -> None:
    with pytest.warns(UserWarning, match="score_dataset="):
        found = [
            select_subset(
                network, Sometimes(DRAWS[name]), 0.5, shards=3, batch_size=8, num_workers=count
            )
            for count in (0, 1, 2)
        ]
    for other in found[1:]:
        assert np.array_equal(other.scores, found[0].scores)


VIEWS: list[Callable[[SageSampler, DataLoader[Any]], object]] = [
    lambda sampler, loader: list(loader),
    lambda sampler, loader: sampler.select(),
    lambda sampler, loader: sampler.indices,
]


@pytest.mark.parametrize("use", VIEWS, ids=["iter", "select", "indices"])
@pytest.mark.parametrize("warmup_epochs", [0, 1])
@pytest.mark.parametrize("other", [30, 89, 91])
def test_a_loader_over_another_data_set_is_refused(
    use: Callable[[SageSampler, DataLoader[Any]], object],
    warmup_epochs: int,
    other: int,
    network: nn.Module,
    blobs: TensorDataset,
) -> None:
    sampler = SageSampler(network, blobs, keep=0.5, warmup_epochs=warmup_epochs)
    theirs = TensorDataset(torch.randn(other, 6), torch.arange(other) % 3)
    loader = DataLoader(theirs, 8, sampler=sampler)
    match = rf"data set of 90 examples.*data set of {other} .*same data set"
    with pytest.raises(RuntimeError, match=match):
        use(sampler, loader)
    assert sampler.selection is None


class NoLength(Dataset[Any]):
    def __getitem__(self, index: int) -> int:
        return index


def test_loaders_over_another_view_and_without_a_length_are_not(
    network: nn.Module, blobs: TensorDataset
) -> None:
    for view in (TensorDataset(*blobs.tensors), NoLength()):
        sampler = SageSampler(network, blobs, keep=0.5)
        loader = DataLoader(view, 9, sampler=sampler)
        assert len(list(loader)) == 5
