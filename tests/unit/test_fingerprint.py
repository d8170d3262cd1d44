from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from sage_torch.archive import pack, unpack
from sage_torch.fingerprint import difference, fingerprint, short
from sage_torch.options import Options


def of(model: nn.Module, data: Any, **options: Any) -> dict[str, Any]:
    return fingerprint(model, data, Options(keep=0.5, **options), k=2, shards=1)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def data() -> TensorDataset:
    return TensorDataset(torch.arange(12.0).view(4, 3), torch.arange(4))


def test_the_same_thing_has_the_same_fingerprint(model: nn.Module) -> None:
    first = of(model, data())
    assert difference(first, of(model, data())) is None
    assert short(first) == short(of(model, data()))
    assert difference(json.loads(json.dumps(first)), first) is None  # as it is written
    # What changes no place in the subset.
    assert difference(first, of(model, data(), batch_size=3, num_workers=2, progress=False)) is None


def test_each_part_counts(model: nn.Module) -> None:
    first = of(model, data())
    changed = data()
    changed.tensors[0][3, 1] += 1
    assert difference(of(model, changed), first) == "another data set"
    assert difference(of(model, TensorDataset(*data()[:3])), first) == "another data set"
    assert "trim=None there, 'negative' here" in str(
        difference(of(model, data(), trim=None), first)
    )
    model[1].num_batches_tracked += 1
    assert difference(of(model, data()), first) == "another model"
    assert str(difference({}, first)).startswith("another model and another data set and other ver")


@dataclass
class Item:
    words: str
    numbers: Any


class Picture:
    """As PIL gives them."""

    def __init__(self, shade: int) -> None:
        pixels = np.full((2, 2), shade, np.uint8)
        self.__array_interface__ = pixels.__array_interface__
        self._keep = pixels


class Items(Dataset[Any]):
    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return self.item


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a", "b"),
        (b"a", b"b"),
        (1, 2),
        (1, 1.0),
        (None, 0),
        (np.arange(3), np.arange(3.0)),
        (torch.ones(2), torch.ones(2, 1)),
        (torch.ones(2), torch.ones(2).bfloat16()),
        ({"a": 1}, {"b": 1}),
        ([1, [2]], [1, 2]),
        (Item("a", [1]), Item("a", [2])),
        (Picture(1), Picture(2)),
        (torch.zeros(0), torch.zeros(0, 2)),
        (np.array(["a"], object), np.array(["b"], object)),
    ],
)
def test_items_are_compared_by_content(model: nn.Module, one: Any, other: Any) -> None:
    first = of(model, Items(one))
    assert difference(first, of(model, Items(one))) is None
    assert difference(first, of(model, Items(other))) == "another data set"


def test_an_object_of_no_known_kind_is_its_type(model: nn.Module) -> None:
    assert difference(of(model, Items(object())), of(model, Items(object()))) is None


def test_an_archive_gives_back_what_was_packed() -> None:
    arrays = {"a": np.arange(5, dtype=np.float32), "b": np.zeros((0, 3), np.int64)}
    for compress in (False, True):
        meta, back = unpack(pack({"x": [1, None, "é"]}, arrays, compress=compress))
        assert meta == {"x": [1, None, "é"]}
        assert list(back) == ["a", "b"]
        for name, array in arrays.items():
            assert back[name].dtype == array.dtype
            assert np.array_equal(back[name], array)


def test_an_archive_of_objects_is_refused() -> None:
    for content in (b"", b"no archive", b"PK\x03\x04", pack({}, {}, compress=False)[:-1]):
        with pytest.raises(ValueError, match="damaged, or no archive of sage_torch"):
            unpack(content)
    evil = pack({}, {"a": np.array([print], object)}, compress=False)
    with pytest.raises(ValueError, match="damaged, or no archive"):
        unpack(evil)
