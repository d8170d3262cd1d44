"""Parameters outside of layers, shared, unused, frozen; layers whose inputs are not examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from microbatches import Checkpointed, HeadFirst, Text
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.case import CLASSES, Case, N, images, sequences, vectors

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
    functional: tuple[str, ...] = (),
    features: int = 6,
    **shapes: tuple[int, ...],
) -> Case:
    build = lambda: Bare(between, features, **shapes)  # noqa: E731
    return Case(name, build, sequences(), functional=functional)


class Conv1D(nn.Module):
    """The layer of Hugging Face's GPT-2: a weight (in, out) and addmm over flattened positions."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * torch.randn(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Any:
        shape = (*x.shape[:-1], len(self.bias))
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(shape)


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


MODULE = (
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
)


class AddmmModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(9, 6), Conv1D(6, 9)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head((x + self.c_proj(F.gelu(self.c_fc(x)))).mean(1))


class LoRA(nn.Module):
    """A frozen Linear layer and its adapter, apart or merged into one weight."""

    def __init__(self, merged: bool = False) -> None:
        super().__init__()
        self.base, self.merged = nn.Linear(6, 8).requires_grad_(False), merged
        self.lora_A, self.lora_B = nn.Linear(6, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Any:
        if self.merged:
            weight = self.base.weight + 2 * self.lora_B.weight @ self.lora_A.weight
            return self.head(torch.tanh(F.linear(x, weight, self.base.bias)))
        return self.head(torch.tanh(self.base(x) + 2 * self.lora_B(self.lora_A(x))))


class Shaped(nn.Module):
    """A Linear layer whose rows are examples, positions and channels in some order."""

    def __init__(self, apply: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.apply_ = nn.Linear(6, 6), nn.Linear(6, 6), apply
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = torch.tanh(self.apply_(self.second, torch.tanh(self.first(x))))
        return self.head(x.mean(1) if x.ndim == 3 else x)


def _time_major_rows(layer: nn.Module, x: Tensor) -> Tensor:
    rows: Tensor = layer(x.transpose(0, 1).reshape(-1, 6))
    return rows.view(x.shape[1], len(x), 6).transpose(0, 1)


def _two_views(layer: nn.Module, x: Tensor) -> Tensor:
    a, b = layer(torch.cat([x, 2 * x])).chunk(2)
    return a * b  # type: ignore[no-any-return]


def _some_tokens(layer: nn.Module, x: Tensor) -> Tensor:
    chosen = x[..., 0] > 0
    out = x.clone()
    out[chosen] = layer(x[chosen])
    return out


def shaped(name: str, apply: Callable[[Any, Tensor], Tensor], functional: str = "") -> Case:
    patterns = (functional,) if functional else ()
    return Case(name, lambda: Shaped(apply), sequences(), functional=patterns)


INPUTS = [
    shaped("flattened positions", lambda m, x: m(x.reshape(-1, 6)).view(x.shape)),
    shaped("time first", lambda m, x: m(x.transpose(0, 1)).transpose(0, 1)),
    shaped("time first, flattened", _time_major_rows, "second.*"),
    shaped("two views in one batch", _two_views, "second.*"),
    shaped("some tokens", _some_tokens, "second.*"),
    shaped("input of no example", lambda m, x: x + m(torch.eye(6).repeat(2, 1)[:N])),
    shaped("input of one row", lambda m, x: x * m(torch.ones(6))),
    shaped("input of one batch row", lambda m, x: x * m(torch.ones(1, 6))),
    shaped("one module three times", lambda m, x: m(torch.tanh(m(x)) + m(x[:, :1]))),
    shaped("output used twice", lambda m, x: (lambda y: y.sigmoid() * y)(m(x))),
    shaped("output partly used", lambda m, x: m(x)[:, ::2] + m(x).detach()[:, :1]),
    shaped("some positions only", lambda m, x: torch.cat([m(x[:, :3]), x[:, 3:]], 1)),
]


class TiedAcross(nn.Module):
    """An autoencoder's weight and its transpose; a bias in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(4, 6)
        self.other, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.other.bias = self.decoder.bias

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.encoder(x))
        x = F.linear(hidden, self.encoder.weight.t()) + self.decoder(hidden)
        return self.head(torch.tanh(self.other(x)))


class Siamese(nn.Module):
    """One encoder for both of a pair, a loss of both, a batch that is a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(144, 5)

    def forward(self, left: Tensor, right: Tensor) -> Any:
        return F.cosine_similarity(self.head(self.encoder(left)), self.head(self.encoder(right)))


def pairs() -> Any:
    return {
        "left": torch.randn(N, 3, 8, 8),
        "right": torch.randn(N, 3, 8, 8),
        "same": torch.rand(N),
    }


def similarity(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch["left"], batch["right"]) - batch["same"]).square()  # type: ignore[no-any-return]


def text() -> Any:
    return {
        "input_ids": torch.randint(11, (N, 4)),
        "attention_mask": torch.tensor([[1, 1, 1, 0]] * N),
        "labels": torch.randint(CLASSES, (N,)),
    }


def text_loss(model: nn.Module, batch: Any) -> Tensor:
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    return F.cross_entropy(logits, batch["labels"], reduction="none")


class Temperature(nn.Module):
    """A user's loss with a parameter of its own, which is not the model's to differentiate."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Linear(CLASSES, CLASSES)
        with torch.no_grad():
            self.heads.weight.copy_(torch.eye(CLASSES) + 0.3)
            self.heads.bias.fill_(0.1)

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(self.heads(model(batch[0])), batch[1], reduction="none")


def lower_frozen() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    model.requires_grad_(False)
    model.extend([nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, CLASSES)])
    return model


def only_biases() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return model


class CheckpointedInput(Checkpointed):
    """The first block's weights meet the data, which require no gradient, inside a checkpoint."""

    def forward(self, x: Tensor) -> Any:
        return self.last(checkpoint(self.block, torch.tanh(self.first(x)), use_reentrant=False))


class Lists(nn.Module):
    """Parameters in a ParameterList and a ParameterDict, of which one entry is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([torch.ones(6), torch.ones(1)])
        self.shifts = nn.ParameterDict({"used": torch.zeros(6), "unused": torch.zeros(2, 2)})
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.tanh(x * self.scales[0]) * self.scales[1] + self.shifts["used"])


class Experts(nn.Module):
    """Each example goes to one of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 2)
        self.experts = nn.ModuleList([nn.Linear(6, CLASSES) for _ in range(2)])

    def forward(self, x: Tensor) -> Any:
        gates = self.router(x).softmax(1)
        out = x.new_zeros(len(x), CLASSES)
        for i, expert in enumerate(self.experts):
            chosen = (gates.argmax(1) == i).nonzero()[:, 0]
            out = out.index_add(0, chosen, expert(x[chosen]) * gates[chosen, i, None])
        return out


