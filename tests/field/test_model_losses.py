"""Losses over the batch, losses of chance, and criteria in the wrong place are told apart."""

from __future__ import annotations

import functools
import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_state import CLASSES, N, vectors
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sage_torch import select_subset
from sage_torch.gradients import FunctionalGradients, LastLayerGradients, ProjectedGradients

exact = pytest.mark.parametrize("kind", ["functional", "last_layer"])
every = pytest.mark.parametrize("kind", ["functional", "projected", "last_layer"])


class Branching(nn.Module):
    """Makes vmap refuse a model."""

    def forward(self, x: Tensor) -> Tensor:
        return x if bool((x == x).all()) else 2 * x


def network(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), *middle, nn.Linear(5, CLASSES))


def by_class(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def supervised_contrastive(model: nn.Module, batch: Any) -> Tensor:
    features = F.normalize(model(batch[0]), dim=1)
    alike = (batch[1][:, None] == batch[1]).float()
    return -(F.log_softmax(features @ features.T, dim=1) * alike).sum(1) / alike.sum(1)


def barlow(model: nn.Module, batch: Any) -> Tensor:
    """Standardises over the batch: NaN for one example alone."""
    z = model(batch[0])
    z = (z - z.mean(0)) / z.std(0)
    return (z.T @ z / len(z) - torch.eye(CLASSES)).square().sum() + z.square().sum(1)


def centred(model: nn.Module, batch: Any) -> Tensor:
    losses = by_class(model, batch)
    return losses - losses.mean()


def hardest_negative(model: nn.Module, batch: Any) -> Tensor:
    distances = torch.cdist(model(batch[0]), model(batch[0]) + 0.1)
    return F.relu(1 + distances.diagonal() - distances.min(1).values)


OVER_THE_BATCH = [supervised_contrastive, barlow, centred, hardest_negative]


@every
@pytest.mark.parametrize("loss", OVER_THE_BATCH)
def test_losses_over_the_batch_are_refused(loss: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=r"interact in the loss.*(loss=|gradients=)") as caught:
        select_subset(network(), vectors(), 0.5, loss=loss, gradients=kind, progress=False)
    assert len(str(caught.value)) <= 500


@pytest.mark.parametrize("loss", OVER_THE_BATCH)
def test_losses_over_the_batch_are_refused_by_the_loop(loss: Any) -> None:
    with pytest.raises(ValueError, match="interact"):
        FunctionalGradients(network(Branching()), loss)(vectors().tensors)


class BatchStatistics(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0, unbiased=False) + 1)


@exact
def test_the_module_in_which_examples_interact_is_named(kind: str) -> None:
    model = network(BatchStatistics())
    with pytest.raises(ValueError, match=r"interact in 2 \(BatchStatistics\)"):
        select_subset(model, vectors(), 0.5, gradients=kind, progress=False)
    norm = nn.BatchNorm1d(5, track_running_stats=False)  # in evaluation mode too
    with pytest.raises(ValueError, match=r"2 \(BatchNorm1d\)|fails on a batch of one"):
        select_subset(network(norm), vectors(), 0.5, gradients=kind, progress=False)


def test_a_long_name_makes_no_long_error() -> None:
    model: nn.Module = network(BatchStatistics())
    for _ in range(12):
        model = nn.Sequential(OrderedDict({"a_rather_long_name_of_a_part": model}))
    with pytest.raises(ValueError, match=r"interact in \.\.\.\S*part\.2 \(Batch") as caught:
        ProjectedGradients(model)(vectors().tensors)
    assert len(str(caught.value)) <= 500


@every
def test_losses_of_each_example_pass(kind: str) -> None:
    data = vectors()
    bank = F.normalize(torch.randn(7, CLASSES), dim=1)

    def against_a_bank(model: nn.Module, batch: Any) -> Tensor:
        features = F.normalize(model(batch[0]), dim=1)
        return torch.logsumexp(features @ bank.T, dim=1) - (features * bank[0]).sum(1)

    def weighted(model: nn.Module, batch: Any) -> Tensor:
        return by_class(model, batch) * (1 + batch[1])

    for loss in (against_a_bank, weighted, None):
        kept = select_subset(network(), data, 0.5, loss=loss, gradients=kind, progress=False)
        assert len(kept) == N // 2


@exact
def test_well_trained_models_pass(kind: str) -> None:
    """Losses near 0 are all rounding."""
    model, data = network(), vectors()
    inputs = F.one_hot(data.tensors[1], 6).float() * 3
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        by_class(model, (inputs, data.tensors[1])).mean().backward()
        optimizer.step()
    model[-1].weight.data *= 2
    assert float(by_class(model, (inputs, data.tensors[1])).detach().max()) < 1e-4
    data = TensorDataset(inputs + 0.01 * torch.randn_like(inputs), data.tensors[1])
    assert len(select_subset(model, data, 0.5, gradients=kind, progress=False)) == N // 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@exact
def test_other_precisions_pass(dtype: torch.dtype, kind: str) -> None:
    data = vectors()
    data = TensorDataset(data.tensors[0].to(dtype), data.tensors[1])
    model = network().to(dtype)
    assert len(select_subset(model, data, 0.5, gradients=kind, progress=False)) == N // 2


@every
def test_gradients_that_are_all_zero_are_an_error(kind: str) -> None:
    model = network(nn.Hardtanh(10.0, 11.0))  # saturated: no gradient passes
    model[-1].requires_grad_(False)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return by_class(model, batch) if kind != "last_layer" else 0 * by_class(model, batch)

    with pytest.raises(ValueError, match=r"all \d+ examples of the first batch are zero.*look"):
        select_subset(model, vectors(), 0.5, loss=loss, gradients=kind, progress=False)


