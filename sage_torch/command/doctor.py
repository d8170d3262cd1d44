"""`python -m sage_torch doctor`: shows the installation and tests that it computes correctly."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn
from torch.utils.data import TensorDataset

import sage_torch._core as _core
from sage_torch._core import FrequentDirections
from sage_torch.select import select_subset
from sage_torch.version import LEAST_TORCH, __version__

_OPTIONAL = (
    *("accelerate", "jinja2", "lightning", "matplotlib", "pandas", "psutil", "pyarrow", "pyyaml"),
    *("safetensors", "scikit-learn", "torchdata", "torchvision", "transformers"),
)
_SIZE, _DIM, _ROWS = 8, 40, 200
_ROUNDING = 1e-5  # of a squared length, in float32


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        part: Its section: "versions", "machine", "build", "optional" or "self-test".
        name: The subject.
        found: The finding in words.
        state: "ok" or "failed" for tests, "told" for information.
    """

    part: str
    name: str
    found: str
    state: Literal["ok", "failed", "told"] = "told"


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the installation and test that it computes correctly; exit code 1 if it does not."""
    findings = [*installed(), *self_tests()]
    is_well = all(finding.state != "failed" for finding in findings)
    if as_json:
        told = {"is_well": is_well, "findings": [asdict(finding) for finding in findings]}
        typer.echo(json.dumps(told, indent=2))
    else:
        Console(highlight=False).print(_table(findings))
        failed = [finding.name for finding in findings if finding.state == "failed"]
        typer.echo("all is well" if is_well else f"failed: {', '.join(failed)}")
    if not is_well:
        raise typer.Exit(1)


def installed() -> list[Finding]:
    """Return the installed versions and the machine."""
    versions = {
        "sage_torch": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
    }
    machine = {
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{os.cpu_count()} logical cores",
        "threads of torch": str(torch.get_num_threads()),
        "accelerator": _accelerator(),
    }
    return [
        *(Finding("versions", name, found) for name, found in versions.items()),
        *(Finding("machine", name, found) for name, found in machine.items()),
        # `import sage_torch` has refused an older one.
        Finding("build", "torch, at least", ".".join(map(str, LEAST_TORCH)), "ok"),
        Finding("build", "compiled part", str(_core.__file__)),
        device_path(),
        *(Finding("optional", name, _version(name)) for name in _OPTIONAL),
    ]


def device_path() -> Finding:
    """Return how many of libtorch's functions are there that sketches on CUDA call."""
    is_there = _core.device_functions()
    found = f"{sum(is_there.values())} of {len(is_there)} functions"
    fault = _core.device_path()
    if fault is None:
        return Finding("build", "device path", found, "ok")
    return Finding("build", "device path", f"{found}: {fault}; sketches run on the CPU", "failed")


def self_tests() -> list[Finding]:
    """Run tests that must pass on any machine, in about a second, and return the findings."""
    tests: dict[str, Callable[[], str]] = {
        "sketch": lambda: sketch_agrees(torch.device("cpu")),
        "device path": paths_agree,
        "selection": selects,
        "threads": threads_are_left_alone,
    }
    if torch.cuda.is_available():
        tests["sketch on CUDA"] = lambda: sketch_agrees(torch.device("cuda"))
    return [_run(name, test) for name, test in tests.items()]


