"""Models whose parameters are not all here are refused before any work, with the way out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_state import CLASSES, N, bits, vectors
from torch import Tensor, nn

from sage_torch import SageSampler, select_subset
from sage_torch.gradients import (
    FunctionalGradients,
    LastLayerGradients,
    ProjectedGradients,
    choose_gradients,
)


class Unread:
    """A data set that nobody may read."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("it is read")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def meta_head() -> nn.Module:
    model = network()
    model[2].to("meta")
    return model


def meta_buffer() -> nn.Module:
    model = network()
    model.register_buffer("table", torch.zeros(3, device="meta"))
    return model


def frozen_meta() -> nn.Module:
    model = network()
    model[0].to("meta").requires_grad_(False)
    return model


def lazy() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.LazyLinear(CLASSES))


def partitioned() -> nn.Module:
    model = network()
    model[0].weight.ds_tensor = torch.zeros(1)  # as DeepSpeed marks what it has taken away
    return model


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (meta_head, r"'2.weight' of Sequential is on the meta device.*load the whole model"),
    (meta_buffer, r"'table' of Sequential is on the meta device"),
    (frozen_meta, r"'0.weight' of Sequential is on the meta device"),
    (lazy, r"'1.weight' of Sequential is not initialised; call the model on one batch first"),
    (partitioned, r"'0.weight' is partitioned by DeepSpeed ZeRO-3.*before sharding"),
]
refused = pytest.mark.parametrize(("build", "message"), REFUSED)


@refused
@pytest.mark.parametrize("kind", ["auto", "functional", "projected", "last_layer"])
def test_refused_before_any_work(build: Callable[[], nn.Module], message: str, kind: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        select_subset(build(), Unread(), 0.5, gradients=kind, progress=False)  # type: ignore[arg-type]
    assert len(str(caught.value)) <= 500


@refused
@pytest.mark.parametrize(
    "computer", [FunctionalGradients, ProjectedGradients, LastLayerGradients, choose_gradients]
)
def test_every_computer_refuses(
    build: Callable[[], nn.Module], message: str, computer: Callable[[nn.Module], object]
) -> None:
    with pytest.raises(ValueError, match=message):
        computer(build())


@pytest.mark.parametrize("build", [meta_head, meta_buffer, partitioned])
def test_gradients_of_ones_own_stay_possible(build: Callable[[], nn.Module]) -> None:
    def rows(batch: Any) -> Tensor:
        return batch[0]

    model = build()
    kept = select_subset(model, vectors(), 0.5, gradients=rows, progress=False)
    assert len(kept) == N // 2
    assert len(list(SageSampler(model, vectors(), keep=0.5, gradients=rows, progress=False))) == 12


class Scripted(nn.Module):
    """A TorchScript part with parameters and a buffer, and a part of Python."""

    def __init__(self, compile_: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.part = compile_(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh()).eval())
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.part(x))


def traced(part: nn.Module) -> Any:
    return torch.jit.trace(part, torch.zeros(2, 6))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compile_", [torch.jit.script, traced])
@pytest.mark.parametrize("kind", ["functional", "projected", "last_layer"])
def test_parts_of_torchscript(compile_: Callable[[nn.Module], Any], kind: str) -> None:
    torch.manual_seed(0)
    model, data = Scripted(compile_), vectors()
    plain = Scripted(lambda part: part)
    plain.load_state_dict(model.state_dict())
    values = bits(model)
    ids = [id(parameter) for parameter in model.parameters()]
    found = [
        select_subset(each, data, 0.5, gradients=kind, progress=False) for each in (model, plain)
    ]
    assert found[0].indices.tolist() == found[1].indices.tolist()
    assert bits(model) == values
    assert [id(parameter) for parameter in model.parameters()] == ids
    model(data.tensors[0]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", ["functional", "projected", "last_layer", "auto"])
def test_frozen_torchscript_below_a_trained_head(kind: Any) -> None:
    torch.manual_seed(0)
    base = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.Dropout()).eval()))
    model = nn.Sequential(base, nn.Linear(5, CLASSES))
    values, x = bits(model), vectors().tensors[0]
    expected = model(x)
    selection = select_subset(model, vectors(), 0.5, gradients=kind, progress=False)
    assert len(selection.indices) == N // 2
    assert bits(model) == values
    assert torch.equal(model(x), expected)
    with pytest.raises(ValueError, match="no parameter that requires grad; call"):
        select_subset(base, vectors(), 0.5, gradients=kind, progress=False)


def test_whole_model_of_torchscript_is_selected_with_or_refused_by_name() -> None:
    model = torch.jit.script(network())
    values = bits(model)
    for kind in ("functional", "projected", "last_layer"):
        try:
            select_subset(model, vectors(), 0.5, gradients=kind, progress=False)
        except ValueError as error:
            assert "script" in str(error).lower() or "Linear" in str(error)  # noqa: PT017
        assert bits(model) == values


SHARDED = """
import os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset
from sage_torch import SageSampler, select_subset

way, store = sys.argv[1:]
dist.init_process_group("gloo", store=dist.FileStore(store, 1), rank=0, world_size=1)
torch.manual_seed(0)
data = TensorDataset(torch.randn(24, 6), torch.arange(24) % 3)
model = nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 3))
if way == "fsdp1":
    from torch.distributed.fsdp import FullyShardedDataParallel
    model[0] = FullyShardedDataParallel(model[0], device_id=torch.device("cpu"))
else:
    from torch.distributed.device_mesh import init_device_mesh
    mesh = init_device_mesh("cpu", (1,))
    if way == "fsdp2":
        from torch.distributed.fsdp import fully_shard
        fully_shard(model[0], mesh=mesh)
    else:
        from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
        from torch.distributed.tensor import Replicate
        parallelize_module(model[1], mesh, ColwiseParallel(output_layouts=Replicate()))
for kind in ("auto", "functional", "projected", "last_layer"):
    try:
        select_subset(model, data, 0.5, gradients=kind, progress=False)
    except ValueError as error:
        assert "shard" in str(error) and len(str(error)) <= 500, error
        print(kind, error, flush=True)
own = lambda batch: batch[0]
kept = select_subset(model, data, 0.5, gradients=own, distributed=False, progress=False)
assert len(kept) == 12
model(data.tensors[0]).sum().backward()
print("trains", flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize(
    ("way", "names"), [("fsdp1", "FSDP"), ("fsdp2", "FSDP2"), ("dtensor", "DTensor")]
)
def test_sharded_parameters(way: str, names: str, tmp_path: Any) -> None:
    command = [sys.executable, "-c", SHARDED, way, str(tmp_path / "store")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    *refusals, last = run.stdout.splitlines()
    assert last == "trains"
    assert [line.split()[0] for line in refusals] == [
        "auto", "functional", "projected", "last_layer",
    ]  # fmt: skip
    assert all(names in line for line in refusals)
