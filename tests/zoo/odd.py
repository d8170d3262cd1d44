"""Uses of parameters that are easily missed or mistaken; how they are handled is left open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from microbatches import Loss, cross_entropy
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from zoo.case import CLASSES, Case, N, classifier, images, sequences, tokens, vectors
from zoo.parameters import Bare, Shaped


def bare(name: str, between: Any, features: int = 6, **shapes: tuple[int, ...]) -> Case:
    return Case(name, lambda: Bare(between, features, **shapes), sequences(), functional=None)


def shaped(name: str, apply: Any) -> Case:
    return Case(name, lambda: Shaped(apply), sequences(), functional=None)


def odd(
    name: str, build: Callable[[], nn.Module], batch: Any = None, loss: Loss = cross_entropy
) -> Case:
    return Case(name, build, batch or vectors(), loss, functional=None)


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


def _then_in_place(result: Tensor) -> Tensor:
    """Change a view of a function's result, as attention with relative positions does."""
    part = result.transpose(0, 1)[:, :, 1:]
    part *= 2.0
    result.flatten(1)[:, 0].mul_(0.5)
    return result


def _where_in_place(m: Any, x: Tensor) -> Tensor:
    return _then_in_place(torch.where(x > 0, x, m.w).transpose(1, 2)).transpose(1, 2)


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


BARE = [
    *(bare(f"token by {name}", _repeated(make), token=(2, 6)) for name, make in TOKENS),
    bare("written into", _setitem, token=(6,)),
    bare("added in place", lambda m, x: x.square().add_(m.s), s=(6,)),
    bare("matmul, then in place", lambda m, x: _then_in_place(x @ m.w), w=(6, 6)),
    bare("scale, then in place", lambda m, x: _then_in_place(x * m.w), w=(6,)),
    bare("linear, then in place", lambda m, x: _then_in_place(F.linear(x, m.w)), w=(6, 6)),
    bare(
        "einsum, then in place",
        lambda m, x: _then_in_place(torch.einsum("nte,heo->nhto", x, m.w)).flatten(1, 2),
        features=3,
        w=(2, 6, 3),
    ),
    bare("expand, then in place", lambda m, x: x + _then_in_place(_each(m.w, x) * 1.0), w=(N, 6)),
    bare("where, then in place", _where_in_place, w=(6,)),
    bare("copied into", lambda m, x: torch.cat([x, torch.empty_like(x).copy_(m.s)], 1), s=(6,)),
    bare("index_add", _index_add, token=(1, 2, 6)),
    bare("unpacked", _unpacked, pair=(2, 6)),
    bare("iterated", lambda m, x: sum(x * w for w in m.weights), weights=(3, 6)),  # type: ignore[arg-type, return-value]
    bare("sorted", lambda m, x: x * m.w.sort().values, w=(6,)),
    bare("greatest", lambda m, x: x * m.w.max(dim=0)[0], w=(3, 6)),
    bare("split", lambda m, x: x * m.w.chunk(2)[0] + m.w.split(6)[1], w=(12,)),
    bare("padded", lambda m, x: x + F.pad(m.w, (0, 3)), w=(3,)),
    bare("clamped", lambda m, x: x * m.w.clamp(min=0.1) / m.w.norm(), w=(6,)),
    bare("subtracted from", lambda m, x: m.w - x, w=(6,)),
    bare("number minus it", lambda m, x: (1 - m.w) * x + (2.0 / (m.w.square() + 1)), w=(6,)),
    bare("power", lambda m, x: (x.abs() + 0.1) ** m.w, w=(6,)),
    bare("dot", lambda m, x: x * (x @ m.w)[..., None], w=(6,)),
    bare("linear to one number", lambda m, x: x * F.linear(x, m.w)[..., None], w=(6,)),
    bare("normalised weight", lambda m, x: F.linear(x, F.normalize(m.w)), w=(6, 6)),
    bare("bmm", lambda m, x: torch.bmm(x, _each(m.w, x)), w=(6, 6)),
    bare("baddbmm", lambda m, x: torch.baddbmm(m.b, x, _each(m.w, x)), w=(6, 6), b=(6,)),
    bare("complex weight", lambda m, x: (x * torch.view_as_complex(m.w)).real, w=(6, 2)),
    bare("looked up", lambda m, x: x + m.w[(x[..., 0] > 0).long()], w=(2, 6)),
    bare("gathered", lambda m, x: x + m.w.gather(0, (x[:, 0] > 0).long())[:, None], w=(2, 6)),
    bare("index_select", lambda m, x: x + m.w.index_select(0, _sign(x))[:, None], w=(2, 6)),
    bare("keys of attention", _attention, k=(3, 6), v=(3, 6)),
    bare("inside a checkpoint", lambda m, x: _checkpoint(lambda y: y * m.w, x), w=(6,)),
    bare("detached in part", lambda m, x: x * m.w.detach() + x.detach() * m.w, w=(6,)),
    bare("under no_grad in part", lambda m, x: x * (m.w + _without_grad(lambda: m.w * 2)), w=(6,)),
    bare("weight of a norm", lambda m, x: F.layer_norm(x, (6,), m.w, m.w), w=(6,)),
    bare("group norm of tokens", _group_norm, w=(6,)),
    bare("cosine", lambda m, x: x * F.cosine_similarity(x, m.w, dim=-1)[..., None], w=(6,)),
    bare("distance", lambda m, x: torch.cdist(x, _each(m.w, x)), features=4, w=(4, 6)),
    bare("distance of all", _distance_of_all, features=4, w=(4, 6)),
]


