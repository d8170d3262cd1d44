"""Pictures: the right bars, the right images in the right places, and errors before any drawing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from sage_torch import Selection

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from sage_torch.plots import (  # noqa: E402
    kept_and_dropped,
    overview,
    score_histogram,
    score_histogram_by_class,
    worst,
)

N = 40
SETTINGS = {"rule": "herding", "trim": "negative", "trimmed": 7}
AUTOMATIC = SETTINGS | {"trim": "auto", "trimmed_by_budget": 5, "trimmed_by_noise": 2}


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    pyplot.close("all")


def selection(**changes: Any) -> Selection:
    """Class = i % 2, score rises with i from -0.2 to 1, margin falls, every third example kept."""
    given: dict[str, Any] = {
        "indices": np.arange(0, N, 3),
        "scores": np.linspace(-0.2, 1, N, dtype=np.float32),
        "labels": np.arange(N) % 2,
        "certificate": None,
        "seconds": {},
        "settings": SETTINGS,
        "margins": np.linspace(1, -0.2, N, dtype=np.float32),
    }
    return Selection(**given | changes)


def judged() -> Selection:
    """A selection whose labels are the less likely the nearer they are to example 20."""
    likely = np.abs(np.arange(N) - 20) / 20
    return selection(probabilities=likely.astype(np.float32), settings=AUTOMATIC)


def images(*shape: int) -> TensorDataset:
    """Image i is i throughout, so that what is drawn can be told."""
    values = torch.arange(N, dtype=torch.float32).reshape(N, *[1] * len(shape))
    return TensorDataset(values.expand(N, *shape), torch.arange(N) % 2)


def drawn(ax: Axes) -> list[float]:
    """The mean grey of each image, row by row, from left to right."""
    return [float(np.mean(np.asarray(image.get_array()))) for image in ax.images]


def counted(outline: Any) -> float:
    """The examples under an outline: along its top a bin's height stands at both of its edges."""
    corners = outline.get_xy()
    bins = (len(corners) - 1) // 4
    return float(corners[1 : 2 * bins : 2, 1].sum())


@pytest.mark.parametrize("of", ["scores", "margins"])
def test_histogram_counts_every_example_once(of: Any) -> None:
    ax = score_histogram(selection(), of=of)
    kept, dropped = ax.patches
    trim = ["trim: below 0"] if of == "margins" else []  # the trim does not read scores
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words == ["kept (14)", "dropped (26)", *trim]
    assert ax.get_xlabel().startswith({"scores": "agreement", "margins": "margin"}[of])
    for outline, count in ((kept, 14), (dropped, 26)):
        assert 0 in outline.get_xy()[:, 0]
        assert counted(outline) == pytest.approx(count)
    assert kept.get_edgecolor() != dropped.get_edgecolor()


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": SETTINGS | {"rule": "agreement"}},
        {"settings": SETTINGS | {"trim": None}},
        {"settings": SETTINGS | {"trim": 0.2}},
        {"settings": SETTINGS | {"trimmed": 0}},
        {"settings": {}},
    ],
)
def test_histogram_marks_the_trim_only_where_it_dropped(changes: dict[str, Any]) -> None:
    assert len(score_histogram(selection(**changes), of="margins").lines) == 0
    assert len(score_histogram(selection(), of="margins").lines) == 1


def test_histogram_of_margins_draws_margins() -> None:
    low = np.where(np.arange(N) < 5, -0.9, 0.5).astype(np.float32)
    kept, _ = score_histogram(selection(margins=low, indices=np.arange(5)), of="margins").patches
    assert (kept.get_xy()[:, 0][kept.get_xy()[:, 1] == 5] < -0.8).all()
    assert counted(kept) == pytest.approx(5)


def test_histogram_of_probabilities_draws_probabilities_from_0_to_1() -> None:
    ax = score_histogram(judged(), of="probabilities")
    assert ax.get_xlabel().startswith("probability of the label")
    assert not ax.lines, "no margin was cut"
    for outline, count in zip(ax.patches, (14, 26), strict=True):
        assert counted(outline) == pytest.approx(count)
        places = outline.get_xy()[:, 0]
        assert (places.min(), places.max()) == (0, 1)
    unlikely = dataclasses.replace(judged(), indices=np.arange(16, 25))
    kept, _ = score_histogram(unlikely, of="probabilities").patches
    assert kept.get_xy()[:, 0][kept.get_xy()[:, 1] > 0].max() < 0.25
    figure = score_histogram_by_class(judged(), of="probabilities")
    assert [len(ax.lines) for ax in figure.axes] == [0, 0]
    assert sum(counted(patch) for ax in figure.axes for patch in ax.patches) == N
    assert figure.get_supxlabel() == "probability of the label"


