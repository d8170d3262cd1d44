"""Tables and pictures of `benchmarks/results/quality.jsonl`, for RESULTS.md and the README."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from record import RESULTS

RUNS = RESULTS / "quality.jsonl"
BASELINE, FULL = "random", "all data"
# Names of the file -> names of the tables.
SHOWN = {
    "random": "class-balanced random",
    "random, global": "random",
    "sage": "**SAGE (default)**",
    "sage, nothing trimmed": "SAGE, nothing trimmed",
    "agreement": "SAGE, the paper's top-k",
    "facility location": "SAGE, facility location",
    "stratified": "SAGE, stratified (CCS on agreement)",
    "weighted": "SAGE, weighted draws",
    "ccs on el2n": "CCS on EL2N",
    "el2n": "EL2N",
    "grand": "GraNd",
    "craig": "CRAIG",
    "gradmatch": "GradMatch",
    "k_center": "k-center",
    "rotate": '**SAGE, `draw="rotate"`**',
    "rotate, refreshed": "SAGE, rotate, refreshed every 4 epochs",
    "rs2": "RS2",
    "infobatch": "InfoBatch",
    FULL: "all data, shorter schedule",
}
DYNAMIC = ("rotate", "rotate, refreshed", "rs2", "infobatch", FULL)
CONDITION = (
    *("data", "noise", "noise_kind", "imbalance", "split", "pool", "network"),
    *("protocol", "quotas"),
)
Run = dict[str, Any]


def sections() -> list[str]:
    """Return what RESULTS.md says of quality: one table a condition."""
    runs = load()
    if not runs:
        return []
    seeds = sorted({run["seed"] for run in runs})
    lines = [
        "## Quality: rules at the same budget\n",
        "`python benchmarks/quality.py --data-root DIR` (every run: "
        "[quality.jsonl](results/quality.jsonl)). Pools of 20,000 training images drawn by seed, a "
        "small CNN, every row the same steps (or epochs), initialisation and wrong labels by seed; "
        f"seeds {seeds[0]} to {seeds[-1]}. A fixed subset is chosen after one epoch of warm-up and "
        "trains a fresh network; a dynamic rule chooses in one run, whose first epoch is its "
        "warm-up. Test accuracy in %, mean ± standard deviation; below it the difference to "
        "class-balanced random, paired by seed, with its 95 % interval. **Bold**: above zero; "
        "*italic*: below. Seconds are of one CPU thread: warm-up + selection, largest budget.\n",
    ]
    for condition, of_condition in _groups(runs, CONDITION):
        lines += [f"### {title(condition)}\n", *_table(of_condition), ""]
        if _is_curve(of_condition):
            lines.append(f"![Accuracy against seconds](results/{picture(condition)})\n")
    return ["\n".join(lines)]


def draw_pictures() -> None:
    """Draw accuracy against seconds for every condition with several budgets."""
    for condition, of_condition in _groups(load(), CONDITION):
        if _is_curve(of_condition):
            _draw(condition, of_condition)


def readme_table() -> str:
    """Return what the README shows: differences to class-balanced random, mean over data sets."""
    runs = [run for run in load() if _is_core(run)]
    if not runs:
        return ""
    noises = sorted({run["noise"] for run in runs})
    keeps = sorted({run["keep"] for run in runs if run["rule"] == BASELINE})
    heads = [
        f"{keep:.0%}{'' if noise == 0 else f', {noise:.0%} wrong'}"
        for noise in noises
        for keep in keeps
    ]
    lines = [f"| kept | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    base = [
        f"{mean(run['accuracy'] for run in _at(runs, BASELINE, keep, noise)):.1f}"
        for noise in noises
        for keep in keeps
    ]
    lines.append(f"| {SHOWN[BASELINE]}, accuracy | {' | '.join(base)} |")
    for rule in SHOWN:
        if rule == BASELINE or not any(run["rule"] == rule for run in runs):
            continue
        cells = []
        for noise in noises:
            for keep in keeps:
                ours = _at(runs, rule, 1.0 if rule in (FULL, "infobatch") else keep, noise)
                found = difference(ours, _at(runs, BASELINE, keep, noise))
                cells.append("–" if found is None else marked(found, f"{found[0]:+.1f}"))
        if set(cells) != {"–"}:
            lines.append(f"| {SHOWN[rule]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def difference(
    ours: Iterable[Run], theirs: Iterable[Run], what: str = "accuracy"
) -> tuple[float, float, float, int] | None:
    """Return mean, 95 % interval and number of seeds of differences paired by seed.

    Of several data sets the mean is taken seed by seed; seeds that lack one do not count.
    """
    by_key = {(run["data"], run["seed"]): run[what] for run in theirs}
    by_seed: dict[int, dict[str, float]] = {}
    for run in ours:
        key = (run["data"], run["seed"])
        if key in by_key:
            by_seed.setdefault(run["seed"], {})[run["data"]] = run[what] - by_key[key]
    most = max(map(len, by_seed.values()), default=0)
    values = [mean(each.values()) for each in by_seed.values() if len(each) == most]
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean(values), mean(values) - half, mean(values) + half, len(values)


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
    keys = ("data", "noise", "noise_kind", "imbalance", "quotas", "network", "protocol")
    return f"quality_{'_'.join(str(condition[key]) for key in keys)}.png"


def load(path: Path = RUNS) -> list[Run]:
    """Return the runs on test data; a line that was cut off does not count."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            run = json.loads(line)
        except ValueError:
            continue
        if run["split"] == "test":
            found.append(run)
    return found


