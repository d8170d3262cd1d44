"""What goes wrong during a selection: a clear error, and the sampler keeps its last subset."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset, default_collate

from sage_torch import SageError, SageSampler, select_subset

N, GUILTY = 90, 41
Example = tuple[Tensor, Any]


class Pliable(Dataset[Example]):
    """The blobs, until `change(inputs, label, index, in_pass)` is set: it may alter each reading.

    Pass 2 begins when all examples have been read since then.
    """

    def __init__(self, blobs: TensorDataset) -> None:
        self.inputs, self.labels = (tensor.clone() for tensor in blobs.tensors)
        self.inputs[:, 5] = 0  # the mark of the guilty: 1
        self.total = len(blobs)
        self.readings: Counter[int] = Counter()
        self.in_pass = 1
        self.change: Callable[[Tensor, Any, int, int], Example] | None = None

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Example:
        if index >= self.total:
            raise IndexError(index)
        example = self.inputs[index % N].clone(), self.labels[index % N]
        if self.change is None:
            return example
        self.in_pass = 2 if len(self.readings) == N else 1
        self.readings[index] += 1
        return self.change(*example, index, self.in_pass)


@pytest.fixture
def data(blobs: TensorDataset) -> Pliable:
    return Pliable(blobs)


class Branching(nn.Module):
    """A model that vmap refuses, so that a loop of backward passes computes its gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Any:
        return self.layer(inputs) * (1.0 if inputs.isfinite().all() else 2.0)


def functional(network: nn.Module, **options: Any) -> SageSampler:
    return SageSampler(network, keep=0.25, gradients="functional", **options)


def last_layer(network: nn.Module, **options: Any) -> SageSampler:
    return SageSampler(network, keep=0.25, gradients="last_layer", **options)


def loop(network: nn.Module, **options: Any) -> SageSampler:
    return SageSampler(Branching(), keep=0.25, gradients="functional", **options)


computers = pytest.mark.parametrize("computer", [functional, last_layer, loop])
modes = pytest.mark.parametrize("consensus", ["exact", "streaming"])


def assert_refused(
    sampler: SageSampler, data: Pliable, change: Any, error: type[Exception], message: str
) -> Exception:
    """Select once in peace, then under `change`: it must fail and leave the first selection."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the loop announces itself
        first = sampler.select()
        data.change = change
        with pytest.raises(error, match=message) as caught:
            sampler.select()
    assert sampler.selection is first
    data.total = N  # whatever it was meanwhile
    assert sorted(sampler) == first.indices.tolist()
    return caught.value


def of(data: Pliable, sampler: SageSampler) -> SageSampler:
    """Give the sampler a data set, so that it needs no loader."""
    again = SageSampler(sampler.model, data, keep=sampler.keep)
    again._refresher.options = sampler._refresher.options
    return again


def marked_loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy; for a marked example it is finite, but its gradient is not."""
    logits, mark = model(batch[0]), batch[0][:, 5]
    spike = (1 - mark + 0 * logits.sum(1)).sqrt()  # at 0, the slope of the root is infinite
    return F.cross_entropy(logits, batch[1], reduction="none") + spike


@modes
@computers
@pytest.mark.parametrize("when", [1, 2])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_not_finite(
    computer: Callable[..., SageSampler],
    what: str,
    when: int,
    consensus: str,
    network: nn.Module,
    data: Pliable,
) -> None:
    def change(inputs: Tensor, label: Tensor, index: int, in_pass: int) -> Example:
        if index == GUILTY and in_pass == when:
            inputs[5] = 1.0 if what == "gradient" else torch.nan
        return inputs, label

    options = {"consensus": consensus, "batch_size": 32, "trim": "negative"}  # two readings
    if what == "gradient":
        options["loss"] = marked_loss
    sampler = of(data, computer(network, **options))
    message = f"example {GUILTY} of the data set.*(finite|NaN)"
    error = assert_refused(sampler, data, change, SageError, message)
    assert error.index == GUILTY  # type: ignore[attr-defined]
    assert data.in_pass == when  # no sooner, no later


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("per_part", [1, 4])
def test_not_finite_where_a_batch_is_differentiated_in_parts(
    what: str, per_part: int, network: nn.Module, data: Pliable
) -> None:
    mark = 1.0 if what == "gradient" else torch.nan
    dim = sum(parameter.numel() for parameter in network.parameters())

    def change(inputs: Tensor, label: Tensor, index: int, in_pass: int) -> Example:
        inputs[5] = mark if index == GUILTY else 0.0
        return inputs, label

    sampler = SageSampler(
        network, data, keep=0.5, loss=marked_loss, compress=8, memory_budget=8 * dim * per_part
    )
    error = assert_refused(sampler, data, change, SageError, f"example {GUILTY} of the data set")
    assert error.index == GUILTY  # type: ignore[attr-defined]


