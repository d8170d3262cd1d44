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
import reference_rules
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
from sage_torch.reading.reader import SeededOrder
from sage_torch.reading.shards import Shard

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
N, CLASSES, SIZE = 420, 3, 16
SEED = 5


@dataclass(frozen=True)
class Oracle:
    """Scores, margins and coordinates in float64, in the order of the data set."""

    agreement: dict[str, Floats]  # by mode: the consensus differs
    margins: dict[str, Floats]  # by mode: what the trim reads
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
    return model.eval(), TensorDataset(inputs, labels)


@cache
def gradient_rows(batch_size: int) -> tuple[Ints, Tensor]:
    """The reading order and the float32 rows in it, from the batches that a selection reads."""
    model, dataset = problem()
    order = SeededOrder(Shard(0, 0, N), SEED).indices(0, N)
    gradients = FunctionalGradients(model)
    inputs, labels = dataset.tensors
    parts = torch.from_numpy(order).split(batch_size)
    return order, torch.cat([gradients((inputs[part], labels[part])) for part in parts])


def class_ids_of(balanced: bool) -> Ints:
    labels = problem()[1].tensors[1].numpy()
    return labels if balanced else np.zeros_like(labels)


def oracle_of(rows: Tensor, order: Ints, class_ids: Ints) -> Oracle:
    """The method on rows (N, d) given in reading order, straight from the oracle."""
    exact, ids, n = rows.double().numpy(), class_ids[order], len(rows)
    classes, block = ids.max() + 1, FrequentDirections(SIZE, 1).block_rows
    sketch = reference.FrequentDirections(SIZE, rows.shape[1], block)
    sums = np.zeros((classes, rows.shape[1]))
    for start in range(0, n, block):
        part = slice(start, start + block)
        sketch.update(exact[part])
        length = np.linalg.norm(sketch.project(exact[part], "weighted"), axis=1)
        scale = np.sqrt(sketch.rows_seen) / length
        np.add.at(sums, ids[part], scale[:, None] * exact[part])
    weighted, orthonormal = np.empty((n, SIZE)), np.empty((n, SIZE))
    weighted[order] = sketch.project(exact, "weighted")
    orthonormal[order] = sketch.project(exact, "orthonormal")
    of_mode = {
        "exact": reference.consensus(weighted, class_ids, classes),
        "streaming": reference.unit(sketch.project(sums, "weighted")),  # carried along
    }
    return Oracle(
        {mode: reference.agreement(weighted, class_ids, of) for mode, of in of_mode.items()},
        {mode: reference.margin(weighted, class_ids, of) for mode, of in of_mode.items()},
        orthonormal,
    )


@cache
def oracle(batch_size: int, balanced: bool) -> Oracle:
    order, rows = gradient_rows(batch_size)
    return oracle_of(rows, order, class_ids_of(balanced))


def select(keep: float = 0.3, **options: Any) -> Selection:
    defaults = {"sketch_size": SIZE, "seed": SEED, "batch_size": 64, "trim": "negative"}
    return select_subset(*problem(), keep, **{**defaults, **options})


def expected_subset(
    rule: str, scores: Floats, of: Oracle, margins: Floats, class_ids: Ints, **options: Any
) -> Ints:
    k = round(options.get("keep", 0.3) * len(scores))
    quotas = reference.class_quotas(
        np.bincount(class_ids), k, options.get("quotas", "proportional")
    )
    if rule == "agreement":
        # There is one right answer only where scores are separated: no two at the border are close.
        for class_id, quota in enumerate(quotas):
            ranked = np.sort(scores[class_ids == class_id])[::-1]
            assert quota == len(ranked) or ranked[quota - 1] - ranked[quota] > 1e-6
        return reference.top_k(scores, class_ids, quotas)
    trim = options.get("trim", "negative")
    return reference_rules.by_class(
        reference.herd, of.coordinates, margins, class_ids, quotas, trim
    )


