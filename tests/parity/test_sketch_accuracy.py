"""The sketch against a float64 one, for rows of every scale and spectra that decay or do not.

The error is `|S'S - T'T| / |T'T|` in spectral norms, S the sketch and T the oracle's.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch
from torch import Tensor

from sage_torch import FrequentDirections

Floats = npt.NDArray[np.float64]
TOLERANCE = 1e-5
EXPONENTS = [-12, -9, -5, -1, 0, 3, 8, 12]
# (l, d): columns within one chunk of the products, and over several with a rest.
SIZES = [(16, 300), (16, 4500), pytest.param(64, 2100, marks=pytest.mark.slow)]
SPECTRA = ["decaying", "flat", "low rank", "one large row"]
MIXTURES = ["random", "growing", "shrinking", "by block", "within a row"]

backends = pytest.mark.parametrize("backend", ["host", "torch"])
sizes = pytest.mark.parametrize(("size", "dim"), SIZES)


@cache
def base(size: int, dim: int, spectrum: str) -> Floats:
    """Rows of about length 1: three blocks and a part of one."""
    rng = np.random.default_rng(size + dim)
    count = 3 * FrequentDirections(size, 1).block_rows + size // 2 + 1
    rows = rng.normal(size=(count, dim)) / dim**0.5
    if spectrum == "decaying":
        values = 10.0 ** np.linspace(0, -6, count)
        rows = rng.normal(size=(count, count)) * values @ rows
    elif spectrum == "low rank":
        rows = rng.normal(size=(count, size // 2)) @ rows[: size // 2]
    elif spectrum == "one large row":
        rows[count // 2] *= 1e3
    return rows


def scales_of(mixture: str, shape: tuple[int, int]) -> Floats:
    """Factors from 1e-12 to 1e12."""
    rng, count = np.random.default_rng(1), shape[0]
    if mixture == "within a row":
        exponents = rng.uniform(-12, 12, size=(1, shape[1]))
    elif mixture == "by block":
        exponents = np.repeat(rng.uniform(-12, 12, size=-(-count // 24)), 24)[:count, None]
    else:
        exponents = rng.uniform(-12, 12, size=(count, 1))
    if mixture in ("growing", "shrinking"):
        exponents = np.sort(exponents, axis=0)[:: 1 if mixture == "growing" else -1]
    scales: Floats = 10.0**exponents
    return scales


@cache
def oracle_of(size: int, dim: int, spectrum: str) -> reference.FrequentDirections:
    return in_float64(base(size, dim, spectrum), size)


def in_float64(rows: Floats, size: int) -> reference.FrequentDirections:
    block = FrequentDirections(size, 1).block_rows
    oracle = reference.FrequentDirections(size, rows.shape[1], block)
    oracle.update(rows)
    return oracle


def compare(rows: Tensor, oracle: reference.FrequentDirections, unit: float, backend: str) -> None:
    """Sketch rows in batches of 50; the oracle has seen them divided by `unit`."""
    ours = FrequentDirections(oracle.sketch_size, rows.shape[1], backend=backend)
    for part in rows.split(50):
        ours.update(part)
    matrix, exact = ours.matrix().double().numpy() / unit, oracle.matrix()
    assert np.isfinite(matrix).all()
    error = gram_error(matrix, exact)
    assert error < TOLERANCE, f"|S'S - T'T| = {error:.1e} |T'T|"
    largest = float(exact[0] @ exact[0]) + oracle.shrinkage
    delta = ours.shrinkage / unit**2
    assert delta == pytest.approx(oracle.shrinkage, rel=TOLERANCE, abs=1e-6 * largest)
    assert ours.squared_norm / unit**2 == pytest.approx(oracle.squared_norm, rel=1e-6)
    energy = (matrix**2).sum(axis=1)
    values = ours.singular_values() / unit
    assert values**2 == pytest.approx(energy, abs=TOLERANCE * energy[0])


def gram_error(ours: Floats, exact: Floats) -> float:
    """`|S'S - T'T| / |T'T|`, without any (d, d) matrix, at lengths that square within float64."""
    basis, _ = np.linalg.qr(np.concatenate([ours, exact]).T)
    unit = np.linalg.norm(exact[0])  # rows are orthogonal, by descending length
    ours, exact = ours @ basis / unit, exact @ basis / unit
    return float(np.linalg.norm(ours.T @ ours - exact.T @ exact, 2))


@backends
@sizes
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_accurate_at_every_scale(spectrum: str, size: int, dim: int, backend: str) -> None:
    rows = base(size, dim, spectrum)
    for exponent in EXPONENTS:
        unit = 1.37 * 10.0**exponent  # no power of two: each scale has roundings of its own
        given = torch.from_numpy((rows * unit).astype(np.float32))
        compare(given, oracle_of(size, dim, spectrum), unit, backend)


@backends
@sizes
@pytest.mark.parametrize("mixture", MIXTURES)
def test_accurate_with_scales_mixed(mixture: str, size: int, dim: int, backend: str) -> None:
    for spectrum in ("decaying", "flat"):
        rows = base(size, dim, spectrum)
        given = torch.from_numpy((rows * scales_of(mixture, rows.shape)).astype(np.float32))
        compare(given, in_float64(given.double().numpy(), size), 1.0, backend)