@pytest.mark.parametrize("when", [1, 2])
def test_class_out_of_range(when: int, network: nn.Module, data: Pliable) -> None:
    def change(inputs: Tensor, label: Tensor, index: int, in_pass: int) -> Example:
        return inputs, (label + 7 if index == GUILTY and in_pass == when else label)

    message = rf"example {GUILTY} of the data set.*outside \[0, 3\)"
    if when == 2:  # then it is another label than before, and that comes first
        message = f"example {GUILTY} to keep its label"
    assert_refused(
        SageSampler(network, data, keep=0.5, batch_size=32, trim="negative"),
        data,
        change,
        ValueError,
        message,
    )


def changed_label(label: Tensor) -> object:
    return (label + 1) % 3


def fractional_label(label: Tensor) -> object:
    return label.float()


@modes
@pytest.mark.parametrize("relabel", [changed_label, fractional_label])
def test_labels_change_between_passes(
    relabel: Callable[[Tensor], object], consensus: str, network: nn.Module, data: Pliable
) -> None:
    def change(inputs: Tensor, label: Tensor, index: int, in_pass: int) -> Example:
        whole_batch = relabel is fractional_label
        if in_pass == 2 and (index == GUILTY or whole_batch):
            return inputs, relabel(label)
        return inputs, label

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).square().sum(1)  # of no label at all

    options = {"loss": loss, "consensus": consensus, "batch_size": 32, "trim": "negative"}
    sampler = SageSampler(network, data, keep=0.5, **options)  # type: ignore[misc]
    assert_refused(sampler, data, change, ValueError, "label.*do not change the data set")


@modes
@pytest.mark.parametrize("now", [N - 20, N + 20])
@pytest.mark.parametrize("after", [10, N + 2, N + 40, 2 * N + 1])
def test_length_changes(
    now: int, after: int, consensus: str, network: nn.Module, data: Pliable
) -> None:
    def change(inputs: Tensor, label: Tensor, index: int, in_pass: int) -> Example:
        if sum(data.readings.values()) == after:
            data.total = now
        return inputs, label

    options = {"consensus": consensus, "trim": "negative"}
    sampler = SageSampler(network, data, keep=0.5, batch_size=16, **options)  # type: ignore[misc]
    assert_refused(sampler, data, change, ValueError, f"{N} examples.*{now} now")


def test_length_changes_beside_a_score_dataset(
    network: nn.Module, data: Pliable, blobs: TensorDataset
) -> None:
    viewed = Pliable(blobs)

    def change(inputs: Tensor, label: Tensor, index: int, in_pass: int) -> Example:
        data.total = N - 20
        return inputs, label

    sampler = SageSampler(network, data, keep=0.5, score_dataset=viewed)
    viewed_first = sampler.select()
    viewed.change = change
    with pytest.raises(ValueError, match=f"{N} examples.*{N - 20} now"):
        sampler.select()
    assert sampler.selection is viewed_first


def without_the_last(examples: list[Any]) -> Any:
    return default_collate(examples[:-1])


def inputs_without_the_last(examples: list[Any]) -> Any:
    inputs, labels = default_collate(examples)
    return inputs[:-1], labels


def labels_without_the_last(examples: list[Any]) -> Any:
    inputs, labels = default_collate(examples)
    return inputs, labels[:-1]


def twice(examples: list[Any]) -> Any:
    return default_collate(examples + examples)


def no_tensors(examples: list[Any]) -> Any:
    return [float(inputs[0]) for inputs, _ in examples]


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (without_the_last, "batch of 16 examples, got 15: the collate function must keep every"),
        (twice, "batch of 16 examples, got 32"),
        (inputs_without_the_last, r"disagrees with its labels: 16 labels.*\(15, 6\)"),
        (labels_without_the_last, r"disagrees with its labels: 15 labels.*\(16, 6\)"),
        (no_tensors, "at least one tensor"),
    ],
)
def test_batches_of_another_length(
    collate: Callable[[list[Any]], Any], message: str, network: nn.Module, blobs: TensorDataset
) -> None:
    calls: list[object] = []
    network.register_forward_hook(lambda *call: calls.append(call))
    with pytest.raises(ValueError, match=message):
        select_subset(network, blobs, 0.5, batch_size=16, collate_fn=collate)
    assert not calls


@pytest.mark.parametrize(
    "targets",
    [torch.rand(N), torch.randint(3, (N, 4)), torch.rand(N, 3), torch.rand(N) > 0.5],
    ids=["real", "several", "soft", "boolean"],
)
def test_classes_are_needed_but_missing(targets: Tensor, network: nn.Module) -> None:
    calls: list[object] = []
    network.register_forward_hook(lambda *call: calls.append(call))
    data = TensorDataset(torch.randn(N, 6), targets)
    loss = lambda model, batch: model(batch[0]).square().sum(1)  # noqa: E731
    with pytest.raises(ValueError, match=r"integer class labels for class_balanced=True"):
        select_subset(network, data, 0.5, class_balanced=True, loss=loss)
    assert not calls
    unbalanced = select_subset(network, data, 0.5, loss=loss)
    assert calls
    assert unbalanced.labels is None


