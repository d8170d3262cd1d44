"""The choice of parameters for a gradient: by name, by pattern or by predicate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from textwrap import shorten
from typing import TypeAlias

from torch import nn

from sage_torch.gradients.exchange import is_plain

# Names or fnmatch patterns of parameters, or a predicate on name and parameter.
ParameterChoice: TypeAlias = str | Iterable[str] | Callable[[str, nn.Parameter], bool]

__all__ = ["ParameterChoice", "check_params", "choose_parameters"]


def choose_parameters(model: nn.Module, params: ParameterChoice | None) -> dict[str, nn.Parameter]:
    """Return the chosen parameters under their first names, in `named_parameters` order.

    Args:
        model: The model.
        params: None for all parameters that require grad. Otherwise a name, names or fnmatch
            patterns, or a predicate `(name, parameter) -> bool`; these may also choose frozen
            parameters, but not quantised ones. Any name of a tied parameter chooses it.

    Returns:
        Parameters by name; a tied parameter appears once.

    Raises:
        ValueError: Nothing matches, nothing requires grad, or a chosen parameter is complex.
    """
    if params is None:
        chosen = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not chosen:
            raise ValueError(
                f"{type(model).__name__} has no parameter that requires grad; call "
                "model.requires_grad_(True), or name parameters with params="
            )
    else:
        every_name = model.named_parameters(remove_duplicate=False)
        wanted = _matching(dict(every_name), params)
        chosen = {
            name: parameter
            for name, parameter in model.named_parameters()
            if id(parameter) in wanted and _can_be_chosen(parameter)
        }
        if not chosen:
            known = ", ".join(name for name, _ in model.named_parameters())
            raise ValueError(
                f"params matches no floating-point parameter; there are: {shorten(known, 300)}"
            )
    complex_name = next((name for name, p in chosen.items() if p.is_complex()), None)
    if complex_name is not None:
        raise ValueError(
            f"expected real parameters, got the complex {complex_name!r}; leave it out with params="
        )
    return chosen


def check_params(params: object) -> None:
    """Refuse what cannot choose parameters, before there is a model.

    Raises:
        TypeError: It is neither a name, names, a predicate nor None.
    """
    is_names = isinstance(params, (list, tuple, set, frozenset)) and all(
        isinstance(name, str) for name in params
    )
    if not (params is None or isinstance(params, str) or is_names or callable(params)):
        raise TypeError(
            "expected params to be a name, names or patterns, a predicate (name, parameter) -> "
            f"bool, or None, got {params!r}"
        )


def _can_be_chosen(parameter: nn.Parameter) -> bool:
    """Return whether a parameter has a gradient: frozen ones of a subclass are quantised."""
    is_number = parameter.is_floating_point() or parameter.is_complex()
    return is_number and (parameter.requires_grad or is_plain(parameter))


def _matching(parameters: dict[str, nn.Parameter], params: ParameterChoice) -> set[int]:
    if callable(params):
        return {id(p) for name, p in parameters.items() if params(name, p)}
    wanted = set()
    for pattern in [params] if isinstance(params, str) else params:
        found = {id(p) for name, p in parameters.items() if fnmatchcase(name, pattern)}
        if not found:
            known = ", ".join(parameters)
            raise ValueError(
                f"params: {pattern!r} matches no parameter; there are: {shorten(known, 300)}"
            )
        wanted |= found
    return wanted
