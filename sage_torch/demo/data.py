"""The data sets of the demo: real data, small enough for a laptop, as tensors in memory.

`digits` comes with scikit-learn. `fashion-mnist` is read from a data root, which is a folder given
as an argument or by the environment variable SAGE_TORCH_DATA:

    DATA_ROOT/fashion-mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

NAMES = ("digits", "fashion-mnist")
DATA_ROOT_VARIABLE = "SAGE_TORCH_DATA"

_FASHION_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_FASHION_CLASSES = (
    "T-shirt", "trousers", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_DIGITS_TEST_EXAMPLES = 360
_IDX_UNSIGNED_BYTE = 8  # code of the idx format for the element type of these files


@dataclass(frozen=True)
class DemoData:
    """A data set in memory.

    Attributes:
        name: One of `NAMES`.
        train: Images float32 (N, *image_shape) in [0, 1] and labels int64 (N,).
        test: The same, for testing.
        classes: Number of classes; labels are 0 to classes - 1.
        image_shape: Channels, height, width.
        class_names: One word per class, by label.
    """

    name: str
    train: TensorDataset
    test: TensorDataset
    classes: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]

    def with_train_examples(self, count: int, seed: int = 0) -> DemoData:
        """Return the same data with a seeded random subset of `count` training examples.

        Raises:
            ValueError: `count` is below 1 or above the number of training examples.
        """
        images, labels = self.train.tensors
        if not 1 <= count <= len(labels):
            raise ValueError(
                f"expected 1 to {len(labels):,} training examples of {self.name}, got {count:,}"
            )
        order = np.random.default_rng(seed).permutation(len(labels))
        kept = torch.from_numpy(np.sort(order[:count]))
        return replace(self, train=TensorDataset(images[kept], labels[kept]))


def load(name: str, data_root: str | os.PathLike[str] | None = None) -> DemoData:
    """Return a data set by name.

    Args:
        name: `"digits"`: 1,797 handwritten digits of 8 x 8 pixels from scikit-learn, of which a
            fixed 360 are for testing. `"fashion-mnist"`: 60,000 grey pictures of clothes of 28 x 28
            pixels for training, and 10,000 for testing.
        data_root: The folder that contains the folder `fashion-mnist`; None for that in the
            environment variable SAGE_TORCH_DATA. Digits need none.

    Raises:
        ValueError: The name is unknown, or a file does not have the expected format.
        FileNotFoundError: No data root is known, or files are missing in it.

    Reference:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998. Xiao, Rasul
        and Vollgraf, "Fashion-MNIST", arXiv 1708.07747.
    """
    if name == "digits":
        return _digits()
    if name == "fashion-mnist":
        return _fashion_mnist(data_root)
    raise ValueError(f"expected a data set of {', '.join(NAMES)}, got {name!r}")


def _digits() -> DemoData:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:_DIGITS_TEST_EXAMPLES], order[_DIGITS_TEST_EXAMPLES:]
    return DemoData(
        name="digits",
        train=_tensors(images[train], labels[train]),
        test=_tensors(images[test], labels[test]),
        classes=10,
        image_shape=(1, 8, 8),
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _fashion_mnist(data_root: str | os.PathLike[str] | None) -> DemoData:
    folder = _fashion_folder(data_root)
    parts = {}
    for part, (images_file, labels_file) in _FASHION_FILES.items():
        images = _read_idx(folder / images_file, axes=3)
        labels = _read_idx(folder / labels_file, axes=1)
        if len(images) != len(labels):
            raise ValueError(
                f"expected as many images as labels, got {len(images):,} in {images_file} and "
                f"{len(labels):,} in {labels_file}; fetch both files again"
            )
        parts[part] = _tensors(images[:, None] / np.float32(255), labels)
    height, width = parts["train"].tensors[0].shape[2:]
    return DemoData(
        name="fashion-mnist",
        train=parts["train"],
        test=parts["test"],
        classes=len(_FASHION_CLASSES),
        image_shape=(1, height, width),
        class_names=_FASHION_CLASSES,
    )


def _fashion_folder(data_root: str | os.PathLike[str] | None) -> Path:
    files = [name for pair in _FASHION_FILES.values() for name in pair]
    layout = f"DATA_ROOT/fashion-mnist/ with {', '.join(files)}"
    how = f"pass --data-root DATA_ROOT (or data_root=) or set {DATA_ROOT_VARIABLE}"
    named = data_root or os.environ.get(DATA_ROOT_VARIABLE)
    if not named:
        raise FileNotFoundError(
            f"fashion-mnist needs a data root, got none: {how}; expected: {layout}"
        )
    folder = Path(named) / "fashion-mnist"
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"expected {layout}; under the data root {os.fspath(named)!r} "
            f"{', '.join(missing)} cannot be found; put the files there, or {how}"
        )
    return folder


def _read_idx(path: Path, *, axes: int) -> NDArray[np.uint8]:
    """Read a gzipped idx file: two zeros, element type, number of axes, lengths, elements."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"expected a gzip file, but {path.name} is no whole gzip file ({error}); fetch it again"
        ) from error
    if content[:4] != bytes([0, 0, _IDX_UNSIGNED_BYTE, axes]):
        raise ValueError(
            f"expected {path.name} to hold unsigned bytes over {axes} axes (idx format), got the "
            f"header {content[:4]!r}; fetch it again"
        )
    start = 4 + 4 * axes
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"expected {math.prod(shape):,} elements in {path.name}, got "
            f"{max(0, len(content) - start):,}; fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _tensors(images: NDArray[np.float32], labels: NDArray[np.integer]) -> TensorDataset:
    return TensorDataset(
        torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))
    )
