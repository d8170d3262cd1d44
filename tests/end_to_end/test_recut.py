"""Another cut of a selection is what a fresh call gives from coordinates that are rounded alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import TensorDataset

from sage_torch import Selection, select_subset
from sage_torch.passes.views import Views
from sage_torch.selection.coordinates import Keeper

N, CLASSES = 1_200, 5
BEFORE: dict[str, dict[str, Any]] = {
    "exact": {},
    "streaming": {"consensus": "streaming"},
    "shards": {"consensus": "streaming", "shards": 3},
    "margins": {"trim": "negative"},
    "rotating": {"draw": "rotate"},
    "rotating on a stream": {"draw": "rotate", "consensus": "streaming"},
    "drawn": {"draw": "random"},
    "equal quotas": {"quotas": "equal"},
    "one pass": {"consensus": "one_pass"},
    "without classes": {"labels": None},
    "one group": {"class_balanced": False},
}
CHANGES: list[dict[str, Any]] = [
    {},
    {"keep": 0.1},
    {"keep": 300, "quotas": "equal"},
    {"trim": None},
    {"trim": 0.2},
    {"rule": "agreement"},
    {"rule": "random", "seed": 3},
]


@pytest.fixture(scope="module")
def task() -> tuple[nn.Module, TensorDataset]:
    """A warmed-up model, and classes of unequal size with a tenth of wrong labels."""
    random = torch.Generator().manual_seed(0)
    labels = (torch.rand(N, generator=random) ** 2 * CLASSES).long()
    inputs = torch.randn(N, 16, generator=random) + 2 * torch.eye(16)[labels]
    wrong = torch.rand(N, generator=random) < 0.1
    labels = torch.where(wrong, (labels + 1) % CLASSES, labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 96), nn.ReLU(), nn.Linear(96, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for batch in torch.arange(N).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    return model, TensorDataset(inputs, labels)


def select(task: tuple[nn.Module, TensorDataset], **options: Any) -> Selection:
    return select_subset(*task, **{"keep": 0.25, "progress": False, **options})


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every rule compare what would be kept: unit rows, rounded to float16."""
    compared = Views.compared

    def as_kept(views: Views) -> NDArray[np.float32]:
        rows = compared(views)
        whole, width = slice(0, len(rows)), rows.shape[1]
        keeper = Keeper(whole, width, width if views.features is None else width - 1)
        keeper.put(np.arange(len(rows)), rows)
        return keeper.rows.astype(np.float32)

    monkeypatch.setattr(Views, "compared", as_kept)


@pytest.mark.usefixtures("rounded")
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_a_cut_is_what_a_fresh_call_gives(
    before: dict[str, Any], task: tuple[nn.Module, TensorDataset]
) -> None:
    first = select(task, keep_coordinates=True, **before)
    first = Selection.from_bytes(first.to_bytes())
    for change in CHANGES:
        rule = change.get("rule")
        if rule == "agreement" and "draw" in before:
            continue
        cut = first.recut(**change)
        options = {**before, **change}
        has_features = before.get("consensus") != "one_pass" and "labels" not in before
        if has_features and "trim" not in before and ({"trim"} & {*change} or rule == "agreement"):
            # Whose gradients were kept, in as many rows.
            options |= {"gradients": "last_layer", "sketch_size": first.settings["sketch_rows"]}
        fresh = select(task, **options)
        assert cut.indices.tolist() == fresh.indices.tolist(), change
        assert cut.epoch_indices(3).tolist() == fresh.epoch_indices(3).tolist(), change
        assert (cut.ranks is None) == (fresh.ranks is None), change
        assert cut.ranks is None or np.array_equal(cut.ranks, fresh.ranks), change
        for name in ("keep", "k", "rule", "quotas", "trim", "seed", "trimmed"):
            assert cut.settings[name] == fresh.settings[name], (change, name)
        for name in ("trimmed_by_noise", "trimmed_by_budget", "trimmed_because"):
            assert cut.settings.get(name) == fresh.settings.get(name), (change, name)


