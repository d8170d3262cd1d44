"""Accelerate: `accelerator.prepare(loader)` is enough; `SamplerState` makes checkpoints complete.

Every process iterates the whole order and Accelerate gives each its batches, so a `SageSampler`
notices a prepared loader and does not split a second time. `dispatch_batches=True` is refused: a
selection is made by all processes together. Name epochs as Accelerate asks, also after
`skip_first_batches`: `loader.set_epoch(epoch)`.

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
    """What `accelerator.save_state` and `load_state` keep of a sampler: its selection and epoch.

    Hand it to `accelerator.register_for_checkpointing`. The place in the epoch is not kept: to go
    on in the middle of one, `accelerator.skip_first_batches(loader, batches)` as always.

    Args:
        sampler: The one in the loader.
        loader: As `accelerator.prepare` returned it; its epoch is restored, too, which Accelerate
            forgets.

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
        """Put sampler and loader at the start of the saved epoch; nothing is selected again.

        Args:
            state_dict: From another `SamplerState`.

        Raises:
            ValueError: As `SageSampler.load_state_dict`; nothing is changed.
        """
        self.sampler.load_state_dict(state_dict)
        self.loader.set_epoch(state_dict["epoch"])
