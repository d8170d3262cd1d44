"""Hugging Face models, with their own collators and adapters of peft: no loss= is needed.

What is expected is what training computes: `model(**example).loss`, one example at a time, and
its backward pass. Models are built from small configurations and the tokenizer in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hugging_face import (
    LABELS,
    TOKENIZER,
    VOCABULARY,
    Collate,
    N,
    bert,
    causal,
    gpt2,
    llama,
    lora,
    make,
    models,
    sentences,
    with_padding,
)
from microbatches import assert_rows
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BatchEncoding,
    ViTConfig,
    ViTForImageClassification,
)

from sage_torch.gradients import FunctionalGradients, LastLayerGradients
from sage_torch.gradients.loss import ExampleLoss

# Masks of padded batches are looked at by transformers, which vmap refuses.
pytestmark = pytest.mark.filterwarnings("ignore:vmap cannot differentiate")


def one_by_one(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Return the model's own losses of single examples, and the gradients of those."""
    model = copy.deepcopy(model)  # its own loss may settle problem_type in the configuration
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses, rows = [], []
    for i in range(len(batch["labels"])):
        loss = model(**{key: value[i : i + 1] for key, value in batch.items()}).loss
        found = torch.autograd.grad(loss, chosen, allow_unused=True)
        pairs = zip(found, chosen, strict=True)
        losses.append(loss.detach())
        rows.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
        )
    return torch.stack(losses), torch.stack(rows)


@models
def test_losses_and_gradients_are_the_models_own(
    build: Callable[[], nn.Module], collate: Collate
) -> None:
    model, batch = make(build), collate(sentences())
    assert isinstance(batch, (BatchEncoding, dict))
    assert not batch["attention_mask"].all()
    losses, rows = one_by_one(model, batch)
    before = repr(getattr(model, "config", None))
    torch.testing.assert_close(ExampleLoss(model)(batch).detach(), losses, rtol=1e-5, atol=1e-6)
    assert_rows(FunctionalGradients(model)(batch), rows)
    assert repr(getattr(model, "config", None)) == before


@pytest.mark.parametrize("build", [gpt2, llama])
def test_a_causal_model_predicts_the_labelled_next_tokens(build: Callable[[], nn.Module]) -> None:
    # The prompt's labels are taken out; one example keeps a single label, the first: nothing.
    model, batch = make(build), causal(sentences())
    batch["labels"][0, :3] = -100
    batch["labels"][1, 1:] = -100
    losses, rows = one_by_one(model, batch)
    assert losses[1].isnan()
    others = [0, 2, 3, 4, 5]
    ours = ExampleLoss(model)(batch).detach()
    assert ours[1] == 0
    torch.testing.assert_close(ours[others], losses[others], rtol=1e-5, atol=1e-6)
    found = FunctionalGradients(model)(batch)
    assert not found[1].any()
    assert_rows(found[others], rows[others])


def test_left_padding_and_a_batch_without_mask() -> None:
    model = make(gpt2)
    left = copy.deepcopy(TOKENIZER)
    left.padding_side = "left"
    batch = causal(sentences(), left)
    torch.testing.assert_close(ExampleLoss(model)(batch).detach(), one_by_one(model, batch)[0])
    bare = {key: batch[key] for key in ("input_ids", "labels")}
    losses, rows = one_by_one(model, bare)
    torch.testing.assert_close(ExampleLoss(model)(bare).detach(), losses)
    assert_rows(FunctionalGradients(model)(bare), rows)
    pair = (bare["input_ids"], bare["labels"])
    assert_rows(FunctionalGradients(model)(pair), rows)


def outputs(labels: Tensor) -> Any:
    return BatchEncoding({**with_padding(sentences()), "labels": labels})


