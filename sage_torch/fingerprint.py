"""What a selection is of: a model, a data set and options, in a few short words that compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sage_torch.options import Options

_PROBED = 16
# What changes no example's place in the subset.
_INDIFFERENT = (
    "batch_size",
    "checkpoint",
    "checkpoint_every",
    "distributed",
    "num_workers",
    "progress",
)


def fingerprint(
    model: nn.Module, dataset: Dataset[Any], options: Options, *, k: int, shards: int
) -> dict[str, Any]:
    """Return what must be the same for a selection to go on where another one stopped.

    Args:
        model: Its parameters and buffers are hashed, by name.
        dataset: Its type and length, and a few items of it (call it with random states seeded).
        options: All that bear on the subset; callables by their names only.
        k: The budget.
        shards: Number of shards.

    Returns:
        JSON-able: `model`, `data set`, `options`, `versions`.

    Cost:
        One reading of the model's memory and of 16 examples.
    """
    from sage_torch import __version__

    read = dataset if options.score_dataset is None else options.score_dataset
    total = len(read)  # type: ignore[arg-type]
    places = sorted({total * i // _PROBED for i in range(_PROBED)})
    asked = {name: v for name, v in options.as_json().items() if name not in _INDIFFERENT}
    return {
        "model": _digest(dict(model.state_dict(keep_vars=True))),
        "data set": _digest([type(read).__qualname__, total, [read[i] for i in places]]),
        "options": asked | {"k": k, "shards": shards},
        "versions": {"sage_torch": __version__, "torch": torch.__version__.split("+")[0]},
    }


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Say in words where two fingerprints differ; None if they do not."""
    parts = []
    for name in ("model", "data set", "versions"):
        if found.get(name) != expected[name]:
            parts.append(f"another {name}" if name != "versions" else "other versions")
    there, here = found.get("options"), expected["options"]
    if there != here:
        there = there if isinstance(there, dict) else {}
        names = [n for n in sorted({*there, *here}) if there.get(n) != here.get(n)]
        shown = ", ".join(f"{n}={there.get(n)!r} there, {here.get(n)!r} here" for n in names)
        parts.append(f"other options ({shown})")
    return " and ".join(parts) or None


def short(print_of_selection: Mapping[str, Any]) -> str:
    """Return a fingerprint as one word."""
    text = json.dumps(print_of_selection, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _digest(value: object) -> str:
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()[:32]


def _feed(digest: Any, value: object) -> None:
    """Hash contents, not identities; of an object of no known kind, its type."""
    if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta:
        dense = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(f"{dense.dtype} {tuple(dense.shape)}".encode())
        digest.update(dense.view(-1).view(torch.uint8).numpy().data if dense.numel() else b"")
    elif isinstance(value, (np.ndarray, np.generic)):
        array = np.ascontiguousarray(value)
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.tobytes() if array.dtype != object else repr(array).encode())
    elif isinstance(value, Mapping):
        for name, item in value.items():
            digest.update(f"{name}:".encode())
            _feed(digest, item)
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}]".encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, bytes):
        digest.update(value)
    elif isinstance(value, (str, int, float, complex, type(None))):
        digest.update(repr(value).encode())
    elif hasattr(value, "__array__") or hasattr(value, "__array_interface__"):  # pictures
        _feed(digest, np.asarray(value))
    elif is_dataclass(value):
        _feed(digest, {field.name: getattr(value, field.name) for field in fields(value)})
    else:
        digest.update(type(value).__qualname__.encode())
