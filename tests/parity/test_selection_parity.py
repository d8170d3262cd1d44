"""The whole selection against the oracle: same gradients in, same subset out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sage_torch import (
    CountSketch,
    FrequentDirections,
    FunctionalGradients,
    Selection,
    _core,
    select_subset,
)
from sage_torch.examples import SeededOrder

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
N, CLASSES, SIZE = 420, 3, 16
SEED = 5


@dataclass(frozen=True)
class Oracle:
    """Scores and coordinates in float64, in the order of the data set."""

    agreement: dict[reference.Basis, Floats]
    carried: dict[reference.Basis, Floats]  # the same with the consensus of the streaming mode
    coordinates: Floats  # (N, l) orthonormal


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def problem() -> tuple[nn.Module, TensorDataset]:
    """Three classes in ten dimensions, a tenth of them mislabelled, and a model half trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    labels = torch.randint(CLASSES, (N,)) * torch.randint(1, 3, (N,)) % CLASSES  # uneven classes
    inputs = torch.randn(N, 10) + 2 * torch.randn(CLASSES, 10)[labels]
    labels = torch.where(torch.rand(N) < 0.1, torch.randint(CLASSES, (N,)), labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval(), TensorDataset(inputs, labels + 4)  # labels need not begin at 0


@cache
def gradient_rows(batch_size: int) -> tuple[Ints, Tensor]:
    """The reading order and the float32 rows in it, from the batches that a selection reads."""
    model, dataset = problem()
    order = SeededOrder(N, SEED).indices(0, N)
    gradients = FunctionalGradients(model)
    inputs, labels = dataset.tensors
    parts = torch.from_numpy(order).split(batch_size)
    return order, torch.cat([gradients((inputs[part], labels[part] - 4)) for part in parts])


def class_ids_of(balanced: bool) -> Ints:
    labels = problem()[1].tensors[1].numpy() - 4
    return labels if balanced else np.zeros_like(labels)


def oracle_of(rows: Tensor, order: Ints, class_ids: Ints) -> Oracle:
    """The method on rows (N, d) given in reading order, straight from the oracle."""
    exact, ids = rows.double().numpy(), class_ids[order]
    classes, block = ids.max() + 1, FrequentDirections(SIZE, 1).block_rows
    sketch = reference.FrequentDirections(SIZE, rows.shape[1], block)
    bases: list[reference.Basis] = ["weighted", "orthonormal"]
    sums = {basis: np.zeros((classes, rows.shape[1])) for basis in bases}
    for start in range(0, N, block):
        part = slice(start, start + block)
        sketch.update(exact[part])
        for basis, total in sums.items():
            length = np.linalg.norm(sketch.project(exact[part], basis), axis=1)
            root = np.sqrt(sketch.rows_seen) if basis == "weighted" else 1.0
            np.add.at(total, ids[part], (root / length)[:, None] * exact[part])
    z = {basis: np.empty((N, SIZE)) for basis in bases}
    agreement, carried = {}, {}
    for basis in bases:
        z[basis][order] = sketch.project(exact, basis)
        directions = reference.consensus(z[basis], class_ids, classes)
        agreement[basis] = reference.agreement(z[basis], class_ids, directions)
        along = reference.unit(sketch.project(sums[basis], basis))
        carried[basis] = reference.agreement(z[basis], class_ids, along)
    return Oracle(agreement, carried, z["orthonormal"])


@cache
def oracle(batch_size: int, balanced: bool) -> Oracle:
    order, rows = gradient_rows(batch_size)
    return oracle_of(rows, order, class_ids_of(balanced))


def select(keep: float = 0.3, **options: Any) -> Selection:
    model, dataset = problem()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(model(inputs), labels - 4, reduction="none")

    defaults = {"sketch_size": SIZE, "seed": SEED, "batch_size": 64, "progress": False}
    return select_subset(model, dataset, keep, **{"loss": loss, **defaults, **options})


def expected_subset(
    of: Oracle, scores: Floats, trim_scores: Floats, rule: str, options: dict[str, Any]
) -> Ints:
    class_ids = class_ids_of(options.get("class_balanced", "auto") is not False)
    counts = np.bincount(class_ids)
    k = round(options.get("keep", 0.3) * N)
    quotas = reference.class_quotas(counts, k, options.get("quotas", "proportional"))
    if rule == "agreement":
        # Only where scores are separated is there one right answer: no two at the border are close.
        for class_id, quota in enumerate(quotas):
            ranked = np.sort(scores[class_ids == class_id])[::-1]
            assert quota == len(ranked) or ranked[quota - 1] - ranked[quota] > 1e-6
        return reference.top_k(scores, class_ids, quotas)
    trim = options.get("trim", "negative")
    return reference.herding(of.coordinates, trim_scores, class_ids, quotas, trim)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"basis": "orthonormal"},
    {"class_balanced": False},
    {"quotas": "equal", "keep": 0.5},
    {"trim": None},
    {"trim": 0.25, "keep": 0.1},
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
every_rule = pytest.mark.parametrize("rule", ["agreement", "herding"])
every_mode = pytest.mark.parametrize("consensus", ["exact", "streaming"])


