"""`SageCallback` in a real Lightning Trainer on one device."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from sage_torch import SageSampler, Selection
from sage_torch.integrations.lightning import SageCallback

both_loaders = pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])


class Module(pl.LightningModule):
    """Trains a network and notes what it sees."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.seen: dict[int, list[int]] = defaultdict(list)
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.selections: dict[int, Selection | None] = {}
        self.sampler: SageSampler | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels, numbers = batch
        if batch_idx == 0:
            self.weights[self.current_epoch] = copy.deepcopy(self.network.state_dict())
        self.seen[self.current_epoch] += numbers.tolist()
        return F.cross_entropy(self(inputs), labels)

    def on_train_epoch_end(self) -> None:
        if self.sampler is not None:
            self.selections[self.current_epoch] = self.sampler.selection

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    def make(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
        given = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            "max_epochs": 3,
            **options,
        }
        return pl.Trainer(callbacks=list(callbacks), **given)

    return make


@pytest.fixture
def module(network: nn.Module) -> Module:
    return Module(network)


@both_loaders
def test_each_epoch_trains_on_the_subset_of_the_live_model(
    kind: Any,
    reading: dict[str, Any],
    module: Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    selected: Callable[..., Selection],
    trainer: Callable[..., pl.Trainer],
) -> None:
    module.sampler = sampler = SageSampler(module.network, refresh_every=2, **sage)
    loader = kind(numbered, batch_size=4, sampler=sampler, **reading)
    fitting = trainer(SageCallback(sampler), max_epochs=3)
    fitting.fit(module, loader)
    assert fitting.global_step == 3 * len(loader) == 18
    for epoch, seen in module.seen.items():
        made_on = module.weights[epoch - epoch % 2]
        expected = selected(module.network, made_on).indices
        assert np.array_equal(sorted(seen), expected), epoch
    assert list(module.seen) == [0, 1, 2]
    assert len({tuple(seen) for seen in module.seen.values()}) == 3  # an order each
    assert set(module.seen[0]) != set(module.seen[2])


def test_the_module_itself_is_the_model(
    module: Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    trainer: Callable[..., pl.Trainer],
) -> None:
    sampler = SageSampler(module, **sage)
    loader = DataLoader(numbered, batch_size=4, sampler=sampler)
    trainer(SageCallback(sampler), max_epochs=1).fit(module, loader)
    assert sampler.selection is not None
    assert np.array_equal(sorted(module.seen[0]), sampler.selection.indices)


def test_a_longer_warm_up(
    reading: dict[str, Any],
    module: Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    selected: Callable[..., Selection],
    trainer: Callable[..., pl.Trainer],
) -> None:
    sampler = SageSampler(module.network, warmup_epochs=1, **sage)
    loader = DataLoader(numbered, batch_size=4, sampler=sampler, **reading)
    fitting = trainer(SageCallback(sampler), reload_dataloaders_every_n_epochs=1)
    fitting.fit(module, loader)
    assert [len(seen) for seen in module.seen.values()] == [90, 22, 22]
    assert sorted(module.seen[0]) == list(range(90))
    expected = selected(module.network, module.weights[1]).indices
    assert all(np.array_equal(sorted(module.seen[epoch]), expected) for epoch in (1, 2))
    assert fitting.global_step == sampler.total_steps(3, 4) == 23 + 6 + 6


def test_fitting_twice_starts_at_epoch_0_again(
    module: Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    trainer: Callable[..., pl.Trainer],
) -> None:
    sampler = SageSampler(module.network, warmup_epochs=1, **sage)
    loader = DataLoader(numbered, batch_size=4, sampler=sampler)
    for _ in range(2):
        trainer(SageCallback(sampler), reload_dataloaders_every_n_epochs=1).fit(module, loader)
    assert [len(seen) for seen in module.seen.values()] == [180, 44, 44]


def test_a_warm_up_without_reloading_is_refused(
    module: Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    trainer: Callable[..., pl.Trainer],
) -> None:
    sampler = SageSampler(module.network, warmup_epochs=1, **sage)
    loader = DataLoader(numbered, batch_size=4, sampler=sampler)
    for epochs in ({}, {"max_epochs": -1, "max_steps": 10}):
        with pytest.raises(
            ValueError, match=r'reload_dataloaders_every_n_epochs=1.*length="fixed"'
        ):
            trainer(SageCallback(sampler), **epochs).fit(module, loader)
    assert not module.seen
    trainer(SageCallback(sampler), max_epochs=1).fit(module, loader)  # all of it is warm-up
    assert len(module.seen[0]) == 90


def test_epochs_of_fixed_length(
    module: Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    trainer: Callable[..., pl.Trainer],
) -> None:
    sampler = SageSampler(module.network, warmup_epochs=1, length="fixed", **sage)
    loader = DataLoader(numbered, batch_size=4, sampler=sampler)
    trainer(SageCallback(sampler), max_epochs=2).fit(module, loader)
    assert [len(seen) for seen in module.seen.values()] == [90, 90]
    assert len(set(module.seen[1])) == 22


