"""Who splits a sampler's indices, found along the loaders that hold it, real ones and stand-ins."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from sage_torch.sampler.splitters import (
    Splitter,
    chain,
    check_lengths,
    check_not_dispatched,
    splitter_of,
)


class Numbers(Sampler[int]):
    """A stand-in for ours whose length may change."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def __len__(self) -> int:
        return self.count


@pytest.fixture
def numbers() -> Numbers:
    return Numbers(45)


def wrapped(sampler: Sampler[int], **options: Any) -> DistributedSampler[Any]:
    given = {"num_replicas": 2, "rank": 0, "shuffle": False, **options}
    return DistributedSamplerWrapper(sampler, **given)


def accelerated(loader: DataLoader[Any], **options: Any) -> Any:
    """A loader as Accelerate makes it on process 0 of several, without the others."""
    Accelerator(cpu=True)
    given = {"num_processes": 2, "process_index": 0, **options}
    return prepare_data_loader(loader, **given)


HOLD: dict[str, Callable[[Any], dict[str, Any]]] = {
    "sampler": lambda inner: {"sampler": inner, "batch_size": 8},
    "no batches": lambda inner: {"sampler": inner, "batch_size": None},
    "batch sampler": lambda inner: {"batch_sampler": BatchSampler(inner, 8, False)},
    "sampled batches": lambda inner: {
        "sampler": BatchSampler(inner, 8, False),
        "batch_size": None,
    },
}


@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("hold", HOLD.values(), ids=HOLD)
def test_plain_loaders_split_nothing(
    hold: Callable[[Any], dict[str, Any]], kind: Any, numbers: Numbers, blobs: TensorDataset
) -> None:
    loader = kind(blobs, **hold(numbers))
    assert any(link is numbers for link in chain(loader))
    assert splitter_of([loader]) is None
    check_not_dispatched([loader])
    check_lengths([loader], numbers, 45)


@pytest.mark.parametrize("hold", HOLD.values(), ids=HOLD)
def test_a_distributed_wrapper(
    hold: Callable[[Any], dict[str, Any]], numbers: Numbers, blobs: TensorDataset
) -> None:
    loader = DataLoader(blobs, **hold(wrapped(numbers, num_replicas=3)))
    assert any(link is numbers for link in chain(loader))
    assert splitter_of([loader]) == Splitter(name="DistributedSamplerWrapper", num_replicas=3)
    check_not_dispatched([loader])


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("replicas", [1, 2, 4, 7])
def test_a_wrapper_whose_length_fits(
    replicas: int, drop_last: bool, numbers: Numbers, blobs: TensorDataset
) -> None:
    wrapper = wrapped(numbers, num_replicas=replicas, drop_last=drop_last)
    loader = DataLoader(blobs, sampler=wrapper)
    check_lengths([loader], numbers, 45)
    assert len(list(wrapper)) == len(wrapper)


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_stale_length_names_the_cure(
    drop_last: bool, numbers: Numbers, blobs: TensorDataset
) -> None:
    numbers.count = 90
    loader = DataLoader(blobs, sampler=wrapped(numbers, drop_last=drop_last))
    numbers.count = 23
    share = 11 if drop_last else 12
    match = rf"have {share} examples.*2 ranks.*got 45.*use_distributed_sampler=False"
    with pytest.raises(RuntimeError, match=match):
        check_lengths([loader], numbers, 23)


def test_a_sampler_that_is_taken_for_a_data_set(numbers: Numbers, blobs: TensorDataset) -> None:
    direct: Any = DistributedSampler(numbers, num_replicas=2, rank=0)  # type: ignore[arg-type]
    loader = DataLoader(blobs, sampler=direct)
    assert any(link is numbers for link in chain(loader))  # so that it is found at all
    with pytest.raises(RuntimeError, match=r"yields places.*hand the sampler itself"):
        check_lengths([loader], numbers, 45)


def test_a_wrapper_of_the_data_set_beside_ours(numbers: Numbers, blobs: TensorDataset) -> None:
    other: Any = DistributedSampler(blobs, num_replicas=2, rank=0)
    loaders = [DataLoader(blobs, sampler=numbers), DataLoader(blobs, sampler=other)]
    check_lengths(loaders, numbers, 45)
    assert not any(link is numbers for link in chain(loaders[1]))


