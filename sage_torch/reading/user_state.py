"""Restores the state of the model and of the process that a selection may change."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Set the model to evaluation mode, and restore its state on exit, even after an error.

    It restores the training flag of each module, buffers (object and content), `requires_grad` and
    `.grad` of parameters, the random states of torch (CPU, and CUDA once it is initialised), NumPy
    and Python, and the grad and inference modes. It does not change autocast and TF32.

    Cost:
        A copy of the buffers.
    """
    with ExitStack() as stack:
        # The stack calls each of these on exit, even if another one fails.
        stack.callback(_restore_randomness, _random_states())
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
            stack.callback(
                _restore_registry, module, dict(module._buffers), module._non_persistent_buffers_set
            )
            module._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
        for buffer in model.buffers():
            stack.callback(_restore_content, buffer, buffer.detach().clone())
        for parameter in model.parameters():
            stack.callback(_restore_parameter, parameter, parameter.requires_grad, parameter.grad)
        model.eval()
        with torch.inference_mode(False), torch.enable_grad():
            yield


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


def _restore_registry(
    module: nn.Module, buffers: dict[str, Tensor | None], not_persistent: set[str]
) -> None:
    module._buffers.clear()
    module._buffers.update(buffers)  # without those that forward has added
    module._non_persistent_buffers_set = not_persistent


def _restore_content(buffer: Tensor, content: Tensor) -> None:
    with torch.no_grad():
        if buffer.layout is not torch.strided or buffer.shape != content.shape:
            buffer.data = content
        elif not torch.equal(_bytes(buffer), _bytes(content)):
            buffer.copy_(content)


def _restore_parameter(parameter: nn.Parameter, requires_grad: bool, grad: Tensor | None) -> None:
    if parameter.requires_grad != requires_grad:
        parameter.requires_grad_(requires_grad)
    if parameter.grad is not grad:
        parameter.grad = grad


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
