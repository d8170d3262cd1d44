"""A `SageSampler` in loaders that a real Accelerate has prepared, in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from sage_torch import SageSampler, Selection
from sage_torch.integrations.accelerate import SamplerState


class Run:
    """A network, its sampler and its loader, as Accelerate prepared them."""

    def __init__(
        self,
        network: nn.Module,
        data: TensorDataset,
        sage: dict[str, Any],
        reading: dict[str, Any],
        **options: Any,
    ) -> None:
        self.is_stateful = options.pop("stateful", False)
        configuration = DataLoaderConfiguration(use_stateful_dataloader=self.is_stateful)
        self.accelerator = Accelerator(cpu=True, dataloader_config=configuration)
        self.network = copy.deepcopy(network)
        self.sampler = SageSampler(self.network, **sage, **options)
        kind: Any = StatefulDataLoader if self.is_stateful else DataLoader
        loader = kind(data, batch_size=4, sampler=self.sampler, **reading)
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            self.network, optimizer, loader
        )
        self.accelerator.register_for_checkpointing(SamplerState(self.sampler, self.loader))

    def train(
        self, loader: Any = None, save: Callable[[int], Path | None] = lambda batch: None
    ) -> list[int]:
        """Train an epoch and return the numbers of the examples in it."""
        seen: list[int] = []
        for batch, (inputs, labels, numbers) in enumerate(loader or self.loader):
            seen += numbers.tolist()
            self.optimizer.zero_grad()
            self.accelerator.backward(F.cross_entropy(self.model(inputs), labels))
            self.optimizer.step()
            folder = save(batch)
            if folder is not None:
                self.accelerator.save_state(str(folder))
        return seen


@pytest.mark.parametrize("stateful", [False, True])
def test_each_epoch_trains_on_the_subset_of_the_live_model(
    stateful: bool,
    reading: dict[str, Any],
    network: nn.Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    selected: Callable[..., Selection],
) -> None:
    run = Run(network, numbered, sage, reading, stateful=stateful, refresh_every=2)
    weights: list[dict[str, Tensor]] = []
    epochs = []
    for epoch in range(3):
        assert len(run.loader) == 6
        weights.append(copy.deepcopy(run.network.state_dict()))
        epochs.append(run.train())
        expected = selected(network, weights[epoch - epoch % 2]).indices
        assert np.array_equal(sorted(epochs[-1]), expected), epoch
    assert len(set(map(tuple, epochs))) == 3  # an order each
    assert set(epochs[0]) != set(epochs[2])


def test_a_longer_warm_up(
    reading: dict[str, Any], network: nn.Module, numbered: TensorDataset, sage: dict[str, Any]
) -> None:
    run = Run(network, numbered, sage, reading, warmup_epochs=1)
    lengths = []
    for epoch in range(3):
        run.loader.set_epoch(epoch)
        lengths.append((len(run.loader), len(run.train())))
    assert lengths == [(23, 90), (6, 22), (6, 22)]


@pytest.mark.parametrize("stateful", [False, True])
def test_resuming_goes_on_with_the_next_batch(
    stateful: bool,
    reading: dict[str, Any],
    network: nn.Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    tmp_path: Path,
) -> None:
    options = {"stateful": stateful, "refresh_every": 2}
    run = Run(network, numbered, sage, reading, **options)
    whole = [run.train(), run.train(save=lambda batch: tmp_path if batch == 1 else None)]
    whole += [run.train()]

    again = Run(network, numbered, sage, reading, **options)
    again.accelerator.load_state(str(tmp_path))
    loaded = again.sampler.selection
    assert loaded is not None
    assert np.array_equal(loaded.indices, sorted(whole[1]))  # before anything is selected
    rest = again.loader
    if not stateful:
        rest = again.accelerator.skip_first_batches(again.loader, 2)
    assert again.train(rest) == whole[1][8:]
    again.loader.set_epoch(2)
    assert again.train() == whole[2]
    for name, weight in run.network.state_dict().items():
        assert torch.equal(weight, again.network.state_dict()[name])


@pytest.mark.parametrize("stateful", [False, True])
def test_resuming_between_epochs(
    stateful: bool,
    network: nn.Module,
    numbered: TensorDataset,
    sage: dict[str, Any],
    tmp_path: Path,
) -> None:
    run = Run(network, numbered, sage, {}, stateful=stateful)
    run.train()
    run.accelerator.save_state(str(tmp_path))
    expected = [run.train(), run.train()]
    again = Run(network, numbered, sage, {}, stateful=stateful)
    again.accelerator.load_state(str(tmp_path))
    assert [again.train(), again.train()] == expected


def test_a_generator_is_kept(
    network: nn.Module, numbered: TensorDataset, sage: dict[str, Any]
) -> None:
    orders = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        run = Run(network, numbered, sage, {}, generator=generator)
        orders.append([run.train(), run.train()])
        assert run.sampler.generator is generator
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]


def test_the_loader_must_be_prepared_and_hold_the_sampler(
    network: nn.Module, numbered: TensorDataset, sage: dict[str, Any]
) -> None:
    run = Run(network, numbered, sage, {})
    with pytest.raises(TypeError, match=r"accelerator.prepare\(loader\) returned, got DataLoader"):
        SamplerState(run.sampler, DataLoader(numbered, sampler=run.sampler))
    with pytest.raises(ValueError, match="holds the sampler, found another"):
        SamplerState(SageSampler(network, **sage), run.loader)
