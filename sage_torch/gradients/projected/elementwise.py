"""Rules for parameters that are added, multiplied or expanded, and one for all other functions."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor
from torch.func import vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from sage_torch.gradients.projected.columns import add_whole
from sage_torch.gradients.projected.recorder import Call

__all__ = ["add", "by_vmap", "expand", "multiply", "repeat", "subtract"]

# `by_vmap` holds whole gradients, one per example, of parameters with at most this many entries.
_LARGEST_BY_VMAP = 2**20


def add(call: Call, first: Any, second: Any, alpha: float = 1) -> Tensor:
    """`y = x + p`, broadcast: `dp` is the gradient of y, summed to the shape of p."""
    targets = [(call.target(first), 1.0), (call.target(second), float(alpha))]

    def on_gradient(gradient: Tensor) -> None:
        for target, scale in targets:
            if target is not None:
                add_whole(target, scale * _to_shape(call, gradient, target.shape))

    return call.tap(call.run(), on_gradient)


def subtract(call: Call, first: Any, second: Any, alpha: float = 1) -> Tensor:
    """`y = x - p`."""
    return add(call, first, second, -alpha)


def multiply(call: Call, first: Any, second: Any) -> Tensor:
    """`y = x p`, broadcast: `dp = dy x`, summed to the shape of p."""
    parameter, other = (
        (first, second) if isinstance(first, Tensor) and call.target(first) else (second, first)
    )
    target = call.target(parameter)
    if target is None or not isinstance(other, Tensor) or call.target(other) is not None:
        return by_vmap(call, first, second)
    output = call.run()
    if output is other:
        call.refuse("it is written in place")
    kept = call.count(other.detach())

    def on_gradient(gradient: Tensor) -> None:
        add_whole(target, _to_shape(call, gradient.float() * kept.float(), target.shape))

    return call.tap(output, on_gradient)


def expand(call: Call, parameter: Tensor, *sizes: Any, **options: Any) -> Tensor:
    """`y = p.expand(n, ...)`, like adding p to zeros."""
    target = call.target(parameter)
    if target is None:
        call.refuse("it is not the tensor that is expanded")

    def on_gradient(gradient: Tensor) -> None:
        add_whole(target, _to_shape(call, gradient, target.shape))

    return call.tap(call.run(), on_gradient)


def repeat(call: Call, parameter: Tensor, *sizes: Any) -> Tensor:
    """`y = p.repeat(n, 1, ...)`, like expanding p; only dimensions of length 1 may be repeated."""
    times = list(sizes[0] if isinstance(sizes[0], (tuple, list)) else sizes)
    lengths = [1] * (len(times) - parameter.ndim) + list(parameter.shape)
    if any(length > 1 and time > 1 for length, time in zip(lengths, times, strict=True)):
        call.refuse("it is repeated along a dimension longer than 1")
    return expand(call, parameter)


def by_vmap(call: Call, *args: Any, **kwargs: Any) -> Tensor:
    """Any other function of batches: its derivative, mapped over the examples.

    It is exact, and holds one gradient per example, as large as the parameters.
    """
    function = call.function
    values, tree = tree_flatten((args, kwargs))
    followed = [i for i, v in enumerate(values) if isinstance(v, Tensor) and call.target(v)]
    layouts = {id(tensor): layout for tensor, layout in call.inputs}
    mapped = [i for i, v in enumerate(values) if isinstance(v, Tensor) and layouts.get(id(v))]
    known = [layout for layout in (*layouts.values(), call.layout) if layout is not None]
    if any(layout.dim or layout.is_flat for layout in known):
        call.refuse("it has no rule, and its first dimension does not count the examples")
    if sum(values[i].numel() for i in followed) > _LARGEST_BY_VMAP:
        call.refuse("it has no rule, and is too large for one exact gradient per example")
    output = call.run()
    if any(output is value for value in values):
        call.refuse("it is written in place")
    inputs = [call.count(_in_full(values[i].detach())) for i in mapped]
    parameters = [_in_full(values[i].detach()) for i in followed]
    call.will_hold(sum(parameter.numel() for parameter in parameters))
    targets = [call.target(values[i]) for i in followed]
    constants = list(values)
    for i in (*mapped, *followed):
        constants[i] = None  # otherwise the hook would hold their graph

    def of_one(delta: Tensor, *example: Tensor) -> tuple[Tensor, ...]:
        def forward(*chosen: Tensor) -> Tensor:
            filled = [_in_full(v) if isinstance(v, Tensor) else v for v in constants]
            for i, value in zip(mapped, example, strict=True):
                filled[i] = value.unsqueeze(0)
            for i, value in zip(followed, chosen, strict=True):
                filled[i] = value
            again, options = tree_unflatten(filled, tree)
            result: Tensor = function(*again, **options)
            return result

        pull_back = vjp(forward, *parameters)[1]
        gradients: tuple[Tensor, ...] = pull_back(delta.unsqueeze(0))
        return gradients

    def on_gradient(gradient: Tensor) -> None:
        with warnings.catch_warnings():  # a function for which vmap falls back to a loop is fine
            warnings.filterwarnings("ignore", message="There is a performance drop")
            found = vmap(of_one)(gradient.float(), *inputs)
        for target, gradients in zip(targets, found, strict=True):
            if target is not None:
                add_whole(target, gradients)

    return call.tap(output, on_gradient)


def _in_full(tensor: Tensor) -> Tensor:
    """Return a floating tensor in float32, because autocast mixes precisions."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _to_shape(call: Call, gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum the gradient of each example to the shape before broadcasting, (n, *shape)."""
    layout = call.layout
    aligned = [1] * (gradient.ndim - len(shape)) + list(shape)
    if aligned[layout.dim] != 1:
        call.refuse("it varies along the dimension that counts the examples")
    if not layout.is_flat:
        del aligned[layout.dim]
    split = layout.split(gradient, call.n).float()
    dims = [i + 1 for i, size in enumerate(aligned) if size == 1 and split.shape[i + 1] != 1]
    return (split.sum(dims) if dims else split).reshape(call.n, *shape)
