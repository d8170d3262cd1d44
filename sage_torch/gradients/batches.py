"""Batches as data: their length, labels, parts and tensors, in any container.

A batch is any nesting of tuples, lists, named tuples, mappings and dataclasses. Its *leaves* are
the tensors with at least one dimension, and the first dimension of every leaf counts the examples.
0-d tensors and values that are not tensors (strings, numbers, None) belong to no single example.
Every function here passes them through unchanged. So it does with objects of unknown kinds, such as
a batch of graphs; `to_device` calls their own method `to`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

_SPARSE = {
    torch.sparse_coo,
    torch.sparse_csr,
    torch.sparse_csc,
    torch.sparse_bsr,
    torch.sparse_bsc,
}

# There is no narrower type: the collate function decides what a batch is.
Batch = Any

__all__ = [
    "Batch",
    "has_rows_only",
    "labels",
    "length",
    "map_tensors",
    "places",
    "replace_leaves",
    "same_item",
    "take",
    "tensor_leaves",
    "to_device",
]


def length(batch: Batch) -> int:
    """Return the number of examples in a batch: the first dimension that all its leaves share.

    Args:
        batch: Any nesting of tuple, list, named tuple, mapping and dataclass of tensors.

    Returns:
        The number of examples, at least 1.

    Raises:
        ValueError: The batch has no leaf, has no example, has a sparse or nested leaf, or has
            leaves and labels of different lengths.
    """
    leaves = tensor_leaves(batch)
    if not leaves:
        raise ValueError(
            f"expected a batch with at least one tensor of shape (n, ...), got {_kind(batch)} "
            "without any; convert its contents to tensors in the collate function, or pass "
            "gradients=, a function batch -> (n, D) of your own, which takes any batch"
        )
    odd = next((leaf for leaf in leaves if not _is_dense(leaf)), None)
    if odd is not None:
        how = "to_padded_tensor(0.0)" if odd.is_nested else "to_dense()"
        raise ValueError(
            f"expected dense tensors in a batch, got a {_layout(odd)} one: call .{how} in the "
            "collate function, or pass gradients=, a function batch -> (n, D) of your own, which "
            "takes any batch"
        )
    targets = labels(batch)
    n = len(leaves[0]) if targets is None else len(targets)
    other = next((leaf for leaf in leaves if len(leaf) != n), None)
    if other is not None and targets is not None:
        raise ValueError(
            f"a batch whose length disagrees with its labels: {n} labels, but a tensor of shape "
            f"{tuple(other.shape)}; the first dimension of every tensor must count the examples"
        )
    if other is not None:
        raise ValueError(
            f"a batch whose tensors disagree in length: shapes {tuple(leaves[0].shape)} and "
            f"{tuple(other.shape)}; the first dimension of every tensor must count the examples"
        )
    if n == 0:
        raise ValueError("expected a batch of at least one example, got an empty one")
    return n


def has_rows_only(batch: Batch, n: int) -> bool:
    """Return whether a batch holds nothing but dense tensors of n rows, in any containers.

    Such a batch can be cut into parts with `take`, even if it is an object of one's own making.
    """
    parts = list(_parts(batch))
    return all(
        isinstance(part, Tensor) and part.ndim > 0 and _is_dense(part) and len(part) == n
        for part in parts
    ) and bool(parts)


def labels(batch: Batch) -> Tensor | None:
    """Return the targets of a batch that may be classes: one value per example, or None.

    The targets are the entry `"labels"` of a mapping, the attribute `labels` of a dataclass or
    named tuple, or the first element of a tuple or list after the inputs that has one value per
    example. So `(x, y, index)` gives y, and `(ids, mask, y)` gives y. Token labels, soft targets,
    several targets and flags are not classes. Whether the values are classes, their sight decides
    (`sage_torch.reading.classes`).

    Args:
        batch: Any nesting of tuple, list, named tuple, mapping and dataclass of tensors.

    Returns:
        Tensor (n,) of an integer or floating dtype, without a copy, or None.
    """
    candidates: list[object] = []
    if isinstance(batch, Mapping):
        candidates = [batch.get("labels")]
    elif hasattr(batch, "labels") and (_is_named_tuple(batch) or _is_dataclass(batch)):
        candidates = [batch.labels]
    elif isinstance(batch, (tuple, list)):
        candidates = list(batch[1:])
    found = next((each for each in candidates if _is_one_value_each(each)), None)
    if not isinstance(found, Tensor):
        return None
    return found if found.ndim == 1 else found[:, 0]


def take(batch: Batch, start: int, stop: int) -> Batch:
    """Return examples `start` to `stop` (exclusive) as a batch of the same kind.

    Args:
        batch: Any nesting of tuple, list, named tuple, mapping and dataclass of tensors.
        start: Position of the first example.
        stop: Position after the last example.

    Returns:
        A batch whose leaves are views of the original leaves.
    """
    return map_tensors(batch, lambda tensor: tensor[start:stop] if tensor.ndim else tensor)


def places(batch: Batch, wanted: Sequence[int]) -> Batch:
    """Return the examples at the places `wanted`, counted modulo the length of the batch.

    Args:
        batch: Any nesting of tuple, list, named tuple, mapping and dataclass of tensors.
        wanted: Places from 0; a place beyond the last example starts again at the first.

    Returns:
        A batch whose leaves are copies.
    """
    n = length(batch)
    indices = [place % n for place in wanted]
    return map_tensors(batch, lambda tensor: tensor[indices] if tensor.ndim else tensor)


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Return the batch with every tensor on `device`.

    Args:
        batch: Any nesting of tuple, list, named tuple, mapping and dataclass of tensors and of
            other objects. Those are moved by their own method `to`, if they have one.
        device: The target; tensors that are already there are not copied.

    Returns:
        A batch of the same kind.

    Cost:
        One copy per tensor. The host does not wait for a copy from pinned memory to CUDA.
    """
    device = torch.device(device)
    # Only towards the device: without waiting, a copy to the host may be read half-written.
    without_waiting = device.type == "cuda"

    def moved(value: Any) -> Any:
        to = getattr(value, "to", None)
        if not callable(to):
            return value
        try:
            return to(device)
        except (TypeError, ValueError, AttributeError):
            return value  # its `to` is about something else

    return map_tensors(
        batch, lambda tensor: tensor.to(device, non_blocking=without_waiting), others=moved
    )


