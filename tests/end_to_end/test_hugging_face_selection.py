"""Selections of Hugging Face data with their own models, collators and adapters of peft."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hugging_face import (
    LABELS,
    TOKENIZER,
    Collate,
    bert,
    distilbert,
    gpt2,
    llama,
    lora_classifier,
    lora_gpt2,
    lora_llama,
    make,
    models,
    sentences,
)
from microbatches import assert_rows
from torch import Tensor, nn
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
)

from sage_torch import SageSampler, select_subset
from sage_torch.gradients import FunctionalGradients, ProjectedGradients

# Masks of padded batches are looked at by transformers, which vmap refuses.
pytestmark = pytest.mark.filterwarnings("ignore:vmap cannot differentiate")


@models
def test_projected_rows_of_full_width_are_the_functional_ones(
    build: Callable[[], nn.Module], collate: Collate
) -> None:
    model, batch = make(build), collate(sentences())
    expected = FunctionalGradients(model)(batch)
    gradients = ProjectedGradients(model, width=10**6)
    assert_rows(gradients(batch), expected, 2e-5)
    assert gradients.dim == expected.shape[1]
    chosen = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert gradients.handling.keys() == chosen


@pytest.mark.parametrize("build", [lora_classifier, lora_gpt2, lora_llama])
def test_only_what_is_trained_is_projected(build: Callable[[], nn.Module]) -> None:
    model = make(build)
    gradients = ProjectedGradients(model, width=4)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert list(gradients.handling) == trained
    assert all("lora_" in name or "classifier" in name for name in trained)
    adapters = ProjectedGradients(model, width=4, params="*lora_*")
    assert all("lora_" in name for name in adapters.handling)


class Sentences(torch.utils.data.Dataset[dict[str, Any]]):
    """Tokenized sentences, with a class each where asked for."""

    def __init__(self, classes: bool) -> None:
        self.items = [dict(TOKENIZER(text)) for text in sentences(32)]
        for i, item in enumerate(self.items):
            item.pop("token_type_ids", None)
            if classes:
                item["label"] = i % LABELS

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.items[index])


def parameters_and_modes(model: nn.Module) -> Iterator[Any]:
    for name, parameter in model.named_parameters():
        yield name, parameter.detach().clone(), parameter.requires_grad, parameter.grad
    for name, module in model.named_modules():
        yield name, module.training, len(module._forward_hooks), len(module._backward_hooks)


@pytest.mark.parametrize("gradients", ["projected", "functional"])
@pytest.mark.parametrize(
    ("build", "classes"),
    [
        (bert, True),
        (distilbert, True),
        (lora_classifier, True),
        (gpt2, False),
        (llama, False),
        (lora_llama, False),
    ],
)
def test_selection_with_the_models_own_collator(
    build: Callable[[], nn.Module], classes: bool, gradients: str
) -> None:
    model, data = make(build).train(), Sentences(classes)
    collator: Any = DataCollatorForLanguageModeling(TOKENIZER, mlm=False)
    if classes:
        collator = DataCollatorWithPadding(TOKENIZER)
    before = list(parameters_and_modes(model))
    options: dict[str, Any] = {"gradients": gradients, "collate_fn": collator, "batch_size": 8}
    chosen = select_subset(model, data, keep=0.25, **options)
    assert chosen.indices.shape == (8,)
    assert np.abs(chosen.scores).max() > 0
    assert (chosen.labels is not None) == classes
    again = select_subset(model, data, keep=0.25, **options)
    assert np.array_equal(again.indices, chosen.indices)
    for old, new in zip(before, parameters_and_modes(model), strict=True):
        assert all(
            torch.equal(a, b) if isinstance(a, Tensor) else a == b
            for a, b in zip(old, new, strict=True)
        )


def test_a_sampler_trains_a_language_model() -> None:
    model, data = make(gpt2).train(), Sentences(classes=False)
    collator = DataCollatorForLanguageModeling(TOKENIZER, mlm=False)
    sampler = SageSampler(
        model, data, keep=0.5, gradients="projected", collate_fn=collator, batch_size=8
    )
    loader = torch.utils.data.DataLoader(data, 4, sampler=sampler, collate_fn=collator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        count = 0
        for batch in loader:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
            count += len(batch["labels"])
        assert count == 16