def _without_grad(make: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return make()


def _both_ways(layer: nn.Module, x: Tensor) -> Tensor:
    """One layer in two checkpoints, whose backward passes come in the other order."""
    x = checkpoint(lambda y: torch.tanh(layer(y)), x, use_reentrant=True)
    flipped = x.transpose(0, 1)
    return checkpoint(lambda y: torch.tanh(layer(y)), flipped, use_reentrant=True).transpose(0, 1)


def _packed(layer: nn.Module, x: Tensor) -> Tensor:
    lengths = torch.full((len(x),), x.shape[1])
    packed = pack_padded_sequence(x, lengths, batch_first=True)
    packed = PackedSequence(layer(packed.data), packed.batch_sizes)
    return pad_packed_sequence(packed, batch_first=True)[0]


def _packed_unevenly(layer: nn.Module, x: Tensor) -> Tensor:
    lengths = 1 + (x[:, 0] > 0).sum(1)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    packed = packed._replace(data=layer(packed.data))
    return pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])[0]


def _input_gradient(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x if x.requires_grad else x.requires_grad_()
        energy = torch.tanh(layer(x)).sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]


def _with_other_parameters(layer: nn.Module, x: Tensor) -> Tensor:
    noisy = {name: p * 1.1 for name, p in layer.named_parameters()}
    return functional_call(layer, noisy, (x,)) + layer(x)


def _examples_sorted(layer: nn.Module, x: Tensor) -> Tensor:
    order = x[:, 0, 0].argsort()
    return layer(x[order])[order.argsort()]  # type: ignore[no-any-return]


def _examples_doubled(layer: nn.Module, x: Tensor) -> Tensor:
    rows = layer(x.repeat_interleave(2, 0))
    return rows[::2] * rows[1::2]  # type: ignore[no-any-return]


