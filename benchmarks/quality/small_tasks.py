"""Seven small tasks without integer classes: data, model, loss and metric of each, by seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import make_classification, make_friedman1, make_multilabel_classification
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

POOL, TEST = 2_000, 2_000
Pair = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Pair], Tensor]


@dataclass(frozen=True)
class Task:
    """One task: what is trained on, how, and how it is judged.

    Attributes:
        pool: Examples to choose from.
        test: Inputs and targets that nobody trains on.
        model: Makes an untrained model; its weights follow torch's seed.
        loss: One loss per example.
        score: Of a model's outputs and the targets; more is better.
        metric: Its name.
    """

    pool: TensorDataset
    test: Pair
    model: Callable[[], nn.Module]
    loss: Loss
    score: Callable[[Tensor, Tensor], float]
    metric: str


def binary(positives: float, seed: int) -> Task:
    """Two classes as floats 0 and 1, a logit, binary cross-entropy."""
    features, labels = make_classification(
        POOL + TEST, 20, n_informative=8, n_clusters_per_class=2, weights=[1 - positives],
        flip_y=0.01, class_sep=0.8, random_state=seed,
    )  # fmt: skip
    inputs, targets = torch.from_numpy(features).float(), torch.from_numpy(labels).float()

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        logits = model(batch[0])[:, 0]
        return F.binary_cross_entropy_with_logits(logits, batch[1], reduction="none")

    return Task(*_cut(inputs, targets), lambda: _perceptron(20, 1), loss, _auc, "AUC")


def regression(seed: int) -> Task:
    """Friedman's first function of ten inputs, squared error."""
    features, values = make_friedman1(POOL + TEST, 10, noise=1.0, random_state=seed)
    inputs, targets = torch.from_numpy(features).float(), torch.from_numpy(values).float()
    targets = (targets - 14.4) / 4.9  # the function's mean and deviation

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        return (model(batch[0])[:, 0] - batch[1]).square()

    return Task(
        *_cut(inputs, targets), lambda: _perceptron(10, 1), loss, _less_error, "- squared error"
    )


def multi_label(seed: int) -> Task:
    """Five labels, each there or not, as floats (n, 5)."""
    features, labels = make_multilabel_classification(
        POOL + TEST, 20, n_classes=5, n_labels=2, random_state=seed
    )
    inputs, targets = torch.from_numpy(features).float() / 5, torch.from_numpy(labels).float()

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        logits = model(batch[0])
        return F.binary_cross_entropy_with_logits(logits, batch[1], reduction="none").mean(1)

    return Task(*_cut(inputs, targets), lambda: _perceptron(20, 5), loss, _auc, "AUC")


def segmentation(seed: int) -> Task:
    """Noisy pictures of 10 x 10, two fifths of them with a square; a mask of its pixels."""
    random = torch.Generator().manual_seed(seed)
    n, side = 2 * 1_000, 10
    masks = torch.zeros(n, 1, side, side)
    has_square = torch.rand(n, generator=random) < 0.4
    for place in has_square.nonzero()[:, 0].tolist():
        size = int(torch.randint(3, 6, (), generator=random))
        top, left = torch.randint(side - size + 1, (2,), generator=random).tolist()
        masks[place, 0, top : top + size, left : left + size] = 1
    pictures = masks + 1.2 * torch.randn(masks.shape, generator=random)

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.GELU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.GELU(),
            nn.Conv2d(8, 1, 3, padding=1),
        )  # fmt: skip

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        logits = model(batch[0])
        each = F.binary_cross_entropy_with_logits(logits, batch[1], reduction="none")
        return each.flatten(1).mean(1)

    return Task(*_cut(pictures, masks), model, loss, _pixel_auc, "AUC of pixels")


class NextToken(nn.Module):
    """Predicts a token from the two before it."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 16)
        self.layers = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, vocabulary))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (n, T, V) of tokens (n, T)."""
        found = self.embedding(tokens)
        before = F.pad(found, (0, 0, 1, 0))[:, :-1]
        logits: Tensor = self.layers(torch.cat([before, found], 2))
        return logits


