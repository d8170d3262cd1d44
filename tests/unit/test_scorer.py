"""`Scorer`: one call does what project, agreement, margin, consensus and block stream do apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sage_torch import FrequentDirections, SageError, _core

N, DIM, SIZE, CLASSES, FIRST = 60, 40, 8, 3, 100
IDS = (np.arange(N) % CLASSES).astype(np.int32)
INDICES = FIRST + np.random.default_rng(0).permutation(N)


def rows() -> torch.Tensor:
    return torch.randn(N, DIM, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def sketch() -> FrequentDirections:
    made = FrequentDirections(SIZE, DIM)
    made.update(rows())
    return made


def directions(seed: int) -> Any:
    drawn = np.random.default_rng(seed).normal(size=(CLASSES, SIZE))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def stream() -> _core.BlockStream:
    counts = np.full(CLASSES, N // CLASSES)
    return _core.BlockStream(counts, counts // 4, width=SIZE, trim="negative", block_size=7)


def scorer(sketch: FrequentDirections, of: dict[str, Any], **more: Any) -> _core.Scorer:
    of |= {name: np.full(N, np.nan, np.float32) for name in ("weighted", "orthonormal", "margins")}
    return _core.Scorer(
        sketch.singular_values(),
        (directions(1), of["weighted"]),
        (directions(2), of["orthonormal"]),
        of["margins"],
        **{"first": FIRST, **more},
    )


@pytest.mark.parametrize("is_sketched", [False, True])
def test_a_batch_is_scored_as_its_parts_are(sketch: FrequentDirections, is_sketched: bool) -> None:
    found: dict[str, Any] = {}
    ours, of_ours, of_parts = scorer(sketch, found), stream(), stream()
    z = sketch.sketched(rows())
    assert np.array_equal(z, sketch.project(rows()).numpy())
    values = sketch.singular_values()
    turned = z * np.divide(1, values, out=np.zeros(SIZE), where=values > 0).astype(np.float32)
    for part in (slice(0, 25), slice(25, N)):
        batch = IDS[part], INDICES[part]
        if is_sketched:
            ours.score_sketched(z[part], *batch, of_ours)
        else:
            assert np.array_equal(ours.score(sketch, rows()[part], *batch, of_ours), z[part])
        margins = _core.margin(z[part], IDS[part], directions(1))
        of_parts.add(turned[part], margins, *batch)
        places = INDICES[part] - FIRST
        assert np.array_equal(found["margins"][places], margins)
        expected = _core.agreement(z[part], IDS[part], directions(1))
        assert np.array_equal(found["weighted"][places], expected)
        expected = _core.agreement(turned[part], IDS[part], directions(2))
        assert np.array_equal(found["orthonormal"][places], expected)
    assert np.array_equal(of_ours.finish()[0], of_parts.finish()[0])
    for coordinates, orthonormal in ((z, False), (turned, True)):
        exact = _core.Consensus(CLASSES, SIZE)
        exact.add(coordinates, IDS)
        assert np.array_equal(ours.exact_sums(orthonormal=orthonormal), exact.sums())


def test_what_does_not_fit_is_refused(sketch: FrequentDirections) -> None:
    found: dict[str, Any] = {}
    ours = scorer(sketch, found)
    with pytest.raises(ValueError, match="expected examples 100 to 160, got 160"):
        ours.score(sketch, rows(), IDS, INDICES + 1)
    with pytest.raises(ValueError, match="one index an example, got 59 of 60"):
        ours.score(sketch, rows(), IDS, INDICES[1:])
    with pytest.raises(ValueError, match=r"class ids in \[0, 3\), got 3"):
        ours.score(sketch, rows(), IDS + 1, INDICES)
    with pytest.raises(ValueError, match="no more members of a class than were"):
        ours.score(sketch, rows(), np.zeros_like(IDS), INDICES, stream())
    broken = rows()
    broken[17, 3] = torch.nan
    with pytest.raises(SageError, match="a NaN or an infinite") as caught:
        ours.score(sketch, broken, IDS, INDICES)
    assert caught.value.row == 17
    assert np.isnan(found["weighted"]).all()
    empty = np.empty(N, np.float32)
    with pytest.raises(ValueError, match="as many scores as margins"):
        _core.Scorer(sketch.singular_values(), (directions(1), empty[1:]), None, empty, first=0)
    plain = _core.Scorer(sketch.singular_values(), (directions(1), empty), None, empty, first=0)
    with pytest.raises(ValueError, match="a basis that was scored"):
        plain.exact_sums(orthonormal=True)