def map_tensors(
    batch: Batch,
    change: Callable[[Tensor], Tensor],
    *,
    others: Callable[[Any], Any] | None = None,
) -> Batch:
    """Apply `change` to every tensor of a batch, 0-d tensors included, and keep its containers.

    Args:
        batch: Any nesting of tuple, list, named tuple, mapping and dataclass of tensors.
        change: Function from a tensor to its replacement.
        others: Function from an object of another kind to its replacement; None to keep them. It
            gets a `PackedSequence` too, one of whose tensors must stay on the CPU.

    Returns:
        A new batch of the same kind. A mapping that cannot be rebuilt from a dict becomes a dict.
    """

    def mapped(value: Any) -> Any:
        return map_tensors(value, change, others=others)

    if isinstance(batch, Tensor):
        return change(batch)
    if others is not None and isinstance(batch, PackedSequence):
        return others(batch)
    if isinstance(batch, Mapping):
        return _rebuild_mapping(batch, {key: mapped(value) for key, value in batch.items()})
    if _is_named_tuple(batch):
        return type(batch)(*map(mapped, batch))
    if isinstance(batch, (tuple, list)):
        values = list(map(mapped, batch))
        return values if isinstance(batch, list) else tuple(values)
    if _is_dataclass(batch):
        # Setting the fields of a copy works for frozen classes and for fields that are not in
        # __init__, and does not run __post_init__ a second time.
        changed = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(changed, field.name, mapped(getattr(batch, field.name)))
        return changed
    return batch if others is None else others(batch)


