"""One selection, decided once: number of examples, shards, mode and device."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sage_torch.checkpoint.fingerprint import probed
from sage_torch.checkpoint.snapshots import NoSnapshots
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.choice import choose_gradients
from sage_torch.gradients.compressed import compressed
from sage_torch.gradients.computer import GradientComputer, device_of
from sage_torch.gradients.features import ClassifierInputs, Features, find_features, look, see
from sage_torch.options import Options
from sage_torch.passes.calibration import FirstReading
from sage_torch.passes.mode import Mode, exact_bytes, first_rows
from sage_torch.passes.readings import Readings
from sage_torch.passes.readout import MOST_COMPARED
from sage_torch.reading.classes import may_be_classes
from sage_torch.reading.loading import Loading
from sage_torch.reading.ranks import Ranks
from sage_torch.reading.reader import Reader, naming_the_example, takes_any
from sage_torch.reading.shards import Shard, cut, of_rank, places_of
from sage_torch.selection.neighbours import check_installed

_LOG = logging.getLogger("sage_torch")
_SHARDS_OF_GROUP = 8  # unless the caller names another number


@dataclass(frozen=True)
class Plan:
    """The part of a selection that follows from its options and number of examples alone.

    Attributes:
        k: Number of examples to keep.
        mode: How examples are scored.
        shards: Parts of the data set, sketched apart.
        rows: Rows that a sketch begins with.
    """

    k: int
    mode: Mode
    shards: list[Shard]
    rows: int

    @classmethod
    def of(
        cls,
        options: Options,
        total: int,
        *,
        is_group: bool,
        of_features: int = 0,
        logits: int = 0,
    ) -> Plan:
        """Return the plan for `total` examples, alone or in a process group.

        Args:
            options: The caller's options.
            total: Number of examples N.
            is_group: Whether ranks share the work.
            of_features: As `Mode.of`.
            logits: As `first_rows`.

        Raises:
            ValueError: The options do not fit this many examples.
        """
        count = options.shards
        if count is None:
            count = min(_SHARDS_OF_GROUP, total) if is_group else 1
        mode = Mode.of(options, total, of_features, logits)
        return cls(options.budget(total), mode, cut(total, count), first_rows(options, logits))


@dataclass(frozen=True)
class Job:
    """One selection, as both passes and the rule need it.

    Attributes:
        options: The caller's options, checked.
        plan: Number to keep, mode and shards.
        ranks: The ranks that share the work.
        reader: Reads the examples.
        computer: Computes gradients; rule "random" never uses it.
        snapshots: What a killed selection resumes from.
        device: The device of the gradients, if it is known before pass 1.
        features: Where the features of the examples are found; None if nobody needs them.
        of_features: Numbers of an example's features that are compared.
        keeps_seen: Whether pass 1 keeps what the forward pass shows (features, and the factors of
            all gradients), so that nothing is read again.
        judges_alone: Whether the rule goes by what is known of the labels alone, so that nobody
            needs gradients.
        earlier: What earlier selections of the same sampler have read of the labels.
        first_reading: What a sample of the labels said after the first epoch, if it was read.
    """

    options: Options
    plan: Plan
    ranks: Ranks
    reader: Reader
    computer: GradientComputer
    snapshots: NoSnapshots
    device: torch.device | None = None
    features: Features | None = None
    of_features: int = 0
    keeps_seen: bool = False
    judges_alone: bool = False
    earlier: Readings | None = None
    first_reading: FirstReading | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        dataset: Dataset[Any],
        options: Options,
        ranks: Ranks,
        loading: Loading | None = None,
    ) -> Job:
        """Decide everything that follows from model, data set and options.

        Args:
            model: Unwrapped, in evaluation mode.
            dataset: The examples.
            options: The caller's options.
            ranks: The ranks that share the work.
            loading: How the loader of a sampler reads.

        Raises:
            TypeError, ValueError: They do not go together.
            ImportError: Near duplicates cannot be looked for among so many.
        """
        is_scored = options.rule != "random"  # that rule reads labels only
        device = device_of(model) if is_scored else torch.device("cpu")
        reader = Reader(dataset, device, options, loading)
        plan = Plan.of(options, reader.total, is_group=ranks.is_group)
        if options.duplicates == "drop":
            check_installed(reader.total)
        computer = cast(GradientComputer, _no_gradients)
        if is_scored:
            computer = computer_for(model, options)
        return cls(options, plan, ranks, reader, computer, NoSnapshots())

    @property
    def mode(self) -> Mode:
        """How examples are scored."""
        return self.plan.mode

    @property
    def shards(self) -> list[Shard]:
        """All shards, those of other ranks included."""
        return self.plan.shards

    @property
    def own(self) -> list[Shard]:
        """The shards that this rank reads: neighbours, or none."""
        return of_rank(self.shards, self.ranks)

    @property
    def own_places(self) -> slice:
        """Where this rank's examples stand among all examples."""
        return places_of(self.own)