@every_option
@every_mode
@every_rule
def test_selection_equals_the_oracle(rule: str, consensus: str, options: dict[str, Any]) -> None:
    selection = select(rule=rule, consensus=consensus, **options)
    of = oracle(64, options.get("class_balanced", "auto") is not False)
    by_basis = of.agreement if consensus == "exact" else of.carried
    scores = by_basis[options.get("basis", "weighted")]
    assert np.abs(selection.scores - scores).max() < 1e-5
    expected = expected_subset(of, scores, by_basis["weighted"], rule, options)
    assert selection.indices.tolist() == expected.tolist()
    assert 0 < len(expected) < N
    assert (scores < 0).any()  # the negative trim had something to drop


def test_the_certificate_equals_the_oracle() -> None:
    certificate = select().certificate
    order, rows = gradient_rows(64)
    sketch = reference.FrequentDirections(
        SIZE, rows.shape[1], FrequentDirections(SIZE, 1).block_rows
    )
    sketch.update(rows.double().numpy())
    assert certificate is not None
    energy, total = np.sum(sketch.singular_values**2), sketch.squared_norm
    assert certificate.shrinkage == pytest.approx(sketch.shrinkage, rel=1e-5)
    assert certificate.squared_norm == pytest.approx(total, rel=1e-9)
    assert certificate.energy_kept == pytest.approx(energy / total, rel=1e-5)
    at_most = (energy + SIZE * sketch.shrinkage) / total
    assert certificate.energy_kept_at_most == pytest.approx(min(1, at_most), rel=1e-5)
    assert certificate.energy_kept <= 1
    assert certificate.consensus_cosine == 1


def test_the_consensus_cosine_is_that_of_the_carried_consensus() -> None:
    certificate = select(consensus="streaming").certificate
    assert certificate is not None
    assert 0.99 < certificate.consensus_cosine < 1


@every_rule
def test_compressed_selection_equals_the_oracle(rule: str) -> None:
    order, rows = gradient_rows(64)
    width = 60
    assert rows.shape[1] > width
    table = _core.CountSketch(rows.shape[1], width, SEED)
    j = np.arange(rows.shape[1])
    bucket = (j % width + table.shifts()[j // width]) % width
    compressed = np.zeros((N, width))
    np.add.at(compressed.T, bucket, (rows.double().numpy() * table.signs(0, len(j))).T)
    assert np.abs(CountSketch(rows.shape[1], width, SEED)(rows) - compressed).max() < 1e-6
    of = oracle_of(torch.from_numpy(compressed), order, class_ids_of(True))
    selection = select(rule=rule, compress=width)
    scores = of.agreement["weighted"]
    assert np.abs(selection.scores - scores).max() < 1e-5
    assert selection.indices.tolist() == expected_subset(of, scores, scores, rule, {}).tolist()


@every_rule
def test_device_path_chooses_the_same(rule: str) -> None:
    order, rows = gradient_rows(64)
    class_ids = class_ids_of(True).astype(np.int32)
    chosen = []
    for backend in ("host", "torch"):
        sketch = FrequentDirections(SIZE, rows.shape[1], backend=backend)
        for part in rows.split(64):
            sketch.update(part)
        z = {}
        for basis in ("weighted", "orthonormal"):
            z[basis] = np.empty((N, SIZE), np.float32)
            z[basis][order] = sketch.project(rows, basis=basis)
        consensus = _core.Consensus(CLASSES, SIZE)
        consensus.add(z["weighted"], class_ids)
        scores = _core.agreement(z["weighted"], class_ids, consensus.directions())
        quotas = _core.class_quotas(np.bincount(class_ids), 126)
        if rule == "agreement":
            chosen.append(_core.top_k(scores, class_ids, quotas).tolist())
        else:
            rows_and_scores = (z["orthonormal"], scores, class_ids, quotas)
            chosen.append(_core.herding(*rows_and_scores, trim="negative").tolist())
    assert chosen[0] == chosen[1] == select(rule=rule).indices.tolist()


@every_mode
@every_rule
def test_threads_do_not_change_the_subset(rule: str, consensus: str) -> None:
    results = []
    for count in (1, 2):
        with threads(count):
            results.append(select(rule=rule, consensus=consensus))
    assert results[0].indices.tolist() == results[1].indices.tolist()
    assert results[0].scores.tolist() == results[1].scores.tolist()


@every_rule
def test_scoring_batches_hardly_matter(rule: str) -> None:
    # A batch's size changes the last bits of its gradients, so only near ties may fall otherwise.
    chosen = [set(select(rule=rule, batch_size=size).indices.tolist()) for size in (32, 64, 256)]
    for other in chosen[1:]:
        assert len(chosen[0] - other) <= 2


def test_scores_do_not_depend_on_the_rule() -> None:
    assert select(rule="agreement").scores.tolist() == select(rule="herding").scores.tolist()