class Asked(TensorDataset):
    """A data set that must not be asked for what it does not have."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"asked for {name}")


def test_wrapped_data_sets_are_not_asked(blobs: TensorDataset) -> None:
    data = Asked(*blobs.tensors)
    loader = DataLoader(data, sampler=DistributedSampler(data, num_replicas=2, rank=0))
    assert len(list(chain(loader))) == 3  # and its batches, and the wrapper


@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("name", ["sampler", "batch sampler", "sampled batches"])
def test_accelerate_on_several_processes(
    name: str, kind: Any, numbers: Numbers, blobs: TensorDataset
) -> None:
    loader = kind(blobs, **HOLD[name](numbers))
    prepared = accelerated(loader)
    found = [prepared.base_dataloader]
    assert any(link is numbers for link in chain(found[0]))
    assert any(isinstance(link, BatchSamplerShard) for link in chain(found[0]))
    assert splitter_of(found) == Splitter(name="Accelerate", num_replicas=2)
    assert splitter_of([loader, *found]) == Splitter(name="Accelerate", num_replicas=2)
    check_not_dispatched(found)
    check_lengths(found, numbers, 45)


def test_accelerate_with_batches_skipped(numbers: Numbers, blobs: TensorDataset) -> None:
    prepared = accelerated(DataLoader(blobs, batch_size=8, sampler=numbers))
    skipping = Accelerator(cpu=True).skip_first_batches(prepared, 2)
    found = [skipping.base_dataloader]
    assert any(link is numbers for link in chain(found[0]))
    assert splitter_of(found) == Splitter(name="Accelerate", num_replicas=2)


def test_accelerate_that_shows_all_ranks_the_same(numbers: Numbers, blobs: TensorDataset) -> None:
    """As with tensor parallelism: prepared, but split by nobody, and not to be split by us."""
    loader = DataLoader(blobs, batch_size=8, sampler=numbers)
    prepared = accelerated(loader, num_processes=1)
    assert splitter_of([prepared.base_dataloader]) == Splitter(name="Accelerate", num_replicas=1)
    assert splitter_of([loader]) is None


def test_batches_read_on_one_process_are_refused(numbers: Numbers, blobs: TensorDataset) -> None:
    loader = DataLoader(blobs, batch_size=8, sampler=numbers)
    prepared = accelerated(loader, dispatch_batches=True, put_on_device=True)
    found = [prepared.base_dataloader]
    check_not_dispatched(found)  # one process may
    prepared.state = type("State", (), {"num_processes": 2})()
    splitter = splitter_of(found)
    assert splitter == Splitter(name="Accelerate", num_replicas=2, reads_on_one_process=True)
    with pytest.raises(RuntimeError, match=r"2 processes.*dispatch_batches=False"):
        check_not_dispatched(found)
    check_not_dispatched([loader])


def test_loops_of_samplers_end(blobs: TensorDataset) -> None:
    first = SequentialSampler(blobs)
    second = BatchSampler(first, 8, False)
    first.sampler = second  # type: ignore[attr-defined]
    loader = DataLoader(blobs, batch_sampler=second)
    assert len(list(chain(loader))) == 4


def test_importing_imports_no_framework() -> None:
    code = (
        "import sys, sage_torch, sage_torch.sampler.splitters\n"
        "frameworks = {'lightning', 'pytorch_lightning', 'accelerate', 'transformers'}\n"
        "print(sorted((frameworks | {'torchdata'}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("framework", "extra"),
    [
        ("lightning", "lightning"),
        ("accelerate", "accelerate"),
        ("transformers", "transformers"),
    ],
)
def test_a_missing_framework_names_the_extra(
    framework: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = f"sage_torch.integrations.{framework}"
    missing = [name for name in sys.modules if name.split(".")[0] == framework]
    for name in [*missing, framework, "pytorch_lightning"]:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, ours, raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'sage-torch\[{extra}\]'"):
        __import__(ours)
