"""One small rule per torch function, from its input and the gradient of its output to the rows.

Each rule makes the call, keeps the part of the input that it needs, and adds to the rows when the
gradient of the output arrives. `T` counts positions (tokens, pixels), `G` groups, `I` and `O` input
and output features. The gradient of a weight is a sum over positions of outer products
`left ⊗ right`; projected on both sides, it is the sum of the products of projected factors.

Reference: Choe et al., "What is your data worth to GPT?" (LoGra), arXiv 2405.13954.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sage_torch.gradients.projected.columns import Target, add_whole
from sage_torch.gradients.projected.elementwise import (
    add,
    by_vmap,
    expand,
    multiply,
    repeat,
    subtract,
)
from sage_torch.gradients.projected.norms import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from sage_torch.gradients.projected.recorder import Call, Rule
from sage_torch.gradients.projected.rowwise import RowwiseTarget
from sage_torch.gradients.projected.uses import Layout

__all__ = ["RULES"]


def linear(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`y = x W^T + b`: `dW = sum_t dy_t ⊗ x_t`."""
    if weight.ndim != 2:
        return by_vmap(call, input, weight, bias)
    return _product(call, input, call.weight(weight), call.target(bias), is_transposed=False)


def addmm(call: Call, bias: Tensor, input: Tensor, weight: Tensor, **scales: Any) -> Tensor:
    """`y = b + x W` (Hugging Face's Conv1D): `dW = sum_t x_t ⊗ dy_t`."""
    if scales or call.target(input) is not None:
        return by_vmap(call, bias, input, weight, **scales)
    return _product(call, input, call.weight(weight), call.target(bias), is_transposed=True)


def matmul(call: Call, input: Tensor, weight: Tensor) -> Tensor:
    """`y = x W`: `dW = sum_t x_t ⊗ dy_t`."""
    target = call.weight(weight)
    if target is None or call.target(input) is not None or weight.ndim != 2 or input.ndim < 2:
        return by_vmap(call, input, weight)
    return _product(call, input, target, None, is_transposed=True)


def _product(
    call: Call,
    input: Tensor,
    weight: Target | RowwiseTarget | None,
    bias: Target | None,
    *,
    is_transposed: bool,
) -> Tensor:
    kept = whole = None
    if weight is not None:
        side = weight.left if is_transposed else weight.right
        with call.keeping():
            kept = call.count(side(call.positions(input)))  # (n, T, I) -> (n, T, w)
            if isinstance(weight, RowwiseTarget):
                whole = call.count(call.positions(input.detach()))

    def on_gradient(gradient: Tensor) -> None:
        delta = call.positions(gradient)  # (n, T, O)
        if weight is not None and kept is not None:
            if is_transposed:
                left, right = kept, weight.right(delta)
            else:
                left, right = weight.left(delta), kept
            weight.add_projected(left.mT @ right)  # (n, w, T) @ (n, T, w)
        if isinstance(weight, RowwiseTarget) and whole is not None:
            rows, columns = (whole, delta) if is_transposed else (delta, whole)
            dots = [(rows * (columns @ each.T)).sum(1) for each in weight.directions]
            weight.add_dots(dots)
        if bias is not None:
            add_whole(bias, delta.sum(1))

    return call.tap(call.run(), on_gradient)


