"""`Scorer`: one call scores a batch, and adds it to the exact consensus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
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


def directions() -> Any:
    drawn = np.random.default_rng(1).normal(size=(CLASSES, SIZE))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def empty() -> Any:
    return np.full(N, np.nan, np.float32)


def test_scores_are_those_of_the_oracle(sketch: FrequentDirections) -> None:
    scores, margins = empty(), empty()
    scorer = _core.Scorer(directions(), scores, margins, first=FIRST)
    z = sketch.sketched(rows())
    assert np.array_equal(z, sketch.project(rows()).numpy())
    for part in (slice(0, 25), slice(25, N)):
        scorer.score(z[part], IDS[part], INDICES[part])
    places = INDICES - FIRST
    expected = reference.agreement(z, IDS, directions())
    np.testing.assert_allclose(scores[places], expected, atol=1e-6)
    expected = reference.margin(z, IDS, directions())
    np.testing.assert_allclose(margins[places], expected, atol=1e-6)
    exact = _core.Consensus(CLASSES, SIZE)
    exact.add(z, IDS)
    assert np.array_equal(scorer.exact_sums(), exact.sums())


def test_how_a_stream_is_cut_changes_no_bit(sketch: FrequentDirections) -> None:
    z, found = sketch.sketched(rows()), []
    for cuts in (1, 7, N):
        scores, margins = empty(), empty()
        scorer = _core.Scorer(directions(), scores, margins, first=FIRST)
        for part in np.array_split(np.arange(N), cuts):
            scorer.score(z[part], IDS[part], INDICES[part])
        found.append((scores.tolist(), margins.tolist(), scorer.exact_sums().tolist()))
    assert found[0] == found[1] == found[2]


def test_what_does_not_fit_is_refused(sketch: FrequentDirections) -> None:
    scores, margins, z = empty(), empty(), sketch.sketched(rows())
    scorer = _core.Scorer(directions(), scores, margins, first=FIRST)
    with pytest.raises(ValueError, match="expected examples 100 to 160, got 160"):
        scorer.score(z, IDS, INDICES + 1)
    with pytest.raises(ValueError, match="one index per example, got 59 of 60"):
        scorer.score(z, IDS, INDICES[1:])
    with pytest.raises(ValueError, match=r"class ids in \[0, 3\), got 3"):
        scorer.score(z, IDS + 1, INDICES)
    with pytest.raises(ValueError, match=r"shape \(n, 8\), got \[60, 7\]"):
        scorer.score(np.zeros((N, 7), np.float32), IDS, INDICES)
    broken = rows()
    broken[17, 3] = torch.nan
    with pytest.raises(SageError, match="a NaN or an infinite") as caught:
        sketch.sketched(broken)
    assert caught.value.row == 17
    assert np.isnan(scores).all()
    assert np.isnan(margins).all()
    assert not scorer.exact_sums().any()
    with pytest.raises(ValueError, match="as many scores as margins"):
        _core.Scorer(directions(), scores[1:], margins, first=0)
    with pytest.raises(ValueError, match="one class and one coordinate"):
        _core.Scorer(np.zeros((0, SIZE)), scores, margins, first=0)
