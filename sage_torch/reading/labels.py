"""Finds the labels of a batch, and says what they are: classes, or values of another kind.

They are where the caller says that they are, or where they usually stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import sage_torch.gradients.batches as batches
from sage_torch.checks import whole_labels
from sage_torch.gradients.batches import Batch
from sage_torch.options import Options

# Whether labels are classes: the caller says so; the default loss, a cross-entropy, trains on them;
# or nobody knows, and their values decide.
Certainty = Literal["said", "trained_on", "guessed"]
_FEW = 20  # different labels that count as classes in any case

# What labels turned out to be. The numbers stand in snapshots and travel between ranks.
MISSING, CLASSES, NUMBERS, ONES, MANY, QUANTITY = range(6)
KINDS = {
    MISSING: "none: the batches have no label per example",
    CLASSES: "classes",
    NUMBERS: "none: the targets are numbers other than 0 and 1",
    ONES: "none: nearly every example has a label of its own, as with an index",
    MANY: "none: many labels occur once or twice",
    QUANTITY: "none: many labels, all above 1, are taken for a quantity",
}


def kind_of(values: NDArray[np.int64], counts: NDArray[np.int64], certainty: Certainty) -> int:
    """Return what labels are, by the values of all N examples.

    Args:
        values: int64 (C,), the different labels.
        counts: int64 (C,), how many examples have each.
        certainty: `"said"` is believed. With `"trained_on"`, only labels that all differ are no
            classes.

    Returns:
        `CLASSES`, or why they are none.
    """
    total, once = int(counts.sum()), int((counts == 1).sum())
    if certainty == "said":
        return CLASSES
    if once == total > 1:
        return ONES
    if certainty == "trained_on" or len(values) <= _FEW:
        return CLASSES
    if 2 * len(values) >= total or 4 * once > len(values):
        return MANY
    return QUANTITY if values.min() > 1 else CLASSES


class Labels:
    """The labels of batches, as the option `labels` asks for them.

    Args:
        options: `labels`, `class_balanced`, `loss`, `gradients`.

    Attributes:
        certainty: Whether they are classes.
    """

    def __init__(self, options: Options) -> None:
        self._choice = options.labels
        self._is_auto = isinstance(options.labels, str) and options.labels == "auto"
        self._names_classes = options.loss is None and isinstance(options.gradients, str)
        self.certainty: Certainty = "trained_on" if self._names_classes else "guessed"
        if not self._is_auto or options.class_balanced is True:
            self.certainty = "said"

    @property
    def source(self) -> str:
        """Where they come from, in words."""
        if self._is_auto:
            return "the targets of the batches"
        if self._choice is None or isinstance(self._choice, str):
            return f"labels={self._choice!r}"
        return f"labels={getattr(self._choice, '__name__', type(self._choice).__name__)}"

    def of(self, batch: Batch, indices: NDArray[np.int64]) -> NDArray[Any] | None:
        """Return the labels of a batch.

        Args:
            batch: n examples, as the loader gives them.
            indices: int64 (n,), the examples.

        Returns:
            Whole numbers (n,), or with `labels="auto"` also floats; None if there are none.

        Raises:
            TypeError: They are no numbers.
            ValueError: The field is missing, or they have another shape.
        """
        choice = self._choice
        if choice is None:
            return None
        if isinstance(choice, np.ndarray):
            return choice[indices]
        if self._is_auto:
            return self._found(batch, len(indices))
        values = _field(batch, choice) if isinstance(choice, str) else choice(batch)  # type: ignore[operator]
        labels = whole_labels(values, f"the labels of a batch, as {self.source} gives them,")
        if len(labels) != len(indices):
            raise ValueError(
                f"expected {len(indices)} labels of a batch, got {len(labels)} from {self.source}; "
                "give one per example"
            )
        return labels

    def _found(self, batch: Batch, n: int) -> NDArray[Any] | None:
        found = batches.labels(batch)
        if found is not None and len(found) == n:  # with gradients of one's own, it need not be
            found = found.detach().cpu()
            found = found.float() if found.is_floating_point() else found  # NumPy has no bfloat16
            labels: NDArray[Any] = found.numpy()
            return labels
        if self._names_classes:
            _refuse_texts(batch)
        return None


def _field(batch: Batch, name: str) -> Any:
    is_there = name in batch if isinstance(batch, Mapping) else hasattr(batch, name)
    if not is_there:
        names = (
            f" with {', '.join(map(repr, list(batch)[:8]))}" if isinstance(batch, Mapping) else ""
        )
        raise ValueError(
            f"expected batches with a field {name!r}, as labels={name!r} says, got a "
            f"{type(batch).__name__}{names}; give the name of a key or an attribute, or a callable "
            "on the batch"
        )
    return batch[name] if isinstance(batch, Mapping) else getattr(batch, name)


def _refuse_texts(batch: Batch) -> None:
    """Refuse labels that are texts, where the default loss would train on them.

    Raises:
        ValueError: They are texts.
    """
    found: Any = None
    if isinstance(batch, Mapping):
        found = batch.get("labels")
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        found = batch[1]
    is_texts = isinstance(found, Sequence) and len(found) > 0 and isinstance(found[0], (str, bytes))
    if is_texts and not isinstance(found, (str, bytes)):
        raise ValueError(
            f"expected labels as whole numbers, got texts such as {found[0][:40]!r}: number the "
            "classes in the data set, for instance with classes.index(name); or pass loss=, a "
            "callable loss(model, batch) that returns one loss per example"
        )
