"""What RESULTS.md says of the runs of `long_runs.py`: a table and a picture for each condition."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

from benchmarks.quality.long_runs import BUDGETS, EPOCHS, RULES, YARDSTICK
from benchmarks.quality.runs import DATA_NAMES, FULL, NOISE_NAMES, SHOWN, difference, load, marked
from benchmarks.record import RESULTS, Run, half_width_95, kinds, of, table

FILE = "long_runs.jsonl"
HEAD = """\
## Accuracy against time

`python -m benchmarks.quality.long_runs --data-root DIR` makes the runs
([long_runs.jsonl](results/long_runs.jsonl)). The yardstick trains a small CNN for {epochs} epochs
on all training images. Every other run gets a share of that time, with a schedule of its own.
Warm-up and selection are charged: a selection counts as the training steps that the same process
would have taken in its CPU time. All labels of a condition, and initial weights, are paired by
seed.

- A rotation sees half of the data in each epoch, after one epoch on all of it if its row does not
  say otherwise. Where no time is left for a selection, it is all data with a shorter schedule.
- RS2 draws, and a fixed subset has, the share of the data that the budget is of the time.
- InfoBatch follows its paper: half of what is below the mean loss is left out, the other half
  counts twice, and the last eighth of the run sees all data.

A cell is the test accuracy in %. Below it stands the difference to all data with a shorter
schedule, paired by seed, with its 95 % interval; **bold** says that the interval lies above zero,
*italic* that it lies below. *Gain* is the difference at 35 % of the time to the yardstick, paired
in the same way. *Time* is the share of the yardstick's time after which the mean
accuracy is half a point below the yardstick's, interpolated between budgets. *Selection* is the
time for warm-up of a fixed subset and for selections at the budget of 35 %, as a share of the
yardstick's.
"""
NONE_YET = "No run has been made yet.\n"
_CONDITION = ("data", "noise", "noise_kind", "pool")
_LESS, _AT = 0.5, 0.35


def section() -> str:
    """Return a table and a picture for each condition."""
    runs, lines = _known(), [HEAD.format(epochs=EPOCHS)]
    for condition in conditions(runs):
        of_condition = of(runs, **condition)
        lines += [f"### {title(condition)}\n", of_rules(of_condition)]
        lines += [f"![Accuracy against share of time](results/{picture(condition)})\n"]
    return "\n".join(lines if runs else [*lines, NONE_YET])


def draw_pictures() -> None:
    """Draw what the file holds."""
    runs = _known()
    for condition in conditions(runs):
        _draw(condition, of(runs, **condition))


def conditions(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return the conditions: data sets as first met, clean ones first."""
    found = [dict(zip(_CONDITION, each, strict=True)) for each in kinds(runs, *_CONDITION)]
    sets = [one["data"] for one in found]
    return sorted(
        found, key=lambda one: (sets.index(one["data"]), one["noise"], one["noise_kind"] == "pair")
    )


def title(condition: dict[str, Any]) -> str:
    """Return a heading."""
    labels = "clean"
    if condition["noise"]:
        kind = NOISE_NAMES[condition["noise_kind"]]
        labels = f"{condition['noise']:.0%} of labels flipped {kind}"
    pool = f", {condition['pool']:,} examples" if condition["pool"] else ""
    return f"{DATA_NAMES.get(condition['data'], condition['data'])}, {labels}{pool}, against time"


def picture(condition: dict[str, Any]) -> str:
    """Return the name of a condition's picture."""
    return f"long_runs_{'_'.join(str(condition[key]) for key in _CONDITION)}.png"


def of_rules(runs: list[Run]) -> str:
    """Return the table of one condition: a row for each rule."""
    full = of(runs, rule=YARDSTICK)
    goal = mean(run["accuracy"] for run in full) - _LESS if full else None
    budgets = _budgets(runs)
    heads = ["rule", *(f"{budget:.0%} of the time" for budget in budgets)]
    rows = []
    if full:
        cells = [f"{goal + _LESS:.2f} at 100 %" if goal is not None else ""]
        cells += [""] * (len(budgets) - 1)
        rows.append([f"all data, {EPOCHS} epochs", *cells, "", "100%", "0.0 %", str(len(full))])
    for rule in _rules(runs):
        of_rule = of(runs, rule=rule)
        cells = []
        for budget in budgets:
            theirs = [] if rule == FULL else of(runs, rule=FULL, budget=budget)
            cells.append(_cell(of(of_rule, budget=budget), theirs))
        found = difference(of(of_rule, budget=_AT), full)
        gain = "–" if found is None else marked(found, f"{found[0]:+.2f}")
        time = "–" if goal is None else time_to(goal, _curve(of_rule, full if rule == FULL else []))
        seeds = len({run["seed"] for run in of_rule})
        rows.append([SHOWN.get(rule, rule), *cells, gain, time, _selection(of_rule), str(seeds)])
    return table([*heads, "gain", "time", "selection", "seeds"], rows)


