"""The interface of a gradient computer.

A computer turns a batch of n examples into rows (n, D). Row i is `g_i = dL_i/dw`, the gradient of
the loss of example i with respect to the chosen parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

import sage_torch.gradients.batches as batches
from sage_torch.gradients.batches import Batch


class GradientComputer(Protocol):
    """An object that turns batches into per-example gradients.

    An attribute `handling`, a dict from the name of each parameter to a description, is shown in
    the selection. A plain function `batch -> (n, D)` also works: selection then takes D from the
    first rows, and shows the name of the function.

    Both passes of a selection must use the same computer. A row must not depend on the other
    examples of the batch. A call must leave the parameters, gradients, buffers and mode of the
    model unchanged. A batch may be any object, since a selection counts the examples that it reads.

    Example:
        >>> import torch
        >>> class InputGradients:
        ...     dim = 4
        ...     def __call__(self, batch):
        ...         return batch[0].flatten(1).float()
        ...     def describe(self):
        ...         return "the inputs themselves"
        >>> from sage_torch.gradients import choose_gradients
        >>> choose_gradients(torch.nn.Linear(4, 3), kind=InputGradients()).describe()
        'the inputs themselves'
    """

    @property
    def dim(self) -> int:
        """Number of columns D.

        Raises:
            RuntimeError: The computer learns D in its first call, which has not happened yet.
        """
        ...

    def __call__(self, batch: Batch) -> Tensor:
        """Return the gradients of a batch.

        Args:
            batch: n examples on the model's device, as collated by the loader.

        Returns:
            Tensor (n, D) float32 on the model's device, detached; row i belongs to example i.

        Raises:
            ValueError: The batch or its losses do not have the form that the computer needs.
            SageError: A loss is not finite; `row` is its position in the batch.
        """
        ...

    def describe(self) -> str:
        """Return one line that describes the computation, for the log and the selection.

        Returns:
            For example "functional: vmap(grad) over 10 parameters, D = 106,000".
        """
        ...


def rows_of(
    gradients: GradientComputer | Callable[[Batch], Tensor], batch: Batch, n: int | None = None
) -> Tensor:
    """Return the gradients of a batch on a device that the sketch can read, the CPU or CUDA.

    Args:
        gradients: Any computer.
        batch: n examples on the model's device.
        n: How many examples were read for it; None to count them in the batch.

    Returns:
        Tensor (n, D).

    Raises:
        TypeError: The computer returned no tensor.
        ValueError: The computer did not return one row per example.
    """
    rows = gradients(batch)
    n = batches.length(batch) if n is None else n
    if not isinstance(rows, Tensor):
        raise TypeError(
            f"expected gradients as a torch.Tensor, got {type(rows).__name__}; return a tensor "
            f"with one row for each of the {n} examples of the batch"
        )
    if rows.ndim != 2 or len(rows) != n:
        raise ValueError(
            f"expected one gradient per example, shape ({n}, D), got {tuple(rows.shape)}; return "
            f"one row for each of the {n} examples that the batch was made of, in their order"
        )
    return rows if rows.device.type in ("cpu", "cuda") else rows.cpu()


GradientChoice: TypeAlias = str | GradientComputer | Callable[[Batch], Tensor]


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer; the CPU if it has neither."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