def convolution(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Conv1d/2d/3d; the right factors are patches of the input, projected by a convolution."""
    target, of_bias = call.weight(weight), call.target(bias)
    layout = _layout_of(call, input, weight)
    convolve = _CONVOLUTIONS[weight.ndim - 3]
    kernel_shape = weight.shape[1:]
    can_unfold = weight.ndim == 4 and not isinstance(padding, str)

    def patches(values: Tensor) -> Tensor:  # (N, I, ...) -> (N, G, w, T)
        assert target is not None  # otherwise nothing is projected
        grouped = values.float().unflatten(1, (groups, -1)).flatten(0, 1)
        if target.right.is_identity and can_unfold:  # cheaper than a convolution with the identity
            found = _unfolded(grouped, kernel_shape[1:], stride, padding, dilation)
            return found.view(-1, groups, *found.shape[1:])
        kernel = target.right.matrix(values.device).view(-1, *kernel_shape)
        projected: Tensor = convolve(grouped, kernel, None, stride, padding, dilation).flatten(2)
        return projected.view(-1, groups, *projected.shape[1:])

    output = call.run()
    kept: Tensor | None = None
    if target is not None:
        positions = output[0, 0].numel()
        # Patches of an unprojected short side can be larger than the input; then the input is kept.
        is_shorter = groups * target.right.width * positions <= input[0].numel()
        is_shorter &= not isinstance(target, RowwiseTarget)
        with call.keeping():
            kept = call.count(patches(input) if is_shorter else input.detach())

    def on_gradient(gradient: Tensor) -> None:
        delta = gradient.float().flatten(2)  # (N, O, T)
        if target is not None and kept is not None:
            right = kept if is_shorter else patches(kept)
            block = _outer_products(target, _left_factor(target, delta, groups), right)
            target.add_projected(layout.sum(block, call.n))
        if isinstance(target, RowwiseTarget) and kept is not None:
            options = (None, stride, padding, dilation, groups)
            outputs = (convolve(kept.float(), each, *options) for each in target.directions)
            dots = [layout.sum((delta * y.flatten(2)).sum(2), call.n) for y in outputs]
            target.add_dots(dots)
        if of_bias is not None:
            add_whole(of_bias, layout.sum(delta.sum(2), call.n))

    return call.tap(output, on_gradient)


def transposed_convolution(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """ConvTranspose1d/2d/3d; the right factors are patches of the gradient of the output."""
    target, of_bias = call.target(weight), call.target(bias)
    layout = _layout_of(call, input, weight)
    convolve = _CONVOLUTIONS[weight.ndim - 3]
    kernel_shape, places = weight.shape[1:], input.shape[2:]
    kept: Tensor | None = None
    if target is not None:
        with call.keeping():
            flat = input.detach().float().flatten(2)  # (N, I, T)
            kept = call.count(_left_factor(target, flat, groups))

    def on_gradient(gradient: Tensor) -> None:
        delta = gradient.float()
        if target is not None and kept is not None:
            kernel = target.right.matrix(delta.device).view(-1, *kernel_shape)
            grouped = delta.unflatten(1, (groups, -1)).flatten(0, 1)
            right = convolve(grouped, kernel, None, stride, padding, dilation)
            for dim, size in enumerate(places):  # output_padding adds rows that belong to no input
                right = right.narrow(dim + 2, 0, size)
            right = right.flatten(2).unflatten(0, (-1, groups))  # (N, G, w, T)
            block = _outer_products(target, kept, right)
            target.add_projected(layout.sum(block, call.n))
        if of_bias is not None:
            add_whole(of_bias, layout.sum(delta.flatten(2).sum(2), call.n))

    return call.tap(call.run(), on_gradient)


def embedding(
    call: Call,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """`y_t = W[token_t]`; the left factors are columns of the map, looked up."""
    target = call.target(weight)
    if max_norm is not None or scale_grad_by_freq or target is None:
        call.refuse("max_norm and scale_grad_by_freq have no rule")
    rows = len(weight)
    tokens = next(layout for _, layout in call.inputs if layout).split(input, call.n)
    tokens = tokens.reshape(call.n, -1)

    def on_gradient(gradient: Tensor) -> None:
        delta = call.positions(gradient)
        if target.left.is_identity:
            left = F.one_hot(tokens, rows).float()
        else:
            left = F.embedding(tokens, target.left.matrix(delta.device).T)
        if padding_idx is not None:
            left = left * (tokens != padding_idx % rows)[..., None]
        target.add_projected(left.mT @ target.right(delta))  # (n, w, T) @ (n, T, w)

    return call.tap(call.run(), on_gradient)


def _unfolded(images: Tensor, kernel: Sequence[int], *geometry: Any) -> Tensor:
    """Return `F.unfold`, (N, I, H, W) -> (N, I kh kw, T), as one copy of a strided view.

    Args:
        images: The images.
        kernel: Height and width.
        geometry: Stride, padding and dilation, as numbers or pairs.
    """
    stride, padding, dilation = map(_both, geometry)
    padded = F.pad(images, (padding[1], padding[1], padding[0], padding[0])).contiguous()
    sizes, strides = [*padded.shape[:2], *kernel], [*padded.stride()[:2]]
    strides += [padded.stride(2 + i) * dilation[i] for i in (0, 1)]
    for i in (0, 1):
        sizes.append((padded.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1)
        strides.append(padded.stride(2 + i) * stride[i])
    view = padded.as_strided(sizes, strides)
    return view.reshape(len(images), -1, sizes[4] * sizes[5])


def _both(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _layout_of(call: Call, input: Tensor, weight: Tensor) -> Layout:
    """Return the layout of a convolution, whose first dimension must count the examples."""
    layout = call.inputs[0][1]
    if layout is None or layout.dim != 0 or input.ndim != weight.ndim:
        call.refuse("it is a convolution whose first dimension does not count the examples")
    return layout


def _left_factor(target: Target | RowwiseTarget, values: Tensor, groups: int) -> Tensor:
    """Project channels, (N, C, T) -> (N, w, T); several groups are projected at the end."""
    if groups > 1 or target.left.is_identity:
        return values
    return target.left.matrix(values.device) @ values


def _outer_products(target: Target | RowwiseTarget, left: Tensor, right: Tensor) -> Tensor:
    """Sum outer products over positions, (N, C or w, T) and (N, G, w, T) -> (N, w, w)."""
    groups = right.shape[1]
    if groups == 1:
        return left @ right[:, 0].mT
    exact = left.unflatten(1, (groups, -1)) @ right.mT  # (N, G, C / G, w)
    return target.left(exact.flatten(1, 2).mT).mT


_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)

RULES: dict[Callable[..., Any], Rule] = {
    F.linear: linear,
    torch.addmm: addmm,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), matmul),
    **dict.fromkeys(_CONVOLUTIONS, convolution),
    **dict.fromkeys(
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), transposed_convolution
    ),
    F.embedding: embedding,
    **dict.fromkeys((F.layer_norm, torch.layer_norm), layer_norm),
    **dict.fromkeys((F.rms_norm, torch.rms_norm), rms_norm),
    F.batch_norm: batch_norm,
    F.group_norm: group_norm,
    F.instance_norm: instance_norm,
    **dict.fromkeys(
        (
            *(torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__),
            Tensor.__radd__,
        ),
        add,
    ),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.__sub__, Tensor.sub_), subtract),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), multiply),
    **dict.fromkeys((Tensor.expand, Tensor.expand_as, torch.broadcast_to), expand),
    Tensor.repeat: repeat,
}
