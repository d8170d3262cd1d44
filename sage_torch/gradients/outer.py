"""Gradients of a linear layer given by their two factors, which the sketch can read as they are."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import sage_torch._core as _core
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.compressed import CompressedGradients, counted_rows
from sage_torch.gradients.computer import GradientComputer, rows_of
from sage_torch.gradients.last_layer import LastLayerGradients


class OuterRows(NamedTuple):
    """Rows `[delta_i ⊗ hidden_i, delta_i]`; the last part only if the layer has a bias."""

    delta: Tensor  # (n, C) float32
    hidden: Tensor  # (n, H) float32
    bias: bool


Rows: TypeAlias = Tensor | OuterRows


def given_by(gradients: GradientComputer, batch: Batch, n: int) -> Rows:
    """Return the gradients of a batch of n examples, as two factors if the computer has them.

    `LastLayerGradients` has factors unless an example has several positions.

    Raises:
        TypeError, ValueError, SageError: As `rows_of`.
    """
    if isinstance(gradients, CompressedGradients):
        gradients = gradients.settled(batch, n)
    if not isinstance(gradients, LastLayerGradients):
        return counted_rows(gradients, batch, n)
    found = gradients.factors(batch)
    if isinstance(found, Tensor):
        return rows_of(lambda _: found, batch, n)
    delta, hidden, bias = found
    return OuterRows(on_host_or_cuda(delta), on_host_or_cuda(hidden), bias)


def on_host_or_cuda(tensor: Tensor) -> Tensor:
    """Return a tensor on a device that the sketch can read."""
    return tensor if tensor.device.type in ("cpu", "cuda") else tensor.cpu()


def size_of(rows: Rows) -> tuple[int, torch.device]:
    """Return the length and the device of the rows."""
    if isinstance(rows, OuterRows):
        return rows.delta.shape[1] * (rows.hidden.shape[1] + rows.bias), rows.delta.device
    return rows.shape[1], rows.device


def part_of(rows: Rows, part: slice) -> Rows:
    """Return the rows in a slice."""
    if isinstance(rows, OuterRows):
        return OuterRows(rows.delta[part], rows.hidden[part], rows.bias)
    return rows[part]


def add_to(
    sketch: _core.FrequentDirections, rows: Rows, class_ids: NDArray[np.int32] | None
) -> None:
    """Add rows or factors of rows to a sketch.

    Raises:
        ValueError, TypeError, SageError: As `FrequentDirections.update`.
    """
    if isinstance(rows, OuterRows):
        sketch.update_outer(rows.delta, rows.hidden, class_ids, bias=rows.bias)
    else:
        sketch.update(rows, class_ids)
