"""The user's state is sacred: whatever a selection does, it is afterwards what it was before."""

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
    """Put the model into evaluation mode and restore everything on the way out, errors included.

    Restored: each module's training flag, buffers (object and content), `requires_grad` and `.grad`
    of parameters, the random states of torch (CPU, and CUDA once it is initialised), NumPy and
    Python, and the grad and inference modes. Autocast and TF32 are the user's and not touched here.

    Args:
        model: The module that is about to be evaluated.

    Cost:
        A copy of the buffers.
    """
    with ExitStack() as stack:
        # Each is called on the way out, whether or not another one fails.
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
    """Seed the global generators, so that random transforms repeat themselves in each pass.

    Call it inside `preserved` only. CUDA's generators are seeded once CUDA is initialised: before,
    torch would keep the seed for later and override the user's.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        for generator in torch.cuda.default_generators:
            generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (the user's transforms draw from the global one)
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
    module._buffers.update(buffers)  # those that forward has added go again
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
