"""A selection as one file: NumPy arrays and a JSON text in a zip (.npz)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sage_torch.selection.archive import pack, unpack
from sage_torch.selection.certificate import Certificate
from sage_torch.selection.coordinates import Coordinates
from sage_torch.selection.draws import Draws
from sage_torch.selection.table import described

_FORMAT = 5
# Arrays by name: their dtype, and the length of their one axis: N, k, or any.
_ARRAYS: dict[str, tuple[type, str | None]] = {
    "indices": (np.int64, "k"),
    "scores": (np.float32, "N"),
    "labels": (np.int64, "N"),
    "weights": (np.float32, "k"),
    "margins": (np.float32, "N"),
    "singular_values": (np.float64, None),
    "probabilities": (np.float32, "N"),
    "is_wrong": (np.float32, "N"),
    "predicted": (np.int32, "N"),
    "label_scores": (np.float32, "N"),
    "ranks": (np.int64, "k"),
    "duplicate_of": (np.int64, "N"),
}
_JUDGED = ("labels", "probabilities", "is_wrong", "predicted")
_START = 64  # bytes that tell files apart
_OF_DRAWS = ("order", "starts", "classes", "quotas", "hard", "right")  # the last two may be missing


def to_bytes(fields: dict[str, Any]) -> bytes:
    """Return the bytes of a file that holds these fields of a selection."""
    arrays = {name: fields[name] for name in _ARRAYS if fields[name] is not None}
    draws: Draws | None = fields["draws"]
    certificate: Certificate | None = fields["certificate"]
    coordinates: Coordinates | None = fields["coordinates"]
    meta: dict[str, Any] = {
        "format": _FORMAT,
        "arrays": list(arrays),
        "draws": None,
        "certificate": None if certificate is None else asdict(certificate),
        "coordinates": None,
        "seconds": fields["seconds"],
        "settings": fields["settings"],
    }
    if draws is not None:
        numbers = ("draw", "seed", "is_herded", "exponent")
        meta["draws"] = {name: getattr(draws, name) for name in numbers}
        there = [name for name in _OF_DRAWS if getattr(draws, name) is not None]
        arrays |= {f"draws_{name}": getattr(draws, name) for name in there}
    if coordinates is not None:
        meta["coordinates"] = coordinates.meta()
        arrays |= {f"coordinates_{name}": each for name, each in coordinates.arrays().items()}
    return pack(meta, arrays, compress=True)


def read(source: bytes | BinaryIO) -> dict[str, Any]:
    """Return the fields of the selection that a file holds. Nothing in it is executed.

    Raises:
        ValueError: It is of another format, or damaged. Damaged bytes may raise anything else.
    """
    _refuse_other_files(source)
    meta, arrays = unpack(source)
    if meta["format"] != _FORMAT:
        raise ValueError(
            f"expected format {_FORMAT}, got {meta['format']}; read it with the version of "
            "sage_torch that wrote it, or select again"
        )
    names, settings = meta["arrays"], meta["settings"]
    if not isinstance(names, list) or not all(name in _ARRAYS and name in arrays for name in names):
        raise ValueError(f"expected arrays among {', '.join(_ARRAYS)}, got {names}")
    fields: dict[str, Any] = {name: arrays[name] if name in names else None for name in _ARRAYS}
    fields["certificate"] = None
    if meta["certificate"] is not None:
        fields["certificate"] = Certificate(**_numbers("certificate", meta["certificate"]))
    fields["seconds"] = _numbers("seconds", meta["seconds"])
    if not isinstance(settings, dict):
        raise ValueError(f"expected settings by name, got {type(settings).__name__}")
    fields["settings"] = settings
    fields["draws"] = None
    if meta["draws"] is not None:
        of_draws: dict[str, Any] = {
            name: arrays[f"draws_{name}"] for name in _OF_DRAWS if f"draws_{name}" in arrays
        }
        fields["draws"] = Draws(**meta["draws"], **of_draws)
    _check(fields)
    fields["coordinates"] = None
    if meta["coordinates"] is not None:
        start = "coordinates_"
        parts = {name[len(start) :]: arrays[name] for name in arrays if name.startswith(start)}
        fields["coordinates"] = Coordinates.read(meta["coordinates"], parts, len(fields["scores"]))
        if fields["coordinates"].known and any(fields[name] is None for name in _JUDGED):
            raise ValueError(f"expected {', '.join(_JUDGED)} beside coordinates with a calibration")
    return fields


def _refuse_other_files(source: bytes | BinaryIO) -> None:
    """Name what else `Selection.save` writes: it holds too little for a selection."""
    if isinstance(source, bytes):
        start = source[:_START]
    else:
        start = source.read(_START)
        source.seek(0)
    found = described(start)
    if found is not None:
        raise ValueError(f"expected a .npz archive, got {found}")


def _check(fields: dict[str, Any]) -> None:
    if fields["indices"] is None or fields["scores"] is None:
        raise ValueError("expected indices and scores")
    indices, total = fields["indices"], len(fields["scores"])
    lengths = {"N": total, "k": len(indices)}
    for name, (dtype, axis) in _ARRAYS.items():
        array = fields[name]
        if array is None:
            continue
        fits = array.ndim == 1 and (axis is None or len(array) == lengths[axis])
        if array.dtype != dtype or not fits:
            raise ValueError(
                f"expected {name} to be {np.dtype(dtype)} with one axis of the right length, got "
                f"{array.dtype} {tuple(array.shape)}"
            )
    if not len(indices):
        raise ValueError("expected at least one index")
    # Differences could overflow.
    if indices[0] < 0 or indices[-1] >= total or (indices[1:] <= indices[:-1]).any():
        raise ValueError(f"expected ascending indices within [0, {total})")
    _check_values(fields, total)


def _check_values(fields: dict[str, Any], total: int) -> None:
    weights, ranks, draws = fields["weights"], fields["ranks"], fields["draws"]
    if weights is not None and not ((weights >= 1) & np.isfinite(weights)).all():
        raise ValueError("expected finite weights of at least 1")
    for name in ("probabilities", "is_wrong", "label_scores"):
        likely = fields[name]
        if likely is not None and not ((likely >= 0) & (likely <= 1)).all():  # nor NaN
            raise ValueError(f"expected {name} within [0, 1]")
    if ranks is not None and not np.array_equal(np.sort(ranks), np.arange(len(ranks))):
        raise ValueError("expected each of k ranks once")
    predicted, labels = fields["predicted"], fields["labels"]
    if predicted is not None:
        classes = 0 if labels is None else len(np.unique(labels))
        _within("predicted classes", predicted, 0, classes)
    duplicate_of = fields["duplicate_of"]
    if duplicate_of is not None:
        _within("duplicates", duplicate_of, -1, total)
        if (duplicate_of[duplicate_of[duplicate_of >= 0]] >= 0).any():
            raise ValueError("expected duplicates of examples that are none themselves")
    if draws is not None and not (
        draws.order.max() < total and np.array_equal(draws.epoch(0), fields["indices"])
    ):
        raise ValueError(f"expected draws within [0, {total}) whose epoch 0 are the indices")


def _within(name: str, values: NDArray[Any], low: int, high: int) -> None:
    if len(values) and not (low <= values.min() and values.max() < high):
        raise ValueError(f"expected {name} within [{low}, {high})")


def _numbers(name: str, values: Any) -> dict[str, float]:
    """Return a mapping from names to numbers; refuse anything else that a damaged file may hold."""
    is_numbers = isinstance(values, dict) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in values.values()
    )
    if not is_numbers:
        raise ValueError(f"expected {name} to be numbers by name")
    return {key: float(value) for key, value in values.items()}
