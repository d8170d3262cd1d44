"""The file of a selection: it comes back whole, or is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selections import assert_frozen, assert_same
from torch import nn
from torch.utils.data import TensorDataset

from sage_torch import Selection, select_subset


@pytest.fixture
def selection(network: nn.Module, blobs: TensorDataset) -> Selection:
    return select_subset(network, blobs, 0.25)


@pytest.fixture
def judged(selection: Selection) -> Selection:
    """The selection with a probability of each label, from 0 to 1."""
    return dataclasses.replace(selection, probabilities=np.linspace(0, 1, 90, dtype=np.float32))


def test_probabilities_are_saved_and_loaded(
    selection: Selection, judged: Selection, tmp_path: Path
) -> None:
    judged.save(tmp_path / "subset.npz")
    loaded = Selection.load(tmp_path / "subset.npz")
    assert loaded.probabilities is not None
    assert loaded.probabilities.tolist() == np.linspace(0, 1, 90, dtype=np.float32).tolist()
    assert_same(loaded, judged)
    assert_frozen(loaded)
    without = Selection.from_bytes(dataclasses.replace(judged, probabilities=None).to_bytes())
    assert without.probabilities is None


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(89, np.float32),
        np.zeros(90),
        np.zeros((90, 1), np.float32),
        np.full(90, -1e-6, np.float32),
        np.full(90, 1.001, np.float32),
        np.append(np.zeros(89), np.nan).astype(np.float32),
        None,
    ],
    ids=["short", "float64", "matrix", "below 0", "above 1", "NaN", "missing"],
)
def test_loading_wrong_probabilities(wrong: Any, judged: Selection, tmp_path: Path) -> None:
    good = altering(judged, tmp_path)
    assert_same(Selection.load(good()), judged)
    with pytest.raises(ValueError, match=r"holds no readable selection.*probabilities"):
        Selection.load(good(probabilities=wrong))


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6])
def test_a_file_of_another_format_is_refused(altered: Callable[..., Path], number: int) -> None:
    with pytest.raises(ValueError, match=rf"expected format 5, got {number}; read it with"):
        Selection.load(altered(meta={"format": number}))


class Malicious:
    """Leaves a trace in the working directory when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("trace",)


WITH_WEIGHTS = ["indices", "scores", "labels", "weights"]


def npy_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


