"""Near duplicates of images, planted among them in five ways, and how alike two images are."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # (channels, height, width)
Random = np.random.Generator


class Planted(NamedTuple):
    """Images of which some are changed copies of others, in a seeded order."""

    images: Pixels  # (N, channels, height, width)
    labels: NDArray[np.int64]  # (N,)
    source: NDArray[np.int64]  # (N,) of copies, the image that they were made of; -1 for others
    change: NDArray[np.int64]  # (N,) of copies, the place in CHANGES; -1 for others


def planted(
    images: Pixels, labels: NDArray[np.int64], total: int, copies: int, seed: int
) -> Planted:
    """Return so many images, drawn without repeats, copies included; each has one copy at most."""
    random = np.random.default_rng((seed, 3))
    own = random.permutation(len(images))[: total - copies]
    copied = random.permutation(len(own))[:copies]
    change = np.arange(copies) % len(CHANGES)
    ways = list(CHANGES.values())
    made = [ways[way](images[own[at]], random) for way, at in zip(change, copied, strict=True)]
    order = random.permutation(total)
    place = np.argsort(order)
    nothing = np.full(len(own), -1)
    return Planted(
        np.concatenate([images[own], np.stack(made)])[order],
        np.concatenate([labels[own], labels[own[copied]]])[order],
        np.concatenate([nothing, place[copied]])[order],
        np.concatenate([nothing, change])[order],
    )


def alikeness(first: Pixels, second: Pixels) -> NDArray[np.float64]:
    """Return the correlation (n,) of the pixels of images, the best of nine shifts by a pixel."""
    height, width = first.shape[2:]
    middle = _standardised(second[:, :, 1:-1, 1:-1])
    found = [
        (_standardised(first[:, :, y : y + height - 2, x : x + width - 2]) * middle).sum(1)
        for y in range(3)
        for x in range(3)
    ]
    best: NDArray[np.float64] = np.max(found, axis=0)
    return best


def rounded(image: NDArray[np.floating]) -> Pixels:
    """Return the nearest pixels."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _by_jpeg(image: Pixels, random: Random) -> Pixels:
    file = io.BytesIO()
    _picture(image).save(file, "JPEG", quality=60)
    return _pixels(Image.open(file))


def _by_shift(image: Pixels, random: Random) -> Pixels:
    down, right = ((0, 1), (2, 1), (1, 0), (1, 2))[random.integers(4)]
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    return padded[:, down : down + height, right : right + width]


def _by_crop(image: Pixels, random: Random) -> Pixels:
    _, height, width = image.shape
    top, left = 0.05 * height * random.random(), 0.05 * width * random.random()
    box = (left, top, left + 0.95 * width, top + 0.95 * height)
    return _pixels(_picture(image).resize((width, height), Image.Resampling.BILINEAR, box=box))


def _by_noise(image: Pixels, random: Random) -> Pixels:
    return rounded(image + random.normal(0, 5, image.shape))


def _by_brightness(image: Pixels, random: Random) -> Pixels:
    return rounded(image * random.choice((0.9, 1.1)))


CHANGES: dict[str, Callable[[Pixels, Random], Pixels]] = {
    "JPEG": _by_jpeg,
    "shift": _by_shift,
    "crop": _by_crop,
    "noise": _by_noise,
    "brightness": _by_brightness,
}


def _picture(image: Pixels) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def _pixels(picture: Image.Image) -> Pixels:
    image = np.asarray(picture)
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def _standardised(images: Pixels) -> NDArray[np.float64]:
    flat = images.reshape(len(images), math.prod(images.shape[1:])).astype(np.float64)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
