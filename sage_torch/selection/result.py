"""The result of a selection: the examples, their scores, and the sketch's certificate."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from textwrap import shorten
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sage_torch.checks import whole_number
from sage_torch.selection.archive import pack, unpack, write_whole
from sage_torch.selection.certificate import Certificate
from sage_torch.selection.draws import Draws

_FORMAT = 4
_OPTIONAL = ("labels", "weights", "margins", "singular_values", "probabilities")
_OF_DRAWS = ("order", "starts", "classes", "quotas")
_OF_WORTH = ("hard", "right")


@dataclass(frozen=True, eq=False)
class Selection:
    """A subset of a data set, with the scores behind it.

    Attributes:
        indices: int64 (k,), ascending, no repeats: the examples to train on (in epoch 0, if each
            epoch draws its own).
        scores: float32 (N,) in [-1, 1]: every example's agreement with the consensus of its class;
            NaN throughout for `rule="random"`.
        labels: int64 (N,) as the data set has them, or None if there are no classes.
        certificate: The sketch's guarantee; None for `rule="random"`.
        seconds: Wall time of `pass_1`, `pass_2` and `rule`, and the `total`.
        settings: The settings used, in a form that fits into JSON: options, gradients, versions.
            `classes` counts the classes, 0 without; `classes_because` says how that is known.
            `trimmed` is the number of examples that the trim dropped, and `trimmed_because` says
            why it could drop none. With `trim="auto"` also: `temperature`, which calibrates the
            probabilities; `rho`, the estimated share of wrong labels; `threshold`, the odds against
            chance that the budget asks for, the most of any class; `trimmed_by_budget` and
            `trimmed_by_noise`, the numbers of examples that are too hard for so small a subset,
            and probably wrong, before those come back that the quotas need. With `draw="rotate"`
            nothing is dropped but what is certainly wrong, and `readings` counts what `rho` and the
            probabilities are means of.
        weights: float32 (k,), in the order of `indices`: how many untrimmed examples of its class
            each kept one represents, itself included; None without the option `weights`.
        draws: The subset of each epoch; None for `draw="fixed"`.
        margins: float32 (N,) in [-1.5, 1]: every example's agreement with its own class minus half
            of its opposition to the class that it opposes most. `trim="negative"` and a trim of a
            share read margins: they mark wrong labels better than `scores`, few of which are
            negative. Below 0, an example opposes another class more than twice as much as it
            agrees with its own. Without at least two classes the margin is the agreement itself.
            None for `rule="random"`.
        singular_values: float64 (l,), descending: the lengths of the sketch's rows, its spectrum;
            None for `rule="random"`.
        probabilities: float32 (N,) in [0, 1]: how likely every example's label is, judged by a
            ridge regression of the labels on the model's features that left the example itself
            out, and calibrated. `trim="auto"` reads them, and the lowest mark
            wrong labels. None where there is no such regression: without classes, with
            `trim="negative"` or `rule="random"`. With `draw="rotate"` a refresh gives the mean of
            all readings so far.

    Example:
        >>> import tempfile, torch
        >>> from torch.utils.data import Subset, TensorDataset
        >>> from sage_torch import Selection, select_subset
        >>> data = TensorDataset(torch.randn(40, 3), torch.arange(40) % 2)
        >>> selection = select_subset(torch.nn.Linear(3, 2), data, keep=0.25, progress=False)
        >>> len(Subset(data, selection.indices))
        10
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     selection.save(f"{folder}/subset.npz")
        ...     (Selection.load(f"{folder}/subset.npz").indices == selection.indices).all().item()
        True
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    certificate: Certificate | None
    seconds: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)
    weights: NDArray[np.float32] | None = None
    draws: Draws | None = None
    margins: NDArray[np.float32] | None = None
    singular_values: NDArray[np.float64] | None = None
    probabilities: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for name in ("indices", "scores", *_OPTIONAL):
            array = getattr(self, name)
            if array is not None:
                array.setflags(write=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()  # pickling and copying lose NumPy's read-only flag

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        rule = self.settings.get("rule", "unknown rule")
        return f"Selection({len(self.indices):,} of {len(self.scores):,} examples, {rule})"

    def epoch_indices(self, epoch: int) -> NDArray[np.int64]:
        """Return the examples of an epoch: a function of the epoch and this selection.

        Args:
            epoch: Epochs since this selection was made, from 0 on. `draw="fixed"` ignores it.

        Returns:
            int64 (k,), ascending, no repeats; those of epoch 0 are `indices`.

        Raises:
            TypeError: The epoch is no whole number.
            ValueError: It is below 0.
        """
        whole_number("epoch", epoch)
        return self.indices if self.draws is None else self.draws.epoch(epoch)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the selection to one file: NumPy arrays and a JSON text in a zip (.npz).

        The file appears whole or not at all: it is written beside `path` and moved there.

        Args:
            path: Where to write; the name is used as it is.
        """
        write_whole(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return what `save` writes."""
        optional = {name: getattr(self, name) for name in _OPTIONAL}
        there = {name: array for name, array in optional.items() if array is not None}
        meta: dict[str, Any] = {
            "format": _FORMAT,
            **{f"has_{name}": name in there for name in _OPTIONAL},
            "draws": None,
            "certificate": None if self.certificate is None else asdict(self.certificate),
            "seconds": self.seconds,
            "settings": self.settings,
        }
        arrays: dict[str, Any] = {"indices": self.indices, "scores": self.scores, **there}
        if self.draws is not None:
            meta["draws"] = {
                "draw": self.draws.draw,
                "seed": self.draws.seed,
                "is_herded": self.draws.is_herded,
                "exponent": self.draws.exponent,
            }
            names = _OF_DRAWS if self.draws.hard is None else (*_OF_DRAWS, *_OF_WORTH)
            arrays |= {f"draws_{name}": getattr(self.draws, name) for name in names}
        return pack(meta, arrays, compress=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """Read what `save` wrote. Nothing in the file is executed.

        Args:
            path: A file written by `save`.

        Returns:
            The selection.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a selection, or a damaged one.
        """
        with open(path, "rb") as file:
            return cls._read(file, repr(os.fspath(path)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Selection:
        """Return the selection that gave `data`. Nothing in it is executed.

        Raises:
            ValueError: It is not a selection, or a damaged one.
        """
        return cls._read(data, f"a text of {len(data):,} bytes")

    @classmethod
    def _read(cls, source: bytes | BinaryIO, name: str) -> Selection:
        try:
            meta, arrays = unpack(source)
            if meta["format"] != _FORMAT:
                raise ValueError(
                    f"expected format {_FORMAT}, got {meta['format']}; read it with the version of "
                    "sage_torch that wrote it, or select again"
                )
            loaded = cls(
                indices=arrays["indices"],
                scores=arrays["scores"],
                certificate=(
                    None
                    if meta["certificate"] is None
                    else Certificate(**_numbers("certificate", meta["certificate"]))
                ),
                seconds=_numbers("seconds", meta["seconds"]),
                settings=dict(meta["settings"]),
                draws=_draws(meta["draws"], arrays),
                **{name: arrays[name] if meta[f"has_{name}"] else None for name in _OPTIONAL},
            )
            loaded._check()
        except Exception as error:  # damaged bytes may raise anything
            raise ValueError(
                f"{name} holds no readable selection: {shorten(str(error), 250)}; give a file that "
                "Selection.save or `sage-torch select --out` wrote"
            ) from error
        return loaded

    def _check(self) -> None:
        total, k = len(self.scores), len(self.indices)
        shapes: list[tuple[NDArray[Any] | None, Any, tuple[int, ...] | None]] = [
            (self.indices, np.int64, (k,)),
            (self.scores, np.float32, (total,)),
            (self.labels, np.int64, (total,)),
            (self.weights, np.float32, (k,)),
            (self.margins, np.float32, (total,)),
            (self.singular_values, np.float64, None),
            (self.probabilities, np.float32, (total,)),
        ]
        shapes_fit = all(
            array is None
            or (array.dtype == dtype and array.ndim == 1 and shape in (None, array.shape))
            for array, dtype, shape in shapes
        )
        if not shapes_fit or not k:
            raise ValueError(
                "expected int64 indices (k,) and labels (N,), float32 scores, margins and "
                "probabilities (N,) and weights (k,), float64 singular values (l,)"
            )
        if self.indices[0] < 0 or self.indices[-1] >= total or (np.diff(self.indices) <= 0).any():
            raise ValueError(f"expected ascending indices within [0, {total})")
        if self.weights is not None and not (self.weights >= 1).all():
            raise ValueError("expected weights of at least 1")
        likely = self.probabilities
        if likely is not None and not ((likely >= 0) & (likely <= 1)).all():  # nor NaN
            raise ValueError("expected probabilities within [0, 1]")
        if self.draws is not None and not (
            self.draws.order.max() < total and np.array_equal(self.draws.epoch(0), self.indices)
        ):
            raise ValueError(f"expected draws within [0, {total}) whose epoch 0 are the indices")


def _numbers(name: str, values: Any) -> dict[str, float]:
    """Return a mapping from names to numbers; refuse anything else that a damaged file may hold."""
    is_numbers = isinstance(values, dict) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in values.values()
    )
    if not is_numbers:
        raise ValueError(f"expected {name} to be numbers by name")
    return {key: float(value) for key, value in values.items()}


def _draws(meta: Any, arrays: dict[str, Any]) -> Draws | None:
    if meta is None:
        return None
    names = [name for name in (*_OF_DRAWS, *_OF_WORTH) if f"draws_{name}" in arrays]
    return Draws(**meta, **{name: arrays[f"draws_{name}"] for name in names})
