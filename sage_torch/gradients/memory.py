"""The memory of a tensor, which views and aliases share."""

from __future__ import annotations

from torch import Tensor

__all__ = ["memory_of"]


def memory_of(tensor: Tensor) -> tuple[int, int]:
    """Return the address and the bytes of a tensor's memory; (0, 0) if it has none of its own."""
    storage = tensor.untyped_storage()
    try:
        return storage.data_ptr(), storage.nbytes()
    except RuntimeError:  # a quantised tensor, made of others
        return 0, 0
