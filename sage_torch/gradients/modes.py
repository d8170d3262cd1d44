"""Modes of torch, which change what its functions do: entered, and left again for certain.

Where something is put back, it is done in a `try` of its own, and once more if Ctrl-C strikes
there. A function that did so would itself be open to an interrupt when it is called.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["full_precision", "modes_left", "outside_the_model"]


@contextmanager
def modes_left(*modes: TorchFunctionMode) -> Iterator[None]:
    """Enter modes; leave these and all that are entered within, even where Ctrl-C struck.

    A mode's own exit does not: it fails where the interrupt came while torch had set it aside.
    """
    before = torch._C._len_torch_function_stack()
    try:
        for mode in modes:
            mode.__enter__()
        yield
    except KeyboardInterrupt as error:
        # A function of torch that was interrupted enters a mode again when its frame is let go.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        while torch._C._len_torch_function_stack() > before:
            torch._C._pop_torch_function_stack()


@contextmanager
def outside_the_model(device: torch.device) -> Iterator[None]:
    """Compute without modes, without a graph and in full precision."""
    with torch._C.DisableTorchFunction(), torch.no_grad(), full_precision(device):
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute without autocast."""
    with ExitStack() as stack:
        for kind in {"cpu", device.type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