def chosen_by_core(
    rule: str, rows: Tensor, order: Ints, class_ids: Ints, backend: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], Ints]:
    """Scores, margins and subset from the compiled parts alone, rows (N, d) in reading order."""
    sketch = FrequentDirections(SIZE, rows.shape[1], backend=backend)
    for part in rows.split(64):
        sketch.update(part)
    z = {basis: np.empty((len(rows), SIZE), np.float32) for basis in ("weighted", "orthonormal")}
    for basis, coordinates in z.items():
        coordinates[order] = sketch.project(rows, basis=basis)
    ids = class_ids.astype(np.int32)
    consensus = _core.Consensus(int(ids.max()) + 1, SIZE)
    consensus.add(z["weighted"], ids)
    scores, margins = np.empty((2, len(rows)), np.float32)
    scorer = _core.Scorer(consensus.directions(), scores, margins, first=0)
    scorer.score(z["weighted"], ids, np.arange(len(rows)))
    quotas = _core.class_quotas(np.bincount(ids), round(0.3 * len(rows)))
    if rule == "agreement":
        return scores, margins, _core.top_k(scores, ids, quotas)
    chosen = _core.herding(z["orthonormal"], margins, ids, quotas, trim="negative")
    return scores, margins, np.sort(chosen)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"class_balanced": False},  # scores go by class, the rules do not
    {"labels": None},  # one consensus, and no trim
    {"quotas": "equal", "keep": 0.5},
    {"trim": None},
    {"trim": 0.25, "keep": 0.1},
]
backends = pytest.mark.parametrize("backend", ["host", "torch"])
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
every_rule = pytest.mark.parametrize("rule", ["agreement", "herding"])
every_mode = pytest.mark.parametrize("consensus", ["exact", "streaming"])


@every_option
@every_mode
@every_rule
def test_selection_equals_the_oracle(rule: str, consensus: str, options: dict[str, Any]) -> None:
    selection = select(rule=rule, consensus=consensus, **options)
    has_classes = "labels" not in options
    balanced = has_classes and options.get("class_balanced", True)
    of = oracle(64, has_classes)
    options = options if has_classes else options | {"trim": None}
    scores, margins = of.agreement[consensus], of.margins[consensus]
    assert selection.margins is not None
    assert np.abs(selection.scores - scores).max() < 1e-5
    assert np.abs(selection.margins - margins).max() < 1e-5
    expected = expected_subset(rule, scores, of, margins, class_ids_of(balanced), **options)
    assert selection.indices.tolist() == expected.tolist()
    assert 0 < len(expected) < N
    assert (margins < 0).any()  # the negative trim had something to drop
    if has_classes:  # and other examples than by agreement
        assert ((margins < 0) != (of.agreement[consensus] < 0)).any()
    trimmed = selection.settings["trimmed"]
    if rule == "agreement" or options.get("trim", 0) is None:
        assert trimmed == 0
    elif "trim" not in options and options.get("keep", 0.3) == 0.3:  # no quota asks them back
        assert trimmed == (margins < 0).sum()


def test_the_certificate_equals_the_oracle() -> None:
    certificate = select().certificate
    rows = gradient_rows(64)[1]
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
    ours = CountSketch(rows.shape[1], width, SEED)(rows).numpy()
    assert np.abs(ours - compressed).max() < 1e-6
    of = oracle_of(torch.from_numpy(compressed), order, class_ids_of(True))
    selection = select(rule=rule, compress=width)
    scores = of.agreement["exact"]
    assert np.abs(selection.scores - scores).max() < 1e-5
    expected = expected_subset(rule, scores, of, of.margins["exact"], class_ids_of(True))
    assert selection.indices.tolist() == expected.tolist()


