"""Where the features of a model are found, and what the default does with them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_state import bits, registered
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sage_torch import select_subset

N, CLASSES = 1_200, 4


def images(wrong: float = 0.0) -> tuple[TensorDataset, np.ndarray[Any, Any]]:
    """Pictures of four classes, some with wrong labels."""
    random = torch.Generator().manual_seed(0)
    true = torch.randint(CLASSES, (N,), generator=random)
    centres = torch.randn(CLASSES, 1, 6, 6, generator=random)
    pixels = centres[true] + 0.7 * torch.randn(N, 1, 6, 6, generator=random)
    is_wrong = torch.rand(N, generator=random) < wrong
    labels = torch.where(is_wrong, (true + 1) % CLASSES, true)
    return TensorDataset(pixels, labels), is_wrong.numpy()


class Pooled(nn.Module):
    """Its logits come of a convolution and a mean, not of a Linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).mean((2, 3))


class Scaled(nn.Module):
    """Its Linear layer makes logits that are scaled, and its name says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first_of_all = nn.Linear(16, CLASSES)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.first_of_all(self.body(x))


def plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def trained(model: nn.Module, data: TensorDataset, steps: int = 8) -> nn.Module:
    inputs, labels = data.tensors
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval()


def select(model: nn.Module, data: Any, keep: float = 0.25, **options: Any) -> Any:
    return select_subset(model, data, keep, progress=False, **options)


@pytest.mark.parametrize(
    ("make", "gradients"),
    [(plain, "last layer"), (Scaled, "last layer"), (Pooled, "functional")],
)
def test_features_are_found_by_watching(make: Any, gradients: str) -> None:
    torch.manual_seed(0)
    data, is_wrong = images(wrong=0.2)
    model = trained(make(), data)
    before = registered(model), bits(model), model.training
    found = select(model, data)
    assert (registered(model), bits(model), model.training) == before
    assert found.settings["gradients"].startswith(gradients)
    assert found.probabilities is not None
    assert roc_auc_score(is_wrong, -found.probabilities) > 0.9
    assert found.settings["rho"] == pytest.approx(is_wrong.mean(), abs=0.08)
    assert is_wrong[found.indices].mean() < 0.3 * is_wrong.mean()


def test_gradients_that_were_asked_for_stay() -> None:
    torch.manual_seed(0)
    data, _ = images(wrong=0.2)
    model = trained(plain(), data)
    by_default = select(model, data)
    for kind in ("functional", "projected"):
        found = select(model, data, gradients=kind)
        assert found.settings["gradients"].startswith(kind)
        assert found.probabilities == pytest.approx(by_default.probabilities, abs=1e-5)
    of_some = select(model, data, params="1.*")
    assert "1.weight" in of_some.settings["params"] or of_some.settings["dim"] < 36 * 16 + 17
    assert of_some.probabilities == pytest.approx(by_default.probabilities, abs=1e-5)


def softmax_at_labels(model: nn.Module, data: TensorDataset) -> np.ndarray[Any, Any]:
    """Return what a model gives to each label."""
    inputs, labels = data.tensors
    with torch.no_grad():
        return model(inputs).softmax(1)[torch.arange(N), labels].numpy()


@pytest.mark.parametrize("consensus", ["exact", "streaming"])
def test_label_scores_count_what_the_model_says(consensus: str) -> None:
    torch.manual_seed(0)
    data, is_wrong = images(wrong=0.2)
    model = trained(plain(), data)
    found = select(model, data, consensus=consensus)
    without = select(model, data, consensus=consensus, gradients="functional")  # its own part apart
    own = softmax_at_labels(model, data)

    def odds(scores: Any) -> Any:
        return scores.astype(np.float64) / (1 - scores.astype(np.float64))

    # q / (q + o) has odds q / o: o is the same, q is sqrt(p own) or p.
    ratio = odds(found.label_scores) / odds(without.label_scores)
    is_plain = found.probabilities > 1e-3
    expected = np.sqrt(own / found.probabilities)
    assert ratio[is_plain] == pytest.approx(expected[is_plain], rel=0.02)
    assert roc_auc_score(is_wrong, -found.label_scores) > 0.9


def test_a_loss_of_your_own_says_nothing_of_probabilities() -> None:
    torch.manual_seed(0)
    data, _ = images(wrong=0.2)
    model = trained(plain(), data)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    by_own = select(model, data, loss=loss, gradients="last_layer", labels=data.tensors[1])
    apart = select(model, data, gradients="functional")
    assert by_own.label_scores == pytest.approx(apart.label_scores, abs=1e-4)


def test_a_wide_last_layer_is_not_a_readout_of_its_inputs() -> None:
    torch.manual_seed(0)
    data, is_wrong = images(wrong=0.2)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(36, 2_500), nn.ReLU(), nn.Linear(2_500, CLASSES))
    found = select(trained(wide, data, steps=4), data)
    assert found.settings["gradients"].startswith("projected")
    assert roc_auc_score(is_wrong, -found.probabilities) > 0.9  # by the logits


def test_without_features_margins_trim() -> None:
    torch.manual_seed(0)
    data, _ = images(wrong=0.2)
    model = trained(plain(), data)

    def own(batch: Any) -> Tensor:
        return batch[0].flatten(1)

    for options in ({"gradients": own}, {"consensus": "one_pass"}, {"trim": "negative"}):
        found = select(model, data, **options)
        assert found.probabilities is None
        assert found.settings["trimmed"] == (found.margins < 0).sum()
        assert "rho" not in found.settings
    assert select(model, data, rule="agreement").probabilities is None


def test_a_model_at_chance_is_named() -> None:
    data, _ = images()
    torch.manual_seed(0)
    model = plain()
    nn.init.zeros_(model[3].weight)
    nn.init.zeros_(model[3].bias)
    with pytest.warns(UserWarning, match="no better than chance.*train it for an epoch first"):
        select(model, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select(trained(plain(), data), data)


@pytest.mark.parametrize("consensus", ["exact", "streaming"])
def test_a_rotation_shows_wrong_labels_less_often(consensus: str) -> None:
    torch.manual_seed(0)
    data, is_wrong = images(wrong=0.2)
    model = trained(plain(), data)
    found = select(model, data, draw="rotate", consensus=consensus)
    epochs = [found.epoch_indices(epoch) for epoch in range(40)]
    assert {len(epoch) for epoch in epochs} == {len(found)}
    seen = np.bincount(np.concatenate(epochs), minlength=N)
    assert seen[is_wrong].mean() < 0.4 * seen[~is_wrong].mean()
    assert (seen[~is_wrong] > 0).mean() > 0.9  # what a selection once would drop comes back
    never = found.draws.order[found.draws.right == 0]
    assert found.settings["trimmed"] == len(never) > 0
    assert not seen[never].any()


def test_a_class_that_is_kept_whole_loses_nothing_to_the_budget() -> None:
    torch.manual_seed(0)
    data, _ = images()
    inputs, labels = data.tensors
    is_rare = (labels == 0) & (torch.arange(N) % 8 > 0)
    data = TensorDataset(inputs[~is_rare], labels[~is_rare])
    model = trained(plain(), data)
    rare = int((data.tensors[1] == 0).sum())
    found = select(model, data, 4 * rare, quotas="equal")
    assert (found.labels[found.indices] == 0).sum() == rare
    assert np.bincount(found.labels[found.indices]).tolist() == [rare] * CLASSES


def test_two_passes_choose_what_one_chooses() -> None:
    torch.manual_seed(0)
    data, _ = images(wrong=0.1)
    model = trained(plain(), data)
    once = select(model, data)
    twice = select(model, data, consensus="exact", memory_budget=1_000)
    assert np.array_equal(once.indices, twice.indices)
    assert once.scores == pytest.approx(twice.scores, abs=1e-5)
    by_batches = select(model, data, batch_size=37)
    assert np.array_equal(once.indices, by_batches.indices)


def test_wrong_labels_that_were_learnt_by_heart_are_not_preferred() -> None:
    pixels, true = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    random = torch.Generator().manual_seed(0)
    is_wrong = torch.rand(len(true), generator=random) < 0.2
    other = true + torch.randint(1, 10, true.shape, generator=random)
    data = TensorDataset(pixels.float() / 16, torch.where(is_wrong, other % 10, true))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(600):
        optimizer.zero_grad()
        F.cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
        optimizer.step()
    assert (model(data.tensors[0]).argmax(1) == data.tensors[1]).float().mean() > 0.9
    selection = select(model, data)
    assert selection.settings["rho"] < 0.1  # few labels look wrong by then
    assert is_wrong[selection.indices].float().mean() < 0.15
