"""Does a subset chosen by a rule train a better network than another of the same size?

Every rule gets the same pool, wrong labels, warm-up, initialisation and number of steps, paired by
seed; the time for warm-up and selection is charged to it. One JSON line a run goes to
`benchmarks/results/quality.jsonl` (or `--out`), and what is there is not run again: stop and go on
at will. `benchmarks/results/page.py` makes tables and pictures of it.

    python -m benchmarks.quality.quality --data-root DIR          # the grid that RESULTS.md shows
    python -m benchmarks.quality.quality --data-root DIR --data trec,subj,sst-2,digits
    python -m benchmarks.quality.quality --data digits --seeds 2 --keep 0.25 --rules "random;sage"
    python -m benchmarks.quality.quality --data-root DIR --split validation --first-seed 100

Validation is 10,000 training images that no pool holds; decisions were taken there, with seeds from
100 on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from benchmarks.quality import lines
from benchmarks.quality.recipes import RECIPES, recipe
from benchmarks.quality.rivals import ALL_RULES, FULL, Contest
from benchmarks.quality.trials import BATCH, DEVICE, Condition, problem
from benchmarks.record import RESULTS, environment
from sage_torch.demo.data import DATA_ROOT_VARIABLE

EPOCHS = 12
# The required core, best first: (fixed or dynamic rules, keep).
FIXED_RULES = ("random", "sage", "agreement", "ccs on el2n", "el2n", "craig", "gradmatch")
DYNAMIC_RULES = ("rotate", "rs2")
KEEPS = (0.05, 0.15, 0.25, 0.5)


@dataclass(frozen=True)
class Cell:
    """One number of the tables, but for the seed."""

    condition: Condition
    rule: str
    keep: float
    protocol: str = "steps"
    quotas: str = "proportional"

    def key(self, seed: int) -> str:
        """Return what names a run in the file."""
        return lines.key(self.fields(seed))

    def fields(self, seed: int) -> dict[str, Any]:
        """Return condition, rule, keep, protocol, quotas and seed, flat."""
        own = {key: value for key, value in asdict(self).items() if key != "condition"}
        return asdict(self.condition) | own | {"seed": seed}

    def steps(self, examples: int, first: int) -> int:
        """Return the steps of a run: epochs of so many examples, but the first of so many."""
        if self.protocol == "steps":
            return recipe(self.condition.data).steps
        return max(1, first // BATCH) + (EPOCHS - 1) * max(1, examples // BATCH)


def main(
    data: Annotated[
        str, typer.Option(help="With commas, of: " + ", ".join(RECIPES))
    ] = "fashion-mnist,cifar-10",
    data_root: Annotated[
        Path | None, typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder with the data sets.")
    ] = None,
    rules: Annotated[
        str, typer.Option(help="With semicolons, of: " + "; ".join(ALL_RULES))
    ] = ";".join((*FIXED_RULES, *DYNAMIC_RULES, FULL)),
    keep: Annotated[str, typer.Option(help="Shares, with commas.")] = ",".join(map(str, KEEPS)),
    noise: Annotated[str, typer.Option(help="Shares of wrong labels, with commas.")] = "0,0.2",
    noise_kind: Annotated[str, typer.Option(help="symmetric, pair or some.")] = "symmetric",
    imbalance: Annotated[int, typer.Option(help="Largest class over smallest.")] = 1,
    quotas: Annotated[str, typer.Option(help="proportional or equal.")] = "proportional",
    protocol: Annotated[str, typer.Option(help="steps (equal) or epochs (equal).")] = "steps",
    network: Annotated[str, typer.Option(help="small, or resnet-18 on a GPU.")] = "small",
    warm_up_epochs: Annotated[int, typer.Option(help="Before a rule chooses.")] = 1,
    seeds: Annotated[int, typer.Option(help="How many.")] = 8,
    first_seed: Annotated[int, typer.Option(help="0 to report, 100 to tune.")] = 0,
    split: Annotated[str, typer.Option(help="test, or validation for decisions.")] = "test",
    pool: Annotated[int, typer.Option(help="Training examples.")] = 20_000,
    out: Annotated[Path, typer.Option(help="JSON lines.")] = RESULTS / "quality.jsonl",
    workers: Annotated[int, typer.Option(help="Processes of one thread each.")] = 2,
) -> None:
    """Run what the file does not hold yet."""
    base = Condition(
        data="",
        noise_kind=noise_kind,
        imbalance=imbalance,
        split=split,  # type: ignore[arg-type]
        pool=pool,
        network=network,
        warm_up_epochs=warm_up_epochs,
    )
    cells = [
        Cell(replace(base, data=one, noise=float(share)), rule, kept, protocol, quotas)
        for one, share in product(data.split(","), noise.split(","))
        for rule, kept in _rows(rules.split(";"), [float(part) for part in keep.split(",")])
    ]
    for library in ("OMP", "OPENBLAS", "MKL"):  # of the processes to come, NumPy's too
        os.environ[f"{library}_NUM_THREADS"] = "1"
    where = environment()
    done = lines.done(out, _DEFAULTS)
    units: dict[tuple[int, Condition], list[Cell]] = {}
    for seed in range(first_seed, first_seed + seeds):  # so that a part of the grid is paired
        for cell in cells:
            if cell.key(seed) not in done:
                units.setdefault((seed, cell.condition), []).append(cell)
    total = sum(map(len, units.values()))
    typer.echo(f"{total} runs to do, {len(cells) * seeds - total} there")
    lines.prepare(out)
    with (
        ProcessPoolExecutor(workers if DEVICE == "cpu" else 1, get_context("spawn")) as processes,
        tqdm(total=total, unit="run", mininterval=5) as bar,
    ):
        jobs = {
            processes.submit(_unit, cells, seed, data_root, out, where): len(cells)
            for (seed, _), cells in units.items()
        }
        for job in as_completed(jobs):
            job.result()
            bar.update(jobs[job])


def _rows(rules: list[str], keeps: list[float]) -> Iterator[tuple[str, float]]:
    """Yield rules with the shares they are run at: all data know but one."""
    for rule in rules:
        if rule not in ALL_RULES:
            raise typer.BadParameter(f"expected a rule of {', '.join(ALL_RULES)}, got {rule!r}")
        yield from ((rule, kept) for kept in ([1.0] if rule in (FULL, "infobatch") else keeps))


def _unit(
    cells: list[Cell], seed: int, data_root: Path | None, out: Path, where: dict[str, Any]
) -> None:
    """Run the cells of one pool, one line each as soon as it is known."""
    torch.set_num_threads(1)
    condition = cells[0].condition
    contest = Contest(condition, problem(condition, seed, data_root), seed, cells[0].quotas)
    for cell in cells:
        outcome = contest.run(cell.rule, cell.keep, cell.steps)
        trained = outcome.trained
        line = cell.fields(seed) | {
            "k": outcome.k,
            "steps": trained.steps,
            "accuracy": round(trained.accuracy, 3),
            "balanced_accuracy": round(trained.balanced_accuracy, 3),
            "seconds": {
                "warm_up": outcome.warm_up,
                "selection": outcome.selection,
                "training": trained.seconds,
            },
            "details": outcome.details,
            "environment": {key: where[key] for key in ("commit", "cpu", "versions")}
            | {"device": DEVICE, "threads": 1},
        }
        lines.append(out, line)


# Lines that were written before a field was there have its default.
_DEFAULTS = Cell(Condition(""), "", 0.0).fields(0)


if __name__ == "__main__":
    typer.run(main)