@pytest.mark.parametrize("gradients", ["auto", "functional", "last_layer"])
def test_model_without_parameters_that_require_grad(
    gradients: str, network: nn.Module, blobs: TensorDataset
) -> None:
    calls: list[object] = []
    network.requires_grad_(False).register_forward_hook(lambda *call: calls.append(call))
    with pytest.raises(ValueError, match="no parameter that requires grad"):
        select_subset(network, blobs, 0.5, gradients=gradients)
    assert not calls
    with pytest.raises(ValueError, match="no parameter that requires grad"):
        select_subset(nn.Flatten(), blobs, 0.5, gradients=gradients)


def poisoned(batch: Any) -> Tensor:
    rows = batch[0].clone()
    rows[batch[0][:, 5] == 1] = torch.nan
    return rows


@pytest.mark.parametrize("compress", ["auto", None, 2])
@pytest.mark.parametrize(
    ("gradients", "error", "message"),
    [
        (lambda batch: batch[0].tolist(), TypeError, "torch.Tensor.*list"),
        (lambda batch: batch[0].numpy(), TypeError, "torch.Tensor.*ndarray"),
        (lambda batch: None, TypeError, "torch.Tensor.*NoneType"),
        (lambda batch: batch[0][:, 0], ValueError, r"shape \(90, D\), got \(90,\)|\(1,\)"),
        (lambda batch: batch[0][:, None], ValueError, r"got \((90|1), 1, 6\)"),
        (lambda batch: batch[0][1:], ValueError, r"got \((89|0), 6\)"),
        (lambda batch: torch.cat([batch[0]] * 2), ValueError, r"got \((180|2), 6\)"),
        (lambda batch: batch[0].int(), TypeError, "float32, float64.*int32"),
        (lambda batch: batch[0].to(torch.complex64), TypeError, "float32, float64.*complex64"),
        (lambda batch: batch[0].to_sparse(), TypeError, "(?i)dense|strided|sparse"),
        (lambda batch: batch[0][:, :0], ValueError, "0"),
        (poisoned, SageError, f"example {GUILTY} of the data set.*(finite|NaN)"),
    ],
)
def test_wrong_rows_of_a_custom_computer(
    gradients: Any,
    error: type[Exception],
    message: str,
    compress: Any,
    network: nn.Module,
    data: Pliable,
) -> None:
    data.inputs[GUILTY, 5] = 1
    with pytest.raises(error, match=message) as caught:
        select_subset(network, data, 0.5, gradients=gradients, compress=compress)
    if error is SageError:
        assert caught.value.index == GUILTY  # type: ignore[attr-defined]


def test_rows_that_change_their_width(network: nn.Module, blobs: TensorDataset) -> None:
    widths = iter([6, 6, 5, 5, 5, 5, 5])
    with pytest.raises(ValueError, match=r"6.*5"):
        select_subset(
            network, blobs, 0.5, gradients=lambda batch: batch[0][:, : next(widths)], batch_size=30
        )


@modes
@pytest.mark.parametrize("rule", ["herding", "agreement", "random"])
@pytest.mark.parametrize("labels", [[0, 1, 2], [10**12, -7, 5]])
def test_class_without_a_quota_is_named(
    labels: list[int], rule: str, consensus: str, blobs: TensorDataset
) -> None:
    inputs, ids = blobs.tensors
    data = TensorDataset(inputs, torch.tensor(labels)[ids])
    options: dict[str, Any] = {"rule": rule, "consensus": consensus}
    with pytest.warns(UserWarning, match="gives no example to 1 of 3 classes") as caught:
        kept = select_subset(
            nn.Linear(6, 3), data, 2, gradients=lambda batch: batch[0], **options
        ).indices
    (left_out,) = set(labels) - set(data.tensors[1][kept.copy()].tolist())
    (warning,) = caught
    assert f"(labels {left_out})" in str(warning.message)
    assert warning.filename == __file__  # it points at the caller's line


def test_random_views_are_noticed(network: nn.Module, data: Pliable, blobs: TensorDataset) -> None:
    def jitter(inputs: Tensor, label: Tensor, index: int, in_pass: int) -> Example:
        return inputs + torch.randn(6), label

    data.change = jitter
    with pytest.warns(
        UserWarning, match=r"reading an example again.*select_subset.*score_dataset="
    ) as caught:
        select_subset(network, data, 0.5)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = select_subset(network, blobs, 0.5)
        viewed = SageSampler(network, data, keep=0.5, score_dataset=blobs).select()
        select_subset(network, data, 0.5, rule="random")  # which looks at labels only
    assert np.array_equal(viewed.indices, plain.indices)
    assert np.array_equal(viewed.scores, plain.scores)
