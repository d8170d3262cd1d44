"""Small data and models that many tests share."""

from __future__ import annotations

import copy
import gc
import os
import signal
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from on_device import Sketches
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES, FEATURES = 3, 6


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker of pytest-xdist, and what it starts, one thread: there is one a core."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started with & by a script
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput") and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the sketch's tests run on a GPU."""
    parser.addoption("--device", help='where sketches of backend="torch" live: cuda')


@pytest.fixture(autouse=True)
def _sketches_live_there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    device = request.config.getoption("--device")
    module = getattr(request, "module", None)
    if device is not None and hasattr(module, "FrequentDirections"):
        monkeypatch.setattr(module, "FrequentDirections", Sketches(device))


# The longest files, longest first.
DEAR = [
    "test_accuracy", "test_distributed", "test_projected", "test_two_processes", "test_notebooks",
    "test_accelerator",
    "test_stateful_loader", "test_model_untouched", "test_command_select", "test_sampler_epochs",
    "test_model_supported", "test_compiled_part",
    "test_projected_zoo", "test_demo", "test_ddp_sampler", "test_lightning", "test_trainer",
    "test_selection_parity", "test_selection_errors", "test_memory", "test_snapshots",
    "test_sketch_accuracy", "test_projected_batches", "test_testing", "test_fuzz_files",
]  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no worker of pytest-xdist waits long for the last."""
    if hasattr(config, "workerinput"):
        place = {name: number for number, name in enumerate(DEAR)}
        items.sort(key=lambda item: place.get(item.path.stem, len(DEAR)))


def pytest_collection_finish() -> None:
    """Spare the collector, and each search for loaders, half a million objects of modules."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def blobs() -> TensorDataset:
    """90 examples of 6 features in 3 equal classes, (inputs, labels)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % CLASSES
    centres = 2 * torch.randn(CLASSES, FEATURES, generator=generator)
    return TensorDataset(centres[labels] + torch.randn(90, FEATURES, generator=generator), labels)


@pytest.fixture
def network() -> nn.Sequential:
    """A small classifier of the blobs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))


@pytest.fixture(scope="session")
def digits() -> tuple[TensorDataset, TensorDataset]:
    """Scikit-learn's handwritten digits: 1,437 to train on, 360 to test on."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    inputs = torch.from_numpy(images[order] / 16).float()
    targets = torch.from_numpy(labels[order]).long()
    return TensorDataset(inputs[360:], targets[360:]), TensorDataset(inputs[:360], targets[:360])


@pytest.fixture(scope="session")
def _warm(digits: tuple[TensorDataset, TensorDataset]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        loader = DataLoader(digits[0], batch_size=32, shuffle=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for inputs, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return model


@pytest.fixture
def warm(_warm: nn.Module) -> Callable[[], nn.Module]:
    """Make a classifier of the digits that has seen them once."""
    return lambda: copy.deepcopy(_warm)
