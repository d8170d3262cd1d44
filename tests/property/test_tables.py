"""A table of any selection comes back from a file, bit for bit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sage_torch import Selection
from sage_torch.selection.table import TABLES, doubtful, table_bytes

LABELS = st.integers(-(2**63), 2**63 - 1)


def floats(low: float | None = None, high: float | None = None, **options: Any) -> Any:
    return st.floats(low, high, width=32, allow_infinity=False, **options)


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    total = draw(st.integers(1, 12))
    indices = np.array(sorted(draw(st.sets(st.integers(0, total - 1), min_size=1))))
    k = len(indices)

    def some(dtype: Any, count: int, elements: Any) -> Any:
        return draw(st.none() | arrays(dtype, count, elements=elements))

    labels = some(np.int64, total, LABELS)
    classes = 1 if labels is None else len(np.unique(labels))
    return Selection(
        indices=indices,
        scores=draw(arrays(np.float32, total, elements=floats(allow_nan=True))),
        labels=labels,
        certificate=None,
        seconds={},
        weights=some(np.float32, k, floats(1, 2.0**60)),
        margins=some(np.float32, total, floats(-1.5, 1)),
        probabilities=some(np.float32, total, floats(0, 1)),
        is_wrong=some(np.float32, total, floats(0, 1)),
        label_scores=some(np.float32, total, floats(0, 1)),
        settings={"rho": draw(st.none() | st.floats(0, 1))},
        predicted=some(np.int32, total, st.integers(0, classes - 1)),
        ranks=draw(st.none() | st.permutations(range(k)).map(np.array)),
        duplicate_of=some(np.int64, total, st.integers(-1, total - 1)),
    )


@settings(deadline=None, derandomize=True, max_examples=150)
@given(selection=selections(), ending=st.sampled_from(TABLES), only_issues=st.booleans())
def test_a_table_comes_back(selection: Selection, ending: str, only_issues: bool) -> None:
    frame = selection.to_frame()
    if only_issues and selection.is_label_issue is not None:
        frame = doubtful(frame)
    file = io.BytesIO(table_bytes(frame, ending))
    if ending == ".csv":
        again = pd.read_csv(file, dtype=frame.dtypes.to_dict())
    else:
        again = pd.read_parquet(file)
    pd.testing.assert_frame_equal(again, frame, check_exact=True)
    for name in ("label_score", "margin", "agreement", "weight"):
        for one, other in zip(frame[name], again[name], strict=True):
            assert (one is pd.NA and other is pd.NA) or one == other