def computer_for(model: nn.Module, options: Options) -> GradientComputer:
    """Return the gradient computer that the options name, with a count sketch behind long rows.

    Args:
        model: Unwrapped.
        options: `gradients`, `params`, `loss`, `compress`, `seed`, `memory_budget`.

    Raises:
        TypeError, ValueError: As `choose_gradients`.
    """
    computer = choose_gradients(
        model,
        options.loss,
        options.gradients,
        params=options.params,
        seed=options.seed,
        memory_budget=options.memory_budget,
    )
    return shortened(computer, options)


def shortened(computer: GradientComputer, options: Options) -> GradientComputer:
    """Return the computer, with a count sketch behind it where rows are longer than `compress`."""
    return compressed(
        computer,
        options.compress,
        seed=options.seed,
        memory_budget=options.memory_budget,
        splits=not takes_any(options),
    )


def beside(
    features: Features | None, computer: GradientComputer, options: Options
) -> GradientComputer:
    """Return the computer of the last layer where features give its gradients for nothing.

    Args:
        features: What was found, or None.
        computer: The one to take otherwise.
        options: `gradients` and `params` say whether another one was asked for.
    """
    takes_last = options.gradients in ("auto", "last_layer") and options.params is None
    if not takes_last or not isinstance(features, ClassifierInputs):
        return computer
    chosen = shortened(features.last, options)
    _LOG.info("gradients for nothing beside the features: %s", chosen.describe())
    return chosen


def _no_gradients(batch: Batch) -> Tensor:
    raise RuntimeError('expected no gradients to be asked for with rule="random"')


def with_features(job: Job, model: nn.Module) -> Job:
    """Return the job, with features where the trim reads them and there are any.

    A few examples show whether they have classes and where the model's features are. The gradients
    of the last layer then cost nothing more.

    Args:
        job: The result of `Job.of`.
        model: As there.

    Raises:
        SageError: A loss is not finite.
    """
    options, total = job.options, job.reader.total
    reads_features = options.rule == "herding" and options.trim == "auto"
    if not reads_features or options.consensus == "one_pass" or takes_any(options):
        return job
    indices = probed(total)
    batch = job.reader.some(indices)
    if not may_be_classes(job.reader.labels.of(batch, indices)):
        return job
    with naming_the_example(indices):
        features = find_features(model, options.loss, batch)
        if features is None:
            return job
        judges_alone = _judges_alone(options)
        computer = beside(features, job.computer, options)
        # A model whose gradients nobody can take may well have features.
        looked = None if judges_alone else look(computer, features, batch, len(indices))
        seen = see(features, batch) if looked is None else looked.seen
    assert seen is not None
    width = seen.features.shape[1]
    reduced = min(width, MOST_COMPARED)
    logits = 0 if seen.outer is None else seen.outer.delta.shape[1]
    plan = Plan.of(options, total, is_group=job.ranks.is_group, of_features=reduced, logits=logits)
    keeps = False
    if judges_alone:
        keeps = 4 * total * (width + 1) <= options.memory_budget
    elif seen.outer is not None and plan.mode.name == "exact" and options.checkpoint is None:
        held = 4 * total * (logits + width)
        keeps = held + exact_bytes(plan.rows, total, reduced) <= options.memory_budget
    return replace(
        job,
        plan=plan,
        computer=computer,
        features=features,
        of_features=reduced,
        keeps_seen=keeps,
        judges_alone=judges_alone,
    )


def _judges_alone(options: Options) -> bool:
    """Return whether no gradient decides anything, where features give the trim what it reads.

    A rotation draws by what is known of the labels. Whoever names gradients wants their scores;
    coordinates and snapshots are those of a sketch.
    """
    return (
        options.draw == "rotate"
        and options.gradients == "auto"
        and not options.keep_coordinates
        and options.duplicates == "keep"
        and options.checkpoint is None
    )
