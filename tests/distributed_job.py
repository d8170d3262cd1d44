"""What each rank of tests/end_to_end/test_distributed.py runs.

As a script it forks the ranks of one job after another, so that what takes long is imported once.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from sage_torch import SageSampler, select_subset
from sage_torch.checkpoint import snapshots
from sage_torch.passes import growth

SHARDS, KEEP = 8, 0.2


def with_record(items: list[Any]) -> Any:
    """Batches (inputs, record, labels), in which nearly every record is another one."""
    inputs, labels = default_collate(items)
    record = (inputs.double() @ torch.arange(inputs.shape[1]).double()).mul(100).round().long()
    return inputs, record, labels


def of_labels(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[2], reduction="none")


CASES: dict[str, dict[str, Any]] = {
    "herding": {},
    "streaming": {"consensus": "streaming", "keep_coordinates": True},
    "one pass": {"consensus": "one_pass", "draw": "rotate"},
    "weights": {"keep_coordinates": True},
    "rotate": {"draw": "rotate"},
    "rotate, streaming": {"draw": "rotate", "consensus": "streaming"},
    "agreement": {"rule": "agreement", "keep_coordinates": True},
    "random": {"rule": "random", "draw": "random"},
    "global": {"class_balanced": False},
    "no classes": {"consensus": "streaming", "collate_fn": with_record, "loss": of_labels},
    "auto size": {"sketch_size": "auto"},
}


def images() -> TensorDataset:
    """Fashion-MNIST's test images where there is a data root, else scikit-learn's digits."""
    root = os.environ.get("SAGE_TORCH_DATA")
    if root:
        from sage_torch.demo.data import load

        pixels, labels = load("fashion-mnist", root).train.tensors
        return TensorDataset(pixels[:4_000].flatten(1).clone(), labels[:4_000])
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(pixels / 16).float(), torch.tensor(labels))


def network(data: TensorDataset) -> nn.Module:
    """A small network with running statistics, a little trained."""
    inputs, labels = data.tensors
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(inputs.shape[1], 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for start in range(0, 1_600, 64):
        batch = slice(start, start + 64)
        nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step(), optimizer.zero_grad()
    return model


class Broken(Dataset[Any]):
    """One example of it cannot be read, and may take its process along."""

    def __init__(self, data: TensorDataset, place: int, *, deadly: bool = False) -> None:
        self.data, self.place, self.deadly = data, place, deadly

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        if index == self.place and self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.place:
            raise OSError("the disk is gone")
        return self.data[index]


def refused(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def selections(data: TensorDataset, model: nn.Module) -> dict[str, Any]:
    """Select in every mode."""
    found = {}
    for name, options in CASES.items():
        # The first shard is short: what little 64 rows lose of it is made enough to grow.
        with patch.multiple(growth, EXAMPLES_A_ROW=2, TARGET=0.01):
            chosen = {"sketch_size": 32} | options
            selection = select_subset(model, data, KEEP, shards=SHARDS, progress=False, **chosen)
        assert (selection.labels is None) == (name == "no classes")
        rows = selection.settings.get("sketch_rows", 32)
        assert rows == (32 if chosen["sketch_size"] == 32 else 128), rows
        found[name] = (
            selection.epoch_indices(3),
            selection.scores,
            selection.margins,
            selection.probabilities,
            selection.labels,
            None if selection.coordinates is None else selection.find_weights().weights,
            None if selection.certificate is None else asdict(selection.certificate),
            selection.ranks,
            selection.predicted,
            selection.recut(keep=0.1).indices if selection.coordinates is not None else None,
        )
    return found


def train(data: TensorDataset, model: nn.Module) -> dict[str, Any]:
    """Train under DDP for three epochs, the sampler selecting on the way."""
    parallel = DistributedDataParallel(model)
    sampler = SageSampler(
        parallel, data, keep=KEEP, warmup_epochs=1, refresh_every=1, progress=False, sketch_size=32
    )
    loader = DataLoader(data, batch_size=32, sampler=sampler)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.05)
    lengths, subsets = [], []
    for _ in range(3):
        lengths.append((len(loader), sum(1 for _ in _steps(parallel, loader, optimizer))))
        selection = sampler.selection
        subsets.append(None if selection is None else selection.indices)
    weights = torch.cat([p.detach().flatten() for p in parallel.parameters()])
    statistics = [buffer.clone() for buffer in model.buffers()]
    return {
        "lengths": lengths, "subsets": subsets, "weights": weights, "statistics": statistics
    }  # fmt: skip


def _steps(model: nn.Module, loader: DataLoader[Any], optimizer: torch.optim.Optimizer) -> Any:
    for inputs, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        yield


def work(out: Path, what: str, rank: int, ranks: int) -> None:
    snapshots.SECONDS_BETWEEN = 0.0
    store = f"file://{out}/store-{what}-{ranks}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    data = images()
    model = network(data)
    options: dict[str, Any] = {"progress": False, "shards": SHARDS, "sketch_size": 32}
    result: dict[str, Any] = {}
    if what == "killed":  # the last rank dies in pass 1
        broken = Broken(data, len(data) - 1, deadly=True)
        checkpoint = {"checkpoint": out / "snapshots"}
        result["killed"] = refused(
            lambda: select_subset(model, broken, KEEP, **options, **checkpoint)
        )
    else:
        result["selections"] = selections(data, model)
        broken = Broken(data, len(data) - 1)  # read by the last rank only
        result["failed"] = refused(lambda: select_subset(model, broken, KEEP, **options))
        other = network(data)
        if rank == 1:
            with torch.no_grad():
                next(other.parameters())[0, 0] += 1
        result["other model"] = refused(lambda: select_subset(other, data, KEEP, **options))
        keep = KEEP if rank == 0 else KEEP / 2
        result["other keep"] = refused(lambda: select_subset(model, data, keep, **options))
        folder = {"checkpoint": out / "of-rank-0"} if rank == 0 else {}
        result["other folder"] = refused(
            lambda: select_subset(model, data, KEEP, **options, **folder)
        )
        count = KEEP if rank else len(data) + 1
        result["too many"] = refused(lambda: select_subset(model, data, count, **options))
        few = TensorDataset(*data[:5])
        result["few"] = select_subset(model, few, 2, class_balanced=False, progress=False).indices
        folder_of_all = out / f"finished-{ranks}"
        for _ in range(2):  # the second time it is there
            finished = select_subset(model, data, KEEP, checkpoint=folder_of_all, **options)
        result["finished"] = (finished, sorted(path.name for path in folder_of_all.iterdir()))
        if rank == 0:  # others do not take part
            alone = select_subset(
                model, data, KEEP, distributed=False, progress=False, sketch_size=32
            )
            result["alone"] = alone.indices
        statistics = model[1].running_mean.clone() + rank
        model[1].running_mean.copy_(statistics)  # as after a step of DDP
        same = select_subset(model, data, KEEP, progress=False, sketch_size=32)
        result["own statistics"] = (same.indices, torch.equal(model[1].running_mean, statistics))
        sampler = SageSampler(
            model, data, keep=KEEP, refresh_every=lambda epoch: rank == 0, progress=False,
            sketch_size=32,
        )  # fmt: skip
        made = []
        for _ in range(2):  # rank 0 wants another selection, and its word counts
            list(sampler)
            made.append(sampler.selection)
        result["refreshed"] = made[0] is not made[1]
        result["training"] = train(data, network(data))
    path = out / f"{rank}-of-{ranks}.pickle"
    path.write_bytes(pickle.dumps(result))
    if what != "killed":
        dist.destroy_process_group()


def main(out: Path, what: str, ranks: int) -> None:
    """Run one job; write down how each rank ended."""
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=work, args=(out, what, rank, ranks), daemon=True)
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)  # one that hangs has no exit code, and dies with this process
    codes = [process.exitcode for process in processes]
    (out / f"ended-{ranks}.pickle").write_bytes(pickle.dumps(codes))


if __name__ == "__main__":
    import torch._dynamo  # as DDP does, in each rank

    torch.set_num_threads(1)
    gc.freeze()  # a search for loaders need not look at what modules hold
    for folder, job, size in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3], strict=True):
        main(Path(folder), job, int(size))
