"""Epochs by worth: exactly the quotas, whatever the masses, and the same from any process."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_torch.selection import inclusion
from sage_torch.selection.draws import Draws

shares = st.floats(0, 1, width=32)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_epochs_have_the_quotas_and_no_repeats(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any))
    quotas = [data.draw(st.integers(0, size)) for size in sizes]
    quotas = quotas if any(quotas) else sizes
    total, there = sum(sizes), np.flatnonzero(sizes)
    order = np.array(data.draw(st.permutations(range(total))))
    hard, right = (
        np.array(data.draw(st.lists(shares, min_size=total, max_size=total)), np.float32)
        for _ in range(2)
    )
    draws = Draws(
        draw="rotate",
        order=order,
        starts=np.cumsum([0, *(sizes[one] for one in there)]),
        classes=there.astype(np.int64),
        quotas=np.array(quotas),
        seed=data.draw(st.integers(0, 2**63 - 1)),
        is_herded=False,
        hard=hard,
        right=right,
        exponent=data.draw(shares),
    )
    classes = np.empty(total, int)
    classes[order] = np.repeat(there, np.array(sizes)[there])
    for epoch in (0, 1, data.draw(st.integers(0, 2**40))):
        drawn = draws.epoch(epoch)
        assert (np.diff(drawn) > 0).all()
        assert np.bincount(classes[drawn], minlength=len(sizes)).tolist() == quotas
        assert np.array_equal(draws.epoch(epoch), drawn)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40), st.data())
def test_inclusion_follows_the_masses(masses: list[float], data: st.DataObject) -> None:
    quota = data.draw(st.integers(1, len(masses)))
    found = inclusion.probabilities(np.array(masses), quota)
    assert abs(found.sum() - quota) < 1e-6
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found[np.argsort(masses, kind="stable")]) >= -1e-12).all()
