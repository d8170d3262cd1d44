"""Which values of a batch are taken for classes, and which are seen through."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from sage_torch import Selection, select_subset
from sage_torch.gradients import batches
from sage_torch.reading.labels import CLASSES, MANY, ONES, QUANTITY, kind_of

N = 600
INPUTS = torch.randn(N, 5, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(N) % 4


def error(model: nn.Module, batch: Any) -> Tensor:
    """A loss of the inputs alone, so that any target may stand beside them."""
    inputs = batch["x"] if isinstance(batch, dict) else batch[0]
    return (model(inputs) - inputs[:, :2]).square().mean(1)


def select(data: Dataset[Any], **options: Any) -> Selection:
    torch.manual_seed(0)
    return select_subset(
        nn.Linear(5, 2), data, 0.25, **{"loss": error, "progress": False, **options}
    )


def ids(low: int, high: int) -> Tensor:
    return torch.randint(low, high, (N,), generator=torch.Generator().manual_seed(1))


class Named(NamedTuple):
    x: Tensor
    y: Tensor
    weight: Tensor


@dataclass
class Attributes:
    x: Tensor
    labels: Tensor


@pytest.mark.parametrize(
    "batch",
    [
        (INPUTS, LABELS),
        [INPUTS, LABELS, torch.arange(N)],
        (INPUTS, LABELS, INPUTS),
        (INPUTS, INPUTS > 0, LABELS),  # ids, mask, labels
        (INPUTS, ["a"] * N, LABELS),  # a picture, its path, its label
        Named(INPUTS, LABELS, torch.rand(N)),
        {"x": INPUTS, "labels": LABELS[:, None]},
        Attributes(INPUTS, LABELS),
        (INPUTS, LABELS.to(torch.uint8)),
        (INPUTS, LABELS[:, None].int()),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_targets_are_found(batch: Any) -> None:
    found = batches.labels(batch)
    assert found is not None
    assert torch.equal(found.long(), LABELS)


@pytest.mark.parametrize(
    "batch",
    [
        INPUTS,
        (INPUTS,),
        (INPUTS, INPUTS),
        (INPUTS, LABELS.view(-1, 2)),
        {"x": INPUTS, "y": LABELS},
        (INPUTS, {"boxes": INPUTS}),
        (LABELS, INPUTS),
        (INPUTS, LABELS > 0),  # flags
    ],
)
def test_no_targets_are_found(batch: Any) -> None:
    assert batches.labels(batch) is None


def values(*counts: int, first: int = 0) -> tuple[Any, Any]:
    return np.arange(len(counts)) + first, np.array(counts)


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (values(*[1] * 500), ONES),  # an index
        (values(1, 1), ONES),
        (values(500), CLASSES),
        (values(1), CLASSES),  # one example: nothing speaks against it
        (values(300, 1, 1, 1), CLASSES),  # few values, however rare
        (values(*[5] * 1_000), CLASSES),  # a thousand classes with few examples
        (values(*[3] * 1_000), CLASSES),
        (values(*[2] * 500), MANY),  # every example twice: an index of repeated data
        (values(*[1] * 30, *[9] * 70), MANY),
        (values(*[1] * 20, *[9] * 80), CLASSES),  # a long tail
        (values(*[8] * 60, first=18), QUANTITY),  # ages
        (values(*[8] * 60, first=1), CLASSES),
        (values(*[8] * 10, first=18), CLASSES),
    ],
)
def test_values_decide(found: tuple[Any, Any], kind: int) -> None:
    assert kind_of(*found, "guessed") == kind
    assert kind_of(*found, "said") == CLASSES
    assert kind_of(*found, "trained_on") == (ONES if kind == ONES else CLASSES)


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(torch.arange(N), id="index"),
        pytest.param(torch.arange(N).flip(0) * 7, id="numbers of records"),
        pytest.param(torch.arange(N) // 2, id="index of repeated data"),
        pytest.param(ids(18, 91), id="age"),
        pytest.param(ids(5, 200)[:, None], id="length"),
        pytest.param(torch.rand(N), id="real"),
        pytest.param(torch.rand(N).round(decimals=1), id="rating"),
        pytest.param(torch.cat([torch.ones(N - 1), torch.full((1,), 0.5)]), id="last is real"),
    ],
)
@pytest.mark.parametrize("consensus", ["exact", "streaming", "one_pass"])
def test_what_is_no_class_changes_nothing(target: Tensor, consensus: str) -> None:
    # What may be classes at first sight would be sketched in fewer rows.
    options: dict[str, Any] = {"consensus": consensus, "batch_size": 64, "sketch_size": 64}
    plain = select(TensorDataset(INPUTS), **options)
    found = select(TensorDataset(INPUTS, target), **options)
    assert found.indices.tolist() == plain.indices.tolist()
    assert np.allclose(found.scores, plain.scores, atol=1e-5)
    assert found.labels is None
    assert found.settings["classes"] == 0
    assert found.settings["classes_because"].startswith("none: ")


@pytest.mark.parametrize(
    ("target", "count"),
    [
        pytest.param(LABELS, 4, id="classes"),
        pytest.param(LABELS[:, None], 4, id="column"),
        pytest.param((LABELS == 0).float(), 2, id="zeros and ones"),
        pytest.param((LABELS == 0).double()[:, None], 2, id="column of zeros and ones"),
        pytest.param((LABELS == 0).bfloat16(), 2, id="half"),
        pytest.param(torch.where(LABELS == 0, 1, -1), 2, id="signs"),
        pytest.param(torch.arange(N) % 150, 150, id="many classes"),
    ],
)
@pytest.mark.parametrize("rule", ["herding", "random"])
def test_classes_get_their_quotas(target: Tensor, count: int, rule: str) -> None:
    found = select(TensorDataset(INPUTS, target, torch.arange(N)), rule=rule)
    assert found.settings["classes"] == count
    whole = target.view(-1).long().numpy()
    assert found.labels is not None
    assert np.array_equal(found.labels, whole)
    for label in np.unique(whole):
        quarter = (whole == label).sum() / 4
        assert abs((whole[found.indices] == label).sum() - quarter) < 1


def test_what_was_found_is_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sage_torch"):
        select(TensorDataset(INPUTS, LABELS))
        select(TensorDataset(INPUTS, torch.arange(N)))
    lines = [each.getMessage() for each in caplog.records if "classes:" in each.getMessage()]
    assert lines == [
        "classes: 4 classes, by the targets of the batches",
        "classes: none: nearly every example has a label of its own, as with an index",
    ]


class Reading(Dataset[Any]):
    """Many examples with an index; counts the labels that are held at once."""

    def __init__(self, total: int, target: Callable[[int], int]) -> None:
        self.total, self.target = total, target

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Any:
        return INPUTS[index % N], self.target(index)


@pytest.mark.parametrize("consensus", ["exact", "streaming"])
@pytest.mark.parametrize("batch_size", [512, 1_000])
def test_a_long_index_is_given_up_early(consensus: str, batch_size: int) -> None:
    data = Reading(6_000, lambda index: index)
    found = select(data, consensus=consensus, batch_size=batch_size, sketch_size=8)
    plain = select(data, consensus=consensus, batch_size=batch_size, sketch_size=8, labels=None)
    assert found.settings["classes_because"] == (
        "none: nearly every example has a label of its own, as with an index"
    )
    assert found.indices.tolist() == plain.indices.tolist()
    assert np.allclose(found.scores, plain.scores, atol=1e-5)


def test_a_thousand_classes_are_not_given_up_early() -> None:
    found = select(Reading(6_000, lambda index: index % 1_000), rule="random", batch_size=1_000)
    assert found.settings["classes"] == 1_000


@pytest.mark.parametrize("shards", [1, 3, 7])
@pytest.mark.parametrize("batch_size", [50, 600])
@pytest.mark.parametrize("consensus", ["exact", "streaming"])
def test_batches_and_shards_do_not_change_what_is_found(
    shards: int, batch_size: int, consensus: str
) -> None:
    options: dict[str, Any] = {"shards": shards, "consensus": consensus, "batch_size": batch_size}
    found = select(TensorDataset(INPUTS, torch.arange(N) // 2), **options)
    assert found.settings["classes"] == 0
    plain = select(TensorDataset(INPUTS), **options)
    assert found.indices.tolist() == plain.indices.tolist()
    assert select(TensorDataset(INPUTS, LABELS), **options).settings["classes"] == 4


def test_what_a_default_loss_trains_on_are_classes() -> None:
    target = 20 + torch.arange(N) % 60  # above 1 and many, as ages
    torch.manual_seed(0)
    found = select_subset(nn.Linear(5, 80), TensorDataset(INPUTS, target), 0.5, progress=False)
    assert found.settings["classes"] == 60


def test_texts_as_labels_are_refused_in_few_words() -> None:
    names = [("owl", "cat", "horse")[index % 3] for index in range(N)]
    data = list(zip(INPUTS, names, strict=True))
    for options in ({}, {"checkpoint": None, "batch_size": 512}):
        with pytest.raises(ValueError, match=r"expected labels as whole numbers.*loss=") as caught:
            select_subset(nn.Linear(5, 3), data, 0.5, progress=False, **options)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 500
    assert select(data).settings["classes"] == 0  # with a loss of one's own they may be names
