"""What does a shorter gradient keep of the exact one?

A small CNN is warmed up, per-example gradients are taken in full and shortened in several ways, and
each kind of row goes through the shipped selection (sketch, consensus and agreement per class):

    exact                 functional, every coordinate
    projected, width w    sage_torch's projected whole-network gradients
    count sketch to d     of the exact gradients
    last layer            the classifier's gradient alone

On clean labels: how near the scores are to those of the exact gradients. With a fifth of the labels
flipped, before the warm-up: what the negative trim (agreement below 0, weighted basis) finds. The
cost is of gradients against forward + backward of the same batches, interleaved batch by batch.

    python -m benchmarks.quality.compression --data-root DIR

Takes about 4 D bytes of memory an example (3 GB).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from benchmarks.choices.consensus import FLIPPED, ranks, summary, top_quarter
from benchmarks.quality.cifar10 import load_cifar10
from benchmarks.record import RESULTS, environment, write
from sage_torch import CountSketch, gradients, select_subset
from sage_torch.demo.data import DATA_ROOT_VARIABLE, DemoData, load
from sage_torch.demo.training import fresh_model, test_accuracy

BATCH = 128
PLAIN, EXACT = "forward + backward", "exact"
# Warm-up: examples at most, epochs of SGD (batches of 64, rate 0.05, momentum 0.9).
WARM_UP = {"fashion-mnist": (20_000, 1), "cifar-10": (20_000, 2), "digits": (1_437, 10)}
Rows = Callable[[tuple[Tensor, Tensor]], Tensor]


@dataclass(frozen=True)
class Plan:
    """What every seed has in common."""

    warm_up_examples: int
    warm_up_epochs: int
    examples: int
    widths: list[int]
    lengths: list[int]
    sketch_size: int


@dataclass(frozen=True)
class Contender:
    """How rows are made: of a batch, or of the exact rows of that batch."""

    dim: int
    of_batch: Rows | None = None
    of_exact: Callable[[Tensor], Tensor] | None = None


def contenders(network: nn.Module, plan: Plan, first: Any, seed: int) -> dict[str, Contender]:
    """Return every way to rows by name, the exact one first; each has seen one batch."""
    exact = gradients.FunctionalGradients(network)
    last_layer = gradients.LastLayerGradients(network)
    found = {EXACT: Contender(exact.dim, exact)}
    exact(first)
    for width in plan.widths:
        computer = gradients.ProjectedGradients(network, width=width, seed=seed)
        computer(first)
        found[f"projected, width {width}"] = Contender(computer.dim, computer)
    for length in plan.lengths:
        sketch = CountSketch(exact.dim, length, seed)
        found[f"count sketch to {length:,}"] = Contender(length, of_exact=sketch)
    last_layer(first)
    found["last layer"] = Contender(last_layer.dim, last_layer)
    return found


def all_rows(
    network: nn.Module, data: TensorDataset, ways: dict[str, Contender]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the rows (N, d) of each way, and its seconds an example; a batch at a time."""
    images, labels = data.tensors
    rows = {name: torch.empty(len(images), way.dim) for name, way in ways.items()}
    seconds = dict.fromkeys([PLAIN, *ways], 0.0)
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        batch = images[part], labels[part]
        begin = time.perf_counter()
        network.zero_grad(set_to_none=True)
        cross_entropy(network(batch[0]), batch[1]).backward()
        seconds[PLAIN] += time.perf_counter() - begin
        exact = torch.empty(0)
        for name, way in ways.items():
            begin = time.perf_counter()
            if way.of_batch is not None:
                found = way.of_batch(batch)
            else:
                assert way.of_exact is not None
                found = way.of_exact(exact)
            seconds[name] += time.perf_counter() - begin
            rows[name][part] = found
            exact = found if name == EXACT else exact
    network.zero_grad(set_to_none=True)
    for name, way in ways.items():
        if way.of_exact is not None:
            seconds[name] += seconds[EXACT]
    return rows, {name: value / len(images) for name, value in seconds.items()}


