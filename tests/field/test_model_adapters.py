"""Few trained parameters in a model that vmap refuses do not cost one backward pass an example."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from microbatches import assert_rows
from model_state import CLASSES, N, vectors
from torch import Tensor, nn

from sage_torch import select_subset
from sage_torch.gradients import FunctionalGradients, choose_gradients


class Branching(nn.Module):
    """Looks at its values, as the attention masks of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return x if bool((x == x).all()) else 2 * x


class Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(6, 64).requires_grad_(False)
        self.look = Branching()
        self.down, self.up = nn.Linear(64, 2, bias=False), nn.Linear(2, 64, bias=False)
        self.head = nn.Linear(64, CLASSES).requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        x = self.look(self.base(x))
        return self.head(torch.tanh(x + self.up(self.down(x))))


def adapted() -> Adapted:
    torch.manual_seed(0)
    return Adapted()


def test_auto_tries_projected_gradients_before_the_loop() -> None:
    model, batch = adapted(), vectors().tensors
    gradients = choose_gradients(model)
    assert "vmap" in gradients.describe()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = gradients(batch)
    assert gradients.dim == rows.shape[1] == 256
    with pytest.warns(UserWarning, match="vmap cannot differentiate"):
        exact = FunctionalGradients(model)(batch)
    assert_rows(rows, exact)
    assert gradients.describe().startswith("projected")
    assert list(gradients.handling) == ["down.weight", "up.weight"]  # type: ignore[attr-defined]
    model.look.calls.clear()
    assert_rows(gradients(batch), exact)
    assert model.look.calls == [N]


def test_what_has_no_rule_goes_to_the_loop() -> None:
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.look, self.gru = Branching(), nn.GRU(3, 4, batch_first=True)
            self.head = nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.gru(self.look(x).view(len(x), 2, 3))[0][:, -1])

    model, batch = Recurrent(), vectors().tensors
    gradients = choose_gradients(model)
    with pytest.warns(UserWarning, match="one backward pass per example"):
        rows = gradients(batch)
    with pytest.warns(UserWarning, match="vmap"):
        assert_rows(rows, FunctionalGradients(model)(batch))
    assert "one backward pass per example" in gradients.describe()


def test_a_selection_by_auto_is_that_of_functional() -> None:
    data = vectors()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = [
            select_subset(adapted(), data, 0.5, gradients=kind, trim="negative", progress=False)
            for kind in ("auto", "functional")
        ]
    assert kept[0].indices.tolist() == kept[1].indices.tolist()
    assert kept[0].settings["dim"] == kept[1].settings["dim"]


def test_lora_in_a_language_model() -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    model = peft.get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    tokens = torch.randint(20, (N, 9))
    mask = torch.ones_like(tokens)
    mask[::2, 6:] = 0
    batch = {"input_ids": tokens, "attention_mask": mask, "labels": tokens.where(mask > 0, -100)}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 256
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gradients = choose_gradients(model.eval())
        rows = gradients(batch)
        assert_rows(rows, FunctionalGradients(model)(batch), 1e-4)
    assert "one backward pass" not in gradients.describe()
    expected = []
    for i in range(N):
        model.zero_grad()
        logits = model(input_ids=tokens[i : i + 1], attention_mask=mask[i : i + 1]).logits
        labels = batch["labels"][i, 1:]
        F.cross_entropy(logits[0, :-1], labels).backward()
        parts = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        expected.append(torch.cat(parts))
    assert_rows(rows, torch.stack(expected), 1e-4)


class Int8(Tensor):
    """A quantised weight without memory of its own, as those of torchao are."""

    values: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls: type[Int8], values: Tensor, scale: Tensor) -> Int8:
        made: Int8 = Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32)
        made.values, made.scale = values, scale
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            x, weight, bias = args
            return F.linear(x, weight.values.float() * weight.scale, bias)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values, args[0].scale)
        raise NotImplementedError(f"{func} of a quantised weight")


@pytest.mark.parametrize("kind", ["functional", "projected", "last_layer"])
def test_a_frozen_weight_without_memory_of_its_own(kind: Any) -> None:
    model = adapted()
    whole = model.base.weight.detach()
    scale = whole.abs().amax(1, keepdim=True) / 127
    quantised = Int8((whole / scale).round().to(torch.int8), scale)
    model.base.weight = nn.Parameter(quantised, requires_grad=False)
    if kind == "last_layer":
        model.head.requires_grad_()
    inputs = vectors().tensors[0]
    before = model(inputs).detach()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="vmap cannot differentiate")
        found = select_subset(model, vectors(), 0.25, gradients=kind, progress=False)
    assert len(found.indices) == N // 4
    assert isinstance(model.base.weight, Int8)
    assert torch.equal(model(inputs), before)
