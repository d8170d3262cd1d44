"""Parameters outside of layers: bare ones in every kind of function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.case import CLASSES, Case, N, sequences

Forward = Callable[["Bare", Tensor], Tensor]


class Bare(nn.Module):
    """Parameters of the given shapes, and a function of them between two Linear layers."""

    def __init__(self, between: Forward, features: int = 6, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(0.5 * torch.randn(shape)))
        self.head, self.between = nn.Linear(features, CLASSES), between

    def forward(self, x: Tensor) -> Any:
        x = self.between(self, torch.tanh(self.first(x)))
        return self.head(x if x.ndim == 2 else x.mean(1))


def bare(
    name: str,
    between: Callable[[Any, Tensor], Tensor],
    functional: tuple[str, ...] | None = (),
    features: int = 6,
    **shapes: tuple[int, ...],
) -> Case:
    build = lambda: Bare(between, features, **shapes)  # noqa: E731
    return Case(name, build, sequences(), functional=functional)


def either(name: str, between: Any, features: int = 6, **shapes: tuple[int, ...]) -> Case:
    """Return a case that may be handled in either way, by a rule or by the fallback."""
    return bare(name, between, None, features, **shapes)


class Square(torch.autograd.Function):
    """A user's own operation, of which torch knows nothing but its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return gradient * weight * weight, (2 * gradient * x * weight).sum((0, 1))


def _class_token(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.token.expand(len(x), -1, -1), x], dim=1)


def _masked(m: Any, x: Tensor) -> Tensor:
    return torch.where(x[..., :1] > 0.3, m.token.to(x.dtype), x)


def _swin_bias(m: Any, x: Tensor) -> Tensor:
    places = torch.arange(N)
    index = (places[:, None] - places + N - 1).view(-1)
    bias = m.table[index].view(N, N, 2).permute(2, 0, 1).contiguous()
    scores = (x @ x.transpose(1, 2))[:, None] + bias.unsqueeze(0)
    return (scores.softmax(-1) @ x[:, None]).mean(1)


USUAL = [
    bare("layer scale", lambda m, x: x * m.scale, scale=(6,)),
    bare("shift", lambda m, x: x + m.shift, shift=(6,)),
    bare("scale of every position", lambda m, x: m.scale * x, scale=(N, 6)),
    bare("scale per position", lambda m, x: x * m.scale, scale=(N, 1)),
    bare("logit scale", lambda m, x: x * m.scale.exp(), scale=()),
    bare("scale through softplus", lambda m, x: x / F.softplus(m.scale), scale=(6,)),
    bare("gate", lambda m, x: torch.lerp(x, x.flip(1), m.gate.sigmoid()), gate=(6,)),
    bare(
        "scale in place",
        lambda m, x: (2 * x).mul_(m.scale).add_(m.shift),
        functional=("scale",),
        scale=(6,),
        shift=(),
    ),
    bare("addcmul", lambda m, x: torch.addcmul(m.shift, x, m.scale), scale=(6,), shift=(6,)),
    bare("class token", _class_token, token=(1, 1, 6)),
    bare("mask token", _masked, token=(6,)),
    bare("relative positions", _swin_bias, table=(2 * N - 1, 2)),
    bare("matmul", lambda m, x: x @ m.weight, features=5, weight=(6, 5)),
    bare("matmul transposed", lambda m, x: x @ m.weight.T, features=5, weight=(5, 6)),
    bare("matmul from the left", lambda m, x: m.weight @ x, weight=(N, N)),
    bare("functional linear", lambda m, x: F.linear(x, m.weight), features=5, weight=(5, 6)),
    bare("einsum", lambda m, x: torch.einsum("nte,eo->nto", x, m.w), features=5, w=(6, 5)),
    bare(
        "einsum over heads",
        lambda m, x: torch.einsum("nte,heo->ntho", x, m.w).flatten(2),
        features=6,
        w=(2, 6, 3),
    ),
    bare("batched matmul", lambda m, x: (x[:, None] @ m.w).sum(1), features=4, w=(2, 6, 4)),
    bare("tensordot", lambda m, x: torch.tensordot(x, m.w, dims=1), features=5, w=(6, 5)),
    bare(
        "functional conv",
        lambda m, x: F.conv1d(x.transpose(1, 2), m.kernel, padding=1).transpose(1, 2),
        features=5,
        kernel=(5, 6, 3),
    ),
    bare("functional layer norm", lambda m, x: F.layer_norm(x, (6,), m.w, m.b), w=(6,), b=(6,)),
    bare("function of one's own", lambda m, x: Square.apply(x, m.w), ("w",), w=(6,)),
    bare("spectrum", lambda m, x: torch.fft.ifft(torch.fft.fft(x) * m.w).real, ("w",), w=(6,)),
    bare("weight of weights", lambda m, x: x @ (m.a @ m.b).tanh(), features=5, a=(6, 2), b=(2, 5)),
    bare("soft prompt", lambda m, x: torch.cat([m.p.repeat(len(x), 1, 1), x], 1), p=(3, 6)),
    bare("weight decay", lambda m, x: x * m.scale + m.scale.square().mean(), scale=(6,)),
]


