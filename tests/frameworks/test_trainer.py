"""`SageTrainer` and `SageTrainerMixin` with Hugging Face's real `Trainer`, in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hugging_face import LABELS, TOKENIZER, bert, make, sentences
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, RandomSampler, TensorDataset
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_pt_utils import LengthGroupedSampler

from sage_torch import SageSampler, Selection, select_subset
from sage_torch.integrations.transformers import SageTrainer, SageTrainerMixin


class Model(nn.Module):
    """A classifier as Hugging Face's are, which notes what it is trained on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.seen: list[int] = []

    def forward(
        self, x: Tensor, labels: Tensor | None = None, number: Tensor | None = None
    ) -> SequenceClassifierOutput:
        logits, loss = self.network(x), None
        if labels is not None:
            loss = F.cross_entropy(logits, labels)
            if number is not None and self.training:
                self.seen += number.tolist()
        return SequenceClassifierOutput(loss=loss, logits=logits)


@pytest.fixture
def model(network: nn.Module) -> Model:
    return Model(network)


@pytest.fixture
def records(blobs: TensorDataset) -> list[dict[str, Any]]:
    inputs, labels = blobs.tensors
    return [{"x": x, "labels": labels[i], "number": i} for i, x in enumerate(inputs)]


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TrainingArguments]:
    def make(**options: Any) -> TrainingArguments:
        given = {
            "num_train_epochs": 3,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.05,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            **options,
        }
        return TrainingArguments(str(tmp_path / "run"), **given)

    return make


def sampler_of(model: nn.Module, **options: Any) -> SageSampler:
    return SageSampler(model, keep=0.25, progress=False, **options)


class Weights(TrainerCallback):
    """Notes the network at the start of each epoch."""

    def __init__(self) -> None:
        self.at: list[dict[str, Tensor]] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.at.append(copy.deepcopy(kwargs["model"].state_dict()))


def test_each_epoch_trains_on_the_subset_of_the_live_model(
    reading: dict[str, Any],
    model: Model,
    records: list[dict[str, Any]],
    arguments: Callable[..., TrainingArguments],
) -> None:
    args = arguments(
        num_train_epochs=3,
        dataloader_num_workers=reading["num_workers"],
        dataloader_persistent_workers=reading.get("persistent_workers", False),
    )
    sampler, weights = sampler_of(model, refresh_every=2), Weights()
    trainer = SageTrainer(
        model, args, train_dataset=records, train_sampler=sampler, callbacks=[weights]
    )
    assert trainer.train().global_step == 18 == trainer.state.max_steps
    assert sampler.total_steps(3, 4) == 18
    epochs = np.array(model.seen).reshape(3, 22).tolist()
    for epoch, seen in enumerate(epochs):
        before = Model(model.network)
        before.load_state_dict(weights.at[epoch - epoch % 2])
        collate = trainer.data_collator
        expected = select_subset(before, records, 0.25, progress=False, collate_fn=collate)  # type: ignore[arg-type]
        assert np.array_equal(sorted(seen), expected.indices), epoch
    assert len(set(map(tuple, epochs))) == 3  # an order each
    assert set(epochs[0]) != set(epochs[2])
    assert trainer.lr_scheduler is not None
    assert trainer.lr_scheduler.get_last_lr() == [0.0, 0.0]  # the schedule has come to its end


def test_resuming_goes_on_with_the_next_batch(
    reading: dict[str, Any],
    network: nn.Module,
    records: list[dict[str, Any]],
    arguments: Callable[..., TrainingArguments],
    tmp_path: Path,
) -> None:
    def train(resume: str | None) -> tuple[Model, Selection]:
        args = arguments(
            save_strategy="no" if resume else "steps",
            save_steps=2,
            dataloader_num_workers=reading["num_workers"],
            dataloader_persistent_workers=reading.get("persistent_workers", False),
        )
        model = Model(network)
        sampler = sampler_of(model, refresh_every=2)
        trainer = SageTrainer(model, args, train_dataset=records, train_sampler=sampler)
        trainer.train(resume_from_checkpoint=resume)
        assert sampler.selection is not None
        return model, sampler.selection

    whole, first = train(None)
    assert len(whole.seen) == 66
    places = {8: 30} if reading["num_workers"] else {4: 16, 6: 22, 8: 30, 14: 52}
    for step, place in places.items():  # 6 steps an epoch, the last of 2
        resumed, second = train(str(tmp_path / f"run/checkpoint-{step}"))
        assert resumed.seen == whole.seen[place:], step
        assert np.array_equal(second.scores, first.scores), step
        for key, weight in whole.state_dict().items():
            assert torch.equal(weight, resumed.state_dict()[key]), step


