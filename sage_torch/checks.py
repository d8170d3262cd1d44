"""Checks that several files share: numbers, words and data sets, refused before work starts."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sized
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

_PACKAGE = str(Path(__file__).parent)
_LONGEST = 80  # letters of a value in an error
_OF_TABLES = {"pandas", "polars", "pyarrow", "cudf", "modin", "dask"}
_TABLES = {"DataFrame", "LazyFrame", "Series", "Table", "RecordBatch"}


def whole_number(
    name: str, value: object, *, least: int = 0, wanted: str = "a whole number"
) -> int:
    """Return `value` as an int in `[least, 2**63)`; NumPy's integers count as whole numbers.

    Args:
        name: The argument's name, for the error.
        value: What was given.
        least: The smallest value allowed.
        wanted: What to ask for in the error.

    Raises:
        TypeError: It is no whole number. A bool is none.
        ValueError: It is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"expected {name} to be {wanted}, got {shown(value)}")
    number = int(value)
    if not least <= number < 2**63:
        raise ValueError(f"expected {name} of at least {least} and below 2**63, got {number}")
    return number


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is none of those allowed.

    Raises:
        ValueError: It is none of them.
    """
    if value not in allowed:
        words = ", ".join(f'"{word}"' for word in allowed)
        raise ValueError(f"expected {name} to be one of {words}, got {shown(value)}")


def truth(name: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"expected {name} to be True or False, got {shown(value)}")


def shown(value: object) -> str:
    """Return a value as an error shows it: all of a short one, the start of a long one."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def keep_in_range(keep: object) -> None:
    """Refuse what is neither a share of the examples nor a count.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of range.
    """
    wanted = "expected keep to be a share in (0, 1] or a count of at least 1, got "
    if isinstance(keep, bool) or not isinstance(keep, (Integral, Real)):
        raise TypeError(f"{wanted}{keep!r}")
    if isinstance(keep, Integral):
        if keep < 1:
            raise ValueError(f"{wanted}{keep!r}")
    elif not 0 < float(keep) <= 1:  # NaN is in no interval
        raise ValueError(f"{wanted}{keep!r}")


def trim_in_range(trim: object) -> None:
    """Refuse what is neither `"auto"`, `"negative"`, a share of a class, nor None.

    Raises:
        ValueError: It is something else.
    """
    is_share = isinstance(trim, Real) and not isinstance(trim, bool) and 0 <= float(trim) < 1
    if not (is_share or trim is None or (isinstance(trim, str) and trim in ("auto", "negative"))):
        raise ValueError(
            'expected trim "auto", "negative" (drop negative margins), a share in [0, 1) or None, '
            f"got {trim!r}"
        )


def labels_given(labels: object) -> Any:
    """Return what an option `labels` says: a word, a callable or None as it is, else an array.

    Returns:
        An array as int64 (N,), read-only.

    Raises:
        TypeError, ValueError: As `whole_labels`.
    """
    if labels is None or isinstance(labels, str) or callable(labels):
        return labels
    array = whole_labels(labels)
    array.setflags(write=False)
    return array


