"""The part of RESULTS.md on drawing indices."""

from __future__ import annotations

import json

from benchmarks.record import RESULTS

TEXT = """\
## Indices: draws from a billion

`python -m benchmarks.speed.indices`, {cpu}, one thread, medians of {runs}.
*Permutation*: the first draws of a seeded order of N. *Reservoir*: weighted draws without
replacement from a stream of N weights. Memory is what the draw took at its highest, over what was
held before.

| | N | drawn | seconds | MiB |
|---|---|---|---|---|"""


def indices_section() -> list[str]:
    """Return what draws cost, or nothing."""
    path = RESULTS / "indices.json"
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    results = record["results"]
    lines = [TEXT.format(cpu=record["cpu"], runs=results[0]["seconds"]["runs"])]
    lines += [
        f"| {one['what']} | {one['total']:,} | {one['draws']:,} "
        f"| {one['seconds']['median']:.3g} | {one['bytes'] / 2**20:.1f} |"
        for one in results
    ]
    return ["\n".join(lines) + "\n"]