def npz_bytes(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, value in arrays.items():
            archive.writestr(f"{name}.npy", npy_bytes(value))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 100,
        b"PK\x03\x04",
        b"hello, this is no archive at all",
        json.dumps({"indices": [1, 2]}).encode(),
        pickle.dumps(Malicious()),
        pickle.dumps({"indices": np.arange(3)}),
        npy_bytes(np.arange(3)),
        npy_bytes(np.array([Malicious()], dtype=object)),
        npz_bytes(meta=np.array([Malicious()], dtype=object)),
        npz_bytes(indices=np.array([Malicious()], dtype=object), scores=np.zeros(3, np.float32)),
        npz_bytes(),
    ],
)
def test_loading_what_is_no_selection(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "subset.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="holds no readable selection"):
        Selection.load(path)
    assert list(tmp_path.iterdir()) == [path]  # nothing was executed


def altering(selection: Selection, folder: Path) -> Callable[..., Path]:
    """Write a file as `save` does, but with some arrays or JSON values replaced, or left out."""
    selection.save(folder / "good.npz")
    with np.load(folder / "good.npz") as file:
        arrays = {name: file[name] for name in file.files}

    def write(meta: Any = None, leave_out: tuple[str, ...] = (), **replaced: Any) -> Path:
        values = json.loads(arrays["meta"].tobytes())
        values = {name: value for name, value in values.items() if name not in leave_out}
        if isinstance(meta, dict):
            values.update(meta)
        text = json.dumps(values if meta is None or isinstance(meta, dict) else meta)
        merged = {**arrays, "meta": np.frombuffer(text.encode(), np.uint8), **replaced}
        path = folder / "altered.npz"
        np.savez(path, **{name: value for name, value in merged.items() if value is not None})
        return path

    return write


@pytest.fixture
def altered(selection: Selection, tmp_path: Path) -> Callable[..., Path]:
    """What `altering` gives for a plain selection."""
    return altering(selection, tmp_path)


def test_the_unaltered_file_is_read(altered: Callable[..., Path], selection: Selection) -> None:
    assert_same(Selection.load(altered()), selection)


@pytest.mark.parametrize(
    "change",
    [
        {"meta": {"format": 999}},
        {"meta": {"format": None}},
        {"meta": []},
        {"meta": "text"},
        {"meta": {"certificate": {"shrinkage": 1.0}}},
        {"meta": {"certificate": [1, 2]}},
        {"meta": {"seconds": None}},
        {"meta": {"settings": 3}},
        {"indices": None},
        {"scores": None},
        {"labels": None},
        {"indices": np.arange(22, dtype=np.int32)},
        {"indices": np.arange(22, dtype=np.float64)},
        {"indices": np.arange(22)[:, None]},
        {"indices": np.arange(22)[::-1]},
        {"indices": np.zeros(22, np.int64)},
        {"indices": np.arange(22) - 1},
        {"indices": np.arange(22) + 69},
        {"indices": np.zeros(0, np.int64)},
        {"indices": np.array(3)},
        {"scores": np.zeros(90)},
        {"scores": np.zeros((90, 1), np.float32)},
        {"scores": np.zeros(10, np.float32)},
        {"scores": np.float32(1.0)},
        {"labels": np.zeros(89, np.int64)},
        {"labels": np.zeros(90)},
        {"labels": np.array(["a"] * 90)},
        {"meta": {"arrays": WITH_WEIGHTS}},
        {"meta": {"arrays": WITH_WEIGHTS}, "weights": np.ones(21, np.float32)},
        {"meta": {"arrays": WITH_WEIGHTS}, "weights": np.ones(22)},
        {"meta": {"arrays": WITH_WEIGHTS}, "weights": np.zeros(22, np.float32)},
        {"meta": {"arrays": WITH_WEIGHTS}, "weights": np.full(22, np.nan, np.float32)},
        {"meta": {"draws": {"draw": "rotate", "seed": 0, "is_herded": True}}},
        {"meta": {"draws": 3}},
        {"margins": None},
        {"margins": np.zeros(89, np.float32)},
        {"margins": np.zeros(90)},
        {"margins": np.zeros((90, 1), np.float32)},
    ],
    ids=lambda change: "-".join(
        f"{k} {v if k == 'meta' else np.shape(v)}" for k, v in change.items()
    ),
)
def test_loading_an_inconsistent_file(change: dict[str, Any], altered: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="holds no readable selection"):
        Selection.load(altered(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"draws_order": None},
        {"draws_order": np.arange(90)[::-1]},  # another epoch 0
        {"draws_order": np.arange(90) + 1},  # beyond the data set
        {"draws_starts": np.array([0, 89])},
        {"draws_quotas": np.array([22, 0, 0])},
        {"meta": {"draws": {"draw": "fixed", "seed": 0, "is_herded": True}}},
        {"meta": {"draws": {"draw": "rotate"}}},
        {"meta": {"draws": None}, "indices": np.arange(22)[::-1]},
    ],
    ids=str,
)
def test_loading_inconsistent_draws(
    change: dict[str, Any], network: nn.Module, blobs: TensorDataset, tmp_path: Path
) -> None:
    good = altering(select_subset(network, blobs, 0.25, draw="rotate"), tmp_path)
    Selection.load(good())
    with pytest.raises(ValueError, match="holds no readable selection"):
        Selection.load(good(**change))


def test_loading_a_newer_format_says_so(altered: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="expected format 5, got 999"):
        Selection.load(altered(meta={"format": 999}))


@pytest.mark.filterwarnings("ignore")
def test_loading_a_damaged_file(selection: Selection, tmp_path: Path) -> None:
    path = tmp_path / "subset.npz"
    selection.save(path)
    good, draw, refused = path.read_bytes(), random.Random(0), 0
    directory = good.index(b"PK\x01\x02")
    # Anywhere; and as often in the zip's directory, which no checksum guards.
    places = [draw.randrange(len(good)) for _ in range(200)]
    places += [draw.randrange(directory, len(good)) for _ in range(200)]
    damaged = [good[: draw.randrange(len(good))] for _ in range(50)]
    for place in places:
        changed = bytearray(good)
        changed[place] ^= draw.choice([0x01, 0x80, 0xFF, draw.randrange(1, 256)])
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        try:
            loaded = Selection.load(path)
        except ValueError:
            refused += 1
        else:
            assert_same(loaded, selection)  # a date or an attribute of the zip was hit
    assert refused > 200
