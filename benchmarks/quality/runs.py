"""The runs that `quality.py` wrote: what they are called, and how they are paired."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from statistics import mean
from typing import Any

from benchmarks.quality import made
from benchmarks.quality.trials import Condition
from benchmarks.record import RESULTS, Run, half_width_95

BASELINE, FULL, OURS = "random", "all data", "sage"
# Names of the files -> names of the tables, in the order of the tables.
SHOWN = {
    BASELINE: "class-balanced random",
    "random, global": "random",
    OURS: "**SAGE (default)**",
    "sage, negative": 'SAGE, `trim="negative"` (the former default)',
    "sage, nothing trimmed": "SAGE, nothing trimmed",
    "sage, trim 0.1": "SAGE, `trim=0.1`",
    "sage, trim 0.3": "SAGE, `trim=0.3`",
    "agreement": "SAGE, the paper's top-k",
    "ccs on el2n": "CCS on EL2N",
    "ccs on aum": "CCS on AUM",
    "ccs on aum, 10 epochs": "CCS on AUM, 10 epochs watched",
    "dual": "DUAL",
    "dual, 10 epochs": "DUAL, 10 epochs watched",
    "el2n": "EL2N",
    "grand": "GraNd",
    "margin": "smallest margin",
    "highest label probability": "highest label probability",
    "lowest label probability": "lowest label probability",
    "moderate": "moderate coreset",
    "small to large": "SmallToLarge",
    "small to large, 10 epochs": "SmallToLarge, 10 epochs watched",
    "feature herding": "herding of features",
    "craig": "CRAIG",
    "gradmatch": "GradMatch",
    "k_center": "k-center",
    "rotate": '**SAGE, `draw="rotate"`**',
    "rotate, refreshed": "SAGE, rotate, refreshed every 4 epochs",
    "rotate, late": "SAGE, rotate, selected after 4 epochs",
    "rotate, refreshed rarely": "SAGE, rotate, refreshed after 4 and 14 more passes",
    "rs2": "RS2",
    "infobatch": "InfoBatch",
    FULL: "all data, shorter schedule",
}
_ROTATIONS = ("rotate", "rotate, refreshed", "rotate, late", "rotate, refreshed rarely")
DYNAMIC = (FULL, *_ROTATIONS, "rs2", "infobatch")
WHOLE = (FULL, "infobatch")  # these have no budget: one run for all
DATA_NAMES = {
    "fashion-mnist": "Fashion-MNIST",
    "cifar-10": "CIFAR-10",
    "digits": "Digits",
    "trec": "TREC",
    "subj": "SUBJ",
    "sst-2": "SST-2",
    **{name: name.replace("-", ", ").capitalize() for name in made.NAMES},
}
NOISE_NAMES = {
    "symmetric": "to any class",
    "pair": "to the next class",
    "some": "in half the classes",
}
_DEFAULTS = asdict(Condition(""))  # of fields that were not there when a line was written
CONDITION = (*_DEFAULTS, "protocol", "quotas")


def load(file: str = "quality.jsonl", split: str = "test") -> list[Run]:
    """Return the runs of a file on one split; a line that was cut off does not count."""
    found = []
    for line in (RESULTS / file).read_text().splitlines():
        try:
            found.append(_DEFAULTS | json.loads(line))
        except ValueError:
            continue
    return [run for run in found if run["split"] == split]


def rules_of(runs: Iterable[Run]) -> list[str]:
    """Return the rules of some runs: those with a name in its order, then the others."""
    there = {run["rule"] for run in runs}
    return [*(rule for rule in SHOWN if rule in there), *sorted(there - set(SHOWN))]


def at(runs: list[Run], rule: str, keep: float) -> list[Run]:
    """Return the runs of a rule at a share kept; rules that see all data have one for all."""
    wanted = 1.0 if rule in WHOLE else keep
    return [run for run in runs if run["rule"] == rule and run["keep"] == wanted]


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
    half = half_width_95(values)
    return mean(values), mean(values) - half, mean(values) + half, len(values)


def _by_pair(runs: Iterable[Run], what: str) -> dict[tuple[str, int], float]:
    found: dict[tuple[str, int], float] = {}
    for run in runs:
        pair = (run["data"], run["seed"])
        if pair in found:
            raise ValueError(f"expected one run of each data set and seed, got two of {pair}")
        found[pair] = run[what]
    return found


def marked(found: tuple[float, float, float, int] | None, text: str) -> str:
    """Return the text bold where the interval lies above zero, italic where below."""
    if found is None:
        return text
    return f"**{text}**" if found[1] > 0 else f"*{text}*" if found[2] < 0 else text


def title(condition: dict[str, Any]) -> str:
    """Return a heading."""
    parts = [DATA_NAMES.get(condition["data"], condition["data"])]
    if condition["noise"]:
        kind = NOISE_NAMES[condition["noise_kind"]]
        parts.append(f"{condition['noise']:.0%} of labels flipped {kind}")
    if condition["imbalance"] > 1:
        parts.append(f"long tail {condition['imbalance']}, {condition['quotas']} quotas")
    if len(parts) == 1:
        parts.append("clean")
    if condition["pool"] != _DEFAULTS["pool"]:
        parts.append(f"at most {condition['pool']:,} examples")
    if condition["warm_up_epochs"] != _DEFAULTS["warm_up_epochs"]:
        parts.append(f"{condition['warm_up_epochs']} epochs of warm-up")
    parts.append(f"equal {condition['protocol']}")
    if condition["network"] != "small":
        parts.append(condition["network"])
    return ", ".join(parts)


def groups(runs: list[Run]) -> list[tuple[dict[str, Any], list[Run]]]:
    """Return the runs of each condition: balanced data first, then by noise and data set."""
    order = [CONDITION.index(key) for key in ("imbalance", "protocol", "noise", "data")]
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(run[key] for key in CONDITION), []).append(run)
    return [
        (dict(zip(CONDITION, values, strict=True)), found[values])
        for values in sorted(found, key=lambda values: [values[place] for place in order])
    ]


def is_curve(runs: list[Run]) -> bool:
    """Whether there are budgets and rules enough for a picture."""
    budgets = {run["keep"] for run in runs if run["rule"] == BASELINE}
    return len(budgets) > 2 and len({run["rule"] for run in runs}) > 2


def picture(condition: dict[str, Any]) -> str:
    """Return the name of a condition's picture: a warm-up of one epoch is not named."""
    warm_up = condition["warm_up_epochs"]
    unnamed = ("warm_up_epochs",) if warm_up == _DEFAULTS["warm_up_epochs"] else ()
    return f"quality_{'_'.join(str(condition[key]) for key in CONDITION if key not in unnamed)}.png"
