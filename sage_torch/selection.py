"""The result of a selection: which examples, how they scored, and how sure the sketch is."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_torch.draws import Draws, whole_number

_FORMAT = 2
_READABLE = (1, 2)  # 1: before there were weights, draws and margins
_OF_DRAWS = ("order", "starts", "classes", "quotas")


@dataclass(frozen=True)
class Certificate:
    """What Frequent Directions guarantees of the sketch behind a selection.

    For every unit vector x: `0 <= |Ax|^2 - |Sx|^2 <= shrinkage`, A the compressed gradients, up to
    float32 rounding. The compression before the sketch is only probabilistic and not part of it.
    Each value is an attribute and, as in the saved JSON, an item.

    Attributes:
        shrinkage: `Delta`, the most that the sketch underestimates a squared length by.
        relative_shrinkage: `Delta / sigma_1^2`, the same against the strongest direction.
        squared_norm: `|A|_F^2`, the energy of all gradients.
        energy_kept: `|S|_F^2 / |A|_F^2`: at least this share of the energy lies in the sketch.
        energy_kept_at_most: `(|S|_F^2 + l Delta) / |A|_F^2`, at most 1: and no more than this.
        consensus_cosine: Smallest cosine over classes between the consensus that scored the
            examples and the exact one; 1 unless the consensus was streaming.

    Reference:
        Ghashami, Liberty, Phillips and Woodruff, SIAM J. Comput. 2016, Thm 1.1.
    """

    shrinkage: float
    relative_shrinkage: float
    squared_norm: float
    energy_kept: float
    energy_kept_at_most: float
    consensus_cosine: float

    def __getitem__(self, name: str) -> float:
        return float(asdict(self)[name])


@dataclass(frozen=True, eq=False)
class Selection:
    """A subset of a data set and why it is that one.

    Attributes:
        indices: int64 (k,), ascending, no repeats: the examples to train on (in epoch 0, where
            each epoch draws its own).
        scores: float32 (N,) in [-1, 1]: every example's agreement with its consensus, in the basis
            that was asked for; NaN throughout for `rule="random"`.
        labels: int64 (N,) as the data set has them, or None where it has none.
        certificate: What the sketch guarantees; None for `rule="random"`.
        seconds: Wall time of `pass_1`, `pass_2`, `rule` and in `total`.
        settings: What was asked for and chosen, JSON-able: options, gradients, versions, and
            `trimmed`, how many examples the trim dropped.
        weights: float32 (k,), beside `indices`: how many untrimmed examples of its class each kept
            one stands for, itself included; None unless asked for.
        draws: What each epoch sees; None for `draw="fixed"`.
        margins: float32 (N,) in [-1.5, 1]: every example's agreement with its own class less half
            of its opposition to the class that it opposes most, in the weighted basis: what the
            trim reads, and a better mark of wrong labels than `scores`, of which few are negative.
            Below 0, an example opposes another class more than twice as much as it agrees with its
            own. With one class (`class_balanced=False`, or no labels) it is the agreement itself.
            None for `rule="random"`.

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

    def __post_init__(self) -> None:
        for array in (self.indices, self.scores, self.labels, self.weights, self.margins):
            if array is not None:
                array.setflags(write=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()  # NumPy's read-only flag does not survive pickling and copying

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        rule = self.settings.get("rule", "unknown rule")
        return f"Selection({len(self.indices):,} of {len(self.scores):,} examples, {rule})"

    def epoch_indices(self, epoch: int) -> NDArray[np.int64]:
        """Return the examples of an epoch, a function of the epoch and this selection.

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
        path = Path(path)
        meta: dict[str, Any] = {
            "format": _FORMAT,
            "has_labels": self.labels is not None,
            "has_weights": self.weights is not None,
            "has_margins": self.margins is not None,
            "draws": None,
            "certificate": None if self.certificate is None else asdict(self.certificate),
            "seconds": self.seconds,
            "settings": self.settings,
        }
        arrays: dict[str, Any] = {"indices": self.indices, "scores": self.scores}
        if self.labels is not None:
            arrays["labels"] = self.labels
        if self.weights is not None:
            arrays["weights"] = self.weights
        if self.margins is not None:
            arrays["margins"] = self.margins
        if self.draws is not None:
            meta["draws"] = {
                "draw": self.draws.draw,
                "seed": self.draws.seed,
                "is_herded": self.draws.is_herded,
            }
            arrays |= {f"draws_{name}": getattr(self.draws, name) for name in _OF_DRAWS}
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        try:
            with open(part, "xb") as file:  # with the permissions that the user's umask gives
                np.savez_compressed(
                    file, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays
                )
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

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
        try:
            opened = np.load(path, allow_pickle=False)
            if not isinstance(opened, np.lib.npyio.NpzFile):
                raise ValueError("expected a .npz archive")
            with opened as file:
                arrays = {name: file[name] for name in file.files}
            meta = json.loads(arrays.pop("meta").tobytes())
            if meta["format"] not in _READABLE:
                raise ValueError(
                    f"expected a format up to {_FORMAT}, got {meta['format']}; read it with the "
                    "version of sage_torch that wrote it"
                )
            loaded = cls(
                indices=arrays["indices"],
                scores=arrays["scores"],
                labels=arrays["labels"] if meta["has_labels"] else None,
                certificate=(
                    None if meta["certificate"] is None else Certificate(**meta["certificate"])
                ),
                seconds=dict(meta["seconds"]),
                settings=dict(meta["settings"]),
                weights=arrays["weights"] if meta.get("has_weights") else None,
                draws=_draws(meta.get("draws"), arrays),
                margins=arrays["margins"] if meta.get("has_margins") else None,
            )
            loaded._check()
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except Exception as error:  # a damaged zip raises whatever its bytes lead to
            raise ValueError(f"{os.fspath(path)!r} holds no readable selection: {error}") from error
        return loaded

    def _check(self) -> None:
        total = len(self.scores)
        k = len(self.indices)
        shapes_fit = (
            self.indices.dtype == np.int64
            and self.scores.dtype == np.float32
            and self.indices.ndim == self.scores.ndim == 1
            and (
                self.labels is None
                or (self.labels.shape == (total,) and self.labels.dtype == np.int64)
            )
            and (
                self.weights is None
                or (self.weights.shape == (k,) and self.weights.dtype == np.float32)
            )
            and (
                self.margins is None
                or (self.margins.shape == (total,) and self.margins.dtype == np.float32)
            )
        )
        if not shapes_fit or not k:
            raise ValueError(
                "expected int64 indices (k,) and labels (N,), float32 scores and margins (N,) and "
                "weights (k,)"
            )
        if self.indices[0] < 0 or self.indices[-1] >= total or (np.diff(self.indices) <= 0).any():
            raise ValueError(f"expected ascending indices within [0, {total})")
        if self.weights is not None and not (self.weights >= 1).all():
            raise ValueError("expected weights of at least 1")
        if self.draws is not None and not (
            self.draws.order.max() < total and np.array_equal(self.draws.epoch(0), self.indices)
        ):
            raise ValueError(f"expected draws within [0, {total}) whose epoch 0 are the indices")


def _draws(meta: Any, arrays: dict[str, Any]) -> Draws | None:
    if meta is None:
        return None
    return Draws(**meta, **{name: arrays[f"draws_{name}"] for name in _OF_DRAWS})