@pytest.mark.parametrize(
    ("problem", "width", "labels", "named"),
    [
        ("regression", 1, torch.linspace(-1, 1, N), True),
        ("regression", 1, torch.linspace(-1, 1, N), False),
        ("regression", 1, torch.linspace(-1, 1, N)[:, None], False),
        ("regression", 1, torch.arange(N), False),
        ("regression", 2, torch.linspace(-1, 1, 2 * N).view(N, 2), True),
        ("multi_label_classification", 4, torch.arange(4.0 * N).view(N, 4) % 3 % 2, True),
        ("multi_label_classification", 4, torch.arange(4.0 * N).view(N, 4) % 3 % 2, False),
        ("single_label_classification", 4, torch.arange(N) % 4, True),
        ("single_label_classification", 4, torch.arange(N) % 4, False),
    ],
)
@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: lora(model)])
def test_problem_types_of_sequence_classification(
    wrap: Callable[[nn.Module], nn.Module], problem: str, width: int, labels: Tensor, named: bool
) -> None:
    model = make(lambda: wrap(bert(num_labels=width, problem_type=problem if named else None)))
    batch = outputs(labels)
    expected = batch if problem != "regression" else {**batch, "labels": labels.float()}
    losses, rows = one_by_one(model, expected)
    torch.testing.assert_close(ExampleLoss(model)(batch).detach(), losses, rtol=1e-5, atol=1e-6)
    assert_rows(FunctionalGradients(model)(batch), rows)
    assert model.config.problem_type == (problem if named else None)  # type: ignore[union-attr]


def test_labels_that_do_not_fit_the_problem_type() -> None:
    model = make(lambda: bert(num_labels=4, problem_type="multi_label_classification"))
    with pytest.raises(ValueError, match=r"multi_label.* one shape \(n, K\).*labels \(\d,\).*pass"):
        FunctionalGradients(model)(outputs(torch.arange(N) % 4))
    model.config.problem_type = "single_label_classification"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"integer classes of shape \(n,\).*pass loss="):
        FunctionalGradients(model)(outputs(torch.rand(N, 4)))
    model.config.problem_type = "ranking"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="does not know problem_type='ranking'; pass loss="):
        FunctionalGradients(model)(outputs(torch.rand(N, 4)))


def test_an_image_classifier_needs_no_loss() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(image_size=8, patch_size=4, intermediate_size=24, num_labels=LABELS, **sizes)
    model = make(lambda: ViTForImageClassification(config))
    batch = {"pixel_values": torch.randn(N, 3, 8, 8), "labels": torch.arange(N) % LABELS}
    losses, rows = one_by_one(model, batch)
    torch.testing.assert_close(ExampleLoss(model)(batch).detach(), losses)
    assert_rows(FunctionalGradients(model)(batch), rows)


def test_a_decoder_that_does_not_shift_its_labels_is_refused() -> None:
    # Named like a causal language model, it leaves the shift to its caller.
    sizes = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2}
    config = BartConfig(
        vocab_size=VOCABULARY, decoder_ffn_dim=24, max_position_embeddings=16, **sizes
    )
    gradients = FunctionalGradients(make(lambda: BartForCausalLM(config)))
    with pytest.raises(ValueError, match=r"BartForCausalLM itself computes .*; pass loss="):
        gradients(causal(sentences()))


@pytest.mark.parametrize("token", [VOCABULARY, -7])
def test_token_label_out_of_range(token: int) -> None:
    batch = causal(sentences())
    batch["labels"][2, 1] = token
    with pytest.raises(ValueError, match=rf"label {token} \(position 1 in row 2 of the batch\)"):
        FunctionalGradients(make(llama))(batch)


def test_bfloat16_model_gives_float32_rows() -> None:
    model, batch = make(gpt2), causal(sentences())
    exact = FunctionalGradients(model)(batch)
    rows = FunctionalGradients(model.to(torch.bfloat16))(batch)
    assert rows.dtype == torch.float32
    assert nn.functional.cosine_similarity(rows, exact).min() > 0.98


def test_last_layer_of_language_models() -> None:
    model, batch = make(llama), causal(sentences())
    assert model.lm_head.weight is not model.get_input_embeddings().weight  # type: ignore
    expected = FunctionalGradients(model, params="lm_head.weight")(batch)
    assert_rows(LastLayerGradients(model)(batch), expected)
