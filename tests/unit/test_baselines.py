"""Rival rules of the benchmarks: exact quotas, determinism, scores, redraws, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from baseline_tasks import COUNTS, QUOTAS, identity_task, mixed_task
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.quality.baselines import DYNAMIC, FIXED, RS2, InfoBatch, Task
from benchmarks.quality.baselines.scores import ccs, grand_scores


@pytest.fixture
def task() -> Task:
    return mixed_task()


# Every fixed rule.


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("quotas", [QUOTAS, COUNTS, [0, 5, 7]], ids=["some", "all", "none of one"])
def test_quotas_are_met_exactly(name: str, quotas: Any, task: Task) -> None:
    chosen = FIXED[name](replace(task, quotas=np.asarray(quotas, np.int64)))
    assert chosen.indices.dtype == np.int64
    assert len(chosen.indices) == sum(quotas)
    assert np.all(np.diff(chosen.indices) > 0)
    if name != "random, global":
        counts = np.bincount(task.classes[chosen.indices], minlength=3)
        assert counts.tolist() == list(quotas)
    if chosen.weights is not None:
        assert chosen.weights.dtype == np.float32
        assert chosen.weights.shape == chosen.indices.shape
        assert np.all(chosen.weights > 0)
        for label in np.flatnonzero(quotas):
            of_class = chosen.weights[task.classes[chosen.indices] == label]
            assert of_class.mean() == pytest.approx(1, abs=1e-5)


def test_only_these_give_weights(task: Task) -> None:
    with_weights = {name for name, rule in FIXED.items() if rule(task).weights is not None}
    assert with_weights == {"craig", "gradmatch"}


@pytest.mark.parametrize("name", FIXED)
def test_choice_is_named_by_the_seed_and_leaves_no_trace(name: str, task: Task) -> None:
    before = [parameter.clone() for parameter in task.model.parameters()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = FIXED[name](task)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    torch.manual_seed(99)
    again = FIXED[name](replace(task))  # nothing cached
    assert np.array_equal(first.indices, again.indices)
    if first.weights is not None:
        assert again.weights is not None
        assert np.array_equal(first.weights, again.weights)
    for parameter, old in zip(task.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None
    assert not any(module._forward_pre_hooks for module in task.model.modules())


@pytest.mark.parametrize("name", ["random", "random, global", "ccs on el2n"])
def test_another_seed_draws_others(name: str, task: Task) -> None:
    others = FIXED[name](replace(task, seed=1))
    assert not np.array_equal(FIXED[name](task).indices, others.indices)


def test_draws_of_classes_and_blocks_are_unrelated(task: Task) -> None:
    orders = [task.permutation(50, label, block) for label in range(3) for block in range(2)]
    assert len({tuple(order) for order in orders}) == 6
    assert all(np.sort(order).tolist() == list(range(50)) for order in orders)


def test_global_random_ignores_classes(task: Task) -> None:
    chosen = FIXED["random, global"](task)
    counts = np.bincount(task.classes[chosen.indices], minlength=3)
    # 135 of 700: 42.4 of class 1 expected, standard deviation 4.9; its quota is 1.
    assert 20 < counts[1] < 65


# What a task says of the model.


def test_outputs_are_those_of_the_model_in_order(task: Task) -> None:
    with torch.no_grad():
        hidden = task.model[:2](task.images)  # type: ignore[index]
        logits = task.model(task.images)
    one_hot = F.one_hot(task.labels, 3)
    np.testing.assert_allclose(task.features, hidden, atol=1e-6)
    np.testing.assert_allclose(task.logits, logits, atol=1e-6)
    np.testing.assert_allclose(task.probabilities, logits.softmax(1), atol=1e-6)
    np.testing.assert_allclose(task.errors, logits.softmax(1) - one_hot, atol=1e-6)


def test_features_are_of_the_layer_that_runs_last() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(3, 2), nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body(images))  # type: ignore[no-any-return]

    model = Reversed().eval()
    images = torch.randn(5, 4)
    task = Task(model, images, torch.tensor([0, 1, 0, 1, 0]), np.array([1, 1]), 0)
    np.testing.assert_allclose(task.features, model.body(images).detach(), atol=1e-6)


def test_bad_tasks_are_refused(task: Task) -> None:
    with pytest.raises(ValueError, match=r"call model\.eval"):
        replace(task, model=nn.Linear(6, 3).train())
    with pytest.raises(ValueError, match=r"one label an image, shape \(700,\)"):
        replace(task, labels=task.labels[:9])
    with pytest.raises(ValueError, match=r"labels in \[0, 2\).*0 to 2"):
        replace(task, quotas=np.array([1, 1]))
    with pytest.raises(ValueError, match=r"class counts \[300, 220, 180\]"):
        replace(task, quotas=np.array([301, 1, 1]))
    with pytest.raises(ValueError, match="not all 0"):
        replace(task, quotas=np.array([0, 0, 0]))
    with pytest.raises(ValueError, match=r"shape \(epochs, 700, 3\), got \(4, 700, 2\)"):
        replace(task, seen=np.ones((4, 700, 2), np.float32))


def test_bad_models_are_refused(task: Task) -> None:
    with pytest.raises(ValueError, match=r"finite logits of shape \(700, 3\)"):
        _ = replace(task, model=nn.Linear(6, 2).eval()).logits
    with pytest.raises(ValueError, match="not finite"):
        _ = replace(task, images=torch.full_like(task.images, torch.nan)).logits
    plain = replace(task, model=nn.Sequential(nn.Unflatten(1, (3, 2)), Sum(), Scale()).eval())
    with pytest.raises(ValueError, match=r"ends in an nn\.Linear"):
        FIXED["k_center"](plain)
    FIXED["el2n"](plain)  # needs no features
    with pytest.raises(ValueError, match="pass it to Task"):
        FIXED["forgetting"](replace(task, seen=None))


class Sum(nn.Module):
    """Sum over the last dimension."""

    def forward(self, images: Tensor) -> Tensor:
        return images.sum(-1)


class Scale(nn.Module):
    """One parameter, so that the model has a device."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * images


