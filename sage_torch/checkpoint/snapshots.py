"""Snapshots, from which a killed selection resumes.

Pass 1 saves a shard's sketch and what the sketch carries along, the classes so far, and the place
in the shard. Pass 2 saves the sketched gradients so far, in segments. All that follows from those
is computed again, in the same order.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

import sage_torch._core as _core
from sage_torch.checkpoint.fingerprint import short
from sage_torch.checks import warn
from sage_torch.reading.digest import digest
from sage_torch.reading.shards import Shard
from sage_torch.selection.archive import lock, pack, unpack, write_whole
from sage_torch.selection.result import Selection

_LOG = logging.getLogger("sage_torch")
SECONDS_BETWEEN = 30.0  # of the passes: a kill loses at most this, and a batch
_LONGEST_SEGMENT = 2**26  # most bytes of sketched gradients that wait to be written
Load = Callable[[dict[str, Any], dict[str, NDArray[Any]]], None]
_FINGERPRINT, _RESULT = "fingerprint.json", "selection.npz"
_OF_COORDINATES = ("rows", "starts", "changes")
_NUMBERS = ("shrinkage", "squared_norm", "rows_seen", "weight")


class OtherSnapshotsError(ValueError):
    """A folder holds the snapshots of another selection.

    Attributes:
        differs: How they differ, in words.
    """

    def __init__(self, folder: str, differs: str) -> None:
        super().__init__(
            f"expected snapshots of this selection in {folder!r}, found those of {differs}: pass "
            "another checkpoint folder, or delete that one to start anew"
        )
        self.differs = differs


class NoSnapshots:
    """Used without a folder: nothing is found and nothing is written."""

    def __enter__(self) -> None:
        """Begin to write."""

    def __exit__(self, *_: object) -> None:
        """Let other processes write there."""

    def follow(self, sketch: _core.FrequentDirections) -> None:
        """Note the sketch of pass 1: sketched gradients under another sketch cannot be used."""

    def sketch(self, shard: Shard, load: Load) -> int:
        """Give the latest snapshot of a shard's pass 1 to `load`; return how far it had got.

        Args:
            shard: The shard.
            load: `load(state, classes)` takes a sketch's state and its classes' arrays, as saved.

        Returns:
            Number of the shard's examples in it; 0 without a readable snapshot.
        """
        return 0

    def save_sketch(
        self,
        shard: Shard,
        done: int,
        sketch: _core.FrequentDirections,
        classes: Callable[[], dict[str, NDArray[Any]]],
    ) -> None:
        """Write a snapshot of a shard's pass 1 if one is due or the shard is done."""

    def rows(self, shard: Shard, width: int) -> Iterator[NDArray[np.float32]]:
        """Yield the saved sketched gradients of a shard's pass 2, in reading order."""
        return iter(())

    def save_rows(self, shard: Shard, done: int, rows: NDArray[np.float32]) -> None:
        """Take a batch of sketched gradients, and write all that wait if a snapshot is due.

        Args:
            shard: The shard.
            done: How many of its examples are done, this batch included.
            rows: float32 (n, l).
        """

    def sign(self, selection: Selection) -> None:
        """Mark a selection as the result of these snapshots."""

    def finish(self, selection: Selection, shards: Sequence[Shard], *, is_first: bool) -> None:
        """Write the finished selection and remove its snapshots.

        Args:
            selection: The result, already signed.
            shards: The shards whose files this rank has written.
            is_first: Whether this is rank 0, which writes the selection.
        """


