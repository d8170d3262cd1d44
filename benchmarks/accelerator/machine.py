"""What the parts of the benchmark run on, and how they are timed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

import sage_torch
from benchmarks.accelerator import images
from benchmarks.record import environment

Piece = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Machine:
    """A device, and how much is asked of it.

    Attributes:
        device: Where everything runs.
        is_tiny: Whether sizes are those of a test, for any machine.
        root: The data root; None for images that are made up.
    """

    device: torch.device
    is_tiny: bool = False
    root: Path | None = None

    @cached_property
    def images(self) -> images.Images:
        """The images, on the device; read when they are first asked for."""
        return images.load(self.root, self.device, is_tiny=self.is_tiny)

    @cached_property
    def made_by(self) -> dict[str, Any]:
        """What a figure depends on: a section of another one is measured again."""
        is_cuda = self.device.type == "cuda"
        where = environment()
        return {
            "commit": where["commit"],
            "code": code(),
            "torch": where["versions"]["torch"],
            "device_type": self.device.type,
            "device": torch.cuda.get_device_name(self.device) if is_cuda else where["cpu"],
            "is_tiny": self.is_tiny,
            "images": images.MADE_UP if self.root is None else images.CIFAR,
        }

    @property
    def is_bfloat16(self) -> bool:
        """Whether networks are trained under bfloat16 autocast: where a GPU has it."""
        return self.device.type == "cuda" and torch.cuda.is_bf16_supported()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context that networks are trained in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bfloat16)

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object]) -> float:
        """Return the seconds that a call takes, to the end of its work on the device."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def interleaved(
        self, work: dict[str, Callable[[], object]], rounds: int, least: float
    ) -> dict[str, list[float]]:
        """Return the seconds of each call, one a round; the calls take turns.

        Args:
            work: The calls. Each is made twice ahead: to prepare, and to learn how long it takes.
            rounds: Timings of each.
            least: Seconds; what is shorter is repeated within a timing.
        """
        calls = {}
        for name, run in work.items():
            run()
            calls[name] = 1 + int(least / self.seconds(run))

        def repeated(name: str) -> None:
            for _ in range(calls[name]):
                work[name]()

        found: dict[str, list[float]] = {name: [] for name in work}
        for number in range(rounds):
            for name in list(work) if number % 2 == 0 else list(work)[::-1]:
                found[name].append(self.seconds(partial(repeated, name)) / calls[name])
        return found


def code() -> str:
    """Return the first digits of a hash of the package and of this benchmark.

    A commit does not name them where there is no git, or where files are changed.
    """
    found = hashlib.sha256()
    package = Path(sage_torch.__file__).parent
    for folder in (package, Path(__file__).parent):
        for file in sorted(folder.rglob("*")):
            if file.suffix in (".py", ".so"):
                found.update(file.read_bytes())
    return found.hexdigest()[:12]
