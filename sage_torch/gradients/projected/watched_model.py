"""Runs of a model: two that observe its use of parameters, then those that fill rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

import sage_torch.gradients.batches as batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.exchange import exchanged
from sage_torch.gradients.loop import grads_kept, other_leaves, own_leaf
from sage_torch.gradients.loss import ExampleLoss, differentiable, ordinary
from sage_torch.gradients.memory import memory_of
from sage_torch.gradients.modes import modes_left
from sage_torch.gradients.projected.elementwise import by_vmap
from sage_torch.gradients.projected.layers import RULES
from sage_torch.gradients.projected.maps import Block
from sage_torch.gradients.projected.recorder import Recorder, Uses
from sage_torch.gradients.projected.rowwise import KnownRows
from sage_torch.gradients.projected.uses import Observer, backward

__all__ = ["WatchedModel"]


class WatchedModel:
    """Runs a model and its loss, and sees each use of their parameters.

    Args:
        losses: Model and loss.
    """

    def __init__(self, losses: ExampleLoss) -> None:
        self._losses = losses
        self.dtypes: set[torch.dtype] = set()  # those of the model's results, once observed
        self._known = KnownRows()
        self._saved: _SavedBytes | None = None  # counts bytes in the forward pass, if set

    def observe(self, some: Batch, blocks: Sequence[Block]) -> Uses:
        """Return every use of these parameters, as seen in runs with 2 and with 3 examples.

        Args:
            some: At least one example; they are repeated if there are fewer than 3.
            blocks: The parameters.

        Raises:
            UnstableModelError: The run with 3 examples calls other functions than that with 2.
        """
        observer: Observer | None = None
        for count in (2, 3):
            with differentiable(), self._losses.exchangeable(_names(blocks)) as parameters:
                part = batches.places(batches.map_tensors(ordinary(some), own_leaf), range(count))
                chosen = self._losses.named(_names(blocks))
                names = {
                    id(parameters[id(parameter)].requires_grad_()): block.name
                    for parameter, block in zip(chosen, blocks, strict=True)
                }
                observer = Observer(names, observer)
                state = {**parameters, **self._losses.copied_buffers()}
                with exchanged(self._losses, state), modes_left(observer):
                    self._losses(part)
        assert observer is not None  # there are two rounds
        self.dtypes |= observer.dtypes
        return observer.uses

    def fill(self, rows: Tensor, batch: Batch, blocks: Sequence[Block], uses: Uses) -> bool:
        """Fill the columns of these parameters with projected gradients.

        Args:
            rows: Tensor (n, d) of zeros.
            batch: n examples.
            blocks: The parameters.
            uses: The result of `observe`.

        Returns:
            Whether the losses depend on the parameters.

        Raises:
            UnsupportedUseError: A use of the parameters has no rule.
            ValueError, SageError: As `ExampleLoss`.
        """
        return self._fill(rows, batch, blocks, uses).is_backward

    def measure(self, rows: Tensor, batch: Batch, blocks: Sequence[Block], uses: Uses) -> int:
        """Call `fill`, and return the bytes held between the forward and the backward pass."""
        self._saved = saved = _SavedBytes(self._losses)
        try:
            return self._fill(rows, batch, blocks, uses).kept_bytes + saved.bytes
        finally:
            self._saved = None

    def _fill(self, rows: Tensor, batch: Batch, blocks: Sequence[Block], uses: Uses) -> Recorder:
        with differentiable(), self._losses.exchangeable(_names(blocks)) as parameters:
            # Copies, because a model may write to its inputs and the batch may be run again.
            batch = batches.map_tensors(ordinary(batch), lambda t: own_leaf(t).clone())
            chosen = self._losses.named(_names(blocks))
            followed = [(parameters[id(p)], b) for p, b in zip(chosen, blocks, strict=True)]
            recorder = Recorder(followed, rows, uses, RULES, by_vmap, self._known)
            if self._saved is not None:
                self._saved.ignore(parameters.values())
                self._saved.recorder = recorder
            state = {**parameters, **self._losses.copied_buffers()}
            with exchanged(self._losses, state), modes_left(recorder):
                losses = self._forward_and_backward(batch, recorder)
        self._losses.check(losses, batch)
        return recorder

    def _forward_and_backward(self, batch: Batch, recorder: Recorder) -> Tensor:
        """Return the losses after their backward pass, while the parameters are exchanged.

        The backward pass must come before they are put back, because activation checkpointing runs
        the model again during it.
        """
        with self._saved or nullcontext():
            losses: Tensor = self._losses(batch)
        if losses.requires_grad:
            total = losses.sum()
            recorder.is_backward = True
            with grads_kept(other_leaves(total, [])):
                backward(total)
        return losses.detach()


def _names(blocks: Sequence[Block]) -> list[str]:
    return [block.name for block in blocks]


class _SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the memory that a graph holds for its backward pass, without parameters."""

    def __init__(self, losses: ExampleLoss) -> None:
        self.bytes = 0
        self.recorder: Recorder | None = None
        self._known: set[int] = set()
        self.ignore(losses.parameters())
        super().__init__(self._count, lambda tensor: tensor)

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Do not count the memory of these tensors."""
        self._known |= {memory_of(tensor)[0] for tensor in tensors}

    def _count(self, tensor: Tensor) -> Tensor:
        where, size = memory_of(tensor)
        if self.recorder is not None:
            self._known |= self.recorder.constants
            if self.recorder.is_deriving:
                self._known.add(where)
        if where not in self._known:
            self._known.add(where)
            self.bytes += size
        return tensor
