"""Objects that the command line names: `module:name`, and the weights of a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_T = TypeVar("_T")


def named(place: str) -> Any:
    """Return the object that `module:name` names; modules of the current folder are found.

    Args:
        place: Such as `"training.data:train_set"`; the name may go through attributes, `a.b`.

    Raises:
        ValueError: Not of that form, or the module has no such name.
        ImportError: There is no such module, or one that it needs is missing.

    Example:
        >>> from sage_torch.command.objects import named
        >>> named("collections:OrderedDict.fromkeys")("ab")
        OrderedDict([('a', None), ('b', None)])
    """
    module, colon, name = place.partition(":")
    if not (colon and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))):
        raise ValueError(f"expected module:name, such as training:make_model, got {place!r}")
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    found = import_module(module)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ValueError(f"expected {place!r} to exist: {error}") from error
    return found


def made(place: str, is_wanted: Callable[[object], bool], wanted: str) -> Any:
    """Return the object that `module:name` names, or what it returns when called.

    Args:
        place: As in `named`: a factory without arguments, or the object itself.
        is_wanted: Whether an object is of the kind that is needed.
        wanted: That kind in words.

    Raises:
        TypeError: Neither the object nor what it returns is of that kind.
        ValueError: As `named`.
        ImportError: As `named`.
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
    """Return the model that `module:name` names or makes, with weights from a file, on a device.

    Args:
        place: As in `made`.
        weights: A state dict as `load_weights` reads it; None for those that the model has.
        device: As torch names it; None for where the model is.

    Raises:
        TypeError: It is no model.
        ValueError: The weights do not fit the model, or as `load_weights`.
    """
    model: nn.Module = made(place, lambda found: isinstance(found, nn.Module), "a torch.nn.Module")
    if weights is not None:
        state = load_weights(weights)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"expected the weights of {place} in '{weights}': {error}") from error
    return model if device is None else model.to(device)


def make_dataset(place: str) -> Any:
    """Return the data set that `module:name` names or makes.

    Raises:
        TypeError: It has no length or no items.
    """
    return made(
        place,
        lambda found: hasattr(found, "__getitem__") and hasattr(found, "__len__"),
        "a map-style data set with __getitem__ and __len__",
    )


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict, on the CPU. Nothing in the file is executed.

    Args:
        path: What `torch.save` wrote of a state dict, or of a dict that holds one as
            `"state_dict"`; or a .safetensors file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no state dict, or more than tensors and numbers.
        ImportError: It is a .safetensors file, and safetensors is not installed.
    """
    with open(path, "rb"):  # what is missing or closed to us is said plainly
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
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise ValueError(
            f"expected a state dict in '{path}', readable without executing it: {error}"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"expected a state dict in '{path}', got {type(found).__name__}")
    return found
