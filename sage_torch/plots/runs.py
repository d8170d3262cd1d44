"""Plots of training runs: accuracy against the share of the data kept, and against time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sage_torch.plots.style import CYCLE, GREY, MARKERS, bare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = dict[float, NDArray[np.float64]]  # by value on the first axis, one row per run


def accuracy_against_keep(
    runs: Iterable[Mapping[str, Any]],
    ax: Axes | None = None,
    *,
    baseline: str = "random",
) -> Axes:
    """Draw mean test accuracy against the share of the data kept, one line per method.

    Bars reach one standard deviation over the runs of a point to each side. If lines are close,
    compare pairs of runs of the same seed instead of bars.

    Args:
        runs: One mapping per run with `method` (a name), `keep` (a share in (0, 1]) and `accuracy`
            (in percent); other keys are ignored. A method whose runs all have keep 1 is drawn as a
            horizontal line.
        ax: The axes to draw in; None for a new figure.
        baseline: The method drawn grey and dashed, if it occurs.

    Returns:
        The axes; methods in the order of their first runs.

    Raises:
        ValueError: There are no runs, or a run lacks a key or has no finite number for it.

    Cost:
        O(runs).
    """
    from matplotlib import pyplot

    methods = _by_method(runs, "keep", ("accuracy",))
    for name, points in methods.items():
        for keep in points:
            if not 0 < keep <= 1:
                raise ValueError(f"expected keep in (0, 1], got {keep:g} in a run of {name!r}")
    if ax is None:
        _, ax = pyplot.subplots(figsize=(7, 3.8), layout="constrained")
    is_line_across = {name: set(points) == {1.0} for name, points in methods.items()}
    looks = _looks(methods, baseline, is_line_across)
    lines = [name for name in methods if not is_line_across[name]]
    for place, name in enumerate(lines):
        # Bars of several methods are drawn 1.5 % of a decade apart, so that they do not overlap.
        aside = 10 ** (0.015 * (place - (len(lines) - 1) / 2))
        means, deviations = _summary(methods[name])
        ax.errorbar(
            aside * 100 * np.array(list(methods[name])),
            means[:, 0],
            deviations[:, 0],
            label=name,
            **looks[name],
        )
    for name in methods.keys() - set(lines):
        mean, deviation = (float(part[0, 0]) for part in _summary(methods[name]))
        ax.axhline(mean, color="black", linewidth=1.2, label=name)
        ax.axhspan(mean - deviation, mean + deviation, color="black", alpha=0.08, linewidth=0)
    keeps = sorted({100 * keep for name in lines for keep in methods[name]})
    ax.set_xscale("log")
    ax.set_xticks(keeps, [f"{keep:g}" for keep in keeps])
    ax.minorticks_off()
    ax.set_xlabel("examples kept, % (log scale)")
    _finish(ax, list(methods))
    return ax


def accuracy_against_time(
    runs: Iterable[Mapping[str, Any]],
    ax: Axes | None = None,
    *,
    by: str = "keep",
    baseline: str = "random",
) -> Axes:
    """Draw mean test accuracy against mean wall time, one line per method.

    Args:
        runs: As in `accuracy_against_keep`, and with `seconds`, the time of the whole run with
            warm-up and selection.
        ax: The axes to draw in; None for a new figure.
        by: The key whose values are the points of a method, joined in ascending order: `"keep"`,
            or another number such as `"steps"`.
        baseline: The method drawn grey and dashed, if it occurs.

    Returns:
        The axes; methods in the order of their first runs, training on all data in black.

    Raises:
        ValueError: There are no runs, or a run lacks a key or has no finite number for it.

    Cost:
        O(runs).
    """
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    runs = list(runs)
    methods = _by_method(runs, by, ("seconds", "accuracy"))
    if ax is None:
        _, ax = pyplot.subplots(figsize=(7, 3.8), layout="constrained")
    keeps: dict[str, set[Any]] = {}
    for run in runs:
        keeps.setdefault(run["method"], set()).add(run.get("keep"))
    is_all = {name: keeps[name] == {1} for name in methods}
    looks = _looks(methods, baseline, is_all)
    for name, points in methods.items():
        means, spread = _summary(points)
        ax.errorbar(means[:, 0], means[:, 1], spread[:, 1], spread[:, 0], label=name, **looks[name])
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.minorticks_off()
    ax.set_xlabel("wall time, s (log scale)")
    values = sorted({value for name in methods if not is_all[name] for value in methods[name]})
    written = [f"{100 * value:g} %" if by == "keep" else f"{value:,g}" for value in values]
    _finish(ax, list(methods), f"\nin order: {by} {', '.join(written)}" if len(values) > 1 else "")
    return ax


def _by_method(
    runs: Iterable[Mapping[str, Any]], by: str, wanted: tuple[str, ...]
) -> dict[str, Points]:
    """Return the points of each method, by ascending value of `by`, each (runs, len(wanted))."""
    found: dict[str, dict[float, list[list[float]]]] = {}
    for place, run in enumerate(runs):
        try:
            value, *numbers = (float(run[key]) for key in (by, *wanted))
            points = found.setdefault(str(run["method"]), {})
        except (KeyError, TypeError, ValueError) as error:
            keys = ", ".join(("method", by, *wanted))
            raise ValueError(
                f"expected runs with {keys}, the last {1 + len(wanted)} of them numbers; run "
                f"{place}: {error!r}"
            ) from error
        if not np.isfinite([value, *numbers]).all():
            raise ValueError(f"expected finite numbers, got {dict(run)} as run {place}")
        points.setdefault(value, []).append(numbers)
    if not found:
        raise ValueError("expected at least one run, got none")
    return {
        name: {value: np.array(points[value]) for value in sorted(points)}
        for name, points in found.items()
    }


def _looks(
    methods: Iterable[str], baseline: str, is_all: Mapping[str, bool]
) -> dict[str, dict[str, Any]]:
    """Return colour, marker and line by method: black for all data, grey for the baseline."""
    looks: dict[str, dict[str, Any]] = {}
    place = 0
    for name in methods:
        look: dict[str, Any] = {"capsize": 2, "elinewidth": 1, "linewidth": 1.5, "markersize": 5}
        if is_all[name]:
            look |= {"color": "black", "marker": "*", "markersize": 9}
        elif name == baseline:
            look |= {"color": GREY, "marker": "o", "linestyle": "--", "markerfacecolor": "white"}
        else:
            turn, at = divmod(place, len(CYCLE))
            look |= {"color": CYCLE[at], "marker": MARKERS[at]}
            look |= {"linestyle": ("-", ":", "-.")[turn % 3]}
            place += 1
        looks[name] = look
    return looks


def _summary(points: Points) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return means and standard deviations over the runs of each point, (points, columns) each."""
    means = np.array([runs.mean(0) for runs in points.values()])
    deviations = [runs.std(0, ddof=1) if len(runs) > 1 else 0 * runs[0] for runs in points.values()]
    return means, np.array(deviations)


def _finish(ax: Axes, order: list[str], more: str = "") -> None:
    ax.set_ylabel("test accuracy, %")
    ax.grid(axis="y", color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    bare(ax)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(
        [handles[name] for name in order],
        order,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        title=f"mean ± std{more}",
        alignment="left",
    )
