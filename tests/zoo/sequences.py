"""Networks for sequences: as long as the batch, so that the two dimensions can be mistaken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.case import CLASSES, Case, N, sequences, tokens


class GPT(nn.Module):
    """Tied embeddings, and positions in one of the forms that are found in the wild."""

    def __init__(
        self, positions: str, checkpointing: bool = False, features: int = 12, blocks: int = 2
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(11, features)
        shape = {"(T,)": (N, features), "sliced": (N + 2, features), "(1, T)": (N, features)}
        if positions == "sliced":
            self.pos = nn.Parameter(torch.randn(1, *shape[positions]))
        else:
            self.wpe = nn.Embedding(*shape[positions])
        self.positions, self.checkpointing = positions, checkpointing
        self.blocks = nn.ModuleList([GPTBlock(features) for _ in range(blocks)])
        self.norm = nn.LayerNorm(features)
        self.head = nn.Linear(features, 11, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, x: Tensor) -> Any:
        length = x.shape[1]
        places = torch.arange(length)
        if self.positions == "sliced":
            where: Tensor = self.pos[:, :length]
        else:
            where = self.wpe(places if self.positions == "(T,)" else places[None])
        x = self.wte(x) + where
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        return self.head(self.norm(x))


class GPTBlock(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.attention = nn.Linear(features, 3 * features)
        self.projection = nn.Linear(features, features)
        self.mlp = nn.Sequential(
            nn.Linear(features, 20), nn.GELU("tanh"), nn.Linear(20, features), nn.Dropout(0.1)
        )

    def forward(self, x: Tensor) -> Any:
        q, k, v = (
            part.unflatten(2, (2, -1)).transpose(1, 2)
            for part in self.attention(self.ln_1(x)).chunk(3, dim=2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.ln_2(x))


def next_token(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean loss over an example's tokens."""
    logits = model(batch[0])[:, :-1]
    return F.cross_entropy(logits.movedim(2, 1), batch[0][:, 1:], reduction="none").mean(1)


def next_token_flat(model: nn.Module, batch: Any) -> Tensor:
    """Return the same, computed over the flattened tokens as many trainers do."""
    logits = model(batch[0])[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].flatten(), reduction="none")
    return losses.view(len(logits), -1).mean(1)


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.recurrent = kind(6, 5, batch_first=True, **options)
        self.head = nn.Linear(10 if options.get("bidirectional") else 5, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.recurrent(self.embedding(x))[0][:, -1])


class TimeFirst(nn.Module):
    """A recurrent network over (T, n, E), after a Linear layer over the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.recurrent = nn.Linear(6, 5), nn.GRU(5, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.recurrent(torch.tanh(self.first(x.transpose(0, 1))))[0][-1])


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Any:
        state = x.new_zeros(len(x), 5)
        for part in x.unbind(1):
            state = self.cell(part, state)
        return self.head(state)


class OwnCell(nn.Module):
    """A recurrent cell of Linear layers, called once a position."""

    def __init__(self) -> None:
        super().__init__()
        self.new, self.old = nn.Linear(6, 5), nn.Linear(5, 5, bias=False)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Any:
        state = x.new_zeros(len(x), 5)
        for part in x.unbind(1):
            state = torch.tanh(self.new(part) + self.old(state))
        return self.head(state)


class Attends(nn.Module):
    """nn.MultiheadAttention with whatever options, of a sequence to itself or to another."""

    def __init__(self, batch_first: bool = True, **options: Any) -> None:
        super().__init__()
        self.call = {name: options.pop(name) for name in list(options) if name.startswith("need")}
        self.mask, self.padding = options.pop("mask", False), options.pop("padding", False)
        self.cross = "kdim" in options
        if self.cross:
            self.key, self.value = nn.Linear(6, 4), nn.Linear(6, 10)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options)
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, CLASSES)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Any:
        length = x.shape[1]
        if self.mask:
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            self.call["attn_mask"] = future
        if self.padding:
            self.call["key_padding_mask"] = (x[:, :, 0] > 1).index_fill(1, torch.tensor(0), False)
        x = x if self.batch_first else x.transpose(0, 1)
        query = torch.tanh(self.first(x))
        key, value = (self.key(x), self.value(x)) if self.cross else (query, query)
        mixed, weights = self.attention(query, key, value, **self.call)
        logits = self.head(mixed).mean(1 if self.batch_first else 0)
        return logits if weights is None else logits * weights.square().sum((1, 2))[:, None]


class EncoderDecoder(nn.Module):
    """nn.Transformer, (T, n, E) or (n, T, E)."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(11, 8), nn.Embedding(11, 8)
        self.transformer = nn.Transformer(8, 2, 1, 1, 10, batch_first=batch_first)
        self.head, self.batch_first = nn.Linear(8, 11), batch_first

    def forward(self, x: Tensor) -> Any:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        target = x.flip(1)
        if not self.batch_first:
            x, target = x.t(), target.t()
        out = self.head(
            self.transformer(self.source(x), self.target(target), tgt_mask=mask, tgt_is_causal=True)
        )
        return out if self.batch_first else out.transpose(0, 1)


