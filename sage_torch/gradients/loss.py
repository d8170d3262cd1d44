"""One loss per example: a model and its loss as one module, called by every gradient computer."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import TypeAlias

import torch
from torch import Tensor, nn

import sage_torch.gradients.batches as batches
from sage_torch._core import SageError
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.default_loss import DefaultLoss
from sage_torch.gradients.exchange import Exchangeable, exchanged, is_plain
from sage_torch.gradients.supported import check_model

# loss(model, batch) -> (n,) losses, one per example.
LossFunction: TypeAlias = Callable[[nn.Module, Batch], Tensor]

__all__ = [
    "ExampleLoss",
    "LossFunction",
    "UnrecordedError",
    "check_recorded",
    "differentiable",
    "ordinary",
    "rows_counted_from",
    "unwrap",
]

# Messages of torch about integers where it needs other numbers; they differ from kernel to kernel.
_OF_INTEGERS = re.compile(
    r"\b(Byte|Char|Short|Int|Long|Bool|unsigned char|signed char|short|int|long|bool)\b"
    r"|mixed dtype|floating point"
)


_CALLED = (
    "loss is called as loss(model, batch) and returns one loss per example, shape (n,). Wrap a "
    "criterion of outputs and targets: loss=lambda model, batch: "
    'F.cross_entropy(model(batch[0]), batch[1], reduction="none").'
)


class ExampleLoss(nn.Module):
    """Per-example losses `L_i = loss(model, batch)[i]` as a module that holds the model.

    As one module, it lets `exchanged` exchange the parameters of the model and of the loss, and
    still passes the original model object to the loss function.

    Args:
        model: The model; wrappers (see `unwrap`) are removed.
        loss: `loss(model, batch) -> (n,)`. None for `DefaultLoss`: the cross-entropy of classes,
            tokens or positions, as the labels and logits show, or the own loss of a Hugging Face
            model.

    Raises:
        TypeError: `model` is no module, or `loss` is not callable or takes outputs and targets.
        ValueError: As `check_model`.
    """

    def __init__(self, model: nn.Module, loss: LossFunction | None = None) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
        if loss is not None and not callable(loss):
            raise TypeError(f"expected loss to be callable or None, got {type(loss).__name__}")
        if isinstance(loss, nn.modules.loss._Loss):
            raise TypeError(f"loss={type(loss).__name__}() takes outputs and targets: {_CALLED}")
        self.model = unwrap(model)
        check_model(self.model)
        # A loss that is a module is registered beside the model. Its parameters are then exchanged
        # for detached ones like all others, and never receive a gradient.
        self.loss = loss
        self._default = DefaultLoss()
        self._exchangeable = Exchangeable()

    def forward(self, batch: Batch) -> Tensor:
        """Return the losses of a batch, checked for their shape.

        Args:
            batch: n examples, on the model's device.

        Returns:
            Tensor (n,) of a floating dtype. A label out of range gives NaN, and `check` names it.

        Raises:
            TypeError: The loss returned no tensor, or failed before it called the model.
            ValueError: The loss has another shape, the default loss does not fit the batch and the
                model, or a layer received integers that it cannot compute with.
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
        except (TypeError, AttributeError) as error:
            if self.loss is None or not _is_of_arguments(self.model, batch, error):
                raise
            raise TypeError(f"{_CALLED} It failed with: {shorten(str(error), 150)}") from error
        if not isinstance(losses, Tensor):
            raise TypeError(
                "loss must return one value per example: expected a tensor of shape (n,), "
                f"got {type(losses).__name__}"
            )
        if n == 1 and losses.ndim == 0:  # after squeeze(): that of the only example
            losses = losses.reshape(1)
        if losses.shape != (n,):
            raise ValueError(_wrong_shape(losses, n))
        return losses

    def check(self, losses: Tensor, batch: Batch) -> None:
        """Check that losses are finite and that the default loss agrees with the model's own.

        `forward` cannot do this: inside vmap no error can depend on values. The model may be called
        once more, so remove all hooks from it first.

        Args:
            losses: Tensor (n,), the result of `forward`.
            batch: The whole batch of n examples.

        Raises:
            ValueError: The default loss met a label outside [0, C), or differs from the loss that
                the Hugging Face model computes (see `DefaultLoss.compare`).
            SageError: A loss is NaN or infinite; `row` is its position in the batch.

        Cost:
            One wait for the device.
        """
        finite = torch.isfinite(losses.detach())
        if bool(finite.all()):
            if self.loss is None and not self._default.is_compared:
                with self.exchangeable() as parameters, exchanged(self, parameters):
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
            f"expected a finite loss, got {value} (row {row} of the batch); check that example, or "
            "lower the learning rate if training diverged"
        )
        error.row = row
        raise error

    def named(self, names: Iterable[str]) -> list[nn.Parameter]:
        """Return parameters of the model by name."""
        parameters = dict(self.model.named_parameters())
        return [parameters[name] for name in names]

    @contextmanager
    def exchangeable(self, names: Iterable[str] = ()) -> Iterator[dict[int, Tensor]]:
        """Yield detached parameters to exchange for those that are trained or named.

        All others, such as frozen and quantised ones, stay where they are. A detached parameter
        shares the memory of the original, unless the forward pass writes to it (see
        `Exchangeable`).

        Args:
            names: Names of parameters of the model that need not be trained.

        Yields:
            Tensors by the `id` of the originals, for `exchanged`.
        """
        with self._exchangeable.detached(self, {id(p) for p in self.named(names)}) as found:
            yield found

    def rebound(self) -> set[int] | None:
        """Return the `id` of parameters whose `.data` the forward pass sets; None if unknown."""
        return self._exchangeable.rebound if self._exchangeable.watched else None

    def copied_buffers(self) -> dict[int, Tensor]:
        """Return a copy of every buffer, by its `id`, which the forward pass may write to."""
        return {id(b): b.detach().clone() for b in self.buffers() if is_plain(b)}


