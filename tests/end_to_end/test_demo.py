"""`python -m sage_torch demo` as a stranger runs it, and that its words follow from its numbers."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image as picture_files
from typer.testing import CliRunner, Result

import sage_torch.__main__ as main_module
from sage_torch.command import application
from sage_torch.demo.data import DATA_ROOT_VARIABLE, load
from sage_torch.demo.report import difference, verdict
from sage_torch.demo.training import METHODS, Comparison, Plan, Run, compare, fresh_model

TINY = ("--examples", "160", "--seeds", "2", "--steps", "12", "--threads", "1")


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the demo printed in another process, started elsewhere, and its folder."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "sage_torch", "demo", *TINY, "--out", "results/here"],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "results" / "here"


def run(*arguments: str, **environment: str | None) -> Result:
    return CliRunner().invoke(application, ["demo", *arguments], env=environment)


def numbers_of(folder: Path) -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads((folder / "digits.json").read_text())
    return numbers


def test_the_table_has_a_row_for_each_method(demo: tuple[str, Path]) -> None:
    printed, folder = demo
    methods = numbers_of(folder)["methods"]
    for method, examples in zip(METHODS, ("160", "40", "40"), strict=True):
        (row,) = (line for line in printed.splitlines() if line.strip().startswith(method))
        cells = row.replace(method, "").split()
        mean, spread = methods[method]["accuracy_mean"], methods[method]["accuracy_deviation"]
        assert cells[:5] == [examples, "12", f"{mean:.2f}", "±", f"{spread:.2f}"]
        assert len(cells) == 7
        assert float(cells[6]) >= 0
    assert "…" not in printed, "a column is too narrow"
    assert max(map(len, printed.split("\n\n")[0].splitlines())) <= 80


def test_the_sentence_and_the_files_are_named(demo: tuple[str, Path]) -> None:
    printed, folder = demo
    assert numbers_of(folder)["verdict"] in printed
    for name in ("digits.png", "digits.json"):
        assert str(Path("results", "here", name)) in printed
        assert (folder / name).is_file()


def test_the_numbers_can_be_repeated(demo: tuple[str, Path]) -> None:
    numbers = numbers_of(demo[1])
    assert numbers["data"]["train_examples"] == 160
    assert numbers["plan"]["seeds"] == [0, 1]
    assert numbers["environment"]["threads"] == 1
    assert numbers["environment"]["torch"] == torch.__version__
    assert [run["method"] for run in numbers["runs"]] == [*METHODS] * 2
    assert {run["steps"] for run in numbers["runs"]} == {12}
    assert all(selection["settings"]["k"] == 40 for selection in numbers["selections"])
    assert all(selection["certificate"]["squared_norm"] > 0 for selection in numbers["selections"])
    data = load("digits").with_train_examples(160)
    again = compare(data, Plan(0.25, 12, (0, 1), numbers["plan"]["batch_size"]), progress=False)
    assert [run["accuracy"] for run in numbers["runs"]] == [run.accuracy for run in again.runs]


def test_the_picture_is_one(demo: tuple[str, Path]) -> None:
    picture = picture_files.imread(demo[1] / "digits.png")
    height, width = picture.shape[:2]
    assert 1000 < width < 3000
    assert 1000 < height < 3000
    inked = (picture[..., :3] < 0.5).any(axis=2)
    assert 0.01 < inked.mean() < 0.5


def test_only_the_subset_differs_between_methods() -> None:
    data = load("digits").with_train_examples(100)
    whole = compare(data, Plan(1.0, 15, (3,), 16), progress=False)
    # All of the data, in an order of its own: other numbers would mean another training.
    accuracies = {run.method: run.accuracy for run in whole.runs}
    assert accuracies["full data"] == accuracies["random subset"]
    assert all(run.examples == 100 for run in whole.runs)


def test_a_model_is_a_function_of_its_seed_alone() -> None:
    data = load("digits")
    before = torch.get_rng_state()
    first, again, other = (fresh_model(data, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def comparison(sage: list[float], random: list[float]) -> Comparison:
    plan = Plan(0.25, 10, tuple(range(len(sage))), 16)
    run = Run("full data", 0, 4, 10, 99.0, 0.0, 0.0, 1.0)
    runs = [
        replace(run, method=method, seed=seed, accuracy=accuracy)
        for method, accuracies in (("SAGE subset", sage), ("random subset", random))
        for seed, accuracy in enumerate(accuracies)
    ]
    return Comparison(plan, runs, [])


@pytest.mark.parametrize(
    ("sage", "random", "words"),
    [
        ([91, 92.1, 93], [90, 91, 92], r"\+1\.03 points, .*0\.03 .*: SAGE chose the better"),
        ([90, 91, 92], [91, 92.1, 93], r"-1\.03 points, .*0\.03 .*: random chose the better"),
        ([91, 90, 92], [90, 91, 91.5], r"\+0\.17 points, .*0\.60 .*-2\.42 to \+2\.75\): these"),
        ([90, 90, 90], [90, 90, 90], r"\+0\.00 points, .*0\.00 .*: these seeds do not tell"),
        ([91], [90], r"\+1\.00 points with one seed: give --seeds 3"),
    ],
)
def test_the_sentence_follows_from_the_numbers(
    sage: list[float], random: list[float], words: str
) -> None:
    assert re.search(words, verdict(comparison(sage, random)))


def test_the_difference_is_paired() -> None:
    found = difference(comparison([80, 90, 97], [79, 89, 95]))
    assert found["by_seed"] == [1, 1, 2]
    assert found["mean"] == pytest.approx(4 / 3)
    assert found["standard_error"] == pytest.approx(np.std([1, 1, 2], ddof=1) / 3**0.5)
    # Student's t with 2 degrees of freedom: 4.3027 at 97.5 %.
    reach = 4.302653 * found["standard_error"]
    assert [found["low"], found["high"]] == pytest.approx([4 / 3 - reach, 4 / 3 + reach])


def test_other_data_come_from_the_environments_root(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "fashion-mnist"
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        for what, elements in (
            ("images-idx3", draws.integers(0, 256, (count, 28, 28))),
            ("labels-idx1", np.arange(count) % 10),
        ):
            lengths = np.array(elements.shape, ">i4").tobytes()
            content = bytes([0, 0, 8, elements.ndim]) + lengths + bytes(elements.astype(np.uint8))
            (folder / f"{part}-{what}-ubyte.gz").write_bytes(gzip.compress(content))
    done = run(
        *("--data", "fashion-mnist", "--seeds", "1", "--steps", "2", "--no-progress"),
        *("--out", str(tmp_path)),
        **{DATA_ROOT_VARIABLE: str(tmp_path / "root")},
    )
    assert done.exit_code == 0, done.output
    assert "fashion-mnist: mean over one seed" in done.output
    assert (tmp_path / "fashion-mnist.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "fashion-mnist"), f"set {DATA_ROOT_VARIABLE}"),
        (("--keep", "1.5"), "expected keep to be a share"),
        (("--keep", "0.0001"), "rounds to 0"),
        (("--examples", "5000"), "expected 1 to 1,437 training examples"),
    ],
)
def test_a_wrong_wish_is_one_line_not_a_traceback(
    arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    done = run(*arguments, "--out", str(tmp_path), **{DATA_ROOT_VARIABLE: None})
    assert done.exit_code == 1
    assert words in done.output
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1


def test_what_is_not_installed_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    known = main_module.find_spec
    monkeypatch.setattr(
        main_module, "find_spec", lambda name: None if name in ("rich", "typer") else known(name)
    )
    with pytest.raises(SystemExit) as caught:
        main_module.app()
    assert caught.value.code == (
        "error: typer, rich not installed; pip install 'sage-torch[command]'"
    )
