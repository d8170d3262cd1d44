"""Does memory stay flat in the number of examples, and small at 100 million parameters?

Each selection is a process of its own. Its peak is the resident set's high-water mark (VmHWM) from
after a first, small selection, which leaves behind what is made once.

    python -m benchmarks.speed.memory
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.record import RESULTS, Run, environment, in_own_process, read, table, write
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


MIB, GB, AN_EXAMPLE = 2**20, 10**9, 24
EXAMPLES = """\
## Memory: flat in the number of examples

`python -m benchmarks.speed.memory`: streaming mode, herding, l = {sketch_size}, d = {dim:,}, keep
{keep}. *Peak* is the peak resident memory of both passes, a process each. *Beyond* is the peak over
that of the fewest examples, less 24 bytes for each additional example. The last two columns say how
much N x l and N x d float32 numbers would take.
"""
PARAMETERS = """\
## Memory: {parameters:,} parameters

`python -m benchmarks.speed.memory`: {wide_examples} examples, default `compress`; peak resident
memory, a process each. A matrix of D x {sketch_size} float32 numbers would take {matrix:.1f} GB.
"""


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


def measured(*arguments: str) -> Run:
    """Return what a fresh process measures."""
    shown = in_own_process(
        "benchmarks.speed.memory", "--only", " ".join(arguments), variables=GIVES_MEMORY_BACK
    )
    found: Run = json.loads(shown.splitlines()[-1])
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
    results = read(path.name)["results"] if path.exists() else {}
    if part in ("examples", "both"):
        results["examples"] = [measured("streaming", str(size)) for size in SIZES]
    if part in ("parameters", "both"):
        results["parameters"] = [
            measured("wide", kind, gradients)
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
    write(path, question, environment(), settings=settings, results=results)


def section() -> str:
    """Return what RESULTS.md says of peaks by examples and by parameters."""
    record = read("memory.json")
    settings, results = record["settings"], record["results"]
    by_size, wide = results["examples"], results["parameters"]
    first, rows = by_size[0], []
    for run in by_size:
        count, peak = run["examples"], run["peak_bytes"]
        beyond = peak - first["peak_bytes"] - AN_EXAMPLE * (count - first["examples"])
        cells = [f"{count:,}", f"{peak / MIB:,.1f}", f"{beyond / MIB:+.1f}"]
        cells += [f"{beyond / first['peak_bytes']:+.2%}"]
        cells += [f"{4 * count * n / MIB:,.0f}" for n in (settings["sketch_size"], run["dim"])]
        rows.append(cells)
    columns = ["peak, MiB", "beyond, MiB", "share of the peak", "N x l, MiB", "N x d, MiB"]
    parameters = wide[0]["parameters"]
    matrix = 4 * settings["sketch_size"] * parameters / GB
    of_wide = [
        [
            run["network"],
            run["asked_for"],
            f"{run['dim']:,}",
            f"{run['peak_bytes'] / GB:.2f}",
            f"{(run['peak_bytes'] - run['before_bytes']) / GB:.2f}",
        ]
        for run in wide
    ]
    heads = ["network", "gradients", "d", "peak, GB", "over the network and torch, GB"]
    parts = [
        EXAMPLES.format(**settings, dim=first["dim"]),
        table(["examples", *columns], rows),
        PARAMETERS.format(**settings, parameters=parameters, matrix=matrix),
        table(heads, of_wide),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    typer.run(main)
