"""Identifies a selection's model, data set and options in few enough words to compare."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from sage_torch.options import Options
from sage_torch.reading.digest import digest

_PROBED = 16
_SAME_GRADIENT = 0.01  # share of its length: rounding is far below, another loss far above


def probed(total: int) -> NDArray[np.int64]:
    """Return the indices, int64, of the at most 16 examples that are compared."""
    return np.unique(np.arange(_PROBED) * total // _PROBED)


def fingerprint(
    model: nn.Module,
    dataset: Dataset[Any],
    options: Options,
    batch: object,
    gradients: Tensor | None,
    *,
    k: int,
    shards: int,
) -> dict[str, Any]:
    """Return all that must be equal for a selection to resume where another one stopped.

    Args:
        model: Its modules, parameters and buffers are hashed.
        dataset: The examples. Its type and length are hashed, and its
            labels where the option `labels`, `targets`, `labels` or the tensors of a TensorDataset
            hold them.
        options: All options; those that affect the subset are compared.
        batch: Its `probed` items, collated; None if two readings of them differ.
        gradients: Their gradients (P, D), compared up to rounding. They depend on the chosen loss,
            parameters and computer. None if there are none.
        k: Number of examples to keep.
        shards: Number of shards.

    Returns:
        A dict that fits into JSON: `model`, `data set`, `options`, `gradients`, `versions`.

    Cost:
        One reading of the model's memory and of the labels.
    """
    from sage_torch.version import __version__

    known = _known_of(dataset)
    if isinstance(options.labels, np.ndarray):
        known.append(options.labels)
    parameters = [(name, p.requires_grad, p) for name, p in model.named_parameters()]
    return {
        "model": digest([repr(model), parameters, list(model.named_buffers())]),
        "data set": digest([len(dataset), batch, known]),  # type: ignore[arg-type]
        "options": options.naming_the_subset() | {"k": k, "shards": shards},
        "gradients": [] if gradients is None else _shown(gradients),
        "versions": {"sage_torch": __version__, "torch": torch.__version__.split("+")[0]},
    }


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Say in words how two fingerprints differ; None if they do not."""
    parts = [
        f"another {name}" for name in ("model", "data set") if found.get(name) != expected[name]
    ]
    there, here = found.get("options"), expected["options"]
    if there != here:
        there = there if isinstance(there, dict) else {}
        names = [n for n in sorted({*there, *here}) if there.get(n) != here.get(n)]
        shown = ", ".join(f"{n}={there.get(n)!r} there, {here.get(n)!r} here" for n in names)
        parts.append(f"other options ({shown})")
    if not parts and not _are_same(found.get("gradients"), expected["gradients"]):
        parts.append("other gradients (another loss, other parameters or another computer)")
    if found.get("versions") != expected["versions"]:
        parts.append("other versions")
    return " and ".join(parts) or None


def short(whole: Mapping[str, Any]) -> str:
    """Return a fingerprint as one word, without the part that is compared up to rounding."""
    exact = {name: value for name, value in whole.items() if name != "gradients"}
    text = json.dumps(exact, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _shown(gradients: Tensor) -> list[list[float]]:
    """Return D in a row of its own, then the length and one seeded projection of each row."""
    rows = gradients.detach().double().cpu()
    direction = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0)).double()
    pairs = torch.stack([rows.norm(dim=1), rows @ direction / max(1, len(direction)) ** 0.5], dim=1)
    return [[float(rows.shape[1])], *pairs.tolist()]


def _are_same(found: object, expected: list[list[float]]) -> bool:
    if not isinstance(found, list) or len(found) != len(expected):
        return False
    if not expected:
        return True
    if found[0] != expected[0]:
        return False
    for there, here in zip(found[1:], expected[1:], strict=True):
        if not (isinstance(there, list) and len(there) == len(here) == 2):
            return False
        if not all(isinstance(value, float) for value in there):
            return False
        longest = max(abs(here[0]), abs(there[0]), 1e-30)
        if not all(
            math.isclose(a, b, rel_tol=0, abs_tol=_SAME_GRADIENT * longest)
            for a, b in zip(there, here, strict=True)
        ):
            return False
    return True


def _known_of(dataset: object) -> list[Any]:
    """Return what can be known of a data set without reading items."""
    known: list[Any] = [type(dataset).__qualname__]
    if isinstance(dataset, Subset):
        return [*known, np.asarray(dataset.indices), _known_of(dataset.dataset)]
    if isinstance(dataset, TensorDataset):
        return [*known, [t for t in dataset.tensors if t.ndim == 1 and not t.is_floating_point()]]
    for name in ("targets", "labels", "_fingerprint"):
        # Not a property, which may read: only workers may be meant to.
        value = inspect.getattr_static(dataset, name, None)
        if isinstance(value, (Tensor, np.ndarray, list, tuple, str)):
            known.append(value)
    return known
