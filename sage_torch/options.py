"""What a selection can be asked for, checked before any work starts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, get_args

from torch.utils.data import Dataset, IterableDataset

from sage_torch.gradients.choice import check_choice
from sage_torch.gradients.computer import GradientChoice
from sage_torch.gradients.loss import LossFunction
from sage_torch.gradients.parameters import ParameterChoice

Rule = Literal["herding", "facility_location", "agreement", "stratified", "weighted", "random"]
Basis = Literal["weighted", "orthonormal"]
Quotas = Literal["proportional", "equal"]
ConsensusMode = Literal["auto", "exact", "streaming", "one_pass"]
Draw = Literal["fixed", "rotate", "random"]
STREAMED = ("herding", "facility_location")  # compare examples with each other, block by block
Collate = Callable[[list[Any]], Any]
FIRST_ROWS = 64  # of a sketch that chooses its size (see sketch_growth.py)


class SelectionOptions(TypedDict, total=False):
    """Keyword options of `SageSampler` that go to `select_subset`; documented there."""

    rule: Rule
    draw: Draw
    weights: bool
    trim: Literal["negative"] | float | None
    basis: Basis
    class_balanced: Literal["auto"] | bool
    quotas: Quotas
    sketch_size: int | Literal["auto"]
    gradients: GradientChoice
    params: ParameterChoice | None
    compress: Literal["auto"] | int | None
    consensus: ConsensusMode
    memory_budget: int
    loss: LossFunction | None
    score_dataset: Dataset[Any] | None
    collate_fn: Collate | None
    batch_size: int
    num_workers: int
    progress: bool
    shards: int | None
    distributed: bool
    checkpoint: str | os.PathLike[str] | None
    checkpoint_every: float


@dataclass(frozen=True)
class Options:
    """The same options with their defaults, checked on construction."""

    keep: float
    rule: Rule = "herding"
    draw: Draw = "fixed"
    weights: bool = False
    trim: Literal["negative"] | float | None = "negative"
    basis: Basis = "weighted"
    class_balanced: Literal["auto"] | bool = "auto"
    quotas: Quotas = "proportional"
    sketch_size: int | Literal["auto"] = 64
    gradients: GradientChoice = "auto"
    params: ParameterChoice | None = None
    compress: Literal["auto"] | int | None = "auto"
    consensus: ConsensusMode = "auto"
    memory_budget: int = 2**30
    loss: LossFunction | None = None
    score_dataset: Dataset[Any] | None = None
    collate_fn: Collate | None = None
    batch_size: int = 256
    num_workers: int = 0
    seed: int = 0
    progress: bool = True
    shards: int | None = None
    distributed: bool = True
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: float = 30.0

    def __post_init__(self) -> None:
        _check_keep(self.keep)
        _one_of("rule", self.rule, *get_args(Rule))
        _one_of("draw", self.draw, *get_args(Draw))
        self._check_draw_and_weights()
        _one_of("basis", self.basis, "weighted", "orthonormal")
        _one_of("quotas", self.quotas, "proportional", "equal")
        check_choice(self.gradients, self.params)
        _check_params(self.params)
        _one_of("consensus", self.consensus, *get_args(ConsensusMode))
        if self.class_balanced != "auto" and not isinstance(self.class_balanced, bool):
            raise ValueError(
                f'expected class_balanced "auto", True or False, got {self.class_balanced!r}'
            )
        if self.trim not in ("negative", None) and not (
            _is_number(self.trim, Real) and 0 <= float(self.trim) < 1
        ):
            raise ValueError(
                'expected trim "negative" (drop negative margins), a share in [0, 1) or None, '
                f"got {self.trim!r}"
            )
        if self.compress not in ("auto", None):
            _at_least(1, "compress", self.compress, '"auto", None or a number of coordinates')
        if self.sketch_size != "auto":
            _at_least(1, "sketch_size", self.sketch_size, '"auto" or a whole number')
            object.__setattr__(self, "sketch_size", int(self.sketch_size))
        _at_least(1, "memory_budget", self.memory_budget, "a number of bytes")
        _at_least(1, "batch_size", self.batch_size)
        _at_least(0, "num_workers", self.num_workers)
        _at_least(0, "seed", self.seed)
        if self.seed >= 2**63:
            raise ValueError(f"expected a seed below 2**63, got {self.seed}")
        for name in ("memory_budget", "batch_size", "num_workers", "seed"):
            object.__setattr__(self, name, int(getattr(self, name)))  # of NumPy's integers, too
        for name in ("loss", "collate_fn"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"expected {name} to be callable, got {getattr(self, name)!r}")
        if self.score_dataset is not None:
            count_examples(self.score_dataset, "score_dataset")
        self._check_shards_and_checkpoint()

    def _check_shards_and_checkpoint(self) -> None:
        if self.shards is not None:
            _at_least(1, "shards", self.shards, "a whole number or None")
        if not isinstance(self.distributed, bool):
            raise TypeError(f"expected distributed to be True or False, got {self.distributed!r}")
        if self.checkpoint is not None:
            if not isinstance(self.checkpoint, (str, os.PathLike)):
                raise TypeError(
                    f"expected checkpoint to be a folder or None, got {self.checkpoint!r}"
                )
            object.__setattr__(self, "checkpoint", os.fspath(self.checkpoint))
        every = self.checkpoint_every
        if not _is_number(every, Real):
            raise TypeError(f"expected checkpoint_every in seconds, got {every!r}")
        if not 0 <= float(every) < math.inf:
            raise ValueError(f"expected checkpoint_every of at least 0 seconds, got {every}")

    def _check_draw_and_weights(self) -> None:
        if self.draw != "fixed" and self.rule not in ("herding", "random"):
            raise ValueError(
                f'expected rule "herding" or "random" with draw="{self.draw}", got '
                f'rule="{self.rule}": the other rules choose one subset; pass draw="fixed"'
            )
        if not isinstance(self.weights, bool):
            raise TypeError(f"expected weights to be True or False, got {self.weights!r}")
        if self.weights and self.rule == "random":
            raise ValueError(
                'expected weights=False with rule="random", got True: random examples stand for '
                "no neighbours; choose another rule"
            )
        if self.weights and self.draw != "fixed":
            raise ValueError(
                f'expected draw="fixed" with weights=True, got draw="{self.draw}": weights belong '
                "to one subset"
            )
        if self.consensus == "streaming":
            self._check_streamed_weights()

    def _check_streamed_weights(self) -> None:
        if self.weights and self.rule not in STREAMED:
            raise ValueError(
                f'expected weights=False with rule="{self.rule}" in streaming mode, which keeps no '
                'coordinates, got True: pass consensus="exact" (and a memory_budget that allows '
                'it), or rule="herding" or "facility_location"'
            )

    @property
    def first_rows(self) -> int:
        """Rows that a sketch begins with."""
        return FIRST_ROWS if self.sketch_size == "auto" else self.sketch_size

    def is_streaming(self, total: int) -> bool:
        """Return whether a data set of `total` examples is scored in streaming mode.

        Raises:
            ValueError: It is, and weights are asked for of a rule that would need all coordinates.
        """
        needed = 4 * total * self.first_rows
        is_streaming = self.consensus == "streaming" or (
            self.consensus == "auto" and needed > self.memory_budget
        )
        if is_streaming:
            self._check_streamed_weights()
        return is_streaming

    def number_of_shards(self, total: int, *, is_group: bool) -> int:
        """Return the number of shards of `total` examples, alone or in a process group."""
        if self.shards is not None:
            return int(self.shards)
        return min(8, total) if is_group else 1

    def as_json(self) -> dict[str, Any]:
        """Return what can be written down: callables and data sets by name."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def checked(options: SelectionOptions, *, keep: float, seed: int) -> Options:
    """Return the options of a selection.

    Raises:
        TypeError: One is unknown, or of a wrong kind.
        ValueError: One is out of range, or does not go with another.
    """
    unknown = set(options) - set(SelectionOptions.__annotations__)
    if unknown:
        raise TypeError(
            f"unknown option {', '.join(map(repr, sorted(unknown)))}; expected some of "
            f"{', '.join(sorted(SelectionOptions.__annotations__))}"
        )
    return Options(keep=keep, seed=seed, **options)


