"""Objects named on the command line as `module:name`, and the weights of a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_T = TypeVar("_T")


def named(place: str) -> Any:
    """Return the object named `module:name`; the module may be in the current folder.

    Args:
        place: Such as `"training.data:train_set"`; the name may contain attributes, `a.b`.

    Raises:
        ValueError: The place is not of that form, or the module has no such name.
        ImportError: The module, or a module that it imports, is missing.

    Example:
        >>> from sage_torch.command.objects import named
        >>> named("collections:OrderedDict.fromkeys")("ab")
        OrderedDict([('a', None), ('b', None)])
    """
    module, colon, name = place.partition(":")
    if module.endswith(".py"):
        raise ValueError(
            f"expected module:name, got the file {module!r}: in its folder, pass "
            f"{Path(module).stem}:{name or 'name'}"
        )
    if not (colon and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))):
        raise ValueError(
            f"expected module:name, got {place!r}; for make_model in training.py, pass "
            "training:make_model"
        )
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    found = import_module(module)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ValueError(
                f"expected {place!r} to exist: {error}; name what the module holds"
            ) from error
    return found


def made(place: str, is_wanted: Callable[[object], bool], wanted: str) -> Any:
    """Return the object named `module:name`, or its result when called.

    Args:
        place: As in `named`, for the object itself or a factory without arguments.
        is_wanted: Returns whether an object is of the needed kind.
        wanted: That kind in words.

    Raises:
        TypeError: Neither the object nor its result is of that kind.
        ValueError, ImportError: As `named`.
    """
    found = named(place)
    if not isinstance(found, type) and is_wanted(found):
        return found
    if not callable(found):
        raise TypeError(
            f"expected {place} to be {wanted} or a factory of one, got {type(found).__name__}"
        )
    result = found()
    if not is_wanted(result):
        raise TypeError(f"expected {place}() to return {wanted}, got {type(result).__name__}")
    return result


def make_model(place: str, weights: Path | None, device: str | None) -> nn.Module:
    """Return the model named by `module:name`, with weights from a file, on a device.

    Args:
        place: As in `made`.
        weights: A file for `load_weights`; None to keep the weights of the model.
        device: Name of a torch device; None to keep the device of the model.

    Raises:
        TypeError: The object is not a model.
        ValueError: The weights do not fit the model, or as `load_weights`.
    """
    model: nn.Module = made(place, lambda found: isinstance(found, nn.Module), "a torch.nn.Module")
    if weights is not None:
        state = load_weights(weights)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"expected the weights of {place} in '{weights}': {shorten(str(error), 250)}; pass "
                "a file with the state dict of this model"
            ) from error
    return model if device is None else model.to(device)


def make_dataset(place: str) -> Any:
    """Return the data set named by `module:name`.

    Raises:
        TypeError: The object has no length or no items.
    """
    return made(
        place,
        lambda found: hasattr(found, "__getitem__") and hasattr(found, "__len__"),
        "a map-style data set with __getitem__ and __len__",
    )


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict, on the CPU. Nothing in the file is executed.

    Args:
        path: A .safetensors file, or one written by `torch.save`, with a state dict or a dict that
            contains one under `"state_dict"`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no state dict, or more than tensors and numbers.
        ImportError: It is a .safetensors file, and safetensors is not installed.
    """
    with open(path, "rb"):  # raises a plain error if the file is missing or not readable
        pass
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"expected safetensors to read '{path}'; pip install safetensors"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"expected a state dict in '{path}', readable without executing it: "
            f"{shorten(str(error), 200)}; write one with torch.save(model.state_dict(), path)"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(
            f"expected a state dict in '{path}', got {type(found).__name__}; write one with "
            "torch.save(model.state_dict(), path)"
        )
    return found
