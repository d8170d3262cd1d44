"""Gradients of one's own take any batch: its examples are counted where they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import Dataset, IterableDataset

import sage_torch.gradients.batches as batches
from sage_torch import SageSampler, SageStream, select_subset
from sage_torch.gradients.count_sketch import CountSketch

N, D = 50, 6
MODEL = nn.Linear(D, 2)
Batch = Any


class Bags(Dataset[Any]):
    """Examples of 1 to 4 rows of D numbers, as nodes of a graph, boxes, words or frames."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = [torch.randn(1 + i % 4, D, generator=generator) for i in range(N)]

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


class Passing(IterableDataset[Any]):
    """The same in a stream."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(Bags().rows)


class Graphs:
    """An object that knows how to move, and no more."""

    def __init__(self, examples: list[Tensor]) -> None:
        self.nodes = torch.cat(examples)
        self.graph = owners(examples)

    def to(self, device: torch.device) -> Graphs:
        self.device = device
        return self


class Sealed:
    """An object whose `to` is about something else."""

    def __init__(self, examples: list[Tensor]) -> None:
        self.examples = examples

    def to(self, unit: str) -> str:
        return unit.upper()  # a device has no such method


@dataclass
class Found:
    boxes: list[Tensor]
    sizes: Tensor


def owners(examples: list[Tensor]) -> Tensor:
    return torch.cat([torch.full((len(rows),), i) for i, rows in enumerate(examples)])


def starts(examples: list[Tensor]) -> Tensor:
    return torch.tensor([0, *map(len, examples)]).cumsum(0)[:-1]


def sums(nodes: Tensor, owner: Tensor) -> Tensor:
    return torch.zeros(int(owner.max()) + 1, D).index_add(0, owner, nodes)


def of_offsets(nodes: Tensor, offsets: Tensor) -> Tensor:
    places = torch.arange(len(nodes))
    return sums(nodes, torch.searchsorted(offsets, places, right=True) - 1)


def of_packed(packed: PackedSequence) -> Tensor:
    padded, _ = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
    return padded.sum(1)


KINDS: dict[str, tuple[Callable[[list[Tensor]], Batch], Callable[[Batch], Tensor]]] = {
    "graphs": (Graphs, lambda b: sums(b.nodes, b.graph)),
    "sealed": (Sealed, lambda b: torch.stack([rows.sum(0) for rows in b.examples])),
    "list of tensors": (list, lambda b: torch.stack([rows.sum(0) for rows in b])),
    "detections": (
        lambda part: (part, [{"boxes": rows, "labels": torch.ones(len(rows))} for rows in part]),
        lambda b: torch.stack([target["boxes"].sum(0) for target in b[1]]),
    ),
    "dataclass": (
        lambda part: Found(part, torch.tensor([len(rows) for rows in part])),
        lambda b: torch.stack([rows.sum(0) for rows in b.boxes]),
    ),
    "packed": (lambda part: pack_sequence(part, enforce_sorted=False), of_packed),
    "offsets": (lambda part: (torch.cat(part), starts(part)), lambda b: of_offsets(*b)),
    "owners": (lambda part: (torch.cat(part), owners(part)), lambda b: sums(*b)),
    "without padding": (
        lambda part: {"rows": torch.cat(part)[None], "starts": starts(part)},
        lambda b: of_offsets(b["rows"][0], b["starts"]),
    ),
    "nested": (
        lambda part: torch.nested.nested_tensor(part),
        lambda b: torch.stack([rows.sum(0) for rows in b.unbind()]),
    ),
    "sparse": (
        lambda part: torch.stack([rows.sum(0) for rows in part]).to_sparse(),
        lambda b: b.to_dense(),
    ),
    "nothing": (lambda part: None, lambda b: torch.ones(10, D)),
}
kinds = pytest.mark.parametrize("name", [name for name in KINDS if name != "nothing"])


def plain() -> Any:
    data = Bags()
    return [(data[i].sum(0),) for i in range(N)]


def select(data: Any, **options: Any) -> Any:
    common: dict[str, Any] = {"batch_size": 10, "class_balanced": False, "progress": False}
    return select_subset(MODEL, data, 0.4, **(common | options))


@kinds
@pytest.mark.parametrize(
    "options", [{}, {"consensus": "streaming"}, {"consensus": "one_pass"}, {"sketch_size": "auto"}]
)
def test_any_batch_gives_what_a_plain_one_gives(name: str, options: dict[str, Any]) -> None:
    collate, compute = KINDS[name]
    found = select(Bags(), gradients=compute, collate_fn=collate, **options)
    expected = select(plain(), gradients=lambda b: b[0], **options)
    assert np.array_equal(found.indices, expected.indices)
    assert np.allclose(found.scores, expected.scores, atol=1e-5)


@pytest.mark.parametrize(
    "made",
    [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, lambda x: torch.nested.nested_tensor([x])],
)
@pytest.mark.filterwarnings("ignore:.*prototype", "ignore:Sparse CSR")
def test_examples_that_are_not_dense(made: Callable[[Tensor], Tensor]) -> None:
    items = [made(x[None]) for (x,) in plain()]
    rows = lambda item: item.unbind()[0] if item.is_nested else item.to_dense()  # noqa: E731
    found = select(
        items, gradients=lambda b: torch.cat([rows(item) for item in b]), collate_fn=list
    )
    expected = select(plain(), gradients=lambda b: b[0])
    assert np.array_equal(found.indices, expected.indices)


@kinds
def test_any_batch_with_snapshots_and_workers(name: str, tmp_path: Path) -> None:
    collate, compute = KINDS[name]
    options: dict[str, Any] = {"gradients": compute, "collate_fn": collate, "checkpoint": tmp_path}
    workers = 0 if name in ("nested", "sparse") else 1  # torch sends neither of them everywhere
    found = select(Bags(), num_workers=workers, **options)
    assert np.array_equal(select(Bags(), **options).scores, found.scores)


@kinds
@pytest.mark.parametrize("memory_budget", [1, 2**30])
def test_long_rows_of_any_batch_are_shortened(name: str, memory_budget: int) -> None:
    collate, compute = KINDS[name]
    shorter = CountSketch(D, 3, 0)
    found = select(
        Bags(), gradients=compute, collate_fn=collate, compress=3, memory_budget=memory_budget,
        consensus="exact",
    )  # fmt: skip
    expected = select(plain(), gradients=lambda b: shorter(b[0]), consensus="exact")
    assert np.allclose(found.scores, expected.scores, atol=1e-5)


def test_plain_batches_are_still_cut_for_the_budget() -> None:
    most = 0

    def compute(batch: Batch) -> Tensor:
        nonlocal most
        most = max(most, len(batch[0]))
        return torch.as_tensor(batch[0])

    select(plain(), gradients=compute, compress=3, memory_budget=8 * D * 4)
    assert most == 4


@pytest.mark.parametrize("name", ["graphs", "offsets", "nothing"])
@pytest.mark.parametrize("compress", [3, None])
def test_another_number_of_rows_is_refused(name: str, compress: int | None) -> None:
    collate, compute = KINDS[name]
    options: dict[str, Any] = {"collate_fn": collate, "compress": compress}
    words = r"one gradient per example, shape \(10, D\), got \(9, 6\); return one row for each"
    with pytest.raises(ValueError, match=words):
        select(Bags(), gradients=lambda batch: compute(batch)[:9], **options)
    with pytest.raises(TypeError, match=r"got list; return a tensor with one row for each"):
        select(Bags(), gradients=lambda batch: list(compute(batch)), **options)


def test_a_last_batch_has_fewer_rows() -> None:
    with pytest.raises(ValueError, match=r"shape \(7, D\), got \(10, 6\)"):
        select(Bags(), gradients=KINDS["nothing"][1], collate_fn=KINDS["nothing"][0], batch_size=7)


def test_a_sampler_and_a_stream_take_any_batch() -> None:
    collate, compute = KINDS["graphs"]
    sampler = SageSampler(
        MODEL, Bags(), keep=0.4, gradients=compute, collate_fn=collate, progress=False
    )
    assert len(list(sampler)) == 20
    stream = SageStream(
        MODEL,
        Passing(),
        1.0,
        gradients=compute,
        collate_fn=collate,
        batch_size=7,
    )
    assert len(list(stream)) == stream.seen == N
    few = SageStream(
        MODEL,
        Passing(),
        1.0,
        gradients=lambda batch: torch.ones(3, D),
        collate_fn=lambda part: None,
        batch_size=7,
    )
    with pytest.raises(ValueError, match="return one row for each of the 7 examples"):
        list(few)


def test_gradients_of_ours_still_count_the_batch() -> None:
    with pytest.raises(ValueError, match=r"collate function.*gradients=, a function batch"):
        select(Bags(), collate_fn=Graphs)
    with pytest.raises(ValueError, match="expected a batch of 16 examples, got 15"):
        select(plain(), collate_fn=lambda part: torch.stack([row for (row,) in part[1:]]))


class Pair:
    def __init__(self, moved: Any) -> None:
        self.moved = moved

    def to(self, device: torch.device) -> Any:
        if isinstance(self.moved, Exception):
            raise self.moved
        return (self.moved, device)


def test_objects_are_moved_by_their_own_method_or_left_alone() -> None:
    meta, tensor = torch.device("meta"), torch.ones(3, 2)
    alone = [object(), "text", 3, None, Tensor, Pair(TypeError()), Pair(ValueError("unit"))]
    moved = batches.to_device({"a": [Pair(5)], "b": (tensor, *alone)}, meta)
    assert moved["a"] == [(5, meta)]
    assert moved["b"][0].device == meta
    assert list(moved["b"][1:]) == alone
    failing = Pair(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        batches.to_device(failing, meta)
    packed = pack_sequence([torch.ones(2, 3), torch.ones(1, 3)])
    (there,) = batches.to_device([packed], meta)
    assert isinstance(there, PackedSequence)
    assert (there.data.device, there.batch_sizes.device) == (meta, torch.device("cpu"))


@pytest.mark.parametrize(
    ("batch", "is_so"),
    [
        ((torch.ones(3, 2), {"a": torch.ones(3)}), True),
        ((torch.ones(3, 2), torch.ones(2)), False),
        ((torch.ones(3, 2), torch.tensor(1.0)), False),
        ((torch.ones(3, 2), ["a", "b", "c"]), False),
        ((torch.ones(3, 2), None), False),
        (torch.ones(3, 2).to_sparse(), False),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(1), torch.ones(1)]), False),
        ((), False),
        (object(), False),
    ],
)
def test_what_can_be_cut(batch: Batch, is_so: bool) -> None:
    assert batches.has_rows_only(batch, 3) is is_so
