"""The part of RESULTS.md on the modes: exact, streaming, one pass."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.record import RESULTS

TEXT = """\
## Modes: fewer passes, less memory, and how near the scores come

`python -m benchmarks.speed.modes --data-root DIR`: {examples:,} training images, {flipped:.0%} of the
labels flipped, a small CNN after its first epochs, {gradients} gradients, {cpu}, one thread; means
over {seeds} seeds. *Gradients*: an example. *Bytes*: held of an example, beside score, margin,
class and label. *Seconds*: of the whole selection, over those of the exact mode, on
a busy machine: less than a factor of two says nothing. *Spearman* and *top quarter*: of the scores
against the exact mode's, over all and *within* each class. *Trim*: of the examples with a negative
margin in either mode, how many have one in both; in brackets the share of all that this mode drops.
*Kept*: shared by the subsets of `rule="{rule}"`, keep = {keep}.

| data | l | mode | gradients | bytes | seconds | Spearman | top quarter | within | trim | kept |
|---|---|---|---|---|---|---|---|---|---|---|"""


def modes_section() -> list[str]:
    """Return what each mode costs and how near it comes to the exact one, or nothing."""
    path = RESULTS / "modes.json"
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    settings, runs = record["settings"], record["results"]
    about = settings | {"seeds": len(settings["seeds"])}
    lines = [TEXT.format(**about, cpu=record["cpu"])]
    kinds = dict.fromkeys((run["data"], run["sketch_size"]) for run in runs)
    for kind in kinds:
        of_kind = [run for run in runs if (run["data"], run["sketch_size"]) == kind]
        exact = [run for run in of_kind if run["mode"] == "exact"]
        for mode in dict.fromkeys(run["mode"] for run in of_kind):
            lines.append(_row(kind, mode, [run for run in of_kind if run["mode"] == mode], exact))
    return ["\n".join(lines) + "\n"]


def _row(
    kind: tuple[str, int],
    mode: str,
    runs: list[dict[str, Any]],
    exact: list[dict[str, Any]],
) -> str:
    data, size = kind
    trims = [run["trim_overlap"] for run in runs if run["trim_overlap"] is not None]
    trimmed = f"({100 * _mean(runs, 'trimmed'):.1f} %)"
    cells = [
        data,
        str(size),
        mode.replace("_", " "),
        f"{_mean(runs, 'gradients_an_example'):.0f}",
        f"{_mean(runs, 'bytes_an_example'):.0f}",
        f"{_mean(runs, 'seconds') / _mean(exact, 'seconds'):.2f}",
        f"{_mean(runs, 'spearman'):.4f}",
        f"{_mean(runs, 'top_quarter'):.3f}",
        f"{_mean(runs, 'class_top_quarter'):.3f}",
        f"{sum(trims) / len(trims):.3f} {trimmed}" if trims else f"– {trimmed}",
        f"{_mean(runs, 'kept_overlap'):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def _mean(runs: list[dict[str, Any]], key: str) -> float:
    return sum(float(run[key]) for run in runs) / len(runs)


def readme_table() -> str:
    """Return the modes at l = 64: one row each, a column for each data set."""
    results = json.loads((RESULTS / "modes.json").read_text())["results"]
    runs = [run for run in results if run["sketch_size"] == 64]
    data = list(dict.fromkeys(run["data"] for run in runs))
    heads = [f"top quarter of scores, {name}" for name in data]
    lines = [
        f"| `consensus=` | gradients an example | bytes an example | {' | '.join(heads)} |",
        "|---" * (len(heads) + 3) + "|",
    ]
    for mode in dict.fromkeys(run["mode"] for run in runs):
        of_mode = [run for run in runs if run["mode"] == mode]
        shares = [
            f"{_mean([run for run in of_mode if run['data'] == name], 'top_quarter'):.3f}"
            for name in data
        ]
        cells = [f"{_mean(of_mode, 'gradients_an_example'):.0f}"]
        cells += [f"{_mean(of_mode, 'bytes_an_example'):.0f}", *shares]
        lines.append(f'| `"{mode}"` | {" | ".join(cells)} |')
    return "\n".join(lines) + "\n"
