"""Without loss=, labels and logits say which loss is meant; where they do not, an error says so."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from microbatches import assert_rows
from torch import Tensor, nn

from sage_torch import SageError
from sage_torch.gradients import FunctionalGradients, LastLayerGradients
from sage_torch.gradients.default_loss import DefaultLoss
from sage_torch.gradients.loss import ExampleLoss

N, TOKENS, WORDS, FEATURES = 5, 7, 11, 6


class Tagger(nn.Module):
    """Token ids (n, T) in, logits (n, T, V) out."""

    def __init__(self, words: int = WORDS) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(WORDS, FEATURES), nn.Linear(FEATURES, words)

    def forward(self, input_ids: Tensor) -> Any:
        hidden = torch.tanh(self.embedding(input_ids))
        return self.head(hidden + hidden.mean(1, keepdim=True))


class LoopTagger(Tagger):
    """The same model for the loop: vmap refuses control flow that depends on data."""

    def forward(self, input_ids: Tensor) -> Any:
        logits = super().forward(input_ids)
        return logits if logits.sum() > 0 else logits * 1.0


def segmenter() -> nn.Module:
    """Images (n, 3, H, W) in, logits (n, 4, H, W) out."""
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 4, 1))


def tokens(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids and labels; example 1 has three labels, example 2 none."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(WORDS, (N, TOKENS), generator=generator)
    labels = torch.randint(WORDS, (N, TOKENS), generator=generator)
    labels[1, 3:] = -100
    labels[2] = -100
    return ids, labels


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (N, 6, 8), generator=generator)
    labels[0, :2] = -100
    return torch.randn(N, 3, 6, 8, generator=generator), labels


def one_by_one(model: nn.Module, batch: Any, classes_last: bool) -> tuple[Tensor, Tensor]:
    """Return losses and rows by one backward pass an example, over its labelled positions only."""
    losses, rows = [], []
    for i in range(len(batch[1])):
        logits = model(batch[0][i : i + 1])[0]
        logits = logits if classes_last else logits.movedim(0, -1)
        labelled = batch[1][i] != -100
        loss = logits.sum() * 0
        if labelled.any():
            loss = F.cross_entropy(logits[labelled].float(), batch[1][i][labelled].long())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        losses.append(loss.detach())
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(losses), torch.stack(rows)


def default_losses(model: nn.Module, batch: Any) -> Tensor:
    losses = ExampleLoss(model)(batch)
    assert losses.requires_grad
    return losses.detach()


def test_loss_of_a_sequence_is_the_mean_over_its_labelled_tokens() -> None:
    torch.manual_seed(0)
    model, batch = Tagger(), tokens()
    losses, rows = one_by_one(model, batch, classes_last=True)
    torch.testing.assert_close(default_losses(model, batch), losses)
    assert losses[2] == 0
    as_mapping = {"labels": batch[1], "input_ids": batch[0]}
    for kind in (batch, list(batch), as_mapping, UserDict(as_mapping)):
        assert_rows(FunctionalGradients(model)(kind), rows)
    assert_rows(FunctionalGradients(model, memory_budget=1)(batch), rows)


def test_loop_and_last_layer_take_token_labels_too() -> None:
    torch.manual_seed(0)
    model, batch = LoopTagger(), tokens()
    _, rows = one_by_one(model, batch, classes_last=True)
    with pytest.warns(UserWarning, match="vmap cannot differentiate"):
        assert_rows(FunctionalGradients(model)(batch), rows)
    head = rows[:, WORDS * FEATURES :]
    assert_rows(LastLayerGradients(model)(batch), head)


def test_loss_of_an_image_is_the_mean_over_its_labelled_positions() -> None:
    torch.manual_seed(0)
    model, batch = segmenter(), images()
    losses, rows = one_by_one(model, batch, classes_last=False)
    torch.testing.assert_close(default_losses(model, batch), losses)
    assert_rows(FunctionalGradients(model)(batch), rows)
    last = nn.Sequential(model, nn.Flatten(2), Transposed(), nn.Unflatten(1, (6, 8)))
    torch.testing.assert_close(default_losses(last, batch), losses)


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT


def test_the_shapes_tell_where_the_classes_are() -> None:
    torch.manual_seed(0)
    batch = tokens()
    expected, _ = one_by_one(Tagger(), batch, classes_last=True)
    torch.manual_seed(0)
    model = nn.Sequential(Tagger(), Transposed())  # (n, V, T), as cross_entropy wants it
    torch.testing.assert_close(default_losses(model, batch), expected)
    assert not torch.allclose(default_losses(model, tokens(1)), expected)


def test_square_logits_are_refused_unless_an_earlier_batch_showed_the_layout() -> None:
    model = nn.Sequential(Tagger(TOKENS), Transposed())
    ids, labels = tokens()
    square = (ids, labels.clamp(max=TOKENS - 1))
    gradients = FunctionalGradients(model)
    with pytest.raises(
        ValueError, match=r"\(5, 7, 7\).*last or their second.*pass loss=.*logits.mT"
    ):
        gradients(square)
    oblong = tuple(half[:, :5] for half in square)
    gradients(oblong)
    _, rows = one_by_one(model, square, classes_last=False)
    assert_rows(gradients(square), rows)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8])
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    model, batch = Tagger(), tokens()
    expected = default_losses(model, batch)
    assert torch.equal(default_losses(model, (batch[0], batch[1].to(dtype))), expected)


def test_bytes_are_no_ignored_labels() -> None:
    model, batch = segmenter(), (images()[0], images()[1].clamp(min=0).byte())
    batch[1][1, 2, 3] = 156  # -100 as a byte
    with pytest.raises(ValueError, match=r"label 156 \(position 2, 3 in row 1 of the batch\)"):
        FunctionalGradients(model)(batch)


def test_half_precision_logits_give_float32_losses() -> None:
    model, batch = Tagger().to(torch.bfloat16), tokens()
    losses, _ = one_by_one(model, batch, classes_last=True)
    assert default_losses(model, batch).dtype == torch.float32
    torch.testing.assert_close(default_losses(model, batch), losses.float())


@pytest.mark.parametrize("build", [Tagger, LoopTagger])
@pytest.mark.parametrize("computer", [FunctionalGradients, LastLayerGradients])
@pytest.mark.parametrize("label", [WORDS, -1, -101])
@pytest.mark.filterwarnings("ignore:vmap cannot")
def test_token_label_out_of_range(build: Any, computer: Any, label: int) -> None:
    ids, labels = tokens()
    labels[3, 4] = label
    message = (
        rf"label {label} \(position 4 in row 3 of the batch\) is outside \[0, 11\) and is not "
        "-100.*11 logits per label.*pass loss="
    )
    with pytest.raises(ValueError, match=message) as caught:
        computer(build())((ids, labels))
    assert caught.value.row == 3  # type: ignore[attr-defined]


def test_token_loss_that_is_not_finite_names_its_row() -> None:
    model, batch = Tagger(), (tokens()[0].clamp(max=9), tokens()[1])
    batch[0][4, 0] = 10
    with torch.no_grad():
        model.embedding.weight[10] = torch.nan
    with pytest.raises(SageError, match=r"finite loss, got nan \(row 4 of the batch\)"):
        FunctionalGradients(model)(batch)


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (Tagger(), (tokens()[0], tokens()[1][:, 1:]), r"\(n, d1, C\) or \(n, C, d1\), C >= 2"),
        (Tagger(1), tokens(), r"C >= 2, for targets of shape \(n, 7\); got logits \(5, 7, 1\)"),
        (Tagger(), (tokens()[0], tokens()[1][:, 0]), r"shape \(n, C\), C >= 2, .*of shape \(n,\)"),
        (Tagger(), (tokens()[0], tokens()[1] * 1.0), "integer classes"),
        (Tagger(), (tokens()[0], tokens()[1] > 0), "integer classes"),
        (nn.Linear(3, 4), (torch.randn(5, 3), torch.ones(5, 1).long()), r"of shape \(n, 1\)"),
    ],
)
def test_labels_that_do_not_fit(model: nn.Module, batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"the default loss.*{message}.*pass loss="):
        ExampleLoss(model)(batch)


@dataclass
class Pairs:
    left: Tensor
    right: Tensor
    same: Tensor
    names: tuple[str, ...] = ()


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 4)

    def forward(self, left: Tensor, right: Tensor) -> Any:
        return (self.layer(left) * self.layer(right)).sum(1)


def of_pairs(model: nn.Module, batch: Any) -> Tensor:
    logits = model(batch.left, batch.right)
    return F.binary_cross_entropy_with_logits(logits, batch.same, reduction="none")


def of_tree(model: nn.Module, batch: Any) -> Tensor:
    (left, deeper), same = batch
    logits = model(left, deeper["right"][0])
    return F.binary_cross_entropy_with_logits(logits, same, reduction="none")


def test_a_loss_of_ones_own_sees_the_batch_in_its_own_container() -> None:
    torch.manual_seed(0)
    model = Siamese()
    left, right, same = torch.randn(N, FEATURES), torch.randn(N, FEATURES), torch.rand(N).round()
    rows = []
    for i in range(N):
        one = Pairs(left[i : i + 1], right[i : i + 1], same[i : i + 1])
        gradients = torch.autograd.grad(of_pairs(model, one).sum(), list(model.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    as_dataclass = Pairs(left, right, same, ("a",) * N)
    assert_rows(FunctionalGradients(model, of_pairs)(as_dataclass), torch.stack(rows))
    nested = ((left, {"right": [right]}), same)
    assert_rows(FunctionalGradients(model, of_tree)(nested), torch.stack(rows))


def multi_label(model: nn.Module, batch: Any) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(model(batch[0]), batch[1], reduction="none")
    return losses.mean(1)


def regression(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1], reduction="none").mean(1)


def of_sequences(model: nn.Module, batch: Any) -> Tensor:
    losses = F.cross_entropy(model(batch[0]).mT, batch[1], reduction="none")
    return losses.sum(1) / (batch[1] != -100).sum(1).clamp(min=1)


@pytest.mark.parametrize("loss", [multi_label, regression])
def test_losses_of_several_outputs(loss: Callable[[nn.Module, Any], Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 3))
    batch = (torch.randn(N, FEATURES), torch.rand(N, 3).round())
    rows = []
    for i in range(N):
        one = (batch[0][i : i + 1], batch[1][i : i + 1])
        gradients = torch.autograd.grad(loss(model, one).sum(), list(model.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    assert_rows(FunctionalGradients(model, loss)(batch), torch.stack(rows))
    assert_rows(LastLayerGradients(model, loss)(batch), torch.stack(rows)[:, -18:])


def test_sequence_loss_of_ones_own_equals_the_default() -> None:
    torch.manual_seed(0)
    model, batch = Tagger(), tokens()
    expected = FunctionalGradients(model)(batch)
    assert_rows(FunctionalGradients(model, of_sequences)(batch), expected)


# Hugging Face's conventions, shown by models of its form; the real ones are in end_to_end.


class Sayer(nn.Module):
    """A model with the public attributes of a Hugging Face model, and a loss of its own."""

    def __init__(self, loss_type: str | None, own: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.own, self.loss_type, self.calls = Tagger(), own, loss_type, 0
        self.config = SimpleNamespace(model_type="sayer", is_encoder_decoder=False)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.body(input_ids)
        loss = None
        if labels is not None:
            self.calls += 1
            loss = self.own(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


def aligned(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def moved(logits: Tensor, labels: Tensor) -> Tensor:
    return aligned(logits[:, :-1], labels[:, 1:])


def as_mapping() -> dict[str, Tensor]:
    ids, labels = tokens()
    return {"input_ids": ids, "labels": labels}


sayers = pytest.mark.parametrize(
    ("loss_type", "own"),
    [
        (None, moved),
        ("ForCausalLM", moved),
        ("ForConditionalGeneration", moved),
        ("ForMaskedLM", aligned),
        ("ForTokenClassification", aligned),
    ],
)


@sayers
def test_what_a_model_says_of_its_loss_is_done_and_verified_once(
    loss_type: str | None, own: Callable[[Tensor, Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    model, batch = Sayer(loss_type, own).eval(), as_mapping()
    gradients = FunctionalGradients(model)
    for _ in range(2):
        rows = gradients(batch)
    assert model.calls == 1
    for i in (0, 1, 3):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        losses = torch.autograd.grad(model(**one).loss, list(model.parameters()))
        assert_rows(rows[i : i + 1], torch.cat([part.flatten() for part in losses])[None])
    assert not rows[2].any()


@sayers
def test_a_model_that_does_not_do_what_it_says_is_refused(
    loss_type: str | None, own: Callable[[Tensor, Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    other = aligned if own is moved else moved
    gradients = FunctionalGradients(Sayer(loss_type, other).eval())
    rule = "the next token" if own is moved else "each labelled token"
    message = rf"cross-entropy of {rule}\) is .* for row 0 .*Sayer itself computes .*pass loss="
    for _ in range(2):  # a second try does not pass either
        with pytest.raises(ValueError, match=message):
            gradients(as_mapping())


def test_a_model_that_takes_no_labels_or_is_in_training_is_not_compared() -> None:
    model = Sayer("ForCausalLM", aligned)
    FunctionalGradients(model.train())(as_mapping())
    assert model.calls == 0

    class Plain(Sayer):
        def forward(self, input_ids: Tensor) -> Any:  # type: ignore[override]
            return SimpleNamespace(logits=self.body(input_ids))

    FunctionalGradients(Plain("ForCausalLM", aligned).eval())(as_mapping())


def test_a_batch_without_any_label_leaves_the_comparison_to_the_next() -> None:
    model, batch = Sayer("ForMaskedLM", aligned).eval(), as_mapping()
    gradients = FunctionalGradients(model).unchecked()
    assert not gradients({**batch, "labels": torch.full_like(batch["labels"], -100)}).any()
    assert model.calls == 0
    gradients(batch)
    assert model.calls == 1


def test_a_kind_of_model_that_is_not_known_is_refused() -> None:
    model = Sayer("ForSemanticSegmentation", aligned)
    with pytest.raises(ValueError, match=r"does not know what Sayer makes of labels.*pass loss="):
        FunctionalGradients(model)(as_mapping())


def test_labels_of_the_last_step_move_along_in_a_moved_loss() -> None:
    # The label of the first token is nobody's next token: it never counts.
    model, batch = Sayer(None, moved), as_mapping()
    before = DefaultLoss()(model, batch)
    batch["labels"][0, 0] = 3 - batch["labels"][0, 0].clamp(max=2)
    assert torch.equal(DefaultLoss()(model, batch), before)
