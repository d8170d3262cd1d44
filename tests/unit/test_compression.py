"""The count sketch: one seeded linear map, whichever code computes it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sage_torch import CountSketch, _core
from sage_torch.gradients.compressed import DEFAULT_WIDTH, CompressedGradients, compressed

checked = settings(max_examples=60, derandomize=True, deadline=None, database=None)
# (D, d): one run, several, a rest, more buckets than coordinates, more runs than one torch step.
SHAPES = [(1, 1), (5, 9), (64, 64), (10, 4), (129, 64), (1000, 37), (700, 5), (3000, 17)]


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def written_out(dim: int, out_dim: int, seed: int) -> Tensor:
    """The map as a matrix (D, d): coordinate j goes to one bucket with one sign."""
    table = _core.CountSketch(dim, out_dim, seed)
    signs, shifts = table.signs(0, dim), table.shifts()
    j = np.arange(dim)
    matrix = np.zeros((dim, out_dim))
    matrix[j, (j % out_dim + shifts[j // out_dim]) % out_dim] = signs
    return torch.from_numpy(matrix)


@checked
@given(
    shape=st.one_of(st.sampled_from(SHAPES), st.tuples(st.integers(1, 400), st.integers(1, 90))),
    seed=st.integers(0, 2**63 - 1),
    n=st.integers(1, 20),
)
def test_both_paths_equal_the_map_written_out(shape: tuple[int, int], seed: int, n: int) -> None:
    rows = torch.randn(n, shape[0], generator=torch.Generator().manual_seed(n))
    sketch = CountSketch(*shape, seed)
    expected = rows.double() @ written_out(*shape, seed)
    rounding = 1e-7 * (1 + shape[0] // shape[1]) * rows.abs().max()  # of so many additions
    for ours in (sketch(rows), sketch._on_device(rows)):
        assert ours.dtype == torch.float32
        assert (ours - expected).abs().max() <= rounding
    if shape[0] <= 2 * shape[1]:  # at most one addition: no order to disagree on
        assert torch.equal(sketch(rows), sketch._on_device(rows))


@checked
@given(shape=st.tuples(st.integers(1, 300), st.integers(1, 50)), seed=st.integers(0, 2**63 - 1))
def test_tables_are_complete(shape: tuple[int, int], seed: int) -> None:
    dim, out_dim = shape
    table = _core.CountSketch(dim, out_dim, seed)
    signs, shifts = table.signs(0, dim), table.shifts()
    assert set(signs.tolist()) <= {-1, 1}
    assert shifts.shape == (-(-dim // out_dim),)
    assert ((shifts >= 0) & (shifts < out_dim)).all()
    parts = [table.signs(start, min(7, dim - start)) for start in range(0, dim, 7)]
    assert np.concatenate(parts).tolist() == signs.tolist()


def test_inner_products_are_unbiased_over_seeds() -> None:
    dim, out_dim, seeds = 300, 32, 1500
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, dim))
    pair = torch.from_numpy(np.stack([x, 0.6 * x + 0.8 * noise]).astype(np.float32))
    truth, squares = float(pair[0] @ pair[1]), float((pair[0] @ pair[0]) * (pair[1] @ pair[1]))
    estimates = np.empty(seeds)
    for seed in range(seeds):
        z = CountSketch(dim, out_dim, seed)(pair)
        estimates[seed] = float(z[0] @ z[1])
    assert abs(estimates.mean() - truth) < 4 * estimates.std() / np.sqrt(seeds)
    assert estimates.var() < 1.15 * (squares + truth**2) / out_dim


def test_signs_and_shifts_are_even() -> None:
    signs = _core.CountSketch(200_000, 10, 1).signs(0, 200_000).astype(np.float64)
    assert abs(signs.mean()) < 4.5 / np.sqrt(len(signs))
    assert abs((signs[1:] * signs[:-1]).mean()) < 4.5 / np.sqrt(len(signs))
    counts = np.bincount(_core.CountSketch(200_000, 10, 1).shifts(), minlength=10)
    assert (np.abs(counts - 2000) < 4.5 * np.sqrt(2000)).all()


def test_the_map_is_linear() -> None:
    sketch = CountSketch(1000, 37, seed=4)
    x, y = torch.randn(2, 3, 1000, generator=torch.Generator().manual_seed(0))
    together = sketch(2 * x - 3 * y)
    assert torch.allclose(together, 2 * sketch(x) - 3 * sketch(y), atol=1e-4)
    assert not sketch(torch.zeros(2, 1000)).any()


def test_the_seed_names_the_map() -> None:
    rows = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(CountSketch(500, 20, 7)(rows), CountSketch(500, 20, 7)(rows))
    assert not torch.equal(CountSketch(500, 20, 7)(rows), CountSketch(500, 20, 8)(rows))
    # Saved results depend on it, so the map itself must never change.
    table = _core.CountSketch(64, 16, 0)
    assert table.shifts().tolist() == [3, 6, 14, 3]
    signs = "".join("+" if sign > 0 else "-" for sign in table.signs(0, 16))
    assert signs == "----++-++-----+-"


def test_batches_and_threads_give_the_same_bits() -> None:
    rows = torch.randn(19, 3000, generator=torch.Generator().manual_seed(0))
    sketch, before = CountSketch(3000, 64), torch.get_num_threads()
    together = sketch(rows)
    assert torch.equal(together, torch.cat([sketch(row[None]) for row in rows]))
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(together, sketch(rows))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_other_floats_and_layouts(dtype: torch.dtype) -> None:
    sketch = CountSketch(40, 8)
    rows = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = sketch(rows.T.float().contiguous())
    assert torch.equal(sketch(rows.T), expected)
    negated = torch._neg_view(rows.T.contiguous())  # the minus sign is not in memory yet
    assert torch.equal(sketch(negated), -expected)
    with_graph = sketch(rows.T.clone().requires_grad_())
    assert not with_graph.requires_grad
    assert torch.equal(with_graph, expected)


@pytest.mark.usefixtures("float64_by_default")
def test_the_default_dtype_does_not_matter() -> None:
    sketch, rows = CountSketch(40, 8), torch.ones(3, 40, dtype=torch.float32)
    for result in (sketch(rows), sketch._on_device(rows)):
        assert result.dtype == torch.float32


def test_no_rows_are_no_problem() -> None:
    assert CountSketch(10, 4)(torch.empty(0, 10)).shape == (0, 4)


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (-1, 4), (4, -3), (-(10**30), 4)])
def test_empty_sides_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"(dim|out_dim) of at least 1"):
        CountSketch(*sizes)


@pytest.mark.parametrize("shape", [(10,), (2, 9), (2, 10, 1)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected gradients of shape \(n, 10\), got \("):
        CountSketch(10, 4)(torch.ones(shape))


class Linear:
    """A gradient computer whose rows are its batch."""

    dim = 100

    def __init__(self) -> None:
        self.most_rows = 0

    def __call__(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.most_rows = max(self.most_rows, len(batch[0]))
        return batch[0]

    def describe(self) -> str:
        return "rows as they are"


def batch_of(n: int) -> tuple[Tensor, Tensor]:
    rows = torch.randn(n, 100, generator=torch.Generator().manual_seed(0))
    return rows, torch.zeros(n, dtype=torch.int64)


def test_compressed_gradients_stay_within_the_memory_budget() -> None:
    inner, batch = Linear(), batch_of(23)
    gradients = compressed(inner, 16, seed=3, memory_budget=8 * 100 * 5)
    assert torch.equal(gradients(batch), CountSketch(100, 16, 3)(batch[0]))
    assert inner.most_rows == 5
    assert gradients.dim == 16
    assert gradients.describe() == "rows as they are; count sketch to 16"


def test_short_gradients_are_left_alone() -> None:
    inner = Linear()

    def choose(compress: str | int | None) -> object:
        return compressed(inner, compress, seed=0, memory_budget=2**20)

    assert choose(None) is inner
    assert choose("auto") is inner  # 100 coordinates are fewer than 8,192
    assert choose(100) is inner
    assert isinstance(choose(99), CompressedGradients)
    assert DEFAULT_WIDTH == 8192