SHAPED = [
    shaped("packed", _packed),
    shaped("packed unevenly", _packed_unevenly),
    shaped("gradient of the input", _input_gradient),
    shaped("functional_call", _with_other_parameters),
    shaped("checkpoints of one layer", _both_ways),
    shaped("layer, then in place", lambda m, x: _then_in_place(m(x))),
    shaped("layer, then itself in place", lambda m, x: F.relu_(m(x))),
    shaped("layer of the input, then in place", lambda m, x: _then_in_place(m(x.detach()))),
    shaped("under no_grad", lambda m, x: x + _without_grad(lambda: m(x))),
    shaped("positions reversed in rows", lambda m, x: m(x.flip(1).reshape(-1, 6)).view(x.shape)),
    shaped("examples reversed", lambda m, x: m(x.flip(0)).flip(0)),
    shaped("examples sorted", _examples_sorted),
    shaped("examples doubled", _examples_doubled),
    shaped("examples twice", lambda m, x: torch.stack(m(x.repeat(2, 1, 1)).chunk(2)).prod(0)),
    shaped("example by example", lambda m, x: torch.stack([m(row) for row in x])),
    shaped("vmap over examples", lambda m, x: vmap(m)(x)),
    shaped("chunks of examples", lambda m, x: torch.cat([m(part) for part in x.split(3)])),
    shaped("one module over slices", lambda m, x: torch.stack([m(x[:, 0]), m(x[:, 1])], 1)),
]


