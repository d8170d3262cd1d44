"""Weights that are functions of parameters, row by row: weight norm, weight standardisation.

Such a weight W' has the shape of a parameter W, and row o of W' depends on row o of W alone:
`dW'_o = (a_o I + sum_r v_or u_or^T) dW_o`, with a few vectors per row, for instance the row itself
where it is divided by its norm. Then the gradient of W, which is

    G_o = a_o G'_o + sum_r u_or (v_or . G'_o)    for each row o,

needs no matrix G' of each example. The first term is a sum of outer products, as for a parameter.
The dots `v_or . G'_o` are those of the gradient of the output with the output that v would give in
the place of the weight.

Where all rows share one number, as in spectral norm, `dW' = a dW + V <U, dW>` with matrices U and
V: the same, but that each row of U gets the sum of the dots of all rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sage_torch.gradients.projected.columns import DerivedTarget, ParameterTarget, add_whole
from sage_torch.gradients.projected.maps import SideMap, matrix_form

__all__ = ["KnownRows", "Rows", "RowwiseTarget", "rows_of"]

_PROBES, _MOST = 5, 2  # random cotangents; vectors per row: three probes must be left to find a_o
_RELATIVE = 1e-4  # what is smaller than this part of a row is rounding


@dataclass(frozen=True)
class Rows:
    """How a tensor depends on parameters, row by row, at their present values.

    Attributes:
        main: Which parameter has the shape of the tensor.
        scale: Tensor (O,), the factors a.
        directions: Tensor (q, *shape) that v, and the derivatives of the tensor by the other
            parameters, are made of; orthonormal in each row.
        vectors: Tensor (r, O, w), the vectors u, projected as the parameter's rows are.
        mix: Tensor (r, q, O): v from the directions.
        others: For each other parameter, a tensor (q, O): its gradient from the dots.
        is_whole: Whether the dots of all rows are summed for each row.
    """

    main: int
    scale: Tensor
    directions: Tensor
    vectors: Tensor
    mix: Tensor
    others: Mapping[int, Tensor]
    is_whole: bool = False


class RowwiseTarget:
    """A tensor made of parameters row by row, to which rules add like to a parameter.

    A rule also adds the dots of each example's gradient with `directions`, row by row.

    Args:
        rows: How the tensor depends on parameters.
        targets: Those parameters.
    """

    def __init__(self, rows: Rows, targets: Sequence[ParameterTarget]) -> None:
        self._rows, self._targets = rows, targets
        self._main = targets[rows.main]
        self.shape, self.directions = self._main.shape, rows.directions
        self.left, self.right = _Scaled(self._main.left, rows.scale), self._main.right

    def add_projected(self, values: Tensor) -> None:
        """Add outer products (n, left width, right width) whose sides are projected."""
        self._main.add_projected(values)

    def add_dots(self, of_directions: Sequence[Tensor]) -> None:
        """Add what follows from the dots (n, O) of each row with each direction."""
        if not of_directions:
            return
        rows, dots = self._rows, torch.stack(list(of_directions), 1)  # (n, q, O)
        n = len(dots)
        if len(rows.vectors):
            lengths = torch.einsum("nqo,rqo->nro", dots, rows.mix)
            if rows.is_whole:
                lengths = lengths.sum(2, keepdim=True).expand_as(lengths)
            left = self._main.left.matrix(dots.device)  # (w, O)
            pairs = (left.T.contiguous()[:, :, None] * rows.vectors[:, :, None, :]).flatten(0, 1)
            added = lengths.flatten(1) @ pairs.flatten(1)  # (n, r O) @ (r O, w w')
            self._main.add_projected(added.view(n, *pairs.shape[1:]))
        for number, mix in rows.others.items():
            target = self._targets[number]
            gradient = torch.einsum("nqo,qo->no", dots, mix)
            if math.prod(target.shape) == 1:
                gradient = gradient.sum(1)
            add_whole(target, gradient.reshape(n, *target.shape))


class _Scaled(SideMap):
    """A map whose argument is multiplied by a vector first."""

    is_identity = False

    def __init__(self, inner: SideMap, scale: Tensor) -> None:
        self.side, self.width = inner.side, inner.width
        self._matrix = inner.matrix(scale.device) * scale


class KnownRows:
    """Remembers how tensors are made of parameters, while the values of all are the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[list[Tensor], Rows | None]] = {}

    def of(self, target: DerivedTarget, names: tuple[str, ...]) -> Rows | None:
        """Return what `rows_of` finds.

        Args:
            target: The tensor and its parameters.
            names: Names of the parameters.
        """
        key, values = (names, target.shape), [target.tensor, *target.leaves]
        if key in self._known:
            before, rows = self._known[key]
            if rows is None or all(map(torch.equal, before, values)):
                return rows
        rows = rows_of(target)
        self._known[key] = ([] if rows is None else [v.detach().clone() for v in values], rows)
        return rows


