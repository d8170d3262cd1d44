"""The page says which examples it shows where it asks to look at them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from sage_torch import Selection
from sage_torch.report import page

N = 2_500


class Items(Dataset[Any]):
    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return self.item, index % 2


@pytest.mark.parametrize("of", ["margins", "probabilities"])
@pytest.mark.parametrize(
    "item", [torch.rand(1, 6, 6), torch.rand(3), "text"], ids=["picture", "numbers", "text"]
)
def test_the_labels_to_check_are_named_by_index(item: Any, of: str) -> None:
    values = np.linspace(0.1, 1, N, dtype=np.float32)
    worst = [2_017, 1_204, 33]
    values[worst] = [0.01, 0.02, 0.03]
    selection = Selection(
        indices=np.arange(0, N, 5),
        scores=np.linspace(-1, 1, N, dtype=np.float32),
        labels=np.arange(N) % 2,
        certificate=None,
        seconds={},
        margins=values if of == "margins" else values[::-1].copy(),
        probabilities=values if of == "probabilities" else None,
    )
    text = page(selection, Items(item))
    lowest = text[text.index("Labels to check") : text.index("Near duplicates")]
    named = re.findall(r"<span>example (\d+)</span>", lowest)
    assert named[:3] == ["2017", "1204", "33"]
    assert len(named) == 12
