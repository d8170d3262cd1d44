"""`select_subset` from a model and data to indices: what it promises, on small and on real data."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from sage_torch import Selection, select_subset

Digits = tuple[TensorDataset, TensorDataset]
Warm = Callable[[], nn.Module]


def inputs_of(batch: Any) -> Tensor:
    """A cheap computer of gradients: the inputs themselves."""
    return batch[0].flatten(1)


def select(data: Any, keep: float = 0.25, **options: Any) -> Selection:
    """Select by the inputs themselves."""
    return select_subset(nn.Linear(1, 1), data, keep, **{"gradients": inputs_of, **options})


@pytest.fixture
def uneven() -> TensorDataset:
    """100 examples in classes of 5, 20 and 75."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 5 + [1] * 20 + [2] * 75)[torch.randperm(100, generator=generator)]
    means = torch.randn(3, 6, generator=generator)
    return TensorDataset(torch.randn(100, 6, generator=generator) + means[labels], labels)


rules = pytest.mark.parametrize("rule", ["herding", "agreement", "random"])
modes = pytest.mark.parametrize("consensus", ["exact", "streaming"])


@modes
@rules
@pytest.mark.parametrize("keep", [1, 0.05, 0.25, 0.333, 0.985, 0.999, 1.0, 100])
@pytest.mark.parametrize("balanced", ["auto", False])
@pytest.mark.filterwarnings("ignore:.*gives no example")
def test_keeps_exactly_k(
    keep: float, rule: str, consensus: str, balanced: Any, uneven: TensorDataset
) -> None:
    kept = select(uneven, keep, rule=rule, consensus=consensus, class_balanced=balanced)
    k = keep if isinstance(keep, int) else round(keep * 100)
    assert kept.indices.dtype == np.int64
    assert kept.indices.shape == (k,)
    assert (np.diff(kept.indices) > 0).all()
    assert kept.indices[0] >= 0
    assert kept.indices[-1] < 100
    if k == 100:
        assert np.array_equal(kept.indices, np.arange(100))
    assert len(Subset(uneven, kept.indices)) == k  # type: ignore[arg-type]
    assert kept.scores.dtype == np.float32
    assert kept.scores.shape == (100,)
    if rule == "random":
        assert np.isnan(kept.scores).all()
        assert kept.certificate is kept.margins is None
    else:
        assert np.abs(kept.scores).max() <= 1 + 1e-6
        assert kept.margins is not None
        assert kept.margins.dtype == np.float32
        assert kept.margins.shape == (100,)
    assert np.array_equal(kept.labels, uneven.tensors[1])


@modes
@rules
@pytest.mark.parametrize("mode", ["proportional", "equal"])
@pytest.mark.parametrize("keep", [10, 25, 60])
def test_class_quotas(
    mode: str, keep: int, rule: str, consensus: str, uneven: TensorDataset
) -> None:
    kept = select(uneven, keep, rule=rule, consensus=consensus, quotas=mode)
    counts = np.bincount(uneven.tensors[1][kept.indices.copy()], minlength=3)
    assert counts.tolist() == reference.class_quotas([5, 20, 75], keep, mode).tolist()
    if (mode, keep) == ("equal", 60):
        assert counts.tolist() == [5, 20, 35]


def closed_form(data: TensorDataset, class_ids: Any) -> tuple[Any, Any, Any]:
    """Scores, margins, orthonormal coordinates where rank < l: the sketch has S^T S = A^T A."""
    rows = data.tensors[0].flatten(1).double().numpy()
    eigenvalues, vectors = np.linalg.eigh(rows.T @ rows)
    z = rows @ vectors * np.sqrt(eigenvalues)
    directions = reference.consensus(z, class_ids, class_ids.max() + 1)
    margins = reference.margin(z, class_ids, directions)
    return reference.agreement(z, class_ids, directions), margins, rows


