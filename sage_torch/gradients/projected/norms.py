"""Rules for the scales and shifts of normalisation functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sage_torch.gradients.projected.columns import add_whole
from sage_torch.gradients.projected.recorder import Call

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"]


def layer_norm(
    call: Call,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """`y = w x^ + b`: `dw = sum_t dy_t x^_t`, x^ the normalised input."""
    shape = tuple(normalized_shape)
    if torch.is_autocast_enabled(input.device.type):  # the code below does not choose dtypes
        return _affine(call, input, weight, bias, lambda x: F.layer_norm(x, shape, None, None, eps))
    of_weight, of_bias = call.target(weight), call.target(bias)
    # The same function, but it also returns the statistics, which are then not computed again.
    output, mean, scale = call.attempt(torch.native_layer_norm, input, shape, weight, bias, eps)
    kept, mean, scale = input.detach(), mean.detach(), scale.detach()

    def positions(values: Tensor, width: int) -> Tensor:  # (n, ..., width) -> (n, T, width)
        return call.layout.split(values, call.n).float().reshape(call.n, -1, width)

    def on_gradient(gradient: Tensor) -> None:
        width = math.prod(shape)
        delta = positions(gradient, width)
        if of_weight is not None:
            centred = positions(kept.float() - mean, width).mul_(delta)
            add_whole(of_weight, positions(scale, 1).mT @ centred)  # (n, 1, T) @ (n, T, E)
        if of_bias is not None:
            add_whole(of_bias, delta.sum(1))

    return call.tap(output, on_gradient)


def rms_norm(
    call: Call,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """`y = w x^`, x^ the input divided by its root mean square."""
    shape = tuple(normalized_shape)
    return _affine(call, input, weight, None, lambda x: F.rms_norm(x, shape, None, eps))


def _affine(
    call: Call,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalize: Callable[[Tensor], Tensor],
) -> Tensor:
    of_weight, of_bias = call.target(weight), call.target(bias)
    kept = input.detach()  # which autograd holds as well

    def on_gradient(gradient: Tensor) -> None:
        delta = call.examples(gradient)
        if of_weight is not None:
            normalized = call.layout.split(normalize(kept.float()), call.n)
            add_whole(of_weight, _summed(delta * normalized, 1, -len(of_weight.shape)))
        if of_bias is not None:
            add_whole(of_bias, _summed(delta, 1, -len(of_bias.shape)))

    return call.tap(call.run(), on_gradient)


def batch_norm(
    call: Call,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`y = w (x - m) / s + b` per channel, s^2 = var + eps; `dw = (sum dy x - m sum dy) / s`."""
    of_weight, of_bias = call.target(weight), call.target(bias)
    layout = call.layout
    if layout.dim != 0:
        call.refuse("its first dimension does not count the examples")
    output, kept = call.run(), input.detach()  # which autograd holds as well
    if training or running_mean is None or running_var is None:
        with call.keeping():
            dims = [0, *range(2, input.ndim)]
            variance, mean = torch.var_mean(input.float(), dims, correction=0)
    else:
        mean, variance = running_mean.clone(), running_var.clone()

    def on_gradient(gradient: Tensor) -> None:
        delta, x = gradient.float(), kept.float()
        total = _summed(delta, 2)  # (N, C)
        if of_weight is not None:
            values = (_summed(delta * x, 2) - total * mean) * torch.rsqrt(variance.float() + eps)
            add_whole(of_weight, layout.sum(values, call.n))
        if of_bias is not None:
            add_whole(of_bias, layout.sum(total, call.n))

    return call.tap(output, on_gradient)


def group_norm(
    call: Call,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`y = w x^ + b` per channel, x^ normalised over groups of channels."""
    return _channels(call, input, weight, bias, lambda x: F.group_norm(x, num_groups, eps=eps))


def instance_norm(
    call: Call,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`y = w x^ + b` per channel, x^ normalised over its positions."""
    if not use_input_stats:
        return batch_norm(call, input, running_mean, running_var, weight, bias, eps=eps)
    return _channels(call, input, weight, bias, lambda x: F.instance_norm(x, eps=eps))


def _channels(
    call: Call,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalize: Callable[[Tensor], Tensor],
) -> Tensor:
    of_weight, of_bias = call.target(weight), call.target(bias)
    if call.layout.dim != 0:
        call.refuse("its first dimension does not count the examples")
    kept = input.detach()  # which autograd holds as well

    def on_gradient(gradient: Tensor) -> None:
        delta = gradient.float()
        if of_weight is not None:
            total = _summed(delta * normalize(kept.float()), 2)
            add_whole(of_weight, call.layout.sum(total, call.n))
        if of_bias is not None:
            add_whole(of_bias, call.layout.sum(_summed(delta, 2), call.n))

    return call.tap(call.run(), on_gradient)


def _summed(values: Tensor, start: int, stop: int | None = None) -> Tensor:
    """Sum over dimensions start to stop (exclusive; None for the end), which may be none."""
    dims = list(range(values.ndim))[start:stop]
    return values.sum(dims) if dims else values
