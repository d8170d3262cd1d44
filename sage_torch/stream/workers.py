"""Reads a stream's examples batch by batch, with workers or without."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

_ALIGNMENT = 16  # bytes: a tensor of any dtype may begin at a multiple

Example = Any  # anything that the stream yields


def read(
    stream: IterableDataset[Any], *, batch_size: int, num_workers: int, seed: int
) -> Iterator[list[Example]]:
    """Yield the stream's examples in lists of `batch_size` (a worker's last one may be shorter).

    Args:
        stream: With workers, it shards itself by `torch.utils.data.get_worker_info()`, as in any
            DataLoader.
        batch_size: Examples in a list.
        num_workers: Worker processes.
        seed: Seed of the workers' own generators; no global random number is drawn.
    """
    loader: DataLoader[Any] = DataLoader(
        stream,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=pack if num_workers else _as_list,
        generator=torch.Generator().manual_seed(seed),
    )
    with torch.device("cpu"):  # the generator is there, whatever torch's default device
        reading = iter(loader)
    for examples in reading:
        yield unpack(*examples) if num_workers else examples


def pack(examples: list[Example]) -> tuple[bytes, Tensor]:
    """Return examples as bytes and one uint8 tensor that holds the content of all their tensors.

    A worker sends every tensor through its own file handle. A process has about a thousand handles,
    which a few batches of unstacked examples use up. A packed batch takes one handle.
    """
    file = io.BytesIO()
    pickler = _Packer(file, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dump(examples)
    storage = torch.empty(pickler.size, dtype=torch.uint8, device="cpu")
    for start, tensor in pickler.tensors:
        storage[start : start + tensor.nbytes] = tensor.contiguous().view(-1).view(torch.uint8)
    return file.getvalue(), storage


def unpack(content: bytes, storage: Tensor) -> list[Example]:
    """Return the examples that were packed; they share no memory with `storage`."""
    return _Unpacker(io.BytesIO(content), storage).load()  # type: ignore[no-any-return]


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.size, self.tensors = 0, list[tuple[int, Tensor]]()

    def persistent_id(self, obj: Any) -> tuple[int, torch.dtype, torch.Size] | None:
        is_plain = type(obj) is Tensor and obj.device.type == "cpu" and not obj.requires_grad
        if not is_plain or obj.layout is not torch.strided or obj.is_quantized:
            return None  # pickled as usual
        start = self.size
        self.size = -(-(start + obj.nbytes) // _ALIGNMENT) * _ALIGNMENT
        self.tensors.append((start, obj.resolve_conj().resolve_neg()))
        return start, obj.dtype, obj.shape


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, storage: Tensor) -> None:
        super().__init__(file)
        self._storage = storage

    def persistent_load(self, pid: tuple[int, torch.dtype, torch.Size]) -> Tensor:
        start, dtype, shape = pid
        stop = start + shape.numel() * dtype.itemsize
        return self._storage[start:stop].view(dtype).view(shape).clone()


def _as_list(examples: list[Example]) -> list[Example]:
    return examples