def test_margins_below_0_are_marked_only_where_the_trim_read_margins() -> None:
    assert not score_histogram(judged(), of="margins").lines


def test_histogram_draws_where_it_is_told() -> None:
    _, ax = pyplot.subplots()
    assert score_histogram(selection(), ax) is ax
    assert len(pyplot.get_fignums()) == 1


@pytest.mark.parametrize("score", [1.0, 0.0, -0.3])
def test_histogram_of_equal_scores(score: float) -> None:
    equal = selection(scores=np.full(N, score, np.float32))
    kept, dropped = score_histogram(equal).patches
    assert kept.get_xy()[:, 1].max() == 14
    assert dropped.get_xy()[:, 1].max() == 26


def test_histogram_of_a_selection_without_scores() -> None:
    nothing = selection(scores=np.full(N, np.nan, np.float32), margins=None)
    with pytest.raises(ValueError, match="went by no gradients"):
        score_histogram(nothing)
    for draw in (score_histogram, score_histogram_by_class):
        with pytest.raises(ValueError, match="with margins, got one that went by no gradients"):
            draw(nothing, of="margins")
        with pytest.raises(ValueError, match="with probabilities, got one without classes"):
            draw(selection(), of="probabilities")
        with pytest.raises(ValueError, match='"margins" or "probabilities", got \'losses\''):
            draw(nothing, of="losses")
    assert not pyplot.get_fignums()


