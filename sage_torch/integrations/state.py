"""A sampler's state at a place that a framework has counted."""

from __future__ import annotations

from typing import Any

from sage_torch.sampler.sage_sampler import SageSampler


def state_at(sampler: SageSampler, epoch: int, position: int = 0) -> dict[str, Any]:
    """Return a sampler's state as it is to be when an epoch goes on at a place.

    Frameworks count batches themselves and read ahead, so they know the place and the sampler does
    not. One that skips batches by itself wants place 0.

    Args:
        sampler: Holds the selection.
        epoch: From 0 on.
        position: How many indices of that epoch this rank has trained on.
    """
    return {**sampler.state_dict(), "epoch": epoch, "position": position}
