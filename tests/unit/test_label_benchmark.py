"""What the benchmark of wrong labels counts, and that it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import labels
from benchmarks.quality.trials import Condition, problem
from benchmarks.record import of


def test_metrics_are_what_they_are_called() -> None:
    truth = np.array([0, 0, 1, 1, 2, 2])
    is_wrong = np.array([True, True, True, False, False, False])
    is_issue = np.array([True, True, False, True, False, False])
    suspicion = np.array([0.9, 0.8, 0.3, 0.7, 0.2, 0.1])
    predicted = np.array([0, 2, 1, 0, 0, 0])
    common = np.array([False, True, True, False, False, False])
    found = labels.metrics(is_issue, suspicion, predicted, truth, is_wrong, common)
    assert found["auroc"] == pytest.approx(8 / 9)
    assert (found["precision"], found["recall"]) == pytest.approx((2 / 3, 2 / 3))
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["flagged"] == 0.5
    assert found["suggestions"] == 0.5  # of the two in common
    assert found["corrected"] == pytest.approx(1 / 3)  # flagged, with the true label beside it
    none = np.zeros(6, bool)
    nothing = labels.metrics(none, suspicion, predicted, truth, is_wrong, none)
    assert (nothing["precision"], nothing["f1"], nothing["suggestions"]) == (0, 0, 0)
    assert nothing["corrected"] == 0


def test_no_network_is_asked_about_what_it_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    condition = Condition("digits", noise=0.2)
    given = problem(condition, 0, None)
    learnt: list[set[int]] = []

    def trained(condition: object, given: object, seed: int, examples: object, epochs: int) -> int:
        learnt.append(set(examples.tolist()))  # type: ignore[attr-defined]
        return len(learnt)

    def asked(model: int, given: object, examples: object) -> object:
        assert not learnt[model - 1] & set(examples.tolist())  # type: ignore[attr-defined]
        return np.full((len(examples), 10), float(model))  # type: ignore[arg-type]

    monkeypatch.setattr(labels, "trained", trained)
    monkeypatch.setattr(labels, "probabilities", asked)
    found = labels.of_two_folds(condition, given, 0, 1)
    assert set(np.unique(found)) == {1.0, 2.0}
    assert learnt[0] | learnt[1] == set(range(len(given)))


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pytest.importorskip("cleanlab")
    out = tmp_path / "labels.json"
    labels.main("digits", None, seeds=1, first_seed=300, pool=300, out=out)
    before = json.loads(out.read_text())["results"]
    assert len(before) == len(labels.NOISES) * (len(labels.SHOWN) + 1)
    ours, theirs = (of(before, way=way)[0] for way in (labels.AS_MANY, labels.IN_SAMPLE))
    assert ours["flagged"] == theirs["flagged"]
    labels.main("digits", None, seeds=2, first_seed=300, pool=300, out=out)
    after = json.loads(out.read_text())["results"]
    assert after[: len(labels.SHOWN) + 1] == before[: len(labels.SHOWN) + 1]
    assert len(after) == 2 * len(before)
