"""The report in a real browser: readable on a phone and on a desk, by day and by night."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image as picture_files
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from sage_torch import Selection, select_subset
from sage_torch.report import write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
WIDTHS = (390, 1280)
LONG = "anunbrokenwordthatislongerthanthescreenofanytelephone" * 4

pytestmark = pytest.mark.skipif(not BROWSER, reason="needs Chromium")

# Measures each page in frames of each width, which we may read: the pages have no script.
MEASURE = """<body><script>
const look = frame => {
  const page = frame.contentDocument, root = page.documentElement;
  const seen = [...page.querySelectorAll("main, main *")].filter(e => !e.closest("svg, details"));
  const words = seen.filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()));
  return {
    page: root.scrollWidth, window: frame.clientWidth,
    furthest: Math.max(...seen.map(e => e.getBoundingClientRect().right)),
    smallest: Math.min(...words.map(
      e => parseFloat(frame.contentWindow.getComputedStyle(e).fontSize))),
    chart: Math.min(...[...page.querySelectorAll(".charts svg text")].map(
      e => e.getBoundingClientRect().height)),
    columns: new Set([...page.querySelectorAll(".charts .card")].map(
      e => Math.round(e.getBoundingClientRect().left))).size,
    broken: [...page.images].filter(i => !i.complete || !i.naturalWidth).length,
    images: page.images.length,
  };
};
addEventListener("load", () => {
  document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
});
</script>
"""


class Items(Dataset[Any]):
    """What `of(index)` makes of each example."""

    def __init__(self, total: int, of: Any) -> None:
        self.total, self.of = total, of

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Any:
        return self.of(index)


@pytest.fixture(scope="module")
def selection(digits: tuple[TensorDataset, TensorDataset]) -> Selection:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    made = select_subset(model, digits[0], 0.25, sketch_size=16, progress=False)
    made.settings["command"] = ["python", "-m", "sage_torch", "select", "--dataset", LONG]
    made.settings["gradients"] = LONG
    return made


@pytest.fixture(scope="module")
def pages(
    selection: Selection,
    digits: tuple[TensorDataset, TensorDataset],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Pages with pictures, with texts, and with nothing but the selection."""
    folder, total = tmp_path_factory.mktemp("pages"), len(selection.scores)
    inputs = digits[0].tensors[0]
    data = {
        "pictures": Items(total, lambda i: inputs[i].view(8, 8)),
        "texts": Items(total, lambda i: {"text": f"example {i} <b>of</b> {LONG}"}),
        "bare": None,
    }
    names = [f"class {label}" for label in range(9)] + [LONG]
    for name, dataset in data.items():
        write_report(selection, folder / f"{name}.html", dataset, class_names=names)
    return {name: folder / f"{name}.html" for name in data}


def browse(*arguments: str) -> str:
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *arguments],
        capture_output=True, encoding="utf-8", timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.fixture(scope="module")
def measured(pages: dict[str, Path]) -> dict[tuple[str, int], dict[str, float]]:
    """By page and width: how the browser laid it out."""
    places = [(name, width) for name in pages for width in WIDTHS]
    frames = "".join(
        f'<iframe width="{width}" height="2000" style="border: 0" '
        f'srcdoc="{html.escape(pages[name].read_text(encoding="utf-8"))}"></iframe>'
        for name, width in places
    )
    path = next(iter(pages.values())).with_name("measure.html")
    path.write_text(f"<!DOCTYPE html>{MEASURE}{frames}", encoding="utf-8")
    dom = browse("--dump-dom", path.as_uri())
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None, dom[:500]
    return dict(zip(places, json.loads(html.unescape(title[1])), strict=True))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["pictures", "texts", "bare"])
def test_nothing_is_wider_than_the_screen(
    name: str, width: int, measured: dict[tuple[str, int], dict[str, float]]
) -> None:
    found = measured[name, width]
    assert found["window"] == width
    assert found["page"] == width
    assert found["furthest"] <= width
    assert found["images"] == (120 + 12 if name == "pictures" else 0)
    assert found["broken"] == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_words_are_large_enough_to_read(
    width: int, measured: dict[tuple[str, int], dict[str, float]]
) -> None:
    found = measured["pictures", width]
    assert found["smallest"] >= 12
    assert found["chart"] >= 9, "the words in the charts"
    assert found["columns"] == (1 if width == 390 else 3)


def screenshot(page: Path, width: int, *arguments: str) -> NDArray[np.float32]:
    target = page.with_name(f"{page.stem}-{width}{len(arguments)}.png")
    browse(*arguments, f"--window-size={width},2400", f"--screenshot={target}", page.as_uri())
    picture: NDArray[np.float32] = picture_files.imread(target)[..., :3]
    return picture


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_shows_its_colours(width: int, pages: dict[str, Path]) -> None:
    picture = screenshot(pages["pictures"], width)
    assert picture.shape == (2400, width, 3)
    assert picture[0, 0].min() > 0.95, "light"
    for colour in ((0x00, 0x72, 0xB2), (0xC6, 0x51, 0x02)):  # kept, dropped
        near = np.abs(picture - np.array(colour) / 255).max(axis=2) < 0.02
        assert near.sum() > 500
    rows = (picture.std(axis=(1, 2)) > 0.02).mean()
    assert rows > 0.5, "most of the page is empty"


def test_by_night_it_is_dark(pages: dict[str, Path]) -> None:
    picture = screenshot(pages["bare"], 390, "--blink-settings=preferredColorScheme=0")
    assert picture[0, 0].max() < 0.15
    bright = (picture.min(axis=2) > 0.75).mean()
    assert 0.005 < bright < 0.2, "words are light"