# Scores.


def test_el2n_keeps_the_longest_errors() -> None:
    # Two classes, label 0: the error is sqrt(2) (1 - p), p falling with the second logit.
    logits = [[0, -2], [0, 3], [0, 0], [0, 1], [0, -5]]
    chosen = FIXED["el2n"](identity_task(logits, [0] * 5, [3, 0]))
    assert chosen.indices.tolist() == [1, 2, 3]


def test_margin_keeps_the_undecided_whatever_the_label() -> None:
    probabilities = np.array(
        [[0.5, 0.4, 0.1], [0.36, 0.34, 0.3], [0.8, 0.1, 0.1], [0.45, 0.1, 0.45]]
    )
    task = identity_task(np.log(probabilities), [0, 1, 1, 1], [1, 2, 0])
    assert FIXED["margin"](task).indices.tolist() == [0, 1, 3]  # margins 0.1 | 0.02, 0.7, 0


def test_grand_is_the_length_of_the_whole_gradient(task: Task) -> None:
    expected = []
    for image, label in zip(task.images, task.labels, strict=True):
        loss = F.cross_entropy(task.model(image[None]), label[None])
        parts = torch.autograd.grad(loss, list(task.model.parameters()))
        expected.append(torch.cat([part.flatten() for part in parts]).norm())
    np.testing.assert_allclose(grand_scores(task), torch.stack(expected), rtol=1e-4, atol=1e-6)
    in_class = np.flatnonzero(task.classes == 2)
    longest = in_class[np.argsort(-torch.stack(expected).numpy()[in_class])[:44]]
    chosen = FIXED["grand"](task).indices
    assert set(chosen[task.classes[chosen] == 2]) == set(longest)