def _is_curve(runs: list[Run]) -> bool:
    return len({run["keep"] for run in runs if run["rule"] == BASELINE}) > 2


def _draw(condition: dict[str, Any], runs: list[Run]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from sage_torch.plots import accuracy_against_time

    order = [rule for rule in SHOWN if any(run["rule"] == rule for run in runs)]
    points = [
        {
            "method": SHOWN[run["rule"]].replace("*", "").replace("`", ""),
            "keep": run["keep"],
            "accuracy": run["accuracy"],
            "seconds": sum(run["seconds"].values()),
        }
        for run in sorted(runs, key=lambda run: order.index(run["rule"]))
    ]
    figure, ax = pyplot.subplots(figsize=(9, 4.6), layout="constrained")
    accuracy_against_time(points, ax, baseline=SHOWN[BASELINE])
    ax.set_xlabel("seconds of one CPU thread: warm-up, selection, training (log scale)")
    ax.set_title(title(condition), fontsize=10)
    figure.savefig(RESULTS / picture(condition), dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _table(runs: list[Run]) -> list[str]:
    keeps = sorted({run["keep"] for run in runs if run["rule"] not in (FULL, "infobatch")})
    is_long_tail = runs[0]["imbalance"] > 1
    what = "balanced_accuracy" if is_long_tail else "accuracy"
    lines = [
        f"| | {' | '.join(f'{keep:.0%}' for keep in keeps)} | seeds | seconds |",
        "|---" * (len(keeps) + 3) + "|",
    ]
    if is_long_tail:
        lines = ["Balanced accuracy.\n", *lines]
    for rule in sorted({run["rule"] for run in runs}, key=list(SHOWN).index):
        of_rule = [run for run in runs if run["rule"] == rule]
        is_whole = rule in (FULL, "infobatch")
        cells = []
        for keep in keeps:
            here = [run for run in of_rule if run["keep"] == (1.0 if is_whole else keep)]
            theirs = [run for run in runs if run["rule"] == BASELINE and run["keep"] == keep]
            cells.append(_cell(here, [] if rule == BASELINE else theirs, what))
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


def _at(runs: list[Run], rule: str, keep: float, noise: float) -> list[Run]:
    return [
        run for run in runs if run["rule"] == rule and run["keep"] == keep and run["noise"] == noise
    ]


def _is_core(run: Run) -> bool:
    """Whether a run belongs to the README's table."""
    plain = {
        "imbalance": 1,
        "noise_kind": "symmetric",
        "protocol": "steps",
        "network": "small",
        "pool": 20_000,
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
