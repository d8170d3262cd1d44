"""The uses of parameters: every torch function that receives a chosen parameter.

A `TorchFunctionMode` sees each call of a torch function, from any module or plain code, so that an
unknown layer hides no use of a parameter. Two runs with 2 and with 3 examples show which dimension
of each tensor counts the examples.
"""

from __future__ import annotations

import types
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sage_torch.gradients.modes import modes_left

__all__ = [
    "Layout",
    "Observer",
    "ParameterFunctions",
    "UnstableModelError",
    "Use",
    "backward",
    "name_of",
    "tensors_in",
]

Function = Callable[..., Any]

# Gradients do not pass through these functions in training either.
_CUTS_GRADIENTS = {Tensor.detach, torch.detach, Tensor.data.__get__}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Layout:
    """The dimension of a tensor that counts the examples.

    Attributes:
        dim: The dimension.
        is_flat: Whether it counts examples and positions together, (n T, ...).
        is_minor: Whether it is flat and examples change fastest, (T n, ...).
    """

    dim: int
    is_flat: bool = False
    is_minor: bool = False

    @classmethod
    def between(cls, of_two: Sequence[int], of_three: Sequence[int], is_minor: bool) -> Layout:
        """Return the layout of a tensor from its shapes with 2 and with 3 examples.

        Raises:
            ValueError: The shapes do not show the dimension.
        """
        pairs = list(zip(of_two, of_three, strict=True))
        changed = [dim for dim, (two, three) in enumerate(pairs) if two != three]
        if len(changed) == 1:
            (dim,) = changed
            two, three = pairs[dim]
            if two % 2 == 0 and three == two // 2 * 3:
                return cls(dim, two > 2, two > 2 and is_minor)
        raise ValueError(f"shapes {tuple(of_two)} and {tuple(of_three)}")

    def split(self, tensor: Tensor, n: int) -> Tensor:
        """Return the tensor with its n examples first; flat positions keep their place.

        Raises:
            ValueError: The dimension does not hold n examples.
        """
        self._check(tensor.shape[self.dim], n)
        dim = self.dim
        if self.is_flat:
            shape = [*tensor.shape]
            shape[dim : dim + 1] = [-1, n] if self.is_minor else [n, -1]
            tensor = tensor.reshape(shape)
        return tensor.movedim(dim + self.is_minor, 0)

    def sum(self, tensor: Tensor, n: int) -> Tensor:
        """Return (n, ...) from a tensor whose first dimension has this layout; sum positions.

        Raises:
            ValueError: The first dimension does not hold n examples.
        """
        self._check(len(tensor), n)
        if not self.is_flat:
            return tensor
        if self.is_minor:
            return tensor.reshape(-1, n, *tensor.shape[1:]).sum(0)
        return tensor.reshape(n, -1, *tensor.shape[1:]).sum(1)

    def _check(self, length: int, n: int) -> None:
        if length % n if self.is_flat else length != n:
            raise ValueError(f"it is called with {length} of {n} examples")


@dataclass(frozen=True)
class Use:
    """One call of a function with chosen parameters among its arguments.

    Attributes:
        function: The function.
        names: The parameters, including those that an argument was made of.
        inputs: Layout of each other tensor argument; None if its shape does not change with n.
        output: Layout of the result; None if its shape does not change with n. The result then
            depends on parameters alone and is followed like a parameter.
        problem: The reason why a layout is unknown; empty if all are known.
    """

    function: Function
    names: tuple[str, ...]
    inputs: tuple[Layout | None, ...]
    output: Layout | None
    problem: str = ""


