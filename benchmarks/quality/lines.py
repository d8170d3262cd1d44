"""JSON lines that a benchmark adds to, run after run, and goes on from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def key(fields: Mapping[str, Any]) -> str:
    """Return what names a run in a file."""
    return json.dumps(fields, sort_keys=True)


def done(out: Path, defaults: Mapping[str, Any]) -> set[str]:
    """Return the keys of the runs in a file; a line that was cut off counts as not run.

    Args:
        out: The file, which need not exist.
        defaults: The fields that name a run, with what they are in lines written before a field
            was there.
    """
    found = set()
    for line in out.read_text().splitlines() if out.exists() else []:
        try:
            run = json.loads(line)
        except ValueError:
            continue
        found.add(key({name: run.get(name, value) for name, value in defaults.items()}))
    return found


def prepare(out: Path) -> None:
    """Make the folder, and end a line that was cut off."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists() and not out.read_bytes().endswith(b"\n"):
        out.open("a").write("\n")


def append(out: Path, line: Mapping[str, Any]) -> None:
    """Add a line in one write, so that lines of several processes do not mix."""
    descriptor = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)
