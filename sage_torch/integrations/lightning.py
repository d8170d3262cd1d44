"""Lightning: `SageCallback` keeps a `SageSampler` in step with a `Trainer`.

>>> import torch
>>> from torch.utils.data import DataLoader, TensorDataset
>>> import lightning.pytorch as pl
>>> from sage_torch import SageSampler
>>> from sage_torch.integrations.lightning import SageCallback
>>> class Classifier(pl.LightningModule):
...     def __init__(self):
...         super().__init__()
...         self.network = torch.nn.Linear(5, 2)
...
...     def training_step(self, batch, batch_idx):
...         inputs, targets = batch
...         return torch.nn.functional.cross_entropy(self.network(inputs), targets)
...
...     def configure_optimizers(self):
...         return torch.optim.SGD(self.parameters(), lr=0.1)
>>> data = TensorDataset(torch.randn(80, 5), torch.arange(80) % 2)
>>> module = Classifier()
>>> sampler = SageSampler(module.network, keep=0.25, refresh_every=1, progress=False)
>>> loader = DataLoader(data, batch_size=4, sampler=sampler)
>>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
>>> quiet |= dict(enable_model_summary=False, accelerator="cpu", max_epochs=2)
>>> trainer = pl.Trainer(**quiet, callbacks=[SageCallback(sampler)])
>>> trainer.fit(module, loader)
>>> trainer.global_step
10
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch.utils._pytree import tree_leaves

from sage_torch.integrations.state import state_at
from sage_torch.sampler.sage_sampler import SageSampler
from sage_torch.sampler.splitters import chain

try:
    import lightning.pytorch as pl
except ImportError:
    try:
        import pytorch_lightning as pl  # type: ignore[no-redef]
    except ImportError as error:
        raise ImportError(
            "sage_torch.integrations.lightning needs Lightning: pip install 'sage-torch[lightning]'"
        ) from error


class SageCallback(pl.Callback):
    """Names the sampler's epochs, keeps its state in checkpoints, refuses what would go wrong.

    Without it a `SageSampler` works in a `Trainer`, too, but a checkpoint does not hold its
    selection and nobody sees that Lightning reads the length of the first epoch only.

    The sampler selects on time by itself, on the module being trained and on its device, when the
    epoch's first batch is asked for. Its model is the LightningModule where `forward` returns what
    the loss takes, or the network in it. `training_step` is not asked for the loss: give `loss=` to
    the sampler where cross-entropy, or what the model computes itself, is not it.

    Resuming goes on with the very next batch of the epoch, at any number of workers; Lightning
    alone would start the epoch's order again.

    Args:
        sampler: The one in the training loader; `train_dataloader()` must not make a new one each
            time it is called.

    Raises:
        ValueError: In `setup`: epochs differ in length and the Trainer would not see it, or the
            sampler's model is no part of the LightningModule.
        RuntimeError: In `setup`, the Trainer would split a second time what the sampler splits over
            ranks; later, the sampler is not in the training loader, or a length is stale.
    """

    def __init__(self, sampler: SageSampler) -> None:
        if not isinstance(sampler, SageSampler):
            raise TypeError(f"expected a SageSampler, got {type(sampler).__name__}")
        self.sampler = sampler
        self._epoch, self._position, self._is_between = 0, 0, True  # where to resume

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse, before anything runs, settings that would undo the selection."""
        if stage != "fit":
            return
        if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
            raise RuntimeError(
                "expected nobody else to split the examples over ranks, but Trainer wraps samplers "
                "into a DistributedSampler of fixed length; pass "
                "Trainer(use_distributed_sampler=False): SageSampler splits by itself"
            )
        if self._lengths_change(trainer) and trainer.reload_dataloaders_every_n_epochs != 1:  # type: ignore[attr-defined]
            raise ValueError(
                f"expected epochs of one length, but {self.sampler.warmup_epochs} warm-up epochs "
                "are longer than the others and Trainer asks for the length once; pass "
                'Trainer(reload_dataloaders_every_n_epochs=1), or SageSampler(..., length="fixed")'
            )
        if not any(part is self.sampler.model for part in pl_module.modules()):
            raise ValueError(
                "expected the sampler's model to be the LightningModule or a part of it, got "
                f"another {type(self.sampler.model).__name__}, which this Trainer does not train; "
                "make SageSampler(module, ...) or SageSampler(module.network, ...)"
            )
        self._begin(trainer.current_epoch)
        self.sampler.set_epoch(trainer.current_epoch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the number of batches that Lightning will draw with the sampler's."""
        loader = self._loader(trainer)
        limit = trainer.limit_train_batches
        expected = len(loader)
        expected = int(expected * limit) if isinstance(limit, float) else min(expected, limit)
        is_alone = len(list(_loaders(trainer))) == 1
        if is_alone and trainer.num_training_batches != expected:
            raise RuntimeError(
                f"expected epoch {trainer.current_epoch} to have {expected} batches, but Lightning "
                f"will draw {trainer.num_training_batches}, the length of an earlier epoch; pass "
                'Trainer(reload_dataloaders_every_n_epochs=1), or SageSampler(..., length="fixed")'
            )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note how far this epoch is."""
        done = batch_idx + 1
        if done >= trainer.num_training_batches:
            self._begin(trainer.current_epoch + 1)
        else:
            self._epoch, self._is_between = trainer.current_epoch, False
            self._position = done * self._skippable(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Name the next epoch now: a reloaded loader is asked for its length before it begins."""
        self._begin(trainer.current_epoch + 1)
        self.sampler.set_epoch(trainer.current_epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the sampler's state at the next batch to train on."""
        state = state_at(self.sampler, self._epoch, self._position)
        return {"sampler": state, "is_between_epochs": self._is_between}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the sampler where the checkpoint was made; nothing is selected again."""
        state = state_dict["sampler"]
        self.sampler.load_state_dict(state)
        self.sampler.set_epoch(state["epoch"])  # `setup` has named the first one
        self._epoch, self._position = state["epoch"], state["position"]
        self._is_between = state_dict["is_between_epochs"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a `StatefulDataLoader` begin the next epoch where its last one had been read."""
        # Lightning stops at the known length, so that the loader never learns that its epoch is
        # over; resumed, it would give one epoch without batches.
        state = checkpoint["callbacks"].get(self.state_key)
        if state is not None and state["is_between_epochs"]:
            checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)

    def _begin(self, epoch: int) -> None:
        self._epoch, self._position, self._is_between = epoch, 0, True

    def _lengths_change(self, trainer: pl.Trainer) -> bool:
        epochs = trainer.max_epochs
        if epochs is None or epochs < 0:
            epochs = sys.maxsize  # until max_steps or max_time
        return self.sampler.length == "subset" and 0 < self.sampler.warmup_epochs < epochs

    def _loader(self, trainer: pl.Trainer) -> Any:
        for loader in _loaders(trainer):
            if any(link is self.sampler for link in chain(loader)):
                return loader
        raise RuntimeError(
            "expected SageCallback's sampler in the training loader, found none; hand the same "
            "SageSampler to both, in train_dataloader(), too (not a new one for each call), and "
            "leave overfit_batches alone, which replaces samplers"
        )

    def _skippable(self, trainer: pl.Trainer) -> int:
        """Return how many indices a resumed epoch passes over for each batch trained on.

        0 where Lightning sees to it (a loader with a state of its own), or where nobody can tell.
        """
        loader = self._loader(trainer)
        if hasattr(loader, "state_dict") or len(list(_loaders(trainer))) > 1:
            return 0
        for link in chain(loader):
            size = getattr(link, "batch_size", None)
            if link is not loader and isinstance(size, int):
                return size
        return 1 if loader.batch_sampler is None else 0


def _loaders(trainer: pl.Trainer) -> Iterator[Any]:
    """Yield the training loaders, in whatever lists and dictionaries they were given."""
    yield from tree_leaves(trainer.train_dataloader)