@pytest.mark.parametrize("balanced", [True, False])
def test_scores_and_rules_are_what_they_are_defined_to_be(
    balanced: bool, uneven: TensorDataset
) -> None:
    class_ids = uneven.tensors[1].numpy()  # of the scores; the rules see groups
    groups = class_ids * balanced
    quotas = reference.class_quotas(np.bincount(groups), 25)
    scores, margins, z = closed_form(uneven, class_ids)
    assert 0 < (margins < 0).mean() < 0.75  # so that the trim has something to do
    options = {"class_balanced": balanced}
    agreeing = select(uneven, rule="agreement", **options)
    np.testing.assert_allclose(agreeing.scores, scores, atol=1e-4)
    np.testing.assert_allclose(agreeing.margins, margins, atol=1e-4)
    assert np.array_equal(agreeing.indices, reference.top_k(scores, groups, quotas))
    for trim in ("negative", 0.3, None):
        herded = select(uneven, rule="herding", trim=trim, **options)
        assert np.array_equal(herded.scores, agreeing.scores)
        expected = reference.herding(z, margins, groups, quotas, trim)  # type: ignore[arg-type]
        assert np.array_equal(herded.indices, expected)


def halves(digits: Digits) -> Any:
    """Two classes of the first 700 digits: those below 5 and the others."""
    return digits[0].tensors[1][:700] // 5


@modes
def test_negative_trim(consensus: Any, digits: Digits, warm: Warm) -> None:
    data = Subset(digits[0], range(700))

    def kept(trim: Any) -> Selection:
        # Two coarse classes: within a class of clean digits hardly any margin is negative.
        return select_subset(
            warm(), data, 0.25, trim=trim, consensus=consensus, labels=halves(digits)
        )

    trimmed, whole = kept("negative"), kept(None)
    assert trimmed.margins is not None
    assert whole.margins is not None
    assert np.array_equal(trimmed.margins, whole.margins)
    assert 0.1 < (whole.margins < 0).mean() < 0.75
    assert (trimmed.margins[trimmed.indices] >= 0).all()
    assert (whole.margins[whole.indices] < 0).mean() > 0.1


@modes
def test_trim_of_a_share_drops_wrong_labels(consensus: Any, digits: Digits, warm: Warm) -> None:
    inputs, right = digits[0].tensors
    wrong = torch.rand(len(right), generator=torch.Generator().manual_seed(0)) < 0.2
    noisy = TensorDataset(inputs, torch.where(wrong, (right + 3) % 10, right))

    def kept(trim: float | None) -> Selection:
        return select_subset(
            warm(), noisy, 0.25, trim=trim, consensus=consensus, gradients="last_layer"
        )

    trimmed, whole = kept(0.3), kept(None)
    assert trimmed.margins is not None
    labels = noisy.tensors[1].numpy()
    for label in range(10):
        members = np.flatnonzero(labels == label)
        # Two margins at the cut are equal, or nearly: which example leaves is the oracle's to say.
        left = members[reference.trimmed(trimmed.margins[members], 0, 0.3)]
        lowest = set(members) - set(left)
        assert len(lowest) == int(0.3 * len(members))
        assert not lowest & set(trimmed.indices)
        assert lowest & set(whole.indices)
    share = [float(wrong[s.indices.copy()].float().mean()) for s in (trimmed, whole)]
    print(f"{consensus}: wrong labels kept: trimmed {share[0]:.3f}, whole {share[1]:.3f}")
    assert share[0] < 0.1 < share[1]  # measured: 0.053 and 0.206


@pytest.mark.parametrize(
    ("rule", "gradients"),
    [("herding", "functional"), ("agreement", "functional"), ("agreement", "last_layer")],
)
def test_streaming_agrees_with_exact(rule: Any, gradients: str, digits: Digits, warm: Warm) -> None:
    exact, streaming = (
        select_subset(warm(), digits[0], 0.25, rule=rule, gradients=gradients, consensus=mode)
        for mode in ("exact", "streaming")
    )
    overlap = len(np.intersect1d(exact.indices, streaming.indices)) / len(exact)
    assert exact.certificate is not None
    assert streaming.certificate is not None
    cosine = streaming.certificate.consensus_cosine
    print(f"{rule}, {gradients}: overlap {overlap:.3f}, consensus cosine {cosine:.4f}")
    assert exact.certificate.consensus_cosine == 1
    assert 0.99 < cosine < 1  # measured: 0.9996 and above
    assert overlap > 0.95  # measured: 0.978 and above
    assert np.corrcoef(exact.scores, streaming.scores)[0, 1] > 0.99


