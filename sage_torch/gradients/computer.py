"""What a computer of per-example gradients must offer.

A computer turns a batch of n examples into rows (n, D), row i the gradient `g_i = dL_i/dw` of
example i's loss with respect to the chosen parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from sage_torch.gradients import batches
from sage_torch.gradients.batches import Batch


class GradientComputer(Protocol):
    """What turns batches into per-example gradients; any object of this form can take part.

    An attribute `handling`, a dict from each parameter's name to words, is shown in the selection.
    A plain function `batch -> (n, D)` will do as well: selection then takes D from the first rows,
    takes `covers_whole_network` for False, and shows its name for a description.

    Both passes of a selection must use the same computer. Rows must not depend on which other
    examples share the batch, and the model's parameters, gradients, buffers and mode must be as
    before after each call.

    Example:
        >>> import torch
        >>> class InputGradients:
        ...     dim, covers_whole_network = 4, False
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
        """Number of columns D, from construction on where possible, else after the first call.

        Raises:
            RuntimeError: It is not known before the first call.
        """
        ...

    @property
    def covers_whole_network(self) -> bool:
        """Whether the columns cover every parameter that requires grad.

        Only then does a negative margin mark an example to be trimmed.
        """
        ...

    def __call__(self, batch: Batch) -> Tensor:
        """Return the gradients of a batch.

        Args:
            batch: n examples on the model's device, as the loader collates them.

        Returns:
            Tensor (n, D) float32 on the model's device, detached, row i for example i.

        Raises:
            ValueError: The batch or its losses do not have the form the computer needs.
            SageError: A loss is not finite; `row` is its position in the batch.
        """
        ...

    def describe(self) -> str:
        """Say in one line what is computed, for the log and the selection.

        Returns:
            For example "functional: vmap(grad) over 10 parameters, D = 106,000".
        """
        ...


def rows_of(gradients: GradientComputer | Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """Return the gradients of a batch where the sketch can read them: on the CPU or a CUDA device.

    Args:
        gradients: Any computer.
        batch: n examples on the model's device.

    Returns:
        Tensor (n, D).

    Raises:
        TypeError: The computer returned no tensor.
        ValueError: It did not return one row an example.
    """
    rows = gradients(batch)
    n = batches.length(batch)
    if not isinstance(rows, Tensor):
        raise TypeError(f"expected gradients as a torch.Tensor, got {type(rows).__name__}")
    if rows.ndim != 2 or len(rows) != n:
        raise ValueError(
            f"expected one gradient an example, shape ({n}, D), got {tuple(rows.shape)}"
        )
    return rows if rows.device.type in ("cpu", "cuda") else rows.cpu()


GradientChoice: TypeAlias = str | GradientComputer | Callable[[Batch], Tensor]


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's first parameter or buffer lives; the CPU where it has none."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
