"""The spectrum of a sketch, with bounds for the exact values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sage_torch._core import FrequentDirections
from sage_torch.plots.style import DROPPED, KEPT, bare
from sage_torch.selection.result import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def spectrum(
    sketch: FrequentDirections | Selection,
    *,
    exact: ArrayLike | None = None,
    axes: tuple[Axes, Axes] | None = None,
) -> Figure:
    """Draw the squared singular values of a sketch and their cumulative sum, with bounds.

    The sketch underestimates: `0 <= |Ax|^2 - |Sx|^2 <= Delta` for every unit x. By Weyl's
    inequality the j-th squared singular value of the rows A lies between that of the sketch and
    `Delta` more. The band shows that range, which is certain and not an estimate.

    Args:
        sketch: A sketch of at least one row that is not 0, or a selection with such a sketch.
        exact: Singular values of the rows, (m,) descending, for comparison; None if not known.
        axes: The two axes to draw in; None for a new figure.

    Returns:
        The figure: on the left the share of each direction in the energy `|A|_F^2`, on the right
        the share of the first j directions together.

    Raises:
        ValueError: All rows of the sketch are 0, `exact` is not descending, or the selection has no
            singular values (`rule="random"`, or an older file).

    Cost:
        O(l).

    Reference:
        Ghashami, Liberty, Phillips and Woodruff, SIAM J. Comput. 2016, Thm 1.1.
    """
    from matplotlib import pyplot

    singular_values, total, shrinkage = _numbers_of(sketch)
    if not total > 0:
        raise ValueError("expected a sketch of at least one row that is not 0; update it first")
    known = None if exact is None else np.asarray(exact, np.float64)
    if known is not None and (known.ndim != 1 or (np.diff(known) > 0).any()):
        raise ValueError(
            f"expected exact singular values in descending order, got shape {known.shape}"
        )
    values = singular_values**2 / total  # (l,) shares of the energy
    shrinkage /= total
    places = np.arange(1, len(values) + 1)
    if axes is None:
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    else:
        left, right = axes
        figure = left.get_figure(root=True)  # type: ignore[assignment]  # never None here
    lowest = 0.5 * values[values > 0].min(initial=1.0)  # a log scale has no 0
    left.fill_between(
        places,
        values.clip(lowest),
        (values + shrinkage).clip(lowest),
        color=KEPT,
        alpha=0.2,
        linewidth=0,
        label=f"bound: up to Δ = {shrinkage:.2%} more" if shrinkage > 0 else "bound: Δ = 0",
    )
    left.plot(places, np.where(values > 0, values, np.nan), color=KEPT, label="sketch")
    left.set_yscale("log")
    left.set_ylabel("share of the energy, log scale")
    together = np.cumsum(values)
    at_most = np.minimum(1.0, together + places * shrinkage)
    right.fill_between(places, 100 * together, 100 * at_most, color=KEPT, alpha=0.2, linewidth=0)
    right.plot(places, 100 * together, color=KEPT)
    right.set_ylim(0, 102)
    right.set_ylabel("energy of the first j directions, %")
    right.annotate(
        f"kept: {together[-1]:.1%} to {at_most[-1]:.1%}" if shrinkage > 0 else "kept: all of it",
        (1, 0.06),
        xycoords="axes fraction",
        ha="right",
    )
    if known is not None:
        shares = known[: len(values)] ** 2 / total
        look = {"color": DROPPED, "linestyle": "none", "marker": ".", "markersize": 3}
        left.plot(places[: len(shares)], shares, label="exact", **look)
        right.plot(places[: len(shares)], 100 * np.cumsum(shares), **look)
    for ax in (left, right):
        ax.set_xlabel("direction j")
        ax.set_xlim(min(1, len(values) - 1), len(values))
        bare(ax)
    left.legend(frameon=False)
    return figure


def _numbers_of(
    sketch: FrequentDirections | Selection,
) -> tuple[NDArray[np.float64], float, float]:
    """Return singular values (l,), `|A|_F^2` and Delta."""
    if isinstance(sketch, FrequentDirections):
        return sketch.singular_values(), sketch.squared_norm, sketch.shrinkage
    if sketch.singular_values is None or sketch.certificate is None:
        raise ValueError(
            "expected a selection with singular values, got one that went by no gradients; select "
            'again with rule="herding" and gradients="projected"'
        )
    certificate = sketch.certificate
    return sketch.singular_values, certificate.squared_norm, certificate.shrinkage
