"""Whether the device computes what the CPU does: checks of its own, and the tests for CUDA.

The checks need nothing but the package. The tests run as well where pytest and what they import are
there. On a CPU the same checks run, with the sketch on the path that a GPU takes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from benchmarks.accelerator.machine import Machine, Piece
from benchmarks.record import PROJECT
from sage_torch import FrequentDirections, FunctionalGradients, ProjectedGradients, select_subset

TESTS = (
    "tests/parity/test_cuda.py",
    "tests/parity/test_projected_cuda.py",
    "tests/parity/test_sketch_parity.py",
    "tests/unit/test_frequent_directions_errors.py",
)
NEEDED = ("pytest", "hypothesis", "sklearn", "timm", "torchvision")  # by the tests
LONGEST_TESTS = 150  # seconds
# Options of selections that must find the same examples on the device.
SELECTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "projected": {"gradients": "projected"},
    "streaming": {"consensus": "streaming", "rule": "agreement"},
    "functional, one pass": {"gradients": "functional", "consensus": "one_pass"},
}
# Rounding may exchange examples that are as good as each other: so many of a hundred.
EXCHANGED = 2.0


def pieces(machine: Machine) -> dict[str, Piece]:
    """Return a piece for each check."""
    checks: dict[str, Callable[[], dict[str, Any]]] = {
        "sketch": lambda: _held(sketch_error(machine), 1e-5),
        "exact gradients": lambda: _held(gradient_error(machine, exact), 1e-5),
        "projected gradients": lambda: _held(gradient_error(machine, unprojected), 1e-5),
        "maps": lambda: _held(map_error(machine), 1e-4),
    }
    for name, options in SELECTIONS.items():
        checks[f"selection, {name}"] = partial(same_selection, machine, options)
    return {name: _in_float32(run) for name, run in checks.items()} | {
        "tests": lambda: suite(machine)
    }


def sketch_error(machine: Machine) -> float:
    """Return how far a sketch is from NumPy's in float64: its Gram matrix, relatively."""
    size, dim, count = 16, 3_000, 200
    generator = torch.Generator().manual_seed(0)
    decay = torch.linspace(0, -4, count)[:, None].exp()
    rows = torch.randn(count, dim, generator=generator) * decay
    sketch = FrequentDirections(size, dim, device=machine.device, backend="torch")
    for part in rows.to(machine.device).split(37):
        sketch.update(part)
    ours = sketch.matrix().cpu().double().numpy()
    theirs = in_float64(rows.double().numpy(), size, sketch.block_rows)
    # |S^T S - T^T T| without a matrix (d, d): by the basis of both.
    basis, _ = np.linalg.qr(np.concatenate([ours, theirs]).T)
    ours, theirs = ours @ basis, theirs @ basis
    difference = np.linalg.norm(ours.T @ ours - theirs.T @ theirs, 2)
    return float(difference / np.linalg.norm(theirs, 2) ** 2)


def in_float64(rows: np.ndarray, size: int, block: int) -> np.ndarray:
    """Return the sketch (l, d) of rows (n, d): after each block the energy of row l + 1 goes.

    Reference: Ghashami, Liberty, Phillips and Woodruff, SIAM J. Comput. 2016.
    """
    sketch = np.zeros((size, rows.shape[1]))
    for start in range(0, len(rows), block):
        stacked = np.concatenate([sketch, rows[start : start + block]])
        _, values, directions = np.linalg.svd(stacked, full_matrices=False)
        energy = values**2
        lost = energy[size] if len(energy) > size else 0.0
        sketch = np.sqrt(np.maximum(energy[:size] - lost, 0))[:, None] * directions[:size]
    return sketch


def exact(model: nn.Module) -> FunctionalGradients:
    """Return the computer of exact gradients."""
    return FunctionalGradients(model)


def unprojected(model: nn.Module) -> ProjectedGradients:
    """Return projected gradients so wide that nothing is projected: they must be the exact ones."""
    return ProjectedGradients(model, 10**6)


def gradient_error(machine: Machine, make: Callable[[nn.Module], Any]) -> float:
    """Return how far rows on the device are from a loop of backward passes on the CPU."""
    model, data = trained()
    batch = data[:20]
    expected = by_loop(model, batch)
    found = make(model.to(machine.device))(tuple(part.to(machine.device) for part in batch))
    return _farthest(found, expected)


def map_error(machine: Machine) -> float:
    """Return how far projected rows on the device are from those on the CPU."""
    model, data = trained()
    batch = data[:50]
    expected = ProjectedGradients(model, 4)(batch)
    found = ProjectedGradients(model.to(machine.device), 4)(
        tuple(part.to(machine.device) for part in batch)
    )
    return _farthest(found, expected)


def same_selection(machine: Machine, options: dict[str, Any]) -> dict[str, Any]:
    """Count how many in a hundred of the kept examples differ between the device and the CPU."""
    model, data = trained()
    here = select_subset(model, data, 0.25, progress=False, **options)
    there = select_subset(model.to(machine.device), data, 0.25, progress=False, **options)
    exchanged = np.setdiff1d(there.indices, here.indices)
    return _held(100 * len(exchanged) / len(here.indices), EXCHANGED)


def by_loop(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Return the gradient (n, D) of each example, from one backward pass each."""
    rows = []
    for inputs, target in zip(*batch, strict=True):
        loss = cross_entropy(model(inputs[None]), target[None])
        of_parameters = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([part.flatten() for part in of_parameters]))
    return torch.stack(rows)


def trained() -> tuple[nn.Module, TensorDataset]:
    """Return a small CNN after an epoch on the CPU, evaluating, and its 800 examples."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(800) % 10
    patterns = torch.randn(10, 1, 8, 8, generator=generator)
    images = torch.randn(800, 1, 8, 8, generator=generator) + patterns[labels]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 10)),
        )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for part in torch.arange(800).split(50):
        optimizer.zero_grad()
        cross_entropy(model(images[part]), labels[part]).backward()
        optimizer.step()
    return model.eval(), TensorDataset(images, labels)


def suite(machine: Machine) -> dict[str, Any]:
    """Run the project's tests for CUDA in a process of their own, where that can be."""
    if machine.device.type != "cuda":
        return {"skipped": "they need a CUDA device"}
    missing = [name for name in NEEDED if find_spec(name) is None]
    absent = [name for name in TESTS if not (PROJECT / name).is_file()]
    if missing or absent:
        return {"skipped": f"not there: {', '.join(missing + absent)}"}
    options = ["--device", str(machine.device), "-q", "-p", "no:cacheprovider"]
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *TESTS],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST_TESTS,
        )
    except subprocess.TimeoutExpired:
        return {"skipped": f"not done after {LONGEST_TESTS} s"}
    lines = asked.stdout.strip().splitlines() or asked.stderr.strip().splitlines()
    bad = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"passed": asked.returncode == 0, "summary": lines[-1:], "bad": bad[:20]}


def _held(value: float, limit: float) -> dict[str, Any]:
    return {"value": value, "limit": limit, "passed": value <= limit}


def _in_float32(run: Callable[[], dict[str, Any]]) -> Piece:
    """Make a check without TF32, which would be the user's choice."""

    def inside() -> dict[str, Any]:
        with torch.backends.cudnn.flags(allow_tf32=False):
            return run()

    return inside


def _farthest(found: Tensor, expected: Tensor) -> float:
    """Return the largest error of a row, relative to that row's length."""
    found, expected = found.cpu().double(), expected.double()
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())
