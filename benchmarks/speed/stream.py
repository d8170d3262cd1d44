"""Does a stream keep what two passes over the data would, at the rate it was asked for?

100,000 examples: the training images of Fashion-MNIST and 40,000 of them mirrored, shuffled; a
small CNN after one epoch on a fifth of them. Overlap: the share of the examples kept by
`select_subset` with the same model, rule and share that `SageStream` keeps, too.

    python -m benchmarks.speed.stream --data-root <folder>
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from benchmarks.quality.models import warmed_up_cnn
from benchmarks.record import RESULTS, environment, read, table, write
from sage_torch import select_subset
from sage_torch.demo.data import DATA_ROOT_VARIABLE, load
from sage_torch.gradients import choose_gradients
from sage_torch.stream import SageStream

MIRRORED = 40_000
BATCH = 256
TRAINED_ON = 64
PARTS = 5
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"half_life": 5_000},
    {"half_life": 20_000},
    {"half_life": None},
    {"warm_up": 2_000},
    {"batch_size": 64},
    {"batch_size": 1_024},
    {"sketch_size": 16},
)
TEXT = """\
## Streams: what one reading keeps of what two passes would

`python -m benchmarks.speed.stream --data-root DIR`: {data}, shuffled; {network}; keep = {keep};
{cpu}, one thread. *Overlap* is the share of the examples kept by `select_subset` with the same
model and rule that `SageStream` keeps, too. Chance would give {keep}. Figures are means over
{seeds} seeds, in brackets the worst. On these ten classes the default half-life is 5,000 examples.
"""
CHANGED = """\
Other options on the same stream, whose second half shows negatives of the images (seed 0; the model
stays). *Overlap* is with two passes over that half alone.
"""


@dataclass(frozen=True)
class InOrder(IterableDataset[Any]):
    """Examples in the order of their tensors, with their places."""

    inputs: Tensor
    labels: Tensor

    def __iter__(self) -> Iterator[tuple[Tensor, int, int]]:
        for place, (example, label) in enumerate(
            zip(self.inputs, self.labels.tolist(), strict=True)
        ):
            yield example, label, place


def without_places(examples: list[tuple[Tensor, int, int]]) -> tuple[Tensor, Tensor]:
    """What is scored: inputs and labels."""
    return torch.stack([one[0] for one in examples]), torch.tensor([one[1] for one in examples])


AS_TWO_PASSES: dict[str, Any] = {"rule": "agreement", "collate_fn": without_places}


def shuffled(root: Path, seed: int) -> tuple[Tensor, Tensor]:
    """Images (100,000, 1, 28, 28) and labels of one seed."""
    images, labels = load("fashion-mnist", root).train.tensors
    generator = torch.Generator().manual_seed(seed)
    again = torch.randperm(len(images), generator=generator)[:MIRRORED]
    order = torch.randperm(len(images) + MIRRORED, generator=generator)
    images = torch.cat([images, images[again].flip(-1)])[order]
    return images, torch.cat([labels, labels[again]])[order]


def streamed(stream: SageStream, total: int) -> NDArray[np.bool_]:
    """Which examples the stream keeps (N,)."""
    is_kept = np.zeros(total, np.bool_)
    is_kept[[place for *_, place in stream]] = True
    return is_kept


def in_two_passes(
    model: nn.Module, inputs: Tensor, labels: Tensor, keep: float, **options: Any
) -> NDArray[np.bool_]:
    """Which examples two passes keep (N,)."""
    is_kept = np.zeros(len(labels), np.bool_)
    data = TensorDataset(inputs, labels)
    is_kept[
        select_subset(model, data, keep, rule="agreement", progress=False, **options).indices
    ] = True
    return is_kept


def compared(found: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> dict[str, Any]:
    """The share kept and the overlap, of the whole stream and of each fifth of it."""
    both = found & wanted
    parts = zip(np.array_split(both, PARTS), np.array_split(wanted, PARTS), strict=True)
    return {
        "kept_share": float(found.mean()),
        "overlap": float(both.sum() / wanted.sum()),
        "overlap_by_fifth": [float(part.sum() / of.sum()) for part, of in parts],
    }


def measured(model: nn.Module, images: Tensor, labels: Tensor, keep: float) -> dict[str, Any]:
    """One seed with the shipped options: share, overlap, speed and memory."""
    stream = SageStream(model, InOrder(images, labels), keep, **AS_TWO_PASSES)
    process, resident = psutil.Process(), dict[int, int]()
    is_kept = np.zeros(len(labels), np.bool_)
    start = time.process_time()
    for *_, place in stream:
        is_kept[place] = True
        fifth = stream.seen // (len(labels) // PARTS) * (len(labels) // PARTS)
        if fifth and fifth not in resident:
            resident[fifth] = process.memory_info().rss
    seconds = time.process_time() - start
    found = compared(is_kept, in_two_passes(model, images, labels, keep))
    shares = [float(is_kept[labels.numpy() == one].mean()) for one in range(10)]
    return found | {
        "kept_share_by_class": shares,
        "examples_a_second": len(labels) / seconds,
        "plain_a_second": plain_speed(model, images, labels),
        "resident_bytes": resident,
    }


def plain_speed(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Examples a second of a forward and backward pass of the same batches."""
    count, start = 20_480, time.process_time()
    for part in torch.arange(count).split(BATCH):
        cross_entropy(model(images[part]), labels[part]).backward()
    model.zero_grad()
    return count / (time.process_time() - start)


