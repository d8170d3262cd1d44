"""Parameters that are shared, unused, frozen or adapters; checkpoints; wrapped models."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from microbatches import Checkpointed, HeadFirst, Text
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.case import CLASSES, Case, N, images, sequences, vectors


class Conv1D(nn.Module):
    """The layer of Hugging Face's GPT-2: a weight (in, out) and addmm over flattened positions."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * torch.randn(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Any:
        shape = (*x.shape[:-1], len(self.bias))
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(shape)


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


PARAMETERS = [
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