def test_some_zero_gradients_are_none() -> None:
    def hinge(model: nn.Module, batch: Any) -> Tensor:
        return by_class(model, batch) * (batch[1] == 0)

    rows = FunctionalGradients(network(), hinge)(vectors().tensors)
    assert (rows.norm(dim=1) == 0).sum() == 16


class Noisy(nn.Module):
    """Monte Carlo dropout: it stays on."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class Sampler(nn.Module):
    """A small variational autoencoder of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 8), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Any:
        mean, spread = self.encode(x).chunk(2, 1)
        return self.decode(mean + torch.randn_like(mean) * spread.exp()), mean, spread


def elbo(model: nn.Module, batch: Any) -> Tensor:
    out, mean, spread = model(batch[0])
    return (out - batch[0]).square().sum(1) + (mean.square() + (2 * spread).exp() - spread).sum(1)


@pytest.mark.parametrize(
    ("build", "loss"),
    [(lambda: network(Noisy()), None), (Sampler, elbo)],
    ids=["dropout", "vae"],
)
def test_random_models_are_not_blamed_on_other_examples(
    build: Callable[[], nn.Module], loss: Any, caplog: pytest.LogCaptureFixture
) -> None:
    data = vectors()
    with pytest.raises(ValueError, match=r"depends on chance.*evaluation mode") as caught:
        select_subset(build(), data, 0.5, loss=loss, gradients="projected", progress=False)
    assert "interact" not in str(caught.value)
    assert len(str(caught.value)) <= 500
    with caplog.at_level(logging.INFO, "sage_torch"):
        kept = select_subset(build(), data, 0.5, loss=loss, gradients="functional", progress=False)
    assert len(kept) == N // 2
    assert "depend on chance" in caplog.text


CRITERIA = [
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(reduction="none"),
    nn.MSELoss(reduction="none"),
    F.cross_entropy,
    functools.partial(F.cross_entropy, reduction="none"),
    lambda output, target: (output.log_softmax(1) * target).sum(1),
    lambda output, target: (output - target) ** 2,
    lambda output, target: F.mse_loss(output, target.float(), reduction="none"),
]


@every
@pytest.mark.parametrize("loss", CRITERIA)
def test_criterion_of_outputs_and_targets(loss: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=r"loss\(model, batch\).*model\(batch\[0\]\)") as caught:
        select_subset(network(), vectors(), 0.5, loss=loss, gradients=kind, progress=False)
    assert len(str(caught.value)) <= 500


@pytest.mark.parametrize("computer", [FunctionalGradients, ProjectedGradients, LastLayerGradients])
def test_errors_inside_the_model_stay_what_they_are(computer: Any) -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise TypeError("unsupported operand: 'Sequential' and 'list'")

    with pytest.raises(TypeError, match=r"^unsupported operand"):
        computer(network(Failing()), loss=by_class)(vectors().tensors)


def squared(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]).squeeze() - batch[1].squeeze()).square()


def binary(model: nn.Module, batch: Any) -> Tensor:
    outputs = model(batch[0]).squeeze()
    return F.binary_cross_entropy_with_logits(outputs, batch[1].float(), reduction="none")


def of_one_output() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))


@every
def test_squeeze_of_one_example(kind: str) -> None:
    data = vectors()
    data = TensorDataset(data.tensors[0], (data.tensors[1] > 1).float())

    def flat(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]).squeeze(1) - batch[1]).square()

    kept = [
        select_subset(of_one_output(), data, 0.5, loss=loss, gradients=kind, progress=False)
        for loss in (squared, flat)
    ]
    assert kept[0].indices.tolist() == kept[1].indices.tolist()
    with pytest.raises(ValueError, match=r"one example, but not on .*squeeze\(1\)") as caught:
        select_subset(of_one_output(), data, 0.5, loss=binary, gradients=kind, progress=False)
    assert len(str(caught.value)) <= 500


@every
def test_mean_of_the_batch_is_refused_all_the_same(kind: str) -> None:
    def mean(model: nn.Module, batch: Any) -> Tensor:
        return by_class(model, batch).mean()

    with pytest.raises(ValueError, match=r'one value per example.*reduction="none"'):
        select_subset(network(), vectors(), 0.5, loss=mean, gradients=kind, progress=False)


def test_nothing_is_compared_twice() -> None:
    calls: list[int] = []

    def counted(model: nn.Module, batch: Any) -> Tensor:
        calls.append(len(batch[0]))
        return by_class(model, batch)

    gradients = FunctionalGradients(network(), counted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients(vectors().tensors)
        first = len(calls)
        gradients(vectors().tensors)
    assert len(calls) - first < first
    assert max(calls) <= 8


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("consensus", ["exact", "streaming", "one_pass"])
def test_zeros_of_ones_own_gradients_are_an_error(consensus: Any, batch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"all {N} examples are zero.*look"):
        select_subset(
            network(),
            vectors(),
            0.5,
            gradients=lambda batch: torch.zeros(len(batch[1]), 9),
            consensus=consensus,
            batch_size=batch_size,
            progress=False,
        )


def test_zeros_are_an_error_in_batches_of_one() -> None:
    def detached(model: nn.Module, batch: Any) -> Tensor:
        return by_class(model, batch) * 0.0

    with pytest.raises(ValueError, match="zero"):
        select_subset(network(), vectors(), 0.5, loss=detached, batch_size=1, progress=False)