def sketch_agrees(device: torch.device) -> str:
    """Compare a sketch with NumPy: exact at low rank, within its own bound at full rank.

    Raises:
        ArithmeticError: The sketch differs by more.
    """
    draws = np.random.default_rng(0)
    low = draws.normal(size=(_ROWS, _SIZE // 2)) @ draws.normal(size=(_SIZE // 2, _DIM))
    sketch = _sketch(low, device)
    exact = np.linalg.svd(low, compute_uv=False)[:_SIZE]
    # Squares, because singular values that should be 0 are the root of rounding in a Gram matrix.
    error = float(np.abs(sketch.singular_values() ** 2 - exact**2).max() / exact[0] ** 2)
    _require(error < _ROUNDING, f"squared singular values differ from NumPy's by {error:.1e}")
    rows = draws.normal(size=(_ROWS, _DIM)) * 0.8 ** np.arange(_DIM)  # full rank, decaying
    sketch = _sketch(rows, device)
    matrix = sketch.matrix().double().cpu().numpy()
    lost = np.linalg.eigvalsh(rows.T @ rows - matrix.T @ matrix)
    room = _ROUNDING * float(np.square(rows).sum())
    _require(
        -room <= lost[0] and lost[-1] <= sketch.shrinkage + room,
        f"lost {lost[0]:.3g} to {lost[-1]:.3g}, promised 0 to {sketch.shrinkage:.3g}",
    )
    return f"as NumPy within {error:.0e}; lost {lost[-1]:.3g} of at most {sketch.shrinkage:.3g}"


def paths_agree() -> str:
    """Shrink the same rows on the host path and, on the CPU too, on the device path.

    Raises:
        ArithmeticError: The sketches differ by more than rounding.
        SageError: The device path cannot work beside this torch.
    """
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(_ROWS, _DIM))).float()
    host, device = (FrequentDirections(_SIZE, _DIM, backend=path) for path in ("host", "torch"))
    host.update(rows)
    device.update(rows)
    # Squares of the rows: a whole row may change its sign, and nearly equal ones mix.
    grams = [sketch.matrix().double().T @ sketch.matrix().double() for sketch in (host, device)]
    error = float((grams[0] - grams[1]).abs().max() / grams[0].abs().max())
    _require(error < _ROUNDING, f"the two paths differ by {error:.1e}")
    return f"as the host path within {error:.0e}"


def selects() -> str:
    """Select from three classes twice, and compare counts, both subsets and the random state.

    Raises:
        ArithmeticError: One of them is not as expected.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    inputs = torch.randn(60, 5, generator=generator) + 3 * nn.functional.one_hot(labels, 5)
    model = nn.Linear(5, 3, device="meta").to_empty(device="cpu")  # draws no random number
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    before = torch.get_rng_state()
    data = TensorDataset(inputs, labels)
    first, second = (select_subset(model, data, 0.25, progress=False) for _ in range(2))
    kept = np.bincount(labels.numpy()[first.indices], minlength=3)
    _require(kept.tolist() == [5, 5, 5], f"expected 5 of each class, got {kept.tolist()}")
    _require(np.array_equal(first.indices, second.indices), "the second subset is another")
    _require(torch.equal(before, torch.get_rng_state()), "the random state has moved")
    return "15 of 60, 5 of each class, the same twice"


def threads_are_left_alone() -> str:
    """Check that a sketch keeps torch's number of threads, and does not depend on it.

    Raises:
        ArithmeticError: The number of threads or the sketch changes.
    """
    threads = torch.get_num_threads()
    rows = np.random.default_rng(0).normal(size=(_ROWS, _DIM))
    try:
        values = []
        for count in (1, 2):
            torch.set_num_threads(count)
            values.append(_sketch(rows, torch.device("cpu")).singular_values())
            found = torch.get_num_threads()
            _require(found == count, f"{count} threads became {found}")
    finally:
        torch.set_num_threads(threads)
    _require(np.array_equal(values[0], values[1]), "1 and 2 threads sketch differently")
    return f"{threads} before and after; 1 and 2 threads sketch bit for bit alike"


def _run(name: str, test: Callable[[], str]) -> Finding:
    try:
        return Finding("self-test", name, test(), "ok")
    except Exception as error:  # any error is a finding
        return Finding("self-test", name, f"{type(error).__name__}: {error}", "failed")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ArithmeticError(otherwise)


def _sketch(rows: NDArray[np.float64], device: torch.device) -> FrequentDirections:
    sketch = FrequentDirections(_SIZE, _DIM, device=device)
    for batch in torch.from_numpy(rows).float().to(device).split(32):
        sketch.update(batch)
    return sketch


def _accelerator() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return "MPS" if torch.backends.mps.is_available() else "none"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _table(findings: list[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, style in (("", "dim"), ("what", ""), ("found", ""), ("", "")):
        table.add_column(heading, style=style, overflow="fold")
    part = ""
    for finding in findings:
        if finding.part != part and part:
            table.add_section()
        shown = "" if finding.part == part else finding.part
        part = finding.part
        mark = {"ok": "[green]ok", "failed": "[red]FAILED", "told": ""}[finding.state]
        table.add_row(shown, finding.name, escape(finding.found), mark)
    return table
