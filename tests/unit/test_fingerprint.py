from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from sage_torch.checkpoint.fingerprint import difference, fingerprint, probed, short
from sage_torch.options import Options
from sage_torch.reading.digest import same_contents
from sage_torch.selection.archive import pack, unpack


def of(model: nn.Module, data: Any, **options: Any) -> dict[str, Any]:
    items = [data[i] for i in probed(len(data))]
    return fingerprint(model, data, Options(keep=0.5, **options), items, None, k=2, shards=1)


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
    assert "trim=None there, 'auto' here" in str(difference(of(model, data(), trim=None), first))
    model[1].num_batches_tracked += 1
    assert difference(of(model, data()), first) == "another model"
    assert str(difference({}, first)).startswith("another model and another data set and other opt")
    assert str(difference({}, first)).endswith("and other versions")


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


def rows(*values: float) -> torch.Tensor:
    return torch.tensor([values, values[::-1]])


def test_gradients_are_compared_up_to_rounding(model: nn.Module) -> None:
    def with_rows(gradients: torch.Tensor | None) -> dict[str, Any]:
        return fingerprint(model, data(), Options(keep=1), [], gradients, k=1, shards=1)

    first = with_rows(rows(1.0, 2.0, 3.0))
    assert difference(with_rows(rows(1.0, 2.0, 3.001)), first) is None
    assert short(with_rows(rows(1.0, 2.0, 3.001))) == short(first)
    others = [rows(1.0, 2.0, -3.0), rows(1.0, 2.0, 3.3), rows(1.0, 2.0), rows(0.0, 0.0, 0.0), None]
    for other in others:
        for pair in ((with_rows(other), first), (first, with_rows(other))):
            assert str(difference(*pair)).startswith("other gradients (another loss")
    for damaged in (None, [], "x", [[3.0]], [[3.0], None, None], [[3.0], ["a", 1.0], [1.0, 2.0]]):
        assert difference(first | {"gradients": damaged}, first) is not None


def test_the_model_is_its_modules_and_what_they_hold() -> None:
    def of_model(model: nn.Module) -> Any:
        return of(model, data())["model"]

    class WithTable(nn.Linear):
        def __init__(self, value: float) -> None:
            super().__init__(3, 2)
            nn.init.ones_(self.weight)
            nn.init.ones_(self.bias)
            self.register_buffer("table", torch.tensor([value]), persistent=False)

    assert of_model(WithTable(1.0)) == of_model(WithTable(1.0)) != of_model(WithTable(2.0))
    frozen = WithTable(1.0).requires_grad_(False)
    assert of_model(frozen) != of_model(WithTable(1.0))
    one, other = (nn.Sequential(WithTable(1.0), kind()) for kind in (nn.ReLU, nn.Tanh))
    assert of_model(one) != of_model(other)
    sparse = nn.Module()
    sparse.register_buffer("laplacian", torch.eye(3).to_sparse())
    other_sparse = nn.Module()
    other_sparse.register_buffer("laplacian", 2 * torch.eye(3).to_sparse())
    assert of_model(sparse) != of_model(other_sparse)
    assert of_model(nn.Linear(3, 2, device="meta")) == of_model(nn.Linear(3, 2, device="meta"))


def test_labels_count_wherever_they_are(model: nn.Module) -> None:
    inputs, labels = torch.zeros(64, 3), torch.arange(64) % 2
    changed = labels.clone()
    changed[13] = 1 - changed[13]  # not probed
    assert 13 not in probed(64)
    plain = [TensorDataset(inputs, values) for values in (labels, changed)]
    subsets = [torch.utils.data.Subset(each, range(64)) for each in plain]
    ours = []
    for values in (labels, changed):
        items = Items((inputs[0], 0))
        items.targets = values.tolist()
        ours.append(items)
    others = [torch.utils.data.Subset(plain[0], range(start, start + 32)) for start in (0, 1)]
    for one, other in (plain, subsets, ours, others):
        assert difference(of(model, other), of(model, one)) == "another data set"


def test_two_readings_are_compared() -> None:
    assert same_contents([torch.ones(2), "a"], [torch.ones(2), "a"])
    assert not same_contents([torch.ones(2)], [torch.zeros(2)])


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
