"""Rows given by their factors, or as half floats, against the same rows formed in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sage_torch import FrequentDirections, SageError

BACKENDS = ("host", "torch")
OUTPUTS, INPUTS = 7, 150  # of the layer: rows of 1,050 products, and 7 for the bias


def factors(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(count, OUTPUTS, generator=generator)
    return delta, torch.randn(count, INPUTS, generator=generator)


def formed(delta: Tensor, hidden: Tensor, *, bias: bool) -> Tensor:
    products = (delta[:, :, None] * hidden[:, None]).flatten(1)
    return torch.cat([products, delta], dim=1) if bias else products


def sketches(backend: str, *, bias: bool) -> tuple[FrequentDirections, FrequentDirections]:
    dim = OUTPUTS * (INPUTS + bias)
    return tuple(FrequentDirections(16, dim, backend=backend) for _ in range(2))  # type: ignore[return-value]


def assert_same(ours: FrequentDirections, plain: FrequentDirections) -> None:
    # Rows of nearly equal length may turn into each other: what they span does not.
    one, other = (sketch.matrix().double() for sketch in (ours, plain))
    assert (one.T @ one - other.T @ other).norm() <= 1e-5 * (other.T @ other).norm()
    values = plain.singular_values()
    np.testing.assert_allclose(ours.singular_values(), values, atol=1e-5 * values[0])
    np.testing.assert_allclose(ours.shrinkage, plain.shrinkage, rtol=1e-5)
    np.testing.assert_allclose(ours.squared_norm, plain.squared_norm, rtol=1e-6)
    assert ours.rows_seen == plain.rows_seen


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
def test_factors_give_the_sketch_of_the_formed_rows(backend: str, bias: bool) -> None:
    ours, plain = sketches(backend, bias=bias)
    delta, hidden = factors(200)
    for batch in zip(delta.split(33), hidden.split(33), strict=True):  # some wait, none is whole
        ours.update_outer(*batch, bias=bias)
        plain.update(formed(*batch, bias=bias))
        assert_same(ours, plain)
    for basis in ("weighted", "orthonormal"):
        z = ours.project_outer(delta, hidden, basis=basis, bias=bias)
        wanted = ours.project(formed(delta, hidden, bias=bias), basis=basis)
        torch.testing.assert_close(z, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_factors_carry_a_consensus_and_go_on_from_a_state(backend: str) -> None:
    ours, plain = sketches(backend, bias=True)
    delta, hidden = factors(101)
    ids = (np.arange(101) % 3).astype(np.int32)
    for sketch in (ours, plain):
        sketch.carry_consensus()
    ours.update_outer(delta[:40], hidden[:40], ids[:40])
    state, ours = ours.state_dict(), sketches(backend, bias=True)[0]
    assert state["pending"].shape == (40 % 24, OUTPUTS + INPUTS)
    ours.load_state_dict(state)
    ours.update_outer(delta[40:], hidden[40:], ids[40:])
    plain.update(formed(delta, hidden, bias=True), ids)
    assert_same(ours, plain)
    consensus = [sketch.class_directions() @ sketch.matrix() for sketch in (ours, plain)]
    assert (consensus[0] - consensus[1]).norm() <= 1e-4 * consensus[1].norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_rows_and_factors_may_take_turns_and_merge(backend: str) -> None:
    ours, _ = sketches(backend, bias=True)
    delta, hidden = factors(90)
    rows = formed(delta, hidden, bias=True)
    ours.update(rows[:10])
    ours.update_outer(delta[10:50], hidden[10:50])
    other = FrequentDirections(16, rows.shape[1], backend=backend)
    other.update_outer(delta[50:], hidden[50:])
    ours.merge(other)
    gram = (rows.T @ rows - ours.matrix().T @ ours.matrix()).double()
    eigenvalues = torch.linalg.eigvalsh(gram)
    rounding = 1e-5 * float(rows.square().sum())
    assert ours.rows_seen == 90
    assert eigenvalues[0] >= -rounding
    assert eigenvalues[-1] <= ours.shrinkage + rounding


def test_no_row_is_formed() -> None:
    """A formed row has 2,097,664 numbers; a waiting one would keep 4,608."""
    sketch = FrequentDirections(2, 512 * 4_097)
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(16, 512, generator=generator)
    hidden = torch.randn(16, 4_096, generator=generator)
    sketch.update_outer(delta, hidden)
    assert sketch.state_dict()["pending"].numel() == 0  # 16 rows are one block, read in place
    z = sketch.project_outer(delta[:3], hidden[:3])
    one = torch.cat([torch.outer(delta[1], hidden[1]).flatten(), delta[1]])
    torch.testing.assert_close(z[1], sketch.matrix() @ one, rtol=1e-3, atol=1e-2)


def test_bad_factors_are_refused_and_nothing_is_added() -> None:
    sketch, _ = sketches("host", bias=True)
    delta, hidden = factors(5)
    with pytest.raises(
        ValueError, match=r"delta \(n, C\) and hidden \(n, H\) with C \* \(H \+ 1\)"
    ):
        sketch.update_outer(delta, hidden[:, 1:])
    with pytest.raises(ValueError, match="C \\* H = dim"):
        sketch.update_outer(delta, hidden, bias=False)
    with pytest.raises(ValueError, match="expected delta"):
        sketch.update_outer(delta[:3], hidden)
    with pytest.raises(ValueError, match="empty batch"):
        sketch.update_outer(delta[:0], hidden[:0])
    hidden[3, 2] = torch.inf
    with pytest.raises(SageError) as caught:
        sketch.update_outer(delta, hidden)
    assert (caught.value.row, sketch.rows_seen) == (3, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_floats_are_read_in_place(dtype: torch.dtype) -> None:
    rows = torch.randn(100, 1_500, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, plain = (FrequentDirections(16, 1_500) for _ in range(2))
    for part in rows.split([10, 70, 20]):
        ours.update(part)
        plain.update(part.float())
    assert torch.equal(ours.matrix(), plain.matrix())
    assert torch.equal(ours.project(rows), plain.project(rows.float()))
    assert ours.squared_norm == plain.squared_norm


def test_a_projection_does_not_depend_on_the_rows_beside_it() -> None:
    rows = torch.randn(90, 2_500, generator=torch.Generator().manual_seed(2))
    sketch = FrequentDirections(16, 2_500)
    sketch.update(rows)
    together = sketch.project(rows)
    for size in (1, 7, 32):
        assert torch.equal(torch.cat([sketch.project(part) for part in rows.split(size)]), together)
