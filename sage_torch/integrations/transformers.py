"""Hugging Face's `Trainer`: `SageTrainer`, and `SageTrainerMixin` for its other subclasses.

`Trainer` takes no sampler, but these do: `train_sampler=`. Evaluation is unchanged.

    >>> import tempfile, torch
    >>> from transformers import PrinterCallback, TrainingArguments
    >>> from transformers.modeling_outputs import SequenceClassifierOutput
    >>> from sage_torch import SageSampler
    >>> from sage_torch.integrations.transformers import SageTrainer
    >>> class Classifier(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.linear = torch.nn.Linear(5, 2)
    ...
    ...     def forward(self, x, labels=None):
    ...         logits, loss = self.linear(x), None
    ...         if labels is not None:
    ...             loss = torch.nn.functional.cross_entropy(logits, labels)
    ...         return SequenceClassifierOutput(loss=loss, logits=logits)
    >>> data = [{"x": torch.randn(5), "labels": i % 2} for i in range(80)]
    >>> model = Classifier()
    >>> sampler = SageSampler(model, keep=0.25, refresh_every=1, progress=False)
    >>> folder = tempfile.TemporaryDirectory()
    >>> args = TrainingArguments(
    ...     folder.name, num_train_epochs=2, per_device_train_batch_size=4, use_cpu=True,
    ...     save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no",
    ... )
    >>> trainer = SageTrainer(model, args, train_dataset=data, train_sampler=sampler)
    >>> trainer.remove_callback(PrinterCallback)
    >>> trainer.train().global_step
    10
    >>> folder.cleanup()
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sage_torch.integrations.state import state_at
from sage_torch.sampler.sage_sampler import SageSampler
from sage_torch.sampler.splitters import chain

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
except ImportError as error:
    raise ImportError(
        "sage_torch.integrations.transformers needs Transformers and Accelerate: "
        "pip install 'sage-torch[transformers]'"
    ) from error

_FILE = "sage_sampler.pt"
_Base: Any = Trainer if TYPE_CHECKING else object


class SageTrainerMixin(_Base):  # type: ignore[misc]
    """Lets a `Trainer` train with a `SageSampler`: `class Mine(SageTrainerMixin, SFTTrainer)`.

    The sampler selects at the start of an epoch on the model being trained, with the data set and
    data collator of the trainer. Checkpoints get one more file, `sage_sampler.pt`, from which
    `train(resume_from_checkpoint=...)` resumes without a new selection. A checkpoint without that
    file leads to a new selection, so that the warm-up may be the run of an ordinary `Trainer`.

    `Trainer` reads the length of an epoch once, and derives steps, learning rates and the place to
    resume at from it. All epochs must therefore be equally long: no warm-up, or `length="fixed"`.
    `train_sampling_strategy` (`group_by_length` in older versions) only affects evaluation.

    Args:
        *args: As for `Trainer`.
        train_sampler: The sampler of the training examples, whose model is that of the trainer or a
            part of it. None to train as without the mixin.
        **kwargs: As for `Trainer`.

    Raises:
        TypeError: `train_sampler` is not a `SageSampler`.
        ValueError: In `train()`: the sampler has another model, or epochs differ in length.
        RuntimeError: In `train()`: the training loader does not use the sampler, for example for an
            `IterableDataset`.
    """

    def __init__(self, *args: Any, train_sampler: SageSampler | None = None, **kwargs: Any) -> None:
        if not (train_sampler is None or isinstance(train_sampler, SageSampler)):
            raise TypeError(
                f"expected train_sampler to be a SageSampler, got {type(train_sampler).__name__}"
            )
        self.train_sampler = train_sampler
        self._made: dict[int, tuple[Any, Any]] = {}
        super().__init__(*args, **kwargs)
        if train_sampler is not None:
            self._sage_callback = _SageCallback(train_sampler)
            self.add_callback(self._sage_callback)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train as `Trainer.train`; a resumed run also loads the selection."""
        if self.train_sampler is not None:
            folder = resume_from_checkpoint
            if folder is True:
                folder = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
            self._sage_callback.resume_from = Path(folder) if folder else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = self.train_sampler
        if sampler is None:
            given = () if train_dataset is None else (train_dataset,)  # older versions have none
            return super()._get_train_sampler(*given)
        if not any(part is sampler.model for part in self.model.modules()):
            raise ValueError(
                "expected the sampler's model to be the Trainer's or a part of it, got another "
                f"{type(sampler.model).__name__}, which this Trainer does not train; pass the same "
                "model to both (not model_init)"
            )
        return sampler

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        return self._same(super()._remove_unused_columns, dataset, description)

    def _get_collator_with_removed_columns(
        self, data_collator: Any, description: str | None = None
    ) -> Any:
        return self._same(super()._get_collator_with_removed_columns, data_collator, description)

    def _same(self, make: Callable[..., Any], given: Any, description: str | None) -> Any:
        """Return the same result for the same input, as a sampler has one data set and collator."""
        if self.train_sampler is None or (description or "").lower() != "training":
            return make(given, description)
        if id(given) not in self._made:
            self._made[id(given)] = given, make(given, description)  # kept, so that its id is too
        return self._made[id(given)][1]


class SageTrainer(SageTrainerMixin, Trainer):
    """A `Trainer` with a `train_sampler`; see `SageTrainerMixin`."""


class _SageCallback(TrainerCallback):
    """Sets the epochs of the sampler and saves its state in the checkpoints of the trainer."""

    def __init__(self, sampler: SageSampler) -> None:
        self.sampler = sampler
        self.resume_from: Path | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not any(link is self.sampler for link in chain(kwargs["train_dataloader"])):
            raise RuntimeError(
                "expected the training loader to use train_sampler, found another sampler; pass a "
                "train_dataset with a length and leave get_train_dataloader to Trainer"
            )
        self._check_lengths(int(state.num_train_epochs))
        if self.resume_from is not None:
            self._load(self.resume_from)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Accelerate does not reach the sampler after skipping batches on several processes.
        self.sampler.set_epoch(int(state.epoch or 0))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if args.should_save and folder.is_dir():
            # Trainer itself skips the batches trained on, so the place is the start of the epoch.
            torch.save(state_at(self.sampler, int(state.epoch)), folder / _FILE)

    def _check_lengths(self, epochs: int) -> None:
        first, last = (self.sampler.steps_per_epoch(epoch, 1) for epoch in (0, epochs - 1))
        if first != last:
            raise ValueError(
                f"expected epochs of one length, got {first} examples in epoch 0 and {last} in "
                f"epoch {epochs - 1}: Trainer reads the length once; pass "
                'SageSampler(..., length="fixed"), or warmup_epochs=0 and warm up with another '
                "Trainer"
            )

    def _load(self, folder: Path) -> None:
        if (folder / _FILE).is_file():
            self.sampler.load_state_dict(torch.load(folder / _FILE, weights_only=True))
        else:
            warnings.warn(
                f"{folder} holds no {_FILE}, because it was not written by a SageTrainer: the "
                "sampler selects anew on the resumed model",
                stacklevel=2,
            )