def tensor_leaves(batch: Batch) -> list[Tensor]:
    """Return the tensors of a batch that have a first dimension, in the order of `map_tensors`.

    Args:
        batch: Any nesting of tuple, list, named tuple, mapping and dataclass of tensors.

    Returns:
        The leaves, without copies.
    """
    return [tensor for tensor in _tensors(batch) if tensor.ndim]


def replace_leaves(batch: Batch, leaves: Sequence[Tensor]) -> Batch:
    """Return the batch with its leaves replaced: the inverse of `tensor_leaves`.

    Args:
        batch: The batch that `tensor_leaves` was called with.
        leaves: One tensor per leaf, in the same order.

    Returns:
        A batch of the same kind.
    """
    replacements = iter(leaves)
    return map_tensors(batch, lambda tensor: next(replacements) if tensor.ndim else tensor)


def same_item(first: object, second: object) -> bool:
    """Return whether two readings of one data set item hold the same values (NaN equals NaN).

    Objects that compare by identity alone, or whose comparison raises, count as the same.

    Args:
        first: The first result of `dataset[i]`.
        second: The second result of `dataset[i]`.

    Returns:
        False if a tensor, array, number or string differs.
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return _same_tensor(first, second)
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        if first.dtype.hasobject or second.dtype.hasobject:
            return same_item(first.tolist(), second.tolist())
        alike = first.dtype == second.dtype and first.shape == second.shape
        return alike and first.tobytes() == second.tobytes()
    if type(first) is not type(second):
        return False
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if first.keys() != second.keys():
            return False
        return all(same_item(first[key], second[key]) for key in first)
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        return len(first) == len(second) and all(map(same_item, first, second))
    if _is_dataclass(first):
        names = [field.name for field in dataclasses.fields(first)]  # type: ignore[arg-type]
        return all(same_item(getattr(first, name), getattr(second, name)) for name in names)
    return _same_value(first, second)


def _tensors(batch: Batch) -> Iterator[Tensor]:
    return (part for part in _parts(batch) if isinstance(part, Tensor))


def _parts(batch: Batch) -> Iterator[Any]:
    """Yield all that is no container, in the order of `map_tensors`."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _parts(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _parts(value)
    elif _is_dataclass(batch):
        for field in dataclasses.fields(batch):
            yield from _parts(getattr(batch, field.name))
    else:
        yield batch


def _is_dense(tensor: Tensor) -> bool:
    return not tensor.is_nested and tensor.layout not in _SPARSE


def _layout(tensor: Tensor) -> str:
    return "nested" if tensor.is_nested else f"sparse ({tensor.layout})"


def _rebuild_mapping(batch: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    if type(batch) is dict:
        return values
    try:
        rebuilt: Mapping[Any, Any] = type(batch)(values)  # type: ignore[call-arg]
        return rebuilt if list(rebuilt) == list(values) else values
    except Exception:  # other constructors, such as that of defaultdict, may raise anything
        return values


def _same_tensor(first: Tensor, second: Tensor) -> bool:
    if first.is_nested or second.is_nested:  # which have no shape
        are_nested = first.is_nested and second.is_nested
        return are_nested and same_item(list(first.unbind()), list(second.unbind()))
    if any(getattr(first, name) != getattr(second, name) for name in ("shape", "dtype", "layout")):
        return False
    if first.layout is not torch.strided:
        first, second = first.to_dense(), second.to_dense()
    if torch.equal(first, second):
        return True
    both_nan = (first != first) & (second != second)
    return bool(((first == second) | both_nan).all())


def _same_value(first: object, second: object) -> bool:
    if type(first).__eq__ is object.__eq__:
        return True
    try:
        return bool(first == second) or bool(first != first and second != second)
    except Exception:  # nothing is known about the values of an object that cannot be compared
        return True


def _is_one_value_each(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and not value.is_nested  # which has no shape
        and (value.ndim == 1 or tuple(value.shape[1:]) == (1,))
        and value.dtype is not torch.bool
        and not value.is_complex()
    )


def _is_named_tuple(value: object) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _is_dataclass(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
