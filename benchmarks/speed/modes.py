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
from torch.nn.functional import cross_entropy

from benchmarks.quality.nearness import of_either, spearman, top_quarter_found
from benchmarks.quality.trials import BATCH, Condition, Problem, Training, network, problem
from benchmarks.record import RESULTS, Run, environment, kinds, mean_of, of, read, table, write
from sage_torch import Selection, select_subset
from sage_torch.demo.data import DATA_ROOT_VARIABLE

MODES = ("exact", "streaming", "one_pass")
KEEP = 0.25
RULE = "agreement"  # reads the scores alone: what is kept is their top quarter in each class
WARM_UP = {"fashion-mnist": 1, "cifar-10": 2}  # epochs
FLIPPED = 0.2  # of the labels, so that the trim has something to drop
CELLS = [("fashion-mnist", (64, 16)), ("cifar-10", (64,))]  # data and sizes of the sketch
TEXT = """\
## Modes: fewer passes, less memory, and how near the scores come

`python -m benchmarks.speed.modes --data-root DIR`: {examples:,} training images, {flipped:.0%} of
the labels flipped, a small CNN after its first epochs, {gradients} gradients, {cpu}, one thread;
means over {seeds} seeds.

- *Gradients*: computed per example. *Bytes*: held per example, beside score, margin, class, label.
- *Seconds*: of the whole selection, over those of the exact mode. The machine was busy: less than a
  factor of two says nothing.
- *Spearman* and *top quarter*: of the scores against those of the exact mode, over all examples and
  *within* each class.
- *Trim*: of the examples with a negative margin in either mode, the share that has one in both. In
  brackets stands the share of all examples that this mode drops.
- *Kept*: shared by the subsets of `rule="{rule}"`, keep = {keep}.
"""


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
    dropped, dropped_exactly = found.margins < 0, exact.margins < 0
    return {
        "spearman": spearman(found.scores, exact.scores),
        "spearman_of_margins": spearman(found.margins, exact.margins),
        "top_quarter": top_quarter_found(found.scores, exact.scores),
        "class_top_quarter": top_quarter_found(found.scores, exact.scores, exact.labels),
        "trim_overlap": of_either(dropped, dropped_exactly),
        "trimmed": float(dropped.mean()),
        "trimmed_exactly": float(dropped_exactly.mean()),
        "kept_overlap": len(np.intersect1d(found.indices, exact.indices)) / len(exact),
    }


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
    settings = {
        "examples": examples,
        "flipped": FLIPPED,
        "keep": KEEP,
        "rule": RULE,
        "gradients": "projected",
        "warm_up_epochs": WARM_UP,
        "seeds": list(range(seeds)),
    }
    question = "How near do one pass and streaming come to the exact mode, and at what cost?"
    write(out, question, where, settings=settings, results=runs)


def section() -> str:
    """Return what each mode costs and how near it comes to the exact one."""
    record = read("modes.json")
    settings, runs = record["settings"], record["results"]
    rows = []
    for data, size, mode in kinds(runs, "data", "sketch_size", "mode"):
        of_kind = of(runs, data=data, sketch_size=size)
        cells = _cells(of(of_kind, mode=mode), of(of_kind, mode="exact"))
        rows.append([data, str(size), mode.replace("_", " "), *cells])
    heads = ["data", "l", "mode", "gradients", "bytes", "seconds"]
    heads += ["Spearman", "top quarter", "within", "trim", "kept"]
    text = TEXT.format(**settings | {"seeds": len(settings["seeds"])}, cpu=record["cpu"])
    return text + "\n" + table(heads, rows)


def _cells(runs: list[Run], exact: list[Run]) -> list[str]:
    trimmed = f"({100 * mean_of(runs, 'trimmed'):.1f} %)"
    has_trim = any(run["trim_overlap"] is not None for run in runs)
    return [
        f"{mean_of(runs, 'gradients_an_example'):.0f}",
        f"{mean_of(runs, 'bytes_an_example'):.0f}",
        f"{mean_of(runs, 'seconds') / mean_of(exact, 'seconds'):.2f}",
        f"{mean_of(runs, 'spearman'):.4f}",
        f"{mean_of(runs, 'top_quarter'):.3f}",
        f"{mean_of(runs, 'class_top_quarter'):.3f}",
        f"{mean_of(runs, 'trim_overlap'):.3f} {trimmed}" if has_trim else f"– {trimmed}",
        f"{mean_of(runs, 'kept_overlap'):.3f}",
    ]


def block() -> str:
    """Return the modes at l = 64: one row each, a column for each data set."""
    runs = of(read("modes.json")["results"], sketch_size=64)
    data = [one for (one,) in kinds(runs, "data")]
    rows = []
    for (mode,) in kinds(runs, "mode"):
        of_mode = of(runs, mode=mode)
        costs = ("gradients_an_example", "bytes_an_example")
        cells = [f"{mean_of(of_mode, key):.0f}" for key in costs]
        cells += [f"{mean_of(of(of_mode, data=one), 'top_quarter'):.3f}" for one in data]
        rows.append([f'`"{mode}"`', *cells])
    heads = ["gradients per example", "bytes per example"]
    heads += [f"top quarter of scores, {one}" for one in data]
    return table(["`consensus=`", *heads], rows)


if __name__ == "__main__":
    typer.run(main)
