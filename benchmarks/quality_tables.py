"""Tables and pictures of `benchmarks/results/quality.jsonl`, for RESULTS.md and the README."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.record import RESULTS

RUNS, VALIDATION = RESULTS / "quality.jsonl", RESULTS / "validation.jsonl"
BASELINE, FULL, OURS = "random", "all data", "sage"
HEAD = """\
## Quality: rules at the same budget

`python -m benchmarks.quality.quality --data-root DIR` (every run: [quality.jsonl](results/quality.jsonl)).
Pools of 20,000 training images drawn by seed, a small CNN (106,000 parameters on Fashion-MNIST),
800 steps of 64 for every row, initialisation and wrong labels by seed; up to {seeds} seeds. A
*fixed* subset is chosen after one epoch of warm-up and trains a fresh network; a rule that chooses
*every epoch anew* does so in one run, whose first epoch is its warm-up. CCS drops its hardest tenth
throughout, where its paper tunes that share. Test accuracy in %, mean ± standard deviation; below
it the difference to the table's baseline (class-balanced random of the same size; all data for the
same steps, which is a shorter schedule), paired by seed, with its 95 % interval. **Bold**: above
zero; *italic*: below. Seconds of one CPU thread on a busy machine: warm-up + selection, at the
largest budget (a rule that chooses every epoch anew warms up within its run).
"""
VARIANTS = """\
## Ideas that were tried on validation data