def budget(keep: float, total: int) -> int:
    """Return `k`, the number of examples to keep: `round(keep * N)`, or the count itself.

    Args:
        keep: A share in (0, 1], or a count from 1 to `total`.
        total: Number of examples N.

    Returns:
        k, with Python's rounding (half to even).

    Raises:
        ValueError: The count exceeds `total`, or the share rounds to 0.
    """
    _check_keep(keep)
    if isinstance(keep, Integral):
        if keep > total:
            raise ValueError(
                f"expected to keep at most {total} examples (all there are), got keep={keep}"
            )
        return int(keep)
    k = round(float(keep) * total)
    if k == 0:
        raise ValueError(
            f"expected to keep at least one example, but keep={keep} of {total} rounds to 0; keep "
            f"at least {1 / total:.2g}, or give a count"
        )
    return k


def count_examples(dataset: object, name: str = "dataset") -> int:
    """Return `len(dataset)` of a map-style data set with at least one example.

    Raises:
        TypeError: An `IterableDataset`, or no data set at all.
        ValueError: It is empty.
    """
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"expected a map-style {name} with len() and indices, got the IterableDataset "
            f"{type(dataset).__name__}: a stream has no examples to come back to; filter it with "
            "sage_torch.SageStream, or load it into a map-style data set first"
        )
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"expected a map-style {name} with __getitem__ and __len__, got "
            f"{type(dataset).__name__}"
        )
    total = len(dataset)
    if total == 0:
        raise ValueError(f"expected a {name} with at least one example, got an empty one")
    return total