def rows_of(target: DerivedTarget) -> Rows | None:
    """Find out how a tensor depends on parameters, by a few derivatives in random directions.

    Args:
        target: The tensor and its parameters.

    Returns:
        None if the tensor is not made row by row, of few vectors, or in float32.

    Cost:
        About ten backward passes through the functions that make the tensor; for a moment, some 15
        times its memory.
    """
    tensor, leaves = target.tensor, list(target.leaves)
    main = [i for i, leaf in enumerate(leaves) if leaf.shape == tensor.shape]
    small = [i for i in range(len(leaves)) if i not in main]
    height, width = matrix_form(tensor.shape)
    if (
        len(main) != 1
        or tensor.dtype != torch.float32
        or width <= _PROBES
        or any(leaves[i].numel() not in (1, height) for i in small)
    ):
        return None
    derivatives = _Derivatives(tensor, leaves, (height, width))
    try:
        return _found(derivatives, main[0], small, list(target.leaves.values())[main[0]].right)
    except (RuntimeError, TypeError):  # no second derivative, or a device without float64
        return None


class _Derivatives:
    """Derivatives of a tensor by its parameters, as matrices of height O and width I."""

    def __init__(self, tensor: Tensor, leaves: list[Tensor], form: tuple[int, int]) -> None:
        self.tensor, self.leaves, self.form = tensor, leaves, form

    def back(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of all parameters for a gradient (O, I) of the tensor."""
        found = torch.autograd.grad(
            self.tensor, self.leaves, cotangent.reshape(self.tensor.shape),
            retain_graph=True, materialize_grads=True,
        )  # fmt: skip
        return tuple(found)

    def forward(self, number: int, change: Tensor) -> Tensor:
        """Return the change (O, I) of the tensor for a change of one parameter."""
        with torch.enable_grad():
            zero = torch.zeros_like(self.tensor, requires_grad=True)
            (pulled,) = torch.autograd.grad(
                self.tensor, self.leaves[number], zero, create_graph=True, materialize_grads=True
            )
            (pushed,) = torch.autograd.grad(
                pulled, zero, change.reshape(pulled.shape), materialize_grads=True
            )
        return pushed.reshape(self.form)


def _found(derivatives: _Derivatives, main: int, small: list[int], right: SideMap) -> Rows | None:
    height, width = derivatives.form
    generator = torch.Generator().manual_seed(0)
    device = derivatives.tensor.device
    probes = torch.linalg.qr(
        torch.randn(width, _PROBES, generator=generator, dtype=torch.float64, device="cpu")
    )[0].T.to(device)
    pulled = probes.new_empty(_PROBES, height, width)
    for probe, into in zip(probes, pulled, strict=True):
        into.copy_(derivatives.back(probe.float().expand(height, width))[main].view(height, width))
    scale = _scale_of(torch.einsum("jc,koc->ojk", probes, pulled))
    lengths = torch.linalg.vector_norm(pulled, dim=(0, 2))
    for probe, into in zip(probes, pulled, strict=True):  # what is left is made of few vectors
        into.addr_(scale, probe, alpha=-1)
    whole = _one_matrix(pulled, lengths)
    vectors = _orthonormal(pulled, lengths) if whole is None else whole[None]
    if len(vectors) > _MOST:
        return None
    del pulled
    made_of = [
        derivatives.forward(main, vector).double() - scale[:, None] * vector for vector in vectors
    ] + [derivatives.forward(i, torch.ones_like(derivatives.leaves[i])).double() for i in small]
    stacked = torch.stack(made_of) if made_of else probes.new_zeros((0, height, width))
    sizes = stacked.norm(dim=2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    directions = _orthonormal(stacked / sizes, torch.ones_like(scale))
    mix = torch.einsum("soc,qoc->sqo", stacked, directions)
    rows = Rows(
        main=main,
        scale=scale.float(),
        directions=directions.float().reshape(-1, *derivatives.tensor.shape),
        vectors=right(vectors.float()),
        mix=mix[: len(vectors)].float(),
        others={i: mix[len(vectors) + at].float() for at, i in enumerate(small)},
        is_whole=whole is not None,
    )
    cotangent = torch.randn(height, width, generator=generator, device="cpu").to(device)
    expected = _pulled_back(rows, vectors.float(), cotangent)
    exact = derivatives.back(cotangent)
    is_right = all(_is_near(found, exact[number]) for number, found in expected.items())
    return rows if is_right else None


def _scale_of(matrices: Tensor) -> Tensor:
    """Return the eigenvalue that at least three of five share, of each matrix a I + low rank."""
    values = torch.linalg.eigvals(matrices.cpu())
    distances = (values[:, :, None] - values[:, None, :]).abs()
    near, places = distances.sort(2)
    best = near[:, :, 2].argmin(1)
    three = places[torch.arange(len(values)), best, :3]
    scale: Tensor = values.real.gather(1, three).mean(1)
    return scale.to(matrices.device)


def _orthonormal(rows: Tensor, lengths: Tensor) -> Tensor:
    """Return an orthonormal basis (q, O, I) of p vectors (p, O, I) for each row, padded by zeros.

    Args:
        rows: The vectors, float64.
        lengths: Tensor (O,); what is shorter than `_RELATIVE` of it is left out.
    """
    # On the CPU, where small matrices are quick.
    values, mixes = torch.linalg.eigh(torch.einsum("joc,koc->ojk", rows, rows).cpu())
    values, mixes = values.to(rows.device), mixes.to(rows.device)
    sizes = values.clamp_min(0).sqrt().flip(1)
    is_kept = sizes > _RELATIVE * lengths[:, None]
    most = int(is_kept.sum(1).max()) if rows.numel() else 0
    weights = torch.where(is_kept, 1 / sizes.clamp_min(1e-300), 0.0)[:, None] * mixes.flip(2)
    return torch.einsum("ojq,joc->qoc", weights[:, :, :most], rows)


def _one_matrix(matrices: Tensor, lengths: Tensor) -> Tensor | None:
    """Return the matrix (O, I) of length 1 that p matrices (p, O, I) are multiples of, if any."""
    flat = matrices.flatten(1)
    values, mixes = torch.linalg.eigh((flat @ flat.T).cpu())
    sizes, most = values.clamp_min(0).sqrt(), _RELATIVE * float(lengths.norm())
    if matrices.shape[1] == 1 or not sizes[-2] <= most < sizes[-1]:
        return None
    found: Tensor = torch.einsum("p,poc->oc", mixes[:, -1].to(flat.device), matrices) / sizes[-1]
    return found


def _pulled_back(rows: Rows, vectors: Tensor, cotangent: Tensor) -> dict[int, Tensor]:
    """Return the gradient of each parameter for a gradient (O, I) of the tensor."""
    directions = rows.directions.reshape(len(rows.directions), *cotangent.shape)
    dots = torch.einsum("qoc,oc->qo", directions, cotangent)
    lengths = torch.einsum("qo,rqo->ro", dots, rows.mix)
    if rows.is_whole:
        lengths = lengths.sum(1, keepdim=True).expand_as(lengths)
    of_main = rows.scale[:, None] * cotangent + torch.einsum("ro,roc->oc", lengths, vectors)
    return {rows.main: of_main} | {i: (dots * mix).sum(0) for i, mix in rows.others.items()}


def _is_near(found: Tensor, exact: Tensor) -> bool:
    if exact.numel() == 1:
        found = found.sum()
    difference = found.flatten() - exact.flatten()
    return bool(difference.norm() <= 10 * _RELATIVE * exact.norm())
