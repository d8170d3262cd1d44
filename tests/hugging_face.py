"""Hugging Face models built from small configurations, with collators and sentences for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "the", "cat", "dog", "bird", "sat", "flew", "ran", "on", "over", "mat", "tree"]
VOCABULARY = len(SPECIAL) + len(WORDS)
LABELS = 3
N = 6


def _tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, "[UNK]"))
    inner.pre_tokenizer = Whitespace()
    names = ["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"]
    special = dict(zip(names, SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="right", **special)


TOKENIZER = _tokenizer()


def sentences(count: int = N) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(count)]


BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
GPT = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}


def bert(**options: Any) -> nn.Module:
    return BertForSequenceClassification(BertConfig(**{**BERT, "num_labels": LABELS, **options}))


def distilbert() -> nn.Module:
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=VOCABULARY, num_labels=LABELS, **sizes)
    )


def gpt2_classifier() -> nn.Module:
    return GPT2ForSequenceClassification(GPT2Config(**GPT, num_labels=LABELS, pad_token_id=0))


def masked() -> nn.Module:
    return BertForMaskedLM(BertConfig(**BERT))


def tagger() -> nn.Module:
    return BertForTokenClassification(BertConfig(**BERT, num_labels=LABELS))


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(**GPT))


def llama() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads))


def t5() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(
        # Smooth: a ReLU near 0 falls otherwise in a batch of another size, and the gradient jumps.
        T5Config(
            vocab_size=VOCABULARY,
            decoder_start_token_id=0,
            feed_forward_proj="gated-gelu",
            **sizes,
        )
    )


def lora(model: nn.Module, **options: Any) -> nn.Module:
    """Adapters whose second halves are not zero, as after the first steps of training."""
    adapted = get_peft_model(model, LoraConfig(r=3, lora_dropout=0.1, **options))  # type: ignore
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapted


def lora_classifier() -> nn.Module:
    return lora(bert(), task_type="SEQ_CLS", target_modules=["query", "value"])


def lora_gpt2() -> nn.Module:
    return lora(gpt2(), task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)


def lora_llama() -> nn.Module:
    return lora(llama(), target_modules=["q_proj", "v_proj", "down_proj"])


Collate = Callable[[list[str]], Any]


def with_padding(texts: list[str]) -> Any:
    items = [{**TOKENIZER(text), "label": i % LABELS} for i, text in enumerate(texts)]
    return DataCollatorWithPadding(TOKENIZER)(items)


def causal(texts: list[str], tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> Any:
    items = [tokenizer(text) for text in texts]
    return DataCollatorForLanguageModeling(tokenizer, mlm=False)(items)


def mlm(texts: list[str]) -> Any:
    collator = DataCollatorForLanguageModeling(TOKENIZER, mlm_probability=0.6, seed=0)
    return collator([TOKENIZER(text) for text in texts])


def tags(texts: list[str]) -> Any:
    items = [dict(TOKENIZER(text)) for text in texts]
    for item in items:
        item["labels"] = [token % LABELS for token in item["input_ids"]]
        item["labels"][0] = -100
    return DataCollatorForTokenClassification(TOKENIZER)(items)


def translation(texts: list[str]) -> Any:
    backwards = [" ".join(text.split()[::-1]) for text in texts]
    pairs = zip(texts, backwards, strict=True)
    items = [{**TOKENIZER(a), "labels": TOKENIZER(b)["input_ids"]} for a, b in pairs]
    return DataCollatorForSeq2Seq(TOKENIZER)(items)


MODELS: list[tuple[str, Callable[[], nn.Module], Collate]] = [
    ("bert", bert, with_padding),
    ("distilbert", distilbert, with_padding),
    ("gpt2 classifier", gpt2_classifier, with_padding),
    ("masked", masked, mlm),
    ("tagger", tagger, tags),
    ("gpt2", gpt2, causal),
    ("llama", llama, causal),
    ("t5", t5, translation),
    ("lora bert", lora_classifier, with_padding),
    ("lora gpt2", lora_gpt2, causal),
    ("lora llama", lora_llama, causal),
]
models = pytest.mark.parametrize(
    ("build", "collate"), [row[1:] for row in MODELS], ids=[row[0] for row in MODELS]
)


def make(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():  # initial values are so small that all logits are alike
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return model
