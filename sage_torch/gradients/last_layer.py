"""Per-example gradients of the classifier in closed form, without a backward pass."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

import sage_torch.gradients.batches as batches
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.exchange import exchanged
from sage_torch.gradients.interaction import FirstBatch
from sage_torch.gradients.loss import (
    ExampleLoss,
    LossFunction,
    check_recorded,
    differentiable,
    ordinary,
    unwrap,
)

__all__ = ["LastLayerGradients"]


class LastLayerGradients:
    """Per-example gradients of the classifier, `g_i = delta_i ⊗ [h_i, 1]`, in closed form.

    h (n, H) is the input of the classifier, delta (n, C) the gradient of the losses with respect to
    its output, the logits. Columns are its weight flattened row by row, then its bias, as in
    `FunctionalGradients(model, params=["<layer>.weight", "<layer>.bias"])`. Dimensions between n
    and H (tokens, positions) are summed over. If other layers share the weight, only its use in
    this layer counts. The caller sets the mode of the model: use eval mode, as in the selection
    passes. Parameters and buffers stay unchanged.

    Args:
        model: The model; DataParallel, DistributedDataParallel and torch.compile are unwrapped.
        loss: `loss(model, batch) -> (n,)`, one loss per example; None for that of `ExampleLoss`.
        layer: The classifier, an `nn.Linear` of the model or its name. None: the classifier is
            found on the first batch by following the data, in any order of registration. It is the
            Linear layer whose output is the model's output. Otherwise it is the only Linear layer
            after which the loss depends on no other parameter.

    Raises:
        TypeError: `layer` is not an `nn.Linear`.
        ValueError: `layer` is not in the model, or the model has no Linear layer.

    Cost:
        One forward pass, and C (H + 1) multiplications per example and token; one wait for the
        device per batch. The rows take 4 n D bytes.

    Example:
        >>> import torch
        >>> from sage_torch.gradients import LastLayerGradients
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> gradients = LastLayerGradients(model)
        >>> gradients((torch.randn(16, 4), torch.randint(3, (16,)))).shape
        torch.Size([16, 27])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction | None = None,
        layer: nn.Linear | str | None = None,
    ) -> None:
        self._losses = ExampleLoss(model, loss)
        self._first = FirstBatch(self._losses)
        linears = _linear_layers(self._losses.model)
        if layer is None and not linears:
            raise ValueError(
                f"{type(self._losses.model).__name__} has no nn.Linear layer, so its last layer "
                'has no closed form; use gradients="functional" or FunctionalGradients(params=...)'
            )
        self._name = None if layer is None else _name_of(self._losses.model, layer)
        # With one Linear layer D is known at once; the first batch confirms that it is the
        # classifier.
        self._expected = next(iter(linears)) if len(linears) == 1 else None

    @property
    def dim(self) -> int:
        """Number of columns D = C (H + 1), or C H without bias.

        Raises:
            RuntimeError: The classifier has not been found yet.
        """
        name = self._known_name()
        if name is None:
            raise RuntimeError(
                "dim is unknown before the first call, which finds the classifier; call the "
                "computer on one batch first, or pass layer="
            )
        return sum(p.numel() for p in _own_parameters(self._layer(name)))

    def describe(self) -> str:
        """Return one line that describes the computation.

        Returns:
            For example "last layer: closed form over fc (512 -> 10), D = 5,130".
        """
        name = self._known_name()
        if name is None:
            return "last layer: closed form, the classifier is found on the first batch"
        layer = self._layer(name)
        size = f"{layer.in_features} -> {layer.out_features}"
        return f"last layer: closed form over {_shown(name)} ({size}), D = {self.dim:,}"

    @property
    def handling(self) -> dict[str, str]:
        """How each chosen parameter is handled: those of the classifier exactly."""
        name = self._known_name()
        own = set() if name is None else {id(p) for p in _own_parameters(self._layer(name))}
        parameters = self._losses.model.named_parameters()
        return {name: "last layer: exact" for name, p in parameters if id(p) in own}

    def __call__(self, batch: Batch) -> Tensor:
        """Return the gradients of a batch.

        Args:
            batch: n examples, on the model's device.

        Returns:
            Tensor (n, D) float32 on the model's device, detached, for a model of any dtype.

        Raises:
            ValueError: No classifier was found, it was not called exactly once, its input is not
                (n, ..., H), examples of the first batch interact, or as `ExampleLoss`.
            SageError: A loss is not finite; `row` is its position in the batch.
        """
        delta, inputs, has_bias = self._factors(batch)
        return outer_products(delta, inputs, bias=has_bias)

    def factors(self, batch: Batch) -> tuple[Tensor, Tensor, bool] | Tensor:
        """Return the two factors of the gradients, for a sketch that does not need the products.

        Args:
            batch: n examples, on the model's device.

        Returns:
            delta (n, C), h (n, H), both float32, and whether there is a bias: the arguments of
            `FrequentDirections.update_outer`. If examples have several positions, the gradients
            themselves, which are sums of products.

        Raises:
            ValueError, SageError: As `__call__`.
        """
        delta, inputs, has_bias = self._factors(batch)
        if inputs.ndim > 2:
            return outer_products(delta, inputs, bias=has_bias)
        return delta.float(), inputs.float(), has_bias

    def find(self, batch: Batch) -> str:
        """Check the first batch, find the classifier on it, and return its name.

        Afterwards `dim` is known.

        Raises:
            ValueError: No classifier was found, or examples interact.
        """
        self._first.check(batch)
        if self._name is None:
            with differentiable():
                example = ordinary(batches.take(batch, 0, 1))
                self._name = _find_classifier(self._losses, example)
        return self._name

    def _factors(self, batch: Batch) -> tuple[Tensor, Tensor, bool]:
        n = batches.length(batch)
        name = self.find(batch)
        with differentiable():
            batch = ordinary(batch)
            inputs, logits, losses = self._forward(name, batch)
            self._losses.check(losses, batch)
            (delta,) = torch.autograd.grad(losses.sum(), logits, allow_unused=True)
        where = f"the classifier {_shown(name)}"
        if delta is None:
            raise ValueError(f"the loss does not depend on {where}; pass another layer with layer=")
        if len(inputs) != n or inputs.ndim < 2:
            raise ValueError(
                f"expected {where} to receive inputs of shape (n, ..., H) with n = {n}, got "
                f"{tuple(inputs.shape)}; use FunctionalGradients(params=...) for this layer"
            )
        self._first.refuse_zeros(delta)
        return delta.detach(), inputs, self._layer(name).bias is not None

    def _known_name(self) -> str | None:
        return self._expected if self._name is None else self._name

    def _layer(self, name: str) -> nn.Linear:
        return _linear_layers(self._losses.model)[name]

    def _forward(self, name: str, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the input of the classifier, its output as a leaf, and the losses."""
        calls: list[tuple[Tensor, Tensor]] = []

        def cut(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor:
            inputs = args[0] if args else kwargs["input"]
            # Copies, because the model may later write to its input and output in place.
            calls.append((inputs.detach().clone(), output.detach().requires_grad_()))
            return calls[-1][1].clone()

        handle = self._layer(name).register_forward_hook(cut, prepend=True, with_kwargs=True)
        try:
            # All parameters are detached, so that nothing before the cut is recorded.
            with (
                self._losses.exchangeable() as parameters,
                exchanged(self._losses, {**parameters, **self._losses.copied_buffers()}),
            ):
                losses = self._losses(batch)
        finally:
            handle.remove()
        if len(calls) != 1:
            raise ValueError(
                f"expected the classifier {_shown(name)} to be called once in a forward pass, it "
                f"was called {len(calls)} times; pass another layer with layer=, or use "
                "FunctionalGradients(params=...) for this layer"
            )
        return *calls[0], check_recorded(losses)


def _find_classifier(losses: ExampleLoss, example: Batch) -> str:
    """Return the name of the last Linear layer of the network, found by following one example.

    The output of every Linear layer is replaced by a leaf, so that the loss depends only on the
    last of them. All parameters are leaves too, and show what is learned after or beside these.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []
    outputs: list[Tensor] = []

    def cut_at(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def cut(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            leaf = output.detach().requires_grad_()
            calls.append((name, leaf, leaf.clone()))
            return calls[-1][2]

        return cut

    def keep_output(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        # Hugging Face models return mappings; other output classes may only have .logits.
        logits = getattr(output, "logits", None)
        outputs.extend(batches.tensor_leaves(output if logits is None else logits))

    layers = _linear_layers(losses.model)
    handles = [
        layer.register_forward_hook(cut_at(name), prepend=True) for name, layer in layers.items()
    ]
    handles.append(losses.model.register_forward_hook(keep_output))
    try:
        with losses.exchangeable() as parameters:
            learned = {
                name: parameters[id(p)].requires_grad_()
                for name, p in losses.named_parameters()
                if p.requires_grad
            }
            with exchanged(losses, {**parameters, **losses.copied_buffers()}):
                value = losses(example)
    finally:
        for handle in handles:
            handle.remove()
    check_recorded(value)
    leaves = [leaf for _, leaf, _ in calls]
    found = torch.autograd.grad(value.sum(), [*leaves, *learned.values()], allow_unused=True)
    reaching = [call for call, gradient in zip(calls, found, strict=False) if gradient is not None]
    memory = {output.untyped_storage().data_ptr() for output in outputs}
    ending = {name for name, _, flow in reaching if flow.untyped_storage().data_ptr() in memory}
    if len(ending) == 1:
        return ending.pop()
    beside = [n for n, g in zip(learned, found[len(calls) :], strict=True) if g is not None]
    last = {name for name, _, _ in reaching}
    if not ending and len(last) == 1 and not beside:
        return last.pop()
    raise ValueError(_why_none(sorted(ending or last), beside, layers))


def _why_none(last: list[str], beside: list[str], layers: dict[str, nn.Linear]) -> str:
    if len(last) > 1:
        reason = f"several Linear layers end in the loss: {', '.join(map(_shown, last))}"
    elif beside:
        names = ", ".join(name.removeprefix("model.") for name in beside[:3])
        reason = f"the loss also depends directly on other parameters, such as {names}"
    else:
        reason = "no Linear layer's output reaches the loss"
    known = shorten(", ".join(map(_shown, layers)), 150)
    return (
        f"cannot tell which layer is the classifier: {reason}; pass layer=, one of the Linear "
        f'layers ({known}), or use gradients="functional"'
    )


def outer_products(delta: Tensor, inputs: Tensor, *, bias: bool) -> Tensor:
    """Return the gradients (n, D) of a linear layer: its weight's, row by row, then its bias's.

    Args:
        delta: (n, C) or (n, ..., C), gradients of the losses with respect to its outputs.
        inputs: (n, H) or (n, ..., H).
        bias: Whether it has a bias.
    """
    delta = delta.detach().flatten(1, -2) if delta.ndim > 2 else delta.detach()[:, None]
    inputs = inputs.flatten(1, -2) if inputs.ndim > 2 else inputs[:, None]
    delta, inputs = delta.float(), inputs.float()
    (n, _, classes), width = delta.shape, inputs.shape[2]
    rows = delta.new_empty((n, classes * (width + bias)))
    weight = rows[:, : classes * width].view(n, classes, width)
    torch.bmm(delta.mT, inputs, out=weight)  # (n, C, T) @ (n, T, H) -> (n, C, H)
    if bias:
        rows[:, classes * width :] = delta.sum(1)
    return rows


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def _own_parameters(layer: nn.Linear) -> list[Tensor]:
    return [layer.weight] if layer.bias is None else [layer.weight, layer.bias]


def _name_of(model: nn.Module, layer: nn.Module | str) -> str:
    modules = dict(model.named_modules())
    known = shorten(", ".join(map(_shown, _linear_layers(model))), 300)
    if isinstance(layer, str):
        found = layer if layer in modules else None
    else:
        inner = unwrap(layer)
        found = next((name for name, module in modules.items() if module is inner), None)
    if found is None:
        raise ValueError(f"layer {layer!r} is not in the model; its Linear layers are: {known}")
    if not isinstance(modules[found], nn.Linear):
        raise TypeError(
            f"expected layer to be an nn.Linear, got {type(modules[found]).__name__} for "
            f"{_shown(found)}; the Linear layers are: {known}"
        )
    return found


def _shown(name: str) -> str:
    return repr(name) if name else "the model itself"
