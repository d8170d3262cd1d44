"""The state of a sampler at a place counted by a framework."""

from __future__ import annotations

from typing import Any

from sage_torch.sampler.sage_sampler import SageSampler


def state_at(sampler: SageSampler, epoch: int, position: int = 0) -> dict[str, Any]:
    """Return the state of a sampler from which an epoch resumes at a place.

    Frameworks count batches and read ahead, so they know the place and the sampler does not. A
    framework that skips batches itself needs place 0.

    Args:
        sampler: The sampler with the selection.
        epoch: The epoch, from 0.
        position: The number of indices of that epoch that this rank has trained on.
    """
    return {**sampler.state_dict(), "epoch": epoch, "position": position}
