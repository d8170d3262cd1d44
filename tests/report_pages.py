"""Pages of a report, read as a browser reads them, and the selection that they show."""

from __future__ import annotations

import dataclasses
from functools import cache
from html.parser import HTMLParser
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from sage_torch import Selection, select_subset

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Read(HTMLParser):
    """A page as a browser sees it: text, elements, what it would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(text: str) -> Read:
    """Read a page and hold it to what every page must be."""
    found = Read(text)
    assert found.open == [], "an element is not closed"
    assert not {"script", "iframe", "object", "embed", "link"} & {tag for tag, _ in found.elements}
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            is_table = tag == "a" and name == "href" and value == "subset.csv"
            assert is_table or value is None or value.startswith(("data:image/png;base64,", "#"))
    assert "url(http" not in text
    return found


class Items(Dataset[Any]):
    """What `of(index, label)` makes of each of 90 examples."""

    def __init__(self, of: Any) -> None:
        self.of, self.read = of, 0

    def __len__(self) -> int:
        return 90

    def __getitem__(self, index: int) -> Any:
        self.read += 1
        return self.of(index, index % 3)


@cache
def selected() -> Selection:
    """A quarter of 90 examples of three classes, trimmed by margins."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    inputs = 2 * torch.randn(3, 6, generator=generator)[labels]
    inputs = inputs + torch.randn(90, 6, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    data = TensorDataset(inputs, labels)
    return select_subset(model, data, 0.25, trim="negative", progress=False)


def judged_by_features() -> Selection:
    """The selection as `trim="auto"` would leave it: a probability of each label."""
    return dataclasses.replace(
        selected(),
        probabilities=np.random.default_rng(0).permutation(90).astype(np.float32) / 90,
        settings=selected().settings
        | {"trim": "auto", "rho": 0.04, "trimmed_by_budget": 5, "trimmed_by_noise": 2},
    )
