"""Small but faithful models of every kind, each with a batch and a loss."""

from __future__ import annotations

import pytest

from zoo.bare import BARE
from zoo.case import Case
from zoo.inputs import INPUTS
from zoo.layers import LAYERS
from zoo.odd import ODD
from zoo.parameters import PARAMETERS
from zoo.sequences import SEQUENCES
from zoo.vision import VISION

__all__ = ["ZOO", "Case", "case", "zoo"]

ZOO: list[Case] = [*VISION, *LAYERS, *SEQUENCES, *BARE, *INPUTS, *PARAMETERS, *ODD]

zoo = pytest.mark.parametrize("case", ZOO, ids=[entry.name for entry in ZOO])


def case(name: str) -> Case:
    """Return the entry of that name."""
    return next(entry for entry in ZOO if entry.name == name)
