"""What a stream refuses, and what it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from streams import Repeated, without_places
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sage_torch import SageError
from sage_torch.stream import SageStream


class Pairs(IterableDataset[Any]):
    def __init__(self, *examples: Any) -> None:
        self.examples = examples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.examples)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"keep": 0.0}, ValueError, "keep"),
        ({"keep": 1.5}, ValueError, "keep"),
        ({"keep": float("nan")}, ValueError, "keep"),
        ({"keep": 100}, TypeError, "a share in"),
        ({"keep": True}, TypeError, "a share in"),
        ({"keep": "0.25"}, TypeError, "keep"),
        ({"rule": "herding"}, ValueError, "examples that a stream does not keep"),
        ({"half_life": 0}, ValueError, "half_life"),
        ({"half_life": "long"}, TypeError, "half_life"),
        ({"half_life": 1.5}, TypeError, "half_life"),
        ({"warm_up": -1}, ValueError, "warm_up"),
        ({"warm_up": True}, TypeError, "warm_up"),
        ({"sketch_size": 0}, ValueError, "sketch_size"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"num_workers": -1}, ValueError, "num_workers"),
        ({"class_balanced": "yes"}, ValueError, "class_balanced"),
        ({"gradients": "exact"}, ValueError, "gradients"),
        ({"params": "nothing.*"}, ValueError, "nothing"),
        ({"loss": 3}, TypeError, "loss"),
        ({"collate_fn": 3}, TypeError, "collate_fn"),
        ({"seed": -1}, ValueError, "seed"),
        ({"compress": 0}, ValueError, "compress"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_work_starts(
    network: nn.Module, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        SageStream(network, Pairs(), **options)


def test_what_is_no_stream_or_no_model_is_refused(network: nn.Module, blobs: TensorDataset) -> None:
    with pytest.raises(TypeError, match="is better served by SageSampler"):
        SageStream(network, blobs)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="wrap an iterable"):
        SageStream(network, iter([1, 2]))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        SageStream(len, Pairs())  # type: ignore[arg-type]


def test_a_loader_with_workers_is_told_to_leave_them_to_the_stream(
    network: nn.Module, blobs: TensorDataset
) -> None:
    stream = SageStream(network, Repeated(blobs), collate_fn=without_places)
    with pytest.raises(RuntimeError, match="num_workers=0 and pass num_workers= to SageStream"):
        next(iter(DataLoader(stream, batch_size=8, num_workers=1)))


def test_one_reading_at_a_time(network: nn.Module, blobs: TensorDataset) -> None:
    stream = SageStream(network, Repeated(blobs), 1.0, collate_fn=without_places)
    first = iter(stream)
    next(first)
    second = iter(stream)
    with pytest.raises(RuntimeError, match="one reading of a SageStream at a time"):
        next(first)
    assert len(list(second)) == len(blobs)


def test_a_gradient_that_is_not_finite_names_the_example(
    network: nn.Module, blobs: TensorDataset
) -> None:
    inputs, labels = blobs.tensors
    inputs[70, 2] = torch.nan
    source = Repeated(TensorDataset(inputs, labels), order=torch.arange(90))
    with pytest.raises(SageError, match="example 70 of the stream") as caught:
        list(SageStream(network, source, collate_fn=without_places, batch_size=16))
    assert caught.value.index == 70


def test_labels_must_be_there_or_not(network: nn.Module) -> None:
    with_label, without = (torch.randn(6), 1), (torch.randn(6), torch.tensor([1.0, 0, 0]))

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch[0]).square().sum(1)

    options: dict[str, Any] = {"loss": loss, "batch_size": 1}
    with pytest.raises(ValueError, match="or none to"):
        list(SageStream(network, Pairs(with_label, without), **options))
    with pytest.raises(ValueError, match="pass class_balanced=False"):
        list(SageStream(network, Pairs(without), class_balanced=True, **options))
    stream = SageStream(network, Pairs(without, without), 1.0, **options)
    assert len(list(stream)) == 2


def test_a_collate_function_that_drops_examples_is_refused(
    network: nn.Module, blobs: TensorDataset
) -> None:
    stream = SageStream(network, Repeated(blobs), collate_fn=lambda part: without_places(part[1:]))
    with pytest.raises(ValueError, match="must keep every example"):
        list(stream)


def test_an_empty_stream_gives_nothing(network: nn.Module) -> None:
    stream = SageStream(network, Pairs())
    assert list(stream) == []
    assert (stream.seen, stream.kept) == (0, 0)
