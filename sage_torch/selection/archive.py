"""One file for arrays and what describes them: a zip of NumPy arrays and a JSON text (.npz)."""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_META = "meta"


def pack(meta: dict[str, Any], arrays: Mapping[str, NDArray[Any]], *, compress: bool) -> bytes:
    """Return the file's bytes; each array carries a checksum (the zip's CRC-32).

    Args:
        meta: JSON-able.
        arrays: By name, none of them "meta".
        compress: Whether to deflate: smaller, and many times slower.
    """
    file = io.BytesIO()
    save = np.savez_compressed if compress else np.savez
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    save(file, **{_META: text, **arrays})  # type: ignore[arg-type]
    return file.getvalue()


def unpack(source: bytes | BinaryIO) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return what was packed. Nothing in it is executed.

    Raises:
        ValueError: It is no such file, or a damaged one.
    """
    try:
        opened = np.load(
            io.BytesIO(source) if isinstance(source, bytes) else source, allow_pickle=False
        )
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("expected a .npz archive")
        with opened as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop(_META).tobytes())
        if not isinstance(meta, dict):
            raise ValueError(f"expected a description in JSON, got {type(meta).__name__}")
    except Exception as error:  # a damaged zip raises whatever its bytes lead to
        raise ValueError(f"damaged, or no archive of sage_torch: {error}") from error
    return meta, arrays


def lock(file: BinaryIO) -> None:
    """Take a file for this process until it is closed, or the process ends, however it ends.

    Where the system has no such locks (Windows), nothing is taken. Children do not inherit it.

    Raises:
        OSError: Another process has it.
    """
    try:
        import fcntl
    except ImportError:
        return
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that appears whole or not at all: written beside `path` and moved there."""
    path = Path(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:  # with the permissions that the user's umask gives
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else the name can outlive a power cut, and the bytes not
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