def count_both(dataset: object, score_dataset: object | None) -> int:
    """Return the number of examples of a data set and of its other view, which must agree.

    Raises:
        TypeError: One is not a map-style data set.
        ValueError: One is empty, or they differ in length.
    """
    total = count_examples(dataset)
    if score_dataset is not None and count_examples(score_dataset, "score_dataset") != total:
        raise ValueError(
            f"expected score_dataset to hold the same {total} examples as the data set, got "
            f"{count_examples(score_dataset)}"
        )
    return total


def _check_keep(keep: object) -> None:
    wanted = "expected keep to be a share in (0, 1] or a count of at least 1, got "
    if isinstance(keep, bool) or not isinstance(keep, (Integral, Real)):
        raise TypeError(f"{wanted}{keep!r}")
    if isinstance(keep, Integral):
        if keep < 1:
            raise ValueError(f"{wanted}{keep!r}")
    elif math.isnan(keep) or not 0 < float(keep) <= 1:
        raise ValueError(f"{wanted}{keep!r}")


def _check_params(params: object) -> None:
    is_names = isinstance(params, (list, tuple, set, frozenset)) and all(
        isinstance(name, str) for name in params
    )
    if not (params is None or isinstance(params, str) or is_names or callable(params)):
        raise TypeError(
            "expected params to be a name, names or patterns, a predicate (name, parameter) -> "
            f"bool, or None, got {params!r}"
        )


def _plain(value: object) -> str | int | float | bool | list[str] | None:
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return sorted(map(str, value))
    return getattr(value, "__name__", type(value).__name__)


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _one_of(name: str, value: object, *allowed: str) -> None:
    if value not in allowed:
        words = ", ".join(f'"{word}"' for word in allowed)
        raise ValueError(f"expected {name} to be one of {words}, got {value!r}")


def _at_least(least: int, name: str, value: object, what: str = "a whole number") -> None:
    if not _is_number(value, Integral):
        raise TypeError(f"expected {name} to be {what}, got {value!r}")
    if int(value) < least:  # type: ignore[call-overload]
        raise ValueError(f"expected {name} of at least {least}, got {value}")
