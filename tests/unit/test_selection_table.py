"""A selection as a table, and the files of it."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn
from torch.utils.data import TensorDataset

from sage_torch import Selection, select_subset

table: Any = import_module("sage_torch.selection.table")
COLUMNS = [
    "index", "given_label", "predicted_label", "label_score", "is_label_issue", "margin",
    "agreement", "kept", "rank", "weight", "duplicate_of",
]  # fmt: skip


PER_EXAMPLE = (
    "scores", "labels", "margins", "probabilities", "is_wrong", "label_scores", "predicted",
)  # fmt: skip


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


@pytest.fixture
def selection() -> Selection:
    """Five examples of the classes 3 and 7; the first and the fourth are kept."""
    return Selection(
        indices=np.array([0, 3]),
        scores=floats(0.5, 0.25, -1, 0.75, 0),
        labels=np.array([3, 7, 3, 7, 7]),
        certificate=None,
        seconds={},
        settings={"rho": 0.6},
        weights=floats(2, 3),
        margins=floats(0.1, 0.2, -1.5, 0.4, 0.5),
        probabilities=floats(0.9, 0.2, 0.1, 0.8, 0.2),
        is_wrong=floats(0.1, 0.6, 1, 0.5, 0.9),
        label_scores=floats(0.9, 0.2, 0.1, 0.8, 0.2),
        predicted=np.array([0, 0, 1, 1, 0], np.int32),
        ranks=np.array([1, 0]),
        duplicate_of=np.array([-1, -1, 0, -1, 1]),
    )


def listed(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns as lists, with None for what is missing."""
    return {name: [None if each is pd.NA else each for each in frame[name]] for name in frame}


@pytest.mark.parametrize(
    ("rho", "at_most", "count"),
    [(0.3, None, 1), (0.3, 0.6, 2), (0.6, 0.3, 2), (0.6, float("nan"), 2), (0.6, "0.9", 2)],
)
def test_as_many_are_issues_as_may_be_wrong(
    rho: float, at_most: Any, count: int, selection: Selection
) -> None:
    found = dataclasses.replace(
        selection, settings={"rho": rho, "rho_at_most": at_most}
    ).is_label_issue
    assert found is not None
    assert found.sum() == count


def test_each_example_has_a_row(selection: Selection) -> None:
    frame = selection.to_frame()
    assert list(frame.columns) == COLUMNS
    found = listed(frame)
    assert found.pop("label_score") == pytest.approx([0.9, 0.2, 0.1, 0.8, 0.2])
    assert found.pop("margin") == pytest.approx([0.1, 0.2, -1.5, 0.4, 0.5])
    assert found == {
        "index": [0, 1, 2, 3, 4],
        "given_label": [3, 7, 3, 7, 7],
        "predicted_label": [3, 3, 7, 7, 3],
        "is_label_issue": [False, True, True, False, False],
        "agreement": [0.5, 0.25, -1, 0.75, 0],
        "kept": [True, False, False, True, False],
        "rank": [1, None, None, 0, None],
        "weight": [2, None, None, 3, None],
        "duplicate_of": [None, None, 0, None, 1],
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": "random"},
        {"rule": "agreement"},
        {"draw": "rotate"},
        {"keep_coordinates": True},
        {"labels": None},
        {"trim": "negative"},
    ],
    ids=str,
)
def test_the_form_is_always_the_same(
    options: Any, selection: Selection, network: nn.Module, blobs: TensorDataset
) -> None:
    made = select_subset(network, blobs, 0.25, progress=False, **options)
    if made.coordinates is not None:
        made = made.find_weights()
    frame = made.to_frame()
    assert frame.dtypes.to_dict() == selection.to_frame().dtypes.to_dict()
    assert len(frame) == 90
    assert not frame["index"].isna().any()
    assert np.flatnonzero(frame["kept"]).tolist() == made.indices.tolist()
    missing = {name for name in frame if frame[name].isna().all()}
    known = {
        "given_label": made.labels, "predicted_label": made.predicted,
        "label_score": made.label_scores, "is_label_issue": made.is_wrong,
        "margin": made.margins, "rank": made.ranks, "weight": made.weights, "duplicate_of": None,
    }  # fmt: skip
    unknown = {name for name, value in known.items() if value is None}
    assert missing == unknown | ({"agreement"} if made.certificate is None else set())


def test_ranks_are_in_the_order_of_choice(network: nn.Module, blobs: TensorDataset) -> None:
    made = select_subset(network, blobs, 0.25, progress=False)
    assert made.ranks is not None
    ranked = made.to_frame().dropna(subset="rank").sort_values("rank")
    assert ranked["rank"].tolist() == list(range(22))
    assert ranked["index"].tolist() == made.indices[np.argsort(made.ranks)].tolist()