def test_forgetting_counts_falls_and_puts_the_unlearnt_first() -> None:
    correct = np.array(
        [  # twice forgotten, never learnt, never forgotten, once, learnt late
            [1, 0, 1, 1, 0],
            [0, 0, 1, 1, 0],
            [1, 0, 1, 0, 0],
            [0, 0, 1, 0, 1],
        ],
        bool,
    )
    for quota, expected in ((1, [1]), (2, [0, 1]), (3, [0, 1, 3])):
        seen = np.where(correct[..., None], [1.0, 0.0], [0.0, 1.0])
        task = identity_task(np.zeros((5, 2)), [0] * 5, [quota, 0], seen=seen)
        assert FIXED["forgetting"](task).indices.tolist() == expected


def test_equal_scores_are_drawn_from_at_random() -> None:
    task = identity_task(np.zeros((400, 2)), [0] * 400, [100, 0], seen=np.zeros((2, 400, 2)))
    chosen = FIXED["forgetting"](task).indices
    assert 10 < np.count_nonzero(chosen < 200) < 90  # 50 expected, standard deviation 4.3
    assert not np.array_equal(chosen, FIXED["forgetting"](replace(task, seed=1)).indices)


def test_ccs_drops_the_hardest_and_draws_evenly_over_strata() -> None:
    # Strata of width 0.02 over [0, 1]: 60, 25 and 5 examples, the hardest ten dropped.
    hardness = np.repeat([0.0, 0.51, 1.0, 9.0], [60, 25, 5, 10])
    task = identity_task(np.zeros((100, 2)), [0] * 100, [30, 0])
    kept = hardness[ccs(task, hardness).indices]
    values, counts = np.unique(kept, return_counts=True)
    # 30 over three strata: 10 each, of which the smallest has 5; 25 over two: 12, and the rest.
    assert values.tolist() == [0, 0.51, 1]
    assert counts.tolist() == [13, 12, 5]


def test_ccs_never_drops_below_the_quota() -> None:
    hardness = np.random.default_rng(0).random(100)
    task = identity_task(np.zeros((100, 2)), [0] * 100, [95, 0])
    easiest = np.sort(np.argsort(hardness)[:95])
    assert ccs(task, hardness).indices.tolist() == easiest.tolist()


