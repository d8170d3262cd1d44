"""A report is one page that says what the selection says, and takes nobody's words for code."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from report_pages import Items, judged_by_features, read, selected
from torch import nn
from torch.utils.data import TensorDataset

from sage_torch import Selection, select_subset
from sage_torch.report import page, write_report
from sage_torch.report.facts import certificate_words, class_rows, command_words
from sage_torch.report.shown import described, show

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def selection() -> Selection:
    return selected()


@pytest.fixture(scope="module")
def judged() -> Selection:
    return judged_by_features()


@pytest.fixture(scope="module")
def drawn(selection: Selection) -> str:
    """The page of the selection; its charts take a second."""
    return page(selection)


@pytest.fixture
def without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes the time, where it is not what a test is about."""
    monkeypatch.setattr(import_module("sage_torch.report.page"), "charts", lambda selection: [])


quick = pytest.mark.usefixtures("without_charts")


@pytest.fixture(scope="module")
def at_random() -> Selection:
    data = TensorDataset(torch.zeros(90, 2), torch.arange(90) % 3)
    return select_subset(nn.Linear(2, 3), data, 0.25, rule="random", progress=False)


def test_it_says_what_the_selection_says(selection: Selection, tmp_path: Path) -> None:
    write_report(selection, tmp_path / "subset.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["subset.csv", "subset.html"]
    read_page = read((tmp_path / "subset.html").read_text(encoding="utf-8"))
    words = read_page.words
    certificate = selection.certificate
    assert certificate is not None
    assert selection.margins is not None
    for expected in (
        "22 of 90 examples",
        "24.4% of the examples kept",
        "3 of 3 classes kept",
        f"{int((selection.margins < 0).sum())} margins below 0",
        f"{selection.settings['trimmed']} trimmed",
        f"{certificate.energy_kept:.1%} of the energy in the sketch",
        f"together {selection.seconds['total']:.2f} s",
        f"torch {torch.__version__}",
        "sketch_rows 64",
        "select_subset(model, dataset, 0.25, trim='negative', shards=1)",
        *selection.settings["parameters"],
    ):
        assert expected in words
    for heading in ("Labels to check", "Near duplicates", "What was kept, by class", "How sure"):
        assert heading in words
    assert "Nobody has looked for them." in words
    assert "How many labels are wrong was not estimated." in words
    link = next(each for each in read_page.of("a") if each)
    assert (tmp_path / (link["href"] or "")).read_text().count("\n") == 91


@quick
def test_each_class_has_its_row(selection: Selection) -> None:
    assert selection.labels is not None
    rows = class_rows(selection, ("red", "green", "blue"))
    kept = np.bincount(selection.labels[selection.indices], minlength=3)
    medians = [np.median(selection.scores[selection.labels == label]) for label in range(3)]
    assert [row.name for row in rows] == ["red", "green", "blue"]
    assert [row.kept for row in rows] == kept.tolist()
    assert [row.total for row in rows] == [30, 30, 30]
    assert [row.median for row in rows] == pytest.approx(medians)
    words = read(page(selection, class_names=("red", "green", "blue"))).words
    assert f"green {kept[1]} of 30" in words


@quick
def test_many_classes_stay_a_page(selection: Selection) -> None:
    labels = np.arange(1000)
    many = dataclasses.replace(
        selection,
        labels=labels,
        scores=np.linspace(-1, 1, 1000, dtype=np.float32),
        margins=np.linspace(-1, 1, 1000, dtype=np.float32),
    )
    rows = class_rows(many, None)
    assert len(rows) == 101
    assert (rows[-1].name, rows[-1].total) == ("900 other classes", 900)
    assert sum(row.kept for row in rows) == len(many.indices)
    assert len(page(many)) < 300_000


def test_scores_what_tells_wrong_labels_and_spectrum_are_drawn(
    drawn: str, selection: Selection, at_random: Selection, judged: Selection
) -> None:
    for text, headings in (
        (drawn, ["Agreement", "Margin", "Spectrum of the sketch"]),
        (page(dataclasses.replace(selection, margins=None)),
         ["Agreement", "Spectrum of the sketch"]),
        (page(dataclasses.replace(selection, singular_values=None)), ["Agreement", "Margin"]),
        (page(judged), ["Agreement", "Label probability", "Spectrum of the sketch"]),
        (page(at_random), []),
    ):  # fmt: skip
        read(text)
        assert re.findall(r"<h3>(.*?)</h3><svg", text) == headings
    assert "kept (22)" in read(drawn).words
    assert 'viewBox="0 0' in drawn


def test_charts_take_the_colours_of_the_page(drawn: str) -> None:
    charts = re.findall(r"<h3>[^<]*</h3>(<svg.*?</svg>)", drawn, re.DOTALL)
    for chart in charts:
        colours = set(re.findall(r"(?:fill|stroke): ?([^;\"]+)", chart))
        assert colours <= {"none", "currentColor", "var(--kept)", "var(--dropped)", "var(--faint)"}
        assert {"currentColor", "var(--kept)"} <= colours
    defined = [set(re.findall(r' id="([^"]+)"', chart)) for chart in charts]
    assert not set.intersection(*defined)
    for chart, ids in zip(charts, defined, strict=True):
        assert set(re.findall(r"(?:url\(|href=\")#([\w-]+)", chart)) <= ids, "it refers to nothing"


def test_a_random_selection_has_no_certificate_and_no_scores(at_random: Selection) -> None:
    words = read(page(at_random, Items(lambda i, label: (torch.tensor([i]), label)))).words
    assert "No certificate" in words
    assert "select_subset(model, dataset, 0.25, rule='random', shards=1)" in words
    assert "nan" not in words.lower()
    assert "gradients of Linear" not in words


@quick
def test_without_labels_all_is_one_row(selection: Selection) -> None:
    bare = dataclasses.replace(selection, labels=None)
    (row,) = class_rows(bare, None)
    assert (row.name, row.kept, row.total) == ("all", 22, 90)
    words = read(page(bare, Items(lambda i, _: torch.tensor([float(i)])))).words
    assert "classes kept" not in words


@quick
def test_pictures_are_shown(selection: Selection) -> None:
    data = Items(lambda i, label: (torch.full((1, 8, 8), float(i)), label))
    text = page(selection, data)
    found = read(text)
    shown = show(selection, data)
    wanted = {e.index for _, first, second in shown.rows for e in first + second}
    wanted |= {e.index for e in shown.worst}
    assert {attributes["alt"] for attributes in found.of("img")} == {f"example {i}" for i in wanted}
    low, high = min(wanted), max(wanted)
    for attributes in found.of("img"):
        encoded = str(attributes["src"]).removeprefix("data:image/png;base64,")
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
        index = int(str(attributes["alt"]).split()[1])
        assert pixels.shape == (8, 8)
        assert pixels[0, 0] == pytest.approx(255 * (index - low) / (high - low), abs=1)


def test_examples_are_spread_over_the_ranks_of_their_side(selection: Selection) -> None:
    data = Items(lambda i, label: (str(i), label))
    shown = show(selection, data)
    kept = set(selection.indices.tolist())
    assert selection.margins is not None
    for label, first, second in shown.rows:
        assert len(first) == len(second) == 6
        assert {e.label for e in first + second} == {label}
        assert all((e.index in kept) == e.is_kept == (e in first) for e in first + second)
        for side in (first, second):
            assert [e.score for e in side] == sorted((e.score for e in side), reverse=True)
        best = max(i for i in range(90) if i % 3 == label and i not in kept)
        assert second[0].score >= selection.scores[best]
    lowest = np.sort(selection.margins)[:12]
    assert [e.margin for e in shown.worst] == pytest.approx(lowest.tolist())
    assert data.read <= 48, "each is read once"


@quick
def test_large_pictures_are_made_small(selection: Selection) -> None:
    data = Items(lambda i, label: (torch.rand(3, 400, 200), label))
    text = page(selection, data)
    encoded = str(read(text).of("img")[0]["src"]).removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (48, 96)
    assert len(text) < 2_000_000


@quick
@pytest.mark.parametrize(
    ("of", "words"),
    [
        (lambda i, label: (f"text {i} of {label}", label), "text"),
        (lambda i, label: {"text": f"words {i}", "labels": label}, "words"),
        (lambda i, label: {"odd": f"field {i}", "labels": label}, "odd: field"),
        (lambda i, label: (torch.tensor([0.5, i, 3.25]), label), "0.5, "),
        (lambda i, label: (torch.zeros(2, 3, 4, 5), label), "(120 numbers, 2 x 3 x 4 x 5)"),
        (lambda i, label: ({"input_ids": torch.arange(40)}, label), "11, … (40 numbers)"),
        (lambda i, label: (object(), label), "object"),
        (lambda i, label: ((), label), ""),
    ],
)
def test_what_is_no_picture_is_put_in_words(of: Any, words: str, selection: Selection) -> None:
    found = read(page(selection, Items(of)))
    assert not found.of("img")
    assert len(found.of("blockquote")) == 48
    assert words in found.words


def test_a_long_text_is_cut() -> None:
    assert described("x" * 1000) == "x" * 240 + "…"


@quick
def test_other_peoples_words_are_text(selection: Selection) -> None:
    settings = selection.settings | {
        "rule": EVIL,
        "model": EVIL,
        EVIL: EVIL,
        "command": ["python", EVIL],
        "parameters": {EVIL: EVIL},
        "versions": {EVIL: EVIL},
    }
    evil = dataclasses.replace(
        selection, settings=settings, seconds=selection.seconds | {EVIL: 1.0}
    )
    data = Items(lambda i, label: (EVIL, label))
    found = read(page(evil, data, class_names=[EVIL] * 3))
    assert found.words.count(EVIL) >= 48 + 3 + 8
    assert not found.of("img")


@quick
def test_nothing_may_run_or_be_fetched(selection: Selection) -> None:
    found = read(page(selection))
    (policy,) = [m for m in found.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy["content"]).startswith("default-src 'none';")
    assert "script" not in str(policy["content"])


def test_the_same_selection_gives_the_same_page(selection: Selection) -> None:
    before = dict(matplotlib.rcParams)
    data = Items(lambda i, label: (torch.full((4, 4), float(i)), label))
    assert page(selection, data) == page(selection, data)
    assert dict(matplotlib.rcParams) == before


@quick
def test_names_come_from_the_data_set_where_they_fit(selection: Selection) -> None:
    data: Any = Items(lambda i, label: (str(i), label))
    for classes, is_taken in ((["ape", "bee", "cat"], True), (["ape"], False), (3, False)):
        data.classes = classes
        assert ("ape" in read(page(selection, data)).words) == is_taken


@quick
def test_bad_input(selection: Selection, tmp_path: Path) -> None:
    longer = TensorDataset(torch.zeros(91, 2))
    with pytest.raises(ValueError, match="expected the data set that the selection was made from"):
        write_report(selection, tmp_path / "subset.html", longer)
    with pytest.raises(ValueError, match="got 2 names and label 2"):
        write_report(selection, tmp_path / "subset.html", class_names=("a", "b"))
    assert list(tmp_path.iterdir()) == []


def test_the_certificate_in_words(selection: Selection) -> None:
    certificate = selection.certificate
    assert certificate is not None
    lossy = dataclasses.replace(
        certificate,
        shrinkage=2.0,
        relative_shrinkage=0.0125,
        energy_kept=0.9,
        energy_kept_at_most=0.95,
        consensus_cosine=0.98,
    )
    words = " ".join(certificate_words(lossy))
    assert "between 90.0% and 95.0%" in words
    assert "by more than 1.25%" in words
    assert "at least 0.9800" in words
    exact = dataclasses.replace(
        certificate, shrinkage=0.0, energy_kept=1.0, energy_kept_at_most=1.0, consensus_cosine=1.0
    )
    words = " ".join(certificate_words(exact))
    assert "holds 100.0% of the energy" in words
    assert "lost nothing" in words
    assert "exact consensus" in words
    one_pass = dataclasses.replace(certificate, consensus_cosine=float("nan"))
    assert "in one pass; the exact consensus is not known" in " ".join(certificate_words(one_pass))


def test_the_call_makes_the_selection_again(selection: Selection) -> None:
    model, data = nn.Linear(2, 3), TensorDataset(torch.randn(90, 2), torch.arange(90) % 3)
    for options in (
        {"rule": "agreement", "gradients": "last_layer", "trim": None, "seed": 3},
        {"gradients": "projected", "consensus": "streaming", "sketch_size": 8},
        {"class_balanced": False, "params": ["weight"], "shards": 2, "batch_size": 7},
        {"consensus": "one_pass", "draw": "random"},
    ):
        made: Any = select_subset(model, data, 30, progress=False, **options)
        call = command_words(made.settings)
        again = eval(call, {"model": model, "dataset": data, "select_subset": select_subset})
        assert np.array_equal(again.indices, made.indices)
        assert np.array_equal(again.scores, made.scores)
