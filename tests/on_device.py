"""Run the sketch's tests on another device: `pytest --device cuda`.

With `--device D` the sketches of `backend="torch"` in the tests live on D. What a test gives is
moved there, and what a sketch returns comes back, so that no test has to know. `--device cpu` shows
that the moving itself changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import sage_torch


def moved(value: Any, device: str) -> Any:
    """A tensor, or the tensors in a dictionary, on a device; a sketch without its wrapping."""
    if isinstance(value, Tensor):
        return value.to(device) if value.layout is torch.strided and not value.is_meta else value
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    return value.inner if isinstance(value, OnDevice) else value


class OnDevice:
    """A sketch on a device that is used as if it were on the CPU."""

    def __init__(self, inner: sage_torch.FrequentDirections, device: str) -> None:
        self.inner, self.place = inner, device

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            given = [moved(argument, self.place) for argument in arguments]
            return moved(found(*given, **moved(options, self.place)), "cpu")

        return call

    def __repr__(self) -> str:
        return repr(self.inner)


class Sketches:
    """Stands for the class `FrequentDirections` in a test module."""

    def __init__(self, device: str) -> None:
        self.place = device

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if options.get("backend") != "torch" or "device" in options:
            return sage_torch.FrequentDirections(*arguments, **options)
        inner = sage_torch.FrequentDirections(*arguments, **options, device=self.place)
        return OnDevice(inner, self.place)

    def __getattr__(self, name: str) -> Any:
        return getattr(sage_torch.FrequentDirections, name)