class ParameterFunctions(TorchFunctionMode):
    """Sees every torch function call, and passes those with tensors of interest to `on_use`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_minor = False  # True inside a function that puts positions before examples

    def is_of_interest(self, tensor: Tensor) -> bool:
        """Return whether calls with this tensor are passed to `on_use`."""
        raise NotImplementedError

    def on_use(self, function: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Make the call and return its result."""
        raise NotImplementedError

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch in place of each of its functions."""
        kwargs = kwargs or {}
        found = any(self.is_of_interest(tensor) for tensor in tensors_in(args, kwargs))
        if not found or func in _CUTS_GRADIENTS:
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with modes_left(self), self._positions_first():
                return _attention(*args, **kwargs)
        if func is F.scaled_dot_product_attention and self._has_learned_bias(*args, **kwargs):
            with modes_left(self):
                return _biased_attention(*args, **kwargs)
        return self.on_use(func, args, kwargs)

    def _has_learned_bias(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> bool:
        """Return whether attention takes parameters as a bias, such as one by relative position."""
        if attn_mask is None or not attn_mask.is_floating_point():
            return False
        return self.is_of_interest(attn_mask) and not (dropout_p or is_causal or enable_gqa)

    @contextmanager
    def _positions_first(self) -> Iterator[None]:
        before, self.is_minor = self.is_minor, True
        try:
            yield
        finally:
            self.is_minor = before


class Observer(ParameterFunctions):
    """Notes the uses of chosen parameters in a run with 2 examples and in a run with 3.

    Args:
        names: Name of each chosen parameter by the id of its tensor, which requires grad.
        earlier: For the run with 3 examples, the observer of the run with 2.
    """

    def __init__(self, names: Mapping[int, str], earlier: Observer | None = None) -> None:
        super().__init__()
        self._names: dict[int, tuple[str, ...]] = {key: (name,) for key, name in names.items()}
        self._earlier = earlier
        self._kept: list[Tensor] = []  # an id is unique only while its tensor exists
        self.calls: list[tuple[Function, list[torch.Size], list[torch.Size]]] = []
        self.uses: dict[tuple[Function, tuple[str, ...]], list[Use]] = defaultdict(list)
        self.dtypes: set[torch.dtype] = set()  # of the results

    def is_of_interest(self, tensor: Tensor) -> bool:
        """Return whether the tensor depends on a parameter."""
        return tensor.requires_grad

    def on_use(self, function: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Make the call and note it."""
        arguments = list(tensors_in(args, kwargs))
        shapes = [tensor.shape for tensor in arguments]  # before the call, which may be in place
        result = function(*args, **kwargs)
        outputs = list(tensors_in((result,), {}))
        if outputs:
            self.dtypes.update(tensor.dtype for tensor in outputs if tensor.is_floating_point())
            self.calls.append((function, shapes, [tensor.shape for tensor in outputs]))
            if self._earlier is not None:
                self._compare(self._earlier, arguments, outputs)
        return result

    def _compare(self, earlier: Observer, arguments: list[Tensor], outputs: list[Tensor]) -> None:
        function, shapes, results = self.calls[-1]
        at = len(self.calls) - 1
        if at >= len(earlier.calls) or earlier.calls[at][0] != function:
            raise UnstableModelError
        _, shapes_of_two, results_of_two = earlier.calls[at]
        names = sorted({n for a in arguments for n in self._names.get(id(a), ())})
        if not names:
            return
        problem, inputs, output = "", [], None
        try:
            for tensor, two, three in zip(arguments, shapes_of_two, shapes, strict=True):
                if id(tensor) not in self._names:
                    inputs.append(_layout(two, three, self.is_minor))
            layouts = [
                _layout(two, three, self.is_minor)
                for two, three in zip(results_of_two, results, strict=True)
            ]
            output = next((layout for layout in layouts if layout is not None), None)
            if output is not None and len(layouts) > 1:
                problem = "it has several results"
        except ValueError as error:
            problem = f"its shapes do not tell which dimension counts the examples: {error}"
        use = Use(function, tuple(names), tuple(inputs), output, problem)
        self.uses[function, use.names].append(use)
        if output is None and not problem:
            for tensor in outputs:
                if tensor.requires_grad:
                    self._names[id(tensor)] = use.names
                    self._kept.append(tensor)


class UnstableModelError(Exception):
    """The functions that a model calls depend on the number of examples."""


def tensors_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments, and those one level down in lists and tuples."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for item in value:
                if isinstance(item, Tensor):
                    yield item


def name_of(function: Function) -> str:
    """Return the name of a function, for messages."""
    return getattr(function, "__name__", str(function))


def _layout(two: Sequence[int], three: Sequence[int], is_minor: bool) -> Layout | None:
    return None if tuple(two) == tuple(three) else Layout.between(two, three, is_minor)


def _without_override(function: types.FunctionType) -> Function:
    """Return a copy of a composite torch function, whose parts a mode then sees."""
    namespace = {**function.__globals__, "has_torch_function": lambda arguments: False}
    copy = types.FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _biased_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, *_: Any, **options: Any
) -> Tensor:
    """`scaled_dot_product_attention` in parts, of which a mode sees the sum with the bias."""
    scale = options.get("scale")
    scaled = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    mixed: Tensor = (scaled @ key.mT + attn_mask).softmax(-1) @ value
    return mixed


_attention = _without_override(F.multi_head_attention_forward)  # type: ignore[arg-type]
# torch.autograd.backward, but a mode also sees the functions that checkpointing computes again.
backward = _without_override(torch.autograd.backward)  # type: ignore[arg-type]