def _setitem(m: Any, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), N + 1, 6)
    out[:, 1:] = x
    out[:, 0] = m.token
    return out


def _unpacked(m: Any, x: Tensor) -> Tensor:
    first, second = m.pair
    return x * first + second


def _index_add(m: Any, x: Tensor) -> Tensor:
    return x.index_add(1, torch.tensor([0, 2]), m.token.expand(len(x), 2, 6))


def _each(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.expand(len(x), -1, -1)


def _sign(x: Tensor) -> Tensor:
    return (x[:, 0, 0] > 0).long()


def _attention(m: Any, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, _each(m.k, x), _each(m.v, x))


def _checkpoint(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return checkpoint(function, x, use_reentrant=False)  # type: ignore[no-any-return]


def _group_norm(m: Any, x: Tensor) -> Tensor:
    return F.group_norm(x.flatten(0, 1), 2, m.w, m.w).view_as(x)


def _distance_of_all(m: Any, x: Tensor) -> Tensor:
    return torch.cdist(x.flatten(0, 1), m.w).view(len(x), -1, 4)


def then_in_place(result: Tensor) -> Tensor:
    """Change a view of a function's result, as attention with relative positions does."""
    part = result.transpose(0, 1)[:, :, 1:]
    part *= 2.0
    result.flatten(1)[:, 0].mul_(0.5)
    return result


def _where_in_place(m: Any, x: Tensor) -> Tensor:
    return then_in_place(torch.where(x > 0, x, m.w).transpose(1, 2)).transpose(1, 2)


TOKENS: list[tuple[str, Callable[[Any, Tensor], Tensor]]] = [
    ("repeat", lambda m, x: m.token.repeat(len(x), 1, 1)),
    ("expand", lambda m, x: m.token[None].expand(len(x), -1, -1)),
    ("expand_as", lambda m, x: m.token.expand_as(x[:, :2])),
    ("tile", lambda m, x: torch.tile(m.token, (len(x), 1, 1))),
    ("repeat_interleave", lambda m, x: m.token[None].repeat_interleave(len(x), 0)),
    ("stack", lambda m, x: torch.stack([m.token] * len(x))),
    ("cat", lambda m, x: torch.cat([m.token[None]] * len(x))),
    ("index", lambda m, x: m.token[None][torch.zeros(len(x), dtype=torch.long)]),
    ("ones", lambda m, x: (x.new_ones(len(x), 1) @ m.token.flatten()[None]).view(-1, 2, 6)),
    ("zeros", lambda m, x: x.new_zeros(len(x), 1, 1) + m.token),
    ("broadcast_to", lambda m, x: torch.broadcast_to(m.token, (len(x), 2, 6))),
    ("broadcast_tensors", lambda m, x: torch.broadcast_tensors(m.token, x[:, :2])[0]),
    ("einsum", lambda m, x: torch.einsum("n,te->nte", x.new_ones(len(x)), m.token)),
]


def _repeated(make: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: torch.cat([make(m, x), x], 1)


def without_grad(make: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return make()


ODD = [
    *(either(f"token by {name}", _repeated(make), token=(2, 6)) for name, make in TOKENS),
    either("written into", _setitem, token=(6,)),
    either("added in place", lambda m, x: x.square().add_(m.s), s=(6,)),
    either("matmul, then in place", lambda m, x: then_in_place(x @ m.w), w=(6, 6)),
    either("scale, then in place", lambda m, x: then_in_place(x * m.w), w=(6,)),
    either("linear, then in place", lambda m, x: then_in_place(F.linear(x, m.w)), w=(6, 6)),
    either(
        "einsum, then in place",
        lambda m, x: then_in_place(torch.einsum("nte,heo->nhto", x, m.w)).flatten(1, 2),
        features=3,
        w=(2, 6, 3),
    ),
    either("expand, then in place", lambda m, x: x + then_in_place(_each(m.w, x) * 1.0), w=(N, 6)),
    either("where, then in place", _where_in_place, w=(6,)),
    either("copied into", lambda m, x: torch.cat([x, torch.empty_like(x).copy_(m.s)], 1), s=(6,)),
    either("index_add", _index_add, token=(1, 2, 6)),
    either("unpacked", _unpacked, pair=(2, 6)),
    either("iterated", lambda m, x: sum(x * w for w in m.weights), weights=(3, 6)),  # type: ignore[arg-type, return-value]
    either("sorted", lambda m, x: x * m.w.sort().values, w=(6,)),
    either("greatest", lambda m, x: x * m.w.max(dim=0)[0], w=(3, 6)),
    either("split", lambda m, x: x * m.w.chunk(2)[0] + m.w.split(6)[1], w=(12,)),
    either("padded", lambda m, x: x + F.pad(m.w, (0, 3)), w=(3,)),
    either("clamped", lambda m, x: x * m.w.clamp(min=0.1) / m.w.norm(), w=(6,)),
    either("subtracted from", lambda m, x: m.w - x, w=(6,)),
    either("number minus it", lambda m, x: (1 - m.w) * x + (2.0 / (m.w.square() + 1)), w=(6,)),
    either("power", lambda m, x: (x.abs() + 0.1) ** m.w, w=(6,)),
    either("dot", lambda m, x: x * (x @ m.w)[..., None], w=(6,)),
    either("linear to one number", lambda m, x: x * F.linear(x, m.w)[..., None], w=(6,)),
    either("normalised weight", lambda m, x: F.linear(x, F.normalize(m.w)), w=(6, 6)),
    either("bmm", lambda m, x: torch.bmm(x, _each(m.w, x)), w=(6, 6)),
    either("baddbmm", lambda m, x: torch.baddbmm(m.b, x, _each(m.w, x)), w=(6, 6), b=(6,)),
    either("complex weight", lambda m, x: (x * torch.view_as_complex(m.w)).real, w=(6, 2)),
    either("looked up", lambda m, x: x + m.w[(x[..., 0] > 0).long()], w=(2, 6)),
    either("gathered", lambda m, x: x + m.w.gather(0, (x[:, 0] > 0).long())[:, None], w=(2, 6)),
    either("index_select", lambda m, x: x + m.w.index_select(0, _sign(x))[:, None], w=(2, 6)),
    either("keys of attention", _attention, k=(3, 6), v=(3, 6)),
    either("inside a checkpoint", lambda m, x: _checkpoint(lambda y: y * m.w, x), w=(6,)),
    either("detached in part", lambda m, x: x * m.w.detach() + x.detach() * m.w, w=(6,)),
    either("under no_grad in part", lambda m, x: x * (m.w + without_grad(lambda: m.w * 2)), w=(6,)),
    either("weight of a norm", lambda m, x: F.layer_norm(x, (6,), m.w, m.w), w=(6,)),
    either("group norm of tokens", _group_norm, w=(6,)),
    either("cosine", lambda m, x: x * F.cosine_similarity(x, m.w, dim=-1)[..., None], w=(6,)),
    either("distance", lambda m, x: torch.cdist(x, _each(m.w, x)), features=4, w=(4, 6)),
    either("distance of all", _distance_of_all, features=4, w=(4, 6)),
]

BARE = [*USUAL, *ODD]