def scripted() -> nn.Module:
    inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    return nn.Sequential(torch.jit.trace(inner, torch.zeros(2, 6)), nn.Linear(6, CLASSES))


def compiled() -> nn.Module:
    wrapped: Any = torch.compile(HeadFirst(), backend="eager")
    return wrapped  # type: ignore[no-any-return]


MODELS = [
    Case("hugging face's Conv1D", AddmmModel, sequences()),
    Case("lora", LoRA, vectors()),
    Case("lora merged", lambda: LoRA(merged=True), vectors()),
    Case("tied across layers", TiedAcross, vectors()),
    Case("siamese", Siamese, pairs, similarity),
    Case("mapping in, object out", Text, text, text_loss),
    Case("loss with parameters", HeadFirst, vectors(), Temperature()),
    Case("unused parameter", HeadFirst, vectors()),
    Case("lists of parameters", Lists, vectors()),
    Case("lower layers frozen", lower_frozen, images()),
    Case("only biases", only_biases, vectors()),
    Case("checkpoint", lambda: Checkpointed(reentrant=False), vectors()),
    Case("checkpoint of the input", lambda: CheckpointedInput(reentrant=False), vectors()),
    Case("reentrant checkpoint", lambda: Checkpointed(reentrant=True), vectors()),
    Case("experts", Experts, vectors(), functional=("experts.*",)),
    Case("traced", scripted, vectors(), functional=("0.*",)),
    Case("compiled", compiled, vectors()),
]

PARAMETERS = [*MODULE, *INPUTS, *MODELS]
