"""Which labels are wrong, after one epoch: `select_subset` beside cleanlab.

Some labels of a pool are flipped, a small network learns from it for one epoch, and every way says
which labels it takes to be wrong. cleanlab's `find_label_issues` gets probabilities of the same
network: those of the warm-up itself (in-sample), or of two more networks, each trained on one half
and asked about the other (2 folds). What a run has found is not measured again.

    python -m benchmarks.quality.labels --data-root DIR
    python -m benchmarks.quality.labels --data-root DIR --first-seed 200 --out dev.json

The rule and its constants were chosen on seeds from 200 on. Needs `sage-torch[bench]`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.quality.trials import (
    BATCH,
    DEVICE,
    Condition,
    Indices,
    Problem,
    Training,
    clock,
    network,
    problem,
)
from benchmarks.record import RESULTS, Run, environment, kinds, mean_of, of, read, table, write
from sage_torch import select_subset
from sage_torch.demo.data import DATA_ROOT_VARIABLE

KEEP = 0.25
NOISES = (("symmetric", 0.2), ("pair", 0.2), ("symmetric", 0.4))
OURS, AS_MANY, BY_THRESHOLD = "sage_torch", "as many as in-sample", "is_wrong > 0.5"
IN_SAMPLE, FOLDS = "cleanlab, in-sample", "cleanlab, 2 folds, epochs: {}"
FOLD_EPOCHS = (1, 2)
SHOWN = (OURS, AS_MANY, IN_SAMPLE, *map(FOLDS.format, FOLD_EPOCHS))
_COMPARED = {
    "auroc": "AUROC",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "suggestions": "suggestions",
    "corrected": "corrected",
}
QUESTION = "Which labels are wrong, after one epoch?"
TEXT = """\
## Wrong labels: found after one epoch

`python -m benchmarks.quality.labels --data-root DIR`: pools of {pool:,} images, the small CNN of
the quality table, one epoch of warm-up on wrong labels too, means over {seeds} seeds ({cpu}, one
thread). *AUROC* ranks all labels by `label_scores`, or by cleanlab's self-confidence. *Precision*,
*recall* and *F1* are of the labels that a way takes to be wrong (*flagged*): `is_label_issue`, or
`find_label_issues` of cleanlab {cleanlab} as it comes. *Suggestions* is the share of right
predictions for the same labels in each row: the wrong ones that both {ours} and cleanlab in-sample
flag. Who flags fewer leaves the hard ones out. *Corrected* is the share of all wrong labels that
are flagged with the true label beside them. *Seconds* are of the process, beside the
warm-up of {warm_up:.1f} s that all begin with: `select_subset`, which chooses a subset, too; a
forward pass and cleanlab; the training of two more networks on half of the data for so many epochs,
their forward passes and cleanlab. *{as_many}* flags the lowest `label_scores`, as many
as cleanlab does in-sample, so that precision, recall and *corrected* compare.

