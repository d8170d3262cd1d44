"""What does a selection save of a long training run, its own time charged to it?

The yardstick is 30 epochs on all data of a small CNN. Every other run gets a share of the
yardstick's time. Time is counted in training steps: a selection is charged as many steps as the
median step of the same process would take in its seconds on the CPU, and an epoch of warm-up for a
fixed subset as many steps as it has. Wall time on a busy machine says nothing, and steps are equal
for all rules. A run's schedule is planned for the steps that remain.

One JSON line a run goes to `benchmarks/results/long_runs.jsonl` (or `--out`), and what is there is
not run again: stop and go on at will, or let several processes write different seeds.

    python -m benchmarks.quality.long_runs --data-root DIR      # all of it: many hours of one core
    python -m benchmarks.quality.long_runs --data digits --seeds 2 --budgets 0.35 --rules rotate
    python -m benchmarks.quality.long_runs --data-root DIR --split validation --first-seed 210
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from benchmarks.quality import lines
from benchmarks.quality.recipes import RECIPES
from benchmarks.quality.rivals import FULL, ROTATIONS, Contest, Outcome
from benchmarks.quality.trials import BATCH, DEVICE, Condition, Training, clock, problem
from benchmarks.record import RESULTS, environment
from sage_torch import SageSampler
from sage_torch.demo.data import DATA_ROOT_VARIABLE
from sage_torch.sampler.schedule import Schedule

EPOCHS = 30
BUDGETS = (0.15, 0.25, 0.35, 0.5)
YARDSTICK = "30 epochs"
ROTATED = ("rotate", "rotate, late", "rotate, refreshed rarely")
RULES = (FULL, "rs2", "infobatch", "random", "sage", *ROTATED)
OF_AN_EPOCH = 0.5  # of the data that an epoch of a rotation sees, whatever the budget
_PACES, _STEPS_OF_A_PACE = 15, 10


@dataclass(frozen=True)
class Price:
    """Seconds of the CPU: of the first selection of a rotation, of a later one, and of a sample.

    A sample of the labels is read after the first epoch of a longer warm-up.
    """

    first: float
    again: float
    sample: float


@dataclass
class LongContest(Contest):
    """One pool and seed, in which what a rule spends is taken off the steps that it trains for.

    Attributes:
        pace: Seconds of one training step: the median of some short stretches.
        price: Of the selections of a rotation; measured where it is asked for.
    """

    pace: float = 0.0
    price: Price | None = None

    def __post_init__(self) -> None:
        training = Training(self.problem, self._network(), _PACES * _STEPS_OF_A_PACE, self.seed)
        count = min(len(self.problem), BATCH * _STEPS_OF_A_PACE)
        paces = []
        while not training.is_over:
            before = training.seconds, training.taken
            training.epoch(np.arange(count))
            paces.append((training.seconds - before[0]) / (training.taken - before[1]))
        self.pace = median(paces)

    def run_within(self, rule: str, budget: float) -> dict[str, Any]:
        """Run a rule within a share of the yardstick's time; return what the line says of it."""
        per_epoch = len(self.problem) // BATCH
        total = max(1, round(budget * EPOCHS * per_epoch))
        k = round((OF_AN_EPOCH if rule in ROTATIONS else budget) * len(self.problem))
        steps, selections = total, int(rule not in (YARDSTICK, FULL))
        if rule in ROTATIONS:
            steps, selections = self._planned(rule, total, per_epoch, k // BATCH)
        # Where no time is left for a selection, a rotation is still in its warm-up at the end.
        is_full = rule == YARDSTICK or selections == 0
        outcome = self.run(FULL if is_full else rule, k / len(self.problem), lambda *_: steps)
        return self._line(outcome, total, selections)

    def _left(self, steps: int, warm_up: int, seconds: float) -> int:
        return max(1, steps - warm_up - round(seconds / self.pace))

    def _planned(self, rule: str, total: int, per_epoch: int, per_part: int) -> tuple[int, int]:
        """Return the steps that leave time for the selections made meanwhile, and their number."""
        price = self._prices()
        first, again, sample = (
            round(each / self.pace) for each in (price.first, price.again, price.sample)
        )
        options = {"warmup_epochs": self.condition.warm_up_epochs} | ROTATIONS[rule]
        schedule = Schedule(options["warmup_epochs"], options.get("refresh_every"))
        steps = spent = selections = epoch = since = 0
        while True:
            if epoch == 1 and schedule.is_warming_up(epoch):
                spent += sample
            if not schedule.is_warming_up(epoch) and (
                selections == 0 or schedule.is_due(epoch, since)
            ):
                cost = again if selections else first
                if steps + spent + cost >= total:  # no time is left for it
                    return (steps, selections) if selections else (total, 0)
                since, selections, spent = epoch, selections + 1, spent + cost
            part = per_epoch if schedule.is_warming_up(epoch) else per_part
            if steps + spent + part >= total:
                return total - spent, selections
            steps, epoch = steps + part, epoch + 1

    def _prices(self) -> Price:
        """Measure once, on the warmed-up model, what the selections of a rotation take."""
        if self.price is None:
            sampler = SageSampler(
                self._warm(max(1, self.condition.warm_up_epochs)).model,
                self.problem.dataset,
                keep=OF_AN_EPOCH,
                draw="rotate",
                warmup_epochs=2,
                seed=self.seed,
                progress=False,
            )
            sampler.set_epoch(1)
            steps = (sampler.select, sampler.select, lambda: next(iter(sampler)))
            times = []
            for step in steps:
                start = clock()
                step()
                times.append(clock() - start)
            self.price = Price(*times)
        return self.price

    def _line(self, outcome: Outcome, total: int, selections: int) -> dict[str, Any]:
        trained = outcome.trained
        warm_up = len(self.problem) // BATCH if outcome.warm_up else 0
        return {
            "k": outcome.k,
            "accuracy": round(trained.accuracy, 3),
            # In training steps; `total` is the budget, and `selection` as measured in this run.
            "charged": {
                "total": total,
                "training": trained.steps,
                "warm_up": warm_up,
                "selection": round(outcome.selection / self.pace),
            },
            "selections": selections,
            "seconds": {
                "step": self.pace,
                "warm_up": outcome.warm_up,
                "selection": outcome.selection,
                "training": trained.seconds,
            },
            "details": outcome.details,
        }


@dataclass(frozen=True)
class Cell:
    """One run, but for the seed."""

    condition: Condition
    rule: str
    budget: float

    def fields(self, seed: int) -> dict[str, Any]:
        """Return what names a run: condition, rule, budget and seed, flat."""
        own = {"rule": self.rule, "budget": self.budget, "seed": seed}
        return asdict(self.condition) | own


def main(
    data: Annotated[
        str, typer.Option(help="With commas, of: " + ", ".join(RECIPES))
    ] = "fashion-mnist,cifar-10",
    data_root: Annotated[
        Path | None, typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder with the data sets.")
    ] = None,
    rules: Annotated[str, typer.Option(help="With semicolons, of: " + "; ".join(RULES))] = ";".join(
        RULES
    ),
    budgets: Annotated[str, typer.Option(help="Shares of the time, with commas.")] = ",".join(
        map(str, BUDGETS)
    ),
    noise: Annotated[str, typer.Option(help="Shares of wrong labels, with commas.")] = "0,0.2,0.4",
    noise_kind: Annotated[str, typer.Option(help="symmetric or pair.")] = "symmetric",
    seeds: Annotated[int, typer.Option(help="How many.")] = 5,
    first_seed: Annotated[int, typer.Option(help="0 to report, 100 to tune.")] = 0,
    split: Annotated[str, typer.Option(help="test, or validation for decisions.")] = "test",
    pool: Annotated[int, typer.Option(help="Training examples at most; 0 for all.")] = 0,
    out: Annotated[Path, typer.Option(help="JSON lines.")] = RESULTS / "long_runs.jsonl",
) -> None:
    """Run what the file does not hold yet, one run after another."""
    torch.set_num_threads(1)
    where = environment()
    base = Condition("", noise_kind=noise_kind, split=split, pool=pool)  # type: ignore[arg-type]
    done = lines.done(out, Cell(base, "", 0.0).fields(0))
    units: dict[tuple[int, Condition], list[Cell]] = {}
    for seed, one, share in product(
        range(first_seed, first_seed + seeds), data.split(","), noise.split(",")
    ):
        condition = replace(base, data=one, noise=float(share))
        for cell in _cells(condition, rules.split(";"), [float(b) for b in budgets.split(",")]):
            if lines.key(cell.fields(seed)) not in done:
                units.setdefault((seed, condition), []).append(cell)
    total = sum(map(len, units.values()))
    typer.echo(f"{total} runs to do")
    lines.prepare(out)
    with tqdm(total=total, unit="run", mininterval=5) as bar:
        for (seed, condition), cells in units.items():
            contest = LongContest(condition, problem(condition, seed, data_root), seed)
            for cell in cells:
                found = contest.run_within(cell.rule, cell.budget)
                about = {key: where[key] for key in ("commit", "cpu", "versions")}
                about |= {"device": DEVICE, "threads": 1}
                lines.append(out, cell.fields(seed) | found | {"environment": about})
                bar.update(1)


def _cells(condition: Condition, rules: list[str], budgets: list[float]) -> Iterator[Cell]:
    """Yield the yardstick, then the rules by budget."""
    for rule in rules:
        if rule not in RULES:
            raise typer.BadParameter(f"expected a rule of {', '.join(RULES)}, got {rule!r}")
    yield Cell(condition, YARDSTICK, 1.0)
    for budget, rule in product(budgets, rules):
        yield Cell(condition, rule, budget)


if __name__ == "__main__":
    typer.run(main)
