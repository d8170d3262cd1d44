"""How many indices differ between 1 and 2 threads, and between scoring batches of 32 and 256?

Gradients by torch differ in their last bits with the batch size; given rows do not, so that with
them any difference would be ours.

    python -m benchmarks.speed.determinism --data-root DIR
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.record import RESULTS, environment, read, table, write
from sage_torch import Selection, select_subset
from sage_torch.demo.data import DATA_ROOT_VARIABLE, load
from sage_torch.gradients import FunctionalGradients

RULES = ("herding", "agreement")
MODES = ("exact", "streaming")
KEEP, EXAMPLES, HIDDEN = 0.25, 10_000, 32
# (threads, batch size); the first is what the others are compared with.
SETTINGS = ((1, 32), (2, 32), (1, 256), (2, 256))
TEXT = """\
## Threads and batch sizes: indices that differ

`python -m benchmarks.speed.determinism --data-root DIR`: keep {keep}, l = {sketch_size}; 1 and 2
threads, scoring batches of 32 and 256. *Threads* is the sum over both batch sizes. *Given* rows are
computed once, so no batch size rounds them otherwise.
"""


def flat(data: str, root: Path | None) -> TensorDataset:
    """Images as rows of numbers, with labels."""
    loaded = load(data, root)
    count = min(EXAMPLES, len(loaded.train))
    inputs, labels = loaded.with_train_examples(count).train.tensors
    return TensorDataset(inputs.flatten(1), labels)


def warm(data: TensorDataset) -> nn.Module:
    """A small network after an epoch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(data.tensors[0].shape[1], HIDDEN), nn.ReLU())
    model.append(nn.Linear(HIDDEN, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, labels in DataLoader(data, 64, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


def given_rows(model: nn.Module, data: TensorDataset) -> TensorDataset:
    """The gradients of the last layer, computed once: rows that no batch size can change."""
    computer = FunctionalGradients(model, params=["2.*"])
    inputs, labels = data.tensors
    rows = [computer((inputs[i : i + 256], labels[i : i + 256])) for i in range(0, len(data), 256)]
    return TensorDataset(torch.cat(rows), labels)


def differences(model: nn.Module, data: TensorDataset, **options: Any) -> Iterator[dict[str, Any]]:
    """Compare every rule and mode under all settings."""
    for rule in RULES:
        for mode in MODES:
            found: list[Selection] = []
            for threads, batch_size in SETTINGS:
                torch.set_num_threads(threads)
                found.append(
                    select_subset(
                        model, data, KEEP, rule=rule, consensus=mode, batch_size=batch_size,
                        progress=False, **options,
                    )
                )  # fmt: skip
            first, two, large, both = found
            pairs = {"threads at 32": (first, two), "threads at 256": (large, both)}
            pairs["batch size"] = (first, large)
            yield {
                "rule": rule,
                "mode": mode,
                "kept": len(first),
                "differing": {
                    name: len(np.setdiff1d(one.indices, other.indices))
                    for name, (one, other) in pairs.items()
                },
            }


def main(
    data_root: Annotated[
        Path | None, typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder with fashion-mnist/.")
    ] = None,
) -> None:
    """Measure and write the numbers down."""
    where = environment()
    results: dict[str, dict[str, Any]] = {}
    for name in ("digits", "fashion-mnist") if data_root is not None else ("digits",):
        data = flat(name, data_root)
        model = warm(data)
        results[name] = {"examples": len(data), "torch's own": [], "given": []}
        for one in differences(model, data):
            results[name]["torch's own"].append(one)
            typer.echo(f"{name}: {one}")
        rows, first = given_rows(model, data), lambda batch: batch[0]
        for one in differences(nn.Linear(1, 1), rows, gradients=first):
            results[name]["given"].append(one)
            typer.echo(f"{name}, given rows: {one}")
    settings = {"keep": KEEP, "sketch_size": 64, "hidden": HIDDEN}
    question = "Do threads and batch sizes change a selection?"
    write(RESULTS / "determinism.json", question, where, settings=settings, results=results)


def section() -> str:
    """Return what RESULTS.md says of threads and batch sizes."""
    record = read("determinism.json")
    table_rows = []
    for data, of_data in record["results"].items():
        for rows in ("torch's own", "given"):
            for one in (one for one in of_data[rows] if one["rule"] in RULES):
                found = one["differing"]
                threads = found["threads at 32"] + found["threads at 256"]
                cells = [f"{data}, {of_data['examples']:,}", rows, one["rule"], one["mode"]]
                table_rows.append(
                    [*cells, f"{one['kept']:,}", str(threads), str(found["batch size"])]
                )
    heads = ["data", "rows", "rule", "mode", "kept", "threads", "batch size"]
    return TEXT.format(**record["settings"]) + "\n" + table(heads, table_rows)


if __name__ == "__main__":
    typer.run(main)
