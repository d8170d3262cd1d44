"""What does a shorter gradient keep of the exact one?

A small CNN is warmed up, per-example gradients are taken in full and shortened in several ways, and
each kind of row goes through the shipped selection (sketch, consensus and agreement per class):

    exact                 functional, every coordinate
    projected, width w    sage_torch's projected whole-network gradients
    count sketch to d     of the exact gradients
    last layer            the classifier's gradient alone

On clean labels: how near the scores are to those of the exact gradients. With a fifth of the labels
flipped, before the warm-up: what agreements below 0 find. The
cost is of gradients against forward + backward of the same batches, interleaved batch by batch.

    python -m benchmarks.quality.compression --data-root DIR

Takes about 4 D bytes of memory an example (3 GB).
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from benchmarks.quality.cifar10 import load_cifar10
from benchmarks.quality.nearness import spearman, top_quarter_found
from benchmarks.quality.short_rows import BATCH, EXACT, PLAIN, all_rows, contenders
from benchmarks.record import RESULTS, environment, read, summary, table, write
from sage_torch import select_subset
from sage_torch.demo.data import DATA_ROOT_VARIABLE, DemoData, load
from sage_torch.demo.training import fresh_model, test_accuracy

FLIPPED = 0.2
# Warm-up: examples at most, epochs of SGD (batches of 64, rate 0.05, momentum 0.9).
WARM_UP = {"fashion-mnist": (20_000, 1), "cifar-10": (20_000, 2), "digits": (1_437, 10)}
TEXT = """\
## Compression: what a shorter gradient keeps

`python -m benchmarks.quality.compression --data-root DIR`: the CNN of the demo, warmed up. Scores
from each kind of rows are compared with those from the exact whole-network gradients (l =
{sketch_size}, consensus by class). *Top quarter* is the share found of the exact top quarter, over
all and within each class. The next three columns are with {flipped:.0%} of the labels flipped
before the warm-up; an example counts as found where its agreement is below 0 (the trim, before it
read margins). They give the share of the flipped that is found, the share of the found that is
flipped, and the share of right labels that is lost. *Gradients* are seconds over those of forward +
backward on the same batches ({cpu}, threads: {threads}). Figures are means over {seeds} seeds ±
standard deviation.
"""
OF_DATA = """\
{data}: {network}, epochs of warm-up: {warm_up_epochs} on {warm_up_examples:,} examples (test
accuracy {plain:.1f} %), {examples:,} of them scored.
"""


@dataclass(frozen=True)
class Plan:
    """What every seed has in common."""

    warm_up_examples: int
    warm_up_epochs: int
    examples: int
    widths: list[int]
    lengths: list[int]
    sketch_size: int


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
    ours, theirs = found.numpy(), wanted.numpy()
    return {
        "spearman": spearman(ours, theirs),
        "global_top_quarter": top_quarter_found(ours, theirs),
        "class_top_quarter": top_quarter_found(ours, theirs, labels.numpy()),
        "trimmed": float((found < 0).float().mean()),
    }


def trim(scores: Tensor, flipped: Tensor) -> dict[str, float | None]:
    """What `agreement < 0` finds of the flipped labels."""
    trimmed = scores < 0
    hits = int((trimmed & flipped).sum())
    return {
        "recall": hits / int(flipped.sum()),
        "precision": hits / int(trimmed.sum()) if bool(trimmed.any()) else None,
        "clean_trimmed": int((trimmed & ~flipped).sum()) / int((~flipped).sum()),
        "auroc": float(roc_auc_score(flipped, -scores)),
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
        ways = contenders(network, plan.widths, plan.lengths, first, seed)
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
        settings = {
            "data": name,
            "network": f"CNN of {parameters:,} parameters",
            **asdict(plan),
            "flipped": FLIPPED,
            "batch_size": BATCH,
            "seeds": list(range(seeds)),
            "spread": "sample standard deviation over seeds",
        }
        question = "What does a shorter gradient keep of the exact one?"
        write(out / f"compression_{name}.json", question, where, settings=settings, results=results)
        typer.echo(_of_data(settings, results))


def section() -> str:
    """Return what RESULTS.md says of shorter gradients."""
    files = sorted(RESULTS.glob("compression_*.json"), reverse=True)
    records = [read(file.name) for file in files]
    settings = records[0]["settings"]
    text = TEXT.format(**records[0] | settings | {"seeds": len(settings["seeds"])})
    return "\n".join([text, *(_of_data(one["settings"], one["results"]) for one in records)])


def _of_data(settings: dict[str, Any], results: dict[str, Any]) -> str:
    plain = results["clean"][PLAIN]["test_accuracy"]["mean"]
    rows = []
    for name, clean in results["clean"].items():
        if name == PLAIN:
            continue
        flipped = results["flipped"][name]
        scores = ("spearman", "global_top_quarter", "class_top_quarter")
        rows.append(
            [
                name,
                f"{clean['dim']['mean']:,.0f}",
                *(_mean(clean[metric], 3) for metric in scores),
                *(_mean(flipped[metric], 2) for metric in ("recall", "precision")),
                f"{100 * flipped['clean_trimmed']['mean']:.2f} %",
                f"{clean['gradients_to_plain']['mean']:.2f}",
            ]
        )
    heads = ["rows", "d", "Spearman", "top quarter", "of a class", "flipped found", "precision"]
    about = OF_DATA.format(plain=plain, **settings)
    return about + "\n" + table([*heads, "right lost", "gradients"], rows)


def _mean(metric: dict[str, Any], digits: int) -> str:
    if metric["mean"] is None:
        return "–"
    around = "" if metric["spread"] is None else f" ± {metric['spread']:.{digits}f}"
    return f"{metric['mean']:.{digits}f}{around}"


if __name__ == "__main__":
    typer.run(main)
