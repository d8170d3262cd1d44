"""What do fewer passes and less memory cost: how near do they come to the exact mode?

    python -m benchmarks.speed.modes --data-root DIR

`select_subset` in its three modes with the same warmed-up network, examples and seed: the *exact*
mode reads gradients twice and keeps every example's coordinates, *streaming* reads them twice and
keeps none, *one pass* reads them once and carries the coordinates along with the sketch.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch.nn.functional import cross_entropy

from benchmarks.quality.trials import BATCH, Condition, Problem, Training, network, problem
from benchmarks.record import RESULTS, environment, write
from sage_torch import Selection, select_subset
from sage_torch.demo.data import DATA_ROOT_VARIABLE

MODES = ("exact", "streaming", "one_pass")
KEEP = 0.25
RULE = "agreement"  # reads the scores alone: what is kept is their top quarter in each class
WARM_UP = {"fashion-mnist": 1, "cifar-10": 2}  # epochs
FLIPPED = 0.2  # of the labels, so that the trim has something to drop
CELLS = [("fashion-mnist", (64, 16)), ("cifar-10", (64,))]  # data and sizes of the sketch
Flags = NDArray[np.bool_]


def warmed_up(condition: Condition, data: Problem, seed: int) -> torch.nn.Module:
    """Return a network after its first epochs."""
    epochs = WARM_UP[condition.data]
    model = network(condition, data, seed)
    training = Training(data, model, epochs * (len(data) // BATCH), seed)
    for _ in range(epochs):
        training.epoch(np.arange(len(data)))
    return model.eval()


class Counted:
    """The cross-entropy, which counts the examples whose gradients were asked for."""

    def __init__(self) -> None:
        self.examples = 0

    def __call__(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Return the losses (n,) of a batch."""
        inputs, labels = batch
        self.examples += len(labels)
        return cross_entropy(model(inputs), labels, reduction="none")


def selected(
    model: torch.nn.Module, data: Problem, mode: str, size: int, seed: int
) -> tuple[Selection, dict[str, Any]]:
    """Return a selection, its seconds and how many gradients an example it took."""
    counted = Counted()
    selection = select_subset(
        model,
        data.dataset,
        KEEP,
        rule=RULE,
        consensus=mode,  # type: ignore[arg-type]
        sketch_size=size,
        seed=seed,
        loss=counted,
        gradients="projected",
        progress=False,
    )
    return selection, {
        "gradients_an_example": round(counted.examples / len(data), 1),
        "seconds": selection.seconds["total"],
    }


def bytes_an_example(mode: str, size: int) -> int:
    """Return what a mode holds of each example beside its score, margin, class and label."""
    return 0 if mode == "streaming" else 4 * size


def compare(found: Selection, exact: Selection) -> dict[str, float | None]:
    """Return how near the scores, the trim and the subset come to those of the exact mode."""
    assert found.margins is not None
    assert exact.margins is not None
    assert exact.labels is not None
    classes = [np.flatnonzero(exact.labels == one) for one in np.unique(exact.labels)]
    dropped, dropped_exactly = found.margins < 0, exact.margins < 0
    either = int((dropped | dropped_exactly).sum())
    quarters = [
        shared(top_quarter(found.scores[one]), top_quarter(exact.scores[one])) for one in classes
    ]
    return {
        "spearman": float(spearmanr(found.scores, exact.scores)[0]),
        "spearman_of_margins": float(spearmanr(found.margins, exact.margins)[0]),
        "top_quarter": shared(top_quarter(found.scores), top_quarter(exact.scores)),
        "class_top_quarter": float(np.mean(quarters)),
        # intersection over union; nothing to compare where both trims drop nothing
        "trim_overlap": int((dropped & dropped_exactly).sum()) / either if either else None,
        "trimmed": float(dropped.mean()),
        "trimmed_exactly": float(dropped_exactly.mean()),
        "kept_overlap": len(np.intersect1d(found.indices, exact.indices)) / len(exact),
    }


def top_quarter(scores: NDArray[np.float32]) -> Flags:
    """Mark the quarter of highest scores, ties by index."""
    marked = np.zeros(len(scores), bool)
    marked[np.argsort(-scores, kind="stable")[: len(scores) // 4]] = True
    return marked


def shared(ours: Flags, theirs: Flags) -> float:
    """Return the share of theirs that is ours, too."""
    return float((ours & theirs).sum() / theirs.sum())


def main(
    data_root: Annotated[
        Path, typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder with fashion-mnist/, cifar-10/.")
    ],
    examples: Annotated[int, typer.Option(help="Training images.")] = 20_000,
    seeds: Annotated[int, typer.Option(help="Seeds 0 to this.")] = 3,
    out: Annotated[Path, typer.Option(help="Where the numbers go.")] = RESULTS / "modes.json",
) -> None:
    """Compare the three modes and write the numbers down."""
    torch.set_num_threads(1)
    where = environment()
    runs: list[dict[str, Any]] = []
    for (name, sizes), seed in product(CELLS, range(seeds)):
        condition = Condition(name, noise=FLIPPED, pool=examples)
        pool = problem(condition, seed, data_root)
        model = warmed_up(condition, pool, seed)
        for size in sizes:
            found = {mode: selected(model, pool, mode, size, seed) for mode in MODES}
            exact = found["exact"][0]
            for mode, (selection, cost) in found.items():
                agreement = compare(selection, exact)
                kind = {"data": name, "seed": seed, "sketch_size": size}
                held = {"bytes_an_example": bytes_an_example(mode, size)}
                runs.append(kind | {"mode": mode} | cost | held | agreement)
                shown = "  ".join(
                    f"{key} {value:.4f}" for key, value in agreement.items() if value is not None
                )
                typer.echo(f"{name} seed {seed} l {size:>2} {mode:<9} {shown}")
    record = {
        "question": "How near do one pass and streaming come to the exact mode, and at what cost?",
        **where,
        "settings": {
            "examples": examples,
            "flipped": FLIPPED,
            "keep": KEEP,
            "rule": RULE,
            "gradients": "projected",
            "warm_up_epochs": WARM_UP,
            "seeds": list(range(seeds)),
        },
        "results": runs,
    }
    write(out, record)


if __name__ == "__main__":
    typer.run(main)
