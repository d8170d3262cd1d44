"""Nothing lost: a selection that is killed goes on where it was, to the identical subset."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from sage_torch import SageError, Selection, select_subset

N, BATCH = 640, 32
BATCHES = N // BATCH  # of one pass

MODES: dict[str, dict[str, Any]] = {
    "exact": {},
    "streaming": {"consensus": "streaming", "basis": "orthonormal", "weights": True},
    "shards": {"shards": 3, "draw": "rotate"},
    "streamed shards": {"shards": 3, "consensus": "streaming", "draw": "rotate"},
}
modes = pytest.mark.parametrize("mode", MODES)


def digits() -> TensorDataset:
    pixels, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(pixels[:N] / 16).float(), torch.tensor(labels[:N]))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def select(dataset: Dataset[Any] | None = None, **options: Any) -> Selection:
    with warnings.catch_warnings():  # a thread pool exists where tests fork
        warnings.simplefilter("ignore", DeprecationWarning)
        data = digits() if dataset is None else dataset
        return select_subset(network(), data, 0.2, batch_size=BATCH, progress=False, **options)


def assert_same(ours: Selection, expected: Selection) -> None:
    """Not nearly: bit by bit."""
    for name in ("indices", "scores", "labels", "margins", "weights", "singular_values"):
        assert np.array_equal(getattr(ours, name), getattr(expected, name)), name
    assert ours.certificate == expected.certificate
    assert (ours.draws is None) == (expected.draws is None)
    if expected.draws is not None:
        assert np.array_equal(ours.epoch_indices(5), expected.epoch_indices(5))


class Counting:
    """A collate function that takes its time and writes down each batch that was read."""

    def __init__(self, path: Path, seconds: float = 0.0) -> None:
        self.path, self.seconds = path, seconds

    def __call__(self, items: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        time.sleep(self.seconds)
        with open(self.path, "a") as file:
            file.write("x")
        return [torch.stack(column) for column in zip(*items, strict=True)]

    @property
    def batches(self) -> int:
        return len(self.path.read_text()) if self.path.exists() else 0


def in_child(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    """Start `work` in a forked process, where importing torch costs nothing."""

    def child() -> None:
        torch.set_num_threads(1)
        work()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
    return process


def killed_and_resumed(folder: Path, mode: str, kills: int, draw: random.Random) -> None:
    expected = select(**MODES[mode])
    run = 0
    while kills:
        run += 1
        counting = Counting(folder / f"read-{run}", seconds=0.004)
        at = folder / f"run-{run}"
        of_run = 0

        def work(at: Path = at, counting: Counting = counting) -> None:
            select(**MODES[mode], checkpoint=at, checkpoint_every=0.0, collate_fn=counting)

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
        ours = select(
            **MODES[mode], checkpoint=at, checkpoint_every=0.0, collate_fn=Counting(counting.path)
        )
        assert_same(ours, expected)
        # A kill costs the batch that was being worked on, and the first one, which is read again;
        # of whose gradients nothing is kept.
        shards = MODES[mode].get("shards", 1)
        once = sum(-(-(N * (s + 1) // shards - N * s // shards) // BATCH) for s in range(shards))
        assert counting.batches <= 2 * once + 2 * of_run + 1
        assert sorted(path.name for path in at.iterdir()) == ["fingerprint.json", "selection.npz"]


@modes
def test_killed_selections_resume_to_the_identical_subset(tmp_path: Path, mode: str) -> None:
    killed_and_resumed(tmp_path, mode, kills=2, draw=random.Random(mode))


@pytest.mark.slow
@modes
def test_fifty_kills(tmp_path: Path, mode: str) -> None:
    killed_and_resumed(tmp_path, mode, kills=13, draw=random.Random(f"{mode} often"))


class Failing(Dataset[tuple[Tensor, Tensor]]):
    """The digits, of which one cannot be read until it is mended."""

    def __init__(self, place: int) -> None:
        self.data, self.place = digits(), place

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.place:
            raise OSError("the disk is gone")
        return self.data[index]


@pytest.mark.parametrize("which", range(2))
def test_a_failed_selection_goes_on(tmp_path: Path, which: int) -> None:
    options: dict[str, Any] = {"batch_size": BATCH, "progress": False, "shards": 2}
    expected = select_subset(network(), digits(), 0.2, **options)
    broken = Failing(place=N * which // 2 + 7)
    with pytest.raises(OSError, match="the disk is gone"):
        select_subset(network(), broken, 0.2, checkpoint=tmp_path, checkpoint_every=0, **options)
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
    assert counting.batches == 1  # what the examples are is seen from a few


def partly(folder: Path, **options: Any) -> None:
    """Leave snapshots of a selection that fails in pass 2."""

    class FailingLate:
        left = 1 + BATCHES + BATCHES // 2  # the first is the probe

        def __call__(self, items: list[Any]) -> list[Tensor]:
            self.left -= 1
            if self.left < 0:
                raise OSError("gone")
            return [torch.stack(column) for column in zip(*items, strict=True)]

    with pytest.raises(OSError, match="gone"):
        select(checkpoint=folder, checkpoint_every=0.0, collate_fn=FailingLate(), **options)


def collate(items: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [torch.stack(column) for column in zip(*items, strict=True)]


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


def test_a_random_data_set_can_be_selected_from(tmp_path: Path) -> None:
    class Noisy(Failing):
        random = np.random.default_rng(0)  # which no seed of ours touches

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            inputs, label = self.data[index]
            return inputs + float(self.random.normal()) / 100, label

    partly(tmp_path, dataset=Noisy(-1))
    with pytest.warns(UserWarning, match="reading item 0 twice"):
        select(dataset=Noisy(-1), checkpoint=tmp_path, collate_fn=collate)


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

    monkeypatch.setattr("sage_torch.snapshots.write_whole", refuse)
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


def small(folder: Path | None, **options: Any) -> Selection:
    """Hundreds of these take seconds."""
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(48, 5, generator=generator), torch.arange(48) % 3)
    model = nn.Linear(5, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
    return select_subset(
        model, data, 0.25, sketch_size=6, batch_size=8, progress=False, shards=2, **options,
        checkpoint=folder, checkpoint_every=0.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a small selection that stopped in its second pass."""
    folder = tmp_path_factory.mktemp("half")

    class FailingLate:
        left = 11

        def __call__(self, items: list[Any]) -> list[Tensor]:
            self.left -= 1
            if self.left < 0:
                raise OSError("gone")
            return collate(items)

    with pytest.raises(OSError, match="gone"):
        small(folder, collate_fn=FailingLate(), consensus="streaming")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sum("rows" in name for name in files) >= 3
    assert sum("sketch" in name for name in files) == 2
    return files


