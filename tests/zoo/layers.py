"""One layer at a time, in every form that its arguments allow."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from zoo.case import CLASSES, Case, N, classifier, images, sequences, signals, tokens, vectors

Layer = Callable[[], nn.Module]


def _signals(name: str, layer: Layer) -> Case:
    return Case(name, lambda: classifier(layer(), shape=(4, 9)), signals())


def _images(name: str, layer: Layer, channels: int = 4, side: int = 7) -> Case:
    shape = (channels, side, side)
    return Case(name, lambda: classifier(layer(), shape=shape), images(channels, side))


def _volumes(name: str, layer: Layer) -> Case:
    def batch() -> Any:
        return torch.randn(N, 4, 5, 4, 5), torch.randint(CLASSES, (N,))

    return Case(name, lambda: classifier(layer(), shape=(4, 5, 4, 5)), batch)


CONVOLUTIONS = [
    _signals("conv1d", lambda: nn.Conv1d(4, 5, 3)),
    _signals("conv1d same", lambda: nn.Conv1d(4, 6, 4, padding="same", dilation=2, groups=2)),
    _signals("conv1d circular", lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular")),
    _signals("conv1d as wide as the batch", lambda: nn.Conv1d(4, N, 3, bias=False)),
    _images("conv2d", lambda: nn.Conv2d(4, 5, (3, 2), stride=(2, 3), padding=(1, 0))),
    _images("conv2d 1x1", lambda: nn.Conv2d(4, 9, 1)),
    _images("conv2d 1x1 strided", lambda: nn.Conv2d(4, 9, 1, stride=2)),
    _images("conv2d dilated", lambda: nn.Conv2d(4, 5, 3, dilation=(2, 1), padding=2)),
    _images("conv2d ends unread", lambda: nn.Conv2d(4, 5, 2, stride=3)),
    _images("conv2d grouped", lambda: nn.Conv2d(4, 6, 3, groups=2)),
    _images("conv2d depthwise", lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1)),
    _images("conv2d depth multiplier", lambda: nn.Conv2d(4, 12, 3, groups=4, stride=2)),
    _images("conv2d same", lambda: nn.Conv2d(4, 5, (2, 3), padding="same")),
    _images("conv2d valid", lambda: nn.Conv2d(4, 5, 3, padding="valid")),
    _images(
        "conv2d reflect",
        lambda: nn.Conv2d(4, 5, 3, padding=(2, 1), padding_mode="reflect", stride=2),
    ),
    _images("conv2d replicate", lambda: nn.Conv2d(4, 5, 3, padding=1, padding_mode="replicate")),
    _images(
        "conv2d same reflect",
        lambda: nn.Conv2d(4, 4, (2, 3), padding="same", padding_mode="reflect", groups=4),
    ),
    _images("conv2d whole image", lambda: nn.Conv2d(4, 5, 7)),
    _volumes("conv3d", lambda: nn.Conv3d(4, 5, (3, 2, 3), stride=(1, 2, 2), padding=1)),
    _volumes("conv3d grouped", lambda: nn.Conv3d(4, 6, 2, groups=2, dilation=(2, 1, 2))),
    _volumes("conv3d depthwise", lambda: nn.Conv3d(4, 4, 3, groups=4, padding=1)),
    _signals("transposed 1d", lambda: nn.ConvTranspose1d(4, 5, 3, stride=2, padding=1)),
    _signals(
        "transposed 1d grouped",
        lambda: nn.ConvTranspose1d(4, 6, 4, stride=3, output_padding=2, groups=2, dilation=2),
    ),
    _images("transposed 2d", lambda: nn.ConvTranspose2d(4, 5, (3, 2))),
    _images(
        "transposed 2d strided",
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, bias=False),
    ),
    _images("transposed 2d depthwise", lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, groups=4)),
    _images(
        "transposed 2d grouped", lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=(1, 2))
    ),
    _volumes(
        "transposed 3d",
        lambda: nn.ConvTranspose3d(
            4, 2, 2, stride=(2, 3, 1), output_padding=(1, 2, 0), groups=2, padding=1
        ),
    ),
]

NORMS = [
    _signals("layer norm", lambda: nn.LayerNorm(9)),
    _signals("layer norm over two dimensions", lambda: nn.LayerNorm((4, 9))),
    _signals("layer norm without bias", lambda: nn.LayerNorm(9, bias=False)),
    _signals("rms norm", lambda: nn.RMSNorm(9)),
    _images("rms norm over two dimensions", lambda: nn.RMSNorm((7, 7), eps=1e-3)),
    _images("group norm", lambda: nn.GroupNorm(2, 4)),
    _images("group norm of one group", lambda: nn.GroupNorm(1, 4)),
    Case("group norm of vectors", lambda: classifier(nn.GroupNorm(2, 6), shape=(6,)), vectors()),
    _signals("instance norm 1d", lambda: nn.InstanceNorm1d(4, affine=True)),
    _images("instance norm 2d", lambda: nn.InstanceNorm2d(4, affine=True)),
    _images(
        "instance norm 2d with statistics",
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    ),
    _volumes("instance norm 3d", lambda: nn.InstanceNorm3d(4, affine=True)),
    Case("batch norm 1d", lambda: classifier(nn.BatchNorm1d(6), shape=(6,)), vectors()),
    _signals("batch norm 1d of signals", lambda: nn.BatchNorm1d(4)),
    _images("batch norm 2d", lambda: nn.BatchNorm2d(4)),
    _volumes("batch norm 3d", lambda: nn.BatchNorm3d(4)),
    _images("batch norm without scale", lambda: nn.Sequential(nn.BatchNorm2d(4, affine=False))),
]


class Lookup(nn.Module):
    """Whatever embeds tokens, and a classifier of the whole sequence."""

    def __init__(self, embedding: nn.Module, positions: int = N) -> None:
        super().__init__()
        self.embedding, self.head = embedding, nn.Linear(5 * positions, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.tanh(self.embedding(x)).flatten(1))


class Weighted(nn.Module):
    """A bag whose entries the data weigh."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(11, 5, mode="sum"), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.bag(x, per_sample_weights=1.0 / (1 + x)))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 3)
        self.bilinear = nn.Bilinear(4, 3, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.bilinear(torch.tanh(self.left(x)), torch.tanh(self.right(x)))


class Channels(nn.Module):
    """A Linear layer over the last of four dimensions, and over a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Linear(7, 5), nn.Linear(7, 3)
        self.head = nn.Linear(15, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.columns(self.rows(x).transpose(2, 3)).mean(1).flatten(1))


def weight_norm() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, CLASSES)
    )


def spectral_norm() -> nn.Module:
    layer = parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
    return classifier(layer, shape=(3, 8, 8))


def old_weight_norm() -> nn.Module:
    """Return layers whose weight a hook computes anew before each forward pass."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)
        first = torch.nn.utils.weight_norm(nn.Linear(6, 8))
        first(torch.zeros(1, 6))  # with a weight that has a graph it could not be copied
    return nn.Sequential(first, nn.Tanh(), nn.Linear(8, CLASSES))


OTHERS = [
    Case("prelu", lambda: classifier(nn.PReLU(), shape=(6,)), vectors()),
    _images("prelu per channel", lambda: nn.PReLU(4)),
    Case("embedding", lambda: Lookup(nn.Embedding(11, 5)), tokens()),
    Case("embedding with padding", lambda: Lookup(nn.Embedding(11, 5, padding_idx=3)), tokens()),
    Case("sparse embedding", lambda: Lookup(nn.Embedding(11, 5, sparse=True)), tokens()),
    Case(
        "embedding scaled by frequency",
        lambda: Lookup(nn.Embedding(11, 5, scale_grad_by_freq=True)),
        tokens(),
        functional=("embedding.weight",),
    ),
    Case("embedding bag", lambda: Lookup(nn.EmbeddingBag(11, 5), 1), tokens()),
    Case("weighted bag", Weighted, tokens()),
    Case("bilinear", Bilinear, vectors()),
    Case("linear over four dimensions", Channels, images(2, 7)),
    Case(
        "linear over positions",
        lambda: classifier(nn.Linear(6, N), nn.Tanh(), nn.Linear(N, 5), shape=(N, 6)),
        sequences(),
    ),
    Case("weight norm", weight_norm, vectors()),
    Case("old weight norm", old_weight_norm, vectors()),
    Case("spectral norm", spectral_norm, images()),
]

LAYERS = CONVOLUTIONS + NORMS + OTHERS
