"""Damaged and malicious files: a clear error or the right answer, and nothing is ever executed.

Selection files and configurations; mutated snapshots are in test_checkpoint.py.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

from sage_torch import Selection, select_subset
from sage_torch.command import application
from sage_torch.command.summary import summary
from sage_torch.command.values import read_configuration
from sage_torch.report import page

fuzz = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ARRAYS = (
    "indices", "scores", "labels", "weights", "margins", "singular_values", "probabilities",
    "is_wrong", "predicted", "ranks", "duplicate_of",
)  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "weights": {"keep_coordinates": True},
    "rotate": {"draw": "rotate"},
    "random": {"rule": "random", "draw": "random"},
    "coordinates": {"keep_coordinates": True},
}
READOUT = {"rho": 0.25, "trimmed_by_budget": 1, "trimmed_by_noise": 2}  # settings of trim="auto"


class Malicious:
    """Leaves a trace in the working directory when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("trace",)


@pytest.fixture(scope="module")
def good() -> dict[str, bytes]:
    """Small files as `save` writes them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 3
    inputs = torch.randn(24, 4, generator=generator) + nn.functional.one_hot(labels, 4)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    data = TensorDataset(inputs, labels)
    made = {
        name: select_subset(model, data, 0.5, sketch_size=4, progress=False, **options)
        for name, options in OPTIONS.items()
    }
    made["weights"] = dataclasses.replace(
        made["weights"].find_weights(),
        coordinates=None,
        probabilities=np.linspace(0, 1, 24, dtype=np.float32),
        settings=made["weights"].settings | READOUT,
    )
    of_first = np.where(np.arange(24) % 4 == 1, 0, -1)
    made["coordinates"] = dataclasses.replace(made["coordinates"], duplicate_of=of_first)
    for name in ARRAYS[-4:]:
        assert getattr(made["coordinates"], name) is not None
    assert made["coordinates"].coordinates is not None
    assert made["coordinates"].coordinates.known
    return {name: selection.to_bytes() for name, selection in made.items()}


@pytest.fixture(autouse=True)
def _nothing_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    # Charts take a hundred times as long as the rest, and read nothing but numbers.
    monkeypatch.setattr(import_module("sage_torch.report.page"), "charts", lambda selection: [])
    yield
    assert not (tmp_path / "trace").exists()


def read(content: bytes) -> Selection | None:
    """Return the selection in a file; None where it is refused, in words."""
    path = Path("subset.npz")
    path.write_bytes(content)
    try:
        return Selection.load(path)
    except ValueError as error:
        words = str(error)
    assert "holds no readable selection: " in words
    assert len(words) < 2000
    return None


def use(selection: Selection) -> None:
    """Do with a selection what people do."""
    total = len(selection.scores)
    assert repr(selection)
    assert set(selection.indices.tolist()) <= set(range(total))
    for epoch in (0, 1, 5):
        indices = selection.epoch_indices(epoch)
        assert len(indices) == len(selection)
        assert set(indices.tolist()) <= set(range(total))
    again = Selection.from_bytes(selection.to_bytes())
    assert_same(again, selection)
    table = selection.to_frame()
    assert table["index"].tolist() == list(range(total))
    assert table["kept"].sum() == len(selection)
    if selection.is_label_issue is not None:
        assert len(selection.issues()) == selection.is_label_issue.sum()
    assert "examples" in page(selection)
    with open(os.devnull, "w") as nowhere:
        Console(file=nowhere).print(summary(selection))


def assert_same(first: Selection, second: Selection) -> None:
    for name in ARRAYS:
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None) == (other is None)
        assert one is None or one.tobytes() == other.tobytes()
    assert (first.coordinates is None) == (second.coordinates is None)
    if first.coordinates is not None and second.coordinates is not None:
        assert first.coordinates.meta() == second.coordinates.meta()
        for name, one in first.coordinates.arrays().items():
            assert one.tobytes() == second.coordinates.arrays()[name].tobytes()
    for name in ("settings", "seconds", "certificate"):
        assert repr(getattr(first, name)) == repr(getattr(second, name))


@settings(fuzz, max_examples=250)
@given(name=st.sampled_from(sorted(OPTIONS)), data=st.data())
def test_damaged_bytes_are_refused_or_harmless(
    name: str, data: st.DataObject, good: dict[str, bytes]
) -> None:
    content = bytearray(good[name])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        how = data.draw(st.sampled_from(["flip", "flip", "insert", "delete", "cut", "repeat"]))
        if how == "flip" and place < len(content):
            content[place] ^= data.draw(st.integers(1, 255))
        elif how == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        elif how == "delete":
            del content[place : place + data.draw(st.integers(1, 8))]
        elif how == "cut":
            del content[place:]
        elif how == "repeat":
            content += content[place:]
    found = read(bytes(content))
    if found is not None:  # what was hit is not read, or has come back
        assert_same(found, Selection.from_bytes(good[name]))


numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.sampled_from([0, 1, 2, -1, 24])
)
values = st.recursive(
    st.one_of(st.none(), numbers, st.text(max_size=8), st.just("<script>")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archived(parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return buffer.getvalue()


def npy(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


@settings(fuzz, max_examples=200)
@given(name=st.sampled_from(sorted(OPTIONS)), data=st.data())
def test_another_description_is_refused_or_taken_at_its_word(
    name: str, data: st.DataObject, good: dict[str, bytes]
) -> None:
    parts = members(good[name])
    meta = json.loads(np.load(io.BytesIO(parts["meta.npy"])).tobytes())
    for _ in range(data.draw(st.integers(1, 2))):
        place, key = meta, data.draw(st.sampled_from(sorted(meta)))
        while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            key = data.draw(st.sampled_from(sorted(place)))
        how = data.draw(st.sampled_from(["replace", "replace", "delete", "add"]))
        if how == "delete":
            del place[key]
        elif how == "add":
            place[data.draw(st.text(max_size=6))] = data.draw(values)
        else:
            place[key] = data.draw(values)
        assume(meta)
    parts["meta.npy"] = npy(np.frombuffer(json.dumps(meta).encode(), np.uint8))
    found = read(archived(parts))
    if found is not None:
        use(found)


@settings(fuzz, max_examples=150)
@given(name=st.sampled_from(sorted(OPTIONS)), data=st.data())
def test_other_arrays_are_refused_or_consistent(
    name: str, data: st.DataObject, good: dict[str, bytes]
) -> None:
    parts = members(good[name])
    for _ in range(data.draw(st.integers(1, 2))):
        member = data.draw(st.sampled_from(sorted(parts)))
        how = data.draw(st.sampled_from(["change", "cast", "cut", "header", "pickle", "swap"]))
        if how == "swap":
            parts[member] = parts[data.draw(st.sampled_from(sorted(parts)))]
        elif how == "pickle":
            parts[member] = npy(np.array([Malicious()], dtype=object))
        elif how == "header":  # the text that says what the bytes are
            content = bytearray(parts[member])
            place = data.draw(st.integers(0, min(127, len(content) - 1)))
            content[place] = data.draw(st.sampled_from(list(b"0123456789(),'<>|OfiuV\x00\xff")))
            parts[member] = bytes(content)
        else:
            try:
                array = np.load(io.BytesIO(parts[member]))
            except ValueError:  # changed before
                continue
            if how == "cast":
                kind = data.draw(st.sampled_from(["<i4", ">i8", "<u8", "<f8", "S8", "<c8", "?"]))
                try:
                    array = array.astype(kind)
                except ValueError:  # a text, changed before, that is no number
                    continue
            elif how == "cut":
                array = array[: data.draw(st.integers(0, len(array)))]
            elif array.size:
                array = array.copy()
                extreme = [0, 1, -1, 23, 24, 2**62, -(2**63), math.nan, math.inf]
                place = data.draw(st.integers(0, array.size - 1))
                with np.errstate(invalid="ignore", over="ignore"):
                    array.flat[place] = np.array(data.draw(st.sampled_from(extreme))).astype(
                        array.dtype
                    )
            parts[member] = npy(array)
    found = read(archived(parts))
    if found is not None:
        use(found)


CONFIGURATION = """model: training:make_model
dataset: training:data
keep: 0.25
rule: herding
params: ["0.*", b]
trim: null
keep_coordinates: true
batch_size: 64
"""
PIECES = [
    *"[]{}:,#&*!|>%@`'\"-?~=\t\n\0\ufeff", "<<: ", "&a ", "*a", "- ", "? ", "--- ", "...\n", "e9",
    "!!python/object/apply:os.mkdir ['trace']", "!!python/name:os.system ", "!!binary ",
    "!!timestamp ", "!!set ", "!!omap ", "!!float ", "!!int ", "!!bool ", ".inf", ".nan", "0x_",
    "1:1", "2001-01-01", "[" * 50, "{a: " * 50, "9" * 5000, "\\u0000", "\u202e",
]  # fmt: skip


@settings(fuzz, max_examples=250)
@given(ending=st.sampled_from(["yaml", "json"]), data=st.data())
def test_damaged_configurations_are_refused_or_read(ending: str, data: st.DataObject) -> None:
    text = CONFIGURATION
    if ending == "json":
        text = '{"model": "a:b", "keep": 0.25, "params": ["0.*"], "trim": null, "batch_size": 64}'
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(text)))
        piece = data.draw(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)))
        text = text[:place] + piece + text[place + data.draw(st.integers(0, 6)) :]
    path = Path(f"options.{ending}")
    path.write_bytes(text.encode("utf-8", "replace"))
    known = ("model", "dataset", "keep", "rule", "params", "trim", "keep_coordinates", "batch_size")
    try:
        found, words = read_configuration(path, known), ""
    except ValueError as error:
        found, words = {}, str(error)
    if words:
        assert words.startswith("expected ")
        assert len(words) < 20_000
        return
    assert set(found) <= set(known)
    for value in found.values():
        parts = value if isinstance(value, list) else [value]
        assert all(part is None or type(part) in (bool, int, float, str) for part in parts)
    # Whatever it says, there is no such model: that, or what is wrong before, is said in words.
    never = ("--model", "no_such_module:model", "--dataset", "no_such_module:data", "--keep", "0.5")
    done = CliRunner().invoke(
        application, ["select", *never, "--out", "subset.npz", "--config", str(path)]
    )
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (1, 2)
    assert "error: " in done.output.lower()
    assert not Path("subset.npz").exists()
