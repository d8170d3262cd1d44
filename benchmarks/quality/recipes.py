"""What differs from one data set of `quality.py` to the next: where it is, and how it is learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import TensorDataset

from benchmarks.quality import made, texts
from benchmarks.quality.cifar10 import load_cifar10
from sage_torch.demo.data import load

PEAK_RATE, WEIGHT_DECAY = 0.05, 5e-4
MOMENTUM = (0.85, 0.95)  # against the learning rate: lowest where that is highest
WORDS_RATE = 5e-3
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Data:
    """A data set in memory.

    Attributes:
        train: Inputs (N, ...) and labels int64 (N,).
        test: The same, for testing.
        classes: Number of classes.
        sizes: What a network needs to know of the inputs: channels, height and width of images, the
            size of the vocabulary, or how many numbers.
    """

    train: TensorDataset
    test: TensorDataset
    classes: int
    sizes: Sizes


@dataclass(frozen=True)
class Recipe:
    """How a data set is loaded and learnt.

    Attributes:
        load: From a name and a data root.
        network: `(sizes, classes)` -> a fresh `small` network.
        optimizer: `(model, steps)` -> the optimizer, and its learning rate over the steps.
        steps: Of batches, where the steps of all rules are equal.
        is_mirrored: Whether images are, at random, while training: not clothes and digits.
    """

    load: Callable[[str, Path | None], Data]
    network: Callable[[Sizes, int], nn.Module]
    optimizer: Callable[[nn.Module, int], tuple[Optimizer, LRScheduler]]
    steps: int = 800
    is_mirrored: bool = False


def recipe(name: str) -> Recipe:
    """Return the recipe of a data set.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in RECIPES:
        raise ValueError(f"expected a data set of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]


def loaded(name: str, data_root: Path | None) -> Data:
    """Load once a process; a later call without a root finds what the first one read."""
    if name not in _FOUND:
        _FOUND[name] = recipe(name).load(name, data_root)
    return _FOUND[name]


def images(name: str, data_root: Path | None) -> Data:
    """Return images, each channel standardised by the training set."""
    data = load_cifar10(data_root) if name == "cifar-10" else load(name, data_root)
    pixels = data.train.tensors[0]
    mean = pixels.mean((0, 2, 3), keepdim=True)
    deviation = pixels.std((0, 2, 3), keepdim=True)

    def standardised(part: TensorDataset) -> TensorDataset:
        pixels, labels = part.tensors
        return TensorDataset((pixels - mean) / deviation, labels)

    train, test = standardised(data.train), standardised(data.test)
    return Data(train, test, data.classes, data.image_shape)


def sentences(name: str, data_root: Path | None) -> Data:
    """Return sentences as numbers of words."""
    train, test, classes, vocabulary = texts.load_text(name, data_root)
    return Data(train, test, classes, (vocabulary,))


def numbers(name: str, data_root: Path | None) -> Data:
    """Return what scikit-learn makes; no data root is needed."""
    train, test, classes, inputs = made.make(name)
    return Data(train, test, classes, (inputs,))


def small_cnn(sizes: Sizes, classes: int) -> nn.Module:
    """Return a small CNN: 106,000 parameters on Fashion-MNIST.

    It has no pooling but strides (Springenberg et al. 2015): four times as fast on a CPU.
    """
    channels, height, width = sizes
    area = -(-height // 4) * -(-width // 4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * area, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def mean_of_words(sizes: Sizes, classes: int) -> nn.Module:
    """Return a small network on words."""
    (vocabulary,) = sizes
    return texts.MeanOfWords(vocabulary, classes)


def perceptron(sizes: Sizes, classes: int) -> nn.Module:
    """Return a small network on numbers."""
    (inputs,) = sizes
    return made.Perceptron(inputs, classes)


def momentum_in_a_cycle(model: nn.Module, steps: int) -> tuple[Optimizer, LRScheduler]:
    """Return SGD with Nesterov's momentum in one cycle."""
    optimizer = SGD(
        model.parameters(), PEAK_RATE, MOMENTUM[1], weight_decay=WEIGHT_DECAY, nesterov=True
    )
    low, high = MOMENTUM
    return optimizer, OneCycleLR(
        optimizer, PEAK_RATE, total_steps=steps, base_momentum=low, max_momentum=high
    )


def adam_in_a_cycle(model: nn.Module, steps: int) -> tuple[Optimizer, LRScheduler]:
    """Return Adam in one cycle of the learning rate."""
    optimizer = Adam(model.parameters(), WORDS_RATE)
    return optimizer, OneCycleLR(optimizer, WORDS_RATE, total_steps=steps, cycle_momentum=False)


_TEXT = Recipe(sentences, mean_of_words, adam_in_a_cycle, steps=300)
RECIPES = {
    "fashion-mnist": Recipe(images, small_cnn, momentum_in_a_cycle),
    "cifar-10": Recipe(images, small_cnn, momentum_in_a_cycle, is_mirrored=True),
    "digits": Recipe(images, small_cnn, momentum_in_a_cycle, steps=200),
    **dict.fromkeys(texts.NAMES, _TEXT),
    **dict.fromkeys(made.NAMES, Recipe(numbers, perceptron, adam_in_a_cycle, steps=600)),
}
_FOUND: dict[str, Data] = {}