def test_histogram_by_class_counts_each_class_on_one_scale() -> None:
    given = selection(indices=np.arange(0, N, 4), labels=np.arange(N) % 4 // 2)
    figure = score_histogram_by_class(given, class_names=("low", "high"))
    low, high = figure.axes
    assert [ax.get_title() for ax in (low, high)] == ["low: 10 of 20", "high: 0 of 20"]
    assert [counted(patch) for patch in (*low.patches, *high.patches)] == [10, 10, 0, 20]
    assert low.get_xlim() == high.get_xlim()
    assert low.get_ylim() == high.get_ylim()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["kept", "dropped"]
    figure = score_histogram_by_class(given, of="margins")
    assert [len(ax.lines) for ax in figure.axes] == [1, 1]  # the trim
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["kept", "dropped", "trim: below 0"]
    assert sum(counted(patch) for ax in figure.axes for patch in ax.patches) == N


def test_histogram_by_class_shows_the_classes_asked_for() -> None:
    many = selection(labels=np.arange(N) % 20)
    assert len(score_histogram_by_class(many).axes) == 10
    shown = score_histogram_by_class(many, classes=[19, 2, 4, 5, 6, 7]).axes
    assert [ax.get_title().split(":")[0] for ax in shown] == ["19", "2", "4", "5", "6", "7"]


def test_histogram_by_class_errors() -> None:
    with pytest.raises(ValueError, match="with labels; use score_histogram"):
        score_histogram_by_class(selection(labels=None))
    with pytest.raises(ValueError, match="went by no gradients"):
        score_histogram_by_class(selection(scores=np.full(N, np.nan, np.float32)))
    with pytest.raises(ValueError, match=r"got \[7\]"):
        score_histogram_by_class(selection(), classes=[7])
    assert not pyplot.get_fignums()


def test_worst_ranks_by_probability() -> None:
    (ax,) = worst(judged(), images(4, 4), 4).axes
    np.testing.assert_allclose(drawn(ax), [2 / 3, 1 / 3, 1, 0], atol=1e-6)  # 20, 19, 21, 18
    assert [text.get_text() for text in ax.texts[::2]] == ["<0.001", "0.050", "0.050", "0.100"]
    assert [text.get_text() for text in ax.texts[1::2]] == [
        f"label {i % 2}" for i in (20, 19, 21, 18)
    ]
    assert ax.get_title() == "lowest label probability of 40 examples, lowest first"


def test_worst_ranks_by_margin() -> None:
    (ax,) = worst(selection(), images(4, 4), 3).axes
    np.testing.assert_allclose(drawn(ax), [1, 0.5, 0])  # the last three, the last one first
    assert [text.get_text() for text in ax.texts[::2]] == ["-0.20", "-0.17", "-0.14"]
    assert ax.get_title() == "lowest margin of 40 examples, lowest first"


def test_worst_of_a_selection_without_margins_ranks_by_agreement() -> None:
    (ax,) = worst(selection(margins=None), images(4, 4), 3).axes
    np.testing.assert_allclose(drawn(ax), [0, 0.5, 1])
    assert ax.get_title() == "lowest agreement of 40 examples, lowest first"


def test_worst_shows_the_lowest_first_with_label_and_truth() -> None:
    labels = np.arange(N) % 2
    truth = labels.copy()
    truth[1] = 0
    rising = selection(margins=np.linspace(-0.3, 1, N, dtype=np.float32))
    figure = worst(rising, images(4, 4), 5, columns=3, truth=truth, class_names=("even", "odd"))
    (ax,) = figure.axes
    np.testing.assert_allclose(drawn(ax), np.arange(5) / 4, atol=1e-6)
    words = [text.get_text() for text in ax.texts]
    assert rising.margins is not None
    assert words[::3] == [f"{margin:.2f}" for margin in rising.margins[:5]]
    assert words[1::3] == ["label even", "label odd", "label even", "label odd", "label even"]
    assert words[2::3] == ["right", "truly even", "right", "right", "right"]
    assert ax.texts[2].get_color() != ax.texts[5].get_color()
    # Two rows: the fourth image stands below the first.
    assert ax.images[3].get_extent()[0] == ax.images[0].get_extent()[0]
    assert ax.images[3].get_extent()[3] > ax.images[0].get_extent()[2]


def test_worst_breaks_ties_by_index_and_shows_no_more_than_there_are() -> None:
    equal = selection(margins=np.zeros(N, np.float32), labels=None)
    (ax,) = worst(equal, images(4, 4), 1_000).axes
    np.testing.assert_allclose(drawn(ax), np.arange(N) / (N - 1), rtol=1e-6)
    assert [text.get_text() for text in ax.texts] == ["0.00"] * N  # no labels to write


def test_words_under_images_do_not_touch() -> None:
    names = ("ankle boot", "ankle boot")
    figure = worst(
        selection(), images(4, 4), truth=1 - np.arange(N) % 2, class_names=names, columns=5
    )
    figure.canvas.draw()
    (ax,) = figure.axes
    boxes = [item.get_window_extent() for item in (*ax.texts, *ax.images)]
    for i, box in enumerate(boxes):
        assert box.y0 >= 0
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_worst_errors() -> None:
    with pytest.raises(ValueError, match="at least one example and one column, got count=0"):
        worst(selection(), images(4, 4), 0)
    with pytest.raises(ValueError, match="columns=0"):
        worst(selection(), images(4, 4), columns=0)
    with pytest.raises(ValueError, match=r"truth of shape \(3,\) and labels of shape \(40,\)"):
        worst(selection(), images(4, 4), truth=[0, 1, 0])
    with pytest.raises(ValueError, match="and labels none"):
        worst(selection(labels=None), images(4, 4), truth=np.zeros(N))
    with pytest.raises(ValueError, match="went by no gradients"):
        worst(selection(scores=np.full(N, np.nan, np.float32), margins=None), images(4, 4))
    with pytest.raises(ValueError, match="40 examples, got 39"):
        worst(selection(), TensorDataset(torch.zeros(N - 1, 4, 4)))
    assert not pyplot.get_fignums()


def test_montage_shows_kept_left_and_dropped_right_by_descending_score() -> None:
    figure = kept_and_dropped(selection(), images(4, 4), columns=3, class_names=("even", "odd"))
    left, right = figure.axes
    assert left.get_title() == "kept"
    assert right.get_title() == "dropped"
    assert [label.get_text() for label in left.get_yticklabels()] == ["even", "odd"]
    # Kept are the multiples of 3; the ends are the extremes of each class, then the median.
    kept = [[36, 18, 0], [39, 21, 3]]
    assert [text.get_text() for text in left.texts] == [
        f"{selection().scores[i]:.2f}" for row in kept for i in row
    ]
    np.testing.assert_allclose(drawn(left), np.ravel(kept) / 39, rtol=1e-6)
    assert drawn(right)[0] == pytest.approx(38 / 39)
    shown = np.array([text.get_text() for text in right.texts], float).reshape(2, 3)
    assert (np.diff(shown) < 0).all()
    assert shown[0, 0] == pytest.approx(selection().scores[38], abs=0.01)
    assert shown[1, 2] == pytest.approx(selection().scores[1], abs=0.01)


def test_montage_cells_do_not_overlap() -> None:
    left = kept_and_dropped(selection(), images(4, 4), columns=4).axes[0]
    boxes = [image.get_extent() for image in left.images]
    for i, (left_1, right_1, bottom_1, top_1) in enumerate(boxes):
        for left_2, right_2, bottom_2, top_2 in boxes[:i]:
            is_beside = right_1 <= left_2 or right_2 <= left_1
            is_above = bottom_1 <= top_2 or bottom_2 <= top_1
            assert is_beside or is_above


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (3, 4, 6), (4, 6, 3), (4, 6, 1)])
def test_montage_reads_every_usual_shape(shape: tuple[int, ...]) -> None:
    first = kept_and_dropped(selection(), images(*shape), columns=2).axes[0].images[0]
    expected = (4, 6, 3) if 3 in shape else (4, 6)
    assert np.asarray(first.get_array()).shape == expected