def next_token(seed: int) -> Task:
    """Texts of 17 tokens from two Markov chains, a fifth of them from the second."""
    random = torch.Generator().manual_seed(seed)
    vocabulary, n = 16, POOL + TEST
    chains = (2.0 * torch.randn(2, vocabulary, vocabulary, generator=random)).softmax(2)
    domain = (torch.rand(n, generator=random) < 0.2).long()
    tokens = [torch.randint(vocabulary, (n,), generator=random)]
    for _ in range(16):
        chances = chains[domain, tokens[-1]]
        tokens.append(torch.multinomial(chances, 1, generator=random)[:, 0])
    texts = torch.stack(tokens, 1)

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        logits = model(batch[0]).transpose(1, 2)
        return F.cross_entropy(logits, batch[1], reduction="none").mean(1)

    return Task(
        *_cut(texts[:, :-1], texts[:, 1:]), lambda: NextToken(vocabulary), loss, _less_surprise,
        "- cross-entropy",
    )  # fmt: skip


class Factors(nn.Module):
    """A rating from the factors of a user and an item."""

    def __init__(self, users: int, items: int) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, 5), nn.Embedding(items, 5)
        self.mean = nn.Parameter(torch.zeros(()))
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, pairs: Tensor) -> Tensor:
        """Return ratings (n, 1) of pairs (n, 2); the last factor of each is its own mean."""
        users, items = self.users(pairs[:, 0]), self.items(pairs[:, 1])
        inner = (users[:, :-1] * items[:, :-1]).sum(1)
        ratings: Tensor = self.mean + inner + users[:, -1] + items[:, -1]
        return ratings[:, None]


def ratings(seed: int) -> Task:
    """Ratings from -2 to 2 of 60 users for 80 items, some of which are rated far more often."""
    random = torch.Generator().manual_seed(seed)
    users, items, n = 60, 80, POOL + TEST
    often = torch.rand(items, generator=random) ** 2 + 0.05
    pairs = torch.stack(
        [
            torch.randint(users, (n,), generator=random),
            torch.multinomial(often, n, replacement=True, generator=random),
        ],
        dim=1,
    )
    of_users, of_items = (torch.randn(count, 3, generator=random) for count in (users, items))
    of_users, of_items = of_users[pairs[:, 0]], of_items[pairs[:, 1]]
    liking = (of_users[:, :2] * of_items[:, :2]).sum(1) + 0.7 * (of_users + of_items)[:, 2]
    stars = (0.5 + liking + 0.5 * torch.randn(n, generator=random)).round().clamp(-2, 2)

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        return (model(batch[0])[:, 0] - batch[1]).square()

    return Task(
        *_cut(pairs, stars), lambda: Factors(users, items), loss, _less_error, "- squared error"
    )


TASKS: dict[str, Callable[[int], Task]] = {
    "binary, 20 % positives": lambda seed: binary(0.2, seed),
    "binary, 5 % positives": lambda seed: binary(0.05, seed),
    "regression": regression,
    "multi-label": multi_label,
    "segmentation": segmentation,
    "next token, two domains": next_token,
    "ratings": ratings,
}


def _perceptron(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


def _cut(inputs: Tensor, targets: Tensor) -> tuple[TensorDataset, Pair]:
    """Return the first half as the pool, and the second as the test."""
    half = len(inputs) // 2
    return TensorDataset(inputs[:half], targets[:half]), (inputs[half:], targets[half:])


def _auc(outputs: Tensor, targets: Tensor) -> float:
    return float(roc_auc_score(targets.reshape(len(outputs), -1), outputs))


def _less_error(outputs: Tensor, targets: Tensor) -> float:
    return -float((outputs[:, 0] - targets).square().mean())


def _less_surprise(outputs: Tensor, targets: Tensor) -> float:
    return -float(F.cross_entropy(outputs.transpose(1, 2), targets))


def _pixel_auc(outputs: Tensor, targets: Tensor) -> float:
    return float(roc_auc_score(targets.flatten(), outputs.flatten()))
