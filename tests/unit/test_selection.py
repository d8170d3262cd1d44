"""A selection is a frozen value, and its file comes back whole or not at all."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selections import assert_frozen, assert_same
from torch import nn
from torch.utils.data import TensorDataset

from sage_torch import Selection, select_subset


@pytest.fixture
def selection(network: nn.Module, blobs: TensorDataset) -> Selection:
    return select_subset(network, blobs, 0.25)


@pytest.fixture
def judged(selection: Selection) -> Selection:
    """The selection with a probability of each label, from 0 to 1."""
    return dataclasses.replace(selection, probabilities=np.linspace(0, 1, 90, dtype=np.float32))


def test_contents(selection: Selection) -> None:
    assert len(selection) == len(selection.indices) == 22  # round(22.5)
    assert repr(selection) == "Selection(22 of 90 examples, herding)"
    assert set(selection.seconds) == {"pass_1", "pass_2", "rule", "total"}
    parts = [selection.seconds[name] for name in ("pass_1", "pass_2", "rule")]
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(selection.seconds["total"])
    assert json.loads(json.dumps(selection.settings)) == selection.settings
    assert selection.settings["k"] == 22
    certificate = selection.certificate
    assert certificate is not None
    assert certificate.shrinkage == certificate["shrinkage"] >= 0
    assert 0 < certificate.energy_kept <= certificate.energy_kept_at_most <= 1
    assert certificate.consensus_cosine == 1
    assert selection.margins is not None
    assert selection.margins.shape == selection.scores.shape
    assert (selection.margins <= selection.scores).all()


def test_it_is_frozen(selection: Selection, judged: Selection) -> None:
    assert_frozen(selection)
    assert_frozen(judged)


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_copies_are_the_same_and_frozen(
    duplicate: Callable[[Selection], Selection], judged: Selection
) -> None:
    assert_same(duplicate(judged), judged)
    assert_frozen(duplicate(judged))
    assert_frozen(judged)


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "agreement"},
        {"rule": "random"},
        {"keep_coordinates": True},
        {"draw": "rotate"},
        {"draw": "random"},
        {"rule": "random", "draw": "rotate"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["subset.npz", "subset", "sub set.selection"])
def test_round_trip(
    options: Any, name: str, network: nn.Module, blobs: TensorDataset, tmp_path: Path
) -> None:
    saved = select_subset(network, blobs, 0.25, consensus="streaming", **options)
    if "keep_coordinates" in options:
        saved = saved.find_weights()
        assert saved.weights is not None
    assert (saved.draws is not None) == ("draw" in options)
    assert (saved.margins is None) == (
        options.get("rule") == "random" or "rotate" in options.values()
    )
    saved.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # as named, and nothing beside it
    loaded = Selection.load(str(tmp_path / name))
    assert_same(loaded, saved)
    assert_frozen(loaded)


def test_every_epoch_of_a_fixed_draw_is_the_subset(selection: Selection) -> None:
    assert selection.epoch_indices(0) is selection.indices
    assert selection.epoch_indices(np.int64(9)) is selection.indices  # type: ignore[arg-type]
    for wrong, error in ((-1, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="expected epoch"):
            selection.epoch_indices(wrong)  # type: ignore[arg-type]


def test_round_trip_without_labels(
    network: nn.Module, blobs: TensorDataset, tmp_path: Path
) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return model(batch[0]).square().sum(1)

    saved = select_subset(network, TensorDataset(blobs.tensors[0]), 0.25, loss=loss)
    assert saved.labels is None
    saved.save(tmp_path / "subset.npz")
    assert_same(Selection.load(tmp_path / "subset.npz"), saved)


def test_the_file_has_the_permissions_of_any_file(selection: Selection, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    selection.save(tmp_path / "subset.npz")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "subset.npz")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["write", "move"])
def test_saving_is_all_or_nothing(
    step: str,
    error: BaseException,
    selection: Selection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "subset.npz"
    selection.save(path)
    before = path.read_bytes()
    attempts = []

    def half_a_file(file: Any, **arrays: Any) -> None:
        file.write(before[:100])
        attempts.append(file)
        raise error

    def no_move(*paths: Any) -> None:
        attempts.append(paths)
        raise error

    if step == "write":
        monkeypatch.setattr(np, "savez_compressed", half_a_file)
    else:
        monkeypatch.setattr(os, "replace", no_move)
    with pytest.raises(type(error)):
        selection.save(path)
    assert len(attempts) == 1
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_to_no_folder(selection: Selection, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        selection.save(tmp_path / "missing" / "subset.npz")
    with pytest.raises(FileNotFoundError):
        Selection.load(tmp_path / "missing.npz")
