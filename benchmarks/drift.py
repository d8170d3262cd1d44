"""Does selecting when the model has moved save selections against selecting on time?

A small CNN is warmed up for one epoch, then trained on a quarter of its pool for 20 epochs, with
refreshes on time or by drift. A selection costs two gradients an example of the pool, a look at the
probe 512. Validation seeds, because the default threshold was chosen here.

    python benchmarks/drift.py --data-root DIR
"""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.quality.trials import Condition, Problem, Training, network, problem
from benchmarks.record import RESULTS, environment, write
from sage_torch import SageSampler
from sage_torch.demo.data import DATA_ROOT_VARIABLE

KEEP, EPOCHS, WARM_UP = 0.25, 20, 1
SCHEDULES: dict[str, dict[str, Any]] = {
    "once": {},
    "every epoch": {"refresh_every": 1},
    "every 2 epochs": {"refresh_every": 2},
    "every 5 epochs": {"refresh_every": 5},
} | {
    f"drift over {threshold}": {"refresh_every": "drift", "drift_threshold": threshold}
    for threshold in (0.1, 0.2, 0.3, 0.5)
}
DATA = ("digits", "fashion-mnist")


def main(
    data_root: Annotated[
        Path | None, typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder with the data sets.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many, from 100 on.")] = 3,
) -> None:
    """Measure and write the numbers down."""
    torch.set_num_threads(1)
    where = environment()
    record = {
        "question": "Does refreshing by drift save selections?",
        "keep": KEEP,
        "epochs": EPOCHS,
        "warmup_epochs": WARM_UP,
        **where,
    }
    found: list[dict[str, Any]] = []
    for seed, data, name in product(range(100, 100 + seeds), DATA, SCHEDULES):
        condition = Condition(data, split="validation", pool=2_000)
        found.append(trained(name, condition, seed, data_root))
        write(RESULTS / "drift.json", record | {"results": found})  # as far as it has come


def trained(name: str, condition: Condition, seed: int, data_root: Path | None) -> dict[str, Any]:
    """Train under one schedule; return how many selections it took and how well it did."""
    pool = problem(condition, seed, data_root)
    training = Training(pool, network(condition, pool, seed), steps_of(pool), seed)
    sampler = SageSampler(
        training.model,
        pool.dataset,
        keep=KEEP,
        seed=seed,
        warmup_epochs=WARM_UP,
        progress=False,
        **SCHEDULES[name],
    )
    selected, distances, last, seconds = [], [], None, 0.0
    for epoch in range(EPOCHS):
        start = time.process_time()
        indices = np.sort(np.fromiter(sampler, np.int64))
        seconds += time.process_time() - start
        if sampler.selection is not last:
            last = sampler.selection
            selected.append(epoch)
        distances.append(sampler.drift)
        training.epoch(indices)
    done = training.finish(None)
    line = {
        "data": condition.data,
        "seed": seed,
        "schedule": name,
        "selections": len(selected),
        "selected_at": selected,
        "selecting_seconds": round(seconds, 2),
        "accuracy": round(done.accuracy, 2),
    }
    if distances[-1] is not None:
        line["distances"] = [
            None if one is None else [round(value, 3) for value in one] for one in distances
        ]
    return line


def steps_of(pool: Problem) -> int:
    """Return the steps of all epochs; batches are full ones."""
    per_epoch = int(KEEP * len(pool)) // 64
    return WARM_UP * (len(pool) // 64) + (EPOCHS - WARM_UP) * per_epoch


if __name__ == "__main__":
    typer.run(main)
