"""Are planted near duplicates found, and little else?

A twentieth of the images are copies of others, each changed in one of five ways: JPEG at quality
60, a shift by one pixel, a crop of 95 % brought back to size, noise of standard deviation 5 of 255,
brightness 10 % up or down. A small network learns all of them for an epoch (digits: ten), a
selection leaves the features that its rule compares, and `near_duplicates` reads those, rounded to
float16.

A copy counts as found where it is in one cluster with its source. Precision is the share of all
examples with a representative that were planted with it. Data have near duplicates of their own,
which count as wrong; so a second precision also counts a pair as right if its pixels differ no more
than those of the median planted crop do, the best of nine shifts by up to a pixel.

    python -m benchmarks.quality.duplicates --data-root DIR
    python -m benchmarks.quality.duplicates --data-root DIR --first-seed 200 --out choice.json
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from benchmarks.quality.cifar10 import load_cifar10
from benchmarks.quality.planted import CHANGES, Planted, alikeness, planted, rounded
from benchmarks.quality.recipes import recipe
from benchmarks.quality.trials import Condition, Problem, Training, network
from benchmarks.record import (
    RESULTS,
    environment,
    kinds,
    mean_of,
    of,
    read,
    table,
    write,
)
from sage_torch import select_subset
from sage_torch.demo.data import DATA_ROOT_VARIABLE, DemoData, load
from sage_torch.selection.duplicates import MISTAKEN, near_duplicates

IMAGES, COPIED = 20_000, 0.05
EPOCHS = {"digits": 10}
TEXT = """\
## Near duplicates

