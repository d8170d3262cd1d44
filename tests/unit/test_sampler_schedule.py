"""Which epochs begin with a selection, and how long each is."""

from __future__ import annotations

from typing import Any

import pytest

from sage_torch.sampler.schedule import Schedule


def selected_at(schedule: Schedule, epochs: list[int]) -> list[int]:
    since, selected = -1, []
    for epoch in epochs:
        if not schedule.is_warming_up(epoch) and (not selected or schedule.is_due(epoch, since)):
            selected.append(epoch)
            since = epoch
    return selected


@pytest.mark.parametrize(
    ("refresh_every", "expected"),
    [
        (None, [2]),
        (1, [2, 3, 4, 5, 6, 7, 8]),
        (3, [2, 5, 8]),
        ((4, 5, 8).__contains__, [2, 4, 5, 8]),
        (lambda epoch: False, [2]),
    ],
)
def test_epochs_that_select(refresh_every: Any, expected: list[int]) -> None:
    assert selected_at(Schedule(2, refresh_every), list(range(9))) == expected


def test_a_period_that_was_jumped_over_is_made_up_for() -> None:
    assert selected_at(Schedule(0, 4), [0, 1, 7, 8, 9]) == [0, 7, 8]
    assert selected_at(Schedule(0, 4), [6, 7, 3, 4, 5, 8]) == [6, 8]


def test_a_callable_is_asked_of_the_coming_epoch_only() -> None:
    asked = []

    def refresh(epoch: int) -> bool:
        asked.append(epoch)
        return True

    schedule = Schedule(1, refresh)
    assert schedule.is_due(10**12, since=1)
    assert schedule.is_due(1, since=0)  # selected by hand in the warm-up
    assert not schedule.is_due(5, since=5)
    assert asked == [10**12]


def test_lengths() -> None:
    subset, fixed = Schedule(1), Schedule(1, length="fixed")
    assert [subset.indices_in(epoch, 25, 100) for epoch in range(3)] == [100, 25, 25]
    assert [fixed.indices_in(epoch, 25, 100) for epoch in range(3)] == [100, 100, 100]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": "full"}, 'length to be "subset" or "fixed", got \'full\''),
        ({"refresh_every": "drift"}, "refresh_every to be a whole number, a callable.*got 'drift'"),
        ({"refresh_every": 0}, "refresh_every of at least 1"),
        ({"warmup_epochs": -1}, "warmup_epochs of at least 0"),
    ],
)
def test_wrong_schedules_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Schedule(**options)