def test_auto_consensus_follows_the_memory_budget(blobs: TensorDataset) -> None:
    fits = 4 * 90 * 16
    for budget, expected in ((fits, "exact"), (fits - 1, "streaming")):
        kept = select(blobs, sketch_size=16, memory_budget=budget)
        assert kept.settings["consensus"] == expected


@rules
@modes
def test_a_seed_names_a_result(rule: Any, consensus: Any, digits: Digits, warm: Warm) -> None:
    data = Subset(digits[0], range(500))

    def kept(seed: int, batch_size: int = 256) -> Selection:
        options: dict[str, Any] = {"rule": rule, "consensus": consensus, "seed": seed}
        options |= {"compress": 32, "sketch_size": 16, "gradients": "last_layer"}
        return select_subset(warm(), data, 0.25, batch_size=batch_size, **options)

    one, same, other, rebatched = kept(0), kept(0), kept(1), kept(0, 100)
    assert np.array_equal(one.indices, same.indices)
    assert one.scores.tobytes() == same.scores.tobytes()
    assert one.certificate == same.certificate
    assert not np.array_equal(one.indices, other.indices)
    shared = len(np.intersect1d(one.indices, rebatched.indices)) / len(one)
    assert shared > 0.98  # batches change only rounding
    np.testing.assert_allclose(one.scores, rebatched.scores, atol=1e-3)


@rules
@pytest.mark.parametrize(
    "labels",
    [[-1, 0, 1], [2**62, -(2**62), 0], [5, 300, 17], [-(2**63), 2**63 - 1, 3]],
    ids=["negative", "huge", "sparse", "extreme"],
)
def test_labels_are_any_integers(labels: list[int], rule: str, uneven: TensorDataset) -> None:
    inputs, ids = uneven.tensors
    data = TensorDataset(inputs, torch.tensor(labels)[ids])
    kept = select(data, quotas="equal", rule=rule)
    assert kept.labels is not None
    assert kept.labels.dtype == np.int64
    assert np.array_equal(kept.labels, data.tensors[1])
    counts = {label: int((kept.labels[kept.indices] == label).sum()) for label in labels}
    assert list(counts.values()) == [5, 10, 10]
    if rule == "agreement":  # names of classes make no difference
        assert np.array_equal(kept.indices, select(uneven, quotas="equal", rule=rule).indices)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_dtype(dtype: torch.dtype, uneven: TensorDataset) -> None:
    inputs, labels = uneven.tensors
    kept = select(TensorDataset(inputs, labels.to(dtype)))
    assert np.array_equal(kept.labels, labels)
    assert np.array_equal(kept.indices, select(uneven).indices)


Pair = namedtuple("Pair", "x labels")


@dataclass
class Record:
    x: Tensor
    labels: Tensor


BATCHES: list[Callable[[Tensor, Tensor], Any]] = [
    lambda x, y: (x, y),
    lambda x, y: [x, y],
    lambda x, y: {"input": x, "labels": y},
]


@pytest.mark.parametrize("form", BATCHES, ids=["tuple", "list", "dict"])
@pytest.mark.parametrize("gradients", ["functional", "last_layer"])
def test_forms_of_a_batch(
    form: Callable[[Tensor, Tensor], Any], gradients: str, network: nn.Module, blobs: TensorDataset
) -> None:
    def collate(examples: list[Any]) -> Any:
        return form(*default_collate(examples))

    kept = select_subset(network, blobs, 0.25, gradients=gradients, collate_fn=collate)
    plain = select_subset(network, blobs, 0.25, gradients=gradients)
    assert np.array_equal(kept.indices, plain.indices)
    assert np.array_equal(kept.scores, plain.scores)
    assert np.array_equal(kept.labels, plain.labels)


@pytest.mark.parametrize("form", [Pair, Record, lambda x, y: {"x": (x, {"y": y}), "labels": y}])
def test_forms_of_a_batch_with_a_loss(
    form: Callable[[Tensor, Tensor], Any], network: nn.Module, blobs: TensorDataset
) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        if isinstance(batch, dict):
            x, labels = batch["x"][0], batch["x"][1]["y"]
        else:
            x, labels = batch.x, batch.labels
        return F.cross_entropy(model(x), labels, reduction="none")

    def collate(examples: list[Any]) -> Any:
        return form(*default_collate(examples))

    kept = select_subset(network, blobs, 0.25, loss=loss, collate_fn=collate)
    assert np.array_equal(kept.indices, select_subset(network, blobs, 0.25).indices)
    assert np.array_equal(kept.labels, blobs.tensors[1])


