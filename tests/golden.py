"""The bits of some sketches on the host path: the same beside any torch, on one kind of processor.

python tests/golden.py
"""

from __future__ import annotations

import hashlib
import json
import platform
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sage_torch._core as _core
from sage_torch import FrequentDirections

SIZE, DIM, ROWS, CLASSES = 16, 3_000, 300, 4


def drawn() -> tuple[Tensor, np.ndarray[Any, np.dtype[np.int32]]]:
    """Rows (ROWS, DIM) float32 of a decaying spectrum, from integers alone, and their classes."""
    # NumPy keeps the stream of raw integers of PCG64 for ever, but not that of its normals.
    raw = np.random.PCG64(0).random_raw(ROWS * DIM).reshape(ROWS, DIM)
    rows = (raw >> 40).astype(np.float32) / 2**23 - 1  # exact
    fall = np.float32(2) ** -(np.arange(ROWS, dtype=np.float32) // 32)
    rows *= fall[:, None]
    return torch.from_numpy(rows), (np.arange(ROWS) % CLASSES).astype(np.int32)


def sketched(backend: str) -> dict[str, Tensor]:
    """What a sketch of the rows gives, class sums, half floats and factors included."""
    rows, ids = drawn()
    sketch = FrequentDirections(SIZE, DIM, backend=backend)  # type: ignore[arg-type]
    sketch.carry_consensus()
    for part, classes in zip(rows.split(70), np.split(ids, range(70, ROWS, 70)), strict=True):
        sketch.update(part, classes)
    half = FrequentDirections(SIZE, DIM, backend=backend)  # type: ignore[arg-type]
    half.update(rows.bfloat16())
    outer = FrequentDirections(SIZE, 5 * 41, backend=backend)  # type: ignore[arg-type]
    outer.update_outer(rows[:, :5].contiguous(), rows[:, 5:45].contiguous())
    return {
        "matrix": sketch.matrix(),
        "values": torch.from_numpy(sketch.singular_values()),
        "consensus": sketch.class_directions(),
        "coordinates": sketch.project(rows),
        "orthonormal": sketch.project(rows, basis="orthonormal"),
        "half": half.matrix(),
        "outer": outer.matrix(),
    }


def gram(rows: Tensor) -> Tensor:
    """What does not depend on the signs of rows, nor on how nearly equal ones are mixed."""
    rows = rows.double()
    return rows.T[:400] @ rows[:, :400]


def differs_by(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of two paths' sketches, relative to the largest number."""
    differences = [
        float((gram(ours[name]) - gram(theirs[name])).abs().max() / gram(theirs[name]).abs().max())
        for name in ("matrix", "half", "outer")
    ]
    values = (ours["values"] - theirs["values"]).abs().max() / theirs["values"].max()
    lengths = [each["coordinates"].double().norm(dim=1) for each in (ours, theirs)]
    differences += [float(values), float((lengths[0] - lengths[1]).abs().max() / lengths[1].max())]
    return max(differences)


def bits(parts: dict[str, Tensor]) -> dict[str, str]:
    """The SHA-256 of each part's bytes."""
    return {
        name: hashlib.sha256(part.contiguous().numpy().tobytes()).hexdigest()
        for name, part in parts.items()
    }


def main() -> None:
    """Print versions, hashes and how far the device path is from the host path."""
    host, found = sketched("host"), _core.device_functions()
    print(
        json.dumps(
            {
                "package": str(_core.__file__),
                "torch": str(torch.__version__),
                "python": platform.python_version(),
                "functions": f"{sum(found.values())} of {len(found)}",
                "host": bits(host),
                "differs_by": differs_by(sketched("torch"), host),
            }
        )
    )


if __name__ == "__main__":
    main()
