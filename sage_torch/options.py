"""The options of a selection: each is written once, with its default, its help and its check.

`select_subset`'s documentation, the flags of `python -m sage_torch select` and the fingerprint of a
selection are read off the fields of `Options`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np

from sage_torch.checks import (
    auto_or_truth,
    folder_given,
    keep_in_range,
    labels_given,
    one_of,
    shown,
    trim_in_range,
    truth,
    whole_number,
)
from sage_torch.gradients.choice import check_choice
from sage_torch.gradients.computer import GradientChoice
from sage_torch.gradients.loss import LossFunction
from sage_torch.gradients.parameters import ParameterChoice, check_params
from sage_torch.option_types import (
    Collate,
    ConsensusMode,
    Draw,
    Duplicates,
    LabelChoice,
    Quotas,
    Rule,
)

GivenAs = Literal["value", "switch", "object", "folder", "names"]


def _option(
    default: Any, text: str, *, given_as: GivenAs = "value", names_subset: bool = True
) -> Any:
    """Return the field of an option.

    Args:
        default: Its default.
        text: Its help; the command line shows the first sentence.
        given_as: How the command line takes it.
        names_subset: Whether another value may give another subset, and is not seen otherwise.
    """
    about = {"help": " ".join(text.split()), "given_as": given_as, "names_subset": names_subset}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Options:
    """All options of a selection, checked when they are made.

    Raises:
        TypeError: A value is of a wrong kind.
        ValueError: A value is out of range, or two do not go together.
    """

    keep: float
    rule: Rule = _option(
        "herding",
        """How scores become a subset: herding, agreement or random. `"herding"` takes greedy kernel
        herding in each class: it covers the class. `"agreement"` is the paper's rule, the k highest
        scores: the most typical examples, without cover. `"random"` is the baseline and computes no
        gradients.""",
    )
    draw: Draw = _option(
        "fixed",
        """What each epoch sees: fixed, rotate or random. `"fixed"` is one subset. `"rotate"` is a
        new subset each epoch. With trim "auto" and classes, each example comes as often as it is
        worth it: what is probably wrong less often, what is hard more often at first; with
        gradients "auto" it takes a forward pass and no sketch then, and there are scores only where
        coordinates or a checkpoint need them. Otherwise it is the herding order of the untrimmed
        examples in windows, so that each one is seen within a turn. `"random"` draws a new random
        subset of the untrimmed each epoch. The last two need rule "herding" or "random". See
        `Selection.epoch_indices`.""",
    )
    trim: Literal["auto", "negative"] | float | None = _option(
        "auto",
        """What is dropped before the rule chooses: auto, negative, a share of each class, or none.
        `"auto"` reads off the model's features how probable each label is: those that are probably
        wrong go, and at small budgets what is hard; herding then prefers what is left to learn.
        Without features it is `"negative"`: examples with a negative margin go, which oppose
        another class more than twice as much as they agree with their own. Without at least two
        classes both drop nothing. A share drops the lowest margins of each class. The quota always
        stays. The rules "agreement" and "random" do not trim.""",
    )
    labels: LabelChoice = _option(
        "auto",
        """The class of each example: auto, none, a field of the batch or MODULE:NAME. An array of
        N whole numbers, the name of a batch's key or attribute, or a callable `batch -> (n,)`. None
        says that there are no classes. `"auto"` takes `"labels"` of a mapping or object, or a
        tuple's first element after the inputs with one value per example: whole numbers, or
        floats that are all 0 or 1. With a loss of your own it then looks whether they
        are classes; `settings["classes_because"]` says what it found.""",
    )
    class_balanced: Literal["auto"] | bool = _option(
        "auto",
        """Whether quotas go by class: auto, true or false. `"auto"`: where there are classes.
        Consensus and margins go by class in any case.""",
    )
    quotas: Quotas = _option(
        "proportional",
        """How the budget is shared among classes: proportional or equal. Use `"equal"` for long
        tails; the other classes get what a short class cannot give.""",
    )
    sketch_size: int | Literal["auto"] | None = _option(
        None,
        """Rows l of the sketch, or auto. None is 64; beside features, which herding then compares,
        too, it is 16, or twice the number of logits up to 64. `"auto"` begins with 64 rows. It
        doubles them, up to 512 and within `memory_budget`, as long as the sketch has lost over a
        quarter of the energy of the first 8 l examples of the first shard.
        `settings["sketch_rows"]` says how many it took.""",
    )
    gradients: GradientChoice = _option(
        "auto",
        """Which gradients: auto, functional, projected, last_layer or a computer of your own.
        `"auto"` takes `"last_layer"`, for a forward pass, where `trim="auto"` finds classes and a
        Linear layer that makes the logits; else `"functional"` (exact) up to 8,192 parameters,
        `"projected"` (the whole network, cheaper than a training step) above. For your own see
        `sage_torch.gradients`.""",
    )
    params: ParameterChoice | None = _option(
        None,
        """Parameters to take gradients of. Names or patterns (`"blocks.11.*"`), a predicate `(name,
        parameter) -> bool`, or None for all that require grad.""",
        given_as="names",
    )
    compress: Literal["auto"] | int | None = _option(
        "auto",
        """Count sketch of gradients longer than auto (8,192) or this many coordinates, or none.
        None takes gradients as they are.""",
    )
    consensus: ConsensusMode = _option(
        "auto",
        """When the consensus is taken: auto, exact, streaming or one_pass. `"exact"` keeps N x l
        numbers on the host. `"streaming"` scores at once with a consensus carried along in pass 1;
        its memory grows with N by scores, margins, labels and indices only: at keep=0.25 by about
        24 bytes per example with herding and 45 with a draw, and 16 more with `trim="auto"`.
        `"auto"` is exact while its numbers fit `memory_budget`. `"one_pass"` asks for one gradient
        per example instead of two: every example's coordinates are carried along with the sketch,
        so that scores are those under a sketch that grew meanwhile (benchmarks/RESULTS.md says how
        near they come). Where the sketch keeps little of the energy, as with an untrained model
        (see `certificate.energy_kept`), they have nothing to do with the exact ones;
        `certificate.consensus_cosine` is NaN then, because the exact consensus is not known.
        `"exact"` and `"one_pass"` hold 4 l bytes per example whatever `memory_budget` is.""",
    )
    memory_budget: int = _option(
        2**30,
        """Bytes for gradients held at once. With consensus "auto" also for exact scoring, and then
        for the factors of last-layer gradients, which save a reading.""",
    )
    duplicates: Duplicates = _option(
        "keep",
        """Whether near duplicates may be in the subset: keep or drop. `"drop"` lets in one of each
        kind, by the coordinates that the rule compares, within a class. It needs
        `sage-torch[duplicates]`, holds coordinates as `keep_coordinates` does, and applies the rule
        twice. See `Selection.find_duplicates`.""",
    )
    keep_coordinates: bool = _option(
        False,
        """Whether the selection keeps what its rule reads, for `Selection.recut` and
        `Selection.find_weights`. As float16: 2 l bytes an example for l sketched numbers, and 2
        more for each of up to 64 of its features; on every rank, in every mode, and in a saved
        file.""",
        given_as="switch",
    )
    loss: LossFunction | None = _option(
        None,
        """A function loss(model, batch) -> (n,). It gives one loss per example. None takes the
        cross-entropy of integer class or token targets, and what Hugging Face models train on.""",
        given_as="object",
    )
    collate_fn: Collate | None = _option(
        None,
        """How examples become a batch. None for torch's default.""",
        given_as="object",
        names_subset=False,
    )
    batch_size: int = _option(
        256,
        """Examples scored at once. It does not change the result beyond rounding.""",
        names_subset=False,
    )
    num_workers: int = _option(0, """Worker processes that read the data.""", names_subset=False)
    seed: int = _option(0, """Names the compression, the reading order and every draw.""")
    progress: bool = _option(
        True,
        """Whether to show a progress bar on a pass that takes over two seconds.""",
        given_as="switch",
        names_subset=False,
    )
    shards: int | None = _option(
        None,
        """Contiguous parts that the data set is cut into. They are sketched apart and merged in a
        fixed tree; in streaming mode herding covers each by itself, too. The subset depends on
        their number and not on who shares them. None: 8 in a process group (N, if fewer), else
        1.""",
    )
    distributed: bool = _option(
        True,
        """Whether the ranks of torch.distributed's default process group share the shards. All must
        call this together then, with one model. All get the same selection, and all raise when one
        fails (within a day, when one hangs). Buffers are rank 0's meanwhile.""",
        given_as="switch",
        names_subset=False,
    )
    checkpoint: str | os.PathLike[str] | None = _option(
        None,
        """A folder for snapshots of this one selection. The ranks share it. After a kill, the same
        call resumes and gives the same subset; once it is finished there, the call returns at once.
        The same means: the model, the options, the data set's length, its labels (where `targets`,
        `labels` or a TensorDataset hold them) and 16 examples with their gradients. A snapshot is
        written every 30 seconds of the passes; merging shards and the rule have none. Where reading
        an example draws random numbers, the parts read before and after a kill draw other ones than
        in one go.""",
        given_as="folder",
        names_subset=False,
    )

    def __post_init__(self) -> None:
        keep_in_range(self.keep)
        one_of("rule", self.rule, get_args(Rule))
        one_of("draw", self.draw, get_args(Draw))
        if self.draw != "fixed" and self.rule == "agreement":
            raise ValueError(
                f'expected rule "herding" or "random" with draw="{self.draw}", got '
                f'rule="{self.rule}": it chooses one subset; pass draw="fixed"'
            )
        one_of("quotas", self.quotas, get_args(Quotas))
        check_choice(self.gradients, self.params)
        check_params(self.params)
        one_of("consensus", self.consensus, get_args(ConsensusMode))
        auto_or_truth("class_balanced", self.class_balanced)
        trim_in_range(self.trim)
        object.__setattr__(self, "labels", labels_given(self.labels))
        if self.labels is None and self.class_balanced is True:
            raise ValueError(
                "expected labels with class_balanced=True, got labels=None, which says that there "
                'are no classes; pass class_balanced="auto", or say which labels'
            )
        one_of("duplicates", self.duplicates, get_args(Duplicates))
        truth("keep_coordinates", self.keep_coordinates)
        if self.rule == "random" and (self.keep_coordinates or self.duplicates == "drop"):
            raise ValueError(
                'expected keep_coordinates=False and duplicates="keep" with rule="random", which '
                "computes no coordinates; choose another rule"
            )
        if self.compress not in ("auto", None):
            self._whole("compress", 1, '"auto", None or a number of coordinates')
        if self.sketch_size not in ("auto", None):
            self._whole("sketch_size", 1, '"auto", None or a whole number')
        self._whole("memory_budget", 1, "a number of bytes")
        self._whole("batch_size", 1)
        self._whole("num_workers", 0)
        self._whole("seed", 0)
        called = {
            "loss": "loss(model, batch), which returns one loss per example, shape (n,)",
            "collate_fn": "a function of a list of examples, which returns a batch",
        }
        for name, how in called.items():
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise TypeError(f"expected {name} to be callable, got {shown(given)}; pass {how}")
        if self.shards is not None:
            self._whole("shards", 1, "a whole number or None")
        truth("distributed", self.distributed)
        object.__setattr__(self, "checkpoint", folder_given("checkpoint", self.checkpoint))

    @classmethod
    def given(cls, **options: Any) -> Options:
        """Return the options given by name.

        Raises:
            TypeError, ValueError: As the class; an unknown name, with those that there are.
        """
        known = [each.name for each in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            names = ", ".join(map(repr, unknown))
            raise TypeError(f"unknown option {names}; expected some of {', '.join(known)}")
        return cls(**options)

    def _whole(self, name: str, least: int, wanted: str = "a whole number") -> None:
        """Check a whole number and keep it as an int: it may be one of NumPy's."""
        number = whole_number(name, getattr(self, name), least=least, wanted=wanted)
        object.__setattr__(self, name, number)

    def budget(self, total: int) -> int:
        """Return `k`, the number of examples to keep: `round(keep * N)`, or the count itself.

        Args:
            total: Number of examples N.

        Returns:
            k, with Python's rounding (half to even).

        Raises:
            ValueError: The count exceeds `total`, the share rounds to 0, or `labels` are of other
                examples.
        """
        if isinstance(self.labels, np.ndarray) and len(self.labels) != total:
            raise ValueError(
                f"expected labels of all {total} examples, got {len(self.labels)}; give one per "
                "example, in the order of the data set"
            )
        if isinstance(self.keep, Integral):
            if self.keep > total:
                raise ValueError(
                    f"expected to keep at most {total} examples (all there are), got "
                    f"keep={self.keep}"
                )
            return int(self.keep)
        k = round(float(self.keep) * total)
        if k == 0:
            raise ValueError(
                f"expected to keep at least one example, but keep={self.keep} of {total} rounds to "
                f"0; keep at least {1 / total:.2g}, or give a count"
            )
        return k

    def as_json(self) -> dict[str, Any]:
        """Return what can be written down: callables by name."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    def naming_the_subset(self) -> dict[str, Any]:
        """Return, as `as_json`, those options that must be equal for the subset to be the same."""
        named = [each.name for each in fields(self) if each.metadata.get("names_subset", True)]
        return {name: value for name, value in self.as_json().items() if name in named}


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
