"""One loss per example: the model and its loss as one module that every gradient computer calls."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from sage_torch._core import SageError
from sage_torch.gradients import batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.default_loss import DefaultLoss

# loss(model, batch) -> (n,) losses, one per example.
LossFunction: TypeAlias = Callable[[nn.Module, Batch], Tensor]

__all__ = [
    "ExampleLoss",
    "LossFunction",
    "UnrecordedError",
    "check_recorded",
    "differentiable",
    "in_whole_batch",
    "ordinary",
    "unwrap",
]

# What torch says of integers where it wants other numbers; every kernel has its own words.
_OF_INTEGERS = re.compile(
    r"\b(Byte|Char|Short|Int|Long|Bool|unsigned char|signed char|short|int|long|bool)\b"
    r"|mixed dtype|floating point"
)


class ExampleLoss(nn.Module):
    """Per-example losses `L_i = loss(model, batch)[i]` as a module, for use with functional_call.

    Being a module that contains the model, it lets `torch.func.functional_call` exchange the
    model's parameters and still hands the user's loss the very model object that it expects.

    Args:
        model: The model; wrappers (see `unwrap`) are taken off.
        loss: `loss(model, batch) -> (n,)`, or None for what `DefaultLoss` tells from the labels
            and logits: cross-entropy of classes, of tokens or of positions, and what a Hugging
            Face model computes of its labels.
    """

    def __init__(self, model: nn.Module, loss: LossFunction | None = None) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
        if loss is not None and not callable(loss):
            raise TypeError(f"expected loss to be callable or None, got {type(loss).__name__}")
        self.model = unwrap(model)
        # A loss that is a module is registered beside the model, so that its own parameters are
        # exchanged for detached ones like all others and never receive a gradient.
        self.loss = loss
        self._default = DefaultLoss()

    def forward(self, batch: Batch) -> Tensor:
        """Return the losses of a batch, checked for their shape.

        Args:
            batch: n examples, on the model's device.

        Returns:
            Tensor (n,) of a floating dtype. A label out of range gives NaN here; `check` then
            names it.

        Raises:
            TypeError: The loss returned no tensor.
            ValueError: The loss has another shape, the default loss does not fit batch and model,
                or a layer was given integers that it cannot compute with.
        """
        n = batches.length(batch)
        loss = self._default if self.loss is None else self.loss
        try:
            losses = loss(self.model, batch)
        except RuntimeError as error:
            message = _of_integer_inputs(self.model, error)
            if message is None:
                raise
            raise ValueError(message) from error
        if not isinstance(losses, Tensor):
            raise TypeError(
                "loss must return one value per example: expected a tensor of shape (n,), "
                f"got {type(losses).__name__}"
            )
        if losses.shape != (n,):
            raise ValueError(_wrong_shape(losses, n))
        return losses

    def check(self, losses: Tensor, batch: Batch) -> None:
        """Refuse losses that are not finite, and a default loss that is not the model's own.

        It is apart from `forward` because nothing can be raised on values inside vmap. The model
        may be called once more, so that hooks must be gone from it.

        Args:
            losses: Tensor (n,), what the batch gave.
            batch: The whole batch of n examples.

        Raises:
            ValueError: The default loss met a label outside [0, C), or is not what the Hugging
                Face model itself computes (see `DefaultLoss.compare`).
            SageError: Some loss is NaN or infinite; `row` is its position in the batch.

        Cost:
            One wait for the device.
        """
        finite = torch.isfinite(losses.detach())
        if bool(finite.all()):
            if self.loss is None:
                self._default.compare(self.model, losses.detach(), batch)
            return
        row = int(finite.logical_not().nonzero()[0])
        if self.loss is None:
            message = self._default.wrong_label(self.model, batch, row)
            if message is not None:
                out_of_range = ValueError(message)
                out_of_range.row = row  # type: ignore[attr-defined]
                raise out_of_range
        value = float(losses.detach()[row])
        error = SageError(
            f"expected a finite loss, got {value} (row {row} of the batch); look at that example, "
            "or lower the learning rate if training diverged"
        )
        error.row = row
        raise error

    def detached_parameters(self) -> dict[str, Tensor]:
        """Return every parameter, detached: sharing memory with the user's, apart from its graph.

        Returns:
            Names (`"model."` before the model's own) and tensors; tied parameters appear once,
            under their first name, and `functional_call` puts them in all their places.
        """
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def copied_buffers(self) -> dict[str, Tensor]:
        """Return a copy of every buffer, for the forward pass to write to in place of the user's.

        Returns:
            Names (`"model."` before the model's own) and tensors.
        """
        return {name: buffer.detach().clone() for name, buffer in self.named_buffers()}


class UnrecordedError(ValueError):
    """Losses do not depend on the chosen parameters, as far as autograd knows."""

    def __init__(self) -> None:
        super().__init__(
            "expected losses that depend on the model's parameters, got losses that do not "
            "require grad; call the model outside torch.no_grad() and do not detach its output"
        )


def check_recorded(losses: Tensor) -> Tensor:
    """Refuse losses that autograd cannot follow back: their gradients would be zeros, not news.

    Args:
        losses: Tensor (n,), computed inside `differentiable`.

    Returns:
        The losses.

    Raises:
        UnrecordedError: They do not require grad.
    """
    if not losses.requires_grad:
        raise UnrecordedError
    return losses


def in_whole_batch(error: Exception, start: int) -> Exception:
    """Return an error of a part of a batch, its row counted from the start of the whole batch.

    Args:
        error: What computing a part has raised; with `row`, if it is about one example.
        start: The part's first example.

    Returns:
        The error itself, or one of its kind with another row.
    """
    row = getattr(error, "row", None)
    if row is None or start == 0:
        return error
    text = str(error).replace(f"row {row} of the batch", f"row {row + start} of the batch")
    moved = type(error)(text)
    moved.row = row + start  # type: ignore[attr-defined]
    return moved


@contextmanager
def differentiable() -> Iterator[None]:
    """Record gradients whatever the caller's mode (no_grad, inference_mode), and run uncompiled.

    Compiled parts of a model run as written meanwhile: hooks and exchanged parameters would have
    them compiled again and again, up to the limit at which torch gives up compiling them at all.

    Returns:
        A context manager.
    """
    eager = torch.compiler.set_stance("force_eager")
    with torch.inference_mode(False), torch.enable_grad(), eager:
        yield


def ordinary(batch: Batch) -> Batch:
    """Return the batch with tensors made under inference_mode copied: autograd refuses those.

    Args:
        batch: n examples.

    Returns:
        The batch, free to take part in a graph. To be called inside `differentiable`.
    """
    return batches.map_tensors(batch, lambda t: t.clone() if t.is_inference() else t)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DataParallel, DistributedDataParallel and torch.compile wrappers.

    Args:
        model: Any module.

    Returns:
        The innermost wrapped module; the model itself where there is no wrapper.
    """
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        # torch.compile's wrapper is known by the attribute that its state_dict keys also show;
        # its class has no public name.
        inner = model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _of_integer_inputs(model: nn.Module, error: RuntimeError) -> str | None:
    """Say what to do about an error that a layer raised on integers, None about all others.

    Told by the innermost layer in the traceback: it has parameters, and all tensors that it was
    called with are integers. A loss function that wants other targets, or a model of mixed
    precision, fails elsewhere.
    """
    if not _OF_INTEGERS.search(str(error)) or "indices" in str(error):
        return None
    layers = {id(module): name for name, module in model.named_modules()}
    layer, values, trace = None, [], error.__traceback__
    while trace is not None:
        called = inspect.getargvalues(trace.tb_frame)
        inner = called.locals.get("self")
        if inner is not layer and id(inner) in layers:  # the first of its frames is the call
            names = [*called.args, called.varargs, called.keywords]
            values = [called.locals[name] for name in names if name is not None]
            layer = inner
        trace = trace.tb_next
    tensors = batches.tensor_leaves(values)
    if layer is None or isinstance(layer, nn.Embedding) or not tensors:
        return None
    learns = any(p.is_floating_point() for p in layer.parameters(recurse=False))
    if not learns or any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors):
        return None
    name = layers[id(layer)]
    where = f"{type(layer).__name__} {name!r}" if name else f"the {type(layer).__name__}"
    return (
        f"{where} was given inputs of dtype {tensors[0].dtype}; convert them to floating point in "
        "the data set or its transform, for instance inputs.float() / 255 for images"
    )


def _wrong_shape(losses: Tensor, n: int) -> str:
    message = (
        "loss must return one value per example: expected shape (n,), got "
        f"{tuple(losses.shape)} for a batch of n = {n}"
    )
    if losses.ndim == 0:
        return message + '; use reduction="none" in the loss function'
    if losses.ndim > 1:
        return message + "; reduce the other dimensions, for instance losses.flatten(1).mean(1)"
    return message
