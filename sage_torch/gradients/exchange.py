"""Other tensors in the place of a model's own, for the length of one run.

`torch.func.functional_call` exchanges tensors by name. A parameter that is registered under two
names is then exchanged twice, and the second time it is the first replacement that is kept and put
back: the model ends with a dead tensor. Here tensors are exchanged by identity, wherever they are
registered, and the very same objects are put back.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from sage_torch.gradients.writes import writes_undone

__all__ = ["Exchangeable", "Replacements", "exchanged", "is_plain", "same_bits"]

# The method of Lightning Fabric's wrapper that adds a hook to its outputs.
_FABRIC_CHECK = "_register_backward_hook"
# Runs in which writes to frozen parameters are looked for: those of the first batch's check, and a
# few more.
_WATCHED_RUNS = 8
# New tensors by the `id` of the originals.
Replacements = Mapping[int, Tensor]


@contextmanager
def exchanged(module: nn.Module, replacements: Replacements) -> Iterator[None]:
    """Exchange parameters and buffers of a module and its children, and put them back on exit.

    A `DistributedDataParallel` or `DataParallel` inside is left out meanwhile: it would wait for
    gradients that never come. Fabric's check that training calls `fabric.backward` is off.

    Args:
        module: The module.
        replacements: New tensors by the `id` of the originals.

    Cost:
        One look at every entry of every module, once per module.
    """
    changed: list[tuple[MutableMapping[str, Any], dict[str, Any]]] = []
    recurrent: list[tuple[nn.RNNBase, list[Any], list[Any]]] = []
    of_fabric: list[dict[str, Any]] = []
    try:
        for part in list(module.modules()):
            registries: list[MutableMapping[str, Any]] = [part._parameters, part._buffers]
            for entries in registries:
                found = {
                    name: replacements[id(tensor)]
                    for name, tensor in entries.items()
                    if id(tensor) in replacements
                }
                if found:
                    changed.append((entries, dict(entries.items())))
                    for name, tensor in found.items():
                        entries[name] = tensor
            if isinstance(part, nn.RNNBase):  # a list of its parameters, which it makes anew
                recurrent.append((part, part._flat_weights, part._flat_weight_refs))
            if any(cls.__name__ == "_FabricModule" for cls in type(part).__mro__):
                of_fabric.append(vars(part))
                vars(part)[_FABRIC_CHECK] = _unchanged
            wrapped = {name: child for name, child in part._modules.items() if _is_wrapper(child)}
            if wrapped:
                changed.append((part._modules, dict(part._modules.items())))
                for name, child in wrapped.items():
                    part._modules[name] = child.module  # type: ignore[union-attr,assignment]
        yield
    finally:
        try:
            _put_back(changed, recurrent, of_fabric)
        except BaseException:  # Ctrl-C may strike in the middle
            _put_back(changed, recurrent, of_fabric)
            raise


class Exchangeable:
    """Makes detached parameters, and knows which of them a forward pass writes to.

    A clamp in `forward`, or an embedding with `max_norm`, writes through a detached parameter into
    the memory of the original. So the first run gets copies, and those that it has changed stay
    copies in later runs. The weight of an embedding with `max_norm` always is a copy: whether it is
    written to depends on the batch. A frozen parameter is copied only if one of the first runs was
    about to write to it (see `writes_undone`): a frozen base may be large.
    """

    def __init__(self) -> None:
        # Whether it is written to, by id, for each parameter of an earlier run.
        self._written: dict[int, tuple[ReferenceType[Tensor], bool]] = {}
        self.watched = 0  # runs
        # The `id` of parameters whose `.data` became another tensor. Inside torch.func that makes
        # of a parameter that is not differentiated one that torch crashes on.
        self.rebound: set[int] = set()

    @contextmanager
    def detached(self, module: nn.Module, wanted: Container[int]) -> Iterator[dict[int, Tensor]]:
        """Yield a detached tensor by `id` for each parameter that is trained, wanted or written to.

        Args:
            module: The module.
            wanted: The `id` of parameters that need not be trained.

        Cost:
            In the first run a copy of these parameters, and a comparison. In the first eight, a
            look at each function of torch if there are frozen parameters.
        """
        limited = {
            id(part.weight)
            for part in module.modules()
            if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.max_norm is not None
        }
        found: dict[int, Tensor] = {}
        unknown: list[Tensor] = []
        frozen: list[nn.Parameter] = []  # and left where they are
        for parameter in module.parameters():
            key = id(parameter)
            can_be_copied = is_plain(parameter) and parameter.layout is torch.strided
            is_limited = key in limited and can_be_copied
            reference, is_written = self._written.get(key, (None, True))
            is_known = reference is not None and reference() is parameter
            if not (parameter.requires_grad or key in wanted or is_limited):
                if not can_be_copied:
                    continue
                if not (is_known and is_written):
                    frozen.append(parameter)
                    continue
            detached: Tensor = parameter.detach()
            if not is_known and can_be_copied:
                unknown.append(parameter)
            if is_limited or (can_be_copied and (is_written or not is_known)):
                detached = detached.clone()
            found[key] = detached
        is_watched = self.watched < _WATCHED_RUNS
        self.watched += 1
        places = {key: t.data_ptr() for key, t in found.items() if t.layout is torch.strided}
        with writes_undone(frozen if is_watched else ()) as changed:
            yield found
        for written in changed:
            self._written[id(written.parameter)] = (ref(written.parameter), True)
            if written.is_rebound:
                self.rebound.add(id(written.parameter))
        self.rebound |= {key for key, place in places.items() if found[key].data_ptr() != place}
        for original in unknown:
            is_written = not same_bits(original, found[id(original)])
            self._written[id(original)] = (ref(original), is_written)


def is_plain(tensor: Tensor) -> bool:
    """Return whether a parameter or buffer is of no subclass, as quantised ones are."""
    return type(tensor) in (Tensor, nn.Parameter)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether two plain tensors of one shape and dtype hold the same bits, NaN included."""
    return torch.equal(_bytes(first), _bytes(second))


def _put_back(
    changed: list[tuple[MutableMapping[str, Any], dict[str, Any]]],
    recurrent: list[tuple[nn.RNNBase, list[Any], list[Any]]],
    of_fabric: list[dict[str, Any]],
) -> None:
    for entries, before in changed:
        if type(entries) is dict and list(entries) != list(before):
            entries.clear()  # the forward pass has added or removed some
            entries.update(before)
        for name, value in before.items():
            if entries[name] is not value:
                entries[name] = value
    for layer, weights, references in recurrent:
        layer._flat_weights, layer._flat_weight_refs = weights, references
    for attributes in of_fabric:
        attributes.pop(_FABRIC_CHECK, None)


def _unchanged(output: Tensor) -> Tensor:
    return output


def _is_wrapper(module: nn.Module | None) -> bool:
    return isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
