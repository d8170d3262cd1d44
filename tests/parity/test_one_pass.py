"""Coordinates carried along in one pass, and selections by them, against the float64 oracle."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference
import reference_one_pass
import reference_rules
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sage_torch import FrequentDirections, FunctionalGradients, Selection, select_subset
from sage_torch.reading.reader import SeededOrder
from sage_torch.reading.shards import cut

Floats = npt.NDArray[np.float64]
# (n, d, l): whole blocks or a rest; one, some and many shrinks (groups of moves are 32).
SIZES = [(10, 30, 8), (200, 30, 8), (192, 300, 8), (100, 2049, 16), (1_500, 20, 4)]
backends = pytest.mark.parametrize("backend", ["host", "torch"])
sizes = pytest.mark.parametrize(("n", "d", "size"), SIZES)


def block_of(size: int) -> int:
    return FrequentDirections(size, 1).block_rows


@cache
def gradients(n: int, d: int) -> Tensor:
    """Rows (n, d) float32 of decaying spectrum whose directions turn as the stream goes on."""
    rng = np.random.default_rng(0)
    first, last = (rng.normal(size=(12, d)) for _ in range(2))
    turn = np.linspace(0, 1, n)[:, None]
    within = rng.normal(size=(n, 12)) * 0.7 ** np.arange(12)
    rows = within @ first * (1 - turn) + within @ last * turn + 0.1 * rng.normal(size=(n, d))
    rows[n // 2] = 0.0
    return torch.from_numpy(rows.astype(np.float32))


@cache
def oracle(n: int, d: int, size: int) -> Floats:
    one = reference_one_pass.OnePass(size, d, block_of(size))
    one.update(gradients(n, d).double().numpy())
    return one.coordinates()


def carrying(size: int, d: int, **options: Any) -> FrequentDirections:
    sketch = FrequentDirections(size, d, **options)
    sketch.carry_coordinates()
    return sketch


def carried(rows: Tensor, size: int, batch: int = 37, **options: Any) -> npt.NDArray[np.float32]:
    sketch = carrying(size, rows.shape[1], **options)
    for part in rows.split(batch):
        sketch.update(part)
    return sketch.take_coordinates()


def assert_same_geometry(ours: npt.NDArray[np.float32], expected: Floats) -> None:
    """Equal inner products of all rows: signs of coordinates are free."""
    z = ours.astype(np.float64)
    assert z.shape == expected.shape
    wanted = expected @ expected.T
    assert np.linalg.norm(z @ z.T - wanted) < 1e-5 * np.linalg.norm(wanted)


@backends
@sizes
def test_coordinates_equal_the_oracle(n: int, d: int, size: int, backend: str) -> None:
    assert_same_geometry(carried(gradients(n, d), size, backend=backend), oracle(n, d, size))


@backends
@pytest.mark.parametrize("rank", [1, 6, 12])
def test_they_are_those_of_the_final_sketch_while_nothing_is_lost(backend: str, rank: int) -> None:
    mixed = gradients(1_000, 40)[:, :rank] @ gradients(40, 300)[:rank]
    sketch = carrying(16, 300, backend=backend)
    sketch.update(mixed)  # of `rank`: the other rows of the sketch are rounding
    assert_same_geometry(sketch.take_coordinates(), sketch.project(mixed).double().numpy())


@backends
def test_batches_do_not_matter_and_carrying_does_not_change_the_sketch(backend: str) -> None:
    rows = gradients(1_500, 20)
    plain, whole = FrequentDirections(4, 20, backend=backend), carrying(4, 20, backend=backend)
    plain.update(rows)
    whole.update(rows)
    assert torch.equal(plain.matrix(), whole.matrix())
    assert np.array_equal(carried(rows, 4, batch=1, backend=backend), whole.take_coordinates())


def test_threads_do_not_change_a_bit() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(carried(gradients(100, 2049), 16))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*found)


@backends
@pytest.mark.parametrize("shards", [2, 3, 5])
def test_merged_coordinates_follow_each_other(backend: str, shards: int) -> None:
    rows = gradients(1_500, 20)
    parts = [rows[s.places] for s in cut(len(rows), shards)]
    level = [carrying(4, 20, backend=backend) for _ in parts]
    for sketch, part in zip(level, parts, strict=True):
        sketch.update(part)
    while len(level) > 1:
        for first, second in zip(level[::2], level[1::2], strict=False):
            first.merge(second)
        level = level[::2]
    expected = reference_one_pass.of_shards(
        [part.double().numpy() for part in parts], 4, block_of(4)
    )
    assert_same_geometry(level[0].take_coordinates(), expected.coordinates())


def test_a_sketch_of_another_size_can_be_merged() -> None:
    rows = gradients(300, 40)[:, :6].contiguous()  # of rank 6: nothing is lost in either
    ours, other = carrying(16, 6), carrying(8, 6)
    ours.update(rows[:100])
    other.update(rows[100:])
    ours.merge(other)
    assert_same_geometry(ours.take_coordinates(), ours.project(rows).double().numpy())
    assert other.take_coordinates().shape == (200, 8)  # it keeps its own


def test_a_state_goes_on_bit_by_bit(tmp_path: Any) -> None:
    rows = gradients(1_500, 20)
    first = carrying(4, 20)
    first.update(rows[:777])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = FrequentDirections(4, 20)  # whose state says that coordinates are carried along
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for sketch in (first, second):
        sketch.update(rows[777:])
    assert np.array_equal(first.take_coordinates(), second.take_coordinates())
    old = FrequentDirections(4, 20).state_dict()
    assert "coordinates" not in old  # as states were before
    second.load_state_dict(old)
    with pytest.raises(ValueError, match="carry_coordinates"):
        second.take_coordinates()


def test_a_damaged_state_is_refused() -> None:
    sketch = carrying(4, 20)
    sketch.update(gradients(200, 20))
    state = sketch.state_dict()
    kept = state["coordinates"]
    damaged = [
        {"rows": kept["rows"][1:]},
        {"rows": kept["rows"].double()},
        {"rows": kept["rows"] / 0},
        {"starts": kept["starts"][:-1]},
        {"starts": -kept["starts"]},
        {"changes": kept["changes"][:, :2]},
        {"changes": kept["changes"] * torch.nan},
        {"open": len(kept["starts"]) + 1},
        {"open": "many"},
    ]
    for part in damaged:
        with pytest.raises(ValueError, match=r"coordinates|rows"):
            sketch.load_state_dict(state | {"coordinates": kept | part})
    sketch.load_state_dict(state)
    assert len(sketch.take_coordinates()) == 200


def test_what_cannot_be_carried_is_refused() -> None:
    rows = gradients(10, 30)
    late = FrequentDirections(8, 30)
    late.update(rows)
    with pytest.raises(ValueError, match="from the first row"):
        late.carry_coordinates()
    sketch = carrying(8, 30)
    sketch.update(rows)
    with pytest.raises(ValueError, match="both sketches to carry coordinates"):
        sketch.merge(late)
    with pytest.raises(ValueError, match="carries no coordinates"):
        sketch.forget(0.5)
    assert len(sketch.take_coordinates()) == 10
    with pytest.raises(ValueError, match="carry_coordinates"):
        sketch.take_coordinates()
    sketch.forget(0.5)  # now there are none


# --- the whole selection ---

N, CLASSES, SIZE, SEED = 420, 3, 16, 5


@cache
def problem() -> tuple[nn.Module, TensorDataset]:
    """Three classes in ten dimensions, some mislabelled, and a model half trained."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    labels = torch.arange(N) % CLASSES
    inputs = torch.randn(N, 10) + 2 * torch.randn(CLASSES, 10)[labels]
    labels = torch.where(torch.rand(N) < 0.1, torch.randint(CLASSES, (N,)), labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval(), TensorDataset(inputs, labels)


def select(**options: Any) -> Selection:
    defaults: dict[str, Any] = {"sketch_size": SIZE, "seed": SEED, "batch_size": 64}
    return select_subset(
        *problem(), 0.3, consensus="one_pass", progress=False, **{**defaults, **options}
    )


@cache
def expected(shards: int) -> tuple[Floats, Floats]:
    """Weighted and orthonormal coordinates (N, l) of all examples, from the oracle."""
    model, data = problem()
    computer, parts, orders = FunctionalGradients(model), [], []
    for shard in cut(N, shards):
        order = SeededOrder(shard, SEED).indices(0, len(shard))
        chosen = torch.from_numpy(order).split(64)
        batches = [tuple(tensor[part] for tensor in data.tensors) for part in chosen]
        parts.append(torch.cat([computer(batch) for batch in batches]).double().numpy())
        orders.append(order)
    one = reference_one_pass.of_shards(parts, SIZE, block_of(SIZE))
    weighted = np.empty((N, SIZE))
    weighted[np.concatenate(orders)] = one.coordinates()
    values = one.sketch.singular_values
    return weighted, weighted / np.where(values > 0, values, np.inf)


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("rule", ["agreement", "herding"])
def test_selection_equals_the_oracle(rule: Any, shards: int) -> None:
    selection = select(rule=rule, shards=shards)
    weighted, orthonormal = expected(shards)
    ids = problem()[1].tensors[1].numpy()
    directions = reference.consensus(weighted, ids, CLASSES)
    margins = reference.margin(weighted, ids, directions)
    scores = reference.agreement(weighted, ids, directions)
    assert selection.margins is not None
    assert np.abs(selection.scores - scores).max() < 1e-5
    assert np.abs(selection.margins - margins).max() < 1e-5
    quotas = reference.class_quotas(np.bincount(ids), round(0.3 * N))
    if rule == "agreement":
        wanted = reference.top_k(scores, ids, quotas)
    else:
        wanted = reference_rules.by_class(
            reference.herd, orthonormal, margins, ids, quotas, "negative"
        )
    assert selection.indices.tolist() == wanted.tolist()


def test_one_reading_is_enough() -> None:
    model, data = problem()
    read: list[int] = []

    class Noting(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

    selection = select_subset(
        model, Noting(*data.tensors), 0.3, consensus="one_pass", progress=False
    )
    examined = 15  # readings of 5 items, to see whether they are always the same
    assert sorted(read[examined:]) == list(range(N))
    assert selection.settings["consensus"] == "one_pass"
    assert selection.certificate is not None
    assert np.isnan(selection.certificate.consensus_cosine)
