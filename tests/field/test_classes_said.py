"""`labels=` says what the classes are: an array, a field, a callable, or None."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from sage_torch import SageSampler, Selection, select_subset
from sage_torch.checkpoint.snapshots import OtherSnapshotsError
from sage_torch.options import Options
from sage_torch.stream import SageStream

N = 240
INPUTS = torch.randn(N, 5, generator=torch.Generator().manual_seed(5))
DOMAINS = torch.arange(N) % 3


def error(model: nn.Module, batch: Any) -> Tensor:
    inputs = batch["x"] if isinstance(batch, dict) else batch[0]
    return (model(inputs) - inputs[:, :2]).square().mean(1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(5, 2)


def select(data: Any, **options: Any) -> Selection:
    defaults = {"loss": error, "progress": False, "batch_size": 64}
    return select_subset(network(), data, 0.25, **{**defaults, **options})


def expect_domains(found: Selection) -> None:
    assert found.settings["classes"] == 3
    assert found.labels is not None
    assert found.labels.tolist() == DOMAINS.tolist()
    assert np.bincount(found.labels[found.indices]).tolist() == [20, 20, 20]


@pytest.mark.parametrize(
    "labels",
    [
        DOMAINS,
        DOMAINS.numpy(),
        DOMAINS.tolist(),
        DOMAINS.float(),
        DOMAINS[:, None].numpy().astype(np.uint8),
        tuple(DOMAINS.tolist()),
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_an_array(labels: Any) -> None:
    expect_domains(select(TensorDataset(INPUTS, torch.arange(N)), labels=labels))


def test_an_array_is_not_kept_as_it_was_given() -> None:
    given = DOMAINS.numpy().copy()
    options = Options(0.5, labels=given)
    given[:] = 9
    assert isinstance(options.labels, np.ndarray)
    assert options.labels.tolist() == DOMAINS.tolist()
    assert given.flags.writeable


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return {"x": INPUTS[index], "labels": index, "domain": int(DOMAINS[index])}


@dataclass
class Batch:
    x: Tensor
    domain: Tensor

    def __getitem__(self, place: int) -> Tensor:
        return self.x if place == 0 else self.domain


def test_a_field() -> None:
    expect_domains(select(Rows(), labels="domain"))
    pairs = TensorDataset(INPUTS, DOMAINS)
    expect_domains(
        select(pairs, labels="domain", collate_fn=lambda items: Batch(*default_collate(items)))
    )


def test_a_callable() -> None:
    triples = TensorDataset(INPUTS, torch.arange(N), DOMAINS)
    found = select(triples, labels=lambda batch: batch[2])
    expect_domains(found)
    assert found.settings["labels"] == "<lambda>"
    expect_domains(select(triples, labels=lambda batch: batch[2].tolist()))


def test_said_labels_are_believed() -> None:
    found = select(TensorDataset(INPUTS), labels=np.arange(N) // 2)
    assert found.settings["classes"] == N // 2
    ages = 18 + np.arange(N) % 40
    assert select(TensorDataset(INPUTS, torch.from_numpy(ages)), labels=ages).labels is not None


def test_true_says_that_the_targets_are_classes() -> None:
    data = TensorDataset(INPUTS, 18 + torch.arange(N) % 40)
    assert select(data).settings["classes"] == 0
    assert select(data, class_balanced=True).settings["classes"] == 40


def test_none_says_that_there_are_no_classes() -> None:
    plain = select(TensorDataset(INPUTS))
    for consensus in ("exact", "streaming"):
        found = select(TensorDataset(INPUTS, DOMAINS), labels=None, consensus=consensus)
        assert found.labels is None
        assert found.settings["classes_because"] == "none: labels=None"
        if consensus == "exact":
            assert found.indices.tolist() == plain.indices.tolist()


class Unreadable(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        pytest.fail("the data set was read before the labels were checked")


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (DOMAINS[1:], ValueError, f"labels of all {N} examples, got {N - 1}"),
        (["cat"] * N, TypeError, r"np.unique\(names, return_inverse=True\)"),
        ([0.5] * N, ValueError, "whole numbers, got 0.5"),
        (torch.zeros(N, 2), ValueError, r"shape \(n,\), one per example, got \(240, 2\)"),
        (3, ValueError, "one per example"),
    ],
)
@pytest.mark.parametrize("enter", [select_subset, SageSampler])
def test_wrong_labels_are_refused_before_data_is_read(
    enter: Any, labels: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        enter(network(), Unreadable(), keep=0.25, labels=labels)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ("domian", ValueError, "field 'domian'.*'x', 'labels', 'domain'"),
        (lambda batch: batch["x"], ValueError, r"one per example, got \(16, 5\)"),
        (lambda batch: batch["domain"][:3], ValueError, "16 labels of a batch, got 3"),
        (lambda batch: ["a"] * 64, TypeError, "as numbers"),
    ],
)
def test_labels_that_batches_do_not_have(labels: Any, kind: type[Exception], message: str) -> None:
    model = network()
    calls: list[object] = []
    model.register_forward_hook(lambda *call: calls.append(call))
    with pytest.raises(kind, match=message) as caught:
        select_subset(model, Rows(), 0.25, labels=labels, loss=error, batch_size=64, progress=False)
    assert len(str(caught.value)) < 500
    assert not calls


def test_none_and_true_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r'labels=None.*class_balanced="auto"'):
        Options(0.5, labels=None, class_balanced=True)


def test_a_sampler_takes_them() -> None:
    sampler = SageSampler(
        network(), keep=0.25, loss=error, labels=DOMAINS, progress=False, warmup_epochs=0
    )
    loader = DataLoader(TensorDataset(INPUTS, torch.arange(N)), batch_size=20, sampler=sampler)
    kept = torch.cat([batch[1] for batch in loader])
    assert DOMAINS[kept].bincount().tolist() == [20, 20, 20]


def test_snapshots_of_other_labels_are_not_taken(tmp_path: Path) -> None:
    data, folder = TensorDataset(INPUTS), str(tmp_path / "snapshots")
    first = select(data, labels=DOMAINS, checkpoint=folder)
    again = select(data, labels=DOMAINS.tolist(), checkpoint=folder)
    assert again.indices.tolist() == first.indices.tolist()
    with pytest.raises(OtherSnapshotsError, match="data set"):
        select(data, labels=1 - DOMAINS, checkpoint=folder)
    with pytest.raises(OtherSnapshotsError, match="labels='ndarray' there, None here"):
        select(data, labels=None, checkpoint=folder)


class Source(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        for index in range(N):
            yield {"x": INPUTS[index], "labels": index, "domain": int(DOMAINS[index])}


def stream(**options: Any) -> SageStream:
    defaults = {"warm_up": 40, "batch_size": 40, "loss": error, "keep": 0.5}
    return SageStream(network(), Source(), **{**defaults, **options})


def test_a_stream_takes_them_too() -> None:
    kept = [each["domain"] for each in stream(labels="domain")]
    assert all(abs(count - 40) <= 6 for count in np.bincount(kept))
    of_none, of_one = (list(stream(labels=each)) for each in (None, lambda batch: [0] * 40))
    assert abs(len(of_none) - len(of_one)) <= 6
    with pytest.raises(TypeError, match="a stream has no examples to count"):
        stream(labels=DOMAINS)
    saved = stream(labels="domain").state_dict()
    with pytest.raises(ValueError, match="labels="):
        stream(labels=None).load_state_dict(saved)
