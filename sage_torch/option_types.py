"""The options of a selection as a type checker sees them; `options.py` says what they mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

from numpy.typing import NDArray
from torch import Tensor

from sage_torch.gradients.computer import GradientChoice
from sage_torch.gradients.loss import LossFunction
from sage_torch.gradients.parameters import ParameterChoice

Rule = Literal["herding", "agreement", "random"]
Quotas = Literal["proportional", "equal"]
ConsensusMode = Literal["auto", "exact", "streaming", "one_pass"]
Draw = Literal["fixed", "rotate", "random"]
Duplicates = Literal["keep", "drop"]
Collate = Callable[[list[Any]], Any]
LabelChoice = str | Sequence[int] | NDArray[Any] | Tensor | Callable[[Any], Any] | None


class SelectionOptions(TypedDict, total=False):
    """The same options for a type checker; a test compares both lists."""

    rule: Rule
    draw: Draw
    trim: Literal["auto", "negative"] | float | None
    labels: LabelChoice
    class_balanced: Literal["auto"] | bool
    quotas: Quotas
    sketch_size: int | Literal["auto"] | None
    gradients: GradientChoice
    params: ParameterChoice | None
    compress: Literal["auto"] | int | None
    consensus: ConsensusMode
    memory_budget: int
    duplicates: Duplicates
    keep_coordinates: bool
    loss: LossFunction | None
    collate_fn: Collate | None
    batch_size: int
    num_workers: int
    progress: bool
    shards: int | None
    distributed: bool
    checkpoint: str | os.PathLike[str] | None


class SeededOptions(SelectionOptions, total=False):
    """With the seed, which `SageSampler` takes as an argument of its own."""

    seed: int
