"""One loss per example: the model and its loss as one module that every gradient computer calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage_torch._core import SageError
from sage_torch.gradients import batches
from sage_torch.gradients.batches import Batch

# loss(model, batch) -> (n,) losses, one per example.
LossFunction: TypeAlias = Callable[[nn.Module, Batch], Tensor]

__all__ = [
    "ExampleLoss",
    "LossFunction",
    "check_recorded",
    "differentiable",
    "ordinary",
    "unwrap",
]

_PASS_LOSS = (
    "pass loss=, a callable loss(model, batch) that returns one loss per example, shape (n,)"
)


class ExampleLoss(nn.Module):
    """Per-example losses `L_i = loss(model, batch)[i]` as a module, for use with functional_call.

    Being a module that contains the model, it lets `torch.func.functional_call` exchange the
    model's parameters and still hands the user's loss the very model object that it expects.

    Args:
        model: The model; wrappers (see `unwrap`) are taken off.
        loss: `loss(model, batch) -> (n,)`, or None for the cross-entropy of integer class targets:
            of `model(inputs)` for a batch `(inputs, targets)`, of `model(**rest)` for a mapping
            with `"labels"`, where the model returns logits (n, C) or an object with `.logits`.
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
        self._classes = 0  # C, as last seen by the default loss

    def forward(self, batch: Batch) -> Tensor:
        """Return the losses of a batch, checked for their shape.

        Args:
            batch: n examples, on the model's device.

        Returns:
            Tensor (n,) of a floating dtype. A target class out of range gives NaN here; `check`
            then names it.

        Raises:
            TypeError: The loss returned no tensor.
            ValueError: The loss has another shape, or the default loss does not fit batch and
                model.
        """
        n = batches.length(batch)
        losses = self._cross_entropy(batch) if self.loss is None else self.loss(self.model, batch)
        if not isinstance(losses, Tensor):
            raise TypeError(
                "loss must return one value per example: expected a tensor of shape (n,), "
                f"got {type(losses).__name__}"
            )
        if losses.shape != (n,):
            raise ValueError(_wrong_shape(losses, n))
        return losses

    def check(self, losses: Tensor, batch: Batch) -> None:
        """Refuse losses that are not finite.

        It is apart from `forward` because nothing can be raised on values inside vmap.

        Args:
            losses: Tensor (n,), what the batch gave.
            batch: The whole batch of n examples.

        Raises:
            ValueError: The default loss met a target class outside [0, C).
            SageError: Some loss is NaN or infinite; `row` is its position in the batch.

        Cost:
            One wait for the device.
        """
        finite = torch.isfinite(losses.detach())
        if bool(finite.all()):
            return
        row = int(finite.logical_not().nonzero()[0])
        if self.loss is None:
            target = int(_targets(batch)[row])
            if not 0 <= target < self._classes:
                out_of_range = ValueError(
                    f"target class {target} (row {row} of the batch) is outside "
                    f"[0, {self._classes}): the model returned {self._classes} logits per "
                    f"example; correct the targets or {_PASS_LOSS}"
                )
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

    def _cross_entropy(self, batch: Batch) -> Tensor:
        targets = _targets(batch)
        if isinstance(batch, Mapping):
            output = self.model(**{k: v for k, v in batch.items() if k != "labels"})
        else:
            output = self.model(batch[0])
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            raise ValueError(
                "the default loss needs a model that returns logits of shape (n, C), or an object "
                f"with .logits; got {type(output).__name__}; {_PASS_LOSS}"
            )
        if logits.ndim != 2 or len(logits) != len(targets) or logits.shape[1] < 2:
            raise ValueError(
                "the default loss (cross-entropy) needs logits of shape (n, C), C >= 2, for "
                f"targets of shape (n,); got logits {tuple(logits.shape)} for targets "
                f"{tuple(targets.shape)}; {_PASS_LOSS}"
            )
        self._classes = logits.shape[1]
        # A class out of range becomes NaN, which `check` finds: under vmap no value can be looked
        # at, and on CUDA the assertion inside cross_entropy would end the process's use of it.
        in_range = (targets >= 0) & (targets < self._classes)
        safe = torch.where(in_range, targets, 0).long()
        wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        losses = F.cross_entropy(wide, safe, reduction="none")
        return torch.where(in_range, losses, torch.nan)


def check_recorded(losses: Tensor) -> Tensor:
    """Refuse losses that autograd cannot follow back: their gradients would be zeros, not news.

    Args:
        losses: Tensor (n,), computed inside `differentiable`.

    Returns:
        The losses.

    Raises:
        ValueError: They do not require grad.
    """
    if not losses.requires_grad:
        raise ValueError(
            "expected losses that depend on the model's parameters, got losses that do not "
            "require grad; call the model outside torch.no_grad() and do not detach its output"
        )
    return losses


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


def _targets(batch: Batch) -> Tensor:
    targets = batches.labels(batch)
    is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    if targets is not None and (is_pair or isinstance(batch, Mapping)):
        return targets
    raise ValueError(
        "the default loss (cross-entropy) needs a batch (inputs, targets) or a mapping with "
        f'"labels", the targets integer classes of shape (n,); got {_describe(batch)}; {_PASS_LOSS}'
    )


def _describe(batch: Batch) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)} and dtype {batch.dtype}"
    if isinstance(batch, Mapping):
        found = ", ".join(f"{key!r}: {_describe(value)}" for key, value in batch.items())
        return f"a mapping {{{found}}}"
    if isinstance(batch, (tuple, list)):
        found = ", ".join(map(_describe, batch))
        return f"a {type(batch).__name__} of {len(batch)} ({found})"
    return f"a {type(batch).__name__}"


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
