"""Examples of a data set in a form for the page: pictures, text or numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sage_torch.plots.examples import spread
from sage_torch.plots.images import check_length, read_images
from sage_torch.plots.style import is_kept, members, most_telling
from sage_torch.report.named import doubtful_first, kinds
from sage_torch.selection.result import Selection

_CLASSES, _COLUMNS, _WORST, _KINDS = 10, 6, 12, 6
_LONGEST_TEXT, _NUMBERS = 240, 12
_LARGEST = 96  # pixels along the longer side of a picture
_INPUTS = ("image", "img", "pixel_values", "text", "sentence", "input_ids")  # keys of dicts


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        index: Position in the data set.
        label: Label; None without labels.
        suggested: The label that it should have; None where nobody knows.
        score: Agreement; NaN without scores.
        margin: Margin; NaN without margins.
        probability: Probability of the label; NaN without probabilities.
        is_kept: Whether the selection keeps it.
        picture: PNG in base64; None if it is not an image.
        text: Its contents in words, if it is not an image.
    """

    index: int
    label: int | None
    suggested: int | None
    score: float
    margin: float
    probability: float
    is_kept: bool
    picture: str | None
    text: str


@dataclass(frozen=True)
class Shown:
    """Examples to show.

    Attributes:
        rows: Per class its label or None, some kept and some dropped examples, in even steps of
            rank, highest score first.
        worst: Examples whose labels are most likely wrong, those first; empty without margins
            and probabilities.
        kinds: Near duplicates: the one that stands for all, and some of the others.
    """

    rows: list[tuple[int | None, list[Example], list[Example]]]
    worst: list[Example]
    kinds: list[list[Example]]


def show(selection: Selection, dataset: Dataset[Any]) -> Shown:
    """Read some examples of each class from the data set of a selection.

    Raises:
        ValueError: The data set has another length than the selection.

    Cost:
        Up to 168 items are read.
    """
    check_length(selection, dataset)
    kept = is_kept(selection)
    rows = [
        (
            label,
            spread(selection, ids[kept[ids]], _COLUMNS),
            spread(selection, ids[~kept[ids]], _COLUMNS),
        )
        for label, ids in members(selection, None)[:_CLASSES]
    ]
    of = most_telling(selection)
    worst = np.zeros(0, np.int64)
    if of != "scores":
        worst = doubtful_first(selection)[:_WORST]
    alike = [np.array([first, *others[: _COLUMNS - 1]]) for first, others in kinds(selection)]
    of_classes = [ids for _, *both in rows for ids in both]
    wanted = np.unique(np.concatenate([worst, *of_classes, *alike[:_KINDS]]))
    by_index = _read(selection, dataset, wanted, kept)

    def examples(ids: NDArray[np.int64]) -> list[Example]:
        return [by_index[int(i)] for i in ids]

    by_class = [(label, examples(first), examples(second)) for label, first, second in rows]
    return Shown(by_class, examples(worst), [examples(ids) for ids in alike[:_KINDS]])


def _read(
    selection: Selection,
    dataset: Dataset[Any],
    indices: NDArray[np.int64],
    kept: NDArray[np.bool_],
) -> dict[int, Example]:
    items = {int(i): _inputs_of(dataset[int(i)]) for i in indices}
    pictures, suggested = _pictures(selection, items), selection.predicted_labels
    return {
        i: Example(
            index=i,
            label=None if selection.labels is None else int(selection.labels[i]),
            suggested=None if suggested is None else int(suggested[i]),
            score=float(selection.scores[i]),
            margin=_at(selection.margins, i),
            probability=_at(selection.probabilities, i),
            is_kept=bool(kept[i]),
            picture=pictures.get(i),
            text="" if pictures else described(item),
        )
        for i, item in items.items()
    }


def _at(values: NDArray[np.float32] | None, index: int) -> float:
    return float("nan") if values is None else float(values[index])


class _Items(Dataset[Any]):
    """Items that have been read, as a data set of the length that the plots expect."""

    def __init__(self, items: dict[int, Any], total: int) -> None:
        self.items, self.total = items, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def _pictures(selection: Selection, items: dict[int, Any]) -> dict[int, str]:
    """Return the items as PNG in base64; empty if they are not images."""
    try:
        images = read_images(selection, _Items(items, len(selection.scores)), items)
    except (TypeError, ValueError, IndexError):
        return {}
    return {i: _png(image) for i, image in images.items()}


def _png(image: NDArray[np.float64]) -> str:
    from PIL import Image  # installed with matplotlib

    picture = Image.fromarray((np.nan_to_num(image) * 255).round().clip(0, 255).astype(np.uint8))
    picture.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _inputs_of(item: Any) -> Any:
    """Return the model input in an item: its first part, or the field for the input."""
    if isinstance(item, (tuple, list)) and len(item):
        item = item[0]
    if isinstance(item, Mapping):
        return next((item[name] for name in _INPUTS if name in item), dict(item))
    return item


def described(item: Any) -> str:
    """Return an item in a few words.

    Args:
        item: A text, which is shortened; numbers of any shape; or any other object.

    Example:
        >>> import torch
        >>> from sage_torch.report.shown import described
        >>> described(torch.tensor([1.0, 2.5])), described(torch.zeros(3, 20))
        ('1, 2.5', '0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, … (60 numbers, 3 x 20)')
    """
    if isinstance(item, str):
        return item if len(item) <= _LONGEST_TEXT else f"{item[:_LONGEST_TEXT]}…"
    if isinstance(item, Mapping):
        return described("; ".join(f"{name}: {described(part)}" for name, part in item.items()))
    try:
        values = np.asarray(item.detach().cpu() if isinstance(item, Tensor) else item)
    except (TypeError, ValueError):
        return type(item).__name__
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == np.bool_):
        return described(str(item))
    first = ", ".join(f"{value:.4g}" for value in values.reshape(-1)[:_NUMBERS].tolist())
    if values.size <= _NUMBERS:
        return first
    shape = " x ".join(map(str, values.shape))
    return f"{first}, … ({values.size:,} numbers{f', {shape}' if values.ndim > 1 else ''})"
