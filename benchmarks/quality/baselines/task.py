"""What every fixed baseline gets, what it returns, and what several of them share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import sage_torch._core as _core

_BATCH = 512
_MANY = 2**32  # more than there are classes or blocks in a class


@dataclass(frozen=True, eq=False)
class Task:
    """A choice to make: a warmed-up model, the examples, and how many to keep of each class.

    What the model says of the examples is computed at first use, without gradients, and kept.

    Attributes:
        model: In evaluation mode, on the CPU or a CUDA device.
        images: (N, ...), on any device, as the model takes them.
        labels: int64 (N,), in [0, C), as the learner sees them: some may be wrong.
        quotas: int64 (C,), examples to keep of each class; they sum to k.
        seed: Names every random choice.
        seen: float32 (epochs, N, C), the logits of each example when the warm-up trained on it,
            NaN where it did not; None where nobody watched. Only some rules need it.

    Raises:
        ValueError: The model is in training mode, lengths disagree, a label is out of range, or a
            quota is negative or exceeds its class.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    quotas: NDArray[np.int64]
    seed: int
    seen: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.model.training:
            raise ValueError("expected the model in evaluation mode; call model.eval() first")
        count = len(self.images)
        if self.labels.shape != (count,):
            raise ValueError(
                f"expected one label an image, shape ({count},), got {tuple(self.labels.shape)}"
            )
        check_quotas(self.classes, self.quotas)
        expected = (count, len(self.quotas))
        if self.seen is not None and (self.seen.ndim != 3 or self.seen.shape[1:] != expected):
            raise ValueError(
                f"expected seen of shape (epochs, {count}, {len(self.quotas)}), got "
                f"{self.seen.shape}"
            )

    @cached_property
    def classes(self) -> NDArray[np.int64]:
        """Labels on the host, int64 (N,)."""
        return self.labels.cpu().numpy().astype(np.int64)

    @property
    def logits(self) -> NDArray[np.float64]:
        """What the model returns, float64 (N, C).

        Raises:
            ValueError: Not one finite row of C numbers an example.
        """
        return self._outputs[0]

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits, float64 (N, C)."""
        return softmax(self.logits)

    @cached_property
    def watched(self) -> NDArray[np.float64]:
        """The logits that the warm-up noted, float64 (epochs, N, C).

        The model's own logits stand in where an example was not trained on. There are no epochs
        where nobody watched.
        """
        if self.seen is None:
            return np.empty((0, *self.logits.shape))
        return np.where(np.isnan(self.seen), self.logits, self.seen.astype(np.float64))

    def of_label(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what stands at each example's label, (..., N) of (..., N, C)."""
        return np.asarray(values[..., np.arange(len(self.classes)), self.classes])

    @property
    def features(self) -> NDArray[np.float64]:
        """Input of the `nn.Linear` that runs last, float64 (N, h).

        Raises:
            ValueError: The model has no such layer, or its input is no vector an example.
        """
        features = self._outputs[1]
        if features is None:
            raise ValueError(
                "expected a model that ends in an nn.Linear on one vector an example, got "
                f"{type(self.model).__name__}; take a baseline that needs no features"
            )
        return features

    @cached_property
    def errors(self) -> NDArray[np.float64]:
        """Gradients of the cross-entropy with respect to the logits, `p - y`, float64 (N, C)."""
        errors: NDArray[np.float64] = self.probabilities.copy()
        errors[np.arange(len(errors)), self.classes] -= 1
        return errors

    def members(self) -> Iterator[tuple[int, NDArray[np.int64], int]]:
        """Yield class, indices (n_c,) ascending and quota of each class with a quota above 0."""
        for label in np.flatnonzero(self.quotas):
            yield int(label), np.flatnonzero(self.classes == label), int(self.quotas[label])

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels in order, on the model's device."""
        device = next(iter(self.model.parameters())).device
        for start in range(0, len(self.images), _BATCH):
            part = slice(start, start + _BATCH)
            yield self.images[part].to(device), self.labels[part].to(device)

    def permutation(self, size: int, label: int = 0, block: int = 0) -> NDArray[np.int64]:
        """Return a permutation of `0..size` named by the seed, the class and the block."""
        return _core.Permutation(size, self.seed, label * _MANY + block).take(0, size)

    @cached_property
    def _outputs(self) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Logits (N, C), and the last Linear layer's inputs (N, h) where there are such."""
        seen: list[Tensor] = []  # of the Linear layer that ran last in this batch

        def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen[:] = [inputs[0]]

        linears = [module for module in self.model.modules() if isinstance(module, nn.Linear)]
        hooks = [module.register_forward_pre_hook(note) for module in linears]
        logits: list[Tensor] = []
        features: list[Tensor] = []
        try:
            with torch.no_grad():
                for images, _ in self.batches():
                    seen.clear()
                    logits.append(self.model(images).cpu())
                    if seen and seen[0].ndim == 2:
                        features.append(seen[0].cpu())
        finally:
            for hook in hooks:
                hook.remove()
        joined = torch.cat(logits).double().numpy()
        if joined.shape != (len(self.images), len(self.quotas)) or not np.isfinite(joined).all():
            raise ValueError(
                f"expected finite logits of shape ({len(self.images)}, {len(self.quotas)}), one "
                f"row an example and one column a quota, got shape {joined.shape}"
                + ("" if np.isfinite(joined).all() else " with values that are not finite")
            )
        if len(features) < len(logits):
            return joined, None
        return joined, torch.cat(features).double().numpy()