def test_ccs_on_el2n_never_takes_the_hardest(task: Task) -> None:
    chosen = FIXED["ccs on el2n"](task).indices
    lengths = np.linalg.norm(task.errors, axis=1)
    for label, members, _ in task.members():
        kept = lengths[chosen[task.classes[chosen] == label]]
        assert kept.max() <= np.sort(lengths[members])[len(members) - len(members) // 10 - 1]


# Rules that choose every epoch.


def labels_of(counts: Any) -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


def test_rs2_shows_everything_once_a_turn() -> None:
    labels = labels_of([40, 20, 12])
    rule = RS2(labels, np.array([10, 5, 3]), seed=0)
    turns = [[rule.epoch(4 * turn + part, 99).indices for part in range(4)] for turn in range(2)]
    for turn in turns:
        for part in turn:
            assert np.all(np.diff(part) > 0)
            assert np.bincount(labels[part]).tolist() == [10, 5, 3]
        assert np.sort(np.concatenate(turn)).tolist() == list(range(72))
    assert not np.array_equal(turns[0][0], turns[1][0])
    again = RS2(labels, np.array([10, 5, 3]), seed=0)
    assert np.array_equal(again.epoch(6, 99).indices, turns[1][2])  # any epoch, in any order
    again.saw(np.arange(3), np.ones(3))
    assert np.array_equal(again.epoch(0, 99).indices, turns[0][0])
    other = RS2(labels, np.array([10, 5, 3]), seed=1)
    assert not np.array_equal(other.epoch(0, 99).indices, turns[0][0])


def test_rs2_where_the_quota_does_not_divide_the_class() -> None:
    labels = labels_of([11, 7, 5])
    rule = RS2(labels, np.array([3, 7, 0]), seed=0)
    seen = np.zeros(23, int)
    for epoch in range(300):
        indices = rule.epoch(epoch, 300).indices
        assert np.bincount(labels[indices], minlength=3).tolist() == [3, 7, 0]
        seen[indices] += 1
    assert np.all(seen[labels == 1] == 300)
    assert np.all(seen[labels == 2] == 0)
    # 900 draws over 11 examples: 82 each, at most one in three epochs.
    assert 60 < seen[labels == 0].min() <= seen[labels == 0].max() <= 100


def test_infobatch_leaves_out_half_of_the_easy_and_doubles_the_rest() -> None:
    rule = InfoBatch(np.zeros(10, np.int64), seed=0)
    first = rule.epoch(0, 100)
    assert first.weights is None  # nothing seen yet
    assert first.indices.tolist() == list(range(10))
    rule.saw(np.arange(10), np.array([1.0] * 8 + [6, 6]))  # mean 2: eight below
    chosen = rule.epoch(1, 100)
    easy = chosen.indices < 8
    assert easy.sum() == 4
    assert chosen.indices[~easy].tolist() == [8, 9]
    assert chosen.weights is not None
    assert chosen.weights.tolist() == [2] * 4 + [1] * 2
    assert chosen.weights.sum() == 10
    subsets = {tuple(rule.epoch(epoch, 100).indices) for epoch in range(1, 20)}
    assert len(subsets) > 10
    again = rule.epoch(1, 100)
    assert again.indices.tolist() == chosen.indices.tolist()


def test_infobatch_is_unbiased_over_epochs() -> None:
    rule = InfoBatch(np.zeros(20, np.int64), seed=3, ratio=0.25)
    rule.saw(np.arange(20), np.array([1.0] * 16 + [9] * 4))
    total = np.zeros(20)
    for epoch in range(800):
        chosen = rule.epoch(epoch, 10_000)
        assert chosen.weights is not None
        total[chosen.indices] += chosen.weights
    # 4/3 or 0: standard deviation 0.577, of the mean 0.02.
    np.testing.assert_allclose(total / 800, 1, atol=0.1)


def test_infobatch_keeps_old_losses_and_the_unseen() -> None:
    rule = InfoBatch(np.zeros(8, np.int64), seed=0)
    rule.saw(np.arange(6), np.array([1.0, 1, 1, 1, 5, 5]))
    for epoch in range(10):
        chosen = rule.epoch(epoch, 100).indices
        assert {4, 5, 6, 7} <= set(chosen.tolist())
        assert len(chosen) == 6
    rule.saw(np.array([4, 5]), np.array([0.0, 0.0]))  # mean 2/3: only these two are below
    assert {tuple(rule.epoch(epoch, 100).indices) for epoch in range(20)} == {
        (0, 1, 2, 3, 4, 6, 7),
        (0, 1, 2, 3, 5, 6, 7),
    }


def test_infobatch_ends_on_everything() -> None:
    rule = InfoBatch(np.zeros(8, np.int64), seed=0)
    rule.saw(np.arange(8), np.array([1.0] * 7 + [9]))
    kept = [len(rule.epoch(epoch, 16).indices) for epoch in range(16)]
    assert kept == [5] * 14 + [8] * 2  # the last eighth
    assert rule.epoch(14, 16).weights is None


def test_bad_dynamic_rules_are_refused() -> None:
    labels = labels_of([4, 4])
    with pytest.raises(ValueError, match="ratio from 0 to below 1, got 1"):
        InfoBatch(labels, ratio=1.0)
    with pytest.raises(ValueError, match="anneal from 0 to 1, got 2"):
        InfoBatch(labels, anneal=2.0)
    with pytest.raises(ValueError, match="finite losses"):
        InfoBatch(labels).saw(np.array([0]), np.array([np.nan]))
    with pytest.raises(ValueError, match="class counts"):
        RS2(labels, np.array([5, 1]))


def test_dynamic_rules_are_made_alike() -> None:
    labels = labels_of([4, 4])
    for make in DYNAMIC.values():
        rule = make(labels, np.array([2, 2]), seed=0)
        rule.saw(np.arange(8), np.arange(8.0))
        assert 4 <= len(rule.epoch(0, 10).indices) <= 8
