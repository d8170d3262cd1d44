"""All data loading of the demos and benchmarks: small data sets as tensors in memory.

`digits` comes with scikit-learn and needs nothing else. The others are read from a data root, a
folder named by an option or by the environment variable SAGE_TORCH_DATA:

    <root>/fashion-mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

DATA_ROOT_VARIABLE = "SAGE_TORCH_DATA"
DIGITS_TEST_EXAMPLES = 360
IDX_UNSIGNED_BYTE = 8  # the idx format's code for the one element type these files hold


def data_root(path: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds the data sets: `path`, or what SAGE_TORCH_DATA names.

    Raises:
        FileNotFoundError: neither is given, or there is no such folder.
    """
    named = path or os.environ.get(DATA_ROOT_VARIABLE)
    if not named:
        raise FileNotFoundError(
            f"expected a data root, got none: pass --data-root or set {DATA_ROOT_VARIABLE}"
        )
    root = Path(named)
    if not root.is_dir():
        raise FileNotFoundError(
            f"expected the data root to be a folder, got {named}: no such folder"
        )
    return root


def digits(*, train: bool = True, examples: int | None = None, seed: int = 0) -> TensorDataset:
    """Scikit-learn's 1,797 handwritten digits as (1, 8, 8) images in [0, 1] and class ids.

    Args:
        train: the training split; False gives the 360 test examples. The split is always the same.
        examples: a random subset of that many; None for all.
        seed: which subset.
    """
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    kept = order[DIGITS_TEST_EXAMPLES:] if train else order[:DIGITS_TEST_EXAMPLES]
    pixels = images[kept].reshape(-1, 8, 8) / 16
    return _tensors(pixels, labels[kept], examples=examples, seed=seed)


def fashion_mnist(
    root: str | os.PathLike[str] | None = None,
    *,
    train: bool = True,
    examples: int | None = None,
    seed: int = 0,
) -> TensorDataset:
    """Fashion-MNIST as (1, 28, 28) images in [0, 1] and class ids (Xiao, Rasul, Vollgraf 2017).

    Args:
        root: the data root; None reads SAGE_TORCH_DATA.
        train: the 60,000 training examples; False gives the 10,000 test examples.
        examples: a random subset of that many; None for all.
        seed: which subset.

    Raises:
        FileNotFoundError: no data root, or the files are not in it.
        ValueError: a file is not what its name says.
    """
    folder = data_root(root) / "fashion-mnist"
    split = "train" if train else "t10k"
    images = _read_idx(folder / f"{split}-images-idx3-ubyte.gz", axes=3)
    labels = _read_idx(folder / f"{split}-labels-idx1-ubyte.gz", axes=1)
    return _tensors(images / np.float32(255), labels, examples=examples, seed=seed)


def _read_idx(path: Path, *, axes: int) -> npt.NDArray[np.uint8]:
    """A gzipped idx file: two zeros, element type, number of axes, big-endian lengths, elements."""
    if not path.is_file():
        raise FileNotFoundError(
            f"expected {path.parent.name}/{path.name} under the data root, found no such file: "
            "get the four files from the Fashion-MNIST project"
        )
    content = gzip.decompress(path.read_bytes())
    if content[:4] != bytes([0, 0, IDX_UNSIGNED_BYTE, axes]):
        raise ValueError(
            f"expected {path.name} to hold unsigned bytes over {axes} axes, got header "
            f"{content[:4]!r}: fetch the file again"
        )
    shape = np.frombuffer(content, ">i4", count=axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _tensors(
    images: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    *,
    examples: int | None,
    seed: int,
) -> TensorDataset:
    """Images (N, H, W) and labels (N,) as float32 (N, 1, H, W) and int64, a subset if asked for."""
    if examples is not None and not 0 < examples <= len(labels):
        raise ValueError(f"expected 1 to {len(labels):,} examples, got {examples}")
    chosen = np.random.default_rng(seed).permutation(len(labels))[:examples]
    kept = np.arange(len(labels)) if examples is None else chosen
    return TensorDataset(
        torch.from_numpy(images[kept].astype(np.float32)).unsqueeze(1),
        torch.from_numpy(labels[kept].astype(np.int64)),
    )
