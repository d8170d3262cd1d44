"""Projected gradients: seeded, linear, unbiased maps, whatever the batch and the chunk."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from microbatches import assert_rows, by_microbatches, cross_entropy
from torch import Tensor, nn
from zoo import Case, case
from zoo.case import CLASSES, N
from zoo.sequences import GPT, next_token

from sage_torch.gradients import FunctionalGradients, ProjectedGradients

SOME = [
    "lenet",
    "timm vit",
    "swin",
    "convnext",
    "transposed 1d grouped",
    "embedding with padding",
    "gpt positions (T,)",
    "gpt positions sliced",
    "transformer time first",
    "attention with bias_k",
    "lstm",
    "relative positions",
    "hugging face's Conv1D",
    "one module three times",
    "unused parameter",
    "experts",
]
some = pytest.mark.parametrize("case", [case(name) for name in SOME], ids=SOME)


@pytest.fixture(autouse=True)
def _fallback_is_no_news() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="vmap cannot differentiate")
        yield


def parts_of(batch: Any, *sizes: int) -> Iterator[Any]:
    start = 0
    for size in sizes:
        yield tuple(leaf[start : start + size] for leaf in batch)
        start += size
    assert start == len(batch[0])


@some
@pytest.mark.parametrize("width", [4, 16])
def test_the_company_in_a_batch_does_not_matter(case: Case, width: int) -> None:
    model, batch = case.make()
    whole = ProjectedGradients(model, width, case.loss)
    rows = whole(batch)
    assert rows.shape == (N, whole.dim)
    assert_rows(torch.cat([whole(part) for part in parts_of(batch, 1, 2, 4)]), rows)
    started_small = ProjectedGradients(model, width, case.loss)
    found = [started_small(part) for part in parts_of(batch, 1, 2, 4)]
    assert_rows(torch.cat(found), rows)
    assert_rows(started_small(batch), rows)


@some
@pytest.mark.parametrize("memory_budget", [1, 50_000])
def test_chunks_do_not_matter(case: Case, memory_budget: int) -> None:
    model, batch = case.make()
    expected = ProjectedGradients(model, 4, case.loss)(batch)
    chunked = ProjectedGradients(model, 4, case.loss, memory_budget=memory_budget)
    assert_rows(chunked(batch), expected)
    assert_rows(chunked(batch), expected)  # once the cost of an example is known


@some
def test_seed_names_the_map(case: Case) -> None:
    model, batch = case.make()
    rows = ProjectedGradients(model, 4, case.loss, seed=5)(batch)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    again, _ = case.make()
    assert torch.equal(ProjectedGradients(again, 4, case.loss, seed=5)(batch), rows)
    torch.set_rng_state(state)
    other = ProjectedGradients(model, 4, case.loss, seed=6)(batch)
    assert other.shape == rows.shape
    if rows.shape[1] < sum(p.numel() for p in model.parameters()):
        assert ((other - rows).norm(dim=1) > 0.1 * rows.norm(dim=1)).all()


SCRIPT = """
import sys, torch
torch.set_num_threads(3)
torch.manual_seed(12)
sys.path.insert(0, {tests!r})
from zoo import case
from sage_torch.gradients import ProjectedGradients
rows = {{}}
for name in {names!r}:
    entry = case(name)
    model, batch = entry.make()
    rows[name] = ProjectedGradients(model, 4, entry.loss, seed=5)(batch)
