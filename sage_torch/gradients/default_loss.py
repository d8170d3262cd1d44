"""The default loss of each example: the usual loss for its labels and logits."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sage_torch.gradients.batches as batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.exchange import exchanged, is_plain

__all__ = ["PASS_LOSS", "DefaultLoss"]

PASS_LOSS = (
    "pass loss=, a callable loss(model, batch) that returns one loss per example, shape (n,)"
)

# The label of an ignored token, in torch and in the collators of Hugging Face.
_IGNORED = -100

# Kinds of Hugging Face models, by the ends of their class names; see `_said_by`.
_CLASSIFIERS = {f"For{what}Classification" for what in ("Sequence", "Image", "Video", "Audio")}
_GENERATORS = {None, "ForCausalLM", "ForConditionalGeneration"}
_TOKEN_MODELS = {*_GENERATORS, "ForMaskedLM", "ForTokenClassification"}


class DefaultLoss:
    """Losses of a batch `(inputs, targets)`, or of a mapping with `"labels"`, one per example.

    The model is called as `model(inputs)` or `model(**rest)` and returns logits, or an object
    with `.logits`. The shapes of the integer labels and of the logits decide:

    - (n,) and (n, C): the cross-entropy of the class.
    - (n, d1, ...) and (n, d1, ..., C) or (n, C, d1, ...): the mean cross-entropy over the tokens
      or positions of an example. Those with label -100 are ignored; if all are, the loss is 0.
      Classes are last in sequence models and second in `torch.nn.functional.cross_entropy`. If the
      shapes fit both (C is d1, as in logits (n, T, T)), the layout of earlier batches is used, and
      without earlier batches an error is raised.

    A Hugging Face model, with or without a `peft` wrapper, keeps its own rules, those of
    `output.loss` for a batch of one example. Classes are always last. Causal language models
    predict the next token, so that labels move by one. Encoder-decoder models receive their labels
    as decoder inputs. Models that classify sequences, images, audio or video follow
    `config.problem_type`: regression uses the mean squared error over the outputs of an example,
    multi-label classification the mean binary cross-entropy. The loss of token labels is compared
    with the model's own loss on the first batch.
    """

    def __init__(self) -> None:
        self._classes = 0  # C, as last seen
        self._classes_last: bool | None = None  # the layout, known once a batch has shown it
        self.is_compared = False  # by `compare`, or there is nothing to compare with

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the losses of a batch.

        Args:
            model: The model, unwrapped.
            batch: n examples, on the model's device.

        Returns:
            Tensor (n,) of a floating dtype. A label out of range gives NaN; see `wrong_label`.

        Raises:
            ValueError: Labels or logits are missing, or their shapes do not fit.
        """
        said = _said_by(model)
        targets = _targets(batch)
        if said is None or said.kind not in _CLASSIFIERS:
            _refuse_floating(targets, batch)
        args, inputs = _arguments(batch, said)
        logits = _logits(model(*args, **inputs))
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        problem = said.problem(targets, logits) if said is not None else None
        if problem is not None:
            return _of_outputs(problem, logits, targets)
        _refuse_floating(targets, batch)  # a classifier only now turns out to need classes
        if targets.ndim == 1:
            return self._of_classes(logits, targets)
        return self._of_tokens(logits, targets, said)

    def wrong_label(self, model: nn.Module, batch: Batch, row: int) -> str | None:
        """Return an error message that names the first label of an example out of range.

        Args:
            model: The model, unwrapped.
            batch: The batch of the last call, or the batch that it was a part of.
            row: Position of the example.

        Returns:
            The message, or None if all labels of the example are valid.
        """
        targets = _targets(batch)
        if not _is_integer(targets) or not self._classes:
            return None
        wrong = _out_of_range(targets, self._classes)[row]
        if not bool(wrong.any()):
            return None
        where, kind = f"row {row} of the batch", "target class"
        position = tuple(wrong.nonzero()[0].tolist())
        if position:
            where, kind = f"position {', '.join(map(str, position))} in {where}", "label"
        unless = " and is not -100, the label of what does not count" if position else ""
        return (
            f"{kind} {int(targets[row][position])} ({where}) is outside [0, {self._classes})"
            f"{unless}: the model returned {self._classes} logits per "
            f"{'label' if position else 'example'}; correct the targets or {PASS_LOSS}"
        )

    def compare(self, model: nn.Module, losses: Tensor, batch: Batch) -> None:
        """Once, compare the loss of one example with the loss that a Hugging Face model returns.

        Only the name of a model shows whether it moves its labels by one, and the name can mislead;
        some models add further terms to their loss.

        Args:
            model: The model, unwrapped and without hooks that an extra call would disturb.
            losses: Tensor (n,), finite.
            batch: The batch with these losses.

        Raises:
            ValueError: The two differ.

        Cost:
            One forward pass of one example, once per object, for token labels only.
        """
        said = _said_by(model)
        targets = _targets(batch)
        if self.is_compared or said is None or targets.ndim == 1:
            self.is_compared |= said is None
            return
        if said.kind in _CLASSIFIERS:  # their rule is certain, and their own call sets problem_type
            self.is_compared = True
            return
        counted = (targets.flatten(1) != _IGNORED).sum(1)
        row = int(counted.argmax())
        # With dropout, no two calls agree.
        if not counted[row] or any(getattr(m, "training", False) for m in model.modules()):
            return
        own = _own_loss(model, batches.take(batch, row, row + 1), said)
        self.is_compared = own is None
        if own is None:
            return
        ours, theirs = float(losses[row]), float(own)
        # In an untrained model a wrong rule changes the loss only a little; rounding does less.
        low = torch.is_autocast_enabled(own.device.type) or any(
            p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()
        )
        if abs(ours - theirs) > (2e-2 if low else 2e-4) * max(abs(ours), abs(theirs)):
            rule = "the next token" if said.labels_move() else "each labelled token"
            raise ValueError(
                f"the default loss (cross-entropy of {rule}) is {ours:.6g} for row {row} of the "
                f"batch, but {type(said.model).__name__} itself computes {theirs:.6g}; {PASS_LOSS}"
            )
        self.is_compared = True

    def _of_classes(self, logits: Tensor, targets: Tensor) -> Tensor:
        if logits.ndim != 2 or len(logits) != len(targets) or logits.shape[1] < 2:
            raise ValueError(_misfit("(n, C)", logits, targets))
        self._classes = logits.shape[1]
        # A class out of range becomes NaN, and `wrong_label` names it later: under vmap no value
        # can be tested, and on CUDA a failed assertion in cross_entropy would make the device
        # unusable for the rest of the process. As a class, -100 is out of range.
        wrong = (targets < 0) | (targets >= self._classes)
        losses = F.cross_entropy(logits, targets.masked_fill(wrong, 0), reduction="none")
        return losses.masked_fill(wrong, torch.nan)

    def _of_tokens(self, logits: Tensor, targets: Tensor, said: _Said | None) -> Tensor:
        last = self._classes_are_last(logits, targets, said)
        self._classes = logits.shape[-1 if last else 1]
        if said is not None and said.labels_move():
            targets = F.pad(targets[:, 1:], (0, 1), value=_IGNORED)
        wrong = _out_of_range(targets, self._classes)
        safe = targets.masked_fill(wrong, _IGNORED)
        if last:  # two-dimensional, because softmax over strided classes is slow
            flat = F.cross_entropy(logits.flatten(0, -2), safe.flatten(), reduction="none")
            losses = flat.view(safe.shape)
        else:
            losses = F.cross_entropy(logits, safe, reduction="none")
        losses = losses.masked_fill(wrong, torch.nan).flatten(1)
        return losses.sum(1) / (safe != _IGNORED).flatten(1).sum(1).clamp(min=1)

    def _classes_are_last(self, logits: Tensor, targets: Tensor, said: _Said | None) -> bool:
        n, *positions = targets.shape
        last = logits.shape[:-1] == targets.shape and logits.shape[-1] > 1
        if said is not None:
            if said.kind not in _TOKEN_MODELS:
                raise ValueError(
                    f"the default loss does not know what {type(said.model).__name__} makes of "
                    f"labels of shape {tuple(targets.shape)}; {PASS_LOSS}"
                )
            if not last:
                raise ValueError(_misfit("(n, T, C)", logits, targets))
            return True
        second = logits.ndim > 2 and logits.shape[1] > 1 and logits.shape[2:] == targets.shape[1:]
        second = second and len(logits) == n
        if not last and not second:
            shown = ", ".join(f"d{i + 1}" for i in range(len(positions)))
            raise ValueError(_misfit(f"(n, {shown}, C) or (n, C, {shown})", logits, targets))
        if last != second:
            self._classes_last = last
        elif self._classes_last is None:
            raise ValueError(
                f"logits of shape {tuple(logits.shape)} for labels of shape "
                f"{tuple(targets.shape)} do not tell whether their last or their second dimension "
                f"counts the classes; {PASS_LOSS}, for instance F.cross_entropy(logits.mT, labels, "
                'reduction="none").mean(1) where it is the last'
            )
        return bool(self._classes_last)


