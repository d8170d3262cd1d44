"""The run that fills the rows: each use of a parameter adds its projected gradient.

In the forward pass a rule (layers.py) keeps the projected input of a function. In the backward pass
a hook receives the gradient of the output, and adds the product of both to the rows. No weight
requires grad, so that autograd computes no weight gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor

from sage_torch.gradients.chunks import is_out_of_memory
from sage_torch.gradients.memory import memory_of
from sage_torch.gradients.modes import full_precision, outside_the_model
from sage_torch.gradients.projected.columns import DerivedTarget, ParameterTarget, Target
from sage_torch.gradients.projected.maps import Block
from sage_torch.gradients.projected.rowwise import KnownRows, RowwiseTarget
from sage_torch.gradients.projected.uses import (
    Function,
    ParameterFunctions,
    Use,
    name_of,
    tensors_in,
)

__all__ = ["Call", "Recorder", "Rule", "UnsupportedUseError", "Uses"]

# Errors of torch for wrong shapes or kinds. All others pass through, such as the exception with
# which activation checkpointing ends a recomputation.
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError)

_WRITES = {Tensor.__setitem__}  # functions that write to an argument and return nothing

Uses = Mapping[tuple[Function, tuple[str, ...]], Sequence[Use]]

# A tensor made of parameters (a slice, a normalised weight) gets exact gradients, one of its own
# size per example, up to this many entries.
_LARGEST_DERIVED = 2**20
_SMALLEST_BY_ROWS = 2**14  # exact gradients of a smaller tensor are cheap


class UnsupportedUseError(Exception):
    """A use of parameters that no rule can handle.

    Args:
        names: The parameters.
        reason: The reason.
    """

    def __init__(self, names: Sequence[str], reason: str) -> None:
        super().__init__(reason)
        self.names, self.reason = tuple(names), reason


class ModelError(Exception):
    """An error raised by the model itself, not by a rule.

    Args:
        error: The error.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Recorder(ParameterFunctions):
    """Runs a model on a batch and fills the rows of its projected gradients.

    Args:
        parameters: Detached parameters and the blocks of columns that they fill.
        rows: Tensor (n, d) float32, zeros at first.
        uses: The uses seen by the observer.
        rules: The rule of each function.
        other: The rule of all other functions.
        known: What is known of tensors that are made of parameters row by row.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[Tensor, Block]],
        rows: Tensor,
        uses: Uses,
        rules: Mapping[Function, Rule],
        other: Rule,
        known: KnownRows,
    ) -> None:
        super().__init__()
        self.n = len(rows)
        self.kept_bytes = 0
        # Memory that does not grow with the number of examples: that of tensors made of parameters.
        self.constants: set[int] = set()
        self.is_deriving = False  # whether such a tensor is being made
        # False during the forward pass, where a model may run backward passes of its own.
        self.is_backward = False
        self._uses, self._rules, self._other = uses, rules, other
        self._known = known
        self._held: set[int] = set()  # tensors made of parameters, whose gradients are held
        self._seen: Counter[tuple[Function, tuple[str, ...]]] = Counter()
        self._targets: dict[int, Target] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        # Each tensor of interest, and its twin with a graph back to the parameters.
        self._recorded: dict[int, tuple[Tensor, Tensor]] = {}
        self._anchor = torch.zeros((), device=rows.device, requires_grad=True)
        for tensor, block in parameters:
            target = ParameterTarget(block, rows)
            self._follow(tensor, tensor.detach().requires_grad_(), target, (block.name,))

    def is_of_interest(self, tensor: Tensor) -> bool:
        """Return whether the tensor is a chosen parameter or made of chosen parameters."""
        return id(tensor) in self._targets

    def target(self, tensor: Tensor | None) -> Target | None:
        """Return the target for gradients of an argument; None if they are not needed."""
        return None if tensor is None else self._targets.get(id(tensor))

    def hold(self, tensor: Tensor) -> bool:
        """Note memory for exact gradients of a tensor made of parameters, or return False."""
        if (
            isinstance(self._targets.get(id(tensor)), DerivedTarget)
            and id(tensor) not in self._held
        ):
            if tensor.numel() > _LARGEST_DERIVED:
                return False
            self._held.add(id(tensor))
            self.kept_bytes += 3 * 4 * self.n * tensor.numel()  # exact gradients and copies
        return True

    def made_row_by_row(self, tensor: Tensor) -> RowwiseTarget | None:
        """Return the target for outer products and dots, if the tensor is made row by row."""
        target = self._targets.get(id(tensor))
        if not isinstance(target, DerivedTarget) or tensor.numel() < _SMALLEST_BY_ROWS:
            return None
        with self._deriving(), outside_the_model(tensor.device):
            rows = self._known.of(target, self._names[id(tensor)])
        return None if rows is None else RowwiseTarget(rows, list(target.leaves.values()))

    def on_use(self, function: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Make the call through its rule."""
        followed = [t for t in tensors_in(args, kwargs) if id(t) in self._targets]
        names = tuple(sorted({name for t in followed for name in self._names[id(t)]}))
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)  # nothing is differentiated here
        if kwargs.get("out") is not None:
            raise UnsupportedUseError(names, f"{function.__name__} writes it with out=")
        key = (function, names)
        if key not in self._uses:
            result = function(*args, **kwargs)
            if function in _WRITES or any(True for _ in tensors_in((result,), {})):
                raise UnsupportedUseError(names, "it is not used in the same way in every batch")
            return result
        uses = self._uses[key]
        if len({use for use in uses if use.output is not None}) > 1:  # their order may change
            raise UnsupportedUseError(names, "its examples lie along several dimensions")
        use = uses[self._seen[key] % len(uses)]
        self._seen[key] += 1
        if use.output is None:
            return self._derive(function, args, kwargs, followed, names)
        rule = self._rules.get(function, self._other)
        with refusing(names):
            call = Call(self, use, function, args, kwargs)
            try:
                return rule(call, *args, **kwargs)
            finally:
                call.forget()

    def tap(
        self, output: Tensor, on_gradient: Callable[[Tensor], None], names: tuple[str, ...]
    ) -> Tensor:
        """Return the output; the backward pass then calls `on_gradient` with its gradient."""
        base = output
        if output._is_view():
            whole = output._base
            if whole is not None and whole.requires_grad and _is_reshaped(output, whole):
                base = whole
            else:  # the base may be a parameter
                base = output = output.clone()
        if not base.requires_grad:
            base = output = _Start.apply(output, self._anchor)
        shape = output.shape

        def receive(gradient: Tensor | None) -> None:
            if gradient is not None and self.is_backward:
                with outside_the_model(gradient.device), refusing(names):
                    on_gradient(gradient.reshape(shape))

        # The hook is on the base of a view: after a write in place through another view, a hook on
        # this view would no longer be called.
        base.register_hook(receive)
        return output

    def _derive(
        self,
        function: Function,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        followed: Sequence[Tensor],
        names: tuple[str, ...],
    ) -> Any:
        leaves: dict[Tensor, ParameterTarget] = {}
        for tensor in followed:
            target = self._targets[id(tensor)]
            if isinstance(target, DerivedTarget):
                leaves.update(target.leaves)
            else:
                assert isinstance(target, ParameterTarget)  # there are no others
                leaves[self._recorded[id(tensor)][1]] = target
        values = _replace((*args, *kwargs.values()), self._with_graph)
        named = dict(zip(kwargs, values[len(args) :], strict=True))
        with self._deriving():
            result = function(*values[: len(args)], **named)
        originals = {id(self._with_graph(tensor)): tensor for tensor in followed}

        def watch(tensor: Tensor) -> Tensor:
            if id(tensor) in originals:  # a conversion without effect
                return originals[id(tensor)]
            if not tensor.requires_grad:
                return tensor
            shown = tensor.detach()
            self.constants.add(memory_of(shown)[0])
            self._follow(shown, tensor, DerivedTarget(tensor, leaves), names)
            return shown

        if isinstance(result, tuple) and type(result) is not tuple:
            raise UnsupportedUseError(
                names, f"{function.__name__} returns a {type(result).__name__}"
            )
        (watched,) = _replace((result,), watch)
        return watched

    @contextmanager
    def _deriving(self) -> Iterator[None]:
        self.is_deriving = True
        try:
            yield
        finally:
            self.is_deriving = False

    def _with_graph(self, tensor: Tensor) -> Tensor:
        found = self._recorded.get(id(tensor))
        return tensor if found is None else found[1]

    def _follow(
        self, tensor: Tensor, recorded: Tensor, target: Target, names: tuple[str, ...]
    ) -> None:
        self._recorded[id(tensor)] = (tensor, recorded)
        self._targets[id(tensor)], self._names[id(tensor)] = target, names


