"""The part of RESULTS.md on shards, ranks and snapshots."""

from __future__ import annotations

import json

from benchmarks.record import RESULTS

TEXT = """\
## Shards, ranks, snapshots: what they change and cost

`python -m benchmarks.speed.shards --data {data} --data-root DIR`: {examples:,} examples, {network}, keep
{keep}; {cpu}, one thread a process, medians of {runs} interleaved rounds. *Differ*: of {kept:,}
indices, how many are not those of one process with 8 shards. Ratios of seconds are to one process
with 8 shards; it has two cores, which ranks share. One shard and eight keep other examples:
herding answers the slightest change of a sketch with another choice, not a worse one (below).

| | differ | seconds | ratio |
|---|---|---|---|"""
ACCURACY = """\

Accuracy of networks trained on the subset of 8 shards less that of 1, digits (the gate's networks),
keep {keep}, paired by seed: {cells} (95 % intervals).
"""


def shards_section() -> list[str]:
    """Return what shards, ranks and snapshots do, or nothing."""
    path = RESULTS / "shards.json"
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    settings, results = record["settings"], record["results"]
    timings = results["one_process"]
    base = timings["8 shards"]["median"]
    lines = [TEXT.format(**settings, cpu=record["cpu"], runs=timings["8 shards"]["runs"])]
    for name, seconds in timings.items():
        if name == "1 shard":
            differ = round((1 - results["shared_by_1_and_8_shards"]) * settings["kept"])
        else:
            differ = results["snapshots_change"].get(name, 0)
        lines.append(_row(name, differ, seconds["median"], base))
    for of_size in results["ranks"]:
        name = f"{of_size['ranks']} rank{'s' if of_size['ranks'] > 1 else ''} (torchrun), 8 shards"
        lines.append(_row(name, of_size["differing"], of_size["seconds"]["median"], base))
    cells = "; ".join(
        f"{cell['points']:+.2f} ± {cell['half_width_95']:.2f} points"
        + (f" with {cell['flipped']:.0%} wrong labels" if cell["flipped"] else " with right labels")
        + f" ({cell['seeds']} seeds)"
        for cell in results["accuracy_of_8_shards_less_1"]
    )
    lines.append(ACCURACY.format(keep=settings["keep"], cells=cells))
    return ["\n".join(lines)]


def _row(name: str, differ: int, seconds: float, base: float) -> str:
    return f"| {name} | {differ:,} | {seconds:.1f} | {seconds / base:.2f} |"