`python -m benchmarks.quality.duplicates --data-root DIR`: a twentieth of the images (1,000 of
20,000; digits: 72 of 1,437) are copies of others, changed in one of five ways. *Found* is the share
of copies in one cluster with their source. *Precision* is the share of the examples with a
representative that were planted with it; *or alike* counts a pair as right, too, if it differs in
pixels no more than the median planted crop: data have near duplicates of their own. *Nearest* is
the share of copies that have their source as nearest neighbour: a distance can tell no more. On
Fashion-MNIST no reading of what a selection holds tells more than the gap does at that precision
(`sage_torch/selection/duplicates.py` has the figures): a shift or a crop moves features too far.
Coordinates are a small network's features after one epoch (digits: ten); figures are means over
{seeds} seeds.
"""


def main(
    data: Annotated[str, typer.Option(help="Names, with commas; by default what is there.")] = "",
    data_root: Annotated[
        Path | None, typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder with the data.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    first_seed: Annotated[int, typer.Option(help="Defaults were chosen from 200 on.")] = 0,
    mistaken: Annotated[float, typer.Option(help="As near_duplicates has it.")] = MISTAKEN,
    out: Annotated[Path, typer.Option(help="Where it goes.")] = RESULTS / "duplicates.json",
) -> None:
    """Measure and write the numbers down."""
    chosen = range(first_seed, first_seed + seeds)
    where = environment("faiss-cpu", seeds=chosen)
    found = []
    for name in (data or ("cifar-10,fashion-mnist,digits" if data_root else "digits")).split(","):
        source = load_cifar10(data_root) if name == "cifar-10" else load(name, data_root)
        for seed in chosen:
            found.append({"data": name, "seed": seed, **one_seed(source, seed, mistaken)})
            typer.echo(found[-1])
    question = "Are planted near duplicates found, and little else?"
    write(out, question, where, settings={"mistaken": mistaken}, results=found)


def one_seed(data: DemoData, seed: int, mistaken: float) -> dict[str, Any]:
    """Return what is found on one data set, and how much of it is right."""
    pixels, labels = (part.numpy() for part in data.train.tensors)
    total = min(IMAGES, len(labels))
    mixed = planted(rounded(255 * pixels), labels, total, round(COPIED * total), seed)
    features, label_scores = features_of(data, mixed, seed)
    begin = time.perf_counter()
    found = near_duplicates(features, mixed.labels, label_scores, mistaken=mistaken)
    seconds = time.perf_counter() - begin
    return {
        **judged(found, mixed),
        "nearest": float(has_nearest_source(features, mixed).mean()),
        "seconds": seconds,
    }


def features_of(
    data: DemoData, mixed: Planted, seed: int
) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Return the features that a selection compares (N, r), and the label scores (N,)."""
    images = torch.from_numpy(mixed.images).float() / 255
    mean, deviation = (form((0, 2, 3), keepdim=True) for form in (images.mean, images.std))
    pool = TensorDataset((images - mean) / deviation, torch.from_numpy(mixed.labels))
    problem = Problem(
        images=pool.tensors[0].contiguous(memory_format=torch.channels_last),
        labels=pool.tensors[1],
        is_wrong=np.zeros(len(pool), bool),
        evaluation=pool,
        classes=data.classes,
        sizes=data.image_shape,
        recipe=recipe(data.name),
    )
    model = network(Condition(data.name), problem, seed)
    epochs = EPOCHS.get(data.name, 1)
    training = Training(problem, model, epochs * (len(pool) // 64), seed)
    for _ in range(epochs):
        training.epoch(np.arange(len(pool)))
    selection = select_subset(
        model.eval(), pool, 0.25, seed=seed, keep_coordinates=True, progress=False
    )
    assert selection.probabilities is not None
    assert selection.coordinates is not None
    features = selection.coordinates.features
    assert features is not None
    return features, selection.probabilities


def judged(found: NDArray[np.int64], mixed: Planted) -> dict[str, Any]:
    """Return recall, by change too, and both precisions."""
    copies = np.flatnonzero(mixed.source >= 0)
    cluster = np.where(found >= 0, found, np.arange(len(found)))
    is_found = cluster[copies] == cluster[mixed.source[copies]]
    family = np.where(mixed.source >= 0, mixed.source, np.arange(len(found)))
    joined = np.flatnonzero(found >= 0)
    is_right = family[joined] == family[found[joined]]
    crops = copies[mixed.change[copies] == list(CHANGES).index("crop")]
    least = np.median(alikeness(mixed.images[crops], mixed.images[mixed.source[crops]]))
    is_alike = alikeness(mixed.images[joined], mixed.images[found[joined]]) >= least
    of_changes = {
        name: _share(is_found[mixed.change[copies] == way]) for way, name in enumerate(CHANGES)
    }
    return {
        "recall": _share(is_found),
        **of_changes,
        "joined": len(joined),
        "precision": _share(is_right),
        "or_alike": _share(is_right | is_alike),
    }


def has_nearest_source(features: NDArray[np.float16], mixed: Planted) -> NDArray[np.bool_]:
    """Return for each copy whether its source is nearest by cosine, of all in its class."""
    rows = features.astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    found = []
    for copy in np.flatnonzero(mixed.source >= 0):
        cosines = rows @ rows[copy]
        cosines[copy] = -1
        cosines[mixed.labels != mixed.labels[copy]] = -1
        found.append(cosines[mixed.source[copy]] >= cosines.max())
    return np.array(found)


def _share(flags: NDArray[np.bool_]) -> float | None:
    return float(flags.mean()) if len(flags) else None


def section() -> str:
    """Return what RESULTS.md says of near duplicates."""
    record = read("duplicates.json")
    runs = record["results"]
    columns = ("recall", *CHANGES, "nearest", "precision", "or_alike")
    rows = [
        [name, *(f"{mean_of(of(runs, data=name), column):.3f}" for column in columns)]
        for (name,) in kinds(runs, "data")
    ]
    heads = ["data", "found", *CHANGES, "nearest", "precision", "or alike"]
    return TEXT.format(seeds=len(record["seeds"])) + "\n" + table(heads, rows)


if __name__ == "__main__":
    typer.run(main)