class Call:
    """One call of a function with parameters among its arguments, passed to its rule.

    Args:
        recorder: The run.
        use: The observation of this call.
        function: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    def __init__(
        self,
        recorder: Recorder,
        use: Use,
        function: Function,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        assert use.output is not None  # otherwise no rule is called
        self.n, self.layout, self.names = recorder.n, use.output, use.names
        self.function = function
        self._recorder, self._args, self._kwargs = recorder, args, kwargs
        others = [t for t in tensors_in(args, kwargs) if recorder.target(t) is None]
        self.inputs = list(zip(others, use.inputs, strict=True))
        if any(tensor.is_complex() for tensor in others):
            self.refuse("it meets complex numbers")

    def target(self, tensor: Tensor | None) -> Target | None:
        """Return the target for gradients of an argument; None if they are not needed."""
        if tensor is not None and not self._recorder.hold(tensor):
            self.refuse(f"{name_of(self.function)} takes a large tensor that is made of it")
        return self._recorder.target(tensor)

    def weight(self, tensor: Tensor) -> Target | RowwiseTarget | None:
        """Return `target`, or one that takes outer products and dots of rows."""
        return self._recorder.made_row_by_row(tensor) or self.target(tensor)

    def run(self) -> Tensor:
        """Call the function and return its result."""
        output = self.attempt(self.function, *self._args, **self._kwargs)
        if not isinstance(output, Tensor):
            self.refuse("it has several results")
        return output

    def attempt(self, function: Function, *args: Any, **kwargs: Any) -> Any:
        """Call a function in place of the model; its errors count as errors of the model."""
        try:
            return function(*args, **kwargs)
        except _FAILURES as error:
            raise ModelError(error) from error

    def tap(self, output: Tensor, on_gradient: Callable[[Tensor], None]) -> Tensor:
        """Return the output; the backward pass then calls `on_gradient` with its gradient."""
        if output.is_complex():
            self.refuse("it becomes complex")
        return self._recorder.tap(output, on_gradient, self.names)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Compute values to keep for the backward pass: without a graph, in full precision."""
        with torch.no_grad(), full_precision(self.inputs[0][0].device):
            yield

    def will_hold(self, entries: int) -> None:
        """Note memory for exact gradients of this many entries per example, and copies."""
        self._recorder.kept_bytes += 3 * 4 * self.n * entries

    def count(self, kept: Tensor) -> Tensor:
        """Return the tensor, and note its memory as held until the backward pass."""
        self._recorder.kept_bytes += kept.numel() * kept.element_size()
        return kept

    def examples(self, tensor: Tensor) -> Tensor:
        """Return an argument, or the output's gradient, with its n examples first, float32."""
        layout = next((known for other, known in self.inputs if other is tensor), self.layout)
        if layout is None:
            self.refuse("its input does not change with the number of examples")
        return layout.split(tensor, self.n).float()

    def positions(self, tensor: Tensor) -> Tensor:
        """Return `examples` as (n, T, features); the dimensions between are flattened."""
        split = self.examples(tensor)
        return split.unsqueeze(1) if split.ndim == 2 else split.flatten(1, -2)

    def forget(self) -> None:
        """Release the arguments, because a hook holds this call until the backward pass."""
        self._args, self._kwargs, self.inputs = (), {}, []

    def refuse(self, reason: str) -> NoReturn:
        """Leave the parameters of this call to the fallback."""
        raise UnsupportedUseError(self.names, reason)


Rule = Callable[..., Tensor]


class _Start(torch.autograd.Function):
    """Makes a tensor require grad, in place, when nothing before it does."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


def _is_reshaped(view: Tensor, base: Tensor) -> bool:
    """Return whether a view is its base in another shape; then so are their gradients."""
    are_contiguous = base.is_contiguous() and view.is_contiguous()
    return are_contiguous and base.numel() == view.numel()


@contextmanager
def refusing(names: tuple[str, ...]) -> Iterator[None]:
    """Turn the failure of a rule into `UnsupportedUseError`, which leads to the fallback."""
    try:
        yield
    except ModelError as error:
        raise error.error from None
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        raise UnsupportedUseError(names, str(error)) from error


def _replace(values: Sequence[Any], change: Callable[[Tensor], Tensor]) -> list[Any]:
    """Change the tensors among values, and those one level down in lists and tuples."""
    changed: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            changed.append(change(value))
        elif type(value) in (list, tuple):
            changed.append(type(value)(change(v) if isinstance(v, Tensor) else v for v in value))
        else:
            changed.append(value)
    return changed