def test_montage_takes_pixels_of_any_range_and_kind() -> None:
    whole = TensorDataset((torch.arange(N, dtype=torch.uint8))[:, None, None].expand(N, 4, 4))
    constant = TensorDataset(torch.full((N, 4, 4), -3.0))
    for dataset in (whole, constant):
        greys = drawn(kept_and_dropped(selection(), dataset).axes[0])
        assert min(greys) >= 0
        assert max(greys) <= 1


def test_montage_of_a_short_class_leaves_places_empty() -> None:
    labels = np.zeros(N, np.int64)
    labels[3] = 7
    short = selection(labels=labels)
    left, right = kept_and_dropped(short, images(4, 4), columns=5).axes
    assert len(left.images) == 5 + 1
    assert len(right.images) == 5
    assert [label.get_text() for label in left.get_yticklabels()] == ["0", "7"]


def test_montage_without_labels_has_one_row_and_without_scores_no_order() -> None:
    plain = selection(labels=None, scores=np.full(N, np.nan, np.float32))
    left, right = kept_and_dropped(plain, images(4, 4), columns=3).axes
    assert len(left.images) == len(right.images) == 3
    assert not left.texts
    assert left.get_xlabel() == ""


def test_montage_shows_ten_classes_unless_told_which() -> None:
    many = selection(labels=np.arange(N) % 20)
    left = kept_and_dropped(many, images(4, 4), columns=1).axes[0]
    assert [label.get_text() for label in left.get_yticklabels()] == [str(c) for c in range(10)]
    left = kept_and_dropped(many, images(4, 4), columns=1, classes=[19, 2]).axes[0]
    assert [label.get_text() for label in left.get_yticklabels()] == ["19", "2"]


def test_montage_errors() -> None:
    with pytest.raises(ValueError, match="40 examples, got 39"):
        kept_and_dropped(selection(), TensorDataset(torch.zeros(N - 1, 4, 4)))
    with pytest.raises(ValueError, match=r"expected images of shape .*, got \(5,\)"):
        kept_and_dropped(selection(), TensorDataset(torch.zeros(N, 5)))
    with pytest.raises(ValueError, match=r"labels that occur in the data, got \[5\]"):
        kept_and_dropped(selection(), images(4, 4), classes=[0, 5])
    with pytest.raises(ValueError, match="made without labels"):
        kept_and_dropped(selection(labels=None), images(4, 4), classes=[0])
    with pytest.raises(ValueError, match="at least one column, got 0"):
        kept_and_dropped(selection(), images(4, 4), columns=0)


def test_overview_holds_both_and_no_words_touch() -> None:
    names = ("a rather long name", "odd")
    figure = overview(selection(), images(4, 4), class_names=names)
    montage_left, montage_right, histogram = figure.axes
    assert montage_left.get_title() == "kept"
    assert histogram.get_legend() is not None
    assert figure.get_suptitle() == "14 of 40 examples kept by herding"
    figure.canvas.draw()
    boxes = [ax.get_tightbbox() for ax in (montage_left, montage_right, histogram)]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:i])
