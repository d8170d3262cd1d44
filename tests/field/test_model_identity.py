"""After a selection, every parameter is the user's own object in all its places, and trains on."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_state import CLASSES, bits, kinds, registered, step, vectors
from torch import Tensor, nn

from sage_torch import select_subset
from sage_torch.gradients import FunctionalGradients, ProjectedGradients


class Repeated(nn.Module):
    """One block twice in a list, and once more by a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.blocks, self.again = nn.ModuleList([block, block]), block
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.head(self.again(x))


class Towers(nn.Module):
    """Two towers that are one, and a weight tied within one module."""

    def __init__(self) -> None:
        super().__init__()
        self.left = self.right = nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.also = self.scale
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.left(x) * self.scale + self.right(x.flip(1)) * self.also)


class Beside(nn.Module):
    """A part, and the same part compiled, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
        self.fast = torch.compile(self.trunk, backend="eager")
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.fast(x) + self.trunk(x))


class Recurrent(nn.Module):
    """A recurrent layer, which keeps a list of its weights, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.forth = self.back = nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = x.view(len(x), 2, 3)
        return self.head(self.forth(x)[0][:, -1] + self.back(x.flip(1))[0][:, -1])


class Wrapper(nn.Module):
    """Holds the network twice, as wrappers of frameworks do."""

    def __init__(self) -> None:
        super().__init__()
        self.original = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES))
        self.used = self.original

    def forward(self, x: Tensor) -> Any:
        return self.used(x)


@kinds
@pytest.mark.parametrize("build", [Repeated, Towers, Beside, Recurrent, Wrapper])
def test_what_has_several_names_trains_on(build: Callable[[], nn.Module], kind: str) -> None:
    torch.manual_seed(0)
    model, data = build(), vectors()
    twin = copy.deepcopy(model)
    before, values = registered(model), bits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the loop announces itself
        select_subset(model, data, 0.5, gradients=kind, batch_size=8, progress=False)
    assert registered(model) == before
    assert bits(model) == values
    moved = step(model, data)
    assert moved == step(twin, data)
    assert all(now != then for now, then in zip(moved, values, strict=True))


def test_rows_of_a_repeated_block_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    model, data = Repeated(), vectors()
    rows: list[Tensor] = []
    for inputs, target in zip(*data.tensors, strict=True):
        loss = F.cross_entropy(model(inputs[None]), target[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())]))
    for computer in (FunctionalGradients(model), ProjectedGradients(model, 1000)):
        torch.testing.assert_close(computer(data.tensors), torch.stack(rows))


class Owner(nn.Module):
    """A loss that holds the model itself, and a scale of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.scale = model, nn.Parameter(torch.tensor(2.0))

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        return self.scale * F.cross_entropy(self.model(batch[0]), batch[1], reduction="none")


@kinds
def test_loss_that_holds_the_model(kind: str) -> None:
    torch.manual_seed(0)
    model, data = Repeated(), vectors()
    loss = Owner(model)
    before, values = registered(loss), bits(loss)
    select_subset(model, data, 0.5, loss=loss, gradients=kind, progress=False)
    assert registered(loss) == before
    assert bits(loss) == values
    assert all(parameter.grad is None for parameter in loss.parameters())


@kinds
def test_ddp_inside_a_wrapper(kind: str, tmp_path: Any) -> None:
    import torch.distributed as dist

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        model, data = Wrapper(), vectors()
        model.used = nn.parallel.DistributedDataParallel(model.original)
        parallel, before = model.used, registered(model)
        for _ in range(2):
            select_subset(model, data, 0.5, gradients=kind, progress=False)
            assert model.used is parallel
            assert registered(model) == before
            values = bits(model)
            assert step(model, data) != values
    finally:
        dist.destroy_process_group()


@kinds
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.filterwarnings("ignore")
def test_model_of_fabric_trains_between_selections(kind: str, precision: Any) -> None:
    lightning = pytest.importorskip("lightning.fabric")
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    torch.manual_seed(0)
    network, data = Repeated(), vectors()
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), 0.1))
    before = registered(network)
    for _ in range(2):
        select_subset(model, data, 0.5, gradients=kind, progress=False)
        assert registered(network) == before
        values = bits(network)
        optimizer.zero_grad()
        fabric.backward(F.cross_entropy(model(data.tensors[0]), data.tensors[1]))
        optimizer.step()
        assert all(now != then for now, then in zip(bits(network), values, strict=True))
