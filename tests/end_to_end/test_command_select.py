"""`python -m sage_torch select` in a project of somebody's own: a folder with a module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from sage_torch import Selection, select_subset
from sage_torch.command import application

TRAINING = """
import os
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

generator = torch.Generator().manual_seed(0)
labels = torch.arange(120) % 3
inputs = 2 * torch.randn(3, 6, generator=generator)[labels]
data = TensorDataset(inputs + torch.randn(120, 6, generator=generator), labels)

def make_model():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

def make_data():
    return data

class Made(TensorDataset):
    def __init__(self):
        super().__init__(*data.tensors)

def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none", label_smoothing=0.1)

def only_last(name, parameter):
    return name.startswith("2.")

def gradients(batch):
    return batch[0]

def collate(items):
    return torch.stack([i for i, _ in items]), torch.stack([l for _, l in items])

def of_batch(batch):
    return batch[1] % 2

def make_number():
    return 3

def broken():
    raise ValueError("broken within")

model, number = make_model(), 3
"""
BASE = ("--model", "training:make_model", "--dataset", "training:data", "--keep", "0.25")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with training.py, and Python as it was afterwards."""
    (tmp_path / "training.py").write_text(TRAINING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with torch.random.fork_rng():
        yield tmp_path
    sys.modules.pop("training", None)


def run(*arguments: str) -> Result:
    # A module of that name is another project's after each test.
    sys.modules.pop("training", None)
    return CliRunner().invoke(application, ["select", *arguments, "--no-progress"])


def selected(*arguments: str) -> Selection:
    done = run(*arguments, "--out", "subset.npz", "--force")
    assert done.exit_code == 0, done.output
    return Selection.load("subset.npz")


def expected(keep: float = 0.25, seed: int = 0, **options: Any) -> Selection:
    sys.modules.pop("training", None)
    torch.manual_seed(seed)
    import training

    model = training.make_model()
    return select_subset(model, training.data, keep, seed=seed, progress=False, **options)


def assert_same(ours: Selection, other: Selection) -> None:
    assert np.array_equal(ours.indices, other.indices)
    assert np.array_equal(ours.scores, other.scores, equal_nan=True)


def test_it_selects_what_python_selects(project: Path) -> None:
    ours = selected(*BASE)
    assert_same(ours, expected())
    assert ours.settings["versions"]["torch"] == torch.__version__
    assert sorted(path.name for path in project.glob("*.npz")) == ["subset.npz"]


def test_it_says_what_it_did() -> None:
    done = run(*BASE, "--out", "there.npz")
    for words in ("30 of 120 examples (25.0%)", "3 kept of 3", "herding", "there.npz"):
        assert words in done.output


@pytest.mark.parametrize(
    "place", ["training:make_data", "training:Made", "training:data", "training:make_data.__call__"]
)
def test_a_data_set_is_named_or_made(place: str) -> None:
    assert_same(selected(*BASE, "--dataset", place), expected())


def test_the_model_may_be_the_object_itself() -> None:
    ours = selected(*BASE, "--model", "training:model", "--seed", "5")
    sys.modules.pop("training", None)
    torch.manual_seed(5)  # modules are imported after the seed, too
    import training

    other = select_subset(training.model, training.data, 0.25, seed=5, progress=False)
    assert_same(ours, other)


OPTIONS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--rule", "herding", "--keep-coordinates", "--sketch-size", "4"),
     {"rule": "herding", "keep_coordinates": True, "sketch_size": 4}),
    (("--trim", "none", "--compress", "none", "--class-balanced", "false"),
     {"trim": None, "compress": None, "class_balanced": False}),
    (("--trim", "0.1", "--quotas", "equal", "--draw", "rotate", "--keep", "30"),
     {"trim": 0.1, "quotas": "equal", "draw": "rotate", "keep": 30}),
    (("--consensus", "streaming", "--rule", "agreement"),
     {"consensus": "streaming", "rule": "agreement"}),
    (("--params", "0.*", "--params", "2.bias", "--batch-size", "50", "--shards", "2"),
     {"params": ["0.*", "2.bias"], "batch_size": 50, "shards": 2}),
    (("--gradients", "last_layer", "--memory-budget", "100000", "--draw", "random"),
     {"gradients": "last_layer", "memory_budget": 100_000, "draw": "random"}),
    (("--rule", "random", "--no-distributed", "--num-workers", "0"),
     {"rule": "random", "distributed": False}),
    (("--labels", "none"), {"labels": None}),
    (("--labels", "training:of_batch", "--rule", "agreement"),
     {"labels": lambda batch: batch[1] % 2, "rule": "agreement"}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "options"), OPTIONS, ids=lambda part: "")