@pytest.fixture(scope="module")
def small_and_whole() -> Selection:
    return small(None, collate_fn=collate, consensus="streaming")


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_a_damaged_snapshot_is_named_and_ignored(
    half_done: dict[str, bytes],
    small_and_whole: Selection,
    tmp_path: Path,
    data: st.DataObject,
) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    for name, content in half_done.items():
        (folder / name).write_bytes(content)
    name = data.draw(st.sampled_from(sorted(half_done)))
    content = bytearray(half_done[name])
    how = data.draw(st.sampled_from(["flip", "cut", "empty", "foreign", "grow"]))
    if how == "flip":
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
            content[place] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif how == "empty":
        content = bytearray()
    elif how == "grow":
        content += data.draw(st.binary(min_size=1, max_size=50))
    else:
        content = bytearray(half_done[data.draw(st.sampled_from(sorted(half_done)))])
    (folder / name).write_bytes(bytes(content))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            ours = small(folder, collate_fn=collate, consensus="streaming")
        except ValueError as error:
            refused = str(error)
        else:
            refused = ""
    if refused:  # another fingerprint, as far as anybody can tell
        assert name == "fingerprint.json"
        assert "expected snapshots of this selection" in refused
        return
    assert_same(ours, small_and_whole)
    assert all(name in str(w.message) for w in caught if "snapshot" in str(w.message))


def test_a_damaged_snapshot_warns(half_done: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in half_done.items():
        (tmp_path / name).write_bytes(content)
    damaged = tmp_path / "shard-00000-sketch.npz"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with pytest.warns(UserWarning, match=r"ignoring the snapshot .*shard-00000-sketch\.npz"):
        small(tmp_path, collate_fn=collate, consensus="streaming")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"checkpoint": 3}, TypeError, "a folder or None, got 3"),
        ({"checkpoint_every": "often"}, TypeError, "in seconds, got 'often'"),
        ({"checkpoint_every": -1}, ValueError, "at least 0 seconds, got -1"),
        ({"checkpoint_every": float("nan")}, ValueError, "at least 0 seconds"),
        ({"shards": 0}, ValueError, "shards of at least 1, got 0"),
        ({"shards": 2.5}, TypeError, "a whole number or None, got 2.5"),
        ({"shards": N + 1}, ValueError, f"at most {N} shards"),
        ({"distributed": 1}, TypeError, "True or False, got 1"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        select(**options)


def test_a_folder_that_cannot_be_made_is_an_error_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    counting = Counting(tmp_path / "read")
    with pytest.raises(OSError, match="file"):
        select(checkpoint=tmp_path / "file" / "folder", collate_fn=counting)
    assert counting.batches == 1  # the probe


def test_segments_after_a_gap_are_read_again(tmp_path: Path) -> None:
    partly(tmp_path)
    segments = sorted(tmp_path.glob("shard-*rows*"))
    segments[2].unlink()
    counting = Counting(tmp_path / "read")
    assert_same(select(checkpoint=tmp_path, collate_fn=counting), select(collate_fn=collate))
    assert counting.batches == 1 + BATCHES - 2


def test_a_broken_example_of_the_probe_is_named(tmp_path: Path) -> None:
    broken = digits()
    broken.tensors[0][N // 2] = float("nan")  # one of the 16 that say which data set it is
    with pytest.raises(SageError, match=f"example {N // 2} of the data set") as caught:
        select(dataset=broken, checkpoint=tmp_path)
    assert caught.value.index == N // 2
