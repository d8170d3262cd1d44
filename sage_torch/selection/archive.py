"""One file for arrays and their description: a zip of NumPy arrays and a JSON text (.npz)."""

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
_ZIP = b"PK\x03\x04"


def pack(meta: dict[str, Any], arrays: Mapping[str, NDArray[Any]], *, compress: bool) -> bytes:
    """Return the bytes of the file; each array has a checksum (the CRC-32 of the zip).

    Args:
        meta: The description, which JSON can encode.
        arrays: Arrays by name, none of them "meta".
        compress: Whether to deflate, which makes the file smaller and takes many times longer.
    """
    file = io.BytesIO()
    save = np.savez_compressed if compress else np.savez
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    save(file, **{_META: text, **arrays})  # type: ignore[arg-type]
    return file.getvalue()


def unpack(source: bytes | BinaryIO) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the packed description and arrays. Nothing in the file is executed.

    Raises:
        ValueError: The file is not of this form, or is damaged.
    """
    try:
        file_like = io.BytesIO(source) if isinstance(source, bytes) else source
        start = file_like.read(len(_ZIP))
        if start != _ZIP:  # NumPy would take it for a pickle
            raise ValueError(f"expected a .npz archive, got a file that begins with {start!r}")
        file_like.seek(0)
        opened = np.load(file_like, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("expected a .npz archive")
        with opened as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop(_META).tobytes())
        if not isinstance(meta, dict):
            raise ValueError(f"expected a description in JSON, got {type(meta).__name__}")
    except Exception as error:  # a damaged zip can raise anything
        raise ValueError(f"damaged, or no archive of sage_torch: {error}") from error
    return meta, arrays


def lock(file: BinaryIO) -> None:
    """Lock a file for this process until it is closed or the process ends, even by a kill.

    Children do not inherit the lock. A system without such locks (Windows) locks nothing.

    Raises:
        OSError: Another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        return
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that appears whole or not at all: it is written beside `path`, then moved."""
    path = Path(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:  # unlike a temporary file, it gets the permissions of umask
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut may leave the name without the bytes
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
