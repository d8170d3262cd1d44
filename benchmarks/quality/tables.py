"""What RESULTS.md and the README say of the runs of `quality.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, stdev

from benchmarks.quality import made
from benchmarks.quality.baselines import WATCHED
from benchmarks.quality.runs import (
    BASELINE,
    DATA_NAMES,
    DYNAMIC,
    FULL,
    OURS,
    SHOWN,
    WHOLE,
    at,
    difference,
    groups,
    is_curve,
    load,
    marked,
    picture,
    rules_of,
    title,
)
from benchmarks.record import Run, kinds, of, table

HEAD = """\
## Quality: rules at the same budget

`python -m benchmarks.quality.quality --data-root DIR` makes the runs
([quality.jsonl](results/quality.jsonl)). Each seed (up to {seeds}) draws a pool of 20,000 training
images, the wrong labels and the initial weights. The network is a small CNN (106,000 parameters on
Fashion-MNIST). Every row trains it for 800 steps of 64 examples. On text (TREC, SUBJ, SST-2) it is
a mean of word embeddings under one hidden layer, 300 steps; on digits a CNN, 200 steps; on what
scikit-learn makes (clusters of 2 to 40 classes, shells) a perceptron, 600 steps.

- A *fixed* subset is chosen after one epoch of warm-up. Then a fresh network is trained on it.
  After three epochs, rules of sage_torch also know what `SageSampler` reads after the first one.
- A rule that chooses *every epoch anew* does so within one run. The first epoch is its warm-up.
- CCS drops its hardest tenth everywhere. Its paper tunes that share.

### Means over data sets

A cell is the test accuracy in %. **Bold** says that it lies above that of a class-balanced random
subset of the same size: the 95 % interval of the difference, paired by seed, lies above zero.
*Italic* says that it lies below. *Price* is the time for warm-up and selection, in epochs of
training on the pool; a rule that chooses every epoch anew warms up within its run.
"""
ESTIMATES = """\
### How many labels are wrong, by the estimate

`rho` of the selection, in % (`Selection.settings`), mean over seeds. After three epochs and more it
is the geometric mean of two readings, the first of them after the first epoch. Labels that were
learnt by heart are missed. Between two classes nothing but confidence tells hard labels from wrong
ones.
"""
EACH = """\
### Each data set by itself

A cell is the test accuracy in %, mean ± standard deviation. Below it stands the difference to the
baseline of the table, paired by seed, with its 95 % interval. The baseline of fixed subsets is a
class-balanced random subset of the same size. The baseline of the other rules is all data for the
same number of steps, which is a shorter schedule. **Bold** and *italic* are as above. Seconds are
those of one CPU thread on a busy machine: warm-up + selection, at the largest budget.
"""
FORMER = """\
## Quality: the former default, and rivals that were not run again

