"""What shards, ranks and snapshots cost: other indices, points of accuracy, seconds.

    python -m benchmarks.speed.shards --data fashion-mnist --data-root DIR

Accuracy is the gate's (tests/accuracy_gate.py, digits): networks trained on the subsets of 1 and of
8 shards, paired by seed. Ranks are processes of `torchrun` over gloo, one thread each, on this
machine; on two cores more of them cannot be faster than two.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.distributed as dist
import typer
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from benchmarks.quality.models import lenet
from benchmarks.record import RESULTS, environment, spread, write
from sage_torch import Selection, select_subset
from sage_torch.demo.data import DATA_ROOT_VARIABLE, load
from sage_torch.testing.comparison import t_quantile

KEEP, SHARDS = 0.25, 8


def examples(data: str, data_root: Path | None, count: int) -> TensorDataset:
    """Return pictures of 28 x 28 that LeNet takes."""
    loaded = load(data, data_root).with_train_examples(count)
    inputs, labels = loaded.train.tensors
    if inputs.shape[-1] != 28:
        inputs = nn.functional.interpolate(inputs, size=(28, 28))
    return TensorDataset(inputs, labels)


def network(dataset: TensorDataset) -> nn.Module:
    """Return LeNet after an epoch."""
    torch.manual_seed(0)
    model = lenet()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for inputs, labels in DataLoader(dataset, 64, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


def timed(model: nn.Module, dataset: TensorDataset, **options: Any) -> tuple[Selection, float]:
    start = time.perf_counter()
    selection = select_subset(model, dataset, KEEP, progress=False, **options)
    return selection, time.perf_counter() - start


def one_rank(out: Path, data: str, data_root: Path | None, count: int, rounds: int) -> None:
    """What torchrun starts."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    dataset = examples(data, data_root, count)
    model = network(dataset)
    seconds = []
    for _ in range(rounds):
        dist.barrier()
        selection, of_round = timed(model, dataset, shards=SHARDS)
        seconds.append(of_round)
    if dist.get_rank() == 0:
        found = {"indices": selection.indices.tolist(), "seconds": seconds}
        out.write_text(json.dumps(found))
    dist.destroy_process_group()


def with_ranks(size: int, data: str, data_root: Path | None, count: int, rounds: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = f"-m torch.distributed.run --standalone --nproc-per-node {size}".split()
        arguments = ["--data", data, "--examples", str(count), "--rounds", str(rounds)]
        if data_root is not None:
            arguments += ["--data-root", str(data_root)]
        subprocess.run(
            [sys.executable, *command, __file__, *arguments, "--out", str(out)], check=True
        )
        return json.loads(out.read_text())


def accuracy(flipped: float, seeds: int) -> dict[str, Any]:
    """Return points of accuracy of 8 shards against 1, paired by seed."""
    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    from accuracy_gate import Digits, train, warm_up

    digits = Digits(flipped)
    points = []
    for seed in range(seeds):
        model = warm_up(digits.train, seed)
        of_seed = []
        for shards in (1, SHARDS):
            chosen = select_subset(
                model, digits.train, KEEP, shards=shards, seed=seed, progress=False
            )
            subset = Subset(digits.train, chosen.indices.tolist())
            of_seed.append(digits.evaluate(train(subset, seed)))
        points.append(of_seed[1] - of_seed[0])
    half = t_quantile(0.975, seeds - 1) * float(np.std(points, ddof=1)) / seeds**0.5
    return {
        "data": "digits",
        "flipped": flipped,
        "seeds": seeds,
        "points": float(np.mean(points)),
        "half_width_95": half,
    }


def main(
    data: Annotated[str, typer.Option(help="digits or fashion-mnist")] = "digits",
    data_root: Annotated[
        Path | None, typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder with fashion-mnist/.")
    ] = None,
    count: Annotated[int, typer.Option("--examples", help="A random part of the data.")] = 10_000,
    rounds: Annotated[int, typer.Option(help="Of each timing.")] = 3,
    seeds: Annotated[int, typer.Option(help="Of the comparison of accuracies.")] = 64,
    out: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure and write the numbers down."""
    if out is not None:
        one_rank(out, data, data_root, count, rounds)
        return
    torch.set_num_threads(1)
    where = environment()
    dataset = examples(data, data_root, count)
    model = network(dataset)
    modes: dict[str, dict[str, Any]] = {
        "1 shard": {"shards": 1},
        "8 shards": {"shards": SHARDS},
        "8 shards, a snapshot every 30 s": {"shards": SHARDS, "checkpoint_every": 30.0},
        "8 shards, a snapshot every second": {"shards": SHARDS, "checkpoint_every": 1.0},
        "8 shards, a snapshot every batch": {"shards": SHARDS, "checkpoint_every": 0.0},
    }
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    found: dict[str, Selection] = {}
    for _ in range(rounds):
        for name, options in modes.items():
            with tempfile.TemporaryDirectory() as folder:
                more = {"checkpoint": folder} if "checkpoint_every" in options else {}
                found[name], of_round = timed(model, dataset, **options, **more)
            seconds[name].append(of_round)
    one, eight = found["1 shard"].indices, found["8 shards"].indices
    ranks = []
    for size in (1, 2, 4):
        of_ranks = with_ranks(size, data, data_root, count, rounds)
        differing = len(np.setdiff1d(of_ranks["indices"], eight))
        ranks.append(
            {"ranks": size, "differing": differing, "seconds": spread(of_ranks["seconds"])}
        )
    record = {
        "question": "What do shards, ranks and snapshots cost?",
        **where,
        "settings": {
            "data": data,
            "examples": len(dataset),
            "network": "LeNet, one epoch",
            "keep": KEEP,
            "kept": len(eight),
        },
        "results": {
            "one_process": {name: spread(values) for name, values in seconds.items()},
            "shared_by_1_and_8_shards": len(np.intersect1d(one, eight)) / len(one),
            "snapshots_change": {
                name: len(np.setdiff1d(selection.indices, eight))
                for name, selection in found.items()
                if "snapshot" in name
            },
            "ranks": ranks,
            "accuracy_of_8_shards_less_1": [accuracy(flipped, seeds) for flipped in (0.0, 0.2)],
        },
    }
    write(RESULTS / "shards.json", record)
    typer.echo(json.dumps(record["results"], indent=1))


if __name__ == "__main__":
    typer.run(main)
