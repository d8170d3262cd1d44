"""`python -m sage_torch report` and what the commands need to be installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner, Result

from sage_torch import FrequentDirections, Selection, select_subset
from sage_torch.command import application
from sage_torch.plots import spectrum

failures: Any = import_module("sage_torch.command.failures")


@pytest.fixture
def saved(
    network: nn.Module, blobs: TensorDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Selection]:
    """A selection, in a folder of its own where a module makes its data set."""
    made = select_subset(network, blobs, 0.25, sketch_size=8, progress=False)
    made.save(tmp_path / "subset.npz")
    (tmp_path / "project.py").write_text(
        "def data(): return [(f'example {i}', i % 3) for i in range(90)]\n"
        "def short(): return data()[:10]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield made
    sys.modules.pop("project", None)


def run(*arguments: str, command: str = "report") -> Result:
    return CliRunner().invoke(application, [command, *arguments])


def test_the_page_lies_beside_the_selection(saved: Selection) -> None:
    done = run("subset.npz")
    assert done.exit_code == 0, done.output
    assert done.output == "report  subset.html\ntable   subset.csv\n"
    assert "22 of 90 examples" in Path("subset.html").read_text(encoding="utf-8")


def test_examples_come_from_the_data_set(saved: Selection) -> None:
    done = run("subset.npz", "--dataset", "project:data", "--out", "page.html")
    assert done.exit_code == 0, done.output
    assert saved.margins is not None
    lowest = int(saved.margins.argmin())
    assert f"example {lowest}" in Path("page.html").read_text(encoding="utf-8")
    assert not Path("subset.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing.npz",), "No such file"),
        (("project.py",), "holds no readable selection"),
        (("subset.npz", "--dataset", "project:none"), "has no attribute 'none'"),
        (("subset.npz", "--dataset", "project:short"), "90 examples, got 10"),
        (("subset.npz", "--out", "missing/page.html"), "there is no"),
    ],
)
def test_a_wrong_wish_is_one_line(arguments: tuple[str, ...], words: str, saved: Selection) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert done.output.startswith("error: ")
    assert words in done.output
    assert done.output.count("\n") == 1
    assert not list(Path().glob("**/*.html"))


@pytest.mark.parametrize(
    ("command", "extra", "module", "package"),
    [
        ("report", "command", "matplotlib", "matplotlib"),
        ("demo", "demo", "sklearn", "scikit-learn"),
    ],
)
def test_what_a_command_needs_is_named(
    command: str,
    extra: str,
    module: str,
    package: str,
    saved: Selection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = failures.find_spec
    monkeypatch.setattr(failures, "find_spec", lambda name: None if name == module else known(name))
    done = run(*(("subset.npz",) if command == "report" else ()), command=command)
    assert done.exit_code == 1
    assert done.output == f"error: {package} not installed; pip install 'sage-torch[{extra}]'\n"


def test_a_page_is_not_overwritten_unless_forced(saved: Selection) -> None:
    Path("subset.html").write_text("mine")
    done = run("subset.npz")
    assert done.exit_code == 1
    assert done.output.startswith("error: expected a new file to write, but 'subset.html' exists")
    assert Path("subset.html").read_text() == "mine"
    assert run("subset.npz", "--force").exit_code == 0
    assert "22 of 90 examples" in Path("subset.html").read_text(encoding="utf-8")


def lines(figure: Figure) -> list[list[float]]:
    return [ax.get_lines()[0].get_ydata().tolist() for ax in figure.axes]  # type: ignore[union-attr]


def test_the_spectrum_of_a_selection_is_that_of_its_sketch(saved: Selection) -> None:
    assert saved.singular_values is not None
    rows = torch.diag(torch.tensor(saved.singular_values)).float()
    sketch = FrequentDirections(8, 8)
    sketch.update(rows[saved.singular_values > 0])
    # The same directions without what the selection's sketch lost: the same shape.
    ours, theirs = lines(spectrum(saved)), lines(spectrum(sketch))
    assert saved.certificate is not None
    for one, other in zip(ours, theirs, strict=True):
        scaled = [value * saved.certificate.energy_kept for value in other]
        assert one == pytest.approx(scaled, rel=1e-4, nan_ok=True)
    above, below = Figure().subplots(2)
    assert spectrum(saved, axes=(above, below)) is above.get_figure()


def test_a_selection_without_a_sketch_has_no_spectrum(blobs: TensorDataset) -> None:
    drawn = select_subset(nn.Linear(6, 3), blobs, 0.25, rule="random", progress=False)
    with pytest.raises(ValueError, match="expected a selection with singular values"):
        spectrum(drawn)
