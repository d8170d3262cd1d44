"""The README's picture: accuracy against the share of the data kept, from the committed runs.

python -m benchmarks.quality.readme_picture
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

PROJECT = Path(__file__).parents[2]
RUNS = PROJECT / "benchmarks" / "results" / "quality.jsonl"
PICTURE = PROJECT / "docs" / "images" / "accuracy.png"
CORE = {
    "split": "test",
    "imbalance": 1,
    "noise_kind": "symmetric",
    "protocol": "steps",
    "network": "small",
    "pool": 20_000,
    "quotas": "proportional",
    "warm_up_epochs": 1,
}
DATA_SETS = ("fashion-mnist", "cifar-10")
# Rule of the file -> name, colour (of Okabe and Ito), marker.
LINES = {
    "sage": ("SAGE (default)", "#0072B2", "o"),
    "ccs on el2n": ("CCS on EL2N", "#D55E00", "s"),
    "random": ("class-balanced random", "0.4", "D"),
}
TITLES = {0.0: "Right labels", 0.2: "20 % of the labels wrong"}


def main() -> None:
    """Draw the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = RUNS.read_text().splitlines()
    runs = [run for run in map(json.loads, lines) if CORE.items() <= run.items()]
    figure, axes = pyplot.subplots(1, 2, figsize=(8.4, 3.5), sharey=True, layout="constrained")
    for ax, (noise, title) in zip(axes, TITLES.items(), strict=True):
        of_noise = [run for run in runs if run["noise"] == noise]
        for rule, (name, colour, marker) in LINES.items():
            keeps, means = curve([run for run in of_noise if run["rule"] == rule])
            ax.plot(keeps, means, color=colour, marker=marker, ms=5, lw=1.6, label=name)
        full = mean(by_seed([run for run in of_noise if run["rule"] == "all data"]))
        ax.axhline(full, color="0.2", lw=1.2, ls=":", label="all data, same steps")
        ax.set_title(title, fontsize=11)
        ax.set_xlabel("examples kept, %")
        ax.set_xticks(keeps)
        ax.grid(axis="y", color="0.9")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test accuracy, %")
    axes[1].legend(loc="lower right", frameon=False, fontsize=9)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    figure.savefig(PICTURE, dpi=160, metadata={"Software": None})


def curve(runs: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Return the shares kept in %, and mean accuracies over seeds."""
    keeps = sorted({run["keep"] for run in runs})
    means = [mean(by_seed([run for run in runs if run["keep"] == keep])) for keep in keeps]
    return [100 * keep for keep in keeps], means


def by_seed(runs: list[dict[str, Any]]) -> list[float]:
    """Return one accuracy a seed: the mean over both data sets, of seeds that ran on both."""
    found: dict[int, dict[str, float]] = {}
    for run in runs:
        if run["data"] in DATA_SETS:
            found.setdefault(run["seed"], {})[run["data"]] = run["accuracy"]
    return [mean(each.values()) for each in found.values() if len(each) == len(DATA_SETS)]


if __name__ == "__main__":
    main()