def agreement(
    network: nn.Module, rows: Tensor, labels: Tensor, sketch_size: int, seed: int
) -> tuple[Tensor, float]:
    """Return the shipped scores (N,) of these rows, and the seconds an example they took."""
    found = select_subset(
        network,
        TensorDataset(torch.arange(len(rows)), labels),
        keep=0.25,
        rule="agreement",
        gradients=lambda batch: rows[batch[0]],
        compress=None,
        sketch_size=sketch_size,
        seed=seed,
        progress=False,
    )
    return torch.from_numpy(found.scores.copy()), found.seconds["total"] / len(rows)


def fidelity(wanted: Tensor, found: Tensor, labels: Tensor) -> dict[str, float]:
    """Rank correlation with the exact scores, and the share of their top quarters found."""
    members = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    quarters = [int((top_quarter(wanted[m]) & top_quarter(found[m])).sum()) for m in members]
    both = int((top_quarter(wanted) & top_quarter(found)).sum())
    return {
        "spearman": float(torch.corrcoef(torch.stack([ranks(wanted), ranks(found)]))[0, 1]),
        "global_top_quarter": both / (len(wanted) // 4),
        "class_top_quarter": sum(quarters) / sum(len(m) // 4 for m in members),
        "trimmed": float((found < 0).float().mean()),
    }


def trim(scores: Tensor, flipped: Tensor) -> dict[str, float | None]:
    """What `agreement < 0` finds of the flipped labels."""
    trimmed = scores < 0
    hits = int((trimmed & flipped).sum())
    order = ranks(-scores)  # the chance that a flipped label scores below a right one
    wrong, right = int(flipped.sum()), int((~flipped).sum())
    below = float(order[flipped].sum()) - wrong * (wrong - 1) / 2
    return {
        "recall": hits / wrong,
        "precision": hits / int(trimmed.sum()) if bool(trimmed.any()) else None,
        "clean_trimmed": int((trimmed & ~flipped).sum()) / right,
        "auroc": below / (wrong * right),
    }


def warmed_up(data: DemoData, labels: Tensor, epochs: int, seed: int) -> nn.Module:
    """Return the demo's CNN after some epochs of SGD on these labels, in evaluation mode."""
    network = fresh_model(data, seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    images = data.train.tensors[0]
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


def one_seed(
    data: DemoData, plan: Plan, seed: int
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return the metrics of each contender on clean and on flipped labels."""
    data = data.with_train_examples(plan.warm_up_examples, seed)
    images, truth = data.train.tensors
    random: np.random.Generator = np.random.default_rng(seed)
    flip = torch.from_numpy(random.random(len(truth)) < FLIPPED)
    other: NDArray[np.int64] = random.integers(1, data.classes, len(truth))
    wrong = (truth + torch.from_numpy(other)) % data.classes
    scored = torch.from_numpy(random.permutation(len(truth))[: plan.examples])
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for kind, labels in (("clean", truth), ("flipped", wrong.where(flip, truth))):
        network = warmed_up(data, labels, plan.warm_up_epochs, seed)
        chosen = TensorDataset(images[scored], labels[scored])
        first = tuple(tensor[:BATCH] for tensor in chosen.tensors)
        ways = contenders(network, plan, first, seed)
        rows, seconds = all_rows(network, chosen, ways)
        metrics = found.setdefault(kind, {})
        wanted = torch.empty(0)
        for name in ways:
            scores, later = agreement(
                network, rows.pop(name), labels[scored], plan.sketch_size, seed
            )
            wanted = scores if name == EXACT else wanted
            metrics[name] = {
                "dim": ways[name].dim,
                **fidelity(wanted, scores, labels[scored]),
                **(trim(scores, flip[scored]) if kind == "flipped" else {}),
                "gradient_seconds": seconds[name],
                "gradients_to_plain": seconds[name] / seconds[PLAIN],
                "selection_seconds": later,  # two passes over ready rows: sketch and scores
            }
        metrics[PLAIN] = {
            "gradient_seconds": seconds[PLAIN],
            "test_accuracy": test_accuracy(network, data),
        }
    return found


def collected(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return, by kind of labels and contender, each metric's values, mean and deviation."""
    return {
        kind: {name: summary([run[kind][name] for run in runs]) for name in runs[0][kind]}
        for kind in runs[0]
    }


def numbers(text: str) -> list[int]:
    """Read whole numbers with commas between."""
    return [int(part) for part in text.split(",") if part]


def main(
    data: Annotated[str, typer.Option(help="names with commas between; all there are")] = "",
    data_root: Annotated[
        Path | None,
        typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder of fashion-mnist/ and cifar10/."),
    ] = None,
    examples: Annotated[int, typer.Option(help="Training examples scored.")] = 6_000,
    widths: Annotated[str, typer.Option(help="Widths of projections.")] = "8,16,32,64",
    lengths: Annotated[str, typer.Option(help="Lengths of count sketches.")] = "2048,8192",
    sketch_size: Annotated[int, typer.Option(help="Rows of the sketch, l.")] = 64,
    epochs: Annotated[int | None, typer.Option(help="Epochs of warm-up.")] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    threads: Annotated[int | None, typer.Option(help="torch threads; torch's own choice")] = None,
    out: Annotated[Path, typer.Option(help="Folder that the numbers go to.")] = RESULTS,
) -> None:
    """Measure every contender on every data set and write the numbers down."""
    if threads is not None:
        torch.set_num_threads(threads)
    where = environment()
    for name in (data or ("fashion-mnist,cifar-10" if data_root else "digits")).split(","):
        loaded = load_cifar10(data_root) if name == "cifar-10" else load(name, data_root)
        most, usual = WARM_UP[name]
        plan = Plan(
            warm_up_examples=most,
            warm_up_epochs=epochs or usual,
            examples=min(examples, most),
            widths=numbers(widths),
            lengths=numbers(lengths),
            sketch_size=sketch_size,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            runs = [one_seed(loaded, plan, seed) for seed in range(seeds)]
        results = collected(runs)
        parameters = sum(p.numel() for p in fresh_model(loaded, 0).parameters())
        record = {
            "question": "What does a shorter gradient keep of the exact one?",
            "settings": {
                "data": name,
                "network": f"CNN of {parameters:,} parameters",
                **asdict(plan),
                "flipped": FLIPPED,
                "batch_size": BATCH,
                "seeds": list(range(seeds)),
                "spread": "sample standard deviation over seeds",
            },
            **where,
            "results": results,
        }
        write(out / f"compression_{name}.json", record)
        typer.echo(shown(name, results))


def shown(name: str, results: dict[str, Any]) -> str:
    """Return the main figures as lines of text."""
    accuracies = [results[kind][PLAIN]["test_accuracy"]["mean"] for kind in results]
    lines = [
        f"{name}: test accuracy {accuracies[0]:.1f}, {accuracies[1]:.1f} flipped",
        f"  {'':<24}{'d':>8}  Spearman  top 1/4  of class |  recall  precis.   AUROC   clean"
        "  |  gradients  selection ms",
    ]
    for contender, clean in results["clean"].items():
        if contender == PLAIN:
            continue
        flipped = results["flipped"][contender]
        means = [clean[m]["mean"] for m in ("spearman", "global_top_quarter", "class_top_quarter")]
        found = [flipped[m]["mean"] for m in ("recall", "precision", "auroc", "clean_trimmed")]
        cost = clean["gradients_to_plain"]["mean"], 1e3 * clean["selection_seconds"]["mean"]
        lines.append(
            f"  {contender:<24}{clean['dim']['mean']:>8,.0f}"
            + "".join(f"{value:9.3f}" for value in means)
            + "  |"
            + "".join("       - " if value is None else f"{value:9.4f}" for value in found)
            + f" |  {cost[0]:9.2f} {cost[1]:9.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
