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
    """Sets the epochs of a sampler, saves its state in checkpoints, and checks the `Trainer`.

    A `SageSampler` also works in a `Trainer` without it. But then a checkpoint lacks the selection,
    and no error is raised if Lightning uses the length of the first epoch for all.

    The sampler selects when the first batch of an epoch is read, on the module being trained and on
    its device. Its model is the LightningModule, if `forward` returns the input of the loss, or the
    network in it. The sampler does not call `training_step`: pass `loss=` to the sampler if the
    loss is neither cross-entropy nor the own loss of a Hugging Face model.

    A resumed run continues with the next batch of the epoch, with any number of workers; Lightning
    alone would start the order of the epoch again.

    Args:
        sampler: The sampler in the training loader; `train_dataloader()` must return the same one
            in each call.

    Raises:
        ValueError: In `setup`: epochs differ in length and the Trainer would not notice, or the
            sampler's model is not part of the LightningModule.
        RuntimeError: In `setup`, the Trainer would split the examples over ranks a second time;
            later, the sampler is not in the training loader, or Lightning uses an old length.
    """

    def __init__(self, sampler: SageSampler) -> None:
        if not isinstance(sampler, SageSampler):
            raise TypeError(f"expected a SageSampler, got {type(sampler).__name__}")
        self.sampler = sampler
        self._epoch, self._position, self._is_between = 0, 0, True  # the place to resume at

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raise an error before training if a setting would undo the selection."""
        if stage != "fit":
            return
        if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
            raise RuntimeError(
                "expected nobody else to split the examples over ranks, but Trainer wraps samplers "
                "into a DistributedSampler of fixed length; pass "
                "Trainer(use_distributed_sampler=False), because SageSampler itself splits them"
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
        """Compare the number of batches that Lightning will draw with that of the sampler."""
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
        """Note the position in the epoch."""
        done = batch_idx + 1
        if done >= trainer.num_training_batches:
            self._begin(trainer.current_epoch + 1)
        else:
            self._epoch, self._is_between = trainer.current_epoch, False
            self._position = done * self._skippable(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the next epoch, because Lightning reads the length of its loader before it starts."""
        self._begin(trainer.current_epoch + 1)
        self.sampler.set_epoch(trainer.current_epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sampler at the next batch to train on, for a checkpoint."""
        state = state_at(self.sampler, self._epoch, self._position)
        return {"sampler": state, "is_between_epochs": self._is_between}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the sampler to the place of the checkpoint, without a new selection."""
        state = state_dict["sampler"]
        self.sampler.load_state_dict(state)
        self.sampler.set_epoch(state["epoch"])  # `setup` has set the first epoch
        self._epoch, self._position = state["epoch"], state["position"]
        self._is_between = state_dict["is_between_epochs"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a `StatefulDataLoader` start the next epoch if its last epoch was complete."""
        # Lightning stops at the known length, so that the loader does not see the end of its epoch.
        # After a resume it would return one epoch without batches.
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
            "expected SageCallback's sampler in the training loader, found none; pass the "
            "same SageSampler to both (also in train_dataloader(), not a new one for each call), "
            "and do not set overfit_batches, which replaces samplers"
        )

    def _skippable(self, trainer: pl.Trainer) -> int:
        """Return the number of indices that a resumed epoch skips per batch trained on.

        It is 0 if Lightning skips them (for a loader with its own state), or if it is unknown.
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
    """Yield the training loaders, from any nesting of lists and dictionaries."""
    yield from tree_leaves(trainer.train_dataloader)