@backends
@every_rule
def test_core_chooses_what_the_oracle_chooses_on_synthetic_gradients(
    rule: str, backend: str
) -> None:
    rng = np.random.default_rng(0)
    n, d, classes = 900, 150, 5
    class_ids = rng.choice(classes, size=n, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    rows = rng.normal(size=(classes, d))[class_ids] * rng.choice(
        [1.0, -0.3], size=(n, 1), p=[0.9, 0.1]
    )
    rows += rng.normal(size=(n, 20)) * 0.8 ** np.arange(20) @ rng.normal(size=(20, d))
    order = rng.permutation(n)
    read = torch.from_numpy(rows[order].astype(np.float32))
    of = oracle_of(read, order, class_ids)
    expected_scores = of.agreement["exact"]
    scores, margins, chosen = chosen_by_core(rule, read, order, class_ids, backend)
    assert np.abs(scores - expected_scores).max() < 1e-5
    assert np.abs(margins - of.margins["exact"]).max() < 1e-5
    expected = expected_subset(rule, expected_scores, of, of.margins["exact"], class_ids)
    assert chosen.tolist() == expected.tolist()


@backends
@every_rule
def test_both_paths_choose_what_select_subset_chooses(rule: str, backend: str) -> None:
    order, rows = gradient_rows(64)
    _, _, chosen = chosen_by_core(rule, rows, order, class_ids_of(True), backend)
    assert chosen.tolist() == select(rule=rule).indices.tolist()


@every_mode
@every_rule
def test_threads_do_not_change_the_subset(rule: str, consensus: str) -> None:
    results = []
    for count in (1, 2):
        with threads(count):
            results.append(select(rule=rule, consensus=consensus))
    assert results[0].indices.tolist() == results[1].indices.tolist()
    assert results[0].scores.tolist() == results[1].scores.tolist()
    assert results[0].margins.tolist() == results[1].margins.tolist()


@every_rule
def test_scoring_batches_hardly_matter(rule: str) -> None:
    # A batch's size changes the last bits of its gradients, so only near ties may fall otherwise.
    # Measured: none does, and scores move by 6e-8.
    results = [select(rule=rule, batch_size=size) for size in (32, 64, 256)]
    for other in results[1:]:
        assert np.abs(results[0].scores - other.scores).max() < 1e-5
        assert len(set(results[0].indices) - set(other.indices)) <= 2


def test_scores_and_margins_do_not_depend_on_the_rule() -> None:
    by_agreement = select(rule="agreement")
    other = select(rule="herding")
    assert other.scores.tolist() == by_agreement.scores.tolist()
    assert other.margins.tolist() == by_agreement.margins.tolist()


@every_mode
@pytest.mark.parametrize("trim", ["negative", 0.25, None])
def test_the_trim_reads_margins(trim: Any, consensus: str) -> None:
    class_ids = class_ids_of(True)
    of = select(rule="agreement", consensus=consensus)
    assert of.margins is not None
    quotas = np.bincount(class_ids[of.indices])
    left = np.concatenate(
        [
            members[reference.trimmed(of.margins[members], int(quota), trim)]
            for members, quota in zip(
                map(np.flatnonzero, class_ids == np.c_[:CLASSES]), quotas, strict=True
            )
        ]
    )
    herded = select(consensus=consensus, trim=trim)
    drawn = select(consensus=consensus, trim=trim, draw="random")
    assert herded.settings["trimmed"] == drawn.settings["trimmed"] == N - len(left)
    assert np.isin(herded.indices, left).all()
    assert drawn.draws is not None
    assert np.sort(drawn.draws.order).tolist() == np.sort(left).tolist()


@every_mode
@pytest.mark.parametrize("balanced", [True, False])
def test_the_order_of_the_draws_is_that_of_the_oracle(consensus: str, balanced: bool) -> None:
    # 40 of the head: further on, equal examples are ordered by the last bits of a float32 kernel.
    selection = select(
        draw="rotate", consensus=consensus, class_balanced=balanced, trim=0.25, keep=0.3
    )
    assert selection.draws is not None
    of, class_ids = oracle(64, True), class_ids_of(balanced)
    quotas = reference.class_quotas(np.bincount(class_ids), len(selection))
    expected = reference_rules.herding_order(
        of.coordinates, of.margins[consensus], class_ids, quotas, 0.25
    )
    draws = selection.draws
    assert draws.quotas.tolist() == quotas.tolist()
    assert selection.settings["trimmed"] == N - len(expected)
    assert np.sort(draws.order).tolist() == np.sort(expected).tolist()
    assert class_ids[draws.order].tolist() == class_ids[expected].tolist()
    for start in draws.starts[:-1]:
        assert draws.order[start : start + 40].tolist() == expected[start : start + 40].tolist()
    if len(draws.classes) == len(quotas):  # one block a class: epoch 0 is the fixed subset
        fixed = select(consensus=consensus, class_balanced=balanced, trim=0.25, keep=0.3)
        assert selection.indices.tolist() == fixed.indices.tolist()


@every_mode
def test_weights_equal_the_oracle(consensus: str) -> None:
    selection = select(consensus=consensus, keep_coordinates=True).find_weights()
    of, class_ids = oracle(64, True), class_ids_of(True)
    left = np.flatnonzero(of.margins[consensus] >= 0)
    assert selection.weights is not None
    assert selection.coordinates is not None
    rows = selection.coordinates.rows  # rounded to float16: the answer for these is exact
    expected = reference_rules.weights(rows, class_ids, left, selection.indices)
    assert selection.weights.tolist() == expected.tolist()
    assert selection.weights.sum() == N - selection.settings["trimmed"] < N
    unrounded = reference_rules.weights(of.coordinates, class_ids, left, selection.indices)
    moved = np.abs(selection.weights - unrounded).sum() / 2
    assert moved <= 2  # of 420 examples; measured: 0


def test_weights_of_the_paper_s_rule_equal_the_oracle() -> None:
    of, class_ids = oracle(64, True), class_ids_of(True)
    selection = select(rule="agreement", keep_coordinates=True).find_weights()
    everything = np.arange(N)  # it trims nothing
    assert selection.coordinates is not None
    rows, units = selection.coordinates.rows, reference.unit(of.coordinates)
    assert np.abs(np.abs(rows) - np.abs(units)).max() < 2e-3  # axes may point the other way
    expected = reference_rules.weights(rows, class_ids, everything, selection.indices)
    assert selection.weights is not None
    assert selection.weights.tolist() == expected.tolist()
