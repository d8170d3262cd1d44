"""One version of torch, named in several files, and what happens when another is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sage_torch
from sage_torch.version import BUILT_FOR

ROOT = Path(__file__).parents[2]
# tch binds one minor version of torch each.
TORCH_OF_TCH = {"0.24.0": "2.11.0"}


def found(pattern: str, path: str) -> str:
    """The one place in a file that matches, without its surroundings."""
    matches = re.findall(pattern, (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(matches) == 1, f"{pattern!r} in {path}: {matches}"
    return str(matches[0])


def import_with(tmp_path: Path, torch_stub: str) -> subprocess.CompletedProcess[str]:
    """Import sage_torch where `torch` is a stub."""
    stub = tmp_path / "torch"
    stub.mkdir()
    (stub / "__init__.py").write_text(torch_stub, encoding="utf-8")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import sage_torch"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )


def test_every_file_names_the_same_torch() -> None:
    tch = found(r'^tch = \{ version = "=([\d.]+)"', "Cargo.toml")
    version = TORCH_OF_TCH[tch]
    minor = version.rsplit(".", 1)[0]
    upper = f"{minor.split('.')[0]}.{int(minor.split('.')[1]) + 1}"
    assert found(r'"torch>=([^"]+)"', "pyproject.toml") == f"{version},<{upper}"
    assert found(r'^TORCH = "([\d.]+)"', "build_support/sage_build.py") == version
    assert ".".join(map(str, BUILT_FOR)) == minor
    assert torch.__version__.startswith(f"{minor}.")


def test_the_make_file_installs_the_torch_that_the_build_asks_for() -> None:
    version = found(r'^TORCH = "([\d.]+)"', "build_support/sage_build.py")
    assert found(r"'torch==([\d.]+)'", "Makefile") == version


def test_the_package_names_its_own_version_once_more() -> None:
    assert sage_torch.__version__ == found(r'^version = "([^"]+)"', "Cargo.toml")


@pytest.mark.parametrize("version", ["2.10.1", "2.12.0+cu130", "3.11.0", "1.13.1", "2.1.1"])
def test_another_torch_is_refused_before_the_compiled_part_is_loaded(
    tmp_path: Path, version: str
) -> None:
    done = import_with(tmp_path, f"__version__ = {version!r}")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: sage_torch was built for PyTorch 2.11, but PyTorch")
    assert f"PyTorch {version} is installed" in last
    assert "pip install 'torch==2.11.*'" in last


@pytest.mark.parametrize("version", ["2.11.0a0+git123", "2.11.1rc2+cpu"])
def test_builds_of_the_right_torch_pass_the_guard(tmp_path: Path, version: str) -> None:
    done = import_with(tmp_path, f"__version__ = {version!r}")
    assert "was built for PyTorch" not in done.stderr  # the stub fails later, for want of the rest


def test_all_is_sorted_and_complete() -> None:
    assert sage_torch.__all__ == sorted(sage_torch.__all__)
    assert len(set(sage_torch.__all__)) == len(sage_torch.__all__)
    for name in sage_torch.__all__:
        assert hasattr(sage_torch, name)
    # Names that callers rely on.
    promised = {"SageSampler", "select_subset", "Selection", "FrequentDirections", "SageError"}
    assert promised | {"FunctionalGradients", "LastLayerGradients"} <= set(sage_torch.__all__)