class _Said(NamedTuple):
    """The public attributes of a Hugging Face model that describe its loss."""

    model: Any
    kind: str | None  # its task, such as "ForCausalLM"; None if its class name does not show one
    config: Any

    def labels_move(self) -> bool:
        """Return whether the logits of a token predict the next token."""
        return self.kind in _GENERATORS and not self.config.is_encoder_decoder

    def problem(self, targets: Tensor, logits: Tensor) -> str | None:
        """Return "regression", "multi_label_classification", or None for classes."""
        if self.kind not in _CLASSIFIERS:
            return None
        problem = getattr(self.config, "problem_type", None)
        if problem is None and logits.shape[-1] == 1:
            return "regression"
        if problem is None and targets.is_floating_point():
            return "multi_label_classification"
        return None if problem == "single_label_classification" else problem


def _said_by(model: nn.Module) -> _Said | None:
    """Return the loss attributes of a Hugging Face model, None for other models.

    transformers itself chooses the loss by `loss_type`. If that is None, it uses the loss of a
    causal language model (GPT2LMHeadModel is one).
    """
    of_adapters = getattr(model, "get_base_model", None)  # peft's
    base: Any = of_adapters() if callable(of_adapters) else model
    config = getattr(base, "config", None)
    if getattr(config, "model_type", None) is None or not hasattr(config, "is_encoder_decoder"):
        return None
    return _Said(base, getattr(base, "loss_type", None), config)


