"""`sketch_size="auto"`: how many rows come of it, and what that must not depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Counting, assert_same
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sage_torch import (
    SageError,
    SageSampler,
    SageStream,
    Selection,
    select_subset,
)
from sage_torch.options import Options
from sage_torch.passes import growth
from sage_torch.passes import mode as modes
from sage_torch.reading.reader import SeededOrder
from sage_torch.reading.shards import cut

N, DIM, FIRST, MOST = 520, 100, 8, 64


@pytest.fixture(autouse=True)
def smaller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sizes an eighth or so of what they are, so that small data will do."""
    if "digits" not in request.fixturenames:
        monkeypatch.setattr(modes, "FIRST_ROWS", FIRST)
        monkeypatch.setattr(growth, "MOST_ROWS", MOST)


def examples(spread: float) -> TensorDataset:
    """Rows to select by themselves; the less they decay, the more rows a sketch needs."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % 4
    scale = torch.arange(1, DIM + 1).float() ** -spread
    centres = torch.randn(4, DIM, generator=generator)
    rows = (centres[labels] + torch.randn(N, DIM, generator=generator)) * scale
    return TensorDataset(rows, labels)


def select(data: TensorDataset | None = None, **chosen: Any) -> Selection:
    given: dict[str, Any] = {"sketch_size": "auto", "compress": None} | chosen
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    return select_subset(
        model,
        examples(0.5) if data is None else data,
        0.2,
        gradients=lambda batch: batch[0],
        progress=False,
        **given,
    )


def rows_of(selection: Selection) -> int:
    assert selection.singular_values is not None
    assert selection.settings["sketch_rows"] == len(selection.singular_values)
    return len(selection.singular_values)


def test_it_grows_until_enough_energy_is_kept() -> None:
    found = [rows_of(select(examples(spread))) for spread in (3.0, 0.7, 0.0)]
    assert found == [8, 16, 64]
    selection = select()
    assert selection.settings["sketch_size"] == "auto"
    assert selection.certificate is not None
    assert selection.certificate.energy_kept > 1 - growth.TARGET
    small = select(sketch_size=FIRST)
    assert small.certificate is not None
    assert small.certificate.energy_kept < 1 - growth.TARGET
    assert small.settings["sketch_size"] == rows_of(small) == FIRST


def test_a_sketch_that_need_not_grow_is_that_of_the_first_rows() -> None:
    data = examples(3.0)
    assert_same(select(data), select(data, sketch_size=FIRST))


@pytest.mark.parametrize("mode", ["exact", "streaming"])
def test_its_certificate_is_true(mode: str) -> None:
    data = examples(0.0)
    selection = select(data, consensus=mode)
    certificate, values = selection.certificate, selection.singular_values
    assert certificate is not None
    assert values is not None
    energies = np.linalg.svd(data.tensors[0].double().numpy(), compute_uv=False) ** 2
    lost = energies[: len(values)] - values**2  # at each of the largest directions
    assert (lost >= -1e-3).all()
    assert (lost <= certificate.shrinkage * 1.001).all()
    assert certificate.squared_norm == pytest.approx(energies.sum(), rel=1e-5)
    assert certificate.consensus_cosine > 0.98


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("mode", ["exact", "streaming"])
def test_batches_and_workers_change_nothing(mode: str, shards: int) -> None:
    selections = [
        select(consensus=mode, shards=shards, batch_size=batch, num_workers=workers)
        for batch, workers in ((32, 0), (256, 0), (150, int(shards == 1)))
    ]
    assert {rows_of(selection) for selection in selections} == {64 if shards == 1 else 32}
    for other in selections[1:]:
        # The rows are the same bit by bit, and shrunk at the same places.
        assert np.array_equal(other.indices, selections[0].indices)
        np.testing.assert_allclose(other.scores, selections[0].scores, atol=1e-6)


def test_digits_choose_the_same_size(
    digits: tuple[TensorDataset, TensorDataset], warm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "TARGET", 0.02)
    found = {
        (shards, batch): select_subset(
            *(warm(), digits[0], 0.2),
            sketch_size="auto",
            gradients="projected",
            batch_size=batch,
            shards=shards,
            progress=False,
        )
        for shards in (1, 2)
        for batch in (32, 256)
    }
    assert {rows_of(selection) for selection in found.values()} == {128}
    for shards in (1, 2):
        small, large = found[shards, 32], found[shards, 256]
        np.testing.assert_allclose(small.scores, large.scores, atol=1e-4)
        # Gradients of other batches are rounded otherwise, and herding compares nearly equal ones.
        assert len(np.intersect1d(small.indices, large.indices)) > 0.9 * len(small.indices)


@pytest.mark.parametrize(
    ("budget", "chosen", "rows"),
    [
        # 3.5 l d 4 bytes for the sketch, and 4 N l for what pass 2 keeps
        (40 * (14 * DIM + 4 * N), {}, 40),
        (40 * (14 * DIM + 4 * N) - 1, {}, 39),
        (1_000, {"consensus": "exact"}, FIRST),  # it does not shrink
        # without the latter, but sums of 4 classes
        (40 * 14 * DIM + 16 * DIM, {"consensus": "streaming"}, 40),
        (40 * 14 * DIM + 16 * DIM - 1, {"consensus": "streaming"}, 39),
        (40 * 14 * DIM + 4 * DIM, {"consensus": "streaming", "labels": None}, 40),
        # three sketches wait for each other
        (20 * (3 * 14 * DIM + 4 * N), {"shards": 4}, 20),
    ],
)
def test_the_memory_budget_is_kept(budget: int, chosen: dict[str, Any], rows: int) -> None:
    assert rows_of(select(examples(0.0), memory_budget=budget, **chosen)) == rows


def test_what_the_first_rows_make_exact_stays_exact() -> None:
    asked = Options(0.2, sketch_size="auto", memory_budget=4 * FIRST * N)
    assert not modes.Mode.of(asked, N).is_streaming
    assert modes.Mode.of(asked, N + 1).is_streaming


def test_it_never_exceeds_the_gradients_length() -> None:
    rows, labels = examples(0.0).tensors
    selection = select(TensorDataset(rows[:, :40].clone(), labels))
    assert rows_of(selection) == 40
    certificate = selection.certificate
    assert certificate is not None
    # All that was lost, fewer rows lost; from there on nothing was.
    assert certificate.shrinkage > 0
    few = TensorDataset(rows[:100, :40].clone(), labels[:100])
    assert rows_of(select(few)) == FIRST  # half of them have been seen before it is time to look


@pytest.mark.parametrize("place", [63, 64, 65, 200])
def test_a_bad_gradient_is_named(place: int) -> None:
    data = examples(0.0)
    bad = int(SeededOrder(cut(N, 1)[0], 0).indices(place, 1)[0])
    data.tensors[0][bad] = torch.nan
    with pytest.raises(SageError, match=f"example {bad} of the data set") as caught:
        select(data, batch_size=150)
    assert caught.value.index == bad


@pytest.mark.parametrize("mode", ["exact", "streaming"])
@pytest.mark.parametrize(("shards", "reads"), [(1, 2), (1, 3), (1, 7), (1, 25), (3, 4), (3, 12)])
def test_a_stopped_selection_goes_on(tmp_path: Path, mode: str, shards: int, reads: int) -> None:
    """Stopped before, at, between and after the places where it looks, and in pass 2."""

    class Failing(Counting):
        def __call__(self, items: Any) -> Any:
            if self.batches >= reads:
                raise OSError("gone")
            return super().__call__(items)

    def again(**chosen: Any) -> Selection:
        return select(examples(0.0), consensus=mode, shards=shards, batch_size=32, **chosen)

    expected = again()
    folder = tmp_path / "snapshots"
    with pytest.raises(OSError, match="gone"):
        again(checkpoint=folder, collate_fn=Failing(tmp_path / f"first-{reads}"))
    counting = Counting(tmp_path / "second")
    assert_same(again(checkpoint=folder, collate_fn=counting), expected)
    assert rows_of(expected) == (64 if shards == 1 else 32)
    whole = 2 * shards * -(-(N // shards + 1) // 32) + 2  # and the probe, twice
    assert counting.batches <= whole - reads + 2


def test_a_snapshot_of_another_size_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = examples(0.0)
    expected = select(data, shards=3, batch_size=32)

    class Failing(Counting):
        def __call__(self, items: Any) -> Any:
            if self.batches >= 10:  # in the second shard
                raise OSError("gone")
            return super().__call__(items)

    chosen: dict[str, Any] = {"shards": 3, "batch_size": 32, "checkpoint": tmp_path / "a"}
    with monkeypatch.context() as patched:
        patched.setattr(growth, "TARGET", 1.0)  # as rows that are rounded otherwise might
        with pytest.raises(OSError, match="gone"):
            select(data, collate_fn=Failing(tmp_path / "read"), **chosen)
    (tmp_path / "a" / "shard-00000-sketch.npz").unlink()
    with pytest.warns(UserWarning, match="expected 32 to 32 rows of a sketch, got 8"):
        assert_same(select(data, **chosen), expected)


def test_a_sampler_passes_it_on() -> None:
    rows, labels = examples(0.5).tensors
    model = nn.Linear(DIM, 4)
    sampler = SageSampler(model, TensorDataset(rows, labels), keep=0.1, sketch_size="auto")
    list(DataLoader(TensorDataset(rows, labels), batch_size=50, sampler=sampler))
    assert sampler.selection is not None
    assert sampler.selection.settings["sketch_size"] == "auto"
    assert rows_of(sampler.selection) >= FIRST


@pytest.mark.parametrize(("classes", "expected"), [(3, 16), (20, 40), (50, 64)])
def test_beside_features_fewer_rows_do(
    classes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "FIRST_ROWS", 64)
    model, rows = nn.Linear(40, classes), torch.randn(400, 40)
    data = TensorDataset(rows, torch.arange(400) % classes)
    beside = select_subset(model, data, 0.5, progress=False)
    alone = select_subset(model, data, 0.5, gradients="last_layer", trim=None, progress=False)
    assert beside.settings["sketch_size"] is alone.settings["sketch_size"] is None
    assert (rows_of(beside), rows_of(alone)) == (expected, 64)
    asked = select_subset(model, data, 0.5, sketch_size=8, progress=False)
    assert rows_of(asked) == asked.settings["sketch_rows"] == 8


@pytest.mark.parametrize("wrong", ["automatic", 0, -3, True, 2.5])
def test_other_sizes_are_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="sketch_size"):
        select(sketch_size=wrong)


def test_a_stream_refuses_it() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(ValueError, match=r"number of rows, got 'auto'.*only selections"):
        SageStream(nn.Linear(2, 2), Stream(), sketch_size="auto")  # type: ignore[arg-type]


def test_one_pass_goes_along_as_the_sketch_grows() -> None:
    one, other = (select(consensus="one_pass", batch_size=size) for size in (32, 256))
    assert rows_of(one) == rows_of(other) > FIRST
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    fixed = select(consensus="one_pass", sketch_size=rows_of(one))
    exact = select(sketch_size=rows_of(one))
    near, at_best = (np.corrcoef(of.scores, exact.scores)[0, 1] for of in (one, fixed))
    assert near > at_best - 0.1
