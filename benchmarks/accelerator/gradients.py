"""What per-example gradients cost against the passes of a training step, on the same batch.

`gradients="auto"` is asked for what it takes without a selection's features: projections of the
whole network. *Forward + backward* is the model's mean loss into `.grad`. Both in evaluation mode,
with torch's own settings (convolutions may use TF32, products of Linear layers do not), and, where
networks are trained in bfloat16, under its autocast as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.accelerator.machine import Machine, Piece
from benchmarks.quality.models import CASES, GPT, Case, ViT, resnet18
from benchmarks.record import spread
from benchmarks.speed.contenders import forward_backward
from sage_torch.gradients import choose_gradients

OURS, PLAIN = "gradients", "forward + backward"
ROUNDS, LEAST = 11, 0.1
EXAMPLES = {"ResNet-18": 256, "ViT-tiny": 256, "GPT-10M": 32}
TINY: dict[str, Callable[[], torch.nn.Module]] = {
    "ResNet-18": lambda: resnet18(8),
    "ViT-tiny": lambda: ViT(48, 2),
    "GPT-10M": lambda: GPT(48, 2, 3),
}


def pieces(machine: Machine) -> dict[str, Piece]:
    """Return a piece for each model and precision."""
    precisions = ["float32", *(["bfloat16"] if machine.is_bfloat16 else [])]
    return {
        f"{name}, {precision}": partial(measured, machine, _case(machine, name), precision)
        for name in EXAMPLES
        for precision in precisions
    }


def measured(machine: Machine, case: Case, precision: str) -> dict[str, Any]:
    """Time both on one batch, in turns."""
    device = str(machine.device)
    model, batch = case.model(0, device), case.batch(case.examples, 0, device)
    computer = choose_gradients(model, case.loss)
    passes = forward_backward(case, model)
    with torch.autocast(machine.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        seconds = machine.interleaved(
            {OURS: lambda: computer(batch), PLAIN: lambda: passes(batch)},
            2 if machine.is_tiny else ROUNDS,
            0.0 if machine.is_tiny else LEAST,
        )
    shown = {name: spread(values) for name, values in seconds.items()}
    return {
        "model": case.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "precision": precision,
        "examples": case.examples,
        "description": getattr(computer, "describe", lambda: "")(),
        "seconds_of_a_batch": shown,
        "ratio": shown[OURS]["median"] / shown[PLAIN]["median"],
    }


def _case(machine: Machine, name: str) -> Case:
    if machine.is_tiny:
        return replace(CASES[name], make=TINY[name], examples=4)
    return replace(CASES[name], examples=EXAMPLES[name])
