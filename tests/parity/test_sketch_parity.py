"""The sketch against the float64 oracle, the two backends and any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch
from rule_cases import scored
from torch import Tensor

from sage_torch import FrequentDirections, _core

Floats = npt.NDArray[np.float64]
BASES: tuple[reference.Basis, ...] = ("weighted", "orthonormal")
CLASSES = 4
# (n, d, l): pending rows or none; columns within one chunk, over several (2,048 columns on the
# host, 8,192 and 32,768 in torch) and with a rest.
BLOCK = {size: FrequentDirections(size, 1).block_rows for size in range(1, 20)}
SIZES = [(200, 30, 8), (64, 24, 4), (37, 300, 8), (100, 2049, 16), (40, 8300, 5), (20, 33001, 3)]

# Lengths and angles are known to 1e-5. A single direction of the basis is so only to the rounding
# over the distance of its singular value to the next, which turns close ones into each other.
BY_COORDINATE = 1e-4

backends = pytest.mark.parametrize("backend", ["host", "torch"])
sizes = pytest.mark.parametrize(("n", "d", "size"), SIZES)


@cache
def gradients(n: int, d: int) -> tuple[Tensor, npt.NDArray[np.int32]]:
    """Rows (n, d) float32 with class structure and a decaying spectrum, and their classes."""
    rng = np.random.default_rng(0)
    class_ids = rng.integers(0, CLASSES, size=n).astype(np.int32)
    centres = rng.normal(size=(CLASSES, d)) * (1 + np.arange(CLASSES))[:, None]
    within = rng.normal(size=(n, 12)) * 0.7 ** np.arange(12) @ rng.normal(size=(12, d))
    rows = centres[class_ids] + within + 0.3 * rng.normal(size=(n, d))
    rows *= rng.uniform(0.2, 2.0, size=(n, 1))
    return torch.from_numpy(rows.astype(np.float32)), class_ids


@cache
def oracle_of(n: int, d: int, size: int) -> reference.FrequentDirections:
    sketch = reference.FrequentDirections(size, d, BLOCK[size])
    sketch.update(gradients(n, d)[0].double().numpy())
    return sketch


@cache
def oracle_projection(n: int, d: int, size: int, basis: reference.Basis) -> Floats:
    return oracle_of(n, d, size).project(gradients(n, d)[0].double().numpy(), basis)


def sketch_of(n: int, d: int, size: int, backend: str) -> FrequentDirections:
    sketch = FrequentDirections(size, d, backend=backend)
    sketch.update(gradients(n, d)[0])
    return sketch


def known_to(n: int, d: int, size: int) -> float:
    """How well float32 products know the shrinkage: each shrink an eigenvalue, to 1e-7 lambda_1."""
    shrinks = -(-n // BLOCK[size])
    return float(shrinks * 1e-7 * oracle_of(n, d, size).singular_values[0] ** 2)


def gram_error(ours: Floats, theirs: Floats) -> float:
    """|S^T S - T^T T| / |T^T T|, spectral norms, without any (d, d) matrix."""
    basis, _ = np.linalg.qr(np.concatenate([ours, theirs]).T)
    ours, theirs = ours @ basis, theirs @ basis
    difference = np.linalg.norm(ours.T @ ours - theirs.T @ theirs, 2)
    return float(difference / np.linalg.norm(theirs, 2) ** 2)


def aligned(ours: Floats, theirs: Floats) -> Floats:
    """Flip coordinates (columns), whose signs are free, as the oracle has them."""
    return ours * np.where((ours * theirs).sum(axis=0) < 0, -1, 1)


def relative(ours: Floats, theirs: Floats) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@backends
@sizes
def test_sketch_equals_the_oracle(n: int, d: int, size: int, backend: str) -> None:
    ours, oracle = sketch_of(n, d, size, backend), oracle_of(n, d, size)
    assert gram_error(ours.matrix().double().numpy(), oracle.matrix()) < 1e-5
    assert ours.shrinkage == pytest.approx(oracle.shrinkage, rel=1e-5, abs=known_to(n, d, size))
    assert ours.shrinkage > 0
    assert ours.squared_norm == pytest.approx(oracle.squared_norm, rel=1e-12)
    assert ours.rows_seen == oracle.rows_seen == n
    values = oracle.singular_values
    assert ours.singular_values() == pytest.approx(values, abs=1e-5 * values[0])


@backends
@sizes
@pytest.mark.parametrize("basis", BASES)
def test_projection_equals_the_oracle(
    n: int, d: int, size: int, backend: str, basis: reference.Basis
) -> None:
    z = sketch_of(n, d, size, backend).project(gradients(n, d)[0], basis=basis).double().numpy()
    expected = oracle_projection(n, d, size, basis)
    assert relative(z @ z.T, expected @ expected.T) < 1e-5
    assert relative(aligned(z, expected), expected) < BY_COORDINATE


@backends
@sizes
@pytest.mark.parametrize("basis", BASES)
def test_consensus_and_agreement_equal_the_oracle(
    n: int, d: int, size: int, backend: str, basis: reference.Basis
) -> None:
    rows, class_ids = gradients(n, d)
    z = sketch_of(n, d, size, backend).project(rows, basis=basis).numpy()
    expected = oracle_projection(n, d, size, basis)
    consensus = _core.Consensus(CLASSES, size)
    consensus.add(z, class_ids)
    directions = reference.consensus(expected, class_ids, CLASSES)
    assert np.abs(aligned(consensus.directions(), directions) - directions).max() < BY_COORDINATE
    scores, _ = scored(z, class_ids, consensus.directions())
    assert np.abs(scores - reference.agreement(expected, class_ids, directions)).max() < 1e-5


def carried_directions(
    rows: Floats, class_ids: npt.NDArray[np.int32], size: int
) -> tuple[Floats, reference.FrequentDirections]:
    """The streaming consensus as method.md defines it, block by block in float64.

    Each gradient is added, divided by its length under the sketch of the shrink that took it in
    and multiplied by the root of the rows seen by then. The sum of a class is projected at the end.
    """
    block = BLOCK[size]
    sketch = reference.FrequentDirections(size, rows.shape[1], block)
    sums = np.zeros((CLASSES, rows.shape[1]))
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        sketch.update(rows[part])
        length = np.linalg.norm(sketch.project(rows[part], "weighted"), axis=1)
        root = np.sqrt(sketch.rows_seen)
        np.add.at(sums, class_ids[part], (root / length)[:, None] * rows[part])
    return reference.unit(sketch.project(sums, "weighted")), sketch


@backends
@sizes
def test_carried_consensus_equals_its_definition(n: int, d: int, size: int, backend: str) -> None:
    rows, class_ids = gradients(n, d)
    ours = FrequentDirections(size, d, backend=backend)
    ours.carry_consensus()
    for start in range(0, n, 13):  # not the shrinks' own places
        ours.update(rows[start : start + 13], class_ids[start : start + 13])
    directions = ours.class_directions().double().numpy()
    directions = reference.unit(directions)[:CLASSES]
    expected, oracle = carried_directions(rows.double().numpy(), class_ids, size)
    assert np.abs(aligned(directions, expected) - expected).max() < BY_COORDINATE
    z = ours.project(rows).double().numpy()
    z_expected = oracle.project(rows.double().numpy(), "weighted")
    scores = reference.agreement(z, class_ids, directions)
    assert np.abs(scores - reference.agreement(z_expected, class_ids, expected)).max() < 1e-5
    if size >= 8:  # and it is close to what it stands for: the exact consensus
        exact = reference.consensus(z_expected, class_ids, CLASSES)
        assert (expected * exact).sum(axis=1).min() > 0.99


@backends
def test_carrying_a_consensus_does_not_change_the_sketch(backend: str) -> None:
    rows, class_ids = gradients(150, 40)
    plain, carrying = (FrequentDirections(8, 40, backend=backend) for _ in range(2))
    carrying.carry_consensus()
    for start in range(0, 150, 32):
        plain.update(rows[start : start + 32])
        carrying.update(rows[start : start + 32], class_ids[start : start + 32])
    assert torch.equal(carrying.matrix(), plain.matrix())
    assert carrying.shrinkage == plain.shrinkage


@backends
def test_a_merged_consensus_is_that_of_both_streams(backend: str) -> None:
    rows, class_ids = gradients(300, 40)
    ours, other = (FrequentDirections(16, 40, backend=backend) for _ in range(2))
    for sketch, part in ((ours, slice(0, 130)), (other, slice(130, 300))):
        sketch.carry_consensus()
        ids = class_ids[part] if sketch is other else class_ids[part] % 2  # fewer classes here
        sketch.update(rows[part], ids)
    class_ids[:130] %= 2
    ours.merge(other)
    directions = ours.class_directions().double().numpy()
    z = ours.project(rows).double().numpy()
    exact = reference.consensus(z, class_ids, CLASSES)
    assert (reference.unit(directions[:CLASSES]) * exact).sum(axis=1).min() > 0.99


@backends
def test_forgetting_is_a_stream_of_shorter_rows(backend: str) -> None:
    rows, class_ids = gradients(180, 40)
    ours, scaled = (FrequentDirections(8, 40, backend=backend) for _ in range(2))
    for sketch in (ours, scaled):
        sketch.carry_consensus()
    ours.update(rows[:100], class_ids[:100])
    ours.forget(0.25)
    ours.update(rows[100:], class_ids[100:])
    scaled.update(0.5 * rows[:100], class_ids[:100])
    scaled.forget(1.0)  # shrinks what waits, as forgetting does
    state = scaled.state_dict()
    past = state["consensus"]
    scaled.load_state_dict(state | {"weight": 25.0})  # rows of half the length count as before
    scaled.update(rows[100:], class_ids[100:])
    assert torch.allclose(ours.matrix(), scaled.matrix(), atol=1e-4)
    assert ours.shrinkage == pytest.approx(scaled.shrinkage, rel=1e-4)
    assert ours.squared_norm == pytest.approx(scaled.squared_norm, rel=1e-6)
    assert ours.rows_seen == 180
    assert ours.state_dict()["weight"] == pytest.approx(0.25 * 100 + 80)
    old, new = (sketch.state_dict()["consensus"] for sketch in (scaled, ours))
    # Sums of a sketch and of rows half as long are twice as large; forgetting takes a quarter.
    assert torch.allclose(old - new, (1 - 0.25 / 2) * past, atol=1e-5 * float(past.abs().max()))


@backends
def test_merge_equals_the_oracle(backend: str) -> None:
    rows, _ = gradients(96, 50)  # 64 and 32 rows: nothing waits, so both shrink at the same places
    ours, other = (FrequentDirections(8, 50, backend=backend) for _ in range(2))
    oracle, oracle_other = (reference.FrequentDirections(8, 50, BLOCK[8]) for _ in range(2))
    for part, sketches in [(rows[:64], (ours, oracle)), (rows[64:], (other, oracle_other))]:
        sketches[0].update(part)
        sketches[1].update(part.double().numpy())
    ours.merge(other)
    oracle.merge(oracle_other)
    assert gram_error(ours.matrix().double().numpy(), oracle.matrix()) < 1e-5
    assert ours.shrinkage == pytest.approx(oracle.shrinkage, rel=1e-5)


@sizes
def test_host_path_equals_device_path(n: int, d: int, size: int) -> None:
    host, device = (sketch_of(n, d, size, backend) for backend in ("host", "torch"))
    assert gram_error(host.matrix().double().numpy(), device.matrix().double().numpy()) < 1e-6
    assert host.shrinkage == pytest.approx(device.shrinkage, rel=1e-5, abs=known_to(n, d, size))
    assert host.squared_norm == pytest.approx(device.squared_norm, rel=1e-12)
    for basis in BASES:
        ours, theirs = (
            s.project(gradients(n, d)[0], basis=basis).double().numpy() for s in (host, device)
        )
        assert relative(ours @ ours.T, theirs @ theirs.T) < 1e-5
        assert relative(aligned(ours, theirs), theirs) < BY_COORDINATE
    # A state moves from one path to the other.
    device.load_state_dict(host.state_dict())
    assert gram_error(device.matrix().double().numpy(), host.matrix().double().numpy()) < 1e-6


@sizes
def test_threads_do_not_change_a_bit_on_the_host(n: int, d: int, size: int) -> None:
    rows, class_ids = gradients(n, d)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            sketch = FrequentDirections(size, d, backend="host")
            sketch.carry_consensus()
            sketch.update(rows, class_ids)
            results.append([sketch.matrix(), sketch.project(rows), sketch.class_directions()])
    for others in results[1:]:
        for ours, theirs in zip(results[0], others, strict=True):
            assert torch.equal(ours, theirs)


@backends
def test_autocast_and_reduced_precision_are_left_out(backend: str) -> None:
    rows, _ = gradients(100, 2049)
    plain = sketch_of(100, 2049, 16, backend)
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = sketch_of(100, 2049, 16, backend)
            z = inside.project(rows)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert torch.equal(inside.matrix(), plain.matrix())
    assert torch.equal(z, plain.project(rows))


@backends
def test_inference_mode_and_grad_mode_do_not_matter(backend: str) -> None:
    rows, _ = gradients(200, 30)
    plain = sketch_of(200, 30, 8, backend)
    with torch.inference_mode():
        inside = FrequentDirections(8, 30, backend=backend)
        inside.update(rows[:50].clone())
    inside.update(rows[50:])
    assert torch.equal(inside.matrix(), plain.matrix())
    with torch.no_grad():
        without = inside.project(rows)
    assert torch.equal(without, plain.project(rows.clone().requires_grad_()))
