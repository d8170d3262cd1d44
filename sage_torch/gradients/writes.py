"""Writes of a forward pass to parameters that stay in their model, seen and undone.

A frozen parameter is not exchanged for a copy, because a frozen base may be most of the memory. So
the functions that torch calls are watched instead: one that is about to write to the memory of such
a parameter is given time to copy it first, and nothing else is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sage_torch.gradients.memory import memory_of

__all__ = ["Written", "writes_undone"]


class Written(NamedTuple):
    """A parameter that was written to."""

    parameter: nn.Parameter
    is_rebound: bool  # whether its `.data` became another tensor


@contextmanager
def writes_undone(parameters: Sequence[nn.Parameter]) -> Iterator[list[Written]]:
    """Give parameters their memory and its content back on exit, even after an error or Ctrl-C.

    What writes to memory without a function of torch is not seen: NumPy, or a kernel of one's own
    that says nothing of it.

    Args:
        parameters: Strided parameters of no subclass.

    Yields:
        A list that holds, after the exit, the parameters that were written to.

    Cost:
        A look at each function of torch, some 20 microseconds; a copy of what is written to.
    """
    written: list[Written] = []
    if not parameters:
        yield written
        return
    watch = _Watch(parameters)
    before = torch._C._len_torch_dispatch_stack()
    try:
        # Without the flags that the mode's own `__enter__` sets, because Ctrl-C in its `__exit__`
        # would leave them, and torch.compile would be off for good. Here it is off in any case.
        torch._C._push_on_torch_dispatch_stack(watch)
        yield written
    finally:
        try:
            _leave(watch, before)
        except BaseException:  # Ctrl-C may strike in the middle
            _leave(watch, before)
            raise
        written += watch.changed()


class _Watch(TorchDispatchMode):
    """Copies a parameter when a function is about to write to its memory."""

    supports_higher_order_operators = True

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = parameters
        self._own = [parameter.detach() for parameter in parameters]  # the memory, not a copy
        self._copies: dict[int, Tensor] = {}  # by place
        self._rebound: set[int] = set()
        self._places: dict[int, list[int]] = {}  # of the parameters that lie in a memory
        for place, own in enumerate(self._own):
            address, size = memory_of(own)
            if size:
                self._places.setdefault(address, []).append(place)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable:
            for number, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._keep(args[number] if number < len(args) else kwargs.get(argument.name))
        return func(*args, **kwargs)

    def undo(self) -> None:
        """Give each parameter its memory and its content back."""
        for place, (parameter, own) in enumerate(zip(self._parameters, self._own, strict=True)):
            if parameter.data_ptr() != own.data_ptr() or parameter.shape != own.shape:
                self._rebound.add(place)
                parameter.data = own
        for place, copy in self._copies.items():
            self._own[place].copy_(copy)

    def changed(self) -> list[Written]:
        """Return the parameters that were written to, or given another memory."""
        places = sorted({*self._copies, *self._rebound})
        return [Written(self._parameters[place], place in self._rebound) for place in places]

    def _keep(self, target: Any) -> None:
        for tensor in target if isinstance(target, (list, tuple)) else [target]:
            if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
                continue
            for place in self._places.get(memory_of(tensor)[0], ()):
                if place not in self._copies:
                    self._copies[place] = self._own[place].clone()


def _leave(watch: _Watch, before: int) -> None:
    while torch._C._len_torch_dispatch_stack() > before:
        torch._C._pop_torch_dispatch_stack(None)
    with torch._C.DisableTorchFunction(), torch.no_grad():
        watch.undo()
