"""The seeded maps of one parameter's gradient: orthonormal, unbiased, the same everywhere."""

from __future__ import annotations

import math

import pytest
import torch

from sage_torch.gradients.projected.maps import Block, SideMap

CPU = torch.device("cpu")
# Never to be changed: what was saved under a seed must fit what is computed later.
GOLDEN = [
    [-0.347379, 1.285143, -0.331778, -0.465254, -0.250061, 0.915787],
    [0.969585, 0.584097, 0.944001, 0.407849, 0.754486, 0.303330],
]


def side_map(side: int, width: int, seed: int = 0, name: str = "layer.weight") -> torch.Tensor:
    return SideMap(side, width, seed, name).matrix(CPU)


@pytest.mark.parametrize(("side", "width"), [(5, 2), (64, 16), (300, 7), (17, 16), (9, 1)])
def test_rows_are_orthonormal_and_scaled(side: int, width: int) -> None:
    matrix = side_map(side, width)
    assert (matrix.shape, matrix.dtype) == ((width, side), torch.float32)
    gram = matrix.double() @ matrix.double().T
    assert torch.allclose(gram, torch.eye(width).double() * side / width, atol=1e-5 * side / width)


@pytest.mark.parametrize("side", [1, 15, 16])
def test_a_short_side_is_left_as_it_is(side: int) -> None:
    short = SideMap(side, 16, 0, "layer.weight")
    values = torch.randn(3, side)
    assert short.is_identity
    assert short.width == side
    assert short(values) is values
    assert torch.equal(short.matrix(CPU), torch.eye(side))
    assert not SideMap(17, 16, 0, "layer.weight").is_identity


def test_map_is_named_by_seed_and_name() -> None:
    assert torch.equal(side_map(30, 4), side_map(30, 4))
    assert not torch.allclose(side_map(30, 4), side_map(30, 4, seed=1), atol=0.1)
    assert not torch.allclose(side_map(30, 4), side_map(30, 4, name="other.weight"), atol=0.1)


def test_map_does_not_depend_on_the_callers_state() -> None:
    expected, before = side_map(30, 4), torch.get_rng_state()
    dtype = torch.get_default_dtype()
    try:
        torch.manual_seed(99)
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            assert torch.equal(side_map(30, 4), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(side_map(30, 4), expected)
    finally:
        torch.set_default_dtype(dtype)
        torch.set_rng_state(before)
    side_map(31, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_map_of_a_seed_stays_what_it_is() -> None:
    found = side_map(6, 2, seed=7, name="layer.weight/left")
    expected = torch.tensor(GOLDEN)
    assert torch.allclose(found, expected, atol=1e-5)


def test_maps_are_uniform_and_unbiased_over_seeds() -> None:
    drawn = torch.stack([side_map(6, 2, seed).double() for seed in range(400)])
    assert within_errors(drawn, torch.zeros(2, 6))
    assert within_errors(drawn.mT @ drawn, torch.eye(6))


def test_left_and_right_are_independent() -> None:
    blocks = [Block("weight", (12, 12), 3, seed, 0) for seed in range(200)]
    alike = torch.stack([b.left.matrix(CPU)[:3] * b.right.matrix(CPU) for b in blocks])
    assert within_errors(alike.double(), torch.zeros(3, 12))


def within_errors(drawn: torch.Tensor, expected: torch.Tensor) -> bool:
    error = drawn.std(0) / math.sqrt(len(drawn))
    return bool(((drawn.mean(0) - expected).abs() <= 4 * error + 1e-6).all())


@pytest.mark.parametrize(
    ("shape", "widths"),
    [
        ((64, 32), (4, 8)),  # the longer side to the width, the shorter to twice that
        ((32, 64), (8, 4)),
        ((64, 64), (8, 4)),
        ((64, 3), (4, 3)),
        ((5, 64), (5, 4)),
        ((8, 3, 3, 3), (8, 4)),
        ((1, 3, 3, 3), (1, 4)),
        ((3, 2), (3, 2)),
        ((1, 64), (1, 32)),
        ((1, 1, 64), (1, 32)),
        ((100,), (1, 32)),
        ((32,), (1, 32)),
        ((5,), (1, 5)),
        ((), (1, 1)),
    ],
)
def test_block_has_at_most_twice_width_squared_columns(
    shape: tuple[int, ...], widths: tuple[int, int]
) -> None:
    block = Block("weight", shape, 4, 0, start=10)
    assert (block.left.width, block.right.width) == widths
    assert (block.start, block.stop) == (10, 10 + math.prod(widths))
    assert block.is_exact == (math.prod(widths) == math.prod(shape))


@pytest.mark.parametrize(
    "shape", [(9, 20), (3, 20), (20, 3), (6, 2, 3, 2), (40,), (90,), (1, 90), (3, 2)]
)
def test_block_projects_from_both_sides(shape: tuple[int, ...]) -> None:
    block = Block("weight", shape, 4, 3, start=2)
    gradients = torch.randn(5, *shape)
    matrices = gradients.reshape(5, block.left.side, block.right.side)
    right = block.right(torch.eye(block.right.side))
    expected = block.left.matrix(CPU) @ matrices @ right
    assert torch.allclose(block.project(gradients), expected, atol=1e-4)
    rows = torch.zeros(5, block.stop + 3)
    block.of(rows).copy_(expected)
    assert torch.equal(rows[:, 2 : block.stop], expected.flatten(1))
    assert rows[:, :2].abs().max() == rows[:, block.stop :].abs().max() == 0


def test_long_vectors_are_sketched_and_stay_unbiased() -> None:
    long = 10**6
    torch.manual_seed(0)
    gradients = torch.zeros(2, long)
    gradients[:, ::25_000] = torch.randn(2, 40)
    exact = gradients.double() @ gradients.double().T
    products = []
    for seed in range(60):
        block = Block("bias", (long,), 2, seed, 0)
        short = block.project(gradients).flatten(1)
        assert short.shape == (2, 8)
        products.append(short.double() @ short.double().T)
    assert within_errors(torch.stack(products), exact)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((64,), "exact, 64"),
        ((512, 64), "(512, 64) projected to (16, 32)"),
        ((64, 3, 7, 7), "(64, 147) projected to (32, 16)"),
        ((1_000,), "1,000 count-sketched to 512"),
        ((16, 16), "exact, 256"),
    ],
)
def test_block_describes_itself(shape: tuple[int, ...], said: str) -> None:
    assert Block("weight", shape, 16, 0, 0).describe() == said
