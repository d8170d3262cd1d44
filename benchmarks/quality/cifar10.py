"""CIFAR-10 (Krizhevsky, 2009) from a data root, as the demo's data sets are.

    DATA_ROOT/cifar10/cifar10_jpeg.npz

One archive of 60,000 JPEG files: `jpeg` (their bytes, one after another), `offset` (where each
begins, and the end), `label`, `is_test`, `class_names`.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from sage_torch.demo.data import DATA_ROOT_VARIABLE, DemoData

_SHAPE = (32, 32, 3)


def load_cifar10(data_root: str | os.PathLike[str] | None = None) -> DemoData:
    """Return CIFAR-10: 50,000 and 10,000 colour pictures (3, 32, 32) in [0, 1], 10 classes.

    Args:
        data_root: The folder that holds the folder `cifar10`; None for what the environment
            variable SAGE_TORCH_DATA names.

    Raises:
        FileNotFoundError: There is no such file.
    """
    root = data_root or os.environ.get(DATA_ROOT_VARIABLE, "")
    path = Path(root) / "cifar10" / "cifar10_jpeg.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"cifar10 needs DATA_ROOT/cifar10/cifar10_jpeg.npz, looked for {path}; pass "
            f"--data-root DATA_ROOT or set {DATA_ROOT_VARIABLE}"
        )
    with np.load(path, allow_pickle=False) as archive:
        files, offset = archive["jpeg"], archive["offset"]
        labels, is_test = archive["label"], archive["is_test"].astype(bool)
        class_names = tuple(str(name) for name in archive["class_names"])
    pixels = np.empty((len(labels), *_SHAPE), np.uint8)
    for place in range(len(labels)):
        content = files[offset[place] : offset[place + 1]].tobytes()
        pixels[place] = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    def part(chosen: np.ndarray) -> TensorDataset:
        images = torch.from_numpy(pixels[chosen]).permute(0, 3, 1, 2).float() / 255
        return TensorDataset(images, torch.from_numpy(labels[chosen].astype(np.int64)))

    return DemoData(
        name="cifar-10",
        train=part(~is_test),
        test=part(is_test),
        classes=len(class_names),
        image_shape=(3, 32, 32),
        class_names=class_names,
    )
