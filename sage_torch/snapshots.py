"""Snapshots: what a killed selection goes on from.

Of pass 1, a shard's sketch, its classes so far and its place in the shard; of pass 2, the sketched
gradients so far, in segments: all that follows from those is computed again, in the same order.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sage_torch import _core
from sage_torch.archive import pack, unpack, write_whole
from sage_torch.fingerprint import difference, short
from sage_torch.selection import Selection
from sage_torch.shards import Shard

_LOG = logging.getLogger("sage_torch")
_LONGEST_SEGMENT = 2**26  # bytes of sketched gradients that wait to be written
_NUMBERS = ("shrinkage", "squared_norm", "rows_seen", "weight")


class Snapshots:
    """The snapshots of one selection, in a folder of their own.

    Every file appears whole or not at all and carries checksums. Ranks that share the folder write
    the files of their own shards; a selection may go on with another number of ranks.

    Args:
        folder: Where; made when missing.
        every: Seconds between two snapshots: what a kill can cost, and a batch.
        fingerprint: What the selection is of.
        is_first: Whether this is rank 0, which writes what is common to all.

    Raises:
        ValueError: The folder holds snapshots of another model, data set or other options.
        OSError: It cannot be written.
    """

    def __init__(
        self, folder: str, every: float, fingerprint: dict[str, Any], *, is_first: bool
    ) -> None:
        self._folder, self._every = Path(folder), every
        self._name = short(fingerprint)
        self._last = time.monotonic()
        self._rows: list[NDArray[np.float32]] = []  # of pass 2, not written yet
        self._folder.mkdir(parents=True, exist_ok=True)
        found = self._fingerprint()
        if found is not None and (differs := difference(found, fingerprint)) is not None:
            raise ValueError(
                f"expected snapshots of this selection in {folder!r}, found those of {differs}: "
                "pass another checkpoint folder, or delete that one to start anew"
            )
        if is_first:
            for part in self._folder.glob("*.part"):  # of a process that was killed
                part.unlink(missing_ok=True)
            write_whole(self._folder / "fingerprint.json", json.dumps(fingerprint).encode())

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been written of any shard."""
        return not any(self._folder.glob("shard-*.npz"))

    def result(self) -> Selection | None:
        """Return the selection if it has been finished."""
        path = self._folder / "selection.npz"
        if not path.exists():
            return None
        try:
            selection = Selection.load(path)
            if selection.settings.get("fingerprint") != self._name:
                raise ValueError("another selection's")
        except ValueError as error:
            self._ignore(path, error)
            return None
        return selection

    def finish(self, selection: Selection) -> None:
        """Write the finished selection and remove what led to it."""
        selection.settings["fingerprint"] = self._name
        selection.save(self._folder / "selection.npz")
        for path in self._folder.glob("shard-*.npz"):
            path.unlink(missing_ok=True)

    def sketch(
        self, shard: Shard, load: Callable[[dict[str, Any], dict[str, NDArray[Any]]], None]
    ) -> int:
        """Give the latest snapshot of a shard's pass 1 to `load`; return how far it had come.

        Args:
            shard: The shard.
            load: `load(state, classes)`, a sketch's state and arrays of its classes, as saved.

        Returns:
            Examples of the shard in it; 0 where there is no readable one.
        """
        path = self._of(shard, "sketch")
        read = self._read(path)
        if read is None:
            return 0
        meta, arrays = read
        try:
            load(_state(meta, arrays), {name: arrays[name] for name in ("values", "ids")})
            done = int(meta["done"])
            if not 0 < done <= len(shard) or len(arrays["ids"]) != done:
                raise ValueError(f"expected 1 to {len(shard)} examples, got {done}")
        except (KeyError, TypeError, ValueError, _core.SageError) as error:
            self._ignore(path, error)
            return 0
        return done

    def save_sketch(
        self,
        shard: Shard,
        done: int,
        sketch: _core.FrequentDirections,
        classes: Callable[[], dict[str, NDArray[Any]]],
    ) -> None:
        """Write a snapshot of a shard's pass 1 if one is due, or the shard is done."""
        if done < len(shard) and not self._is_due():
            return
        state = sketch.state_dict()
        arrays = {name: _numpy(state[name]) for name in ("sketch", "pending")} | classes()
        arrays["singular_values"] = np.asarray(state["singular_values"], np.float64)
        arrays["pending_ids"] = np.asarray(state["pending_ids"], np.int32)
        for place, (_, sums) in enumerate(state["consensus"]):
            arrays[f"sums_{place}"] = _numpy(sums)
        meta = {name: state[name] for name in _NUMBERS}
        meta |= {"done": done, "bases": [orthonormal for orthonormal, _ in state["consensus"]]}
        self._write(self._of(shard, "sketch"), meta, arrays)

    def rows(self, shard: Shard, width: int) -> Iterator[NDArray[np.float32]]:
        """Yield the sketched gradients of a shard's pass 2 that were written, in reading order."""
        done = 0
        while done < len(shard):
            path = self._of(shard, f"rows-{done:012}")
            read = self._read(path)
            if read is None:
                return
            part = read[1].get("rows", np.empty(0))
            fits = part.dtype == np.float32 and part.ndim == 2 and part.shape[1] == width
            if not fits or not 0 < len(part) <= len(shard) - done or not np.isfinite(part).all():
                self._ignore(path, ValueError(f"got rows {part.dtype} {part.shape}"))
                return
            yield part
            done += len(part)

    def save_rows(self, shard: Shard, done: int, rows: NDArray[np.float32]) -> None:
        """Take a batch of sketched gradients, and write those that wait when it is time.

        Args:
            shard: The shard.
            done: Examples of it with this batch.
            rows: float32 (n, l).
        """
        self._rows.append(rows)
        waiting = sum(map(len, self._rows))
        is_long = 4 * waiting * rows.shape[1] > _LONGEST_SEGMENT
        if done == len(shard) or is_long or self._is_due():
            path = self._of(shard, f"rows-{done - waiting:012}")
            self._write(path, {}, {"rows": np.concatenate(self._rows)})
            self._rows.clear()

    def _of(self, shard: Shard, what: str) -> Path:
        return self._folder / f"shard-{shard.number:05}-{what}.npz"

    def _is_due(self) -> bool:
        return time.monotonic() - self._last >= self._every

    def _write(self, path: Path, meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        meta |= {"fingerprint": self._name, "file": path.name}
        write_whole(path, pack(meta, arrays, compress=False))
        self._last = time.monotonic()
        _LOG.debug("snapshot %s", path)

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        try:
            with open(path, "rb") as file:
                meta, arrays = unpack(file)
            if (meta.get("fingerprint"), meta.get("file")) != (self._name, path.name):
                raise ValueError("another selection's, or of another place in it")
        except FileNotFoundError:
            return None
        except ValueError as error:
            self._ignore(path, error)
            return None
        return meta, arrays

    def _fingerprint(self) -> dict[str, Any] | None:
        path = self._folder / "fingerprint.json"
        try:
            found = json.loads(path.read_bytes())
            if not isinstance(found, dict):
                raise ValueError(f"expected an object, got {type(found).__name__}")
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            self._ignore(path, error)
            return None
        return found

    def _ignore(self, path: Path, error: Exception) -> None:
        warnings.warn(
            f"ignoring the snapshot {os.fspath(path)!r}, and doing its part again: {error}",
            UserWarning,
            stacklevel=2,
        )


def _numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.cpu().numpy()
    return array


def _state(meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the `state_dict` of a sketch as it was saved."""
    state: dict[str, Any] = {name: meta[name] for name in _NUMBERS}
    state |= {name: torch.from_numpy(arrays[name]) for name in ("sketch", "pending")}
    state["singular_values"] = arrays["singular_values"].tolist()
    state["pending_ids"] = arrays["pending_ids"].tolist()
    state["consensus"] = [
        (bool(orthonormal), torch.from_numpy(arrays[f"sums_{place}"]))
        for place, orthonormal in enumerate(meta["bases"])
    ]
    return state
