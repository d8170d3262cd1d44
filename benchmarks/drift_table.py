"""The part of RESULTS.md on refreshes by drift."""

from __future__ import annotations

import json
import statistics
from typing import Any

from benchmarks.record import RESULTS

SHIPPED = "drift over 0.2"
TEXT = """\
## Drift: when to select again

`python benchmarks/drift.py --data-root DIR`: a small CNN warmed up for {warmup_epochs} epoch, then
trained on {keep:.0%} of a pool of up to 2,000 for {trained} epochs; means over {seeds} validation
seeds. In a cell: selections, CPU seconds that selections and probes took, and accuracy in % ± its
standard deviation. **Bold** is the default of `refresh_every="drift"`: within 0.4 points of a
refresh every epoch or two, with 60 to 80 % fewer selections; so few seeds tell no less apart, and
on digits no schedule from another. A period of 5 does as much, where one knows to choose it. The
probe of 512 is more than a quarter of these pools, hence the seconds: its cost does not grow with
the pool, that of a selection does.
"""


def drift_section() -> list[str]:
    """Return what each schedule takes and gives, or nothing."""
    path = RESULTS / "drift.json"
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    runs = record["results"]
    data = list(dict.fromkeys(run["data"] for run in runs))
    text = TEXT.format(
        **record,
        trained=record["epochs"] - record["warmup_epochs"],
        seeds=len({run["seed"] for run in runs}),
    )
    lines = [text, f"| select | {' | '.join(data)} |", "|---" * (len(data) + 1) + "|"]
    for schedule in dict.fromkeys(run["schedule"] for run in runs):
        here = [run for run in runs if run["schedule"] == schedule]
        cells = [_cell([run for run in here if run["data"] == one]) for one in data]
        mark = "**" if schedule == SHIPPED else ""
        lines.append(f"| {mark}{schedule}{mark} | {' | '.join(cells)} |")
    return ["\n".join(lines) + "\n"]


def _cell(runs: list[dict[str, Any]]) -> str:
    selections, seconds, accuracies = (
        [run[key] for run in runs] for key in ("selections", "selecting_seconds", "accuracy")
    )
    deviation = f" ± {statistics.stdev(accuracies):.2f}" if len(runs) > 1 else ""
    return (
        f"{statistics.mean(selections):.1f}, {statistics.mean(seconds):.1f} s, "
        f"{statistics.mean(accuracies):.2f}{deviation}"
    )