class Frames(nn.Module):
    """Images of a sequence side by side in the first dimension, examples or places first."""

    def __init__(self, places_first: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 2, groups=2),
            nn.GroupNorm(2, 4), nn.Tanh(), nn.ConvTranspose2d(4, 2, 2),
            nn.InstanceNorm2d(2, affine=True), nn.PReLU(2),
        )  # fmt: skip
        self.head, self.places_first = nn.Linear(2, CLASSES), places_first

    def forward(self, x: Tensor) -> Any:
        x = x.transpose(0, 1) if self.places_first else x
        features = self.convs(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        weights = torch.arange(features.shape[4]).float().sin()
        pooled = (features * weights).mean((3, 4))
        return self.head(pooled.mean(0 if self.places_first else 1))


def videos() -> Any:
    return torch.randn(N, N, 2, 5, 5), torch.randint(CLASSES, (N,))


class Conditional(nn.Module):
    """A class embedding that scales and shifts features (FiLM), and one of its own for the head."""

    def __init__(self) -> None:
        super().__init__()
        self.film, self.first = nn.Embedding(4, 12), nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        scale, shift = self.film((x.sum(1).abs() * 2).long() % 4).chunk(2, dim=1)
        return self.head(torch.tanh(self.first(x) * (1 + scale) + shift))


class Queries(nn.Module):
    """Learned queries attend to the input (DETR), first to themselves."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(6, 2, 10)
        self.query = nn.Embedding(N, 6)
        self.decoder, self.head = nn.TransformerDecoder(layer, 2), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        queries = self.query.weight.unsqueeze(1).repeat(1, len(x), 1)
        return self.head(self.decoder(queries, x.transpose(0, 1)).mean(0))


class FirstState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.state, self.gru = nn.Parameter(torch.randn(1, 1, 5)), nn.GRU(6, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.gru(x, self.state.expand(-1, len(x), -1).contiguous())[0][:, -1])


class Ensemble(nn.Module):
    """Three networks at once, by vmap over their stacked parameters."""

    def __init__(self) -> None:
        super().__init__()
        networks = [nn.Linear(6, CLASSES) for _ in range(3)]
        stacked, _ = stack_module_state(networks)  # type: ignore[arg-type]
        self.stacked = nn.ParameterDict({k: nn.Parameter(v.detach()) for k, v in stacked.items()})
        self.base = [nn.Linear(6, CLASSES).to("meta")]  # in a list: not a module of this one

    def forward(self, x: Tensor) -> Any:
        def one(parameters: Any) -> Any:
            return functional_call(self.base[0], parameters, (x,))

        return vmap(one)(dict(self.stacked)).tanh().mean(0)


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Any:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-3)
        return self._conv_forward(x, weight, self.bias)


class Hyper(nn.Module):
    """One network's output is another one's weight, for every example anew, and for all alike."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.shared = nn.Linear(6, 12), nn.Linear(3, 36)
        self.code, self.head = nn.Parameter(torch.randn(3)), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = torch.tanh(F.linear(x, self.shared(torch.tanh(self.code)).view(6, 6)))
        own = self.own(x).view(-1, 2, 6)
        return self.head(torch.tanh(torch.bmm(own, x[:, :, None])[..., 0]))


def standardised() -> nn.Module:
    return classifier(StandardisedConv(3, 4, 3), shape=(3, 8, 8))


def pruned() -> nn.Module:
    first = nn.Linear(6, 8)
    with torch.no_grad():
        prune.random_unstructured(first, "weight", 0.3)
    return nn.Sequential(first, nn.Tanh(), nn.Linear(8, CLASSES))


def orthogonal() -> nn.Module:
    return nn.Sequential(parametrizations.orthogonal(nn.Linear(6, 6)), nn.Linear(6, CLASSES))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    model[0].register_forward_pre_hook(_halve)
    model[0].register_forward_hook(_double)
    model[2].register_full_backward_hook(_look)
    return model


def _halve(module: nn.Module, args: Any) -> Any:
    return (0.5 * args[0],)


def _double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * output


def _look(module: nn.Module, input_gradients: Any, output_gradients: Any) -> None:
    assert output_gradients[0] is not None


def with_penalty(model: nn.Module, batch: Any) -> Tensor:
    penalty = sum(parameter.square().sum() for parameter in model.parameters())
    return cross_entropy(model, batch) + 0.01 * penalty


def batch_dependent_weights(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model, batch) * batch[1].add(1).double()


def gradient_penalty(model: nn.Module, batch: Any) -> Tensor:
    inputs = batch[0].detach().requires_grad_()
    logits = model(inputs)
    (slope,) = torch.autograd.grad(logits.square().sum(), inputs, create_graph=True)
    return F.cross_entropy(logits, batch[1], reduction="none") + slope.flatten(1).square().sum(1)


def two_passes(model: nn.Module, batch: Any) -> Tensor:
    first, second = model(batch[0]), model(batch[0][:, :3])
    return F.cross_entropy(first, batch[1], reduction="none") + (first - second).square().mean(1)


def own_teacher(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        teacher = model(batch[0].flip(1))
    student = model(batch[0])
    return cross_entropy(lambda _: student, batch) + (student - teacher).square().mean(1)


class Trimmed(nn.Module):
    """Positions that no example of the batch needs are cut off first, as collators do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first = nn.Embedding(11, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        longest = int((x > 2).sum(1).max())
        mask = (torch.arange(x.shape[1]) < (x > 2).sum(1, keepdim=True))[:, :longest, None]
        x = torch.tanh(self.first(self.embedding(x[:, :longest]))) * mask
        return self.head(x.sum(1))


def compiled_part() -> nn.Module:
    inner: Any = torch.compile(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), backend="eager")
    return nn.Sequential(nn.Linear(6, 6), inner, nn.Linear(6, CLASSES))


def compiled_in_place() -> nn.Module:
    model = smooth()
    model.compile(backend="eager")
    return model


def pooled() -> nn.Module:
    return Shaped(lambda m, x: m(x).mean(1))


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))


ODD = [
    *BARE,
    *SHAPED,
    odd("frames", lambda: Frames(False), videos),
    odd("frames, places first", lambda: Frames(True), videos),
    odd("film", Conditional),
    odd("learned queries", Queries, sequences()),
    odd("first state", FirstState, sequences()),
    odd("ensemble", Ensemble),
    odd("standardised weights", standardised, images()),
    odd("hyper network", Hyper),
    odd("pruned", pruned),
    odd("orthogonal", orthogonal),
    odd("user's hooks", hooked),
    odd("penalty of weights", smooth, loss=with_penalty),
    odd("losses in float64", smooth, loss=batch_dependent_weights),
    odd("two forward passes", pooled, sequences(), two_passes),
    odd("a teacher of its own", pooled, sequences(), own_teacher),
    odd("trimmed to the longest", Trimmed, tokens()),
    odd("compiled part", compiled_part),
    odd("compiled in place", compiled_in_place),
    odd("gradient penalty", smooth, loss=gradient_penalty),
]
