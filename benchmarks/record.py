"""What every result file says about where its numbers come from."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def environment(*packages: str) -> dict[str, Any]:
    """Versions (those of some more packages, too), processor, device, threads and commit."""
    return {
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("sage-torch", "torch", "numpy", *packages)},
        "cpu": _processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Write one result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def spread(seconds: list[float]) -> dict[str, Any]:
    """Median, least and most of some timings, and how many there were."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "runs": len(seconds),
    }


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
    asked = subprocess.run(
        ["git", "-C", str(RESULTS.parents[1]), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip()
