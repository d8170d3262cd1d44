"""The demo's data sets: shapes, a split that never moves, and errors that say what to do."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from sage_torch.demo.data import DATA_ROOT_VARIABLE, NAMES, load


def write_idx(path: Path, elements: np.ndarray, kind: int = 8) -> None:
    lengths = np.array(elements.shape, ">i4").tobytes()
    header = bytes([0, 0, kind, elements.ndim]) + lengths
    path.write_bytes(gzip.compress(header + elements.astype(np.uint8).tobytes()))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with 30 training and 10 test examples in the form of Fashion-MNIST."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    draws = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 10)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", draws.integers(0, 256, (count, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return tmp_path


def tensors(dataset: TensorDataset) -> tuple[Tensor, Tensor]:
    images, labels = dataset.tensors
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert len(images) == len(labels)
    assert images.min() >= 0
    assert images.max() <= 1
    return images, labels


def test_digits_are_split_once_and_for_all() -> None:
    data = load("digits")
    images, labels = tensors(data.train)
    assert images.shape == (1437, 1, 8, 8)
    assert tensors(data.test)[0].shape == (360, 1, 8, 8)
    assert data.image_shape == (1, 8, 8)
    assert data.classes == len(data.class_names) == len(labels.unique()) == 10
    assert torch.equal(images, load("digits").train.tensors[0])
    assert images.max() == 1


def test_no_digit_is_in_both_parts_or_lost() -> None:
    from sklearn.datasets import load_digits

    data = load("digits")
    rows = torch.cat([data.train.tensors[0], data.test.tensors[0]]).flatten(1).numpy() * 16
    expected = load_digits().data
    assert sorted(map(bytes, rows.astype(np.uint8))) == sorted(
        map(bytes, expected.astype(np.uint8))
    )


def test_fashion_mnist_reads_the_four_files(root: Path) -> None:
    data = load("fashion-mnist", root)
    images, labels = tensors(data.train)
    assert images.shape == (30, 1, 28, 28)
    assert labels.tolist() == [*range(10)] * 3
    assert tensors(data.test)[0].shape == (10, 1, 28, 28)
    assert data.image_shape == (1, 28, 28)
    assert data.classes == len(data.class_names) == 10
    raw = np.random.default_rng(0).integers(0, 256, (30, 28, 28))
    torch.testing.assert_close(images[:, 0] * 255, torch.from_numpy(raw).float())


def test_the_environment_names_the_data_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_ROOT_VARIABLE, str(root))
    assert len(load("fashion-mnist").train) == 30


def test_without_a_data_root_the_error_names_both_ways_and_the_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(DATA_ROOT_VARIABLE, raising=False)
    with pytest.raises(FileNotFoundError) as caught:
        load("fashion-mnist")
    for word in (
        "--data-root",
        DATA_ROOT_VARIABLE,
        "fashion-mnist/",
        "train-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ):
        assert word in str(caught.value)


def test_a_missing_file_is_named(root: Path) -> None:
    (root / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte\.gz cannot be found"):
        load("fashion-mnist", root)


def test_damaged_files_are_named(root: Path) -> None:
    path = root / "fashion-mnist" / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content, words in (
        (whole[: len(whole) // 2], "no whole gzip file"),
        (whole[:100] + bytes(50) + whole[150:], "no whole gzip file"),
        (b"<html>not found</html>", "no whole gzip file"),
        (gzip.compress(b"\0\0\x0d\x03" + bytes(12)), "unsigned bytes over 3 axes"),
        (gzip.compress(b"\0\0\x08\x03" + bytes(5)), "expected 0 elements"),
        (gzip.compress(b"\0\0\x08"), "unsigned bytes over 3 axes"),
        (gzip.compress(gzip.decompress(whole)[:-1]), "expected 23,520 elements"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words) as caught:
            load("fashion-mnist", root)
        assert path.name in str(caught.value)


def test_images_and_labels_must_be_as_many(root: Path) -> None:
    write_idx(root / "fashion-mnist" / "train-labels-idx1-ubyte.gz", np.arange(29) % 10)
    with pytest.raises(ValueError, match=r"as many images as labels, got 30 .* and 29"):
        load("fashion-mnist", root)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match=f"{', '.join(NAMES)}, got 'mnist'"):
        load("mnist")


def test_fewer_training_examples_are_a_seeded_draw() -> None:
    data = load("digits")
    few = data.with_train_examples(100)
    images, labels = tensors(few.train)
    assert images.shape == (100, 1, 8, 8)
    assert torch.equal(images, data.with_train_examples(100).train.tensors[0])
    assert not torch.equal(images, data.with_train_examples(100, seed=1).train.tensors[0])
    assert len(data.with_train_examples(1437).train) == 1437
    assert len(few.test) == 360
    known = {(bytes(i.numpy()), int(y)) for i, y in zip(*data.train.tensors, strict=True)}
    assert {(bytes(i.numpy()), int(y)) for i, y in zip(images, labels, strict=True)} <= known


@pytest.mark.parametrize("count", [0, -1, 1438])
def test_a_wrong_number_of_training_examples(count: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 1,437 training examples of digits"):
        load("digits").with_train_examples(count)