@modes
@pytest.mark.parametrize("rule", ["herding", "agreement"])
@pytest.mark.parametrize("gradients", ["functional", "last_layer"])
def test_regression(rule: Any, gradients: str, consensus: Any, blobs: TensorDataset) -> None:
    inputs = blobs.tensors[0]
    data = TensorDataset(inputs, inputs.sum(1).sin())
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0])[:, 0] - batch[1]) ** 2

    kept = select_subset(
        model, data, 0.3, loss=loss, rule=rule, gradients=gradients, consensus=consensus
    )
    assert kept.labels is None
    assert len(kept) == 27
    assert np.isfinite(kept.scores).all()
    assert np.ptp(kept.scores) > 0.1


@pytest.mark.parametrize(
    ("compress", "gradients", "dim"),
    [
        (None, "functional", 2410),
        ("auto", "functional", 2410),
        (5000, "functional", 2410),
        (100, "functional", 100),
        (None, "last_layer", 330),
        (100, "last_layer", 100),
    ],
)
def test_compression(compress: Any, gradients: str, dim: int, digits: Digits, warm: Warm) -> None:
    data = Subset(digits[0], range(300))
    kept = select_subset(warm(), data, 0.25, compress=compress, gradients=gradients)
    assert kept.settings["dim"] == dim
    assert ("count sketch" in kept.settings["gradients"]) == (dim == compress)
    exact = select_subset(warm(), data, 0.25, compress=None, gradients=gradients)
    assert np.array_equal(kept.scores, exact.scores) == (dim != compress)
    assert np.corrcoef(kept.scores, exact.scores)[0, 1] > 0.8


def test_the_default_dtype_does_not_matter(network: nn.Module, blobs: TensorDataset) -> None:
    expected = select_subset(network, blobs, 0.25, compress=16, consensus="streaming")
    torch.set_default_dtype(torch.float64)
    try:
        kept = select_subset(network, blobs, 0.25, compress=16, consensus="streaming")
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(kept.indices, expected.indices)
    assert np.array_equal(kept.scores, expected.scores)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_data_on_the_device(network: nn.Module, blobs: TensorDataset) -> None:
    there = TensorDataset(*(tensor.cuda() for tensor in blobs.tensors))
    kept = select_subset(network.cuda(), there, 0.25)
    assert np.array_equal(kept.labels, blobs.tensors[1])


def test_short_work_shows_no_progress_and_prints_nothing(
    network: nn.Module, blobs: TensorDataset, capfd: pytest.CaptureFixture[str]
) -> None:
    select_subset(network, blobs, 0.25)
    assert capfd.readouterr() == ("", "")


class Counting(Dataset[Any]):
    """Counts how often each example is read."""

    def __init__(self, data: TensorDataset) -> None:
        self.data, self.readings = data, np.zeros(len(data), int)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.readings[index] += 1
        return self.data[index]


@modes
def test_the_data_is_read_twice(consensus: Any, network: nn.Module, blobs: TensorDataset) -> None:
    data = Counting(blobs)
    select_subset(network, data, 0.25, trim="negative", consensus=consensus, batch_size=32)
    looked_at = [0, 18, 36, 54, 72]  # three times more, to see whether readings differ
    assert data.readings[looked_at].tolist() == [5] * 5
    assert (np.delete(data.readings, looked_at) == 2).all()
    by_features = Counting(blobs)
    select_subset(network, by_features, 0.25, consensus=consensus, batch_size=32)
    readings = np.delete(by_features.readings, looked_at)
    passes = 1 if consensus == "exact" else 2  # the factors of the gradients are kept
    assert sorted(np.unique(readings)) == [passes, passes + 1]
    assert 11 <= (readings == passes + 1).sum() <= 16  # the look for features
    labels_only = Counting(blobs)
    select_subset(network, labels_only, 0.25, rule="random")
    assert (labels_only.readings == 1).all()
