"""The seeded maps that shorten the gradient of one parameter, `G -> P_left G P_right^T`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sage_torch.gradients.count_sketch import CountSketch

__all__ = ["Block", "SideMap", "VectorMap", "matrix_form", "project"]


class SideMap:
    """A linear map of one side of a gradient, R^side -> R^width, with `E[P^T P] = I` over seeds.

    Its rows are orthonormal, drawn uniformly (Haar), times `sqrt(side / width)`. A side that is no
    longer than the width gets the identity.

    Args:
        side: Length of the side.
        width: Largest length after the map.
        seed: Seed of the whole computer.
        name: Distinguishes the maps of one computer.

    Cost:
        One QR decomposition, `2 side width^2` operations; `4 side width` bytes.
    """

    def __init__(self, side: int, width: int, seed: int, name: str) -> None:
        self.side, self.width = side, min(side, width)
        self._seed = _derived_seed(seed, name)
        self._matrix: Tensor | None = None

    @property
    def is_identity(self) -> bool:
        """Whether the map leaves this side unchanged."""
        return self.width == self.side

    def matrix(self, device: torch.device) -> Tensor:
        """Return the map as a tensor (width, side) float32, drawn on the CPU and then moved."""
        if self._matrix is None or self._matrix.device != device:
            self._matrix = self._draw().to(device)
        return self._matrix

    def __call__(self, values: Tensor) -> Tensor:
        """Apply the map to the last dimension, (..., side) -> (..., width)."""
        return values if self.is_identity else values @ self.matrix(values.device).T

    def _draw(self) -> Tensor:
        if self.is_identity:
            return torch.eye(self.side, dtype=torch.float32, device="cpu")
        generator = torch.Generator().manual_seed(self._seed)
        gaussian = torch.randn(
            self.side, self.width, generator=generator, dtype=torch.float64, device="cpu"
        )
        orthonormal, triangle = torch.linalg.qr(gaussian)
        # The signs of the diagonal make the draw uniform, and the same for every LAPACK.
        rows: Tensor = (orthonormal * triangle.diagonal().sign()).T
        scaled = rows * math.sqrt(self.side / self.width)
        return scaled.float().contiguous()


class VectorMap(SideMap):
    """A map of vectors, which may be long: a count sketch in place of a dense matrix."""

    def __init__(self, side: int, width: int, seed: int, name: str) -> None:
        super().__init__(side, width, seed, name)
        self._sketch = CountSketch(side, self.width, self._seed)

    def matrix(self, device: torch.device) -> Tensor:
        """Return the identity.

        Raises:
            ValueError: The map is a count sketch, which is not kept as a matrix.
        """
        if not self.is_identity:
            raise ValueError("a vector as long as this is count-sketched, without a matrix")
        return super().matrix(device)

    def __call__(self, values: Tensor) -> Tensor:
        """Apply the map to the last dimension, (..., side) -> (..., width)."""
        if self.is_identity:
            return values
        flat = values.reshape(-1, self.side)
        return self._sketch(flat).view(*values.shape[:-1], self.width)


class Block:
    """The columns of one parameter in a row of projected gradients.

    The gradient of a weight is a matrix, its first dimension (outputs) by all others (inputs). The
    longer side is projected to `width`, the shorter to `2 width`, because it costs less. A bias,
    the scale of a norm or a bare parameter (1, ...) is a vector, which stays exact up to
    `2 width^2` entries and is count-sketched above.

    Args:
        name: Name of the parameter in the model.
        shape: Shape of the parameter.
        width: Width w of the projections.
        seed: Seed of the whole computer.
        start: First column.
    """

    def __init__(self, name: str, shape: Sequence[int], width: int, seed: int, start: int) -> None:
        self.name, self.shape = name, tuple(shape)
        rows, columns = matrix_form(self.shape)
        if rows == 1 and len(self.shape) < 4:  # four dimensions are those of a convolution
            widths = (1, 2 * width**2)
            kind: type[SideMap] = VectorMap
        else:
            widths = (2 * width, width) if rows <= columns else (width, 2 * width)
            kind = SideMap
        self.left = SideMap(rows, widths[0], seed, f"{name}/left")
        self.right = kind(columns, widths[1], seed, f"{name}/right")
        self.start, self.stop = start, start + self.left.width * self.right.width

    @property
    def is_exact(self) -> bool:
        """Whether both sides are left unchanged."""
        return self.left.is_identity and self.right.is_identity

    def describe(self) -> str:
        """Return, for example, `"(512, 64) projected to (32, 64)"` or `"exact, 64"`."""
        before = (self.left.side, self.right.side)
        if self.is_exact:
            return f"exact, {math.prod(before):,}"
        if isinstance(self.right, VectorMap):
            return f"{before[1]:,} count-sketched to {self.right.width:,}"
        return f"{before} projected to {(self.left.width, self.right.width)}"

    def of(self, rows: Tensor) -> Tensor:
        """Return the columns of this parameter as a view (n, left width, right width)."""
        part = rows[:, self.start : self.stop]
        return part.view(len(rows), self.left.width, self.right.width)

    def project(self, gradients: Tensor) -> Tensor:
        """Project exact gradients (n, *shape) to (n, left width, right width)."""
        return project(gradients, self.left, self.right)


def project(gradients: Tensor, left: SideMap, right: SideMap) -> Tensor:
    """Map both sides of gradients (n, ...) as matrices, to (n, left width, right width)."""
    whole = gradients.reshape(len(gradients), left.side, right.side)
    return left(right(whole).mT).mT


def matrix_form(shape: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns of a gradient as a matrix; a vector has one row."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


def _derived_seed(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
