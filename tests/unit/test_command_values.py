"""What options and configurations may say, and that every option of `select_subset` is there."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import typer

from sage_torch import select_subset
from sage_torch.command import application
from sage_torch.command.values import read_configuration, scalar, word

KNOWN = ("model", "keep", "sketch_size", "params", "trim")


def written(folder: Path, text: str | bytes, name: str = "options.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("value", [None, True, False, 0, -3, 64, 0.25, 1e-5, 1.0, "auto", "a:b"])
def test_a_value_comes_back_from_its_word(value: Any) -> None:
    again = scalar(word(value))
    assert again == value
    assert type(again) is type(value)


def test_every_option_of_select_subset_is_there_under_its_name() -> None:
    command = typer.main.get_command(application).commands["select"]  # type: ignore[attr-defined]
    there = {option.name: option for option in command.params}
    asked = inspect.signature(select_subset).parameters
    assert set(asked) <= set(there)
    own = {"out", "config", "weights_file", "device", "force", "traceback"}
    assert set(there) - set(asked) == own
    for name, option in there.items():
        assert f"--{name.replace('_', '-')}" in option.opts
        assert option.help


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("options.yaml", "keep: 0.25\nsketch-size: 32\nparams: ['a.*', b]\ntrim: null\nmodel: m:f"),
        ("options.YML", "{keep: .25, sketch_size: 32, params: [a.*, b], trim: ~, model: 'm:f'}"),
        (
            "options.json",
            '{"keep": 0.25, "sketch_size": 32, "params": ["a.*", "b"], "trim": null,'
            ' "model": "m:f"}',
        ),
    ],
)
def test_yaml_and_json_say_the_same(name: str, text: str, tmp_path: Path) -> None:
    expected = {"keep": 0.25, "sketch_size": 32, "params": ["a.*", "b"], "trim": None}
    assert read_configuration(written(tmp_path, text, name), KNOWN) == expected | {"model": "m:f"}


REFUSED = {
    "unknown": ("sketch_sise: 3", "did you mean 'sketch_size'?"),
    "nothing near": ("zzz: 3", "known are keep, model, params, sketch_size, trim"),
    "no text as name": ("3: 3", "got a value of type int"),
    "twice": ("keep: 1\nkeep: 2", "got 'keep' twice"),
    "twice by another spelling": ("sketch_size: 1\nsketch-size: 2", "got 'sketch_size' twice"),
    "a list": ("- keep", "got a value of type list"),
    "nothing": ("", "got a value of type NoneType"),
    "a mapping inside": ("keep: {a: 1}", "expected 'keep'"),
    "a list of numbers": ("params: [1]", "expected 'params'"),
    "a date": ("keep: 2001-01-01", "got a value of type date"),
    "a reference": ("model: &a x\ntrim: *a", "expected no references"),
    "a bomb": (
        "a: &a [x,x]\n"
        + "".join(f"{c}: &{c} [*{p},*{p}]\n" for p, c in zip("abcd", "bcde", strict=True)),
        "expected no references",
    ),
    "a Python object": ("keep: !!python/object/apply:os.mkdir [trace]", "could not determine a"),
    "a wrong date": ("keep: !!timestamp x", "readable"),
    "no YAML": ("keep: [", "while parsing"),
    "a tab": ("\tkeep: 1", "cannot start any token"),
    "deep": ("[" * 60_000, "got more levels"),
    "a merged bomb": ("<<: {<<: {<<: {keep: 1}}}", "got more levels"),
    "no UTF-8": (b"keep: \xff", "'utf-8' codec"),
    "long": ("#" * 2**16 + "\n", "at most 65,536 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_configuration_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, words = REFUSED[name]
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=r"^expected") as caught:
        read_configuration(path, KNOWN)
    assert words in str(caught.value)
    assert "options.yaml" in str(caught.value)
    assert list(tmp_path.iterdir()) == [path], "something was executed"


@pytest.mark.parametrize(
    "text", ['{"keep": 1, "keep": 2}', '{"keep": 1', "[" * 60_000, "[]", '{"keep": {"a": 1}}']
)
def test_a_wrong_json_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^expected"):
        read_configuration(written(tmp_path, text, "options.json"), KNOWN)


def test_a_message_stays_short(tmp_path: Path) -> None:
    text = json.dumps({"k" * 60_000: 1})
    with pytest.raises(ValueError, match="known options") as caught:
        read_configuration(written(tmp_path, text, "options.json"), KNOWN)
    assert len(str(caught.value)) < 1000


def test_the_name_says_how_to_read_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"named \.yaml, \.yml or \.json"):
        read_configuration(written(tmp_path, "keep: 1", "options.toml"), KNOWN)
    with pytest.raises(FileNotFoundError):
        read_configuration(tmp_path / "missing.yaml", KNOWN)