class Snapshots(NoSnapshots):
    """The snapshots of one selection, in a folder of their own.

    Every file appears whole or not at all, and carries checksums. Ranks write the files of their
    own shards. If they share the folder, a selection may resume with another number of ranks.

    Args:
        folder: The folder.
        fingerprint: Identifies the selection.
    """

    def __init__(self, folder: str, fingerprint: dict[str, Any]) -> None:
        self._folder, self._fingerprint = Path(folder), fingerprint
        self.name = short(fingerprint)
        self._last = time.monotonic()
        self._rows: list[NDArray[np.float32]] = []  # rows of pass 2, not written yet
        self._of_sketch = ""
        self._lock: BinaryIO | None = None

    def found(self) -> dict[str, Any] | None:
        """Return the fingerprint of the selection in the folder; None if there is none.

        Raises:
            ValueError: It holds a selection without a fingerprint.
        """
        path = self._folder / _FINGERPRINT
        try:
            found = json.loads(path.read_bytes())
            if not isinstance(found, dict):
                raise ValueError(f"expected an object, got {type(found).__name__}")
        except FileNotFoundError:
            if (self._folder / _RESULT).exists():
                raise ValueError(
                    f"expected a folder for snapshots alone, but {os.fspath(self._folder)!r} holds "
                    f"a {_RESULT} of another origin; pass another checkpoint folder"
                ) from None
            return None
        except (ValueError, RecursionError) as error:
            self._ignore(path, error)
            return None
        return found

    def result(self) -> Selection | None:
        """Return the selection if it is finished, else None."""
        path = self._folder / _RESULT
        if not path.exists():
            return None
        try:
            selection = Selection.load(path)
            if selection.settings.get("fingerprint") != self.name:
                raise ValueError("another selection's")
        except ValueError as error:
            self._ignore(path, error)
            return None
        return selection

    def open(self, *, is_first: bool) -> None:
        """Begin to write.

        Args:
            is_first: Whether this is rank 0, which writes what all ranks share.

        Raises:
            RuntimeError: Another process is writing to the folder.
            OSError: The folder cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if not is_first:
            return
        self._lock = open(self._folder / "lock", "ab")  # noqa: SIM115  (held until `close`)
        try:
            lock(self._lock)
        except OSError as error:
            self._lock.close()
            raise RuntimeError(
                f"expected {os.fspath(self._folder)!r} for this process alone, but another one is "
                "selecting with it; give each selection a checkpoint folder of its own"
            ) from error
        for what in ("shard-*.npz", _RESULT, _FINGERPRINT):
            for part in self._folder.glob(f"{what}.*.part"):  # left by a process that was killed
                part.unlink(missing_ok=True)
        write_whole(self._folder / _FINGERPRINT, json.dumps(self._fingerprint).encode())

    @override
    def finish(self, selection: Selection, shards: Sequence[Shard], *, is_first: bool) -> None:
        if is_first:
            selection.save(self._folder / _RESULT)
        for shard in shards:
            for path in self._folder.glob(self._of(shard, "*").name):
                path.unlink(missing_ok=True)

    @override
    def sign(self, selection: Selection) -> None:
        selection.settings["fingerprint"] = self.name

    @override
    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            (self._folder / "lock").unlink(missing_ok=True)

    @override
    def follow(self, sketch: _core.FrequentDirections) -> None:
        self._of_sketch = digest([sketch.matrix()])

    @override
    def sketch(self, shard: Shard, load: Load) -> int:
        path = self._of(shard, "sketch")
        read = self._read(path)
        if read is None:
            return 0
        try:
            meta, arrays = read
            state, done = _state(meta, arrays), int(meta["done"])
            if not (0 < done <= len(shard) and len(arrays["ids"]) == done == state["rows_seen"]):
                raise ValueError(f"expected 1 to {len(shard)} examples, got {done}")
            load(state, arrays)
        except Exception as error:  # inconsistent numbers may raise anything
            self._ignore(path, error)
            return 0
        return done

    @override
    def save_sketch(
        self,
        shard: Shard,
        done: int,
        sketch: _core.FrequentDirections,
        classes: Callable[[], dict[str, NDArray[Any]]],
    ) -> None:
        if done < len(shard) and not self._is_due():
            return
        state = sketch.state_dict()
        arrays = {name: _numpy(state[name]) for name in ("sketch", "pending")} | classes()
        arrays["singular_values"] = np.asarray(state["singular_values"], np.float64)
        arrays["pending_ids"] = np.asarray(state["pending_ids"], np.int32)
        if state["consensus"] is not None:  # in streaming mode
            arrays["consensus"] = _numpy(state["consensus"])
        carried = state.get("coordinates")  # in one-pass mode
        if carried is not None:
            arrays |= {f"coordinates_{name}": _numpy(carried[name]) for name in _OF_COORDINATES}
        meta = {name: state[name] for name in _NUMBERS}
        meta |= {"done": done, "factors": state["factors"]}
        meta["open_moves"] = None if carried is None else carried["open"]
        self._write(self._of(shard, "sketch"), meta, arrays)

    @override
    def rows(self, shard: Shard, width: int) -> Iterator[NDArray[np.float32]]:
        done = 0
        while done < len(shard):
            path = self._of(shard, f"rows-{done:012}")
            read = self._read(path)
            if read is None:
                return
            meta, arrays = read
            part = arrays.get("rows", np.empty(0))
            if meta.get("sketch") != self._of_sketch:
                self._ignore(path, ValueError("of another sketch, as another device computes it"))
                return
            fits = part.dtype == np.float32 and part.ndim == 2 and part.shape[1] == width
            if not fits or not 0 < len(part) <= len(shard) - done or not np.isfinite(part).all():
                self._ignore(path, ValueError(f"got rows {part.dtype} {part.shape}"))
                return
            yield part
            done += len(part)

    @override
    def save_rows(self, shard: Shard, done: int, rows: NDArray[np.float32]) -> None:
        self._rows.append(rows)
        waiting = sum(map(len, self._rows))
        is_long = 4 * waiting * rows.shape[1] > _LONGEST_SEGMENT
        if done == len(shard) or is_long or self._is_due():
            path = self._of(shard, f"rows-{done - waiting:012}")
            rows_so_far = np.concatenate(self._rows)
            self._write(path, {"sketch": self._of_sketch}, {"rows": rows_so_far})
            self._rows.clear()

    def _of(self, shard: Shard, what: str) -> Path:
        return self._folder / f"shard-{shard.number:05}-{what}.npz"

    def _is_due(self) -> bool:
        return time.monotonic() - self._last >= SECONDS_BETWEEN

    def _write(self, path: Path, meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        meta |= {"fingerprint": self.name, "file": path.name}
        write_whole(path, pack(meta, arrays, compress=False))
        self._last = time.monotonic()
        _LOG.debug("snapshot %s", path)

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        try:
            with open(path, "rb") as file:
                meta, arrays = unpack(file)
            if (meta.get("fingerprint"), meta.get("file")) != (self.name, path.name):
                raise ValueError("another selection's, or of another place in it")
        except FileNotFoundError:
            return None
        except ValueError as error:
            self._ignore(path, error)
            return None
        return meta, arrays

    def _ignore(self, path: Path, error: Exception) -> None:
        warn(f"ignoring the snapshot {os.fspath(path)!r}, and doing its part again: {error}")


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return array


def _state(meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the `state_dict` of a sketch, as saved."""
    state: dict[str, Any] = {name: meta[name] for name in _NUMBERS}
    state |= {name: torch.from_numpy(arrays[name]) for name in ("sketch", "pending")}
    state["singular_values"] = arrays["singular_values"].tolist()
    state["pending_ids"] = arrays["pending_ids"].tolist()
    state["factors"] = None if meta["factors"] is None else tuple(meta["factors"])
    state["consensus"] = torch.from_numpy(arrays["consensus"]) if "consensus" in arrays else None
    if meta.get("open_moves") is not None:
        of_each = {n: torch.from_numpy(arrays[f"coordinates_{n}"]) for n in _OF_COORDINATES}
        state["coordinates"] = of_each | {"open": meta["open_moves"]}
    return state