def test_resuming_from_the_last_checkpoint(
    network: nn.Module,
    records: list[dict[str, Any]],
    arguments: Callable[..., TrainingArguments],
) -> None:
    def train(epochs: int, resume: bool) -> tuple[Model, SageSampler]:
        model = Model(network)
        sampler = sampler_of(model)
        args = arguments(
            num_train_epochs=epochs, save_strategy="epoch", lr_scheduler_type="constant"
        )
        trainer = SageTrainer(model, args, train_dataset=records, train_sampler=sampler)
        trainer.train(resume_from_checkpoint=resume)
        return model, sampler

    first, made = train(1, False)
    rest, loaded = train(2, True)
    assert made.selection is not None
    assert loaded.selection is not None
    assert np.array_equal(made.selection.scores, loaded.selection.scores)
    assert sorted(first.seen) == sorted(rest.seen)
    assert first.seen != rest.seen


def test_an_ordinary_trainer_may_warm_up(
    network: nn.Module,
    records: list[dict[str, Any]],
    arguments: Callable[..., TrainingArguments],
) -> None:
    model, args = Model(network), arguments(num_train_epochs=1, save_strategy="epoch")
    Trainer(model, args, train_dataset=records).train()
    warm, state = copy.deepcopy(model.state_dict()), f"{args.output_dir}/checkpoint-23"
    model = Model(network)
    sampler = sampler_of(model)
    # 23 steps were one epoch; of the subset's they are 3 and a part.
    trainer = SageTrainer(
        model, arguments(num_train_epochs=5), train_dataset=records, train_sampler=sampler
    )
    with pytest.warns(UserWarning, match=r"holds no sage_sampler\.pt"):
        trainer.train(resume_from_checkpoint=state)
    before = Model(network)
    before.load_state_dict(warm)
    collate: Any = trainer.data_collator
    expected = select_subset(before, records, 0.25, progress=False, collate_fn=collate)  # type: ignore[arg-type]
    assert np.array_equal(sorted(set(model.seen)), expected.indices)
    assert trainer.state.global_step == 30


def test_epochs_of_different_lengths_are_refused(
    model: Model, records: list[dict[str, Any]], arguments: Callable[..., TrainingArguments]
) -> None:
    sampler = sampler_of(model, warmup_epochs=1)
    trainer = SageTrainer(model, arguments(), train_dataset=records, train_sampler=sampler)
    with pytest.raises(
        ValueError, match=r'90 examples in epoch 0 and 22 in epoch 2.*length="fixed"'
    ):
        trainer.train()
    assert not model.seen


def test_epochs_of_fixed_length(
    model: Model, records: list[dict[str, Any]], arguments: Callable[..., TrainingArguments]
) -> None:
    sampler = sampler_of(model, warmup_epochs=1, length="fixed")
    trainer = SageTrainer(
        model, arguments(num_train_epochs=2), train_dataset=records, train_sampler=sampler
    )
    assert trainer.train().global_step == 46
    assert sorted(model.seen[:90]) == list(range(90))
    assert sampler.selection is not None
    assert np.array_equal(np.unique(model.seen[90:]), sampler.selection.indices)
    assert len(model.seen) == 180


def test_steps_accumulated_and_limited(
    model: Model, records: list[dict[str, Any]], arguments: Callable[..., TrainingArguments]
) -> None:
    args = arguments(max_steps=5, gradient_accumulation_steps=2)  # 3 an epoch
    sampler = sampler_of(model)
    trainer = SageTrainer(model, args, train_dataset=records, train_sampler=sampler)
    assert trainer.train().global_step == 5
    assert len(model.seen) == 22 + 16
    assert sampler.selection is not None
    assert np.array_equal(sorted(model.seen[:22]), sampler.selection.indices)


def test_training_twice(
    model: Model, records: list[dict[str, Any]], arguments: Callable[..., TrainingArguments]
) -> None:
    sampler = sampler_of(model)
    args = arguments(num_train_epochs=2)
    trainer = SageTrainer(model, args, train_dataset=records, train_sampler=sampler)
    trainer.train()
    trainer.train()
    epochs = np.array(model.seen).reshape(4, 22).tolist()
    assert epochs[0] == epochs[2] != epochs[1] == epochs[3]


def test_evaluation_is_untouched(
    model: Model, records: list[dict[str, Any]], arguments: Callable[..., TrainingArguments]
) -> None:
    texts = [{**record, "input_ids": [0] * (i % 7 + 1)} for i, record in enumerate(records)]
    is_new = "train_sampling_strategy" in TrainingArguments.__dataclass_fields__  # from 5.0 on
    grouped: Any = {"train_sampling_strategy": "group_by_length"}
    args = arguments(**(grouped if is_new else {"group_by_length": True}))
    given: dict[str, Any] = {"train_dataset": texts, "eval_dataset": texts}
    ours = SageTrainer(model, args, **given, train_sampler=sampler_of(model))
    lengths = ours._get_eval_sampler(texts)  # type: ignore[arg-type]
    assert isinstance(lengths, LengthGroupedSampler)
    assert isinstance(ours._get_train_sampler(texts), SageSampler)
    assert len(ours.get_eval_dataloader().dataset) == 90  # type: ignore[arg-type]