`python -m benchmarks.quality.quality --split validation --first-seed 100 --rules "sage;variant: ..."`
([validation.jsonl](results/validation.jsonl), `benchmarks/variants.py`): points more than the
shipped herding or, where a rule chooses every epoch anew, to all data for the same steps; paired by
seed, number of seeds in brackets. The trim was still `agreement < 0`, but for the rows against all
data. *Learnt ones less*: herding toward a mean in which examples of less than the mean gradient
norm count less. *Hard draws*: the untrimmed drawn in proportion to a power of that norm. None is in
the product: what wins on Fashion-MNIST does not on CIFAR-10, or needs features beside gradients.
"""
# Names of the file -> names of the tables.
SHOWN = {
    "random": "class-balanced random",
    "random, global": "random",
    "sage": "**SAGE (default)**",
    "sage, nothing trimmed": "SAGE, nothing trimmed",
    "sage, trim 0.1": "SAGE, `trim=0.1`",
    "sage, trim 0.3": "SAGE, `trim=0.3`",
    "agreement": "SAGE, the paper's top-k",
    "facility location": "SAGE, facility location",
    "stratified": "SAGE, stratified (CCS on agreement)",
    "weighted": "SAGE, weighted draws",
    "ccs on el2n": "CCS on EL2N",
    "el2n": "EL2N",
    "grand": "GraNd",
    "margin": "smallest margin",
    "feature herding": "herding of features",
    "craig": "CRAIG",
    "gradmatch": "GradMatch",
    "k_center": "k-center",
    "rotate": '**SAGE, `draw="rotate"`**',
    "rotate, refreshed": "SAGE, rotate, refreshed every 4 epochs",
    "rs2": "RS2",
    "infobatch": "InfoBatch",
    FULL: "all data, shorter schedule",
}
DYNAMIC = (FULL, "rotate", "rotate, refreshed", "rs2", "infobatch")
DYNAMIC_VARIANTS = ("variant: all untrimmed", "variant: hard draws")
WHOLE = (FULL, "infobatch")  # these have no budget: one run for all
CONDITION = (
    *("data", "noise", "noise_kind", "imbalance", "split", "pool", "network"),
    *("protocol", "quotas"),
)
Run = dict[str, Any]


def sections() -> list[str]:
    """Return what RESULTS.md says of quality: two tables a condition."""
    runs = load()
    if not runs:
        return []
    lines = [HEAD.format(seeds=len({run["seed"] for run in runs}))]
    for condition, of_condition in _groups(runs, CONDITION):
        what = "balanced_accuracy" if condition["imbalance"] > 1 else "accuracy"
        lines += [f"### {title(condition)}\n"]
        if what != "accuracy":
            lines += ["Balanced accuracy.\n"]
        fixed = [run for run in of_condition if run["rule"] not in DYNAMIC]
        dynamic = [run for run in of_condition if run["rule"] in DYNAMIC]
        if fixed:
            lines += [*_table(fixed, "fixed subset", BASELINE, what), ""]
        if len({run["rule"] for run in dynamic}) > 1:
            lines += [*_table(dynamic, "every epoch anew", FULL, what), ""]
        if _is_curve(of_condition):
            lines.append(f"![Accuracy against seconds](results/{picture(condition)})\n")
    return ["\n".join(lines)]


def variants_section() -> list[str]:
    """Return what came of ideas tried on validation data, against the rule they would replace."""
    runs = [run for run in _read(VALIDATION) if run["split"] == "validation"]
    if not runs:
        return []
    keeps = sorted({run["keep"] for run in runs if run["rule"] not in WHOLE})
    lines = [VARIANTS, f"| | {' | '.join(f'{keep:.0%}' for keep in keeps)} |"]
    lines.append("|---" * (len(keeps) + 1) + "|")
    for condition, of_condition in _groups(runs, CONDITION):
        for rule in rules_of(of_condition):
            if rule in (OURS, FULL):
                continue
            is_dynamic = rule in DYNAMIC or rule.startswith(DYNAMIC_VARIANTS)
            rival = FULL if is_dynamic else OURS
            cells = []
            for keep in keeps:
                here, theirs = (_at(of_condition, name, keep) for name in (rule, rival))
                found = difference(here, theirs)
                shown = "–" if found is None else marked(found, f"{found[0]:+.2f}")
                cells.append(shown if found is None else f"{shown} ({found[3]})")
            if set(cells) != {"–"}:
                name = SHOWN.get(rule, rule.removeprefix("variant: "))
                against = ", against all data" if is_dynamic else ""
                lines.append(f"| {title(condition)}: {name}{against} | {' | '.join(cells)} |")
    return ["\n".join(lines) + "\n"]


def draw_pictures() -> None:
    """Draw accuracy against seconds for every condition with several budgets."""
    for condition, of_condition in _groups(load(), CONDITION):
        if _is_curve(of_condition):
            _draw(condition, of_condition)


def readme_table() -> str:
    """Return what the README shows: paired differences, means over both data sets."""
    runs = [run for run in load() if _is_core(run)]
    columns = sorted(
        {(run["noise"], run["keep"]) for run in runs if run["rule"] == BASELINE and run["keep"] < 1}
    )
    if not columns:
        return ""
    heads = [f"{keep:.0%}{f', {noise:.0%} wrong' if noise else ''}" for noise, keep in columns]
    lines = [f"| kept | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    rules = rules_of(runs)
    blocks = (
        (BASELINE, [rule for rule in rules if rule not in DYNAMIC]),
        (FULL, [rule for rule in rules if rule in DYNAMIC]),
    )
    for baseline, of_block in blocks:
        base = [_mean(runs, baseline, noise, keep) for noise, keep in columns]
        lines.append(f"| *{SHOWN[baseline]}: accuracy* | {' | '.join(base)} |")
        for rule in of_block:
            if rule == baseline:
                continue
            cells = []
            for noise, keep in columns:
                ours = _at(runs, rule, keep, noise)
                found = difference(ours, _at(runs, baseline, keep, noise), data_sets=2)
                cells.append("–" if found is None else marked(found, f"{found[0]:+.1f}"))
            if set(cells) != {"–"}:
                lines.append(f"| {SHOWN.get(rule, rule)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rules_of(runs: Iterable[Run]) -> list[str]:
    """Return the rules of some runs: those with a name in its order, then the others."""
    there = {run["rule"] for run in runs}
    return [*(rule for rule in SHOWN if rule in there), *sorted(there - set(SHOWN))]


def difference(
    ours: Iterable[Run], theirs: Iterable[Run], what: str = "accuracy", data_sets: int = 1
) -> tuple[float, float, float, int] | None:
    """Return mean, 95 % interval and number of seeds of differences paired by seed.

    Of several data sets the mean is taken seed by seed; seeds that lack one do not count. None for
    fewer than two seeds.

    Raises:
        ValueError: A data set and seed come twice: runs of several conditions were mixed.
    """
    of_theirs = _by_pair(theirs, what)
    by_seed: dict[int, list[float]] = {}
    for (data, seed), value in _by_pair(ours, what).items():
        if (data, seed) in of_theirs:
            by_seed.setdefault(seed, []).append(value - of_theirs[data, seed])
    values = [mean(each) for each in by_seed.values() if len(each) == data_sets]
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean(values), mean(values) - half, mean(values) + half, len(values)


def _by_pair(runs: Iterable[Run], what: str) -> dict[tuple[str, int], float]:
    found: dict[tuple[str, int], float] = {}
    for run in runs:
        pair = (run["data"], run["seed"])
        if pair in found:
            raise ValueError(f"expected one run of each data set and seed, got two of {pair}")
        found[pair] = run[what]
    return found


def marked(found: tuple[float, float, float, int], text: str) -> str:
    """Return the text bold where the interval lies above zero, italic where below."""
    return f"**{text}**" if found[1] > 0 else f"*{text}*" if found[2] < 0 else text


def title(condition: dict[str, Any]) -> str:
    """Return a heading."""
    names = {"fashion-mnist": "Fashion-MNIST", "cifar-10": "CIFAR-10"}
    parts = [names.get(condition["data"], condition["data"])]
    if condition["noise"]:
        kind = "to the next class" if condition["noise_kind"] == "pair" else "to any class"
        parts.append(f"{condition['noise']:.0%} of labels flipped {kind}")
    if condition["imbalance"] > 1:
        parts.append(f"long tail {condition['imbalance']}, {condition['quotas']} quotas")
    if len(parts) == 1:
        parts.append("clean")
    parts.append(f"equal {condition['protocol']}")
    if condition["network"] != "small":
        parts.append(condition["network"])
    return ", ".join(parts)


def picture(condition: dict[str, Any]) -> str:
    """Return the name of a condition's picture."""
    return f"quality_{'_'.join(str(condition[key]) for key in CONDITION)}.png"


