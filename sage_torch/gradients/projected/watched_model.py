"""Runs of a model under watch: two that observe, then those that fill rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sage_torch.gradients import batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.loop import grads_kept, other_leaves, own_leaf
from sage_torch.gradients.loss import ExampleLoss, differentiable, ordinary
from sage_torch.gradients.projected.layers import RULES, by_vmap
from sage_torch.gradients.projected.maps import Block
from sage_torch.gradients.projected.recorder import Recorder, Uses
from sage_torch.gradients.projected.uses import Observer, backward

__all__ = ["WatchedModel"]


class WatchedModel:
    """A model and its loss, run so that each use of its parameters is seen.

    Args:
        losses: Model and loss.
    """

    def __init__(self, losses: ExampleLoss) -> None:
        self._losses = losses
        self.dtypes: set[torch.dtype] = set()  # that the model computes in, once observed
        self._passes = _ForwardAndBackward(losses)

    def observe(self, some: Batch, blocks: Sequence[Block]) -> Uses:
        """Return every use of these parameters, learned from 2 and from 3 examples.

        Args:
            some: Examples, at least one; they are taken in turn.
            blocks: The parameters.

        Raises:
            UnstableModelError: Other functions are called for 3 examples than for 2.
        """
        observer: Observer | None = None
        for count in (2, 3):
            with differentiable():
                part = batches.places(batches.map_tensors(ordinary(some), own_leaf), range(count))
                state = self._state()
                names = {id(state[f"model.{b.name}"].requires_grad_()): b.name for b in blocks}
                observer = Observer(names, observer)
                with observer:
                    functional_call(self._losses, state, (part,))
        assert observer is not None  # there are two rounds
        self.dtypes |= observer.dtypes
        return observer.uses

    def fill(self, rows: Tensor, batch: Batch, blocks: Sequence[Block], uses: Uses) -> bool:
        """Fill the columns of these parameters with projected gradients.

        Args:
            rows: Tensor (n, d) of zeros.
            batch: n examples.
            blocks: The parameters.
            uses: What `observe` returned.

        Returns:
            Whether the losses depend on them.

        Raises:
            UnsupportedUseError: Parameters are used in a way that has no rule.
            ValueError, SageError: As `ExampleLoss` says.
        """
        return self._fill(rows, batch, blocks, uses).is_backward

    def measure(self, rows: Tensor, batch: Batch, blocks: Sequence[Block], uses: Uses) -> int:
        """Do as `fill`, and return the bytes that were held between forward and backward."""
        self._passes.saved = saved = _SavedBytes(self._losses)
        try:
            return self._fill(rows, batch, blocks, uses).kept_bytes + saved.bytes
        finally:
            self._passes.saved = None

    def _fill(self, rows: Tensor, batch: Batch, blocks: Sequence[Block], uses: Uses) -> Recorder:
        with differentiable():
            # Copies: a model may write to its inputs, and the batch may be run again.
            batch = batches.map_tensors(ordinary(batch), lambda t: own_leaf(t).clone())
            state = self._state()
            parameters = [(state[f"model.{block.name}"], block) for block in blocks]
            recorder = Recorder(parameters, rows, uses, RULES, by_vmap)
            state = {f"losses.{name}": tensor for name, tensor in state.items()}
            with recorder:
                losses = functional_call(self._passes, state, (batch, recorder))
        self._losses.check(losses, batch)
        return recorder

    def _state(self) -> dict[str, Tensor]:
        return {**self._losses.detached_parameters(), **self._losses.copied_buffers()}


class _ForwardAndBackward(nn.Module):
    """Losses and their backward pass while functional_call has the parameters exchanged.

    Activation checkpointing runs the model again in the backward pass, and must then find the
    exchanged parameters.
    """

    def __init__(self, losses: ExampleLoss) -> None:
        super().__init__()
        self.losses = losses
        self.saved: _SavedBytes | None = None  # what counts in the forward pass, if wanted

    def forward(self, batch: Batch, recorder: Recorder) -> Tensor:
        with self.saved or nullcontext():
            losses: Tensor = self.losses(batch)
        if losses.requires_grad:
            total = losses.sum()
            recorder.is_backward = True
            with grads_kept(other_leaves(total, [])):
                backward(total)
        return losses.detach()


class _SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the memory that a graph holds for its backward pass, parameters apart."""

    def __init__(self, losses: ExampleLoss) -> None:
        self.bytes = 0
        self._known = {p.untyped_storage().data_ptr() for p in losses.parameters()}
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor
