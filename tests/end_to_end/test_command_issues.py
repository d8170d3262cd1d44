"""`python -m sage_torch issues` and `recut`: what a saved selection gives without its model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner, Result

from sage_torch import Selection, select_subset
from sage_torch.command import application

PROJECT = """
class Named(list):
    classes = ["cat", "[bold]dog", "emu"]

class Files(Named):
    samples = [(f"images/{i}.png", i % 3) for i in range(90)]

def texts(): return Named((f"a text\\nwith [red] number {i}", i % 3) for i in range(90))
def mappings(): return [{"label": i % 3, "text": f"text {i}"} for i in range(90)]
def files(): return Files((0.0, i % 3) for i in range(90))
def numbers(): return [(0.0, i % 3) for i in range(90)]
def short(): return texts()[:10]
"""
WORST = [*range(29, -1, -1)]  # of the 90 examples, the worst first


@pytest.fixture(autouse=True)
def saved(
    network: nn.Module, blobs: TensorDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Selection]:
    """A selection of which the first 30 labels look wrong, in a folder with a project."""
    made = select_subset(network, blobs, 0.25, progress=False, keep_coordinates=True)
    made.save(tmp_path / "subset.npz")
    likely = np.linspace(0.005, 0.895, 90, dtype=np.float32)
    likely[:30] = likely[:30][::-1]
    judged = Selection(
        indices=made.indices,
        scores=made.scores,
        labels=made.labels,
        certificate=None,
        seconds={},
        settings={"rho": 0.3},
        margins=made.margins,
        probabilities=likely,
        is_wrong=np.where(np.arange(90) < 30, 0.9, 0.1).astype(np.float32),
        label_scores=likely,
        predicted=((made.labels + 1) % 3).astype(np.int32),
    )
    judged.save(tmp_path / "judged.npz")
    (tmp_path / "project.py").write_text(PROJECT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield made
    sys.modules.pop("project", None)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(application, list(arguments), env={"COLUMNS": "200"})


def issues(*arguments: str) -> str:
    done = run("issues", "judged.npz", *arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_worst_twenty_are_shown() -> None:
    lines = issues().splitlines()
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert rows.pop()[:6] == ["30", "of", "90", "labels", "look", "wrong;"]
    assert [int(row[0]) for row in rows] == WORST[:20]
    assert [int(row[1]) for row in rows] == [index % 3 for index in WORST[:20]]
    assert [int(row[2]) for row in rows] == [(index + 1) % 3 for index in WORST[:20]]
    assert rows[0][3] == "0.005"
    kept = set(Selection.load("judged.npz").indices.tolist())
    assert [row[4] for row in rows] == ["yes" if i in kept else "no" for i in WORST[:20]]
    assert "--out FILE.csv writes all" in lines[-1]
    assert "suggested" in issues()
    assert "duplicate of" not in issues()


def test_without_an_issue_there_is_no_table() -> None:
    judged = Selection.load("judged.npz")
    replace(judged, is_wrong=np.zeros(90, np.float32)).save("clean.npz")
    done = run("issues", "clean.npz")
    assert done.output == "0 of 90 labels look wrong\n"


def test_classes_and_texts_are_shown_as_they_are() -> None:
    text = issues("--dataset", "project:texts")
    rows = [line.split() for line in text.splitlines()]
    first = next(row for row in rows if row[:1] == [f"{WORST[0]}"])
    kept = "yes" if WORST[0] in Selection.load("judged.npz").indices else "no"
    assert first == [
        "29", "emu", "cat", "0.005", kept, "a", "text", "with", "[red]", "number", "29"
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_all_are_written(ending: str) -> None:
    path = f"issues.{ending}"
    assert issues("--out", path) == f"30 of 90 labels look wrong\nissues  {path}\n"
    expected = Selection.load("judged.npz").issues()
    if ending == "csv":
        read = pd.read_csv(path, dtype=expected.dtypes.to_dict())
    else:
        read = pd.read_parquet(path)
    pd.testing.assert_frame_equal(read, expected)
    assert read["index"].tolist() == WORST


@pytest.mark.parametrize(
    ("data", "examples", "names"),
    [
        ("texts", [f"a text\nwith [red] number {i}" for i in WORST], True),
        ("mappings", [f"text {i}" for i in WORST], False),
        ("files", [f"images/{i}.png" for i in WORST], True),
        ("numbers", None, False),
    ],
)
def test_the_data_set_names_its_examples(
    data: str, examples: list[str] | None, names: bool
) -> None:
    issues("--dataset", f"project:{data}", "--out", "issues.csv")
    read = pd.read_csv("issues.csv")
    assert read["index"].tolist() == WORST
    assert ("given_name" in read) == ("predicted_name" in read) == names
    if names:
        classes = ["cat", "[bold]dog", "emu"]
        assert read["given_name"].tolist() == [classes[index % 3] for index in WORST]
        assert read["predicted_name"].tolist() == [classes[(i + 1) % 3] for i in WORST]
    assert (read["example"].tolist() if "example" in read else None) == examples


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("issues", "missing.npz"), "No such file"),
        (("issues", "project.py"), "holds no readable selection"),
        (("issues", "unjudged.npz"), "without `is_wrong`; select again with"),
        (("issues", "judged.npz", "--out", "x.npz"), "ends in .parquet, .csv, which says"),
        (("issues", "missing.npz", "--out", "x.txt"), "ends in .parquet, .csv, which says"),
        (("issues", "judged.npz", "--out", "there.csv"), "'there.csv' exists; pass --force"),
        (("issues", "judged.npz", "--out", "no/x.csv"), "there is no 'no' that takes files"),
        (("issues", "judged.npz", "--dataset", "project:short"), "with 90 examples, got 10"),
        (("recut", "judged.npz", "--out", "x.npz"), "without; select again with keep_coordinates"),
        (("recut", "missing.npz", "--out", "x.html"), "ends in .npz, .parquet, .csv, .txt"),
        (("recut", "missing.npz", "--out", "there.csv"), "'there.csv' exists; pass --force"),
        (("recut", "subset.npz", "--out", "x.npz", "--keep", "2.5"), "expected keep to be a share"),
        (("recut", "subset.npz", "--out", "x.npz", "--rule", "herd"), 'one of "herding"'),
        (("recut", "subset.npz", "--out", "x.npz", "--seed", "1.5"), "expected seed to be"),
        (("recut", "subset.npz", "--out", "x.npz", "--trim", "much"), 'expected trim "auto"'),
    ],
)
def test_a_wrong_wish_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    judged = Selection.load("judged.npz")
    Selection(judged.indices, judged.scores, judged.labels, None, {}).save("unjudged.npz")
    Path("there.csv").write_text("mine")
    before = sorted(Path().iterdir())
    done = run(*arguments)
    assert done.exit_code == 1
    assert done.output.startswith("error: ")
    assert words in done.output
    assert done.output.count("\n") == 1
    assert [path for path in sorted(Path().iterdir()) if path.name != "__pycache__"] == before
    assert Path("there.csv").read_text() == "mine"


def test_a_table_is_overwritten_if_forced() -> None:
    Path("there.csv").write_text("mine")
    issues("--out", "there.csv", "--force")
    assert pd.read_csv("there.csv")["index"].tolist() == WORST


def test_what_a_table_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sage_torch.selection.table.find_spec", lambda name: None)
    for out in ((), ("--out", "x.csv")):
        done = run("issues", "judged.npz", *out)
        assert done.exit_code == 1
        assert done.output.endswith("pip install 'sage-torch[table]'\n")


CUTS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    ((), {}),
    (("--keep", "0.5", "--rule", "agreement"), {"keep": 0.5, "rule": "agreement"}),
    (("--keep", "12", "--trim", "none", "--quotas", "equal"),
     {"keep": 12, "trim": None, "quotas": "equal"}),
    (("--trim", "0.2"), {"trim": 0.2}),
    (("--rule", "random", "--seed", "3"), {"rule": "random", "seed": 3}),
    (("--duplicates", "keep"), {"duplicates": "keep"}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "options"), CUTS, ids=lambda part: "")
def test_another_cut_is_that_of_python(
    words: tuple[str, ...], options: dict[str, Any], saved: Selection
) -> None:
    done = run("recut", "subset.npz", *words, "--out", "other.npz")
    assert done.exit_code == 0, done.output
    ours = Selection.load("other.npz")
    theirs = Selection.load("subset.npz").recut(**options)
    assert ours.indices.tolist() == theirs.indices.tolist()
    assert f"{len(theirs)} of 90 examples" in done.output
    assert "\nreport     sage-torch report other.npz\n" in done.output
    command = ours.settings["command"]
    expected = ["python", "-m", "sage_torch", "recut", "subset.npz", *words, "--out", "other.npz"]
    assert sorted(command) == sorted(expected)
    assert run(*command[3:], "--force").exit_code == 0
    assert Selection.load("other.npz").indices.tolist() == theirs.indices.tolist()
    if not options:
        assert ours.indices.tolist() == saved.indices.tolist()


def test_a_cut_may_be_a_list(saved: Selection) -> None:
    assert run("recut", "subset.npz", "--keep", "9", "--out", "kept.txt").exit_code == 0
    kept = [int(line) for line in Path("kept.txt").read_text().splitlines()]
    assert kept == saved.recut(keep=9).indices.tolist()


def test_a_cut_may_be_cut_again() -> None:
    assert run("recut", "subset.npz", "--keep", "0.5", "--out", "half.npz").exit_code == 0
    assert run("recut", "half.npz", "--keep", "0.25", "--out", "again.npz").exit_code == 0
    first, again = (Selection.load(f"{name}.npz") for name in ("subset", "again"))
    assert first.indices.tolist() == again.indices.tolist()
