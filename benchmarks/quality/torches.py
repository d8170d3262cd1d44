"""Does one wheel work beside every torch?

Makes an environment for each version of torch, installs the wheel there beside it, and runs tests
of the sketch, the selection and the sampler in it, away from the source. All environments must give
the same bits of host sketches (`tests/golden.py`). `.ci/run` does so with `--core`.

    make wheel
    python -m benchmarks.quality.torches dist/*.whl
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import typer

from benchmarks.record import PROJECT, RESULTS, environment, read, table, write

VERSIONS = ["2.6.0", "2.9.1", "2.11.0", "2.13.0", "2.15.0"]
CORE = [
    "unit/test_compiled_part.py",
    "unit/test_frequent_directions_errors.py",
    "parity/test_sketch_parity.py",
    "parity/test_golden_sketches.py",
]
FILES = [
    *CORE,
    "unit/test_user_state.py",
    "unit/test_versions.py",
    "parity/test_outer_rows.py",
    "parity/test_selection_parity.py",
    "end_to_end/test_sampler_contract.py",
]
# What these tests import besides the package; a framework that is missing skips its own test.
NEEDS = ["hypothesis", "psutil", "pytest", "pytest-xdist", "scikit-learn", "scipy"]
TEXT = """\
## One wheel beside every torch

`python -m benchmarks.quality.torches WHEEL`; {cpu}, the same `.so` (sha256 {sha}) in a new
environment for each version: parity of the sketch and of selections, factors, errors, the user's
state, and the sampler's contract. *Host bits* are the first digits of the hash of host sketches.
*Device path* is how far sketches of `backend="torch"` on the CPU are from those of the host path.
"""
Found = dict[str, Any]


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def make(folder: Path, torch: str, wheel: Path) -> None:
    """Make an environment with this torch, and install the wheel beside it."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [python_of(folder), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if torch == "newest":  # make has installed it where we run; its own sage_torch is not seen
        ours = sysconfig.get_path("purelib")
        theirs = sysconfig.get_path("purelib", vars={"base": str(folder)})
        Path(theirs, "torch_of_another_environment.pth").write_text(ours)
        subprocess.run([*pip, "--no-deps", wheel], check=True)
        return
    subprocess.run([*pip, f"torch=={torch}", "numpy"], check=True)
    before = version_of(folder)
    subprocess.run([*pip, f"{wheel}[command]", *NEEDS], check=True)
    if version_of(folder) != before:
        raise SystemExit(f"installing the wheel changed torch {before} to {version_of(folder)}")


def version_of(folder: Path) -> str:
    """The version of torch in an environment."""
    code = "from importlib.metadata import version; print(version('torch'))"
    found = subprocess.run(
        [python_of(folder), "-c", code], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def tested(folder: Path, files: list[str]) -> Found:
    """Run the tests in an environment, away from the source."""
    place = folder / "away"
    shutil.copytree(PROJECT / "tests", place / "tests", dirs_exist_ok=True)
    shutil.copy(PROJECT / "pyproject.toml", place)
    for name in ("README.md", "docs/getting-started.md", "Cargo.toml"):  # their versions are read
        (place / name).parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / name, place / name)
    report = place / "report.xml"
    options = ["-q", "-n", "2", "--dist", "loadscope", "-o", "pythonpath=tests"]
    command = [python_of(folder), "-m", "pytest", *options, f"--junitxml={report}"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    paths = [f"tests/{name}" for name in files]
    ran = subprocess.run([*command, *paths], cwd=place, env=clean, check=False)
    suite = ElementTree.parse(report).getroot()[0].attrib
    counts = {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")}
    bits = subprocess.run(
        [python_of(folder), "tests/golden.py"],
        cwd=place, env=clean, check=True, capture_output=True, text=True,
    )  # fmt: skip
    golden: Found = json.loads(bits.stdout)
    if not Path(golden["package"]).resolve().is_relative_to(folder.resolve()):
        raise SystemExit(f"expected the wheel in {folder}, but {golden['package']} was tested")
    return {
        "torch": golden["torch"],
        "python": golden["python"],
        "passed": counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"],
        "failed": counts["failures"] + counts["errors"],
        "skipped": counts["skipped"],
        "functions": golden["functions"],
        "host_bits": golden["host"],
        "device_path_differs_by": golden["differs_by"],
        "exit_code": ran.returncode,
    }


def main(
    wheel: Annotated[Path, typer.Argument(help="the wheel", exists=True)],
    torch: Annotated[
        list[str] | None,
        typer.Option(help="a version, or newest: the one that we run with; repeatable"),
    ] = None,
    core: Annotated[bool, typer.Option(help="only the core of the tests; write no file")] = False,
    envs: Annotated[Path | None, typer.Option(help="keep the environments here")] = None,
) -> None:
    """Test the wheel beside each torch and write the table down."""
    where, results = environment(), []
    with tempfile.TemporaryDirectory() as scratch:
        for version in torch or VERSIONS:
            folder = (envs or Path(scratch)) / f"torch-{version}"
            if not python_of(folder).exists():
                make(folder, version, wheel.resolve())
            found = tested(folder, CORE if core else FILES)
            typer.echo(json.dumps(found))
            results.append(found)
            if envs is None:
                shutil.rmtree(folder)
    if any(found["exit_code"] != 0 for found in results):
        raise SystemExit("tests failed")
    if len({json.dumps(found["host_bits"]) for found in results}) != 1:
        raise SystemExit("host sketches differ between versions of torch")
    if not core:
        with zipfile.ZipFile(wheel) as files:
            (name,) = (name for name in files.namelist() if name.endswith(".so"))
            sha = hashlib.sha256(files.read(name)).hexdigest()
        write(
            RESULTS / "torches.json",
            "Does one and the same compiled part work beside every torch?",
            where, wheel=wheel.name, sha256=sha, results=results,
        )  # fmt: skip


def section() -> str:
    """Return the section of RESULTS.md."""
    found = read("torches.json")
    heads = ["torch", "passed", "failed", "skipped", "functions", "host bits", "device path"]
    rows = [
        [
            one["torch"], str(one["passed"]), str(one["failed"]), str(one["skipped"]),
            one["functions"], next(iter(one["host_bits"].values()))[:12],
            f"{one['device_path_differs_by']:.0e}",
        ]
        for one in found["results"]
    ]  # fmt: skip
    return TEXT.format(cpu=found["cpu"], sha=found["sha256"][:12]) + "\n" + table(heads, rows)


if __name__ == "__main__":
    typer.run(main)
