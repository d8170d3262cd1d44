"""However a selection ends, every model of the zoo is as it was, and trains as one never used."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable
from contextlib import _GeneratorContextManager
from types import FrameType
from typing import Any

import pytest
import torch
from model_state import bits
from process_state import process_state
from torch import Tensor, nn
from torch._dynamo.decorators import set_stance
from torch.overrides import TorchFunctionMode, handle_torch_function
from zoo import ZOO, Case

from sage_torch import select_subset
from sage_torch.gradients import unwrap
from sage_torch.gradients.batches import places, tensor_leaves

KINDS = ("functional", "projected")  # and now and then "last_layer", which fits few
LARGE = {"resnet18", "resnet50", "mobilenet", "shufflenet"}  # layers of other cases, many times
CASES = [case for case in ZOO if case.name not in LARGE]


class Broken(Exception):
    """An error of the user's own code."""


class Interrupts:
    """Raises KeyboardInterrupt at the n-th call of any Python function, as Ctrl-C may."""

    def __init__(self, at: float = float("inf")) -> None:
        self.at, self.calls = at, 0

    def __enter__(self) -> Interrupts:
        self.before = sys.gettrace()
        sys.settrace(self._count)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self.before)

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        self.calls += 1
        if self.calls == self.at:
            sys.settrace(None)
            raise KeyboardInterrupt


def contents(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return id(tensor), dense.contiguous().numpy().tobytes()


def state_of(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        state[f"{name}: mode"] = module.training
        state[f"{name}: children"] = [(key, id(child)) for key, child in module.named_children()]
        for key, buffer in module._buffers.items():
            state[f"{name}: buffer {key}"] = contents(buffer)
        for key, p in module._parameters.items():
            state[f"{name}: parameter {key}"] = contents(p)
            if p is not None:
                hooks = len(p._backward_hooks or ()), len(p._post_accumulate_grad_hooks or ())  # type: ignore[attr-defined]
                where = p.data_ptr() if p.layout is torch.strided else None
                state[f"{name}: {key}"] = (where, p.requires_grad, contents(p.grad), hooks)
        for key, value in vars(module).items():
            if "_hooks" in key and isinstance(value, dict):
                state[f"{name}: {key}"] = list(value.items())
    return state


def train(model: nn.Module, case: Case, batch: Any) -> list[bytes]:
    """Take a training step as the user would, and return the bits of all weights."""
    torch.manual_seed(5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01)
    optimizer.zero_grad()
    torch.autograd.backward(case.loss(model, batch).sum())
    optimizer.step()
    return bits(unwrap(model))


def disturbed(model: nn.Module) -> None:
    """Leave a model as in the midst of training: gradients, and modes that differ."""
    generator = torch.Generator().manual_seed(7)
    first = next(p for p in model.parameters() if p.requires_grad)
    first.grad = torch.randn(first.shape, generator=generator).to(first.dtype)
    for number, module in enumerate(model.modules()):
        if not isinstance(module, torch.jit.ScriptModule):
            module.training = number % 3 == 0


def half_frozen(model: nn.Module) -> None:
    """Freeze every other parameter that is trained, so that writes to them are watched for."""
    for parameter in [p for p in model.parameters() if p.requires_grad][1::2]:
        parameter.requires_grad_(False)


def select(model: nn.Module, case: Case, batch: Any, kind: str, breaks_at: float) -> int:
    """Select with the examples of a batch; return how many batches were read."""
    read = 0

    def collate(indices: list[int]) -> Any:
        nonlocal read
        read += 1
        if read == breaks_at:
            raise Broken
        return places(batch, indices)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the loop announces itself, and items of chance
        select_subset(
            model, range(len(tensor_leaves(batch)[0])), 0.5, loss=case.loss, gradients=kind,
            collate_fn=collate, batch_size=4, class_balanced=False, progress=False,
        )  # fmt: skip
    return read


def attempt(run: Callable[[], object]) -> str:
    """Run, and say how it ended. The error is let go, and what it held with it."""
    try:
        run()
    except (Broken, KeyboardInterrupt, ValueError, RuntimeError) as error:
        return type(error).__name__
    return "selected"


@pytest.mark.parametrize(
    ("case", "number"),
    list(zip(CASES, range(len(CASES)), strict=True)),
    ids=lambda value: getattr(value, "name", ""),
)
def test_zoo(case: Case, number: int) -> None:
    model, batch = case.make()
    twin, _ = case.make()
    inner, draw = unwrap(model), random.Random(number)
    kind = KINDS[number % 2] if number % 7 else "last_layer"
    if number % 5 == 1:
        half_frozen(model), half_frozen(twin)
    disturbed(model), disturbed(twin)
    before = state_of(inner)

    def run(breaks_at: float = float("inf")) -> str:
        return attempt(lambda: select(model, case, batch, kind, breaks_at))

    with Interrupts() as counted:
        ended = run()
    assert ended == "selected" or kind == "last_layer"
    assert state_of(inner) == before
    if number % 3 == 0 and ended == "selected":
        assert run(draw.randint(1, 3)) == "Broken"  # the look for features, and one pass at least
        assert state_of(inner) == before
    # What is made once makes later runs a little shorter.
    with Interrupts(draw.randint(1, counted.calls * 3 // 4)) as interrupted:
        run()
    assert interrupted.calls == interrupted.at
    assert state_of(inner) == before
    assert train(model, case, batch) == train(twin, case, batch)


EXITS = (TorchFunctionMode.__exit__.__code__, set_stance.__exit__.__code__)


class InterruptsOfModes(Interrupts):
    """Raises KeyboardInterrupt as the n-th mode of torch or of its compiler is about to be left."""

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        code, caller = frame.f_code, frame.f_back
        is_exit = code is _GeneratorContextManager.__exit__.__code__ and caller is not None
        is_pause = is_exit and caller.f_code is handle_torch_function.__code__  # type: ignore[union-attr]
        if is_pause or code in EXITS:
            super()._count(frame, event, argument)


@pytest.mark.parametrize("at", [*range(1, 11), 20])
@pytest.mark.parametrize("name", ["linear", "attention"])
def test_no_mode_stays(name: str, at: int) -> None:
    case = next(case for case in CASES if name in case.name)
    model, batch = case.make()
    before = process_state()
    with InterruptsOfModes(at) as interrupted:
        attempt(lambda: select(model, case, batch, "projected", float("inf")))
    assert interrupted.calls == at
    assert process_state() == before


def test_a_difference_would_be_seen() -> None:
    model, batch = CASES[0].make()
    twin, _ = CASES[0].make()
    before = state_of(model)
    first = next(model.parameters())
    with torch.no_grad():
        first.view(-1)[0] += 1e-6
    assert state_of(model) != before
    assert train(model, CASES[0], batch) != train(twin, CASES[0], batch)
