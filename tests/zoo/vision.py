"""Networks for images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig

from zoo.case import CLASSES, Case, images, vectors


def mlp() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 8)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Linear(8, CLASSES))


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Any:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc2(F.relu(self.fc1(x.view(-1, 256)))))
        return self.fc3(x)


class Block(nn.Module):
    """A residual block that writes in place wherever it can."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Any:
        out = F.relu_(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return out.relu_()


def in_place() -> nn.Module:
    stem = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), Block(4), Block(4)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)]
    return nn.Sequential(*stem, nn.Dropout(0.5, inplace=True), *head)


class TwoLosses(nn.Module):
    """The output of every layer has its own head, as in deep supervision."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 5, 3)
        self.heads = nn.ModuleList([nn.Linear(4, CLASSES), nn.Linear(5, CLASSES)])

    def forward(self, x: Tensor) -> Any:
        first = torch.relu(self.first(x))
        second = torch.relu(self.second(first))
        both = (self.heads[0](first.mean((2, 3))), self.heads[1](second.mean((2, 3))))
        return both[0] + 0.5 * both[1]


class Attention(nn.Module):
    """The attention of timm's vision transformers: one Linear for q, k and v, then SDPA."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.q_norm, self.k_norm = nn.LayerNorm(features // heads), nn.LayerNorm(features // heads)

    def forward(self, x: Tensor) -> Any:
        n, length, features = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, features // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(x.transpose(1, 2).reshape(n, length, features))


class LayerScale(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((features,), 0.7))

    def forward(self, x: Tensor) -> Any:
        return x * self.gamma


class TimmViT(nn.Module):
    """Patches, class token, position embedding, pre-norm blocks with layer scale, pooled token."""

    def __init__(self, features: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, features, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, features))
        self.pos_embed = nn.Parameter(0.1 * torch.randn(1, 5, features))
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.attention, self.scale1 = Attention(features, 2), LayerScale(features)
        self.mlp = nn.Sequential(nn.Linear(features, 24), nn.GELU(), nn.Linear(24, features))
        self.scale2, self.norm = LayerScale(features), nn.LayerNorm(features)
        self.head = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        x = x + self.scale1(self.attention(self.norm1(x)))
        x = x + self.scale2(self.mlp(self.norm2(x)))
        return self.head(self.norm(x)[:, 0])


def convnext() -> nn.Module:
    blocks = [CNBlockConfig(6, 8, 1), CNBlockConfig(8, None, 1)]
    return torchvision.models.ConvNeXt(blocks, layer_scale=0.5, num_classes=CLASSES)


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=12, patch_size=6, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=20,
        num_classes=CLASSES,
    )  # fmt: skip


def swin() -> nn.Module:
    return torchvision.models.SwinTransformer(
        patch_size=[2, 2], embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=[2, 2],
        num_classes=CLASSES,
    )  # fmt: skip


def densenet() -> nn.Module:
    return torchvision.models.DenseNet(4, (2, 2), 6, num_classes=CLASSES)


def shufflenet() -> nn.Module:
    return torchvision.models.ShuffleNetV2([1, 1, 1], [4, 8, 8, 8, 8], num_classes=CLASSES)


def mobilenet() -> nn.Module:
    return torchvision.models.mobilenet_v3_small(num_classes=CLASSES, width_mult=0.25)


def resnet18() -> nn.Module:
    return torchvision.models.resnet18(num_classes=CLASSES)


def resnet50() -> nn.Module:
    return torchvision.models.resnet50(num_classes=CLASSES)


def channels_last() -> nn.Module:
    model: nn.Module = in_place().to(memory_format=torch.channels_last)
    return model


def channels_last_images() -> Any:
    inputs, targets = images()()
    return inputs.to(memory_format=torch.channels_last), targets


VISION = [
    Case("mlp", mlp, vectors()),
    Case("lenet", LeNet, images(1, 28)),
    Case("resnet18", resnet18, images(3, 32, n=3)),
    Case("resnet50", resnet50, images(3, 32, n=2)),
    Case("densenet", densenet, images(3, 32, n=3)),
    Case("shufflenet", shufflenet, images(3, 32, n=3)),
    Case("mobilenet", mobilenet, images(3, 32, n=3)),
    Case("convnext", convnext, images(3, 16)),
    Case("vit", vit, images(3, 12)),
    Case("timm vit", TimmViT, images()),
    Case("swin", swin, images(3, 8)),
    Case("in place", in_place, images()),
    Case("two heads", TwoLosses, images()),
    Case("channels last", channels_last, channels_last_images),
    Case("channels last input", in_place, channels_last_images),
    Case("channels last model", channels_last, images()),
]
