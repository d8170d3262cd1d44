"""Measures the product on one accelerator, in at most 8 minutes, into one JSON file.

    python -m benchmarks.accelerator --data-root DIR

Needed are the package, torch, and `DIR/cifar10/cifar10_jpeg.npz`; without a data root, images are
made up, and the file says so. It goes on where it stopped: pieces that the same code has measured
on the same device stay. `--device cpu --tiny` runs everything small, on any machine, as a test.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.accelerator import checks, gradients, images, quality, selection, sketch
from benchmarks.accelerator.machine import Machine, Piece
from benchmarks.record import PROJECT, RESULTS, environment

BUDGET = 480.0  # seconds
PARTS: dict[str, Callable[[Machine], dict[str, Piece]]] = {
    "checks": checks.pieces,
    "sketch": sketch.pieces,
    "gradients": gradients.pieces,
    "selection": selection.pieces,
    "quality": quality.pieces,
}
QUESTION = "What does the product do on one accelerator?"
Record = dict[str, Any]


def measure(machine: Machine, out: Path, seconds: float) -> bool:
    """Measure what the file does not hold yet, and write it after every piece.

    No piece begins that would end after the budget if it took as long as the longest of its
    section so far.

    Args:
        machine: What to run on.
        out: The file.
        seconds: The budget of this call.

    Returns:
        Whether nothing failed.
    """
    start = time.perf_counter()
    record = before(out) | {"question": QUESTION} | environment()
    sections: dict[str, Record] = record.setdefault("sections", {})
    is_good = True
    for name, part in PARTS.items():
        if sections.get(name, {}).get("made_by") != machine.made_by:
            sections[name] = {"made_by": machine.made_by, "is_complete": False, "pieces": {}}
        section = sections[name]
        done: dict[str, Record] = section["pieces"]
        wanted = part(machine)
        for title, piece in wanted.items():
            if title in done and "failed" not in done[title]:
                continue
            longest = max((one["seconds"] for one in done.values()), default=0.0)
            if time.perf_counter() - start + longest > seconds:
                print(f"{name}, {title}: no time left; the next call goes on here", flush=True)
                break
            done[title] = _run(piece)
            section["is_complete"] = all(
                one in done and "failed" not in done[one] for one in wanted
            )
            write_whole(out, record)
            print(f"{name}, {title}: {_short(done[title])}", flush=True)
        bad = [one for one in done.values() if "failed" in one or not one.get("passed", True)]
        is_good = is_good and not bad
    return is_good


def before(out: Path) -> Record:
    """Return what a call before has written; nothing if there was none.

    Raises:
        ValueError: The file is another one.
    """
    if not out.exists():
        return {}
    try:
        found = json.loads(out.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("question") != QUESTION:
        raise ValueError(f"expected {out} to be written by this benchmark; give another --out")
    return found


def write_whole(out: Path, record: Record) -> None:
    """Write the file whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(part, out)


def _run(piece: Piece) -> Record:
    """Return the results of a piece and its seconds, or why it failed: others go on."""
    start = time.perf_counter()
    try:
        found = piece()
    except Exception as error:
        message = " ".join(str(error).split())[:500]
        found = {"failed": f"{type(error).__name__}: {message}"}
    return {"seconds": time.perf_counter() - start} | found


def _short(found: Record) -> str:
    shown = ("failed", "skipped", "passed", "value", "share_of_gemm", "ratio", "accuracy")
    named = [f"{key} {found[key]}" for key in (*shown, "share_of_an_epoch") if key in found]
    return f"{', '.join(named)} ({found['seconds']:.1f} s)"


def default_out(machine: Machine) -> Path:
    """Return where results go: to those that are shown only if a GPU has measured all."""
    if machine.device.type == "cuda" and not machine.is_tiny:
        return RESULTS / "accelerator_cuda.json"
    return PROJECT / "outputs" / "accelerator.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, measure; return 1 if something failed."""
    parser = argparse.ArgumentParser("benchmarks.accelerator", description=QUESTION)
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=there, help="cuda, cuda:1 or cpu")
    parser.add_argument("--data-root", type=Path, help="holds cifar10/cifar10_jpeg.npz")
    parser.add_argument("--tiny", action="store_true", help="everything small, as a test")
    parser.add_argument("--seconds", type=float, default=BUDGET, help="no piece begins after")
    parser.add_argument("--out", type=Path, help="the file, which is gone on with")
    given = parser.parse_args(arguments)
    machine = Machine(torch.device(given.device), given.tiny, images.root_of(given.data_root))
    out = given.out or default_out(machine)
    is_good = measure(machine, out, given.seconds)
    print(f"written to {out}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
