"""Parts of the accelerator's benchmark: pictures without Pillow, augmentation, checks, networks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.accelerator import checks, images
from benchmarks.accelerator.jpegs import decoded
from benchmarks.accelerator.machine import Machine
from benchmarks.accelerator.quality import balanced
from benchmarks.accelerator.training import Training, augmented
from benchmarks.quality.cifar10 import load_cifar10
from benchmarks.quality.models import resnet18

CPU = torch.device("cpu")


def drawn(count: int) -> list[Image.Image]:
    """Pictures 32 x 32: noise, smooth colours, and flat ones."""
    random = np.random.default_rng(0)
    steps = np.linspace(0, 255, 32)
    found = []
    for number in range(count):
        pixels = random.integers(0, 256, (32, 32, 3)).astype(float)
        if number % 3 == 1:
            pixels = np.stack([steps[:, None] + 0 * steps, steps + 0 * steps[:, None]] * 2, 2)
            pixels = pixels[..., :3] * random.uniform(0, 1, 3)
        elif number % 3 == 2:
            pixels[:] = random.integers(0, 256, 3)
        found.append(Image.fromarray(pixels.astype(np.uint8)))
    return found


def written(pictures: list[Image.Image], **options: int) -> list[bytes]:
    found = []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, "JPEG", **options)
        found.append(file.getvalue())
    return found


def together(files: list[bytes]) -> tuple[Tensor, Tensor, Tensor]:
    """All bytes, and where each file begins and ends."""
    lengths = np.array([len(file) for file in files])
    ends = torch.from_numpy(lengths.cumsum())
    whole = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8)
    return whole, ends - torch.from_numpy(lengths), ends


def by_pillow(files: list[bytes]) -> NDArray[np.uint8]:
    opened = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    return np.stack([np.asarray(one) for one in opened]).transpose(0, 3, 1, 2)


def test_pictures_are_those_of_libjpeg() -> None:
    files = written(drawn(60))
    ours, theirs = decoded(*together(files), CPU), by_pillow(files)
    assert (ours.dtype, tuple(ours.shape)) == (torch.uint8, (60, 3, 32, 32))
    error = np.abs(ours.numpy().astype(int) - theirs)
    assert error.max() <= 3
    assert error.mean() < 0.1
    some, begins, ends = together(files)
    assert torch.equal(decoded(some, begins[7:9], ends[7:9], CPU), ours[7:9])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (written(drawn(2)[:1]) + written(drawn(2)[1:], quality=90), "share one header"),
        (written(drawn(2), subsampling=0), "colours at half the size"),
        (written(drawn(2), progressive=True), "baseline JPEG"),
        (written([one.resize((16, 16)) for one in drawn(2)]), "of 32 x 32 pixels"),
        ([file[:700] for file in written(drawn(1))], "blocks are damaged"),
    ],
    ids=["two headers", "whole colours", "progressive", "another size", "cut off"],
)
def test_other_pictures_are_refused(files: list[bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoded(*together(files), CPU)


def test_cifar_10_is_that_of_the_other_benchmarks(tmp_path: Path) -> None:
    files = written(drawn(30))
    whole, _, ends = together(files)
    (tmp_path / "cifar10").mkdir()
    np.savez_compressed(
        tmp_path / "cifar10" / "cifar10_jpeg.npz",
        jpeg=whole.numpy(),
        offset=np.concatenate([[0], ends.numpy()]),
        label=(np.arange(30) % 10).astype(np.uint8),
        is_test=np.arange(30) % 3 == 0,
        class_names=np.array(list("abcdefghij")),
    )
    ours, theirs = images.load(tmp_path, CPU, is_tiny=True), load_cifar10(tmp_path)
    assert ours.name == "CIFAR-10"
    for pixels, labels, part in (
        (ours.pixels, ours.labels, theirs.train),
        (ours.test_pixels, ours.test_labels, theirs.test),
    ):
        assert torch.equal(labels, part.tensors[1])
        assert float((pixels - 255 * part.tensors[0]).abs().max()) < 3.1


def test_images_are_made_up_only_where_no_root_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SAGE_TORCH_DATA", raising=False)
    assert images.root_of(None) is None
    made_up = images.load(None, CPU, is_tiny=True)
    assert made_up.name == "made-up images"
    assert torch.equal(made_up.pixels, images.load(None, CPU, is_tiny=True).pixels)
    assert set(made_up.labels.bincount().tolist()) == {images.TINY_TRAIN // 10}
    standardised = made_up.standardised(made_up.pixels)
    assert standardised.mean((0, 2, 3)).abs().max() < 1e-4
    monkeypatch.setenv("SAGE_TORCH_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"expected DATA_ROOT/cifar10/cifar10_jpeg.npz"):
        images.load(images.root_of(None), CPU, is_tiny=True)


def test_images_are_mirrored_and_shifted() -> None:
    pictures = torch.arange(1.0, 1 + 60 * 2 * 9 * 10).view(60, 2, 9, 10)
    found = augmented(pictures, torch.Generator().manual_seed(0))
    seen = set()
    for picture, moved in zip(pictures, found, strict=True):
        padded = nn.functional.pad(picture, (4, 4, 4, 4))
        ways = {
            (down, right, is_turned): (part.flip(-1) if is_turned else part)
            for down in range(9)
            for right in range(9)
            for part in [padded[:, down : down + 9, right : right + 10]]
            for is_turned in (False, True)
        }
        (way,) = [name for name, part in ways.items() if torch.equal(part, moved)]
        seen.add(way)
    assert all(len({way[axis] for way in seen}) == count for axis, count in enumerate((9, 9, 2)))


def test_training_takes_its_steps_and_is_named_by_its_seed() -> None:
    machine = Machine(CPU, is_tiny=True)
    chosen = np.arange(40)

    def weights(seed: int) -> Tensor:
        training = Training(machine, 3, seed)  # two batches of 16 an epoch, so one and a half
        model = training.run(chosen)
        assert (training.taken, model.training) == (3, False)
        return torch.cat([one.detach().flatten() for one in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_network_is_torchvisions_with_another_stem() -> None:
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    ours = resnet18()
    ours.load_state_dict(theirs.state_dict())
    inputs = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(inputs), theirs.eval()(inputs))


def test_the_sketch_of_the_checks_is_that_of_the_reference() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 30))
    oracle = reference.FrequentDirections(4, 30, 6)
    oracle.update(rows)
    ours = checks.in_float64(rows, 4, 6)
    np.testing.assert_allclose(ours.T @ ours, oracle.matrix().T @ oracle.matrix(), atol=1e-10)


def test_the_checks_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(CPU, is_tiny=True)
    pieces = checks.pieces(machine)
    assert pieces["exact gradients"]()["passed"]
    right = checks.by_loop
    monkeypatch.setattr(checks, "by_loop", lambda model, batch: 1.001 * right(model, batch))
    assert not pieces["exact gradients"]()["passed"]
    monkeypatch.setattr(checks, "in_float64", lambda rows, size, block: rows[:size])
    assert not pieces["sketch"]()["passed"]


def test_random_subsets_are_balanced_and_seeded() -> None:
    labels = np.arange(200) % 10
    chosen = balanced(labels, 50, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [5] * 10
    assert np.array_equal(chosen, balanced(labels, 50, seed=0))
    assert not np.array_equal(chosen, balanced(labels, 50, seed=1))