def load() -> list[Run]:
    """Return the runs on test data."""
    return [run for run in _read(RUNS) if run["split"] == "test"]


def _read(path: Path) -> list[Run]:
    """Return the runs of a file; a line that was cut off does not count."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _is_curve(runs: list[Run]) -> bool:
    return len({run["keep"] for run in runs if run["rule"] == BASELINE}) > 2


def _draw(condition: dict[str, Any], runs: list[Run]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from sage_torch.plots import accuracy_against_time

    order = rules_of(runs)
    points = [
        {
            "method": SHOWN.get(run["rule"], run["rule"]).replace("*", "").replace("`", ""),
            "keep": run["keep"],
            "accuracy": run["accuracy"],
            "seconds": sum(run["seconds"].values()),
        }
        for run in sorted(runs, key=lambda run: order.index(run["rule"]))
    ]
    figure, ax = pyplot.subplots(figsize=(9, 4.6), layout="constrained")
    accuracy_against_time(points, ax, baseline=SHOWN[BASELINE])
    ax.set_xlabel("seconds of one CPU thread: warm-up, selection, training (log scale)")
    # Where a rule fails by tens of points, the others would be one line.
    lowest = min(run["accuracy"] for run in runs if run["rule"] == BASELINE) - 10
    is_cut = any(run["accuracy"] < lowest for run in runs)
    ax.set_ylim(bottom=lowest)
    ax.set_title(title(condition) + (" (lower points are cut off)" if is_cut else ""), fontsize=10)
    figure.savefig(RESULTS / picture(condition), dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _table(runs: list[Run], name: str, baseline: str, what: str) -> list[str]:
    keeps = sorted({run["keep"] for run in runs if run["rule"] not in WHOLE})
    lines = [
        f"| {name} | {' | '.join(f'{keep:.0%}' for keep in keeps)} | seeds | seconds |",
        "|---" * (len(keeps) + 3) + "|",
    ]
    for rule in rules_of(runs):
        of_rule = [run for run in runs if run["rule"] == rule]
        cells = [
            _cell(
                _at(runs, rule, keep), [] if rule == baseline else _at(runs, baseline, keep), what
            )
            for keep in keeps
        ]
        most = max(run["keep"] for run in of_rule)
        cost = [run["seconds"] for run in of_rule if run["keep"] == most]
        warm_up, selection = (mean(one[key] for one in cost) for key in ("warm_up", "selection"))
        seconds = "–" if rule == FULL else f"{warm_up:.1f} + {selection:.1f}"
        seeds = len({run["seed"] for run in of_rule})
        lines.append(f"| {SHOWN.get(rule, rule)} | {' | '.join(cells)} | {seeds} | {seconds} |")
    return lines


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


def _at(runs: list[Run], rule: str, keep: float, noise: float | None = None) -> list[Run]:
    """Return the runs of a rule at a share kept; rules that see all data have one for all."""
    return [
        run
        for run in runs
        if run["rule"] == rule
        and run["keep"] == (1.0 if rule in WHOLE else keep)
        and noise in (None, run["noise"])
    ]


def _mean(runs: list[Run], rule: str, noise: float, keep: float) -> str:
    """Return the mean over data sets of mean accuracies."""
    by_data: dict[str, list[float]] = {}
    for run in _at(runs, rule, keep, noise):
        by_data.setdefault(run["data"], []).append(run["accuracy"])
    return f"{mean(map(mean, by_data.values())):.1f}" if len(by_data) == 2 else "–"


def _is_core(run: Run) -> bool:
    """Whether a run belongs to the README's table."""
    plain = {
        "imbalance": 1,
        "noise_kind": "symmetric",
        "protocol": "steps",
        "network": "small",
        "pool": 20_000,
        "quotas": "proportional",
    }
    return (
        plain.items() <= run.items()
        and run["noise"] in (0.0, 0.2)
        and run["data"] in ("fashion-mnist", "cifar-10")
    )


def _groups(runs: list[Run], keys: tuple[str, ...]) -> list[tuple[dict[str, Any], list[Run]]]:
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(run[key] for key in keys), []).append(run)
    return [
        (dict(zip(keys, values, strict=True)), found[values])
        for values in sorted(found, key=lambda values: (values[3], values[7], values[1], values[0]))
    ]
