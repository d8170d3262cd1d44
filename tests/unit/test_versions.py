"""The least version of torch, named in several files, and what happens beside another one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sage_torch
from sage_torch.version import LEAST_TORCH

ROOT = Path(__file__).parents[2]
LEAST = ".".join(map(str, LEAST_TORCH))


def found(pattern: str, path: str) -> list[str]:
    """What matches in a file, without its surroundings."""
    return re.findall(pattern, (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


def import_with(tmp_path: Path, torch_stub: str) -> subprocess.CompletedProcess[str]:
    """Import sage_torch where `torch` is a stub."""
    stub = tmp_path / "torch"
    stub.mkdir()
    (stub / "__init__.py").write_text(torch_stub, encoding="utf-8")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import sage_torch"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )


def test_every_file_names_the_same_least_torch() -> None:
    assert found(r'"torch>=([^"]+)"', "pyproject.toml") == [LEAST]
    assert set(found(r"torch (\d+\.\d+) or later", "README.md")) == {LEAST}
    assert set(found(r"torch (\d+\.\d+) or later", "docs/getting-started.md")) == {LEAST}


def test_no_version_of_torch_is_an_upper_bound() -> None:
    assert not found(r'"torch(?:vision)?[^"]*<[^"]*"', "pyproject.toml")


def test_the_package_names_its_own_version_once_more() -> None:
    assert [sage_torch.__version__] == found(r'^version = "([^"]+)"', "Cargo.toml")


@pytest.mark.parametrize(
    "version", ["2.5.1", "2.5.0a0+git123", "1.13.1+cu117", "2.0.0.dev20230101"]
)
def test_an_older_torch_is_refused_before_the_compiled_part_is_loaded(
    tmp_path: Path, version: str
) -> None:
    done = import_with(tmp_path, f"__version__ = {version!r}")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: sage_torch needs PyTorch {LEAST} or later, but PyTorch")
    assert f"PyTorch {version} is installed" in last
    assert "pip install -U torch" in last


@pytest.mark.parametrize(
    "version",
    ["2.6.0", "2.6.0a0+git123", "2.11.1rc2+cpu", "2.16.0.dev20261101+cu132", "3.0", "nightly"],
)
def test_any_later_torch_passes_the_guard_whatever_its_suffix(tmp_path: Path, version: str) -> None:
    done = import_with(tmp_path, f"__version__ = {version!r}")
    assert "needs PyTorch" not in done.stderr
    assert "(most recent call last)" in done.stderr  # the stub has nothing else of torch


def test_all_is_sorted_and_complete() -> None:
    assert sage_torch.__all__ == sorted(sage_torch.__all__)
    assert len(set(sage_torch.__all__)) == len(sage_torch.__all__)
    for name in sage_torch.__all__:
        assert hasattr(sage_torch, name)
    # Names that callers rely on.
    promised = {"SageSampler", "select_subset", "Selection", "FrequentDirections", "SageError"}
    assert promised | {"FunctionalGradients", "LastLayerGradients"} <= set(sage_torch.__all__)
