"""Checks that several files share: numbers, words and data sets, refused before work starts."""

from __future__ import annotations

import sys
import warnings
from numbers import Integral
from pathlib import Path

from torch.utils.data import IterableDataset

_PACKAGE = str(Path(__file__).parent)


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
        raise TypeError(f"expected {name} to be {wanted}, got {value!r}")
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
        raise ValueError(f"expected {name} to be one of {words}, got {value!r}")


def truth(name: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"expected {name} to be True or False, got {value!r}")


def count_examples(dataset: object, name: str = "dataset") -> int:
    """Return `len(dataset)` of a map-style data set with at least one example.

    Raises:
        TypeError: An `IterableDataset`, or no data set at all.
        ValueError: It is empty.
    """
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"expected a map-style {name} with len() and indices, got the IterableDataset "
            f"{type(dataset).__name__}: a stream has no examples to come back to; filter it with "
            "sage_torch.SageStream, or load it into a map-style data set first"
        )
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"expected a map-style {name} with __getitem__ and __len__, got "
            f"{type(dataset).__name__}"
        )
    total = len(dataset)
    if total == 0:
        raise ValueError(f"expected a {name} with at least one example, got an empty one")
    return total


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
            f"{count_examples(score_dataset)}"
        )
    return total


def warn(message: str) -> None:
    """Give a UserWarning at the line outside this package that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