def rows_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The gradients that all variants read, half-precision (N, d)."""
    computer = choose_gradients(model)
    parts = torch.arange(len(labels)).split(BATCH)
    return torch.cat([computer((images[part], labels[part])).half() for part in parts])


def variants(rows: Tensor, labels: Tensor, keep: float) -> Iterator[dict[str, Any]]:
    """Other options, from the same gradients, on a stream that stays and on one that changes."""
    options = {"gradients": lambda batch: batch[0].float(), "compress": None}
    model, half = nn.Linear(1, 1), len(labels) // 2
    everything = in_two_passes(model, rows[:half], labels[:half], keep, **options)
    after = in_two_passes(model, rows[half:], labels[half:], keep, **options)
    for variant in VARIANTS:
        stream = SageStream(model, InOrder(rows, labels), keep, **AS_TWO_PASSES | options | variant)
        is_kept = streamed(stream, len(labels))
        for name, part, wanted in (
            ("before", is_kept[:half], everything),
            ("after", is_kept[half:], after),
        ):
            yield {"options": variant, "half": name} | compared(part, wanted)


def trained_meanwhile(model: nn.Module, images: Tensor, labels: Tensor, keep: float) -> float:
    """The share kept while the model trains on what is kept."""
    stream = SageStream(model, InOrder(images, labels), keep, **AS_TWO_PASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for inputs, targets, _ in DataLoader(stream, batch_size=TRAINED_ON):
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return stream.kept / stream.seen


def main(
    data_root: Annotated[
        Path, typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder that holds fashion-mnist/.")
    ],
    keep: Annotated[float, typer.Option(help="Share to keep.")] = 0.25,
    seeds: Annotated[int, typer.Option(help="Seeds 0 to this.")] = 3,
    out: Annotated[Path, typer.Option(help="Where the numbers go.")] = RESULTS / "stream.json",
) -> None:
    """Measure and write the numbers down."""
    torch.set_num_threads(1)
    where = environment("psutil")
    runs, live = [], []
    for seed in range(seeds):
        images, labels = shuffled(data_root, seed)
        generator = torch.Generator().manual_seed(seed)
        model = warmed_up_cnn(
            images[: len(images) // PARTS], labels[: len(images) // PARTS], generator
        )
        runs.append({"seed": seed} | measured(model, images, labels, keep))
        typer.echo(f"seed {seed}: {runs[-1]}")
        if seed == 0:
            half = len(labels) // 2
            shifted = torch.cat([images[:half], 1 - images[half:]])  # negatives from there on
            varied = list(variants(rows_of(model, shifted, labels), labels, keep))
        live.append(trained_meanwhile(model, images, labels, keep))
    settings = {
        "data": f"Fashion-MNIST, 60,000 training images and {MIRRORED:,} of them mirrored",
        "network": "CNN of 105,866 parameters, 1 warm-up epoch on a fifth",
        "keep": keep,
        "seeds": list(range(seeds)),
    }
    results = {
        "runs": runs,
        "kept_share_while_training": live,
        "variants_on_a_stream_that_turns_negative": varied,
    }
    question = "Does a stream keep what two passes over the data would?"
    write(out, question, where, settings=settings, results=results)
    for one in varied:
        typer.echo(f"{one['options']} {one['half']}: {one['overlap']:.3f} {one['kept_share']:.4f}")


def section() -> str:
    """Return what RESULTS.md says of streams: share, overlap, speed and memory."""
    record = read("stream.json")
    settings, results = record["settings"], record["results"]
    runs, keep = results["runs"], settings["keep"]

    def missed(shares: list[float]) -> float:
        return 100 * max(abs(share / keep - 1) for share in shares)

    overlaps = [run["overlap"] for run in runs]
    fifths = list(zip(*(run["overlap_by_fifth"] for run in runs), strict=True))
    grown = [list(run["resident_bytes"].values()) for run in runs]
    speeds = [run["examples_a_second"] for run in runs]
    ratios = [run["plain_a_second"] / run["examples_a_second"] for run in runs]
    by_class = [share for run in runs for share in run["kept_share_by_class"]]
    facts = [
        ["overlap", f"{sum(overlaps) / len(overlaps):.3f} ({min(overlaps):.3f})"],
        ["by fifth of the stream", ", ".join(f"{sum(one) / len(one):.2f}" for one in fifths)],
        ["share kept missed by", f"({missed([run['kept_share'] for run in runs]):.2f} %)"],
        ["that of a class", f"({missed(by_class):.1f} %)"],
        ["that while the model trains", f"({missed(results['kept_share_while_training']):.2f} %)"],
        [
            "resident memory, most of 40,000 to 100,000 over 20,000 examples",
            f"({max(max(one) - one[0] for one in grown) / 2**20:+.2f} MiB)",
        ],
        ["examples per second", f"{sum(speeds) / len(speeds):,.0f} ({min(speeds):,.0f})"],
        [
            "seconds over forward + backward",
            f"{sum(ratios) / len(ratios):.2f} ({max(ratios):.2f})",
        ],
    ]
    varied = results["variants_on_a_stream_that_turns_negative"]
    rows = []
    for before, after in zip(varied[::2], varied[1::2], strict=True):
        options = ", ".join(f"{name}={value}" for name, value in before["options"].items())
        cells = [f"`{options}`" if options else "as shipped"]
        for half in (before, after):
            cells += [f"{half['overlap']:.3f}", f"{missed([half['kept_share']]):.1f} %"]
        rows.append(cells)
    heads = ["options", "overlap", "missed", "after the change: overlap", "missed"]
    about = settings | {"cpu": record["cpu"], "seeds": len(runs)}
    parts = [TEXT.format(**about), table(["", ""], facts), CHANGED, table(heads, rows)]
    return "\n".join(parts)


if __name__ == "__main__":
    typer.run(main)