class Restless(pl.Callback):
    """Turns reloading off after `setup`."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.reload_dataloaders_every_n_epochs = 0  # type: ignore[attr-defined]


def test_a_stale_length_is_noticed(
    module: Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    trainer: Callable[..., pl.Trainer],
) -> None:
    sampler = SageSampler(module.network, warmup_epochs=1, **sage)
    loader = DataLoader(numbered, batch_size=4, sampler=sampler)
    fitting = trainer(SageCallback(sampler), Restless(), reload_dataloaders_every_n_epochs=1)
    with pytest.raises(RuntimeError, match=r"epoch 1 to have 6 batches.*will draw 23"):
        fitting.fit(module, loader)
    assert list(module.seen) == [0]


@pytest.mark.parametrize(("limit", "seen"), [(0.5, 12), (4, 16), (50, 22)])
def test_limited_epochs(
    limit: float,
    seen: int,
    module: Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    trainer: Callable[..., pl.Trainer],
) -> None:
    sampler = SageSampler(module.network, **sage)
    loader = DataLoader(numbered, batch_size=4, sampler=sampler)
    trainer(SageCallback(sampler), max_epochs=2, limit_train_batches=limit).fit(module, loader)
    assert [len(numbers) for numbers in module.seen.values()] == [seen, seen]


def saved(folder: Path) -> list[pl.Callback]:
    often = {"save_top_k": -1, "dirpath": folder}
    return [
        ModelCheckpoint(filename="{step}", every_n_train_steps=2, **often),
        ModelCheckpoint(filename="end-{epoch}", save_on_train_epoch_end=True, **often),
    ]


@both_loaders
def test_resuming_goes_on_with_the_next_batch(
    kind: Any,
    reading: dict[str, Any],
    network: nn.Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    trainer: Callable[..., pl.Trainer],
    tmp_path: Path,
) -> None:
    def fit(resume: Path | None) -> tuple[Module, SageSampler]:
        module = Module(network)
        sampler = SageSampler(module.network, refresh_every=2, **sage)
        loader = kind(numbered, batch_size=4, sampler=sampler, **reading)
        callbacks = [] if resume else saved(tmp_path)
        trainer(SageCallback(sampler), *callbacks).fit(module, loader, ckpt_path=resume)
        return module, sampler

    whole, first = fit(None)
    assert first.selection is not None
    order = [number for epoch in range(3) for number in whole.seen[epoch]]
    assert len(order) == 66
    places = {"end-epoch=0": 22, "step=8": 30}  # 6 steps an epoch, the last of 2
    if not reading["num_workers"]:
        places |= {"step=6": 22, "step=14": 52}
    for name, place in places.items():
        resumed, second = fit(tmp_path / f"{name}.ckpt")
        rest = [number for numbers in resumed.seen.values() for number in numbers]
        assert rest == order[place:], name
        assert second.selection is not None
        assert np.array_equal(second.selection.scores, first.selection.scores), name
        for key, weight in whole.network.state_dict().items():
            assert torch.equal(weight, resumed.network.state_dict()[key]), name


@both_loaders
def test_resuming_on_batches_from_a_batch_sampler(
    kind: Any,
    network: nn.Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    trainer: Callable[..., pl.Trainer],
    tmp_path: Path,
) -> None:
    def fit(resume: Path | None) -> Module:
        module = Module(network)
        sampler = SageSampler(module.network, **sage)
        loader = kind(numbered, batch_sampler=BatchSampler(sampler, 5, True))
        callbacks = [] if resume else saved(tmp_path)
        trainer(SageCallback(sampler), *callbacks, max_epochs=2).fit(
            module, loader, ckpt_path=resume
        )
        return module

    whole, resumed = fit(None), fit(tmp_path / "step=6.ckpt")
    assert [len(seen) for seen in whole.seen.values()] == [20, 20]
    assert resumed.seen == {1: whole.seen[1][10:]}


class Loaders(pl.LightningDataModule):
    """Makes a loader, and maybe a sampler, when asked."""

    def __init__(self, make: Callable[[], DataLoader[Any]]) -> None:
        super().__init__()
        self.make = make

    def train_dataloader(self) -> DataLoader[Any]:
        return self.make()


@pytest.mark.parametrize("reload", [0, 1])
def test_loaders_of_a_data_module(
    reload: int,
    module: Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    trainer: Callable[..., pl.Trainer],
) -> None:
    sampler = SageSampler(module.network, **sage)
    data = Loaders(lambda: DataLoader(numbered, batch_size=4, sampler=sampler))
    fitting = trainer(SageCallback(sampler), reload_dataloaders_every_n_epochs=reload)
    fitting.fit(module, datamodule=data)
    assert sampler.selection is not None
    for seen in module.seen.values():
        assert np.array_equal(sorted(seen), sampler.selection.indices)
    assert list(module.seen) == [0, 1, 2]


def test_another_sampler_in_the_loader(
    module: Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    trainer: Callable[..., pl.Trainer],
) -> None:
    sampler = SageSampler(module.network, **sage)
    loaders = Loaders(
        lambda: DataLoader(numbered, sampler=SageSampler(module.network, **sage), batch_size=4)
    )
    with pytest.raises(RuntimeError, match=r"same SageSampler to both.*train_dataloader"):
        trainer(SageCallback(sampler)).fit(module, datamodule=loaders)
    loader = DataLoader(numbered, batch_size=4, sampler=sampler)
    with pytest.raises(RuntimeError, match="overfit_batches"):
        trainer(SageCallback(sampler), overfit_batches=3).fit(module, loader)


def test_a_model_that_is_not_trained(
    module: Module,
    network: nn.Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    trainer: Callable[..., pl.Trainer],
) -> None:
    sampler = SageSampler(network, **sage)  # the module has a copy of it
    loader = DataLoader(numbered, batch_size=4, sampler=sampler)
    with pytest.raises(ValueError, match=r"another Sequential.*SageSampler\(module.network"):
        trainer(SageCallback(sampler)).fit(module, loader)
    assert sampler.selection is None


def test_not_a_sampler() -> None:
    with pytest.raises(TypeError, match="expected a SageSampler, got int"):
        SageCallback(3)  # type: ignore[arg-type]
