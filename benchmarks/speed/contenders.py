"""The ways to per-example gradients that benchmarks/speed/gradients.py compares, and plain passes.

Each makes, from a case and its model in evaluation mode, a function of a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.quality.models import Batch, Case
from sage_torch import gradients

Run = Callable[[Batch], object]
Maker = Callable[[Case, nn.Module], Run]


def forward(case: Case, model: nn.Module) -> Run:
    """Make the model's plain forward pass, nothing recorded."""

    def run(batch: Batch) -> object:
        with torch.no_grad():
            return model(batch[0])

    return run


def forward_backward(case: Case, model: nn.Module) -> Run:
    """Make the passes of a training step: forward, mean loss, backward into `.grad`."""

    def run(batch: Batch) -> object:
        model.zero_grad(set_to_none=True)
        return case.loss(model, batch).mean().backward()

    return run


def last_layer(case: Case, model: nn.Module) -> Run:
    """Make ours for the classifier alone."""
    return gradients.LastLayerGradients(model, case.loss)


def projected(case: Case, model: nn.Module) -> Run:
    """Make ours for the whole network, at its default width."""
    return gradients.ProjectedGradients(model, loss=case.loss)


def projected_to(width: int) -> Maker:
    """Return the maker of ours at another width."""
    return lambda case, model: gradients.ProjectedGradients(model, width, loss=case.loss)


def functional(case: Case, model: nn.Module) -> Run:
    """Make ours for the whole network, exact: rows (n, D)."""
    return gradients.FunctionalGradients(model, case.loss)


def vmap_grad(case: Case, model: nn.Module) -> Run:
    """Make what torch's tutorial does, all examples at once: a tensor (n, ...) a parameter."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = {name: value.detach() for name, value in model.named_buffers()}

    def loss(parameters: dict[str, Tensor], example: Tensor, target: Tensor) -> Tensor:
        outputs = functional_call(model, (parameters, buffers), (example[None],))
        return case.criterion(outputs, target[None]).squeeze(0)

    of_batch = vmap(grad(loss), in_dims=(None, 0, 0))
    return lambda batch: of_batch(parameters, *batch)


def opacus(case: Case, model: nn.Module) -> Run:
    """Make opacus' hooks: a tensor (n, ...) a parameter in `.grad_sample`.

    It records nothing in evaluation mode, so the model is in training mode, which is the same
    function without batch norm and dropout (it refuses batch norm). It takes the first dimension
    of an embedding's input for examples, so positions are repeated for each of them.
    """
    from opacus import GradSampleModule

    wrapped = GradSampleModule(model.train(), loss_reduction="mean")

    def run(batch: Batch) -> object:
        def repeated(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            return (args[0].expand(len(batch[0]), -1),) if args[0].ndim == 1 else args

        embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        handles = [module.register_forward_pre_hook(repeated) for module in embeddings]
        wrapped.zero_grad(set_to_none=True)  # and every grad_sample
        case.loss(wrapped, batch).mean().backward()
        for handle in handles:
            handle.remove()
        return {name: parameter.grad_sample for name, parameter in model.named_parameters()}

    return run


def single_backward(case: Case, model: nn.Module) -> Run:
    """Make one forward and backward pass an example, batches of one: rows (n, D)."""
    parameters = list(model.parameters())
    dim = sum(parameter.numel() for parameter in parameters)

    def run(batch: Batch) -> object:
        rows = torch.empty(len(batch[0]), dim, device=batch[0].device)
        for row, *example in zip(rows, *batch, strict=True):
            loss = case.loss(model, (example[0][None], example[1][None])).squeeze(0)
            found = torch.autograd.grad(loss, parameters)
            torch.cat([gradient.flatten() for gradient in found], out=row)
        return rows

    return run


CONTENDERS: dict[str, Maker] = {
    "forward": forward,
    "forward + backward": forward_backward,
    "last layer": last_layer,
    "projected": projected,
    "functional": functional,
    "vmap(grad)": vmap_grad,
    "opacus": opacus,
    "single backward": single_backward,
}
AT_WIDTH = "projected, width "
CHEAP = ("forward", "forward + backward", "last layer", "projected")


def maker(name: str) -> Maker:
    """Return what makes a contender: one of `CONTENDERS`, or "projected, width 32"."""
    if name.startswith(AT_WIDTH):
        return projected_to(int(name.removeprefix(AT_WIDTH)))
    return CONTENDERS[name]


def examples_of(case: Case, name: str) -> int:
    """Return how many examples a contender is given at once: `few` if it holds n D numbers."""
    return case.examples if name in CHEAP or name.startswith(AT_WIDTH) else case.few