{verdict}
"""


def metrics(
    is_issue: NDArray[np.bool_],
    suspicion: NDArray[np.floating[Any]],
    predicted: NDArray[np.int64],
    truth: NDArray[np.int64],
    is_wrong: NDArray[np.bool_],
    common: NDArray[np.bool_],
) -> dict[str, float]:
    """Return how well wrong labels are found.

    Args:
        is_issue: (N,), whether a label is taken to be wrong.
        suspicion: (N,), the higher the more.
        predicted: (N,), the labels that are suggested.
        truth: (N,), the right labels.
        is_wrong: (N,), whether a label is wrong.
        common: (N,), the labels whose suggestions are compared.
    """
    is_right = predicted == truth
    found = is_issue & is_wrong
    precision = float(found.sum() / max(1, is_issue.sum()))
    recall = float(found.sum() / is_wrong.sum())
    return {
        "auroc": float(roc_auc_score(is_wrong, suspicion)),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / max(1e-12, precision + recall),
        "flagged": float(is_issue.mean()),
        "suggestions": float(is_right[common].mean()) if common.any() else 0.0,
        "corrected": float((found & is_right).sum() / is_wrong.sum()),
    }


def lowest(scores: NDArray[np.floating[Any]], count: int) -> NDArray[np.bool_]:
    """Return which so many scores are lowest (N,)."""
    is_lowest = np.zeros(len(scores), bool)
    is_lowest[np.argsort(scores, kind="stable")[:count]] = True
    return is_lowest


def trained(
    condition: Condition, given: Problem, seed: int, examples: Indices, epochs: int
) -> nn.Module:
    """Return a network after some epochs on a part of the examples, in evaluation mode."""
    fresh = network(condition, given, seed)
    training = Training(given, fresh, epochs * max(1, len(examples) // BATCH), seed)
    for _ in range(epochs):
        training.epoch(examples)
    return fresh.eval()


def probabilities(model: nn.Module, given: Problem, examples: Indices) -> NDArray[np.float64]:
    """Return what a network says of some examples, (n, C)."""
    chosen = given.images[torch.from_numpy(examples)]
    with torch.no_grad():
        parts = [model(part).softmax(1) for part in chosen.split(1_000)]
    found: NDArray[np.float64] = torch.cat(parts).double().cpu().numpy()
    return found


def of_two_folds(
    condition: Condition, given: Problem, seed: int, epochs: int
) -> NDArray[np.float64]:
    """Return what a network trained on the other half says of each example, (N, C)."""
    order = np.random.default_rng((seed, 3)).permutation(len(given))
    halves = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    found = np.empty((len(given), given.classes))
    for learnt, asked in (halves, halves[::-1]):
        model = trained(condition, given, seed, learnt, epochs)
        found[asked] = probabilities(model, given, asked)
    return found


def measured(condition: Condition, seed: int, data_root: Path | None) -> list[Run]:
    """Return what each way finds of one pool."""
    from cleanlab.filter import find_label_issues

    given = problem(condition, seed, data_root)
    truth = problem(replace(condition, noise=0.0), seed, data_root).labels.cpu().numpy()
    labels, is_wrong, everything = given.labels.cpu().numpy(), given.is_wrong, np.arange(len(given))
    start = clock()
    model = trained(condition, given, seed, everything, condition.warm_up_epochs)
    about = {
        "data": condition.data,
        "noise_kind": condition.noise_kind,
        "noise": condition.noise,
        "seed": seed,
        "warm_up_seconds": clock() - start,
    }
    ways: dict[str, tuple[float, Any, Any, Any]] = {}  # seconds, flagged, suspicion, predicted

    def of_cleanlab(way: str, start: float, found: NDArray[np.float64]) -> NDArray[np.bool_]:
        is_issue: NDArray[np.bool_] = find_label_issues(labels, found, n_jobs=1)
        suspicion = 1.0 - found[everything, labels]
        ways[way] = clock() - start, is_issue, suspicion, found.argmax(1)
        return is_issue

    start = clock()
    selection = select_subset(model, given.dataset, KEEP, seed=seed, progress=False)
    seconds = clock() - start
    scores, predicted = selection.label_scores, selection.predicted_labels
    likely = selection.is_wrong
    assert scores is not None
    assert predicted is not None
    assert likely is not None
    is_issue = selection.is_label_issue
    assert is_issue is not None
    about["rho"] = selection.settings["rho"]
    ways[OURS] = seconds, is_issue, 1.0 - scores, predicted
    ways[BY_THRESHOLD] = seconds, likely > 0.5, likely, predicted
    start = clock()
    flagged = of_cleanlab(IN_SAMPLE, start, probabilities(model, given, everything))
    ways[AS_MANY] = seconds, lowest(scores, int(flagged.sum())), 1.0 - scores, predicted
    for epochs in FOLD_EPOCHS:
        start = clock()
        of_cleanlab(FOLDS.format(epochs), start, of_two_folds(condition, given, seed, epochs))
    common = is_issue & flagged & is_wrong
    return [
        about | {"way": way, "seconds": seconds} | metrics(*found, truth, is_wrong, common)
        for way, (seconds, *found) in ways.items()
    ]


def main(
    data: Annotated[str, typer.Option(help="Names with commas between; all there are.")] = "",
    data_root: Annotated[
        Path | None,
        typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder of fashion-mnist/ and cifar10/."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 5,
    first_seed: Annotated[int, typer.Option(help="0 to report, 200 to choose.")] = 0,
    pool: Annotated[int, typer.Option(help="Training examples.")] = 20_000,
    out: Annotated[Path, typer.Option(help="Where the numbers go.")] = RESULTS / "labels.json",
) -> None:
    """Measure what the file does not hold yet."""
    torch.set_num_threads(1)
    chosen = range(first_seed, first_seed + seeds)
    where = environment("cleanlab", seeds=chosen) | {"device": DEVICE}
    settings = {"keep": KEEP, "pool": pool, "network": "small", "clock": "process time"}
    runs: list[Run] = json.loads(out.read_text())["results"] if out.exists() else []
    for name in (data or ("fashion-mnist,cifar-10" if data_root else "digits")).split(","):
        for kind, noise in NOISES:
            for seed in chosen:
                if of(runs, data=name, noise_kind=kind, noise=noise, seed=seed):
                    continue
                condition = Condition(name, noise=noise, noise_kind=kind, pool=pool)
                runs += measured(condition, seed, data_root)
                write(out, QUESTION, where, settings=settings, results=runs)
    typer.echo(_verdict(runs))
    for name in kinds(runs, "data"):
        typer.echo(_table(of(runs, data=name[0])))


def section() -> str:
    """Return what RESULTS.md says of wrong labels."""
    record = read("labels.json")
    runs = record["results"]
    text = TEXT.format(
        pool=record["settings"]["pool"],
        seeds=len(record["seeds"]),
        cpu=record["cpu"],
        cleanlab=record["versions"]["cleanlab"],
        warm_up=mean_of(runs, "warm_up_seconds"),
        as_many=AS_MANY.capitalize(),
        ours=OURS,
        verdict=_verdict(runs),
    )
    parts = [f"{name}:\n\n{_table(of(runs, data=name))}" for (name,) in kinds(runs, "data")]
    return "\n".join([text, *parts])


def block() -> str:
    """Return the table of docs/noisy-labels.md: AUROC and F1 of each condition."""
    ways = (OURS, IN_SAMPLE, FOLDS.format(FOLD_EPOCHS[-1]))
    heads = ["", *(f"{metric}, {way}" for metric in ("AUROC", "F1") for way in ways)]
    rows = []
    for name, found in _conditions(read("labels.json")["results"]):
        of_ways = _means(found)
        cells = [f"{of_ways[way][metric]:.2f}" for metric in ("auroc", "f1") for way in ways]
        rows.append([name, *cells])
    return table(heads, rows)


def _means(runs: list[Run]) -> dict[str, dict[str, float]]:
    """Return the means of each way's metrics, for one condition."""
    names = (*_COMPARED, "flagged", "seconds")
    return {
        way: {name: mean_of(of(runs, way=way), name) for name in names}
        for (way,) in kinds(runs, "way")
    }


