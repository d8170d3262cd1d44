"""The images that networks are trained on: CIFAR-10 where it is given, else made up."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.accelerator.jpegs import decoded
from sage_torch.demo.data import DATA_ROOT_VARIABLE

CIFAR, MADE_UP = "CIFAR-10", "made-up images"
TRAIN, TEST, CLASSES = 50_000, 10_000, 10
TINY_TRAIN, TINY_TEST = 480, 200
_SIDE = 32


@dataclass(frozen=True)
class Images:
    """Images in memory, labels of ten classes.

    Attributes:
        name: `CIFAR` or `MADE_UP`.
        pixels: uint8 (N, 3, 32, 32).
        labels: int64 (N,).
        test_pixels: The same, for testing.
        test_labels: The same, for testing.
    """

    name: str
    pixels: Tensor
    labels: Tensor
    test_pixels: Tensor
    test_labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def standardised(self, pixels: Tensor) -> Tensor:
        """Return pixels as float32, each channel standardised by the training images."""
        mean, deviation = self._moments
        return (pixels.float() - mean) / deviation

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        some = self.pixels[:10_000].float()
        return some.mean((0, 2, 3), keepdim=True), some.std((0, 2, 3), keepdim=True)


def root_of(given: Path | None) -> Path | None:
    """Return the data root: the one given, else the environment's, else None."""
    from_environment = os.environ.get(DATA_ROOT_VARIABLE)
    return given or (Path(from_environment) if from_environment else None)


def load(root: Path | None, device: torch.device, *, is_tiny: bool) -> Images:
    """Return CIFAR-10 of a data root, or images made up where there is none.

    Args:
        root: The folder that holds `cifar10/cifar10_jpeg.npz`; `benchmarks/quality/cifar10.py` says
            what is in there. `np.savez_compressed` makes a third of its 55 MB.
        device: Where the images go.
        is_tiny: Whether the first few will do.

    Raises:
        FileNotFoundError: The root has no such file.
        ValueError: It holds other pictures.
    """
    sizes = (TINY_TRAIN, TINY_TEST) if is_tiny else (TRAIN, TEST)
    if root is None:
        return _made_up(*sizes, device)
    path = root / "cifar10" / "cifar10_jpeg.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"expected DATA_ROOT/cifar10/cifar10_jpeg.npz, looked for {path}; put it there, or "
            f"give neither --data-root nor {DATA_ROOT_VARIABLE} for images that are made up"
        )
    with np.load(path, allow_pickle=False) as archive:
        parts = {name: archive[name] for name in ("jpeg", "offset", "label", "is_test")}
    files, offset = torch.from_numpy(parts["jpeg"]), torch.from_numpy(parts["offset"])
    labels = torch.from_numpy(parts["label"].astype(np.int64))
    is_test = parts["is_test"].astype(bool)
    found = []
    for chosen, size in zip((~is_test, is_test), sizes, strict=True):
        places = torch.from_numpy(np.flatnonzero(chosen)[:size])
        found += [
            decoded(files, offset[places], offset[places + 1], device),
            labels[places].to(device),
        ]
    return Images(CIFAR, *found)


def _made_up(train: int, test: int, device: torch.device) -> Images:
    """Return noise around a coarse pattern of each class, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(CLASSES, 3, 4, 4, generator=generator)
    patterns = torch.nn.functional.interpolate(coarse, _SIDE, mode="bilinear")
    found = []
    for size in (train, test):
        labels = torch.randperm(size, generator=generator) % CLASSES
        pixels = torch.randn(size, 3, _SIDE, _SIDE, generator=generator).mul_(40)
        pixels.add_(30 * patterns[labels]).add_(128)
        found += [pixels.clamp_(0, 255).to(torch.uint8).to(device), labels.to(device)]
    return Images(MADE_UP, *found)