def test_options_reach_the_selection_and_the_command_makes_it_again(
    words: tuple[str, ...], options: dict[str, Any]
) -> None:
    ours = selected(*BASE, *words)
    assert_same(ours, expected(**options))
    command = ours.settings["command"]
    assert command[:4] == ["python", "-m", "sage_torch", "select"]
    done = run(*command[4:], "--out", "again.npz")
    assert done.exit_code == 0, done.output
    assert_same(Selection.load("again.npz"), ours)


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss", "loss"), ("params", "only_last"), ("gradients", "gradients"),
     ("collate_fn", "collate")],
)  # fmt: skip
def test_code_is_named(name: str, value: str) -> None:
    ours = selected(*BASE, f"--{name.replace('_', '-')}", f"training:{value}")
    import training

    assert_same(ours, expected(**{name: getattr(training, value)}))
    if name in ("loss", "params", "gradients"):  # these change what is measured
        assert not np.array_equal(ours.scores, expected().scores)


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_the_command_line_wins_over_the_configuration(form: str) -> None:
    values = {
        "model": "training:make_model", "dataset": "training:data", "keep": 0.5, "seed": 3,
        "trim": None, "keep_coordinates": True, "params": "0.*", "checkpoint": None,
        "out": "subset.npz",
    }  # fmt: skip
    Path(f"options.{form}").write_text(json.dumps(values))  # which is YAML, too
    done = run("--config", f"options.{form}", "--keep", "0.25", "--no-keep-coordinates")
    assert done.exit_code == 0, done.output
    ours = Selection.load("subset.npz")
    assert_same(ours, expected(0.25, seed=3, trim=None, params=["0.*"]))
    assert ours.coordinates is None
    assert "--config" not in ours.settings["command"], "the file may change"
    assert_same(selected(*ours.settings["command"][4:]), ours)


@pytest.mark.parametrize("ending", ["pt", "safetensors", "ckpt"])
def test_weights_come_from_a_file(ending: str) -> None:
    sys.modules.pop("training", None)
    torch.manual_seed(11)
    sys.path.insert(0, os.getcwd())
    import training

    model = training.make_model()
    if ending == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(
            model.state_dict(), "weights.safetensors"
        )
    else:
        state: Any = model.state_dict()
        torch.save(state if ending == "pt" else {"state_dict": state}, f"weights.{ending}")
    other = select_subset(model, training.data, 0.25, progress=False)
    assert_same(selected(*BASE, "--weights-file", f"weights.{ending}"), other)


class Malicious:
    def __reduce__(self) -> Any:
        return os.mkdir, ("trace",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Malicious(), "readable without executing it"),
        ({"0.weight": Malicious()}, "readable without executing it"),
        ([1, 2], "expected a state dict"),
        ({"other": torch.zeros(2)}, "Missing key"),
    ],
)
def test_wrong_weights_are_refused_and_not_executed(content: Any, words: str) -> None:
    torch.save(content, "weights.pt")
    refused(words, *BASE, "--weights-file", "weights.pt", "--out", "subset.npz")
    assert not Path("trace").exists()


def test_a_checkpoint_is_kept() -> None:
    ours = selected(*BASE, "--checkpoint", "snapshots")
    assert any(Path("snapshots").iterdir())
    assert_same(ours, expected())
    assert "--checkpoint" not in ours.settings["command"], "it is not what is selected"


def refused(words: str, *arguments: str) -> None:
    """One line on how to do better, exit code 1, no traceback and no file."""
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    assert words in done.output
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1
    assert not Path("subset.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--keep", "1.5"), "expected keep to be a share in (0, 1]"),
        (("--keep", "much"), "expected keep to be a share in (0, 1]"),
        (("--rule", "herd"), 'expected rule to be one of "herding"'),
        (("--batch-size", "1.5"), "expected batch_size to be a whole number, got 1.5"),
        (("--seed", "-1"), "expected seed of at least 0"),
        (("--params", "nothing.*"), "nothing.*"),
        (("--model", "training"), "expected module:name"),
        (("--model", "training:"), "expected module:name"),
        (("--model", "os.system('x'):y"), "expected module:name"),
        (("--model", "training:nothing"), "has no attribute 'nothing'"),
        (("--model", "no_such_module:f"), "No module named 'no_such_module'"),
        (("--model", "training:number"), "expected training:number to be a torch.nn.Module"),
        (("--model", "training:make_data"), "expected training:make_data() to return a torch.nn"),
        (("--dataset", "training:make_number"), "to return a map-style data set"),
        (("--dataset", "training:broken"), "broken within (--traceback shows where)"),
        (("--weights-file", "missing.pt"), "No such file"),
        (("--config", "missing.yaml"), "No such file"),
        (("--out", "missing/subset.npz"), "there is no 'missing' that takes files; make it first"),
        (("--out", "subset.html", "--model", "training:broken"), "ends in .npz, .parquet, .csv"),
        (("--out", "subset", "--model", "training:broken"), "ends in .npz, .parquet, .csv, .txt"),
        (("--out", "."), "expected a file to write, got the folder '.'"),
        (("--device", "quantum"), "(--traceback shows where)"),
    ],
)
def test_a_wrong_wish_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    refused(words, *BASE, "--out", "subset.npz", *arguments)


