"""The same results on a CUDA device; skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sage_torch import (
    CountSketch,
    FrequentDirections,
    SageError,
    SageSampler,
    select_subset,
)
from sage_torch.gradients import ProjectedGradients

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def stream(count: int = 700, dim: int = 20_000, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(40, dim, generator=generator)
    weights = torch.randn(count, 40, generator=generator) * torch.linspace(0, -4, 40).exp()
    return weights @ directions + 0.01 * torch.randn(count, dim, generator=generator)


def sketched(rows: Tensor, size: int = 32) -> FrequentDirections:
    sketch = FrequentDirections(size, rows.shape[1], device=rows.device)
    for part in rows.split(150):
        sketch.update(part)
    return sketch


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.cpu().double() - theirs.cpu().double()).norm() / theirs.double().norm())


def gram(sketch: FrequentDirections) -> Tensor:
    matrix = sketch.matrix().cpu().double()
    return matrix.T[:500] @ matrix[:, :500]


def test_sketch_equals_the_host_path() -> None:
    rows = stream()
    host, cuda = sketched(rows), sketched(rows.cuda())
    assert cuda.backend == "torch"
    assert cuda.matrix().is_cuda
    assert relative(gram(cuda), gram(host)) < 1e-5
    assert cuda.shrinkage == pytest.approx(host.shrinkage, rel=1e-4)
    assert cuda.squared_norm == pytest.approx(host.squared_norm, rel=1e-12)
    lengths = cuda.project(rows.cuda()).norm(dim=1)
    assert relative(lengths, host.project(rows).norm(dim=1)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_equal_their_float32(dtype: torch.dtype) -> None:
    rows = stream().to(dtype).cuda()
    assert torch.equal(sketched(rows).matrix(), sketched(rows.float()).matrix())


def test_tf32_and_autocast_are_neither_used_nor_changed() -> None:
    rows = stream().cuda()
    expected = sketched(rows).matrix()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            ours = sketched(rows)
            coordinates = ours.project(rows)
            assert torch.is_autocast_enabled("cuda")
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.equal(ours.matrix(), expected)
        assert coordinates.dtype == torch.float32
    finally:
        torch.set_float32_matmul_precision(before)


def test_works_on_the_callers_stream() -> None:
    source = stream(dim=200_000)
    expected = sketched(source.cuda()).matrix()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # rows arrive late on this stream, and only there
        rows = source.cuda(non_blocking=True) * 1.0
        ours = sketched(rows).matrix()
    side.synchronize()
    assert torch.equal(ours, expected)


def test_rows_on_another_device_are_refused() -> None:
    with pytest.raises(ValueError, match="expected rows on cuda:0"):
        FrequentDirections(4, 10, device="cuda").update(torch.randn(3, 10))
    with pytest.raises(ValueError, match="expected rows on cpu"):
        FrequentDirections(4, 10).update(torch.randn(3, 10, device="cuda"))


def test_memory_is_the_sketch_its_waiting_rows_and_a_chunk() -> None:
    size, dim = 64, 1_000_000
    rows = torch.randn(96, dim, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sketch = FrequentDirections(size, dim, device="cuda")
    for _ in range(3):
        sketch.update(rows)
    grown = torch.cuda.max_memory_allocated() - before
    buffers = 4 * (size + sketch.block_rows) * dim
    assert grown < buffers + 2**27


def test_rows_are_read_where_they_are() -> None:
    sketch, rows = FrequentDirections(16, 500_000, device="cuda"), torch.randn(8, 500_000).cuda()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sketch.update(rows[:1])  # 2 MB: its float64 pieces are the largest that is made of it
    assert torch.cuda.max_memory_allocated() - before < 2**20
    # What waits was copied into the sketch's own memory.
    rows.zero_()
    assert float(sketch.matrix().norm()) > 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_sketch_on_the_second_device_is_the_same() -> None:
    rows = stream()
    first, second = sketched(rows.to("cuda:0")), sketched(rows.to("cuda:1"))
    assert second.matrix().device == torch.device("cuda:1")
    assert torch.equal(first.matrix().cpu(), second.matrix().cpu())
    assert torch.cuda.current_device() == 0


def test_a_full_device_is_told_as_torch_does_and_the_sketch_goes_on() -> None:
    rows = stream(count=100).cuda()
    sketch, other = sketched(rows), sketched(rows)
    wide = torch.randn(4_000, rows.shape[1], device="cuda")
    torch.cuda.empty_cache()
    used, whole = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((used + 2**20) / whole)
    keeps_text = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
    try:
        with pytest.raises(torch.OutOfMemoryError if keeps_text else SageError):
            sketch.update(wide)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    sketch.update(rows)
    other.update(rows)
    assert torch.equal(sketch.matrix(), other.matrix())


def test_count_sketch_is_the_same_map() -> None:
    rows = stream(count=50, dim=30_011)
    sketch = CountSketch(30_011, 512, seed=3)
    assert relative(sketch(rows.cuda()), sketch(rows)) < 1e-6


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 64, 10),
        )  # fmt: skip

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


def trained() -> tuple[nn.Module, TensorDataset]:
    torch.manual_seed(0)
    inputs, targets = torch.randn(1_500, 1, 8, 8), torch.arange(1_500) % 10
    inputs += torch.randn(10, 1, 8, 8)[targets]
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for part in torch.arange(1_500).split(64):
        nn.functional.cross_entropy(model(inputs[part]), targets[part]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, TensorDataset(inputs, targets)


@pytest.mark.parametrize("consensus", ["exact", "streaming", "one_pass"])
@pytest.mark.parametrize("gradients", ["functional", "projected", "last_layer"])
def test_selection_agrees_with_the_cpu(consensus: str, gradients: str) -> None:
    model, data = trained()
    options = {"consensus": consensus, "gradients": gradients, "compress": 1_024}
    host = select_subset(model, data, 0.25, rule="agreement", progress=False, **options)
    model.cuda()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.cuda.get_rng_state()
    # TF32 convolutions would be the user's choice; the comparison wants float32.
    with torch.backends.cudnn.flags(allow_tf32=False):
        cuda = select_subset(model, data, 0.25, rule="agreement", progress=False, **options)
        again = select_subset(model, data, 0.25, rule="agreement", progress=False, **options)
    assert np.array_equal(cuda.indices, again.indices)
    assert np.abs(cuda.scores - host.scores).max() < 1e-3
    assert len(np.setdiff1d(cuda.indices, host.indices)) <= 2
    assert torch.equal(torch.cuda.get_rng_state(), random_state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_projected_gradients_have_the_same_maps() -> None:
    model, data = trained()
    host = ProjectedGradients(model, width=4)(data[:50])
    with torch.backends.cudnn.flags(allow_tf32=False):
        cuda = ProjectedGradients(model.cuda(), width=4)([tensor.cuda() for tensor in data[:50]])
    assert cuda.is_cuda
    assert relative(cuda, host) < 1e-4


def test_the_headline_use() -> None:
    model, data = trained()
    loader = DataLoader(data, batch_size=128, sampler=SageSampler(model.cuda(), keep=0.25))
    assert len(loader) == 3
    assert sum(len(targets) for _, targets in loader) == 375


def test_a_bad_row_is_named() -> None:
    model, data = trained()
    data.tensors[0][77] = float("nan")
    with pytest.raises(Exception, match="example 77 of the data set"):
        select_subset(model.cuda(), data, 0.25, progress=False)
