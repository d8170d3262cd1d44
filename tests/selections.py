"""What two selections must have in common, and what a frozen one must refuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sage_torch import Selection

ARRAYS = (
    "indices", "scores", "labels", "weights", "margins", "singular_values", "probabilities",
)  # fmt: skip


def assert_same(first: Selection, second: Selection) -> None:
    for name in ARRAYS:
        one, other = getattr(first, name), getattr(second, name)
        if one is None:
            assert other is None
        else:
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes()
    if first.draws is None:
        assert second.draws is None
    else:
        assert second.draws is not None
        for epoch in (0, 1, 7):
            assert np.array_equal(first.epoch_indices(epoch), second.epoch_indices(epoch))
    assert first.certificate == second.certificate
    assert first.seconds == second.seconds
    assert first.settings == second.settings


def assert_frozen(selection: Selection) -> None:
    for field in dataclasses.fields(selection):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(selection, field.name, None)
    if selection.certificate is not None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            selection.certificate.shrinkage = 0.0  # type: ignore[misc]
    for array in (getattr(selection, name) for name in ARRAYS):
        if array is not None:
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0
