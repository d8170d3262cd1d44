"""A frozen parameter that `forward` writes to is what it was, however the selection ends."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forward_writes import clamp_data, clamp_without_grad, drift, rebind
from model_state import CLASSES, bits, kinds, registered, step, vectors
from process_state import process_state
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sage_torch import select_subset
from sage_torch.gradients import FunctionalGradients, LastLayerGradients
from sage_torch.gradients.writes import writes_undone


class Broken(Exception):
    """An error of the user's own code."""


def one_entry(weight: nn.Parameter) -> None:
    weight.data[2, 3] += 1


def into_out(weight: nn.Parameter) -> None:
    F.normalize(weight.data, dim=0, out=weight.data)


def several(weight: nn.Parameter) -> None:
    torch._foreach_mul_([weight.data[0], weight.data[4]], 0.5)


WRITES = [clamp_data, clamp_without_grad, rebind, drift, one_entry, into_out, several]


class Written(nn.Module):
    """Writes to a frozen weight at each call, and fails at one of them."""

    def __init__(self, write: Callable[[nn.Parameter], object], fails_at: int = -1) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.first.weight.requires_grad_(False)
        self.write, self.fails_at, self.seen = write, fails_at, [0]

    def forward(self, x: Tensor) -> Any:
        self.write(self.first.weight)
        self.seen[0] += 1
        if self.seen[0] == self.fails_at:
            raise Broken
        return self.head(torch.tanh(self.first(x)))


def select(model: nn.Module, kind: str, data: Any = None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = vectors() if data is None else data
        select_subset(model, data, 0.5, gradients=kind, batch_size=8, progress=False)  # type: ignore[arg-type]


@kinds
@pytest.mark.parametrize("write", WRITES)
def test_a_selection_and_the_next_step(write: Callable[[nn.Parameter], None], kind: str) -> None:
    torch.manual_seed(0)
    model = Written(write)
    twin = copy.deepcopy(model)
    before, values, process = registered(model), bits(model), process_state()
    select(model, kind)
    assert registered(model) == before
    assert bits(model) == values
    assert process_state() == process
    assert step(model, vectors()) == step(twin, vectors())


@kinds
@pytest.mark.parametrize("fails_at", [2, 5, 9])
def test_an_error(fails_at: int, kind: str) -> None:
    torch.manual_seed(0)
    model = Written(clamp_data, fails_at)
    twin = copy.deepcopy(model)
    before, values, process = registered(model), bits(model), process_state()
    with pytest.raises(Broken):
        select(model, kind)
    assert (registered(model), bits(model), process_state()) == (before, values, process)
    model.fails_at = twin.fails_at = -1
    assert step(model, vectors()) == step(twin, vectors())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@kinds
@pytest.mark.parametrize("write", [drift, rebind])
def test_ctrl_c_whose_traceback_is_kept(write: Callable[[nn.Parameter], None], kind: str) -> None:
    torch.manual_seed(0)
    model = Written(write)
    twin, total = copy.deepcopy(model), calls_of(lambda: select(model, kind))
    before, values, process = registered(model), bits(model), process_state()
    kept: list[KeyboardInterrupt] = []
    for at in range(total // 17, total * 3 // 4, total // 17):
        try:  # Python ignores an interrupt while it lets go of a generator: then it was there
            assert calls_of(lambda: select(model, kind), at) == at
        except KeyboardInterrupt as error:
            kept.append(error)  # as Python's prompt keeps it
        assert (registered(model), bits(model), process_state()) == (before, values, process), at
    assert len(kept) > 6
    assert step(model, vectors()) == step(twin, vectors())


def calls_of(run: Callable[[], object], at: int = -1) -> int:
    """Count the calls of Python functions, and raise KeyboardInterrupt at one of them."""
    calls, before = 0, sys.gettrace()

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            sys.settrace(None)
            raise KeyboardInterrupt

    sys.settrace(count)
    try:
        run()
    finally:
        sys.settrace(before)
    return calls


class PowerIteration(nn.Module):
    """Spectral norm as it is written by hand: the vectors are frozen parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.u, self.v = (nn.Parameter(torch.randn(6), requires_grad=False) for _ in range(2))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            self.v.data = F.normalize(self.weight.mT @ self.u, dim=0)
            self.u.copy_(F.normalize(self.weight @ self.v, dim=0))
        sigma = self.u @ self.weight @ self.v
        return self.head(torch.tanh(x @ (self.weight / sigma).mT))


@kinds
def test_power_iteration_of_frozen_vectors(kind: str) -> None:
    torch.manual_seed(0)
    model = PowerIteration()
    twin = copy.deepcopy(model)
    before, values = registered(model), bits(model)
    select(model, kind)
    assert (registered(model), bits(model)) == (before, values)
    assert step(model, vectors()) == step(twin, vectors())


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("is_trained", [False, True])
def test_data_set_in_forward_is_no_crash_of_vmap(is_trained: bool, n: int) -> None:
    torch.manual_seed(0)
    model = Written(rebind).eval()
    model.first.weight.requires_grad_(is_trained)
    values, (inputs, targets) = bits(model), vectors().tensors
    batch = inputs[:n], targets[:n]
    with pytest.warns(UserWarning, match="sets .data of a parameter"):
        rows = FunctionalGradients(model, params=["head*"])(batch)
    assert bits(model) == values
    expected = LastLayerGradients(model, layer="head")(batch)
    torch.testing.assert_close(rows, expected)


class Copies(TorchDispatchMode):
    """Counts what has as many entries as a tensor and is made or written by a copy."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries, self.found = entries, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_copy = any(name in str(func) for name in ("clone", "copy", "empty_like"))
        if is_copy and isinstance(result, Tensor):
            self.found += result.numel() == self.entries
        return result


@kinds
def test_a_frozen_base_is_not_copied(kind: str) -> None:
    model = nn.Sequential(nn.Linear(6, 1009), nn.Tanh(), nn.Linear(1009, CLASSES))
    model[0].requires_grad_(False)
    with Copies(6 * 1009) as copies:
        select(model, kind)
    assert copies.found == 0
    model[0].requires_grad_(True)
    with Copies(6 * 1009) as copies:
        select(model, kind)
    assert copies.found > 0  # so that it would be seen


def test_only_what_is_written_to_is_copied() -> None:
    both = [nn.Parameter(torch.ones(3, 2), requires_grad=False) for _ in range(2)]
    with writes_undone(both) as changed:
        both[1].data[0] = 7
    assert len(changed) == 1
    assert changed[0].parameter is both[1]
    assert not changed[0].is_rebound
    assert all(parameter.eq(1).all() for parameter in both)


def test_parameters_that_share_their_memory() -> None:
    flat = torch.arange(12.0)
    parts = [nn.Parameter(flat[:6].view(2, 3), False), nn.Parameter(flat[6:], False)]
    with writes_undone(parts) as changed:
        flat.zero_()
    assert [one.parameter is part for one, part in zip(changed, parts, strict=True)] == [True, True]
    assert torch.equal(flat, torch.arange(12.0))


def test_a_later_batch_finds_the_weights_of_the_user() -> None:
    torch.manual_seed(0)
    model = Written(drift).eval()
    computer, (inputs, targets) = LastLayerGradients(model), vectors().tensors
    rows = [computer((inputs, targets)) for _ in range(12)]
    assert all(torch.equal(row, rows[0]) for row in rows)
