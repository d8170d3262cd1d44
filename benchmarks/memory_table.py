"""The part of RESULTS.md on memory."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.record import RESULTS

EXAMPLES = """\
## Memory: flat in the number of examples

`python -m benchmarks.speed.memory`: streaming mode, herding, l = {sketch_size}, d = {dim:,}, keep {keep};
peak resident memory of both passes, a process each. *Beyond*: the peak over that of the fewest
examples, less 24 bytes for each example more. What N x l or N x d float32 numbers would take is
beside it.

| examples | peak, MiB | beyond, MiB | share of the peak | N x l, MiB | N x d, MiB |
|---|---|---|---|---|---|"""
PARAMETERS = """\

## Memory: {parameters:,} parameters

`python -m benchmarks.speed.memory`: {wide_examples} examples, default `compress`; peak resident memory of
a process each. A matrix of D x {sketch_size} float32 numbers would take {matrix:.1f} GB.

| network | gradients | d | peak, GB | over the network and torch, GB |
|---|---|---|---|---|"""
MIB, GB, AN_EXAMPLE = 2**20, 10**9, 24


def memory_sections() -> list[str]:
    """Return peaks by examples and by parameters, as far as they were measured."""
    path = RESULTS / "memory.json"
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    settings, results = record["settings"], record["results"]
    lines = _by_examples(settings, results["examples"]) if "examples" in results else []
    lines += _by_parameters(settings, results["parameters"]) if "parameters" in results else []
    return ["\n".join(lines) + "\n"]


def _by_examples(settings: dict[str, Any], runs: list[dict[str, Any]]) -> list[str]:
    first = runs[0]
    lines = [EXAMPLES.format(**settings, dim=first["dim"])]
    for run in runs:
        count, peak = run["examples"], run["peak_bytes"]
        beyond = peak - first["peak_bytes"] - AN_EXAMPLE * (count - first["examples"])
        cells = [f"{count:,}", f"{peak / MIB:,.1f}", f"{beyond / MIB:+.1f}"]
        cells += [f"{beyond / first['peak_bytes']:+.2%}"]
        cells += [f"{4 * count * n / MIB:,.0f}" for n in (settings["sketch_size"], run["dim"])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _by_parameters(settings: dict[str, Any], runs: list[dict[str, Any]]) -> list[str]:
    parameters = runs[0]["parameters"]
    matrix = 4 * settings["sketch_size"] * parameters / GB
    lines = [PARAMETERS.format(**settings, parameters=parameters, matrix=matrix)]
    for run in runs:
        peak = run["peak_bytes"]
        cells = [run["network"], run["asked_for"], f"{run['dim']:,}", f"{peak / GB:.2f}"]
        cells += [f"{(peak - run['before_bytes']) / GB:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
