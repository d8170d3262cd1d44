"""What does the trim find, and what does it cost, by basis and by weight of the opposition?

An example's margin is its agreement with the consensus of its class less a weight times its
opposition to the class that it opposes most; the trim drops negative margins. Weight 0 is the
agreement alone. Pools of 20,000 training images, a small CNN after one epoch on them, with and
without a fifth of the labels flipped; validation seeds, because the shipped weight and basis were
chosen here.

    python benchmarks/trim.py --data-root DIR
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.quality.trials import Condition, Training, network, problem
from benchmarks.record import RESULTS, environment, write
from benchmarks.variants import look
from sage_torch.demo.data import DATA_ROOT_VARIABLE

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
NOISES = (0.0, 0.2, 0.4)
DATA = ("fashion-mnist", "cifar-10")


def main(
    data_root: Annotated[
        Path | None, typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder with the data sets.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many, from 100 on.")] = 3,
) -> None:
    """Measure and write the numbers down."""
    torch.set_num_threads(1)
    where = environment("scikit-learn")
    found = [
        one
        for data in DATA
        for noise in NOISES
        for seed in range(100, 100 + seeds)
        for one in measured(Condition(data, noise, split="validation"), seed, data_root)
    ]
    record = {"question": "What does the trim find, and what does it cost?", **where}
    write(RESULTS / "trim.json", record | {"results": found})


def measured(condition: Condition, seed: int, data_root: Path | None) -> list[dict[str, Any]]:
    """Return one line for each basis and weight."""
    pool = problem(condition, seed, data_root)
    training = Training(pool, network(condition, pool, seed), len(pool) // 64, seed)
    training.epoch(np.arange(len(pool)))
    known = look(training.model, pool, seed)
    is_wrong, lines = pool.is_wrong, []
    for basis, rows in (("weighted", known.weighted), ("orthonormal", known.orthonormal)):
        own, opposition = sides(rows, known.labels)
        for weight in WEIGHTS:
            margins = own - weight * opposition
            is_dropped = margins < 0
            line = {
                "data": condition.data,
                "noise": condition.noise,
                "seed": seed,
                "basis": basis,
                "weight": weight,
                "right_dropped": float(is_dropped[~is_wrong].mean()),
            }
            if is_wrong.any():
                line["wrong_dropped"] = float(is_dropped[is_wrong].mean())
                line["auroc"] = float(roc_auc_score(is_wrong, -margins))
                line["auroc_of_probability"] = float(roc_auc_score(is_wrong, -known.right))
            lines.append(line)
    return lines


def sides(
    rows: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return agreement with the own class and opposition to the class most opposed, (N,) each."""
    units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    consensus = np.array([units[labels == one].sum(0) for one in range(labels.max() + 1)])
    with_all = units @ (consensus / np.linalg.norm(consensus, axis=1, keepdims=True)).T
    places = np.arange(len(labels))
    own = with_all[places, labels]
    with_all[places, labels] = 0.0
    return own, np.maximum(0.0, -with_all.min(1))


if __name__ == "__main__":
    typer.run(main)