def test_a_page_is_not_written_over_its_selection() -> None:
    selected(*BASE).save("subset.html")
    before = Path("subset.html").read_bytes()
    done = CliRunner().invoke(application, ["report", "subset.html", "--force"])
    assert done.exit_code == 1
    assert "expected another file for the page" in done.output
    assert Path("subset.html").read_bytes() == before


def test_nothing_is_overwritten_unless_forced(project: Path) -> None:
    (project / "subset.npz").write_text("mine")
    done = run(*BASE, "--out", "subset.npz", "--model", "training:broken")
    assert done.exit_code == 1
    assert done.output == (
        "error: expected a new file to write, but 'subset.npz' exists; pass --force to write over "
        "it\n"
    )
    assert (project / "subset.npz").read_text() == "mine"
    ours = selected(*BASE, "--force")
    assert "--force" not in ours.settings["command"]


@pytest.mark.parametrize("ending", ["csv", "parquet", "txt", "CSV"])
def test_the_ending_says_what_is_written(ending: str) -> None:
    pandas = pytest.importorskip("pandas")
    path = f"subset.{ending}"
    done = run(*BASE, "--out", path)
    assert done.exit_code == 0, done.output
    assert done.output.endswith(f"selection  {path}\n"), "no page can be made of it"
    other = expected()
    if ending == "txt":
        assert Path(path).read_text() == "".join(f"{index}\n" for index in other.indices)
        return
    read = pandas.read_parquet if ending == "parquet" else pandas.read_csv
    table = read(path)
    assert table["index"].tolist() == list(range(120))
    assert table["index"][table["kept"]].tolist() == other.indices.tolist()


def test_what_comes_next_can_be_pasted() -> None:
    done = run(*BASE, "--out", "a subset.npz")
    assert done.exit_code == 0, done.output
    assert "\nreport     sage-torch report 'a subset.npz'\n" in done.output
    assert "\nlabels     sage-torch issues 'a subset.npz'\n" in done.output


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sketch_sise": 3}, "did you mean 'sketch_size'?"),
        ({"config": "other.json"}, "got 'config'"),
        ({"rule": ["herding"]}, "expected one value for 'rule'"),
        ({"batch_size": 1.5}, "expected batch_size to be a whole number, got 1.5"),
        ({"batch_size": True}, "expected batch_size to be a whole number, got True"),
    ],
)
def test_a_wrong_configuration_is_one_line(values: dict[str, Any], words: str) -> None:
    Path("options.json").write_text(json.dumps(values))
    refused(words, *BASE, "--out", "subset.npz", "--config", "options.json")


def test_null_means_none_or_not_given() -> None:
    values = dict.fromkeys(
        ("trim", "compress", "shards", "params", "distributed", "loss", "device")
    )
    Path("options.json").write_text(json.dumps(values))
    ours = selected(*BASE, "--config", "options.json")
    assert_same(ours, expected(trim=None, compress=None))
    assert "none" in ours.settings["command"]


def test_a_text_is_no_number() -> None:
    Path("options.json").write_text('{"model": 3}')
    done = run("--config", "options.json", *BASE[2:], "--out", "subset.npz")
    assert done.exit_code == 2
    assert "expected a text, got 3" in done.output


def test_where_an_error_came_from_is_shown_when_asked() -> None:
    done = run(*BASE, "--out", "subset.npz", "--dataset", "training:broken", "--traceback")
    assert done.exit_code == 1
    assert "in broken" in done.output
    assert done.output.strip().endswith("error: broken within")


def test_what_is_missing_is_named() -> None:
    done = run(*BASE)
    assert done.exit_code == 2
    assert "Missing option '--out'" in done.output


def test_two_processes_of_torchrun_make_one_file(project: Path) -> None:
    launched = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "sage_torch", "select", *BASE, "--out", "subset.npz", "--no-progress"],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("30 of 120 examples") == 1, "only one process speaks"
    ours = Selection.load(project / "subset.npz")
    assert ours.settings["shards"] == 8
    # The command that was written down needs no torchrun.
    assert np.array_equal(selected(*ours.settings["command"][4:]).indices, ours.indices)