def _conditions(runs: list[Run]) -> list[tuple[str, list[Run]]]:
    """Return each condition in words, and its runs."""
    return [
        (f"{data}, {noise:.0%} {kind}", of(runs, data=data, noise_kind=kind, noise=noise))
        for data, kind, noise in kinds(runs, "data", "noise_kind", "noise")
    ]


def _verdict(runs: list[Run]) -> str:
    """Return in words where cleanlab does better, and what that costs."""
    by_name = {name: _means(found) for name, found in _conditions(runs)}
    lines = []
    for way in [way for way in SHOWN if way not in (OURS, AS_MANY)]:
        parts = []
        for name, of_ways in by_name.items():
            ours, theirs = of_ways[OURS], of_ways[way]
            better = [
                f"{label} {theirs[metric] - ours[metric]:+.3f}"
                for metric, label in _COMPARED.items()
                if theirs[metric] > ours[metric]
            ]
            if better:
                parts.append(f"{name} ({', '.join(better)})")
        ratios = [
            of_ways[way]["seconds"] / of_ways[OURS]["seconds"] for of_ways in by_name.values()
        ]
        cost = f"{min(ratios):.1f} to {max(ratios):.1f} times the seconds of `select_subset`"
        where = "; ".join(parts) or "nowhere"
        lines.append(f"- Where {way} is better than {OURS}: {where}. It takes {cost}.")
    was = ", ".join(f"{of_ways[BY_THRESHOLD]['f1']:.2f}" for of_ways in by_name.values())
    now = ", ".join(f"{of_ways[OURS]['f1']:.2f}" for of_ways in by_name.values())
    lines.append(
        f"- F1 of `is_label_issue` in the order of the tables: {now}; of `{BY_THRESHOLD}`: {was}."
    )
    return "\n".join(lines)


def _table(runs: list[Run]) -> str:
    rows = []
    for name, found in _conditions(runs):
        of_ways = _means(found)
        best = {
            metric: max(round(of_ways[way][metric], 3) for way in SHOWN)
            for metric in ("auroc", "f1")
        }
        for way in SHOWN:
            one = of_ways[way]
            cells = {metric: f"{value:.3f}" for metric, value in one.items()}
            for metric, value in best.items():
                if round(one[metric], 3) == value:
                    cells[metric] = f"**{cells[metric]}**"
            rows.append(
                [
                    name.split(", ")[1] if way == OURS else "",
                    way,
                    *(cells[metric] for metric in ("auroc", "precision", "recall", "f1")),
                    f"{one['flagged']:.1%}",
                    f"{one['suggestions']:.1%}",
                    f"{one['corrected']:.1%}",
                    f"{one['seconds']:.1f}",
                ]
            )
    heads = ["wrong", "way", "AUROC", "precision", "recall", "F1"]
    return table([*heads, "flagged", "suggestions", "corrected", "seconds"], rows)


if __name__ == "__main__":
    typer.run(main)