class Encoder(nn.Module):
    """nn.TransformerEncoder with padding: torch has a fast path that training never takes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=False)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Any:
        padding = x == 0
        padding[:, 0] = False
        return self.head(self.encoder(self.embedding(x), src_key_padding_mask=padding)[:, 0])


class Mixer(nn.Module):
    """MLP-Mixer: Linear layers over positions and over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.over_positions, self.over_channels = nn.Linear(N, N), nn.Linear(6, 6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = x + torch.tanh(self.over_positions(self.norm(x).transpose(1, 2))).transpose(1, 2)
        return self.head((x + torch.tanh(self.over_channels(x))).mean(1))


def _attends(name: str, functional: tuple[str, ...] = (), **options: Any) -> Case:
    return Case(name, lambda: Attends(**options), sequences(), functional=functional)


CELLS = ("recurrent.*",)

SEQUENCES = [
    Case("gpt positions (T,)", lambda: GPT("(T,)"), tokens(), next_token),
    Case("gpt positions (1, T)", lambda: GPT("(1, T)"), tokens(), next_token_flat),
    Case("gpt positions sliced", lambda: GPT("sliced"), tokens(), next_token),
    Case("gpt short sequences", lambda: GPT("sliced"), tokens(length=4), next_token_flat),
    Case("gpt checkpointed", lambda: GPT("(T,)", True), tokens(), next_token),
    Case("lstm", lambda: Recurrent(nn.LSTM), tokens(), functional=CELLS),
    Case(
        "bidirectional lstm",
        lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        tokens(),
        functional=CELLS,
    ),
    Case("gru", lambda: Recurrent(nn.GRU), tokens(), functional=CELLS),
    Case("rnn", lambda: Recurrent(nn.RNN), tokens(), functional=CELLS),
    Case("gru time first", TimeFirst, sequences(), functional=CELLS),
    Case("gru cell", Cell, sequences()),
    Case("own cell", OwnCell, sequences()),
    _attends("attention"),
    _attends("attention time first", batch_first=False),
    _attends("attention without weights", need_weights=False),
    _attends("attention masked", mask=True, need_weights=False),
    _attends("attention padded", padding=True),
    _attends("attention time first, masked, padded", batch_first=False, mask=True, padding=True),
    _attends("attention without bias", bias=False),
    _attends("cross attention", kdim=4, vdim=10),
    _attends("cross attention time first", kdim=4, vdim=10, batch_first=False, need_weights=False),
    _attends("attention with bias_k", add_bias_kv=True, add_zero_attn=True),
    _attends("attention with bias_k, time first", add_bias_kv=True, batch_first=False),
    Case("transformer", lambda: EncoderDecoder(True), tokens(), next_token),
    Case("transformer time first", lambda: EncoderDecoder(False), tokens(), next_token),
    Case("encoder with padding", Encoder, tokens()),
    Case("mixer", Mixer, sequences()),
]