Runs made before the default read probabilities of labels
([quality_former.jsonl](results/quality_former.jsonl)), with torch 2.11 on another machine: they
pair with each other, not with those above. The rules that choose every epoch anew had
`trim="negative"`.
"""
README_RULES = (BASELINE, OURS, "ccs on el2n", FULL)
_BOTH = ("fashion-mnist", "cifar-10")
_POOL = 20_000  # examples at most, if a table does not say otherwise
_CORE = (0.05, 0.15, 0.25, 0.5)  # shares kept that all rules have
_TEXTS = ("trec", "subj", "sst-2")
_MEANS = (("both image sets", _BOTH), ("the text sets", _TEXTS), ("the made sets", made.NAMES))
_LABELS = ((0.0, "symmetric"), (0.2, "symmetric"), (0.2, "pair"), (0.4, "symmetric"))


def section() -> str:
    """Return the means over both data sets, then two tables a condition."""
    runs = load()
    lines = [HEAD.format(seeds=len({run["seed"] for run in runs}))]
    for name, sets in _MEANS:
        for noise, labels in ((0.0, "right labels"), (0.2, "20 % of the labels flipped")):
            found = means(noise, sets=sets)
            lines += [f"Means over {name}, {labels}:\n", found] if found else []
    return "\n".join([*lines, ESTIMATES, estimates(runs), EACH, *_each(runs)])


def estimates(runs: list[Run]) -> str:
    """Return a table of the estimated shares of wrong labels, a row a data set and warm-up."""
    plain = {"imbalance": 1, "protocol": "steps", "network": "small"}
    known = [run for run in of(runs, rule=OURS, **plain) if run["details"].get("rho") is not None]
    rows = []
    for data, pool, epochs in sorted(kinds(known, "data", "pool", "warm_up_epochs")):
        here, cells = of(known, data=data, pool=pool, warm_up_epochs=epochs), []
        for noise, kind in _LABELS:
            shares = [run["details"]["rho"] for run in of(here, noise=noise, noise_kind=kind)]
            cells.append(f"{100 * mean(shares):.1f}" if shares else "–")
        if epochs:
            few = "" if pool == _POOL else f", {pool:,} of them"
            rows.append([DATA_NAMES.get(data, data) + few, str(epochs), *cells])
    heads = ["data", "epochs before", "right labels", "20 % wrong", "20 % pair", "40 % wrong"]
    return table(heads, rows)


def former_section() -> str:
    """Return the means and the tables of the runs with the former default."""
    runs, lines = load("quality_former.jsonl"), [FORMER]
    for noise, labels in ((0.0, "right labels"), (0.2, "20 % of the labels flipped")):
        lines += [f"Means over both image sets, {labels}:\n", means(noise, runs=runs)]
    return "\n".join([*lines, *_each(runs, has_pictures=False)])


def _each(runs: list[Run], *, has_pictures: bool = True) -> list[str]:
    """Return the tables and pictures of each condition."""
    lines = []
    for condition, of_condition in groups(runs):
        what = "balanced_accuracy" if condition["imbalance"] > 1 else "accuracy"
        lines += [f"#### {title(condition)}\n"]
        if what != "accuracy":
            lines += ["Balanced accuracy.\n"]
        fixed = [run for run in of_condition if run["rule"] not in DYNAMIC]
        dynamic = [run for run in of_condition if run["rule"] in DYNAMIC]
        if fixed:
            lines.append(of_rules(fixed, "fixed subset", BASELINE, what))
        if len({run["rule"] for run in dynamic}) > 1:
            lines.append(of_rules(dynamic, "every epoch anew", FULL, what))
        if has_pictures and is_curve(of_condition):
            lines.append(f"![Accuracy against seconds](results/{picture(condition)})\n")
    return lines


def means(
    noise: float,
    rules: Iterable[str] | None = None,
    *,
    sets: Sequence[str] = _BOTH,
    runs: list[Run] | None = None,
) -> str:
    """Return accuracies, means over data sets, and the price of a selection; empty without runs."""
    plain = {"imbalance": 1, "noise_kind": "symmetric", "protocol": "steps", "network": "small"}
    usual = {"pool": _POOL, "quotas": "proportional", "warm_up_epochs": 1}
    everything = load() if runs is None else runs
    runs = [run for run in of(everything, noise=noise, **plain, **usual) if run["data"] in sets]
    if {run["data"] for run in runs} != set(sets):
        return ""
    shown = list(rules or rules_of(runs))
    keeps = [keep for keep in _CORE if of(runs, rule=BASELINE, keep=keep)]
    rows = []
    for rule in shown:
        cells = []
        for keep in keeps:
            here = at(runs, rule, keep)
            accuracy = mean(mean(run["accuracy"] for run in of(here, data=one)) for one in sets)
            baseline = [] if rule == BASELINE else at(runs, BASELINE, keep)
            cells.append(marked(difference(here, baseline, data_sets=len(sets)), f"{accuracy:.1f}"))
        rows.append([SHOWN.get(rule, rule), *cells, f"{price(runs, rule, sets):.1f}"])
    return table(["kept", *(f"{keep:.0%}" for keep in keeps), "price, epochs"], rows)


def price(runs: list[Run], rule: str, sets: Sequence[str] = _BOTH) -> float:
    """Return the seconds of warm-up and selection over those of an epoch on the pool."""
    ratios = []
    for data in sets:
        of_data = of(runs, data=data)
        once = [run for run in of_data if run["rule"] not in WATCHED and run["seconds"]["warm_up"]]
        usual = mean(run["seconds"]["warm_up"] for run in once)
        seconds = [run["seconds"] for run in of(runs, data=data, rule=rule)]
        warm_up, selection = (mean(one[key] for one in seconds) for key in ("warm_up", "selection"))
        # The machine was busy: the rule's own epochs, where it had some, are the fairest unit.
        epoch = warm_up / WATCHED.get(rule, 1) or usual
        ratios.append((warm_up + selection) / epoch)
    return mean(ratios)


def of_rules(runs: list[Run], name: str, baseline: str, what: str) -> str:
    """Return a table of one condition: a row a rule, a column a share kept."""
    keeps = sorted({run["keep"] for run in runs if run["rule"] not in WHOLE})
    rows = []
    for rule in rules_of(runs):
        of_rule = of(runs, rule=rule)
        cells = [
            _cell(at(runs, rule, keep), [] if rule == baseline else at(runs, baseline, keep), what)
            for keep in keeps
        ]
        most = max(run["keep"] for run in of_rule)
        cost = [run["seconds"] for run in of_rule if run["keep"] == most]
        warm_up, selection = (mean(one[key] for one in cost) for key in ("warm_up", "selection"))
        seconds = "–" if rule == FULL else f"{warm_up:.1f} + {selection:.1f}"
        seeds = len({run["seed"] for run in of_rule})
        rows.append([SHOWN.get(rule, rule), *cells, str(seeds), seconds])
    return table([name, *(f"{keep:.0%}" for keep in keeps), "seeds", "seconds"], rows)


def _cell(runs: list[Run], baseline: list[Run], what: str) -> str:
    if not runs:
        return "–"
    values = [run[what] for run in runs]
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    text = f"{mean(values):.2f}{spread}"
    found = difference(runs, baseline, what)
    if found is None:
        return text
    shown = marked(found, f"{found[0]:+.2f}")
    return f"{text}<br>{shown} ({found[1]:+.2f} to {found[2]:+.2f})"