class UnrecordedError(ValueError):
    """The losses do not depend on the chosen parameters in the graph of autograd."""

    def __init__(self) -> None:
        super().__init__(
            "expected losses that depend on the model's parameters, got losses that do not "
            "require grad; call the model outside torch.no_grad() and do not detach its output"
        )


def check_recorded(losses: Tensor) -> Tensor:
    """Return the losses, Tensor (n,), if autograd can follow them back to parameters.

    Raises:
        UnrecordedError: They do not require grad, so that all gradients would be zero.
    """
    if not losses.requires_grad:
        raise UnrecordedError
    return losses


@contextmanager
def rows_counted_from(start: int) -> Iterator[None]:
    """Count the `row` of errors in the whole batch, inside code that computes a part of it.

    Args:
        start: Position of the first example of the part.
    """
    try:
        yield
    except (SageError, ValueError) as error:
        row = getattr(error, "row", None)
        if row is None or start == 0:
            raise
        text = str(error).replace(f"row {row} of the batch", f"row {row + start} of the batch")
        moved = type(error)(text)
        moved.row = row + start  # type: ignore[union-attr]
        raise moved from error


@contextmanager
def differentiable() -> Iterator[None]:
    """Record gradients even inside no_grad or inference_mode, and run the model uncompiled.

    Hooks and exchanged parameters would make torch recompile compiled parts of the model again and
    again, until it reaches its limit and stops compiling them.
    """
    with torch.inference_mode(False), torch.enable_grad():
        eager = None
        try:
            eager = torch.compiler.set_stance("force_eager")  # from here on
            yield
        finally:
            if eager is not None:
                try:
                    eager.__exit__(None, None, None)
                except BaseException:  # Ctrl-C may strike in the middle
                    eager.__exit__(None, None, None)
                    raise


def ordinary(batch: Batch) -> Batch:
    """Return the batch with tensors made under inference_mode copied, as autograd requires.

    Call it inside `differentiable`.
    """
    return batches.map_tensors(batch, lambda t: t.clone() if t.is_inference() else t)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the innermost module of DataParallel, DistributedDataParallel and torch.compile.

    A model without wrapper is returned unchanged.
    """
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        # The class of torch.compile's wrapper is private, but its state_dict keys show this name.
        inner = model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _of_integer_inputs(model: nn.Module, error: RuntimeError) -> str | None:
    """Return how to fix an error that a layer raised on integers, None for all other errors.

    The innermost layer in the traceback decides: it must have parameters, and all tensors that it
    was called with must be integers. A loss function that needs other targets, or a model of mixed
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


def _is_of_arguments(model: nn.Module, batch: Batch, error: Exception) -> bool:
    """Return whether a loss has taken the model for outputs, or the batch for targets.

    The error then names the class of one of them, and comes from no module of the model.
    """
    if not any(type(given).__name__ in str(error) for given in (model, batch)):
        return False
    modules = {id(module) for module in model.modules()}
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if id(frame.f_locals.get("self")) in modules and frame.f_code.co_name != "__getattr__":
            return False
        trace = trace.tb_next
    return True


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
