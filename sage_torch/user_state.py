"""The user's state is sacred: whatever a selection does, it is afterwards what it was before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
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
    training = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, dict(module._buffers), set(module._non_persistent_buffers_set))
        for module in model.modules()
    ]
    contents = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    randomness = _random_states()
    try:
        model.eval()
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, flag in training:
            module.training = flag
        for module, by_name, not_persistent in buffers:
            module._buffers.clear()
            module._buffers.update(by_name)  # those that forward has added go again
            module._non_persistent_buffers_set = not_persistent
        for buffer, content in contents:
            if not _same_bytes(buffer, content):
                with torch.no_grad():
                    buffer.copy_(content)
        for parameter, requires_grad, grad in parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad
        _restore(randomness)


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


def _restore(states: tuple[Tensor, list[Tensor], Any, Any]) -> None:
    cpu, cuda, numpy, python = states
    torch.random.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
    np.random.set_state(numpy)  # noqa: NPY002
    random.setstate(python)


def _same_bytes(buffer: Tensor, content: Tensor) -> bool:
    if buffer.shape != content.shape:
        return False
    first, second = (t.detach().contiguous().view(-1).view(torch.uint8) for t in (buffer, content))
    return torch.equal(first, second)
