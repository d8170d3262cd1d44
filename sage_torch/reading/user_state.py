"""Restores the state of the model and of the process that a selection may change."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sage_torch.gradients.exchange import is_plain, same_bits
from sage_torch.gradients.modes import modes_left

_REGISTRIES = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")  # of a parameter


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Set the model to evaluation mode, and restore its state on exit, even after an error.

    It restores the attributes of each module (parameters, children and buffers as objects, hooks,
    the training flag), the content of buffers, `requires_grad`, `.grad` and hooks of parameters,
    the random states of torch (CPU, and CUDA once it is initialised), NumPy and Python, and the
    grad and inference modes. It does not change autocast and TF32. It does not copy parameters:
    gradient computers leave their content alone. After Ctrl-C it lets go of the local variables of
    what was interrupted, among them contexts that have more to restore.

    Cost:
        A copy of the buffers.
    """
    steps = _steps(model)
    try:
        model.eval()
        with modes_left(), torch.inference_mode(False), torch.enable_grad():
            yield
    except KeyboardInterrupt as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        try:
            _take(steps)
        except BaseException:  # Ctrl-C may strike in the middle
            _take(steps)
            raise


def seed_everything(seed: int) -> None:
    """Seed the global generators, so that random transforms give the same result in each pass.

    Call it only inside `preserved`. The generators of CUDA are seeded only if CUDA is initialised:
    otherwise torch would store the seed and later overwrite the state with it.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        for generator in torch.cuda.default_generators:
            generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (transforms draw from the global generator)
    random.seed(seed)


def _steps(model: nn.Module) -> list[Callable[[], object]]:
    """Return functions that restore everything; each may be called more than once."""
    steps: list[Callable[[], object]] = [partial(_restore_randomness, _random_states())]
    for module in model.modules():
        steps.append(partial(_restore_attributes, module, dict(vars(module))))
        for name, value in vars(module).items():  # of modules that are not TorchScript
            if isinstance(value, dict) and (name in _REGISTRIES or "_hooks" in name):
                steps.append(partial(_restore_entries, value, dict(value)))
        hidden = module._non_persistent_buffers_set
        steps.append(partial(_restore_members, hidden, set(hidden)))
        if hasattr(module, "training"):  # unlike frozen TorchScript
            steps.append(partial(setattr, module, "training", module.training))
    for buffer in model.buffers():
        if is_plain(buffer) and not buffer.is_meta:
            steps.append(partial(_restore_content, buffer, buffer.detach().clone()))
    for parameter in model.parameters():
        steps.append(partial(_restore_parameter, parameter, _state_of(parameter)))
    return steps


def _take(steps: list[Callable[[], object]]) -> None:
    """Take every step, even if another one fails."""
    errors: list[Exception] = []
    for step in steps:
        try:
            step()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _random_states() -> tuple[Tensor, list[Tensor], Any, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    numpy = np.random.get_state()  # noqa: NPY002
    return torch.random.get_rng_state(), cuda, numpy, random.getstate()


def _restore_randomness(states: tuple[Tensor, list[Tensor], Any, Any]) -> None:
    cpu, cuda, numpy, python = states
    torch.random.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    np.random.set_state(numpy)  # noqa: NPY002
    random.setstate(python)


def _restore_attributes(module: nn.Module, before: dict[str, Any]) -> None:
    attributes = vars(module)
    for name in attributes.keys() - before.keys():
        del attributes[name]
    for name, value in before.items():
        if name not in attributes or attributes[name] is not value:
            attributes[name] = value


def _restore_entries(entries: dict[Any, Any], before: dict[Any, Any]) -> None:
    if list(entries) != list(before) or any(entries[key] is not before[key] for key in before):
        entries.clear()
        entries.update(before)


def _restore_members(members: set[str], before: set[str]) -> None:
    members.clear()
    members.update(before)


def _restore_content(buffer: Tensor, content: Tensor) -> None:
    with torch.no_grad():
        if buffer.layout is not torch.strided or buffer.shape != content.shape:
            buffer.data = content
        elif not same_bits(buffer, content):
            buffer.copy_(content)


def _state_of(parameter: nn.Parameter) -> tuple[bool, Tensor | None, list[dict[Any, Any]]]:
    hooks = [dict(getattr(parameter, name) or {}) for name in _HOOKS]
    return parameter.requires_grad, parameter.grad, hooks


def _restore_parameter(
    parameter: nn.Parameter, before: tuple[bool, Tensor | None, list[dict[Any, Any]]]
) -> None:
    requires_grad, grad, hooks = before
    if parameter.requires_grad != requires_grad:
        parameter.requires_grad_(requires_grad)
    if parameter.grad is not grad:
        parameter.grad = grad
    for name, entries in zip(_HOOKS, hooks, strict=True):
        if getattr(parameter, name) is not None:
            _restore_entries(getattr(parameter, name), entries)
