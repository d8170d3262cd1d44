"""What shards, ranks and snapshots cost: other indices, points of accuracy, seconds.

    python -m benchmarks.speed.shards --data fashion-mnist --data-root DIR

Accuracy is the gate's (tests/accuracy_gate.py, digits): networks trained on the subsets of 1 and of
8 shards, paired by seed. Ranks are processes of `torchrun` over gloo, one thread each, on this
machine; on two cores more of them cannot be faster than two.
"""

from __future__ import annotations

import json
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
from benchmarks.record import (
    PROJECT,
    RESULTS,
    environment,
    half_width_95,
    in_own_process,
    read,
    spread,
    table,
    write,
)
from sage_torch import Selection, select_subset
from sage_torch.checkpoint import snapshots
from sage_torch.demo.data import DATA_ROOT_VARIABLE, load

KEEP, SHARDS = 0.25, 8
TEXT = """\
## Shards, ranks, snapshots: what they change and cost

`python -m benchmarks.speed.shards --data {data} --data-root DIR`: {examples:,} examples, {network},
keep {keep}; {cpu}, one thread a process, medians of {runs} interleaved rounds. *Differ* says how
many of the {kept:,} indices are not those of one process with 8 shards. Ratios of seconds are to
that process, too. The machine has two cores, which the ranks share. One shard and eight shards keep
other examples: herding answers the slightest change of a sketch with another choice, but not with a
worse one (below).
"""
ACCURACY = """\
Accuracy of networks that are trained on the subset of 8 shards, less that of networks that are
trained on the subset of 1 shard (digits, the networks of the accuracy gate, keep {keep}, paired by
seed): {cells} (95 % intervals).
"""


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
        arguments = ["--data", data, "--examples", str(count), "--rounds", str(rounds)]
        if data_root is not None:
            arguments += ["--data-root", str(data_root.absolute())]
        torchrun = (
            "--standalone",
            f"--nproc-per-node={size}",
            "--module",
            "benchmarks.speed.shards",
        )
        in_own_process("torch.distributed.run", *torchrun, *arguments, "--out", str(out))
        return json.loads(out.read_text())


def accuracy(flipped: float, seeds: int) -> dict[str, Any]:
    """Return points of accuracy of 8 shards against 1, paired by seed."""
    sys.path.append(str(PROJECT / "tests"))
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
    return {
        "data": "digits",
        "flipped": flipped,
        "seeds": seeds,
        "points": float(np.mean(points)),
        "half_width_95": half_width_95(points),
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
        "8 shards, a snapshot every 30 s": {"shards": SHARDS, "every": 30.0},
        "8 shards, a snapshot every second": {"shards": SHARDS, "every": 1.0},
        "8 shards, a snapshot every batch": {"shards": SHARDS, "every": 0.0},
    }
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    found: dict[str, Selection] = {}
    for _ in range(rounds):
        for name, options in modes.items():
            with tempfile.TemporaryDirectory() as folder:
                more = {"checkpoint": folder} if "every" in options else {}
                snapshots.SECONDS_BETWEEN = options.get("every", 30.0)
                found[name], of_round = timed(model, dataset, shards=options["shards"], **more)
            seconds[name].append(of_round)
    one, eight = found["1 shard"].indices, found["8 shards"].indices
    ranks = []
    for size in (1, 2, 4):
        of_ranks = with_ranks(size, data, data_root, count, rounds)
        differing = len(np.setdiff1d(of_ranks["indices"], eight))
        ranks.append(
            {"ranks": size, "differing": differing, "seconds": spread(of_ranks["seconds"])}
        )
    results = {
        "one_process": {name: spread(values) for name, values in seconds.items()},
        "shared_by_1_and_8_shards": len(np.intersect1d(one, eight)) / len(one),
        "snapshots_change": {
            name: len(np.setdiff1d(selection.indices, eight))
            for name, selection in found.items()
            if "snapshot" in name
        },
        "ranks": ranks,
        "accuracy_of_8_shards_less_1": [accuracy(flipped, seeds) for flipped in (0.0, 0.2)],
    }
    settings = {"data": data, "examples": len(dataset), "network": "LeNet, one epoch"}
    settings |= {"keep": KEEP, "kept": len(eight)}
    question = "What do shards, ranks and snapshots cost?"
    write(RESULTS / "shards.json", question, where, settings=settings, results=results)
    typer.echo(json.dumps(results, indent=1))


def section() -> str:
    """Return what RESULTS.md says of shards, ranks and snapshots."""
    record = read("shards.json")
    settings, results = record["settings"], record["results"]
    timings = results["one_process"]
    differ = {"1 shard": round((1 - results["shared_by_1_and_8_shards"]) * settings["kept"])}
    differ |= results["snapshots_change"]
    timed = [(name, differ.get(name, 0), one["median"]) for name, one in timings.items()]
    for one in results["ranks"]:
        name = f"{one['ranks']} rank{'s' * (one['ranks'] > 1)} (torchrun), 8 shards"
        timed.append((name, one["differing"], one["seconds"]["median"]))
    base = timings["8 shards"]["median"]
    rows = [
        [name, f"{count:,}", f"{seconds:.1f}", f"{seconds / base:.2f}"]
        for name, count, seconds in timed
    ]
    cells = "; ".join(
        f"{cell['points']:+.2f} ± {cell['half_width_95']:.2f} points"
        + (f" with {cell['flipped']:.0%} wrong labels" if cell["flipped"] else " with right labels")
        + f" ({cell['seeds']} seeds)"
        for cell in results["accuracy_of_8_shards_less_1"]
    )
    parts = [
        TEXT.format(**settings, cpu=record["cpu"], runs=timings["8 shards"]["runs"]),
        table(["", "differ", "seconds", "ratio"], rows),
        ACCURACY.format(keep=settings["keep"], cells=cells),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    typer.run(main)