def time_to(goal: float, curve: Sequence[tuple[float, float]]) -> str:
    """Return the share of time at which a curve reaches an accuracy, in percent.

    Args:
        goal: The accuracy.
        curve: Shares of time, ascending, each with its accuracy; straight lines join them.
    """
    if not curve:
        return "–"
    if curve[0][1] >= goal:
        return f"≤ {curve[0][0]:.0%}"
    for (before, low), (after, high) in pairwise(curve):
        if high >= goal:
            return f"{before + (after - before) * (goal - low) / (high - low):.0%}"
    return f"> {curve[-1][0]:.0%}"


def _known() -> list[Run]:
    return load(FILE) if (RESULTS / FILE).exists() else []


def _rules(runs: list[Run]) -> list[str]:
    return [rule for rule in RULES if of(runs, rule=rule)]


def _budgets(runs: list[Run]) -> list[float]:
    return [budget for budget in BUDGETS if of(runs, budget=budget)]


def _curve(runs: list[Run], full: list[Run]) -> list[tuple[float, float]]:
    found = [
        (budget, mean(run["accuracy"] for run in of(runs, budget=budget)))
        for budget in _budgets(runs)
    ]
    return found + ([(1.0, mean(run["accuracy"] for run in full))] if full else [])


def _cell(runs: list[Run], baseline: list[Run]) -> str:
    if not runs:
        return "–"
    values = [run["accuracy"] for run in runs]
    text = f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
    found = difference(runs, baseline)
    if found is None:
        return text
    return f"{text}<br>{marked(found, f'{found[0]:+.2f}')} ({found[1]:+.2f} to {found[2]:+.2f})"


def _selection(runs: list[Run]) -> str:
    """Return the time for warm-up and selections at 35 %, or at the largest budget below it."""
    there = [budget for budget in _budgets(runs) if budget <= _AT] or _budgets(runs)
    shares = []
    for run in of(runs, budget=there[-1]):
        charged = run["charged"]
        whole = charged["total"] / run["budget"]
        shares.append((charged["warm_up"] + charged["selection"]) / whole)
    return f"{mean(shares):.1%}".replace("%", " %")


def _draw(condition: dict[str, Any], runs: list[Run]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(9, 4.6), layout="constrained")
    full = of(runs, rule=YARDSTICK)
    for place, rule in enumerate(_rules(runs)):
        of_rule = of(runs, rule=rule)
        points = [of(of_rule, budget=budget) for budget in _budgets(of_rule)]
        points += [full] if rule == FULL and full else []
        shares = [each[0]["budget"] for each in points]
        values = [[run["accuracy"] for run in each] for each in points]
        means = [mean(each) for each in values]
        halves = [half_width_95(each) if len(each) > 1 else 0.0 for each in values]
        colour = "black" if rule == FULL else f"C{place}"
        name = SHOWN.get(rule, rule).replace("*", "").replace("`", "")
        ax.plot(shares, means, "o-", color=colour, label=name, markersize=4, linewidth=1.4)
        low, high = ([m + sign * h for m, h in zip(means, halves, strict=True)] for sign in (-1, 1))
        ax.fill_between(shares, low, high, color=colour, alpha=0.12, linewidth=0)
    if full:
        goal = mean(run["accuracy"] for run in full) - _LESS
        ax.axhline(goal, color="grey", linestyle=":", linewidth=1)
        ax.annotate(f"{EPOCHS} epochs less {_LESS}", (1.0, goal), ha="right", va="top", fontsize=8)
    # Where a rule fails by tens of points, the others would be one line.
    is_cut, usual = False, [run["accuracy"] for run in runs if run["rule"] in (FULL, YARDSTICK)]
    if usual:
        lowest, bottom = min(run["accuracy"] for run in runs), min(usual) - 6
        bottom = max(lowest, bottom) - 0.3
        ax.set_ylim(bottom=bottom)
        is_cut = any(min(line.get_ydata()) < bottom for line in ax.get_lines())
    ax.set_xlabel(f"share of the time of {EPOCHS} epochs, warm-up and selection charged")
    ax.set_ylabel("test accuracy, %; bands: 95 % interval of the mean")
    ax.set_title(title(condition) + (" (lower points are cut off)" if is_cut else ""), fontsize=10)
    ax.legend(fontsize=8)
    figure.savefig(RESULTS / picture(condition), dpi=110, metadata={"Software": None})
    pyplot.close(figure)
