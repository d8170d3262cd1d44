"""What does a default selection cost, in training epochs and in the time of CCS on EL2N?

Each model trains one epoch on a TensorDataset (a DataLoader, batches of 64, SGD); then
`select_subset` without options chooses a quarter, and CCS on EL2N does (one forward pass of a
DataLoader, batches of 256, then its draw). One thread; the three take turns.

    python -m benchmarks.speed.cost
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.quality.baselines.scores import ccs_on_el2n
from benchmarks.quality.baselines.task import Task
from benchmarks.quality.models import ViT, lenet, pictures, resnet18
from benchmarks.record import RESULTS, Run, environment, of, read, spread, table, write
from sage_torch import _core, select_subset

KEEP, TRAINED_AT_ONCE, SCORED_AT_ONCE = 0.25, 64, 256
WORDS, LENGTH = 2_000, 64
EPOCH, SAGE, CCS = "training epoch", "select_subset", "CCS on EL2N"
TEXT = """\
## The price of a default selection

`python -m benchmarks.speed.cost`; {cpu}; one thread; {keep:.0%} kept of random examples of ten
classes; medians of {rounds} rounds, in which the three take turns. *Training epoch* is a DataLoader
of batches of {trained}, forward, backward and a step of SGD. *CCS on EL2N* is one forward pass in
batches of {scored} and its draw. The model has been trained for the epochs before.
"""


@dataclass(frozen=True)
class Priced:
    """A model, how many examples it sees, and what they are."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int, torch.Generator], Tensor]
    examples: int


class Classifier(nn.Module):
    """A BERT-like classifier: four layers of width 256, the first token's output to ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 256)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, 256))
        layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, words: Tensor) -> Tensor:
        """Map words (n, T) to logits (n, 10)."""
        return self.head(self.layers(self.words(words) + self.places)[:, 0])


def small_cnn() -> nn.Module:
    """Return the network of the quality benchmark for 28 x 28 grey pictures."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def images(channels: int, side: int) -> Callable[[int, torch.Generator], Tensor]:
    """Return a maker of random pictures (n, channels, side, side)."""
    return lambda n, generator: pictures(channels, side)(n, generator)[0]


def words(n: int, generator: torch.Generator) -> Tensor:
    """Return random words (n, T)."""
    return torch.randint(WORDS, (n, LENGTH), generator=generator)


MODELS = (
    Priced("small CNN", small_cnn, images(1, 28), 20_000),
    Priced("LeNet", lenet, images(1, 28), 20_000),
    Priced("ResNet-18", resnet18, images(3, 32), 256),
    Priced("ViT-tiny", ViT, images(3, 32), 384),
    Priced("BERT-like", Classifier, words, 512),
)


class _Same(nn.Module):
    """Returns logits as they come, for a baseline that asks a model for them."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, logits: Tensor) -> Tensor:
        """Return the logits (n, C)."""
        return logits


def epoch(model: nn.Module, data: TensorDataset) -> None:
    """Train for one epoch."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    model.train()
    for inputs, labels in DataLoader(data, TRAINED_AT_ONCE, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    model.eval()


def ccs(model: nn.Module, data: TensorDataset) -> None:
    """Choose by CCS on EL2N."""
    with torch.no_grad():
        logits = torch.cat([model(inputs) for inputs, _ in DataLoader(data, SCORED_AT_ONCE)])
    labels = data.tensors[1]
    counts = np.bincount(labels.numpy(), minlength=10)
    quotas = _core.class_quotas(counts, round(KEEP * len(data)))
    ccs_on_el2n(Task(_Same().eval(), logits, labels, quotas, 0))


def measured(priced: Priced, rounds: int) -> list[Run]:
    """Return the seconds of the three on one model."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    inputs = priced.inputs(priced.examples, generator)
    labels = torch.randint(10, (priced.examples,), generator=generator)
    data, model = TensorDataset(inputs, labels), priced.make()
    work: dict[str, Callable[[], Any]] = {
        EPOCH: lambda: epoch(model, data),
        SAGE: lambda: select_subset(model, data, KEEP, progress=False),
        CCS: lambda: ccs(model, data),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            start = time.process_time()
            run()
            if turn:  # the first prepares
                seconds[name].append(time.process_time() - start)
    about = {"model": priced.name, "examples": priced.examples}
    return [about | {"what": name, "seconds": spread(values)} for name, values in seconds.items()]


def main(
    rounds: Annotated[int, typer.Option(help="Timings of each.")] = 3,
    only: Annotated[str, typer.Option(help="Models, with commas; all if empty.")] = "",
    out: Annotated[Path, typer.Option(help="Where it goes.")] = RESULTS / "cost.json",
) -> None:
    """Measure and write the numbers down."""
    torch.set_num_threads(1)
    where = environment(seeds=[0])
    runs: list[Run] = []
    for priced in MODELS:
        if not only or priced.name in only.split(","):
            runs += measured(priced, rounds)
            typer.echo(_table(runs))
    settings = {
        "keep": KEEP,
        "rounds": rounds,
        "trained": TRAINED_AT_ONCE,
        "scored": SCORED_AT_ONCE,
        "clock": "process time",
    }
    question = "What does a default selection cost, in training epochs?"
    write(out, question, where, settings=settings, results=runs)


def _table(runs: list[Run]) -> str:
    rows = []
    for name in dict.fromkeys(run["model"] for run in runs):
        of_model = of(runs, model=name)
        by = {run["what"]: run["seconds"]["median"] for run in of_model}
        rows.append(
            [
                name,
                f"{of_model[0]['examples']:,}",
                *(f"{by[what]:.2f}" for what in (EPOCH, SAGE, CCS)),
                f"**{by[SAGE] / by[EPOCH]:.2f}**",
                f"{by[SAGE] / by[CCS]:.2f}",
            ]
        )
    heads = ["model", "examples", f"{EPOCH}, s", f"{SAGE}, s", f"{CCS}, s", "epochs", "x CCS"]
    return table(heads, rows)


def section() -> str:
    """Return what RESULTS.md says of the price."""
    record = read("cost.json")
    return TEXT.format(cpu=record["cpu"], **record["settings"]) + "\n" + _table(record["results"])


if __name__ == "__main__":
    typer.run(main)
