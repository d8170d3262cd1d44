"""`python -m sage_torch`, and the command `sage-torch`."""

from __future__ import annotations

import sys
from importlib.util import find_spec

_NEEDED = ("typer", "rich")


def app() -> None:
    """Run the command line, or say in one line what to install for it."""
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        sys.exit(f"error: {', '.join(missing)} not installed; pip install 'sage-torch[command]'")
    from sage_torch.command import application

    application(prog_name="sage-torch")


if __name__ == "__main__":
    app()
