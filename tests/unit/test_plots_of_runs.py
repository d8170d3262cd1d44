"""Pictures of sketches and of runs: every number drawn is the number that was given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from sage_torch import FrequentDirections

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from sage_torch.plots import accuracy_against_keep, accuracy_against_time, spectrum  # noqa: E402


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    pyplot.close("all")


def runs(*methods: str, keeps: tuple[float, ...] = (0.05, 0.25)) -> list[dict[str, Any]]:
    """Method m, keep q, seed s: accuracy 80 + m + 10 q + s, in 100 q + m + 1 + s seconds."""
    return [
        {
            "method": method,
            "keep": keep,
            "accuracy": 80 + m + 10 * keep + seed,
            "seconds": 100 * keep + m + 1 + seed,
        }
        for m, method in enumerate(methods)
        for keep in keeps
        for seed in (0, 1, 2)
    ]


def all_data() -> list[dict[str, Any]]:
    return [
        {"method": "all", "keep": 1, "accuracy": 90 + s, "seconds": 200 + s, "steps": 5}
        for s in (0, 2)
    ]


def drawn(ax: Axes) -> dict[str, Any]:
    """The line through the means of each method."""
    return {c.get_label(): c.lines[0] for c in ax.containers}


def legend(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_keep_shows_means_and_deviations_of_each_method() -> None:
    ax = accuracy_against_keep(runs("random", "SAGE"))
    lines = drawn(ax)
    assert legend(ax) == ["random", "SAGE"]
    np.testing.assert_allclose(lines["random"].get_ydata(), [81.5, 83.5])
    np.testing.assert_allclose(lines["SAGE"].get_ydata(), [82.5, 84.5])
    np.testing.assert_allclose(lines["SAGE"].get_xdata(), [5, 25], rtol=0.05)
    assert (lines["SAGE"].get_xdata() > lines["random"].get_xdata()).all()  # bars side by side
    bars = ax.containers[1].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], [[81.5, 83.5], [83.5, 85.5]])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["5", "25"]


def test_order_of_runs_does_not_matter_within_a_method() -> None:
    given = runs("SAGE")
    line = drawn(accuracy_against_keep(given[::-1]))["SAGE"]
    np.testing.assert_allclose(line.get_xdata(), [5, 25])
    np.testing.assert_allclose(line.get_ydata(), [81.5, 83.5])


def test_all_data_is_a_line_across_with_its_spread() -> None:
    ax = accuracy_against_keep(all_data() + runs("SAGE"))
    (across,) = [line for line in ax.lines if line.get_label() == "all"]
    assert list(across.get_ydata()) == [91, 91]
    assert legend(ax) == ["all", "SAGE"]  # the order of the runs
    (band,) = ax.patches
    assert band.get_y() == pytest.approx(91 - 2**0.5)
    assert band.get_height() == pytest.approx(2 * 2**0.5)


def test_a_method_that_also_keeps_all_is_no_line_across() -> None:
    lines = drawn(accuracy_against_keep(runs("SAGE", keeps=(0.5, 1.0))))
    np.testing.assert_allclose(lines["SAGE"].get_xdata(), [50, 100])


def test_the_baseline_is_grey_and_every_other_method_looks_its_own() -> None:
    names = ["chance", *(f"method {i}" for i in range(14))]
    ax = accuracy_against_keep(runs(*names), baseline="chance")
    lines = drawn(ax)
    assert lines["chance"].get_color() == "0.4"
    assert lines["chance"].get_linestyle() == "--"
    looks = {(line.get_color(), line.get_linestyle()) for line in lines.values()}
    assert len(looks) == len(names)


def test_one_run_has_no_bar_but_is_shown() -> None:
    one = runs("SAGE")[:1]
    for draw in (accuracy_against_keep, accuracy_against_time):
        ax = draw(one)
        (bar, *_) = ax.containers[0].lines[2][-1].get_segments()
        assert np.ptp(bar[:, 1]) == 0
        np.testing.assert_allclose(drawn(ax)["SAGE"].get_ydata(), [80.5])


def test_time_shows_means_of_seconds_and_accuracy() -> None:
    ax = accuracy_against_time([*runs("random", "SAGE"), *all_data()])
    lines = drawn(ax)
    np.testing.assert_allclose(lines["SAGE"].get_xdata(), [8, 28])
    np.testing.assert_allclose(lines["SAGE"].get_ydata(), [82.5, 84.5])
    np.testing.assert_allclose(lines["all"].get_xdata(), [201])
    assert lines["all"].get_color() == "black"
    assert lines["SAGE"].get_color() != "black"
    assert ax.get_legend().get_title().get_text() == "mean ± std\nin order: keep 5 %, 25 %"


def test_time_by_another_number() -> None:
    given = [run | {"steps": 800 * (1 + run["keep"])} for run in runs("SAGE", keeps=(0.25, 1.0))]
    ax = accuracy_against_time(given, by="steps")
    np.testing.assert_allclose(drawn(ax)["SAGE"].get_xdata(), [27, 102])
    assert "in order: steps 1,000, 1,600" in ax.get_legend().get_title().get_text()


@pytest.mark.parametrize("draw", [accuracy_against_keep, accuracy_against_time])
def test_runs_are_drawn_where_told_and_records_may_be_an_iterator(draw: Any) -> None:
    _, ax = pyplot.subplots()
    assert draw(iter(runs("SAGE")), ax) is ax
    assert len(pyplot.get_fignums()) == 1


@pytest.mark.parametrize("draw", [accuracy_against_keep, accuracy_against_time])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accuracy": None}, "expected runs with method, keep, .*run 0: TypeError"),
        ({"accuracy": "good"}, "run 0: ValueError"),
        ({"accuracy": float("nan")}, "expected finite numbers"),
    ],
)
def test_bad_runs_are_refused_before_drawing(
    draw: Any, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        draw([runs("SAGE")[0] | changes])
    with pytest.raises(ValueError, match="at least one run, got none"):
        draw([])
    with pytest.raises(ValueError, match="run 1: KeyError\\('method'\\)"):
        draw([runs("SAGE")[0], {"keep": 0.5, "accuracy": 90, "seconds": 1}])
    assert not pyplot.get_fignums()


def test_keep_must_be_a_share() -> None:
    with pytest.raises(ValueError, match=r"keep in \(0, 1\], got 25 in a run of 'SAGE'"):
        accuracy_against_keep([{"method": "SAGE", "keep": 25, "accuracy": 90}])


def sketched(rows: int, dim: int, sketch_size: int) -> tuple[FrequentDirections, Any]:
    matrix = torch.randn(rows, dim, generator=torch.Generator().manual_seed(0))
    matrix *= torch.linspace(2, 0.1, dim)
    sketch = FrequentDirections(sketch_size, dim)
    sketch.update(matrix)
    return sketch, torch.linalg.svdvals(matrix.double()).numpy()


def test_spectrum_draws_the_sketch_and_a_band_that_holds_the_truth() -> None:
    sketch, exact = sketched(200, 30, 8)
    left, right = spectrum(sketch, exact=exact).axes
    total = sketch.squared_norm
    values = sketch.singular_values() ** 2 / total
    shown, dots = (line.get_ydata() for line in left.lines)
    np.testing.assert_allclose(shown, values)
    np.testing.assert_allclose(dots, exact[:8] ** 2 / total)
    for ax, truth in ((left, dots), (right, 100 * np.cumsum(dots))):
        corners = ax.collections[0].get_paths()[0].vertices
        for place, value in enumerate(truth, 1):
            at = corners[corners[:, 0] == place][:, 1]
            assert at.min() <= value * (1 + 1e-6)
            assert value <= at.max() * (1 + 1e-6)
            assert at.max() > at.min()
    np.testing.assert_allclose(right.lines[0].get_ydata(), 100 * np.cumsum(values))
    kept = right.texts[0].get_text()
    assert kept.startswith(f"kept: {values.sum():.1%} to ")


def test_spectrum_of_a_short_stream_is_exact_and_leaves_missing_directions_out() -> None:
    sketch, exact = sketched(3, 30, 8)
    left, right = spectrum(sketch, exact=exact).axes
    shown, dots = (np.asarray(line.get_ydata()) for line in left.lines)
    np.testing.assert_allclose(shown[:3], dots, rtol=1e-5)
    assert np.isnan(shown[3:]).all()
    assert legend(left) == ["bound: Δ = 0", "sketch", "exact"]
    assert right.texts[0].get_text() == "kept: all of it"


def test_spectrum_of_one_direction() -> None:
    sketch, _ = sketched(20, 5, 1)
    for ax in spectrum(sketch).axes:
        assert ax.get_xlim() == (0, 1)


def test_spectrum_errors() -> None:
    with pytest.raises(ValueError, match="at least one row that is not 0"):
        spectrum(FrequentDirections(4, 10))
    sketch, exact = sketched(20, 5, 4)
    with pytest.raises(ValueError, match="descending order"):
        spectrum(sketch, exact=exact[::-1])
    with pytest.raises(ValueError, match=r"descending order, got shape \(5, 1\)"):
        spectrum(sketch, exact=exact[:, None])
    assert not pyplot.get_fignums()
