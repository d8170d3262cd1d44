"""The part of RESULTS.md on rules at scale, and on what threads and batches change."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.record import RESULTS

SCALE = """\
## Rules at a million examples

`python -m benchmarks.speed.selection`, {cpu}: given rows of {width} coordinates, keep {keep}; seconds of
the rule, and at 1,000,000 examples its peak memory over what was held before. *Stream*: rows come
in batches of {batch_size} and are forgotten; each class holds a block of at most 1,024, so that
1,000 classes of 1,000 hold all of their rows. Seconds grow with a class until its blocks are full
(4,096 at once, 1,024 in a stream), hence more than linearly with 1,000 classes here, and linearly
with 10. Same subset by thread count: {same}.

| rule | classes | 250,000, 2 threads | 500,000, 2 threads | 1,000,000, 2 threads \
| 1,000,000, 1 thread | peak, MiB |
|---|---|---|---|---|---|---|"""
DIFFER = """\
## Threads and batch sizes: indices that differ

`python -m benchmarks.speed.determinism --data-root DIR`: keep {keep}, l = {sketch_size}; 1 and 2 threads,
scoring batches of 32 and 256. *Threads* is the sum over both batch sizes. *Given*: rows computed
once, which no batch size rounds otherwise.

| data | rows | rule | mode | kept | threads | batch size |
|---|---|---|---|---|---|---|"""
MIB = 2**20


def selection_sections() -> list[str]:
    """Return what the rules cost at scale and what changes them, as far as it was measured."""
    return [*_scale(), *_differences()]


def _scale() -> list[str]:
    path = RESULTS / "selection.json"
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    runs = record["results"]
    lines = [SCALE.format(**record["settings"], cpu=record["cpu"], same=_same(runs))]
    kinds = dict.fromkeys((run["rule"], run["way"], run["classes"]) for run in runs)
    for rule, way, classes in kinds:
        of_kind = [
            run for run in runs if (run["rule"], run["way"], run["classes"]) == (rule, way, classes)
        ]
        by_size = {(run["examples"], run["threads"]): run for run in of_kind}
        asked = [(250_000, 2), (500_000, 2), (1_000_000, 2), (1_000_000, 1)]
        cells = [f"{by_size[one]['seconds']:.1f}" for one in asked]
        peak = by_size[1_000_000, 2]["peak_bytes"] / MIB
        lines.append(f"| {rule}, {way} | {classes:,} | {' | '.join(cells)} | {peak:,.0f} |")
    return ["\n".join(lines) + "\n"]


def _same(runs: list[dict[str, Any]]) -> str:
    digests: dict[tuple[Any, ...], set[int]] = {}
    for run in runs:
        kind = (run["rule"], run["way"], run["classes"], run["examples"])
        digests.setdefault(kind, set()).add(run["digest"])
    return "yes" if all(len(found) == 1 for found in digests.values()) else "NO"


def _differences() -> list[str]:
    path = RESULTS / "determinism.json"
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    lines = [DIFFER.format(**record["settings"])]
    for data, of_data in record["results"].items():
        for rows in ("torch's own", "given"):
            for one in of_data[rows]:
                found = one["differing"]
                threads = found["threads at 32"] + found["threads at 256"]
                name = f"{data}, {of_data['examples']:,}"
                cells = [name, rows, one["rule"], one["mode"], f"{one['kept']:,}"]
                lines.append(f"| {' | '.join(cells)} | {threads} | {found['batch size']} |")
    return ["\n".join(lines) + "\n"]
