"""Every notebook runs from top to bottom, and is committed as it ran."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
LONG = ("anatomy_of_a_sketch", "choosing_keep_l_draw", "clean_my_labels", "noisy_labels")
# What all notebooks import is no garbage, nor holds a loader: neither is looked for among it.
FREEZE = (
    "import gc, matplotlib.pyplot, scipy.stats, sklearn.datasets, torch._dynamo, sage_torch.plots; "
    "gc.freeze(); del gc, matplotlib, scipy, sklearn, torch, sage_torch"
)
# A drive, or a slash that starts a path of two parts or more; the slash of a fraction is neither.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])(/[\w.-]+){2,}|\b[A-Z]:\\")


def read(path: Path) -> Any:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def words(cell: Any) -> str:
    """All text that a cell shows."""
    shown = [output.get("text", "") for output in cell.outputs]
    shown += [output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(shown)


each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# These run for half a minute to a minute each.
each_once_in_a_while = pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] if path.stem in LONG else [])
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)


def test_these_are_all() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "anatomy_of_a_sketch",
        "choosing_keep_l_draw",
        "clean_my_labels",
        "noisy_labels",
        "quickstart",
    ]


@each_once_in_a_while
def test_it_runs_and_shows_what_is_committed(path: Path, tmp_path: Path) -> None:
    committed, fresh = read(path), read(path)
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
    # Elsewhere, so that it can lean on no file of the project's; an error in a cell raises.
    # Half a minute on a free core; the limit is for one that hangs, not for a busy machine.
    NotebookClient(
        fresh,
        timeout=600,
        resources={"metadata": {"path": str(tmp_path)}},
        extra_arguments=[f"--IPKernelApp.exec_lines={FREEZE}"],
    ).execute()
    for before, after in zip(code_cells(committed), code_cells(fresh), strict=True):
        assert bool(words(before)) == bool(words(after).strip()), before.source
    assert not list(tmp_path.iterdir())


@each
def test_it_is_committed_as_it_ran(path: Path) -> None:
    notebook = read(path)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run it from top to bottom and save it"
    assert not notebook.metadata.get("widgets")
    for cell in code_cells(notebook):
        assert not any(output.get("name") == "stderr" for output in cell.outputs), cell.source
        assert not ABSOLUTE_PATH.search(words(cell)), words(cell)


@each
def test_it_shows_a_picture(path: Path) -> None:
    pictures = [
        output.data["image/png"]
        for cell in code_cells(read(path))
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert pictures
    assert all(len(picture) > 10_000 for picture in pictures)
