"""Data sets that scikit-learn makes, and the small network that learns them.

Classes are clusters on the corners of a cube, several of them a class, or shells around a centre.
After an epoch a network knows little of them, though no label is wrong: what is hard must not be
taken for wrong there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import make_classification, make_gaussian_quantiles
from torch import Tensor, nn
from torch.utils.data import TensorDataset

_TEST, _SEED = 4_000, 1


@dataclass(frozen=True)
class _Clusters:
    classes: int
    of_each: int  # clusters
    apart: float  # half the edge of the cube, against a cluster's deviation of 1
    numbers: int  # that the corners differ in; fifteen others are mixtures of them, or noise
    size: int


_CLUSTERS = {
    "clusters-2": _Clusters(2, of_each=8, apart=0.8, numbers=8, size=4_000),
    "clusters-5": _Clusters(5, of_each=3, apart=0.7, numbers=8, size=4_000),
    "clusters-10": _Clusters(10, of_each=3, apart=0.7, numbers=15, size=8_000),
    "clusters-40": _Clusters(40, of_each=1, apart=1.5, numbers=16, size=20_000),
}
_SHELLS, _SHELL_NUMBERS, _SHELLS_SIZE = 5, 8, 8_000
NAMES = (*_CLUSTERS, f"shells-{_SHELLS}")


def make(name: str) -> tuple[TensorDataset, TensorDataset, int, int]:
    """Return training set, test set, number of classes and of inputs.

    Inputs are float32 (N, numbers), standardised by the training set.

    Args:
        name: One of `NAMES`.

    Reference:
        Guyon, "Design of experiments for the NIPS 2003 variable selection benchmark", 2003
        (`sklearn.datasets.make_classification`).
    """
    if name in _CLUSTERS:
        of = _CLUSTERS[name]
        classes, size = of.classes, of.size
        found = make_classification(
            size + _TEST,
            of.numbers + 15,
            n_informative=of.numbers,
            n_redundant=5,
            n_classes=classes,
            n_clusters_per_class=of.of_each,
            class_sep=of.apart,
            flip_y=0.0,
            random_state=_SEED,
        )
    else:
        classes, size = _SHELLS, _SHELLS_SIZE
        found = make_gaussian_quantiles(
            n_samples=size + _TEST,
            n_features=_SHELL_NUMBERS,
            n_classes=classes,
            random_state=_SEED,
        )
    inputs, labels = (torch.from_numpy(part) for part in found)
    inputs = (inputs - inputs[:size].mean(0)) / inputs[:size].std(0)

    def part(one: slice) -> TensorDataset:
        return TensorDataset(inputs[one].float(), labels[one].long())

    return part(slice(size)), part(slice(size, None)), classes, inputs.shape[1]


class Perceptron(nn.Module):
    """Two hidden layers.

    Args:
        inputs: How many.
        classes: How many.
    """

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, classes)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (n, C) of inputs (n, numbers)."""
        logits: Tensor = self.layers(inputs)
        return logits
