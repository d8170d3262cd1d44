"""A sketch that grows on the way promises what one of a fixed size does, and loses nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from property.test_frequent_directions import (
    KINDS,
    assert_same_state,
    make_rows,
    underestimate,
)
from rounding import UNIT

from sage_torch import FrequentDirections

backends = pytest.mark.parametrize("backend", ["host", "torch"])
checked = settings(max_examples=80, derandomize=True, deadline=None, database=None)


@backends
@checked
@given(data=st.data())
def test_the_bound_holds_wherever_a_sketch_grows(backend: Any, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n, dim = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 24))
    rows = make_rows(data.draw(st.sampled_from(KINDS)), rng, n, dim)
    first = data.draw(st.integers(1, 4))
    places = sorted(data.draw(st.lists(st.integers(0, n), max_size=3)))
    sketch = FrequentDirections(first, dim, backend=backend)
    shrinks = 0
    for start, stop in zip([0, *places], [*places, n], strict=True):
        if stop > start:
            sketch.update(rows[start:stop])
            shrinks += (stop - start) // sketch.block_rows + 1
        if stop < n:
            before = sketch.matrix()
            size, delta = sketch.sketch_size, sketch.shrinkage
            grown = size + data.draw(st.integers(0, 5))
            sketch.grow(grown)
            assert sketch.sketch_size == grown
            assert sketch.rows_seen == stop
            # Nothing that the stream has lost so far comes back or is lost again: waiting rows are
            # shrunk later, by less. An eigenvalue that is 0 comes out as float64 rounds it.
            noise = 1e-15 * sketch.squared_norm
            assert sketch.shrinkage <= delta * (1 + 1e-5) + noise
            assert sketch.matrix().square().sum() >= before.square().sum() * (1 - 1e-5)
    exact = rows.double().numpy()
    energies = np.linalg.svd(exact, compute_uv=False) ** 2
    largest = float(energies[0])
    slack = (shrinks + 2) * 2 * UNIT * (2 + (2.5 * sketch.sketch_size + 16) ** 0.5) * largest
    gaps = underestimate(exact, sketch)
    assert gaps[0] >= -slack
    assert gaps[-1] <= sketch.shrinkage + slack
    assert sketch.squared_norm == pytest.approx(float((exact**2).sum()), rel=1e-6)
    # At least as good as the certificate of the size that it began with.
    for kept in range(min(first, len(energies))):
        assert sketch.shrinkage <= energies[kept:].sum() / (first - kept) + slack


@backends
def test_a_sketch_that_grows_before_it_lost_anything_is_the_larger_one(backend: Any) -> None:
    rows = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    ids = (torch.arange(200) % 3).to(torch.int32).numpy()
    grown, large = (FrequentDirections(size, 30, backend=backend) for size in (4, 12))
    for sketch in (grown, large):
        sketch.carry_consensus()
        sketch.update(rows[:10], ids[:10])  # they wait
    grown.grow(12)
    assert_same_state(grown.state_dict(), large.state_dict())
    for sketch in (grown, large):
        sketch.update(rows[10:], ids[10:])
    assert_same_state(grown.state_dict(), large.state_dict())


@backends
def test_the_consensus_goes_on(backend: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(3, 40, generator=generator)
    ids = torch.arange(600) % 3
    rows = centres[ids] + torch.randn(600, 40, generator=generator)
    sketch = FrequentDirections(8, 40, backend=backend)
    sketch.carry_consensus()
    class_ids = ids.to(torch.int32).numpy()
    for start in range(0, 600, 100):
        sketch.update(rows[start : start + 100], class_ids[start : start + 100])
        if start in (100, 300):
            sketch.grow(2 * sketch.sketch_size)
    carried = torch.nn.functional.normalize(sketch.class_directions())
    z = torch.nn.functional.normalize(sketch.project(rows))
    exact = torch.nn.functional.normalize(torch.stack([z[ids == one].sum(0) for one in range(3)]))
    assert carried.shape == (3, 32)
    assert ((carried * exact).sum(1) > 0.999).all()


def test_a_grown_sketch_is_saved_merged_and_forgets() -> None:
    rows = torch.randn(300, 20, generator=torch.Generator().manual_seed(2))
    sketch = FrequentDirections(4, 20)
    sketch.update(rows[:101])
    sketch.grow(16)
    copy = FrequentDirections(16, 20)
    copy.load_state_dict(sketch.state_dict())
    for one in (sketch, copy):
        one.update(rows[101:250])
    assert_same_state(sketch.state_dict(), copy.state_dict())
    with pytest.raises(ValueError, match=r"shape \(4, 20\)"):
        FrequentDirections(4, 20).load_state_dict(sketch.state_dict())
    other = FrequentDirections(16, 20)
    other.update(rows[250:])
    sketch.merge(other)
    gaps = underestimate(rows.double().numpy(), sketch)
    assert gaps[0] > -1e-3
    assert gaps[-1] <= sketch.shrinkage + 1e-3
    sketch.forget(0.5)
    assert sketch.matrix().shape == (16, 20)


def test_shrinking_is_refused_and_changes_nothing() -> None:
    sketch = FrequentDirections(8, 5)
    sketch.update(torch.ones(3, 5))
    state = sketch.state_dict()
    with pytest.raises(ValueError, match=r"sketch_size of at least 8 .*got 7"):
        sketch.grow(7)
    for wrong in (0, -1, 2**70):
        with pytest.raises(ValueError, match="sketch_size of at least 1"):
            sketch.grow(wrong)
    assert_same_state(sketch.state_dict(), state)
    sketch.grow(8)
    assert_same_state(sketch.state_dict(), state)


@backends
def test_coordinates_go_along_when_a_sketch_grows(backend: Any) -> None:
    """Below the rank nothing is lost, so that carried coordinates are the projection itself."""
    rng = np.random.default_rng(5)
    rows = torch.from_numpy(rng.normal(size=(300, 4)) @ rng.normal(size=(4, 60))).float()
    sketch = FrequentDirections(6, 60, backend=backend)
    sketch.carry_coordinates()
    for start, stop, size in ((0, 70, 9), (70, 200, 18), (200, 300, 18)):
        sketch.update(rows[start:stop])
        sketch.grow(size)
    wanted = sketch.project(rows)
    found = sketch.take_coordinates()
    assert found.shape == (300, 18)
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-3 * float(wanted.abs().max()))
