"""A digest of the contents of data set items and models."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def digest(value: object) -> str:
    """Return a digest of 32 hexadecimal digits of tensors, arrays, containers or plain values."""
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()[:32]


def same_contents(first: object, second: object) -> bool:
    """Return whether two readings of items have the same digest."""
    return digest(first) == digest(second)


def _feed(found: Any, value: object) -> None:
    """Hash contents, not identities; for an object of unknown kind, hash its type."""
    if isinstance(value, Tensor):
        _feed_tensor(found, value)
    elif isinstance(value, (np.ndarray, np.generic)):
        array = np.ascontiguousarray(value)
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(array.tobytes() if array.dtype != object else repr(array).encode())
    elif isinstance(value, Mapping):
        for name, item in value.items():
            found.update(f"{name}:".encode())
            _feed(found, item)
    elif isinstance(value, (list, tuple)):
        found.update(f"[{len(value)}]".encode())
        for item in value:
            _feed(found, item)
    elif isinstance(value, bytes):
        found.update(value)
    elif isinstance(value, (str, int, float, complex, type(None))):
        found.update(repr(value).encode())
    elif hasattr(value, "__array__") or hasattr(value, "__array_interface__"):  # pictures
        _feed(found, np.asarray(value))
    elif is_dataclass(value):
        _feed(found, {field.name: getattr(value, field.name) for field in fields(value)})
    else:
        found.update(type(value).__qualname__.encode())


def _feed_tensor(found: Any, tensor: Tensor) -> None:
    if tensor.is_nested:  # it has no shape
        _feed(found, list(tensor.unbind()))
        return
    found.update(f"{tensor.dtype} {tensor.layout} {tuple(tensor.shape)}".encode())
    try:
        dense = tensor.detach()
        if dense.layout is not torch.strided:
            dense = dense.to_dense()
        flat = dense.cpu().resolve_conj().resolve_neg().contiguous().view(-1)
        found.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    except (RuntimeError, TypeError, NotImplementedError):
        pass  # the values cannot be read: meta tensors, exotic layouts