@dataclass(frozen=True, eq=False)
class Chosen:
    """What to train on.

    Attributes:
        indices: int64 (k,), ascending, no repeats.
        weights: float32 (k,), beside `indices`: factors of their losses, mean 1 within each class
            (InfoBatch: see there); None where all count the same.
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities (..., C), float64."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def check_quotas(classes: NDArray[np.int64], quotas: NDArray[np.int64]) -> None:
    """Refuse quotas that these classes cannot meet.

    Raises:
        ValueError: A label is out of range, nothing is to be kept, or a quota is negative or above
            its class.
    """
    if len(classes) and not 0 <= classes.min() <= classes.max() < len(quotas):
        raise ValueError(
            f"expected labels in [0, {len(quotas)}), as many classes as quotas, got "
            f"{classes.min()} to {classes.max()}"
        )
    counts = np.bincount(classes, minlength=len(quotas))
    if np.any(quotas < 0) or np.any(quotas > counts) or not quotas.sum():
        raise ValueError(
            f"expected quotas from 0 to the class counts {counts.tolist()} and not all 0, got "
            f"{quotas.tolist()}"
        )


def joined(parts: list[NDArray[np.int64]]) -> Chosen:
    """Return the parts of all classes as one choice without weights."""
    return Chosen(np.sort(np.concatenate(parts)))


def weighted(parts: list[NDArray[np.int64]], weights: list[NDArray[np.float64]]) -> Chosen:
    """Return the parts of all classes as one choice, weights scaled to mean 1 in each class.

    How much a class counts is thus said by its quota alone, with weights as without.
    """
    indices = np.concatenate(parts)
    scaled = np.concatenate([each / each.mean() for each in weights])
    order = np.argsort(indices)
    return Chosen(indices[order], scaled[order].astype(np.float32))


def highest(task: Task, scores: NDArray[np.float64]) -> Chosen:
    """Return the examples of highest score of each class.

    Equal scores are drawn from at random by the seed: coarse scores, such as counts, would
    otherwise prefer whatever stands first in the data set.
    """
    parts = []
    for label, members, quota in task.members():
        ties = task.permutation(len(members), label)
        parts.append(members[np.lexsort((ties, -scores[members]))[:quota]])
    return joined(parts)


def drawn_evenly(
    shuffled: NDArray[np.int64], groups: NDArray[np.integer], quota: int
) -> NDArray[np.int64]:
    """Return `quota` examples, as many of each group as of the others where there are enough.

    From the smallest group up, each gives an even share of what is still to be kept, or all that
    it has. Both CCS and SmallToLarge spread their budget in this way.

    Args:
        shuffled: int64 (n,), examples in random order; the first of a group are taken.
        groups: (n,), the group of each.
        quota: At most n.
    """
    names, sizes = np.unique(groups, return_counts=True)
    parts = []
    for taken, place in enumerate(np.argsort(sizes, kind="stable")):
        share = min(quota // (len(names) - taken), int(sizes[place]))
        parts.append(shuffled[groups == names[place]][:share])
        quota -= share
    return np.concatenate(parts)
