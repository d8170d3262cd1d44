"""The charts of the report: SVG inside the page, in the light or dark colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sage_torch.plots.scores import score_histogram
from sage_torch.plots.spectrum import spectrum
from sage_torch.plots.style import DROPPED, KEPT, NAMES, Values
from sage_torch.selection.result import Selection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDE, _HIGH, _TALL = 3.9, 2.6, 3.6  # inches: as wide as a phone, so that text keeps its size
_INK, _GREY = "#010203", "#666666"  # replaces black by a colour that nothing else has; grey
_MOST = 2.0  # more than any agreement or margin, with room for rounding
_BINS, _STRIP_WIDTH, _STRIP_HEIGHT = 24, 120, 30


class Chart(NamedTuple):
    """A chart with its title and a text that explains how to read it."""

    title: str
    svg: Markup
    words: str


def charts(selection: Selection) -> list[Chart]:
    """Return charts of the scores, of what tells wrong labels, and of the spectrum.

    Wrong labels are told by probabilities, else by margins. What a selection lacks is left out.

    Raises:
        ImportError: matplotlib is not installed.
    """
    drawn = []
    if is_drawable(selection.scores):
        drawn.append(
            Chart(
                "Agreement",
                _svg(lambda figure: _histogram(figure, selection, "scores"), "scores"),
                "How well the gradient of each example agrees with those of its class: 1 is the "
                "same direction, 0 is at right angles, below 0 is opposite.",
            )
        )
    if selection.probabilities is not None:
        drawn.append(
            Chart(
                "Label probability",
                _svg(lambda figure: _histogram(figure, selection, "probabilities"), "likely"),
                "How likely the label of each example is by the features of the other examples. "
                "Many wrong labels are near 0.",
            )
        )
    elif selection.margins is not None and is_drawable(selection.margins):
        drawn.append(
            Chart(
                "Margin",
                _svg(lambda figure: _histogram(figure, selection, "margins"), "margins"),
                "Agreement with its own class, minus half the opposition to another class. Many "
                "wrong labels are below 0.",
            )
        )
    if _has_spectrum(selection):
        drawn.append(
            Chart(
                "Spectrum of the sketch",
                _svg(lambda figure: _spectrum(figure, selection), "spectrum", _TALL),
                "The energy of the gradients by direction, and of the first directions together. "
                "The bands contain the exact values.",
            )
        )
    return drawn


def is_drawable(values: NDArray[np.float32]) -> bool:
    """Return whether all values are possible scores or margins; those of a damaged file may not."""
    return bool((np.abs(values) <= _MOST).all())


def strip(
    kept: NDArray[np.float32], dropped: NDArray[np.float32], between: tuple[float, float]
) -> Markup:
    """Return a small histogram: kept examples filled, dropped ones as an outline.

    Args:
        kept: Values (k,) of one class.
        dropped: Values (n - k,) of the same class.
        between: Lowest and highest value of all classes, which share the scale.
    """
    low, high = between
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    counts = [np.histogram(values, edges)[0] for values in (kept, dropped)]
    most = max(int(count.max()) for count in counts) or 1
    paths = [
        f'<path class="{name}" d="{_outline(np.sqrt(count / most))}"/>'
        for name, count in zip(("k", "d"), counts, strict=True)
    ]
    return Markup(  # numbers only
        f'<svg class="strip" viewBox="0 0 {_STRIP_WIDTH} {_STRIP_HEIGHT + 2}" role="img" '
        f'preserveAspectRatio="none" aria-label="histogram">{"".join(paths)}</svg>'
    )


def _outline(heights: NDArray[np.float64]) -> str:
    """Return an SVG path along the tops of bars with heights within [0, 1]."""
    steps = [f"M0 {_STRIP_HEIGHT + 1}"]
    for place, height in enumerate(heights):
        top = 1 + _STRIP_HEIGHT * (1 - height)
        steps.append(f"V{top:.1f}H{(place + 1) * _STRIP_WIDTH / len(heights):.1f}")
    return "".join([*steps, f"V{_STRIP_HEIGHT + 1}Z"])


def _histogram(figure: Figure, selection: Selection, of: Values) -> None:
    ax = score_histogram(selection, figure.subplots(), of=of)
    ax.set_xlabel(NAMES[of])  # a text beside it explains more
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def _spectrum(figure: Figure, selection: Selection) -> None:
    above, below = figure.subplots(2, sharex=True)
    spectrum(selection, axes=(above, below))
    above.set_xlabel("")
    above.set_ylabel("share, log scale")
    below.set_ylabel("together, %")


def _has_spectrum(selection: Selection) -> bool:
    certificate, values = selection.certificate, selection.singular_values
    return (
        certificate is not None
        and values is not None
        and certificate.squared_norm > 0
        and len(values) > 0
        and bool(np.isfinite([*values, certificate.squared_norm, certificate.shrinkage]).all())
    )


def _svg(draw: Callable[[Figure], object], name: str, high: float = _HIGH) -> Markup:
    """Return a drawing as SVG for a page, without its own size, colours and unused ids."""
    import matplotlib
    from matplotlib.figure import Figure

    look: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": name,  # the same ids each time, different from those of other charts
        "font.size": 9,
        "legend.fontsize": 9,
        "legend.handlelength": 1.2,
        "legend.columnspacing": 1.0,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), _INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
    }
    buffer = io.StringIO()
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(_WIDE, high), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    meant = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in meant else "", text)
    for colour, of_the_page in (
        (_INK, "currentColor"),
        (_GREY, "var(--faint)"),
        (KEPT.lower(), "var(--kept)"),
        (DROPPED.lower(), "var(--dropped)"),
    ):
        text = text.replace(colour, of_the_page)
    return Markup(text)  # matplotlib has escaped its text
