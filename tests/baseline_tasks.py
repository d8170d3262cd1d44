"""Small tasks for the rival rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.quality.baselines import Task

COUNTS = np.array([300, 220, 180], np.int64)
QUOTAS = np.array([90, 1, 44], np.int64)


def identity_task(logits: Any, labels: Any, quotas: Any, **options: Any) -> Task:
    """Make a task whose images, features and logits are all the same given rows."""
    rows = torch.as_tensor(np.asarray(logits), dtype=torch.float32)
    model = nn.Linear(rows.shape[1], rows.shape[1])
    with torch.no_grad():
        model.weight.copy_(torch.eye(rows.shape[1]))
        model.bias.zero_()
    return Task(
        model.eval(), rows, torch.as_tensor(labels), np.asarray(quotas, np.int64), 0, **options
    )


def mixed_task() -> Task:
    """Make a task of 700 examples in 3 unequal classes, mixed, and a small random network."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.from_numpy(np.repeat(np.arange(3), COUNTS))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    images = torch.randn(len(labels), 6, generator=generator) + labels[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    seen = np.random.default_rng(0).normal(size=(4, len(labels), 3)).astype(np.float32)
    seen[0, ::50] = np.nan  # left out of the first epoch
    return Task(model, images, labels, QUOTAS, 0, seen)
