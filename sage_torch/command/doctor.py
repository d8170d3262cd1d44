"""`python -m sage_torch doctor`: what is installed, and whether it computes what it should."""

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

import sage_torch
from sage_torch import FrequentDirections, select_subset

_OPTIONAL = (
    *("accelerate", "jinja2", "lightning", "matplotlib", "psutil", "pyyaml", "safetensors"),
    *("scikit-learn", "torchdata", "torchvision", "transformers"),
)
_SIZE, _DIM, _ROWS = 8, 40, 200
_ROUNDING = 1e-5  # of a squared length, in float32


@dataclass(frozen=True)
class Finding:
    """One line of what was found.

    Attributes:
        part: What it is about: "versions", "machine", "build", "optional" or "self-test".
        name: What was looked at.
        found: In words.
        state: "ok", "failed", or "told": nothing to be right or wrong about.
    """

    part: str
    name: str
    found: str
    state: Literal["ok", "failed", "told"] = "told"


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is installed and test that it computes what it should; exit code 1 if not."""
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
    """Return what is installed and on what it runs."""
    versions = {
        "sage_torch": sage_torch.__version__,
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
    built_for = ".".join(map(str, sage_torch._BUILT_FOR))
    fits = str(torch.__version__).startswith(f"{built_for}.")
    return [
        *(Finding("versions", name, found) for name, found in versions.items()),
        *(Finding("machine", name, found) for name, found in machine.items()),
        Finding("build", "for torch", built_for, "ok" if fits else "failed"),
        Finding("build", "compiled part", str(sage_torch._core.__file__)),
        *(Finding("optional", name, _version(name)) for name in _OPTIONAL),
    ]


def self_tests() -> list[Finding]:
    """Run what must hold on any machine, in about a second, and return how it went."""
    tests: dict[str, Callable[[], str]] = {
        "sketch": lambda: sketch_agrees(torch.device("cpu")),
        "selection": selects,
        "threads": threads_are_left_alone,
    }
    if torch.cuda.is_available():
        tests["sketch on CUDA"] = lambda: sketch_agrees(torch.device("cuda"))
    return [_run(name, test) for name, test in tests.items()]


def sketch_agrees(device: torch.device) -> str:
    """Compare a sketch with NumPy: exact at low rank, within its own bound at full rank.

    Raises:
        ArithmeticError: It is not.
    """
    draws = np.random.default_rng(0)
    low = draws.normal(size=(_ROWS, _SIZE // 2)) @ draws.normal(size=(_SIZE // 2, _DIM))
    sketch = _sketch(low, device)
    exact = np.linalg.svd(low, compute_uv=False)[:_SIZE]
    # Squares: those of directions that are not there are rounding of the Gram matrix.
    error = float(np.abs(sketch.singular_values() ** 2 - exact**2).max() / exact[0] ** 2)
    _require(error < _ROUNDING, f"squared singular values differ from NumPy's by {error:.1e}")
    rows = draws.normal(size=(_ROWS, _DIM)) * 0.8 ** np.arange(_DIM)  # all kinds of lengths
    sketch = _sketch(rows, device)
    matrix = sketch.matrix().double().cpu().numpy()
    lost = np.linalg.eigvalsh(rows.T @ rows - matrix.T @ matrix)
    room = _ROUNDING * float(np.square(rows).sum())
    _require(
        -room <= lost[0] and lost[-1] <= sketch.shrinkage + room,
        f"lost {lost[0]:.3g} to {lost[-1]:.3g}, promised 0 to {sketch.shrinkage:.3g}",
    )
    return f"as NumPy within {error:.0e}; lost {lost[-1]:.3g} of at most {sketch.shrinkage:.3g}"


def selects() -> str:
    """Select of three blobs, twice: the right number, the same both times, nothing touched.

    Raises:
        ArithmeticError: It is not so.
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
    """See that a sketch leaves torch's number of threads, and the numbers, as they were.

    Raises:
        ArithmeticError: It does not.
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
    except Exception as error:  # whatever it is, it is what the doctor is asked for
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
