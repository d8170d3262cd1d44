"""Exact per-example gradients of any differentiable loss, by vmap over grad."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from textwrap import shorten

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

import sage_torch.gradients.batches as batches
from sage_torch._core import SageError
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.chunks import Chunks, is_out_of_memory
from sage_torch.gradients.exchange import exchanged
from sage_torch.gradients.interaction import FirstBatch, losses_of
from sage_torch.gradients.loop import LoopGradients
from sage_torch.gradients.loss import (
    ExampleLoss,
    LossFunction,
    check_recorded,
    differentiable,
    ordinary,
)
from sage_torch.gradients.parameters import ParameterChoice, choose_parameters

__all__ = ["FunctionalGradients"]

# The gradients of a chunk, the intermediate results of vmap (as large), and the activations.
_COPIES_PER_CHUNK = 3


class FunctionalGradients:
    """Per-example gradients `g_i = dL_i/dw`, exact, by `torch.func.vmap(grad)`.

    Columns follow `model.named_parameters()`, every parameter flattened row by row. A parameter
    that the loss does not use has zero columns. A tied parameter appears once, with the sum of the
    gradients over its places. The caller sets the mode of the model: eval mode, as in the selection
    passes, switches dropout off and stops examples from interacting through batch norm. `.grad` and
    `requires_grad` of parameters, and buffers, stay unchanged.

    If vmap cannot differentiate a model (recurrent layers, activation checkpointing, writing in
    place, control flow that depends on data), a warning names the cause, and from then on the
    gradients are computed by one backward pass per example.

    Args:
        model: The model; DataParallel, DistributedDataParallel and torch.compile are unwrapped.
        loss: `loss(model, batch) -> (n,)`, one loss per example; None for that of `ExampleLoss`.
            Under vmap it receives batches of one example.
        params: The parameters: None for all that require grad, a name, names or fnmatch patterns
            (`"head.*"`), or a predicate `(name, parameter) -> bool`; all but None may also choose
            frozen parameters.
        memory_budget: Bytes for the gradients of one chunk of examples and the temporaries of
            vmap. The returned rows take 4 n D bytes more.

    Raises:
        ValueError: `params` matches nothing, the model has no parameter that requires grad, or
            a chosen parameter is complex.

    Cost:
        The time of about one forward and backward pass per example, in chunks of
        `memory_budget / (12 D)` examples; one wait for the device per batch.

    Example:
        >>> import torch
        >>> from sage_torch.gradients import FunctionalGradients
        >>> model = torch.nn.Linear(4, 3)
        >>> gradients = FunctionalGradients(model)
        >>> gradients((torch.randn(8, 4), torch.randint(3, (8,)))).shape
        torch.Size([8, 15])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction | None = None,
        params: ParameterChoice | None = None,
        *,
        memory_budget: int = 2**30,
    ) -> None:
        if memory_budget <= 0:
            raise ValueError(f"expected memory_budget in bytes, above 0, got {memory_budget}")
        self._losses = ExampleLoss(model, loss)
        chosen = choose_parameters(self._losses.model, params)
        self._names = list(chosen)
        self._loop = LoopGradients(self._losses, self._names)
        self._first: FirstBatch | None = FirstBatch(self._losses)
        self._instead: Callable[[Batch], Tensor] | None = None  # of vmap, once it has refused
        self._dim = sum(parameter.numel() for parameter in chosen.values())
        self._chunks = Chunks(max(1, memory_budget // (4 * _COPIES_PER_CHUNK * self._dim)))

    @property
    def dim(self) -> int:
        """Number of columns D: the elements of the chosen parameters, tied parameters once."""
        return self._dim

    def describe(self) -> str:
        """Return one line that describes the computation.

        Returns:
            For example "functional: vmap(grad) over 10 parameters, D = 106,000".
        """
        how = "one backward pass per example" if self._instead else "vmap(grad)"
        return f"functional: {how} over {len(self._names)} parameters, D = {self._dim:,}"

    @property
    def handling(self) -> dict[str, str]:
        """How each chosen parameter is handled: all of them exactly."""
        how = "one backward pass per example" if self._instead else "vmap(grad)"
        return dict.fromkeys(self._names, f"{how}: exact")

    def __call__(self, batch: Batch) -> Tensor:
        """Return the gradients of a batch.

        Args:
            batch: n examples, on the model's device.

        Returns:
            Tensor (n, D) float32 on the model's device, detached, for a model of any dtype.

        Raises:
            ValueError: The shape of the losses is not (n,), they do not depend on the parameters,
                the batch does not fit, examples of the first batch interact, or all their gradients
                are zero.
            SageError: A loss is not finite; `row` is its position in the batch.

        Warns:
            UserWarning: vmap cannot differentiate the model, or memory ran out and the chunk size
                was halved.
        """
        if self._first is None:
            return self._rows(batch)
        self._first.check(batch)
        rows = self._rows(batch)
        self._first.refuse_zeros(rows)
        return rows

    def unchecked(self) -> FunctionalGradients:
        """Return this computer, which from now on does not check the first batch."""
        self._first = None
        return self

    def _rows(self, batch: Batch) -> Tensor:
        if self._instead is not None:
            return self._instead(batch)
        if self._sets_others(batch):
            return self._without_vmap(batch, "the forward pass sets .data of a parameter")
        try:
            rows, losses = self._by_vmap(batch)
        except Exception as error:
            if not _may_be_refusal(error):
                raise
            # Only the text is kept: the traceback holds every tensor of the attempt.
            cause = shorten(str(error), 200) or type(error).__name__
        else:
            self._losses.check(losses, batch)
            return rows
        return self._without_vmap(batch, cause)

    def _sets_others(self, batch: Batch) -> bool:
        """Return whether the model sets `.data` of other parameters, on which vmap crashes."""
        chosen = {id(parameter) for parameter in self._losses.named(self._names)}
        are_all = all(id(parameter) in chosen for parameter in self._losses.parameters())
        if self._losses.rebound() is None and not are_all:
            losses_of(self._losses, batches.take(batch, 0, 1))
        return bool((self._losses.rebound() or set()) - chosen)

    def _without_vmap(self, batch: Batch, cause: str) -> Tensor:
        """Return the rows of the first batch that vmap refuses, and find a way for all others."""
        rows = self._loop(batch)  # if this fails too, its error is easier to read
        self._instead = self._loop
        warnings.warn(
            "vmap cannot differentiate this model; its gradients are computed by one backward "
            f"pass per example from now on, which is slower. Cause: {cause}",
            UserWarning,
            stacklevel=4,
        )
        return rows

    def _by_vmap(self, batch: Batch) -> tuple[Tensor, Tensor]:
        n = batches.length(batch)
        with differentiable(), self._losses.exchangeable(self._names) as parameters:
            batch = ordinary(batch)
            fixed = {**parameters, **self._losses.copied_buffers()}
            chosen = {id(p): fixed.pop(id(p)) for p in self._losses.named(self._names)}
            device = next(iter(chosen.values())).device
            rows = torch.empty((n, self._dim), dtype=torch.float32, device=device)
            losses: list[Tensor] = []

            def fill(start: int, part: Batch) -> None:
                gradients, part_losses = self._differentiate(chosen, fixed, part)
                part_rows = rows[start : start + len(part_losses)]
                _write(part_rows, [gradients[key] for key in chosen])
                losses.append(part_losses)  # last, because a part is repeated if memory runs out

            self._chunks.run(batch, fill)
        return rows, torch.cat(losses)

    def _differentiate(
        self, chosen: dict[int, Tensor], fixed: dict[int, Tensor], part: Batch
    ) -> tuple[dict[int, Tensor], Tensor]:
        def loss_of_one(chosen: dict[int, Tensor], leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
            example = batches.replace_leaves(part, [leaf.unsqueeze(0) for leaf in leaves])
            with exchanged(self._losses, {**fixed, **chosen}):
                losses = self._losses(example)
            loss = check_recorded(losses).squeeze(0)
            return loss, loss.detach()

        gradient_and_loss = grad(loss_of_one, has_aux=True)
        # In train mode, dropout is drawn anew for each example, as in a loop.
        over_examples = vmap(gradient_and_loss, in_dims=(None, 0), randomness="different")
        result: tuple[dict[int, Tensor], Tensor] = over_examples(
            chosen, batches.tensor_leaves(part)
        )
        return result


def _may_be_refusal(error: Exception) -> bool:
    """Return whether one backward pass per example might work after this error of vmap."""
    return not isinstance(error, (ValueError, SageError, MemoryError)) and (
        not is_out_of_memory(error)
    )


def _write(rows: Tensor, gradients: Sequence[Tensor]) -> None:
    column = 0
    for gradient in gradients:
        flat = gradient.detach().flatten(1) if gradient.ndim > 1 else gradient.detach()[:, None]
        rows[:, column : column + flat.shape[1]] = flat
        column += flat.shape[1]
