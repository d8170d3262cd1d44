"""Two processes train one model under `DistributedDataParallel` on the two halves of a subset."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from sage_torch import SageSampler

RANKS, BATCH, EPOCHS = 2, 16, 3
WORKERS: dict[str, dict[str, Any]] = {
    "here": {},
    "workers": {"num_workers": 2, "multiprocessing_context": "fork"},
    "persistent workers": {
        "num_workers": 2,
        "multiprocessing_context": "fork",
        "persistent_workers": True,
    },
}
Found = list[dict[str, Any]]


def digits() -> TensorDataset:
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.from_numpy(images / 16).float(), torch.from_numpy(labels).long()
    return TensorDataset(inputs[:601], targets[:601], torch.arange(601))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def make(model: nn.Module, **options: Any) -> SageSampler:
    given: Any = {"keep": 101, "loss": loss, "progress": False, "warmup_epochs": 1, **options}
    return SageSampler(model, **given)


def train(workers: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Train as every DDP script does; return what was seen."""
    data, model = digits(), DistributedDataParallel(network())
    sampler = make(model, **options)
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler, **workers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen, lengths = [], []
    for _ in range(EPOCHS):
        lengths.append((len(sampler), len(loader), sampler.steps_per_epoch(sampler.epoch, BATCH)))
        seen.append([])
        for inputs, targets, numbers in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            seen[-1].append(numbers.tolist())
    assert sampler.selection is not None
    return {
        "seen": seen,
        "lengths": lengths,
        "total_steps": sampler.total_steps(EPOCHS, BATCH),
        "kept": sampler.selection.indices,
        "weights": [parameter.detach().clone() for parameter in model.parameters()],
    }


def resume() -> list[list[int]]:
    """Stop in the midst of an epoch, and go on with another loader."""
    data, model = digits(), network()
    numbers = []

    def load() -> StatefulDataLoader:
        return StatefulDataLoader(data, batch_size=BATCH, sampler=make(model, warmup_epochs=0))

    loader = load()
    reading = iter(loader)
    numbers.append(next(reading)[2].tolist())
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    file.seek(0)
    loader = load()
    loader.load_state_dict(torch.load(file, weights_only=True))
    return numbers + [batch[2].tolist() for batch in loader]


def double_splits() -> dict[str, str]:
    """Split what is split already; return the errors."""
    data, model, errors = digits(), network(), {}

    class Wrapper(DistributedSampler[Any]):
        """What frameworks make of a sampler: its indices, split."""

        def __init__(self, sampler: SageSampler) -> None:
            super().__init__(TensorDataset(torch.arange(len(sampler))))
            self.dataset = types.SimpleNamespace(sampler=sampler)  # type: ignore[assignment]

        def __iter__(self) -> Any:
            indices = list(self.dataset.sampler)  # type: ignore[attr-defined]
            return iter(indices[self.rank :: self.num_replicas])

    for name, options in {"found": {}, "told": {"num_replicas": RANKS, "rank": 0}}.items():
        sampler = make(model, dataset=data, **options)
        loader = DataLoader(data, batch_size=BATCH, sampler=Wrapper(sampler))
        try:
            list(loader)
        except RuntimeError as error:
            errors[name] = str(error)
    return errors


def work(rank: int, folder: str) -> None:
    gc.freeze()  # a search for loaders need not look at what modules hold
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    try:
        found: dict[str, Any] = {name: train(workers) for name, workers in WORKERS.items()}
        generator = torch.Generator().manual_seed(rank)  # rank 0's counts
        found["generator"] = train({}, generator=generator)
        found["cut"] = train({}, drop_last=True, length="fixed")
        found["resumed"] = resume()
        alone = make(network(), num_replicas=1, rank=0, dataset=digits())
        found["alone"] = len(alone)
        found["errors"] = double_splits()
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found() -> Found:
    """What the ranks report, by rank: one spawn for all tests."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Both ranks fork from a server that has imported once what takes long.
            multiprocessing.set_forkserver_preload(["torch._dynamo", "sage_torch"])
            mp.start_processes(work, (folder,), nprocs=RANKS, start_method="forkserver")
            paths = [Path(folder, f"{rank}.pt") for rank in range(RANKS)]
            return [torch.load(path, weights_only=False) for path in paths]
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads


def flat(epoch: list[list[int]]) -> list[int]:
    return [number for batch in epoch for number in batch]


runs = pytest.mark.parametrize("name", [*WORKERS, "generator"])


@runs
def test_the_union_is_the_subset(name: str, found: Found) -> None:
    first, second = (rank[name] for rank in found)
    assert np.array_equal(first["kept"], second["kept"])
    assert len(first["kept"]) == 101
    for epoch in range(EPOCHS):
        halves = [flat(rank[name]["seen"][epoch]) for rank in found]
        expected = set(range(601)) if epoch == 0 else set(first["kept"].tolist())
        assert set(halves[0]) | set(halves[1]) == expected
        # 601 and 101 are odd: the first of the order comes twice, and nothing else does.
        assert [number for number in halves[0] if number in set(halves[1])] == [halves[0][0]]
        assert halves[1][-1] == halves[0][0]


@runs
def test_all_ranks_take_equally_many_steps(name: str, found: Found) -> None:
    for rank in found:
        run = rank[name]
        assert run["lengths"] == [(301, 19, 19), (51, 4, 4), (51, 4, 4)]
        assert [len(epoch) for epoch in run["seen"]] == [19, 4, 4]
        assert [len(flat(epoch)) for epoch in run["seen"]] == [301, 51, 51]
        assert run["total_steps"] == 27


def test_the_order_does_not_depend_on_how_it_is_read(found: Found) -> None:
    for rank in found:
        assert rank["here"]["seen"][0] == rank["workers"]["seen"][0]
        assert rank["workers"]["seen"] == rank["persistent workers"]["seen"]
        assert flat(rank["here"]["seen"][1]) != flat(rank["here"]["seen"][2])


def test_the_ranks_train_one_model(found: Found) -> None:
    for name in WORKERS:
        weights = [rank[name]["weights"] for rank in found]
        assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_the_generator_of_rank_0_orders_all(found: Found) -> None:
    assert found[0]["generator"]["seen"][0] != found[0]["here"]["seen"][0]


def test_cut_and_fixed_length(found: Found) -> None:
    halves = [flat(rank["cut"]["seen"][0]) for rank in found]
    assert [len(half) for half in halves] == [300, 300]
    assert not set(halves[0]) & set(halves[1])
    kept = set(found[0]["cut"]["kept"].tolist())
    for epoch in (1, 2):
        both = [flat(rank["cut"]["seen"][epoch]) for rank in found]
        assert [len(half) for half in both] == [300, 300]
        counts = np.bincount(both[0] + both[1], minlength=601)
        assert set(np.flatnonzero(counts).tolist()) == kept
        assert set(counts[sorted(kept)].tolist()) <= {5, 6}  # 600 of 101, evenly


def test_resume_mid_epoch(found: Found) -> None:
    halves = [flat(rank["resumed"]) for rank in found]
    assert [len(half) for half in halves] == [51, 51]
    assert len(set(halves[0]) | set(halves[1])) == 101


def test_one_replica_is_not_split(found: Found) -> None:
    assert [rank["alone"] for rank in found] == [601, 601]


def test_double_splitting_is_refused(found: Found) -> None:
    for rank in found:
        assert "Wrapper" in rank["errors"]["found"]
        assert "Wrapper does so for 2 and SageSampler for 2" in rank["errors"]["told"]
