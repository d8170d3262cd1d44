"""Snapshots that are damaged, and what else can be wrong with a checkpoint folder."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import BATCHES, Counting, N, assert_same, collate, digits, partly, select
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sage_torch import SageError, Selection, select_subset


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
        checkpoint=folder,
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


@pytest.mark.slow
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
        ({"shards": 0}, ValueError, "shards of at least 1 .*got 0"),
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
    assert counting.batches == 2  # the look for features, and the probe


def test_segments_after_a_gap_are_read_again(tmp_path: Path) -> None:
    partly(tmp_path)
    segments = sorted(tmp_path.glob("shard-*rows*"))
    segments[2].unlink()
    counting = Counting(tmp_path / "read")
    assert_same(select(checkpoint=tmp_path, collate_fn=counting), select(collate_fn=collate))
    assert counting.batches == 2 + BATCHES - 2


def test_a_broken_example_of_the_probe_is_named(tmp_path: Path) -> None:
    broken = digits()
    broken.tensors[0][N // 2] = float("nan")  # one of the 16 that say which data set it is
    with pytest.raises(SageError, match=f"example {N // 2} of the data set") as caught:
        select(dataset=broken, checkpoint=tmp_path)
    assert caught.value.index == N // 2
