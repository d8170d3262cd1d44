"""What an option may be given as, on the command line and in a configuration file alike."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any

_WORDS: dict[str, bool | None] = {"none": None, "null": None, "true": True, "false": False}
_LONGEST = 2**16  # bytes; a configuration is a page of text


def scalar(value: Any) -> Any:
    """Return what a word stands for: None, a truth value, a whole number, a number, or itself.

    Args:
        value: A word of the command line; anything that a configuration holds is returned as it is.

    Example:
        >>> from sage_torch.command.values import scalar
        >>> [scalar(word) for word in ("none", "true", "64", "0.25", "negative")]
        [None, True, 64, 0.25, 'negative']
    """
    if not isinstance(value, str):
        return value
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def word(value: Any) -> str:
    """Return what `scalar` reads as `value`.

    Args:
        value: None, a truth value, a number or a text.
    """
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def read_configuration(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """Return the options of a YAML or JSON file. Nothing in it is executed.

    Args:
        path: Ends in .yaml, .yml or .json; one mapping from names to values. Dashes in names are
            read as underscores.
        known: Names that may occur.

    Returns:
        By name: None, truth values, numbers, texts and lists of texts.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no such mapping, a name is unknown or occurs twice, or a value is of
            another kind.
        ImportError: It is YAML, and PyYAML is not installed.
    """
    wanted = f"expected {str(path)!r} to be"
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise ValueError(f"{wanted} named .yaml, .yml or .json, which says how to read it")
    with open(path, "rb") as file:
        data = file.read(_LONGEST + 1)
    if len(data) > _LONGEST:
        raise ValueError(f"{wanted} at most {_LONGEST:,} bytes long")
    try:
        text = data.decode("utf-8")
        is_json = path.suffix.lower() == ".json"
        read = json.loads(text, object_pairs_hook=_once) if is_json else _yaml(text)
    except RecursionError as error:
        raise ValueError(f"{wanted} a flat mapping, got one nested too deeply to read") from error
    except ImportError:
        raise
    except Exception as error:  # a damaged text raises whatever its characters lead to
        words = shorten(str(error), 250)
        raise ValueError(f"{wanted} readable: {words}; correct it there") from error
    if not isinstance(read, dict):
        raise ValueError(f"{wanted} one mapping from options to values, got {_kind(read)}")
    return _checked(read, sorted(known), str(path))


def _checked(read: dict[Any, Any], known: list[str], path: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in read.items():
        name = key.replace("-", "_") if isinstance(key, str) else None
        if name not in known:
            near = get_close_matches(key[:60], known, n=1) if isinstance(key, str) else []
            cure = (
                f"did you mean {near[0]!r}?"
                if near
                else f"known are {shorten(', '.join(known), 250)}"
            )
            shown = repr(key[:60]) if isinstance(key, str) else _kind(key)
            raise ValueError(f"expected known options in {path!r}, got {shown}: {cure}")
        if name in values:
            raise ValueError(f"expected each option once in {path!r}, got {name!r} twice")
        is_texts = isinstance(value, list) and all(isinstance(part, str) for part in value)
        if not (is_texts or value is None or isinstance(value, (bool, int, float, str))):
            raise ValueError(
                f"expected {name!r} in {path!r} to be a text, a number, true, false, null or a "
                f"list of texts, got {_kind(value)}"
            )
        values[name] = value
    return values


def _kind(value: object) -> str:
    """Name the kind of a value; the value itself may be as long as the file allows."""
    return f"a value of type {type(value).__name__}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; of a name that is there twice, JSON would keep the last."""
    read: dict[str, Any] = {}
    for name, value in pairs:
        if name in read:
            raise ValueError(f"expected each option once, got {name[:60]!r} twice")
        read[name] = value
    return read


def _yaml(text: str) -> Any:
    """Return what a YAML text says, by its safe part: no tags that make objects, no references.

    References let a page of text stand for more than any memory holds.
    """
    try:
        yaml: Any = import_module("yaml")
    except ModuleNotFoundError as error:
        raise ImportError(
            "expected PyYAML for a .yaml file; pip install 'sage-torch[command]', or "
            "write the same as .json"
        ) from error

    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("expected no references (*name); write the value again")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > 2:  # reading on would take a time that grows with the square of the depth
            raise ValueError("expected a mapping to values and lists, got more levels")
    root = yaml.compose(text, yaml.SafeLoader)
    if isinstance(root, yaml.MappingNode):
        _once([(key.value, None) for key, _ in root.value if isinstance(key, yaml.ScalarNode)])
    return yaml.safe_load(text)
