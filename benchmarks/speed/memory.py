"""Does memory stay flat in the number of examples, and small at 100 million parameters?

Each selection is a process of its own. Its peak is the resident set's high-water mark (VmHWM) from
after a first, small selection, which leaves behind what is made once.

    python -m benchmarks.speed.memory
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.record import RESULTS, environment, write
from benchmarks.speed.peak_memory import resident_peak, restarted_peak
from sage_torch import select_subset

FEATURES, CLASSES, HIDDEN = 32, 10, 64  # of the small network: d = 2,762
SKETCH_SIZE, KEEP, BATCH = 64, 0.1, 512
SIZES = (20_000, 100_000, 1_000_000)
WIDE_EXAMPLES, WIDE_KEEP = 200, 50
WIDE = ("embedding", "perceptron")
# One arena and fixed thresholds: freed memory goes back, so that the peak is what was held.
GIVES_MEMORY_BACK = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


class Computed(Dataset[Any]):
    """Examples that are computed from their index: they take no memory."""

    def __init__(self, count: int, features: int, *, words: int = 0) -> None:
        self._count, self._words = count, words
        self._factors = torch.arange(1, features + 1)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Any:
        places = torch.tensor(indices)
        if self._words:
            return (
                places[:, None] * 7919 + self._factors * 104_729
            ) % self._words, places % CLASSES
        return torch.sin(places[:, None] * self._factors * 0.37), places % CLASSES


class Words(nn.Module):
    """The mean of some embeddings, classified."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(words, 128), nn.Linear(128, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.embedding(inputs).mean(1))


def together(batch: Any) -> Any:
    """A batch as `__getitems__` gives it."""
    return batch


def streaming(examples: int) -> dict[str, Any]:
    """Peak bytes and seconds of a streaming selection of this process."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))
    options: dict[str, Any] = {
        "consensus": "streaming",
        "sketch_size": SKETCH_SIZE,
        "gradients": "functional",
        "collate_fn": together,
        "batch_size": BATCH,
        "progress": False,
    }
    select_subset(model, Computed(12_000, FEATURES), KEEP, **options)  # fills every block once
    before, start = restarted_peak(), time.perf_counter()
    selection = select_subset(model, Computed(examples, FEATURES), KEEP, **options)
    seconds = time.perf_counter() - start
    assert len(selection) == round(KEEP * examples)
    return {
        "examples": examples,
        "dim": selection.settings["dim"],
        "before_bytes": before,
        "peak_bytes": resident_peak(),
        "seconds": seconds,
    }


def wide(kind: str, gradients: str, millions: int = 100) -> dict[str, Any]:
    """Peak bytes and seconds of a selection with a network of many parameters."""
    torch.manual_seed(0)
    data: Computed
    if kind == "embedding":
        words = millions * 10**6 // 128
        data, model = Computed(WIDE_EXAMPLES, 16, words=words), Words(words)
    else:
        width = millions * 10**6 // (500 + CLASSES)
        data = Computed(WIDE_EXAMPLES, 500)
        model = nn.Sequential(nn.Linear(500, width), nn.ReLU(), nn.Linear(width, CLASSES))
    before, start = restarted_peak(), time.perf_counter()
    selection = select_subset(
        model, data, WIDE_KEEP, gradients=gradients, collate_fn=together, progress=False
    )
    seconds = time.perf_counter() - start
    assert len(selection) == WIDE_KEEP
    return {
        "network": kind,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gradients": selection.settings["gradients"],
        "asked_for": gradients,
        "dim": selection.settings["dim"],
        "before_bytes": before,
        "peak_bytes": resident_peak(),
        "seconds": seconds,
    }


def in_own_process(*arguments: str) -> dict[str, Any]:
    asked = subprocess.run(
        [sys.executable, __file__, "--only", " ".join(arguments)],
        env=os.environ | GIVES_MEMORY_BACK,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    typer.echo(str(found))
    return found


def main(
    part: Annotated[str, typer.Option(help="examples, parameters or both")] = "both",
    only: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure and write the numbers down."""
    torch.set_num_threads(1)
    if only:
        what, *arguments = only.split()
        found = streaming(int(arguments[0])) if what == "streaming" else wide(*arguments)  # type: ignore[arg-type]
        typer.echo(json.dumps(found))
        return
    path = RESULTS / "memory.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    if part in ("examples", "both"):
        results["examples"] = [in_own_process("streaming", str(size)) for size in SIZES]
    if part in ("parameters", "both"):
        results["parameters"] = [
            in_own_process("wide", kind, gradients)
            for kind in WIDE
            for gradients in ("functional", "projected")
        ]
    settings = {
        "sketch_size": SKETCH_SIZE,
        "keep": KEEP,
        "batch_size": BATCH,
        "rule": "herding",
        "wide_examples": WIDE_EXAMPLES,
    }
    question = "Does memory stay flat in N, and small at D = 100,000,000?"
    write(path, {"question": question, "settings": settings, **environment(), "results": results})


if __name__ == "__main__":
    typer.run(main)
