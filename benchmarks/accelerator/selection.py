"""One whole selection of 50,000 images with ResNet-18, against an epoch of its training.

Both in one process: an epoch that warms up, two that are timed, then three selections with the
defaults, of a TensorDataset in the memory of the host, under the autocast of training.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import TensorDataset

from benchmarks.accelerator.machine import Machine, Piece
from benchmarks.accelerator.training import Training, batch_of
from benchmarks.record import spread
from sage_torch import Selection, select_subset

KEEP, EPOCHS, SELECTIONS = 0.25, 2, 3
TINY_EPOCHS, TINY_SELECTIONS = 1, 1
LONGEST, MOST_EPOCHS = 15.0, 0.5  # the goals: seconds, and share of an epoch


def pieces(machine: Machine) -> dict[str, Piece]:
    """Return the one piece of this part."""
    return {"whole": partial(whole, machine)}


def whole(machine: Machine) -> dict[str, Any]:
    """Time epochs and selections."""
    images = machine.images
    everything = np.arange(len(images))
    epochs, selections = (TINY_EPOCHS, TINY_SELECTIONS) if machine.is_tiny else (EPOCHS, SELECTIONS)
    training = Training(machine, (1 + epochs) * (len(images) // batch_of(machine)), seed=0)
    training.epoch(everything)
    of_epochs = [machine.seconds(lambda: training.epoch(everything)) for _ in range(epochs)]
    model, data = training.model.eval(), on_host(machine)
    found: list[Selection] = []

    def select() -> None:
        with machine.autocast():
            found.append(select_subset(model, data, KEEP, progress=False))

    of_selections = [machine.seconds(select) for _ in range(selections)]
    epoch, selection = spread(of_epochs), spread(of_selections)
    share = selection["median"] / epoch["median"]
    return {
        "images": images.name,
        "examples": len(images),
        "keep": KEEP,
        "batch": batch_of(machine),
        "bfloat16": machine.is_bfloat16,
        "seconds_of_an_epoch": epoch,
        "seconds_of_a_selection": selection,
        "seconds_of_the_first_selection": of_selections[0],
        "share_of_an_epoch": share,
        "seconds_by_part": found[-1].seconds,
        "gradients": found[-1].settings["gradients"],
        "goals": {}
        if machine.is_tiny
        else {
            f"a selection under {LONGEST:g} s": selection["median"] < LONGEST,
            f"at most {MOST_EPOCHS:g} of an epoch": share <= MOST_EPOCHS,
        },
    }


def on_host(machine: Machine) -> TensorDataset:
    """Return the training images as networks see them, not augmented, in the host's memory."""
    images = machine.images
    return TensorDataset(images.standardised(images.pixels).cpu(), images.labels.cpu())
