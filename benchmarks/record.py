"""What every result file says about where its numbers come from, and what tables are made with.

A script of its own needs three calls:

    where = environment(seeds=range(3))  # before it measures: of the code that runs
    ...
    write(RESULTS / "name.json", "What was asked?", where, settings={...}, results=[...])

and `read("name.json")` with `table(heads, rows)` in a `section` that
`benchmarks/results/page.py` calls.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sage_torch.version import __version__

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
Run = dict[str, Any]


def environment(*packages: str, seeds: Iterable[int] | None = None) -> dict[str, Any]:
    """Return versions (those of some more packages, too), processor, threads, commit, seeds."""
    found = {
        "versions": {"python": platform.python_version()}
        | {"sage-torch": __version__}
        | {name: version(name) for name in ("torch", "numpy", *packages)},
        "cpu": _processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }
    return found if seeds is None else found | {"seeds": list(seeds)}


def write(path: Path, question: str, where: dict[str, Any], **about: Any) -> None:
    """Write one result file: the question, the environment, and settings and results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"question": question, **where, **about}
    path.write_text(json.dumps(record, indent=1) + "\n")


def read(name: str) -> Any:
    """Return one committed result file."""
    return json.loads((RESULTS / name).read_text())


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def of(runs: Iterable[Run], **wanted: Any) -> list[Run]:
    """Return the runs with these values."""
    return [run for run in runs if all(run[key] == value for key, value in wanted.items())]


def kinds(runs: Iterable[Run], *keys: str) -> list[tuple[Any, ...]]:
    """Return the values that occur together under these keys, in the order of the runs."""
    return list(dict.fromkeys(tuple(run[key] for key in keys) for run in runs))


def mean_of(runs: Iterable[Run], key: str) -> float:
    """Return the mean of one value over runs; runs without it do not count."""
    return statistics.mean(float(run[key]) for run in runs if run[key] is not None)


def spread(seconds: list[float]) -> dict[str, Any]:
    """Return median, least and most of some timings, and how many there were."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "runs": len(seconds),
    }


def summary(runs: list[Run]) -> dict[str, dict[str, Any]]:
    """Return the values of each metric, one a seed, their mean and standard deviation."""
    result: dict[str, dict[str, Any]] = {}
    for name in runs[0]:
        known = [float(run[name]) for run in runs if run[name] is not None]
        result[name] = {
            "per_seed": [run[name] for run in runs],
            "mean": statistics.mean(known) if known else None,
            "spread": statistics.stdev(known) if len(known) > 1 else None,
        }
    return result


def half_width_95(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean (Student's t)."""
    from scipy.stats import t

    quantile = float(t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / len(values) ** 0.5


def in_own_process(module: str, *arguments: str, variables: dict[str, str] | None = None) -> str:
    """Return what `python -m module arguments` writes, run in the project's root.

    Raises:
        RuntimeError: The process failed; the last line that it wrote.
    """
    asked = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=PROJECT,
        env=os.environ | (variables or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode != 0:
        raise RuntimeError((asked.stderr.strip().splitlines() or ["no message"])[-1])
    return asked.stdout


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{name}, {'AVX-512' if 'avx512f' in flags else 'AVX2' if 'avx2' in flags else 'SSE'}"


def _commit() -> str:
    """The commit of the code that runs; results that a run before has written do not count."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results")
    return (f"{commit}-dirty" if changed else commit) or "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PROJECT), *arguments]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git, as beside a wheel
        return ""
    return asked.stdout.strip()
