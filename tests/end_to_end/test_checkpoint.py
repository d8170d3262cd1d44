"""Nothing lost: a selection that is killed goes on where it was, to the identical subset."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import (
    BATCH,
    BATCHES,
    Counting,
    Failing,
    N,
    assert_same,
    collate,
    digits,
    in_child,
    network,
    partly,
    select,
)
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from sage_torch import select_subset

MODES: dict[str, dict[str, Any]] = {
    "exact": {},
    "streaming": {"consensus": "streaming"},
    "shards": {"shards": 3, "draw": "rotate", "gradients": "last_layer"},
    "one pass": {"consensus": "one_pass", "shards": 3},
    "streamed shards": {
        "shards": 3,
        "consensus": "streaming",
        "draw": "rotate",
        "gradients": "last_layer",
    },
}
modes = pytest.mark.parametrize("mode", MODES)


def killed_and_resumed(folder: Path, mode: str, kills: int, draw: random.Random) -> None:
    expected = select(**MODES[mode])
    run = 0
    while kills:
        run += 1
        counting = Counting(folder / f"read-{run}", seconds=0.004)
        at = folder / f"run-{run}"
        of_run = 0

        def work(at: Path = at, counting: Counting = counting) -> None:
            select(**MODES[mode], checkpoint=at, collate_fn=counting)

        while kills:
            process = in_child(work)
            process.join(draw.uniform(0.02, 0.35))
            if process.exitcode is not None:
                assert process.exitcode == 0
                break  # it was faster; another run, from the start
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills, of_run = kills - 1, of_run + 1
        ours = select(**MODES[mode], checkpoint=at, collate_fn=Counting(counting.path))
        assert_same(ours, expected)
        # Each start looks for features and reads the probe: those that were killed, one that may
        # have ended, and the last.
        # A kill costs the batch that was being worked on besides.
        shards = MODES[mode].get("shards", 1)
        once = sum(-(-(N * (s + 1) // shards - N * s // shards) // BATCH) for s in range(shards))
        assert counting.batches <= 2 * once + of_run + 2 * (of_run + 2)
        assert sorted(path.name for path in at.iterdir()) == ["fingerprint.json", "selection.npz"]


@modes
def test_killed_selections_resume_to_the_identical_subset(tmp_path: Path, mode: str) -> None:
    killed_and_resumed(tmp_path, mode, kills=2, draw=random.Random(mode))


@pytest.mark.slow
@modes
def test_fifty_kills(tmp_path: Path, mode: str) -> None:
    killed_and_resumed(tmp_path, mode, kills=13, draw=random.Random(f"{mode} often"))


@pytest.mark.parametrize("which", range(2))
def test_a_failed_selection_goes_on(tmp_path: Path, which: int) -> None:
    options: dict[str, Any] = {"batch_size": BATCH, "progress": False, "shards": 2}
    expected = select_subset(network(), digits(), 0.2, **options)
    broken = Failing(place=N * which // 2 + 7)
    with pytest.raises(OSError, match="the disk is gone"):
        select_subset(network(), broken, 0.2, checkpoint=tmp_path, **options)
    broken.place = -1
    ours = select_subset(network(), broken, 0.2, checkpoint=tmp_path, **options)
    assert_same(ours, expected)


def test_a_finished_selection_is_returned_at_once(tmp_path: Path) -> None:
    first = select(checkpoint=tmp_path)
    counting = Counting(tmp_path / "read")
    again = select(checkpoint=str(tmp_path))
    assert_same(again, first)
    assert again.seconds == first.seconds
    assert_same(select(checkpoint=tmp_path, collate_fn=counting), first)
    assert counting.batches == 2  # where the features are, and what the examples are


def test_snapshots_of_something_else_are_refused(tmp_path: Path) -> None:
    partly(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 2 + BATCHES // 2  # fingerprint, sketch, and segments of pass 2
    frozen, other = network(), nn.Sequential(*network()[:2], nn.Tanh(), network()[3])
    frozen[0].requires_grad_(False)
    relabelled = digits()
    relabelled.tensors[1][77] = 3 - relabelled.tensors[1][77]
    model = network()
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    changed = digits()
    changed.tensors[0][0, 0] += 1
    shorter = TensorDataset(*digits()[:-1])
    common: dict[str, Any] = {"collate_fn": collate, "progress": False, "checkpoint": tmp_path}
    cases: list[tuple[nn.Module, Dataset[Any], dict[str, Any], str]] = [
        (model, digits(), {"keep": 0.2}, "another model: pass another"),
        (network(), changed, {"keep": 0.2}, "another data set: pass another"),
        (network(), shorter, {"keep": 0.2}, "another data set: pass another"),
        (network(), digits(), {"keep": 0.3}, "keep=0.2 there, 0.3 here"),
        (network(), digits(), {"keep": 0.2, "seed": 1}, "seed=0 there, 1 here"),
        (network(), digits(), {"keep": 0.2, "shards": 2}, "shards=1 there, 2 here"),
    ]
    for network_, data, options, match in cases:
        with pytest.raises(ValueError, match=match):
            select_subset(network_, data, **options, **common)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    # The size of batches, workers and the interval change nothing that is in them.
    other = select_subset(network(), digits(), 0.2, batch_size=16, num_workers=1, **common)
    assert len(np.setdiff1d(other.indices, select(collate_fn=collate).indices)) <= 1


def _other_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none") ** 2


def test_functions_of_one_name_are_told_apart_by_their_gradients(tmp_path: Path) -> None:
    def losses(power: int) -> Callable[[nn.Module, list[Tensor]], Tensor]:
        return lambda model, batch: nn.functional.cross_entropy(
            model(batch[0]), batch[1], reduction="none"
        ).pow(power)

    select(checkpoint=tmp_path / "loss", loss=losses(2))
    with pytest.raises(ValueError, match="other gradients \\(another loss, other parameters"):
        select(checkpoint=tmp_path / "loss", loss=losses(3))
    last, first = (lambda name, _: "3." in name), (lambda name, _: "0." in name)
    select(checkpoint=tmp_path / "params", params=last)
    with pytest.raises(ValueError, match="other gradients"):
        select(checkpoint=tmp_path / "params", params=first)


@pytest.mark.filterwarnings("ignore:reading item 0 twice")
def test_a_random_data_set_can_be_selected_from(tmp_path: Path) -> None:
    class Noisy(Failing):
        random = np.random.default_rng(0)  # which no seed of ours touches

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            inputs, label = self.data[index]
            return inputs + float(self.random.normal()) / 100, label

    partly(tmp_path, dataset=Noisy(-1))
    assert len(select(dataset=Noisy(-1), checkpoint=tmp_path, collate_fn=collate)) == round(0.2 * N)


def test_only_snapshots_are_overwritten(tmp_path: Path) -> None:
    mine = select()
    mine.save(tmp_path / "selection.npz")
    with pytest.raises(ValueError, match=r"holds a selection\.npz of another origin"):
        select(checkpoint=tmp_path)
    (tmp_path / "selection.npz").rename(tmp_path / "mine.npz")
    (tmp_path / "movie.part").write_text("mine")
    select(checkpoint=tmp_path)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["fingerprint.json", "mine.npz", "movie.part", "selection.npz"]


def test_a_finished_selection_can_be_read_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = select(checkpoint=tmp_path)

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("sage_torch.checkpoint.snapshots.write_whole", refuse)
    assert_same(select(checkpoint=tmp_path), first)
    with pytest.raises(PermissionError, match="read-only"):
        select(checkpoint=tmp_path / "other")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    def refused() -> None:
        with pytest.raises(RuntimeError, match="another one is selecting with it"):
            select(dataset=Meanwhile(-1), checkpoint=tmp_path)

    class Meanwhile(Failing):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            if index == self.place and (tmp_path / "lock").exists():
                self.place = -1
                process = in_child(refused)
                process.join()
                assert process.exitcode == 0
            return self.data[index]

    data = Meanwhile(place=77)
    assert len(select(dataset=data, checkpoint=tmp_path)) == round(0.2 * N)
    assert data.place == -1


def test_a_buffer_is_part_of_the_model(tmp_path: Path) -> None:
    partly(tmp_path)
    model = network()
    model[1].running_mean += 0.1
    with pytest.raises(ValueError, match="those of another model"):
        select_subset(model, digits(), 0.2, collate_fn=collate, checkpoint=tmp_path)