def test_a_cut_of_a_cut_is_the_cut(task: tuple[nn.Module, TensorDataset]) -> None:
    first = select(task, keep_coordinates=True)
    once = first.recut(keep=0.1)
    assert once.recut(keep=0.4).recut(keep=0.1).indices.tolist() == once.indices.tolist()
    assert first.recut().indices.size == first.indices.size
    assert once.seconds["pass_1"] == 0
    assert once.certificate == first.certificate


def test_without_what_it_needs_it_says_so(task: tuple[nn.Module, TensorDataset]) -> None:
    with pytest.raises(ValueError, match="keep_coordinates=True"):
        select(task).recut(keep=0.1)
    margins = select(task, trim="negative", keep_coordinates=True)
    with pytest.raises(ValueError, match=r"has not looked.*for features"):
        margins.recut(trim="auto")
    first = select(task, keep_coordinates=True)
    with pytest.raises(ValueError, match="keep"):
        first.recut(keep=N + 1)
    with pytest.raises(ValueError, match="rule"):
        first.recut(rule="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected keep_coordinates=False"):
        select(task, rule="random", keep_coordinates=True)


def test_keeping_changes_nothing(task: tuple[nn.Module, TensorDataset]) -> None:
    for options in BEFORE.values():
        plain, kept = select(task, **options), select(task, keep_coordinates=True, **options)
        assert plain.indices.tolist() == kept.indices.tolist()
        assert plain.coordinates is None
        assert kept.coordinates is not None
        assert kept.coordinates.rows.shape[0] == N


def test_a_cut_is_no_reading(task: tuple[nn.Module, TensorDataset]) -> None:
    first = select(task, draw="rotate", keep_coordinates=True)
    thrice = replace(first, settings=first.settings | {"readings": 3, "rho": 0.07})
    cut = thrice.recut(keep=0.1)
    assert (cut.settings["readings"], cut.settings["rho"]) == (3, 0.07)


def test_the_size_is_said_before_the_work(
    task: tuple[nn.Module, TensorDataset], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "sage_torch"):
        found = select(task, keep_coordinates=True)
    said = [each.getMessage() for each in caplog.records]
    assert found.coordinates is not None
    size = f"coordinates: {found.coordinates.rows.nbytes:,} bytes on the host"
    place = next(i for i, words in enumerate(said) if words.startswith(size))
    assert place < next(i for i, words in enumerate(said) if words.startswith("classes:"))


def test_near_duplicates_stay_out(task: tuple[nn.Module, TensorDataset]) -> None:
    model, data = task
    inputs, labels = data.tensors
    twice = TensorDataset(torch.cat([inputs, inputs[:400]]), torch.cat([labels, labels[:400]]))
    for options in ({}, {"consensus": "streaming"}, {"draw": "rotate"}):
        found = select((model, twice), keep=0.5, duplicates="drop", **options)
        assert found.duplicate_of is not None
        assert found.settings["duplicates_dropped"] == (found.duplicate_of >= 0).sum() >= 400
        assert len(found) == 800
        assert found.coordinates is None
        kinds = np.where(found.duplicate_of < 0, np.arange(1_600), found.duplicate_of)
        kept = found.epoch_indices(2)
        assert len(np.unique(kinds[kept])) == len(kept)
        assert len(np.unique(kept % N)) == len(kept)
    with pytest.raises(ValueError, match="one of each kind"):
        select((model, twice), keep=1.0, duplicates="drop")


def test_damaged_coordinates_are_refused(task: tuple[nn.Module, TensorDataset]) -> None:
    first = select(task, keep_coordinates=True)
    assert first.coordinates is not None
    rows = first.coordinates.rows.copy()
    rows[3, 2] = np.nan
    broken = replace(first, coordinates=replace(first.coordinates, rows=rows))
    with pytest.raises(ValueError, match="finite float16 coordinates"):
        Selection.from_bytes(broken.to_bytes())
    short = replace(first, coordinates=replace(first.coordinates, rows=rows[:-1]))
    with pytest.raises(ValueError, match="finite float16 coordinates"):
        Selection.from_bytes(short.to_bytes())
