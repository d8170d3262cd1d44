"""Accelerate: `accelerator.prepare(loader)` is enough; `SamplerState` adds it to checkpoints.

Accelerate itself gives each process its batches of the whole order, so a `SageSampler` recognises a
prepared loader and does not split a second time. `dispatch_batches=True` raises an error, because
all processes select together. Set epochs with `loader.set_epoch(epoch)`, as Accelerate requires,
also after `skip_first_batches`.

    >>> import torch
    >>> from accelerate import Accelerator
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from sage_torch import SageSampler
    >>> from sage_torch.integrations.accelerate import SamplerState
    >>> accelerator = Accelerator(cpu=True)
    >>> data = TensorDataset(torch.randn(80, 5), torch.arange(80) % 2)
    >>> network = torch.nn.Linear(5, 2)
    >>> sampler = SageSampler(network, keep=0.25, progress=False)
    >>> loader = DataLoader(data, batch_size=4, sampler=sampler)
    >>> network, loader = accelerator.prepare(network, loader)
    >>> accelerator.register_for_checkpointing(SamplerState(sampler, loader))
    >>> len(loader), sum(len(targets) for _, targets in loader)
    (5, 20)
"""

from __future__ import annotations

from typing import Any

from sage_torch.integrations.state import state_at
from sage_torch.sampler.sage_sampler import SageSampler
from sage_torch.sampler.splitters import chain

try:
    from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard
except ImportError as error:
    raise ImportError(
        "sage_torch.integrations.accelerate needs Accelerate: pip install 'sage-torch[accelerate]'"
    ) from error


class SamplerState:
    """The selection and epoch of a sampler, for `accelerator.save_state` and `load_state`.

    Pass it to `accelerator.register_for_checkpointing`. It does not save the position in the epoch:
    to resume inside an epoch, call `accelerator.skip_first_batches(loader, batches)` as usual.

    Args:
        sampler: The sampler in the loader.
        loader: The result of `accelerator.prepare`. Its epoch is also restored, because Accelerate
            does not do that.

    Raises:
        TypeError: The loader was not prepared.
        ValueError: The loader does not hold the sampler.
    """

    def __init__(self, sampler: SageSampler, loader: Any) -> None:
        if not issubclass(type(loader), (DataLoaderShard, DataLoaderDispatcher)):
            raise TypeError(
                "expected the loader that accelerator.prepare(loader) returned, got "
                f"{type(loader).__name__}"
            )
        if not any(link is sampler for link in chain(loader)):
            raise ValueError(
                "expected a loader that holds the sampler, found another one in it; prepare "
                "DataLoader(dataset, sampler=sampler)"
            )
        self.sampler = sampler
        self.loader = loader

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler's state at the start of the loader's epoch."""
        return state_at(self.sampler, self.loader.iteration)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set sampler and loader to the start of the saved epoch, without a new selection.

        Raises:
            ValueError: As `SageSampler.load_state_dict`; nothing is changed.
        """
        self.sampler.load_state_dict(state_dict)
        self.loader.set_epoch(state_dict["epoch"])