def test_without_a_sampler_nothing_changes(
    model: Model, records: list[dict[str, Any]], arguments: Callable[..., TrainingArguments]
) -> None:
    trainer = SageTrainer(model, arguments(num_train_epochs=1), train_dataset=records)
    assert isinstance(trainer._get_train_sampler(), RandomSampler)
    trainer.train()
    assert sorted(model.seen) == list(range(90))


class Old:
    """A trainer of a version whose method takes no data set."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.callbacks: list[TrainerCallback] = []

    def add_callback(self, callback: TrainerCallback) -> None:
        self.callbacks.append(callback)

    def _get_train_sampler(self) -> str:
        return "theirs"

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> object:
        return object()

    def _get_collator_with_removed_columns(
        self, data_collator: Any, description: str | None = None
    ) -> object:
        return object()


class New(Old):
    """And one whose method does."""

    def _get_train_sampler(self, train_dataset: Any = None) -> str:  # type: ignore[override]
        return f"theirs for {train_dataset}"


class SageOld(SageTrainerMixin, Old): ...


class SageNew(SageTrainerMixin, New): ...


def test_signatures_of_several_versions(model: Model) -> None:
    sampler = sampler_of(model)
    for kind in (SageOld, SageNew):
        with_ours: Any = kind(model, train_sampler=sampler)
        assert with_ours._get_train_sampler() is sampler
        assert with_ours._get_train_sampler([1]) is sampler
        assert len(with_ours.callbacks) == 1
    assert SageOld(model)._get_train_sampler() == "theirs"
    assert SageNew(model)._get_train_sampler([1]) == "theirs for [1]"


@pytest.mark.parametrize("name", ["_remove_unused_columns", "_get_collator_with_removed_columns"])
def test_training_loaders_have_one_data_set_and_collator(name: str, model: Model) -> None:
    """As a sampler must; `Trainer` wraps both anew for each loader."""
    make = getattr(SageOld(model, train_sampler=sampler_of(model)), name)
    first, second = [1], [1]
    assert make(first, description="Training") is make(first, "training")  # older versions' word
    assert make(first, "Training") is not make(second, "Training")
    assert make(first, "Evaluation") is not make(first, "Evaluation")
    assert make(first) is not make(first)
    without = getattr(SageOld(model), name)
    assert without(first, "Training") is not without(first, "Training")


def test_another_model(
    model: Model,
    network: nn.Module,
    records: list[dict[str, Any]],
    arguments: Callable[..., TrainingArguments],
) -> None:
    sampler = sampler_of(Model(network))
    for trained in ({"model": model}, {"model_init": lambda: Model(network)}):
        trainer = SageTrainer(
            args=arguments(), train_dataset=records, train_sampler=sampler, **trained
        )
        with pytest.raises(ValueError, match=r"got another Model.*not model_init"):
            trainer.train()
    assert sampler.selection is None


class Endless(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield {"x": torch.zeros(6), "labels": 0, "number": 0}


def test_a_stream_takes_no_sampler(
    model: Model, arguments: Callable[..., TrainingArguments]
) -> None:
    args = arguments(max_steps=2)
    trainer = SageTrainer(model, args, train_dataset=Endless(), train_sampler=sampler_of(model))
    with pytest.raises(RuntimeError, match=r"train_dataset with a length"):
        trainer.train()


def test_not_a_sampler(model: Model, arguments: Callable[..., TrainingArguments]) -> None:
    with pytest.raises(TypeError, match="expected train_sampler to be a SageSampler, got list"):
        SageTrainer(model, arguments(), train_sampler=[1, 2])  # type: ignore[arg-type]


class Read(Dataset[dict[str, Any]]):
    """Sentences with labels, and which of them have been asked for."""

    def __init__(self) -> None:
        self.rows = [
            {**TOKENIZER(text), "label": i % LABELS} for i, text in enumerate(sentences(48))
        ]
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.asked.append(index)
        return self.rows[index]


def test_a_transformer_with_a_padding_collator(
    arguments: Callable[..., TrainingArguments],
) -> None:
    model, data = make(bert), Read()
    sampler = sampler_of(model)
    trainer = SageTrainer(
        model,  # type: ignore[arg-type]
        arguments(num_train_epochs=2),
        train_dataset=data,
        data_collator=DataCollatorWithPadding(TOKENIZER),
        train_sampler=sampler,
    )
    assert trainer.train().global_step == 6
    assert len(sampler.selection.indices) == 12
    data.asked.clear()
    assert len(list(trainer.get_train_dataloader())) == 3
    assert sorted(data.asked) == sampler.selection.indices.tolist()
