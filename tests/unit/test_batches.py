"""A batch keeps its container and loses no example, whatever holds it."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nested import nested_tensor

from sage_torch.gradients import batches


class Pair(NamedTuple):
    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Graphs:
    nodes: Tensor
    labels: Tensor
    name: str = "graphs"
    count: int = field(default=0, init=False)


class Encoding(UserDict):  # type: ignore[type-arg]
    """What a tokenizer returns: a mapping that is no dict."""


INPUTS = torch.arange(12.0).reshape(6, 2)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])

BATCHES: list[Any] = [
    (INPUTS, LABELS),
    [INPUTS, LABELS],
    ((INPUTS, INPUTS + 1), LABELS),
    Pair(INPUTS, LABELS),
    {
        "inputs": INPUTS,
        "labels": LABELS,
        "ids": ["a"] * 6,
        "scale": torch.tensor(2.0),
        "none": None,
    },
    OrderedDict(inputs=INPUTS, labels=LABELS),
    Encoding(inputs=INPUTS, labels=LABELS),
    Graphs(INPUTS, LABELS),
    {"inputs": [INPUTS, (INPUTS, {"deep": INPUTS})], "labels": LABELS},
]
kinds = pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: type(batch).__name__)


@kinds
def test_length_and_labels(batch: Any) -> None:
    assert batches.length(batch) == 6
    assert batches.labels(batch) is LABELS


@kinds
def test_take_keeps_the_container_and_cuts_every_tensor(batch: Any) -> None:
    part = batches.take(batch, 1, 4)
    assert type(part) is type(batch)
    assert batches.length(part) == 3
    for leaf, whole in zip(batches.tensor_leaves(part), batches.tensor_leaves(batch), strict=True):
        assert torch.equal(leaf, whole[1:4])


@kinds
def test_leaves_can_be_replaced(batch: Any) -> None:
    doubled = batches.replace_leaves(batch, [2 * leaf for leaf in batches.tensor_leaves(batch)])
    assert type(doubled) is type(batch)
    pairs = zip(batches.tensor_leaves(doubled), batches.tensor_leaves(batch), strict=True)
    assert all(torch.equal(new, 2 * old) for new, old in pairs)


@kinds
def test_moves_every_tensor(batch: Any) -> None:
    moved = batches.to_device(batch, "meta")
    assert {leaf.device.type for leaf in batches.tensor_leaves(moved)} == {"meta"}
    assert type(moved) is type(batch)


def test_what_is_no_leaf_passes_through() -> None:
    scale, ids = torch.tensor(2.0), ["a", "b"]
    part = batches.take({"x": INPUTS, "scale": scale, "ids": ids, "none": None}, 0, 1)
    assert part["scale"] is scale
    assert part["ids"] == ids
    assert part["none"] is None


def test_dataclass_is_copied_not_changed() -> None:
    graphs = Graphs(INPUTS, LABELS)
    part = batches.take(graphs, 0, 2)
    assert (part.name, part.count) == ("graphs", 0)
    assert graphs.nodes is INPUTS


class Forgetful(UserDict):  # type: ignore[type-arg]
    """A mapping whose constructor does not take its content."""

    def __init__(self, *ignored: object) -> None:
        super().__init__()


@pytest.mark.parametrize("batch", [defaultdict(list), Forgetful()])
def test_mapping_that_cannot_be_rebuilt_becomes_a_dict(batch: Any) -> None:
    batch.update(inputs=INPUTS, labels=LABELS)
    part = batches.take(batch, 0, 2)
    assert type(part) is dict
    assert torch.equal(part["labels"], LABELS[:2])


@pytest.mark.parametrize(
    "batch",
    [
        (INPUTS, INPUTS),  # soft targets
        (INPUTS, LABELS > 0),  # flags
        (INPUTS, LABELS.view(-1, 2).repeat(2, 1)),  # token labels
        {"inputs": INPUTS},
        INPUTS,
    ],
)
def test_only_one_value_per_example_may_be_a_label(batch: Any) -> None:
    assert batches.labels(batch) is None
    assert batches.length(batch) == 6


@pytest.mark.parametrize(
    "batch", [(INPUTS[:5], LABELS), {"labels": LABELS, "inputs": [INPUTS, INPUTS[:1]]}]
)
def test_length_that_disagrees_with_labels_is_refused(batch: Any) -> None:
    with pytest.raises(
        ValueError, match="a batch whose length disagrees with its labels: 6 labels"
    ):
        batches.length(batch)


def test_tensors_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"disagree in length: shapes \(6, 2\) and \(2, 2\)"):
        batches.length([INPUTS, INPUTS[:2]])


@pytest.mark.parametrize("batch", [{"ids": ["a"]}, torch.tensor(1.0), None])
def test_batch_without_tensors_is_refused(batch: Any) -> None:
    with pytest.raises(ValueError, match="at least one tensor of shape"):
        batches.length(batch)


def test_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one example, got an empty one"):
        batches.length((INPUTS[:0], LABELS[:0]))


class ByIdentity:
    pass


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise TypeError("no")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ((INPUTS, 3), (INPUTS.clone(), 3), True),
        ((INPUTS, 3), (INPUTS + 1e-6, 3), False),
        ((INPUTS, 3), (INPUTS, 4), False),
        (INPUTS, INPUTS[:5], False),
        (INPUTS, INPUTS.double(), False),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), True),
        (torch.tensor([1.0, torch.nan]), torch.tensor([2.0, torch.nan]), False),
        (np.array([1.0, np.nan]), np.array([1.0, np.nan]), True),
        (np.array([1.0, 2.0]), np.array([1.0, 3.0]), False),
        (np.array(["a", None], dtype=object), np.array(["a", None], dtype=object), True),
        ({"x": INPUTS, "s": "a"}, {"x": INPUTS, "s": "a"}, True),
        ({"x": INPUTS, "s": "a"}, {"x": INPUTS, "s": "b"}, False),
        ({"x": INPUTS}, {"y": INPUTS}, False),
        (Graphs(INPUTS, LABELS), Graphs(INPUTS.clone(), LABELS), True),
        (Graphs(INPUTS, LABELS), Graphs(INPUTS, LABELS + 1), False),
        ([1, 2], [1, 2, 3], False),
        ([1, 2], (1, 2), False),
        (float("nan"), float("nan"), True),
        (None, None, True),
        (INPUTS.to_sparse(), INPUTS.to_sparse(), True),
        (INPUTS.to_sparse_csr(), (INPUTS + 1).to_sparse_csr(), False),
        (INPUTS.to_sparse(), INPUTS, False),
        (nested_tensor([INPUTS, INPUTS[:2]]), nested_tensor([INPUTS, INPUTS[:2]]), True),
        (nested_tensor([INPUTS, INPUTS[:2]]), nested_tensor([INPUTS, INPUTS[:3]]), False),
        (nested_tensor([INPUTS, INPUTS]), torch.stack([INPUTS, INPUTS]), False),
        (ByIdentity(), ByIdentity(), True),  # nothing can be told, so nothing is claimed
        (Incomparable(), Incomparable(), True),
    ],
)
@pytest.mark.filterwarnings("ignore:.*prototype", "ignore:Sparse CSR")
def test_same_item(first: object, second: object, same: bool) -> None:
    assert batches.same_item(first, second) is same


def test_places_begin_again_and_are_copies() -> None:
    batch = {"x": torch.arange(6.0).view(3, 2), "scale": torch.tensor(2.0), "name": "a"}
    found = batches.places(batch, [2, 3, 4])
    assert found["x"].tolist() == [[4.0, 5.0], [0.0, 1.0], [2.0, 3.0]]
    assert (found["scale"], found["name"]) == (torch.tensor(2.0), "a")
    found["x"].zero_()
    assert batch["x"].sum() == 15
