"""What does one small call of a sketch cost, beside the compiled part of another commit?

Both compiled parts are loaded into one process, beside one torch, and take turns.

    python -m benchmarks.speed.calls --before DIR/sage_torch/_core.abi3.so
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import sage_torch._core as _core
from benchmarks.record import RESULTS, Run, environment, read, table, write

CALLS, DIM, LONG, SEED = 700, 16, 20_000, 0
TEXT = """\
## One small call, beside the compiled part that linked libtorch

`python -m benchmarks.speed.calls --before FILE`; {cpu}, torch {torch}, one thread, one process,
{rounds} turns. Microseconds of one call, medians; the ratios are of each turn (in brackets least -
most).
"""


def loaded(path: Path) -> Any:
    """Return a compiled part as a module of its own."""
    spec = importlib.util.spec_from_file_location("before._core", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seconds(work: Callable[[], object], calls: int) -> float:
    """Return the time of one call."""
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begin) / calls


def update(core: Any, backend: str) -> float:
    """A row that waits: 700 of 768 fit before a shrink."""
    sketch = core.FrequentDirections(512, DIM, backend=backend)
    row = torch.randn(1, DIM)
    return seconds(lambda: sketch.update(row), CALLS)


def project(core: Any, backend: str) -> float:
    """A row under a sketch of 8 rows."""
    sketch = core.FrequentDirections(8, DIM, backend=backend)
    sketch.update(torch.randn(40, DIM))
    sketch.project(row := torch.randn(1, DIM))
    return seconds(lambda: sketch.project(row), CALLS)


def shrink(core: Any, backend: str) -> float:
    """A whole block of long rows."""
    sketch = core.FrequentDirections(64, LONG, backend=backend)
    rows = torch.randn(sketch.block_rows, LONG)
    sketch.update(rows)
    return seconds(lambda: sketch.update(rows), 3)


CASES = {
    "update, 1 x 16": update,
    "project, 1 x 16": project,
    "shrink, 96 x 20,000 on 64 rows": shrink,
}


def main(
    before: Annotated[Path, typer.Option(help="the other compiled part", exists=True)],
    commit: Annotated[str, typer.Option(help="the commit that it is of")],
    rounds: Annotated[int, typer.Option(help="turns")] = 31,
) -> None:
    """Time every case and write the numbers down."""
    where, results = environment(seeds=[SEED]), []
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    parts = {"before": loaded(before), "after": _core}
    for backend in ("host", "torch"):
        for name, case in CASES.items():
            times: dict[str, list[float]] = {part: [] for part in parts}
            for turn in range(rounds):
                for part in sorted(parts, reverse=turn % 2 == 0):
                    times[part].append(case(parts[part], backend))
            ratios = [new / old for new, old in zip(times["after"], times["before"], strict=True)]
            found: Run = {
                "backend": backend,
                "case": name,
                "before_us": 1e6 * statistics.median(times["before"]),
                "after_us": 1e6 * statistics.median(times["after"]),
                "ratio": {
                    "median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)
                },
                "rounds": rounds,
            }  # fmt: skip
            typer.echo(f"{backend} {name}: {found['ratio']['median']:.3f}")
            results.append(found)
    write(
        RESULTS / "calls.json",
        "What does one call cost over libtorch's stable C interface?",
        where, before=commit, results=results,
    )  # fmt: skip


def section() -> str:
    """Return the section of RESULTS.md."""
    found = read("calls.json")
    heads = ["path", "call", "before", "after", "ratio"]
    rows = [
        [
            one["backend"], one["case"], f"{one['before_us']:.1f}", f"{one['after_us']:.1f}",
            "{median:.2f} ({min:.2f} - {max:.2f})".format(**one["ratio"]),
        ]
        for one in found["results"]
    ]  # fmt: skip
    where = {"cpu": found["cpu"], "torch": found["versions"]["torch"]}
    return TEXT.format(**where, rounds=found["results"][0]["rounds"]) + "\n" + table(heads, rows)


if __name__ == "__main__":
    typer.run(main)