torch.save(rows, sys.argv[1])
"""


def test_seed_names_the_same_map_in_another_process(tmp_path: Path) -> None:
    names = ["lenet", "gpt positions (T,)", "timm vit"]
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), names=names)
    subprocess.run([sys.executable, "-c", script, tmp_path / "rows.pt"], check=True, timeout=120)
    found = torch.load(tmp_path / "rows.pt")
    for name in names:
        model, batch = case(name).make()
        assert_rows(found[name], ProjectedGradients(model, 4, case(name).loss, seed=5)(batch))


@some
def test_rows_are_linear_in_the_loss(case: Case) -> None:
    model, batch = case.make()

    def weighted(model: nn.Module, batch: Any) -> Tensor:
        return 3 * case.loss(model, batch) - _penalty(model, batch)

    first, second, both = (
        ProjectedGradients(model, 4, loss)(batch) for loss in (case.loss, _penalty, weighted)
    )
    scale = (3 * first).norm(dim=1) + second.norm(dim=1)
    assert ((both - 3 * first + second).norm(dim=1) <= 1e-5 * scale).all()


def _penalty(model: nn.Module, batch: Any) -> Tensor:
    return torch.tanh(model(batch[0])).flatten(1).square().mean(1)  # type: ignore[no-any-return]


def small_conv_net() -> tuple[nn.Module, Any, Any]:
    layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(72, CLASSES))
    return model.eval(), (torch.randn(4, 2, 7, 7), torch.randint(CLASSES, (4,))), cross_entropy


def small_gpt() -> tuple[nn.Module, Any, Any]:
    return GPT("(T,)", features=8, blocks=1).eval(), (torch.randint(11, (4, N)),), next_token


@pytest.mark.slow
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("build", [small_conv_net, small_gpt])
def test_inner_products_are_unbiased_over_seeds(build: Callable[[], Any], width: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, batch, loss = build()
    exact = FunctionalGradients(model, loss)(batch).double()
    products = []
    for seed in range(200):
        gradients = ProjectedGradients(model, width, loss, seed=seed, self_check=False)
        rows = gradients(batch).double()
        products.append(rows @ rows.T)
    assert gradients.dim < exact.shape[1]
    over_seeds = torch.stack(products)
    error = over_seeds.std(0) / 200**0.5
    expected = exact @ exact.T
    assert ((over_seeds.mean(0) - expected).abs() <= 4 * error).all()
    assert error.diagonal().max() < 0.2 * expected.diagonal().max()  # so that the test says much


def test_maps_are_orthonormal_and_scaled() -> None:
    # Inputs and output gradients that are unit vectors: the rows are the map's columns.
    model = nn.Linear(9, 7, bias=False)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]) * batch[1]).sum(1)

    batch = (torch.eye(9).repeat(7, 1), torch.eye(7).repeat_interleave(9, 0))
    rows = ProjectedGradients(model, 3, loss)(batch).double()
    values = torch.linalg.svdvals(rows)
    assert rows.shape == (63, 6 * 3)
    assert torch.allclose(values, torch.full((18,), (63 / 18) ** 0.5).double(), rtol=1e-5)
    left_exact = ProjectedGradients(model, 4, loss)(batch).double()
    assert left_exact.shape == (63, 7 * 4)
    assert torch.allclose(torch.linalg.svdvals(left_exact), torch.tensor(9 / 4).double().sqrt())


@some
def test_nothing_is_lost_where_every_side_fits(case: Case) -> None:
    model, batch = case.make()
    longest = max(max(p.shape[0], p[0].numel()) for p in model.parameters() if p.ndim > 1)
    wide = ProjectedGradients(model, longest, case.loss)(batch)
    assert_rows(wide, by_microbatches(model, case.loss, batch))


@pytest.mark.parametrize("name", ["lenet", "timm vit", "gpt positions (T,)"])
def test_error_shrinks_with_the_width(name: str) -> None:
    model, batch = case(name).make()
    loss = case(name).loss
    exact = F.normalize(FunctionalGradients(model, loss)(batch), dim=1)

    def error(width: int, seed: int) -> float:
        gradients = ProjectedGradients(model, width, loss, seed=seed, self_check=False)
        rows = F.normalize(gradients(batch), dim=1)
        return float((rows @ rows.T - exact @ exact.T).norm())

    errors = [sum(error(width, seed) for seed in range(8)) for width in (2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.35 * errors[0]


def test_dim_is_known_from_construction_on() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 100))
    gradients = ProjectedGradients(model, 4)
    # (8, 27) to (8, 4); 8; 8; 8; (100, 32) to (8, 4); 100 to 32
    assert gradients.dim == 32 + 8 + 8 + 8 + 32 + 32
    total = sum(p.numel() for p in model.parameters())
    assert gradients.describe() == (
        f"projected: width 4 over 6 parameters, D = {total:,} -> d = 120"
    )
    assert list(gradients.handling) == [name for name, _ in model.named_parameters()]


def smooth() -> tuple[nn.Module, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(288, 20), nn.LayerNorm(20), nn.Linear(20, 3))
        return model.eval(), (torch.randn(N, 3, 8, 8), torch.randint(3, (N,)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [4, 10**6])
def test_half_precision_model_gives_float32_rows(dtype: torch.dtype, width: int) -> None:
    model, (inputs, targets) = smooth()
    expected = ProjectedGradients(model, width)((inputs, targets))
    gradients = ProjectedGradients(model.to(dtype), width, fallback=False)
    rows = gradients((inputs.to(dtype), targets))
    assert_rows(rows, expected, tolerance=0.05)


@pytest.mark.parametrize("width", [4, 10**6])
def test_autocast_gives_float32_rows(width: int) -> None:
    model, batch = smooth()
    expected = ProjectedGradients(model, width)(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = ProjectedGradients(model, width, fallback=False)(batch)
    assert_rows(rows, expected, tolerance=0.05)

    def inside(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return cross_entropy(model, batch)

    rows = ProjectedGradients(model, width, inside, fallback=False)(batch)
    assert_rows(rows, expected, tolerance=0.05)


@pytest.mark.parametrize(
    "name", ["timm vit", "gpt positions sliced", "transformer", "einsum", "matmul from the left"]
)
def test_autocast_keeps_the_rules(name: str) -> None:
    model, batch = case(name).make()
    gradients = ProjectedGradients(model, 8, case(name).loss)
    expected = gradients(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = ProjectedGradients(model, 8, case(name).loss)
        rows = under_autocast(batch)
    assert under_autocast.handling == gradients.handling
    assert rows.dtype == torch.float32
    assert (rows - expected).norm() <= 0.05 * expected.norm()


def test_float64_model_gives_float32_rows() -> None:
    model, (inputs, targets) = smooth()
    expected = ProjectedGradients(model, 4)((inputs, targets))
    rows = ProjectedGradients(model.double(), 4, fallback=False)((inputs.double(), targets))
    assert_rows(rows, expected)
