"""Features: what a model knows of an example before it is told the label."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

import sage_torch.gradients.batches as batches
from sage_torch._core import SageError
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.compressed import CompressedGradients
from sage_torch.gradients.computer import GradientComputer
from sage_torch.gradients.exchange import exchanged
from sage_torch.gradients.last_layer import LastLayerGradients
from sage_torch.gradients.loss import ExampleLoss, LossFunction, differentiable, ordinary
from sage_torch.gradients.outer import OuterRows, Rows, given_by, on_host_or_cuda

# A readout solves as many equations as there are features. The inputs of a larger layer are hardly
# what a network has learnt: they are the data themselves.
WIDEST = 2_048


class ClassifierInputs:
    """The inputs (n, H) of the Linear layer that makes the logits.

    Args:
        last: Finds the layer; its gradients are outer products with these inputs.

    Cost:
        One forward pass.
    """

    def __init__(self, last: LastLayerGradients) -> None:
        self.last = last

    def __call__(self, batch: Batch) -> Tensor:
        """Return the features (n, H) float32 of a batch."""
        return self.outer(batch).hidden

    def outer(self, batch: Batch) -> OuterRows:
        """Return the gradients of that layer as two factors; the second are the features.

        Raises:
            ValueError: An example has several positions, or as `LastLayerGradients`.
        """
        found = self.last.factors(batch)
        if isinstance(found, Tensor):
            raise ValueError(
                "expected one vector an example before the last layer, got several positions; pass "
                'gradients="projected"'
            )
        delta, hidden, bias = found
        return OuterRows(on_host_or_cuda(delta), on_host_or_cuda(hidden), bias)


class Logits:
    """The outputs (n, C) of a model that has no Linear layer before them.

    Args:
        model: The model.
        loss: As in `ExampleLoss`.

    Cost:
        One forward pass.
    """

    def __init__(self, model: nn.Module, loss: LossFunction | None) -> None:
        self._losses = ExampleLoss(model, loss)

    def __call__(self, batch: Batch) -> Tensor:
        """Return the logits (n, C) float32 of a batch.

        Raises:
            ValueError: The model does not return at least two numbers an example.
        """
        outputs: list[Tensor] = []

        def note(module: nn.Module, args: object, output: object) -> None:
            found = getattr(output, "logits", output)
            outputs[:] = [leaf.detach().clone() for leaf in batches.tensor_leaves(found)][:1]

        losses = self._losses
        handle = losses.model.register_forward_hook(note)
        try:
            with (
                differentiable(),
                torch.no_grad(),
                losses.exchangeable() as parameters,
                exchanged(losses, {**parameters, **losses.copied_buffers()}),
            ):
                losses(ordinary(batch))
        finally:
            handle.remove()
        n = batches.length(batch)
        if not outputs or outputs[0].ndim != 2 or len(outputs[0]) != n or outputs[0].shape[1] < 2:
            raise ValueError(
                f"expected logits of shape ({n}, C), got "
                f"{[tuple(output.shape) for output in outputs]}"
            )
        return on_host_or_cuda(outputs[0].float())


Features: TypeAlias = ClassifierInputs | Logits


def find_features(model: nn.Module, loss: LossFunction | None, batch: Batch) -> Features | None:
    """Return where a model's features are to be found; None if it has none of a known form.

    The inputs of the last layer, or the logits where it has none or one of over 2,048 inputs.

    Args:
        model: Unwrapped, in evaluation mode.
        loss: As in `ExampleLoss`.
        batch: A few examples, on the model's device.

    Raises:
        SageError: A loss is not finite.
    """
    makers: tuple[Callable[[], Features], ...] = (
        lambda: ClassifierInputs(LastLayerGradients(model, loss)),
        lambda: Logits(model, loss),
    )
    for make in makers:
        try:
            found = make()
            if found(batch).shape[1] <= WIDEST:
                return found
        except SageError:
            raise
        except (ValueError, TypeError, RuntimeError):  # no such layer, one for each token, no hooks
            continue
    return None


class Seen(NamedTuple):
    """What a forward pass has shown of a batch."""

    features: Tensor  # (n, H) float32
    outer: OuterRows | None = None  # the gradients' factors, if the features are one of them


class Looked(NamedTuple):
    """What one look at a batch has shown."""

    rows: Rows  # gradients
    seen: Seen | None


def see(features: Features, batch: Batch) -> Seen:
    """Return the features of a batch, and no gradients that cost more.

    Args:
        features: Gives them.
        batch: n examples, on the model's device.

    Raises:
        ValueError: As the features.
        SageError: A loss or a feature is not finite.
    """
    outer = features.outer(batch) if isinstance(features, ClassifierInputs) else None
    seen = Seen(features(batch) if outer is None else outer.hidden, outer)
    bad = (~seen.features.isfinite().all(dim=1)).nonzero()
    if len(bad):
        error = SageError("its features have a NaN or an infinite entry")
        error.row = int(bad[0])
        raise error
    return seen


def look(computer: GradientComputer, features: Features | None, batch: Batch, n: int) -> Looked:
    """Return gradients and features of a batch, by one forward pass where that is enough.

    Args:
        computer: Gives the gradients.
        features: Gives the features; None if nobody needs them.
        batch: n examples, on the model's device.
        n: How many examples were read for it.

    Raises:
        TypeError, ValueError, SageError: As the computer.
    """
    if features is None:
        return Looked(given_by(computer, batch, n), None)
    inner = computer.gradients if isinstance(computer, CompressedGradients) else computer
    if isinstance(features, ClassifierInputs) and inner is features.last:
        if isinstance(computer, CompressedGradients):
            computer.settled(batch, n)
        outer = features.outer(batch)
        return Looked(rows_from(computer, outer), Seen(outer.hidden, outer))
    return Looked(given_by(computer, batch, n), Seen(features(batch)))


def rows_from(computer: GradientComputer, outer: OuterRows) -> Rows:
    """Return gradients that are given by their factors as the sketch takes them: not too long.

    Args:
        computer: The computer of the last layer, with or without a count sketch behind it.
        outer: The factors.
    """
    if isinstance(computer, CompressedGradients) and computer.shortens:
        return computer.shortened(outer.delta, outer.hidden, bias=outer.bias)
    return outer
