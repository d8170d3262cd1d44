"""PEP 517 backend: maturin, with the libtorch that the installed package will meet.

`pip install .` has to work without a word about libtorch. torch-sys asks the `python` that it finds
on PATH for torch, which need not be the one that runs pip, so both names are made to lead here.
When the user's environment already has the right torch it is used (nothing is downloaded);
otherwise pip puts one into the isolated build environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import maturin
from maturin import (  # noqa: F401  (re-exported: the other hooks of PEP 517 and PEP 660)
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

TORCH = "2.11.0"  # the one version that tch 0.24 accepts


def _torch_version(*flags: str) -> str | None:
    code = "import torch; print(torch.__version__.split('+')[0])"
    found = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None


def _user_has_torch() -> bool:
    # -I drops pip's PYTHONPATH, hence looks past the build environment at the user's own.
    return _torch_version("-I") == TORCH


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What pip must install for the build: torch only where the user has none."""
    requires = list(maturin.get_requires_for_build_wheel(config_settings))
    return requires if _user_has_torch() else [*requires, f"torch=={TORCH}", "numpy"]


get_requires_for_build_editable = get_requires_for_build_wheel


def _lead_to_torch() -> None:
    flags = "-I" if _user_has_torch() else ""
    if not flags and _torch_version() != TORCH:
        raise SystemExit(
            f"sage_torch is built against torch {TORCH}, but torch {_torch_version()} is installed "
            f"for {sys.executable}. Install torch {TORCH}, or build without --no-build-isolation."
        )
    os.environ["LIBTORCH_USE_PYTORCH"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="sage-torch-python"))
    for name in ("python", "python3"):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {flags} "$@"\n')
        script.chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def build_wheel(*args: Any, **options: Any) -> str:
    """Builds the wheel."""
    _lead_to_torch()
    return str(maturin.build_wheel(*args, **options))


def build_editable(*args: Any, **options: Any) -> str:
    """Builds `_core` into the source tree and a wheel that points at it."""
    _lead_to_torch()
    return str(maturin.build_editable(*args, **options))