def whole_labels(values: object, name: str = "labels") -> NDArray[np.int64]:
    """Return one label per example as int64 (n,).

    Args:
        values: An array, tensor or sequence of shape (n,) or (n, 1).
        name: What they are, for the error.

    Raises:
        TypeError: They are no numbers.
        ValueError: They are of another shape, or not whole.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"expected {name} as numbers, one per example, got {type(values).__name__} of "
            f"{array.dtype}; number them, for instance np.unique(names, return_inverse=True)[1]"
        )
    if array.ndim != 1:
        raise ValueError(
            f"expected {name} of shape (n,), one per example, got {array.shape}; give one class "
            "per example, or labels=None if there is none"
        )
    whole: NDArray[np.int64] = array.astype(np.int64)
    if array.dtype.kind == "f" and not np.array_equal(whole, array):
        raise ValueError(
            f"expected {name} as whole numbers, got {array[whole != array][0]}; pass labels=None "
            "if there are no classes"
        )
    return whole


def auto_or_truth(name: str, value: object) -> None:
    """Refuse what is neither `"auto"`, True nor False.

    Raises:
        ValueError: It is something else.
    """
    if not (isinstance(value, bool) or value == "auto"):
        raise ValueError(f'expected {name} "auto", True or False, got {value!r}')


def folder_given(name: str, value: object) -> str | None:
    """Return a folder as a text, None as it is.

    Raises:
        TypeError: It is something else.
    """
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"expected {name} to be a folder or None, got {value!r}")
    return None if value is None else os.fspath(value)


def count_examples(dataset: object, name: str = "dataset") -> int:
    """Return `len(dataset)` of a map-style data set with at least one example.

    Raises:
        TypeError: An `IterableDataset`, a table, a mapping of splits or columns, a few arrays, or
            no data set at all.
        ValueError: It is empty.
    """
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"expected a map-style {name} with len() and indices, got the IterableDataset "
            f"{type(dataset).__name__}: a stream has no examples to come back to; filter it with "
            "sage_torch.SageStream, or load it into a map-style data set first"
        )
    otherwise = _no_examples(dataset)
    if otherwise is not None:
        raise TypeError(f"expected a map-style {name}, whose item i is example i, got {otherwise}")
    if not hasattr(dataset, "__getitem__") or not isinstance(dataset, Sized):
        raise TypeError(
            f"expected a map-style {name} with __getitem__ and __len__, got "
            f"{type(dataset).__name__}; give its class both, or put the examples in a list"
        )
    total = len(dataset)
    if total == 0:
        raise ValueError(
            f"expected a {name} with at least one example, got an empty one; look at how it was "
            "filtered or loaded"
        )
    return total


def _no_examples(dataset: object) -> str | None:
    """Return what an object is that has items but no examples, and what to do; None for others."""
    kind = type(dataset)
    if isinstance(dataset, DataLoader):
        return "a DataLoader: pass its data set, loader.dataset"
    if isinstance(dataset, (str, bytes)):
        return f"a {kind.__name__}: load the file that it names, and pass the data set"
    if kind.__module__.partition(".")[0] in _OF_TABLES and kind.__name__ in _TABLES:
        return (
            f"a {kind.__name__}, whose items are columns or go by labels: make a data set of its "
            "rows, such as TensorDataset(torch.tensor(table[inputs].to_numpy()), "
            "torch.tensor(table[target].to_numpy()))"
        )
    if kind.__module__.startswith("scipy.sparse"):
        return (
            f"a {kind.__name__}: make a data set of its rows, such as "
            "TensorDataset(torch.tensor(matrix.toarray()), targets)"
        )
    if isinstance(dataset, Mapping) and isinstance(next(iter(dataset), None), str):
        names = ", ".join(shown(key) for key in islice(dataset, 4))
        more = ", ..." if len(dataset) > 4 else ""
        return (
            f"a {kind.__name__} of {names}{more}: if these are splits, pass one of them, such as "
            f"dataset[{shown(next(iter(dataset)))}]; if they are columns, make a data set of them, "
            "such as TensorDataset(inputs, targets)"
        )
    rows = _rows_of_columns(dataset)
    if rows is not None:
        return (
            f"a {kind.__name__} of {len(dataset)} columns of {rows} rows each: make a data set of "  # type: ignore[arg-type]
            "them, such as TensorDataset(torch.as_tensor(inputs), torch.as_tensor(targets)), or a "
            "list of pairs, list(zip(inputs, targets))"
        )
    return None


def _rows_of_columns(dataset: object) -> int | None:
    """Return the number of rows of `(X, y)`; None for anything that may be two or three examples.

    Examples in a list have one shape, or could not be joined to a batch.
    """
    if not isinstance(dataset, (tuple, list)) or not 2 <= len(dataset) <= 3:
        return None
    shapes = [getattr(part, "shape", None) for part in dataset]
    if isinstance(dataset, list) and (None in shapes or len(set(map(tuple, shapes))) == 1):  # type: ignore[arg-type]
        return None
    counts = {
        shape[0] if shape else len(part) if isinstance(part, list) else None
        for shape, part in zip(shapes, dataset, strict=True)
    }
    (rows,) = counts if len(counts) == 1 else {None}
    return rows if isinstance(rows, int) and rows > 3 else None


def count_both(dataset: object, score_dataset: object | None) -> int:
    """Return the number of examples of a data set and of its other view, which must agree.

    Raises:
        TypeError: One is not a map-style data set.
        ValueError: One is empty, or they differ in length.
    """
    total = count_examples(dataset)
    if score_dataset is not None and count_examples(score_dataset, "score_dataset") != total:
        raise ValueError(
            f"expected score_dataset to hold the same {total} examples as the data set, got "
            f"{count_examples(score_dataset)}; pass another view of the same examples, in the same "
            "order"
        )
    return total


def warn(message: str) -> None:
    """Give a UserWarning at the line outside this package that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
