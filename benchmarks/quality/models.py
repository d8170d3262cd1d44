"""The models that gradients are timed on, each with seeded batches and a loss per example.

LeNet and a small GPT are what a laptop trains; ResNet-18 for 32 x 32 pictures and ViT-tiny are what
papers on data selection use. Inputs are random: time and memory do not depend on their values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
VOCABULARY, CONTEXT = 65, 256


@dataclass(frozen=True)
class Case:
    """A model, its inputs and its loss.

    Attributes:
        name: For the table.
        make: Makes the model, freshly initialised from torch's global generator.
        inputs: `(n, generator) -> (inputs, targets)`.
        criterion: `(outputs, targets) -> (n,)` losses.
        examples: Examples in a batch.
        few: Examples in a batch of the contenders that are slow or hold n D numbers.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int, torch.Generator], Batch]
    criterion: Callable[[Tensor, Tensor], Tensor]
    examples: int
    few: int

    def model(self, seed: int, device: str = "cpu") -> nn.Module:
        """Return the model in evaluation mode, its initialisation named by the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make().eval().to(device)

    def batch(self, n: int, seed: int, device: str = "cpu") -> Batch:
        """Return n examples named by the seed."""
        inputs, targets = self.inputs(n, torch.Generator().manual_seed(seed))
        return inputs.to(device), targets.to(device)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return one loss an example (n,)."""
        return self.criterion(model(batch[0]), batch[1])


def lenet() -> nn.Module:
    """Return LeNet-5 with ReLU and max pooling for 28 x 28 grey pictures: 61,706 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


class Residual(nn.Module):
    """Two convolutions of 3 x 3, each with batch norm, beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.Sequential()
        if stride > 1:
            short = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(short, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, H, W) to (n, width, H / stride, W / stride)."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.downsample(x))


def resnet18(width: int = 64) -> nn.Module:
    """Return ResNet-18 (He et al. 2015) for 32 x 32 pictures: 11,173,962 parameters.

    Its stem is one convolution of 3 x 3 without pooling. Parameters have torchvision's names.
    """
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(3, width, 3, padding=1, bias=False))
    model.add_module("bn1", nn.BatchNorm2d(width))
    model.add_module("relu", nn.ReLU())
    channels = width
    for stage in range(4):
        wide, stride = width * 2**stage, 1 if stage == 0 else 2
        pair = nn.Sequential(Residual(channels, wide, stride), Residual(wide, wide, 1))
        model.add_module(f"layer{stage + 1}", pair)
        channels = wide
    model.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc", nn.Linear(channels, 10))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def warmed_up_cnn(images: Tensor, labels: Tensor, generator: torch.Generator) -> nn.Module:
    """Return a CNN of 105,866 parameters after an epoch of SGD (batches of 64, rate 0.05)."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10)),
        )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for batch in torch.randperm(len(images), generator=generator).split(64):
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    return network.eval()


class Attention(nn.Module):
    """Multi-head self-attention: one Linear to queries, keys and values, one back."""

    def __init__(self, width: int, heads: int, *, is_causal: bool) -> None:
        super().__init__()
        self.heads, self.is_causal = heads, is_causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, T, width) to (n, T, width)."""
        n, length, width = x.shape
        split = self.qkv(x).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # (3, n, heads, T, width / heads)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        return self.out(mixed.transpose(1, 2).reshape(n, length, width))


class Block(nn.Module):
    """Attention, then a multilayer perceptron, each after a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int, *, is_causal: bool) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, is_causal=is_causal)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, T, width) to (n, T, width)."""
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class ViT(nn.Module):
    """A vision transformer, by default ViT-tiny with 4 x 4 patches: 64 tokens and a class token."""

    def __init__(self, width: int = 192, layers: int = 12, heads: int = 3, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (32 // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, is_causal=False) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 3, 32, 32) to logits (n, 10)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.head(self.norm(self.blocks(tokens + self.positions))[:, 0])


class GPT(nn.Module):
    """A causal language model of characters with tied embeddings: 10.8 million parameters."""

    def __init__(self, width: int = 384, layers: int = 6, heads: int = 6) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads, is_causal=True) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (n, T) to logits (n, T, vocabulary)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions)
        return self.head(self.norm(self.blocks(x)))


def pictures(channels: int, side: int) -> Callable[[int, torch.Generator], Batch]:
    """Return a maker of random pictures (n, channels, side, side) with classes (n,)."""

    def make(n: int, generator: torch.Generator) -> Batch:
        images = torch.randn(n, channels, side, side, generator=generator)
        return images, torch.randint(10, (n,), generator=generator)

    return make


def sentences(n: int, generator: torch.Generator) -> Batch:
    """Return random tokens (n, 256) and those that follow them."""
    text = torch.randint(VOCABULARY, (n, CONTEXT + 1), generator=generator)
    return text[:, :-1], text[:, 1:]


def of_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy (n,) of logits (n, C)."""
    return F.cross_entropy(logits, classes, reduction="none")


def of_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy (n,) of logits (n, T, C), the mean over an example's tokens."""
    return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none").mean(1)


CASES = {
    case.name: case
    for case in (
        Case("LeNet", lenet, pictures(1, 28), of_class, examples=256, few=256),
        Case("ResNet-18", resnet18, pictures(3, 32), of_class, examples=32, few=8),
        Case("ViT-tiny", ViT, pictures(3, 32), of_class, examples=32, few=8),
        Case("GPT-10M", GPT, sentences, of_tokens, examples=8, few=4),
    )
}