def _arguments(batch: Batch, said: _Said | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the model: the whole batch without its labels."""
    args: tuple[Any, ...] = ()
    if isinstance(batch, Mapping):
        inputs = {key: value for key, value in batch.items() if key != "labels"}
    else:
        args, inputs = (batch[0],), {}
    targets = _targets(batch)
    if said is not None and said.config.is_encoder_decoder and said.kind in _GENERATORS:
        prepare = getattr(said.model, "prepare_decoder_input_ids_from_labels", None)
        given = {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys()
        if prepare is not None and targets.ndim > 1 and not given:
            inputs["decoder_input_ids"] = prepare(labels=targets)
    return args, inputs


def _own_loss(model: nn.Module, example: Batch, said: _Said) -> Tensor | None:
    args, inputs = _arguments(example, said)
    inputs["labels"] = _targets(example)
    buffers = {id(b): b.clone() for b in model.buffers() if is_plain(b)}
    eager = torch.compiler.set_stance("force_eager")
    try:
        with torch.no_grad(), eager, exchanged(model, buffers):
            loss = getattr(model(*args, **inputs), "loss", None)
    except TypeError:  # the model takes no labels
        return None
    known = isinstance(loss, Tensor) and loss.numel() == 1 and bool(torch.isfinite(loss))
    return loss if known else None


def _logits(output: object) -> Tensor:
    logits = getattr(output, "logits", output)
    if isinstance(logits, Tensor):
        return logits
    raise ValueError(
        "the default loss needs a model that returns logits of shape (n, C), or an object with "
        f".logits; got {type(output).__name__}; {PASS_LOSS}"
    )


def _of_outputs(problem: str, logits: Tensor, targets: Tensor) -> Tensor:
    """Return losses of logits (n, K) for targets of the same shape, or (n,) if K is 1."""
    if problem not in ("regression", "multi_label_classification"):
        raise ValueError(f"the default loss does not know problem_type={problem!r}; {PASS_LOSS}")
    if targets.ndim == 1 and logits.ndim == 2 and logits.shape[1] == 1:
        targets = targets[:, None]
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise ValueError(
            f"the default loss of {problem} needs labels and logits of one shape (n, K); got "
            f"logits {tuple(logits.shape)} for labels {tuple(targets.shape)}; {PASS_LOSS}"
        )
    of_one = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
    return of_one(logits, targets.to(logits.dtype), reduction="none").mean(1)


def _out_of_range(targets: Tensor, classes: int) -> Tensor:
    wrong = (targets < 0) | (targets >= classes)
    return wrong & (targets != _IGNORED) if targets.ndim > 1 else wrong


def _targets(batch: Batch) -> Tensor:
    """Return the labels of a batch, (n, ...), of any dtype."""
    found: object = None
    if isinstance(batch, Mapping):
        found = batch.get("labels")
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        found = getattr(batch, "labels", batch[1])
    if isinstance(found, Tensor) and found.ndim:
        # Integers are widened: a byte cannot hold -100.
        return found.long() if _is_integer(found) else found
    raise ValueError(_no_labels(batch))


def _refuse_floating(targets: Tensor, batch: Batch) -> None:
    if not _is_integer(targets):
        raise ValueError(_no_labels(batch))


def _is_integer(tensor: Tensor) -> bool:
    inexact = tensor.is_floating_point() or tensor.is_complex()
    return not inexact and tensor.dtype is not torch.bool


def _misfit(expected: str, logits: Tensor, targets: Tensor) -> str:
    return (
        f"the default loss (cross-entropy) needs logits of shape {expected}, C >= 2, for targets "
        f"of shape ({', '.join(['n', *map(str, targets.shape[1:])])}{',' * (targets.ndim == 1)}); "
        f"got logits {tuple(logits.shape)} for targets {tuple(targets.shape)}; {PASS_LOSS}"
    )


def _no_labels(batch: Batch) -> str:
    return (
        "the default loss (cross-entropy) needs a batch (inputs, targets) or a mapping with "
        '"labels", the targets integer classes of shape (n,), or integer labels of shape '
        f"(n, ...) for every token or position; got {shorten(_describe(batch), 150)}; {PASS_LOSS}"
    )


def _describe(batch: Batch) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)} and dtype {batch.dtype}"
    if isinstance(batch, Mapping):
        found = ", ".join(f"{key!r}: {_describe(value)}" for key, value in batch.items())
        return f"a mapping {{{found}}}"
    if isinstance(batch, (tuple, list)):
        found = ", ".join(map(_describe, batch))
        return f"a {type(batch).__name__} of {len(batch)} ({found})"
    return f"a {type(batch).__name__}"
