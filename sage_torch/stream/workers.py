"""Reads a stream's examples batch by batch, with workers or without."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

_WHOLE = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
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


def refuse_batches(examples: list[Example]) -> None:
    """Refuse a stream whose examples all look like batches.

    Raises:
        ValueError: Each of them, and there are several, has n > 1 integer labels beside inputs of n
            rows. If one example had n labels by chance, another one would not.
    """
    sizes = [_rows_beside_labels(example) for example in examples]
    if len(sizes) > 1 and None not in sizes:
        raise ValueError(
            f"expected one example at a time from the stream, got what looks like batches of "
            f"{sizes[0]}: {sizes[0]} labels beside inputs of {sizes[0]} rows; leave the batching "
            "out of the stream (webdataset: .batched) and batch what SageStream yields, with "
            "DataLoader(stream, batch_size=...). If each is one example with a label for every "
            "position, pass loss=, a function loss(model, batch) -> (n,)"
        )


def _rows_beside_labels(example: Example) -> int | None:
    """Return n if an example has n > 1 integer labels, and inputs of n rows."""
    if isinstance(example, Mapping):
        labels = example.get("labels", example.get("label"))
        others = [part for part in example.values() if part is not labels]
        inputs = example.get("input_ids", others[0] if others else None)
    elif isinstance(example, (tuple, list)) and len(example) > 1:
        inputs, labels, *_ = example
        others = [part for part in example if part is not labels]
    else:
        return None
    if not isinstance(labels, (Tensor, np.ndarray)) or labels.ndim != 1 or len(labels) < 2:
        return None
    is_whole = labels.dtype in _WHOLE if isinstance(labels, Tensor) else labels.dtype.kind in "iu"
    has_rows = isinstance(inputs, (list, tuple)) or getattr(inputs, "ndim", 0) > 1
    sized = [part for part in others if isinstance(part, (Tensor, np.ndarray, list, tuple))]
    counts = {len(part) if getattr(part, "ndim", 1) else 0 for part in sized}
    return len(labels) if is_whole and has_rows and counts == {len(labels)} else None


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