def test_a_table_is_its_owners(selection: Selection) -> None:
    frame = selection.to_frame()
    for name in ("given_label", "agreement", "label_score", "rank", "duplicate_of"):
        frame.loc[0, name] = 1
        frame.loc[1, name] = pd.NA
    assert selection.labels is not None
    assert selection.labels[0] == 3
    assert selection.scores[0] == 0.5
    assert listed(selection.to_frame())["duplicate_of"] == [None, None, 0, None, 1]


def test_issues_are_worst_first_and_ties_in_order(selection: Selection) -> None:
    issues = selection.issues()
    assert issues["index"].tolist() == [2, 1]  # 4 is as likely as 1, and one too many
    assert issues.index.tolist() == [0, 1]
    assert issues.dtypes.to_dict() == selection.to_frame().dtypes.to_dict()
    assert selection.is_label_issue is not None
    assert selection.is_label_issue.tolist() == [False, True, True, False, False]
    many = dataclasses.replace(
        selection,
        indices=np.arange(3),
        weights=None,
        ranks=None,
        **{name: np.repeat(getattr(selection, name), 2_000) for name in PER_EXAMPLE},
        duplicate_of=None,
    )  # fmt: skip
    expected = [*range(4_000, 6_000), *range(2_000, 4_000), *range(8_000, 9_820)]
    assert many.issues()["index"].tolist() == expected


def test_a_selection_that_judges_no_labels_has_no_issues(selection: Selection) -> None:
    without = dataclasses.replace(selection, is_wrong=None)
    assert without.is_label_issue is None
    with pytest.raises(ValueError, match=r'^expected .* without `is_wrong`; .* trim="auto"'):
        without.issues()


@pytest.mark.parametrize("name", ["table.parquet", "table.csv", "a table.CSV"])
def test_a_table_comes_back_from_its_file(name: str, selection: Selection, tmp_path: Path) -> None:
    frame = selection.to_frame()
    selection.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name.endswith("parquet"):
        again = pd.read_parquet(tmp_path / name)
    else:
        again = pd.read_csv(tmp_path / name, dtype=frame.dtypes.to_dict())
    pd.testing.assert_frame_equal(again, frame)


def test_a_csv_is_plain(selection: Selection, tmp_path: Path) -> None:
    selection.save(tmp_path / "table.csv")
    lines = (tmp_path / "table.csv").read_bytes().decode().split("\n")
    assert lines[0] == ",".join(COLUMNS)
    assert lines[1] == "0,3,3,0.9,False,0.1,0.5,True,1,2.0,"
    assert lines[3] == "2,3,7,0.1,True,-1.5,-1.0,False,,,0"
    assert len(lines) == 7


def test_a_text_has_an_index_a_line(selection: Selection, tmp_path: Path) -> None:
    selection.save(tmp_path / "kept.txt")
    assert (tmp_path / "kept.txt").read_bytes() == b"0\n3\n"
    assert np.loadtxt(tmp_path / "kept.txt", dtype=int).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.csv", r"a table \(CSV\), which pandas\.read_csv reads"),
        ("x.parquet", r"a table \(Parquet\), which pandas\.read_parquet reads"),
        ("x.txt", "a list of indices"),
    ],
)
def test_loading_a_table_says_what_it_is(
    name: str, words: str, selection: Selection, tmp_path: Path
) -> None:
    selection.save(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "renamed.npz")  # it is told by what it holds
    with pytest.raises(ValueError, match=f"got {words}; give a file named .npz") as caught:
        Selection.load(tmp_path / "renamed.npz")
    assert len(str(caught.value)) <= 500
    with pytest.raises(ValueError, match=words):
        Selection.from_bytes((tmp_path / "renamed.npz").read_bytes())


@pytest.mark.parametrize(
    ("name", "missing"), [("x.csv", "pandas"), ("x.parquet", "pandas"), ("x.parquet", "pyarrow")]
)
def test_what_a_table_needs_is_named(
    name: str, missing: str, selection: Selection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = table.find_spec
    monkeypatch.setattr(table, "find_spec", lambda name: None if name == missing else known(name))
    words = rf"^expected {missing} for a table, .*pip install 'sage-torch\[table\]'"
    with pytest.raises(ImportError, match=words):
        selection.save(tmp_path / name)
    assert not list(tmp_path.iterdir())
    for other in ("x.npz", "x.txt"):
        selection.save(tmp_path / other)
    if missing == "pandas":
        for make in (selection.to_frame, selection.issues):
            with pytest.raises(ImportError, match=words):
                make()


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.txt"])
def test_a_file_is_written_whole_or_not_at_all(
    name: str, selection: Selection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text("before")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        selection.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "before"
