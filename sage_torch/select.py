"""`select_subset`: from a model and a data set to the examples worth a gradient step."""

from __future__ import annotations

import inspect
import logging
import platform
import textwrap
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset
from typing_extensions import Unpack

import sage_torch._core as _core
from sage_torch.checks import warn
from sage_torch.gradients.choice import handling_of, reason_of
from sage_torch.gradients.features import ClassifierInputs
from sage_torch.gradients.loss import unwrap
from sage_torch.option_types import SeededOptions
from sage_torch.options import Options
from sage_torch.passes.calibration import FirstReading
from sage_torch.passes.identity import identified
from sage_torch.passes.job import Job, with_features
from sage_torch.passes.keeping import Keeping, announce, both
from sage_torch.passes.labelling import judging_pass, label_pass
from sage_torch.passes.readings import Readings
from sage_torch.passes.readout import Readout
from sage_torch.passes.scoring import Scored, score
from sage_torch.passes.sketching import sketch_pass
from sage_torch.passes.views import Views
from sage_torch.reading.classes import ClassBook
from sage_torch.reading.loading import Loading
from sage_torch.reading.ranks import ranks
from sage_torch.reading.user_state import preserved
from sage_torch.rules.choice import rule_for
from sage_torch.rules.chosen import Chosen, Rule
from sage_torch.rules.recut import recut
from sage_torch.rules.trimming import trims_nothing
from sage_torch.rules.weights import find_weights  # noqa: F401 - behind the method of Selection
from sage_torch.rules.whole import choose_at_random
from sage_torch.selection.certificate import Certificate
from sage_torch.selection.result import Selection
from sage_torch.version import __version__

_LOG = logging.getLogger("sage_torch")
_F = TypeVar("_F", bound=Callable[..., Any])


def _documented(function: _F) -> _F:
    """Write the options into a function's signature and, for `{options}`, into its docstring."""
    options = [each for each in fields(Options) if each.name != "keep"]
    entries = [f"{each.name}: {each.metadata['help']}" for each in options]
    wrapped = [
        textwrap.fill(entry, 100, initial_indent=" " * 8, subsequent_indent=" " * 12)
        for entry in entries
    ]
    function.__doc__ = (function.__doc__ or "").replace("{options}", "\n".join(wrapped).lstrip())
    own = inspect.signature(function)
    named = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
    added = [
        inspect.Parameter(
            each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type
        )
        for each in options
        if each.name not in own.parameters
    ]
    function.__signature__ = own.replace(parameters=[*named, *added])  # type: ignore[attr-defined]
    return function


@_documented
def select_subset(
    model: nn.Module, dataset: Dataset[Any], keep: float, **options: Unpack[SeededOptions]
) -> Selection:
    """Choose the `round(keep * N)` examples of a data set that are worth a gradient step.

    Pass 1 streams per-example gradients into a Frequent Directions sketch. Pass 2 scores each
    example by its agreement `a_i = <z_i/|z_i|, u_c>` with the consensus of its class c, and takes
    its margin `m_i = a_i - o_i/2` against the class that it opposes most,
    `o_i = max(0, -min_b <z_i/|z_i|, u_b>)`. Where examples have classes, a ridge regression of the
    labels on the model's features, solved without the example that it judges, gives the probability
    of each label. The trim drops labels that are probably wrong, and at small budgets what is hard;
    herding then takes examples whose mean follows what is left to learn. Otherwise the trim drops
    by margin. The model is in evaluation mode meanwhile. Afterwards its parameters, buffers, mode
    and the random states are what they were before.

    Args:
        model: A trained or at least warmed-up model (an epoch will do); DataParallel,
            DistributedDataParallel and torch.compile are unwrapped.
        dataset: A map-style data set of `(inputs, targets)` pairs, dicts with `"labels"`, or
            anything that `collate_fn` and `loss` agree on. If you train with augmentation, give the
            same examples without it, in the same order.
        keep: A share in (0, 1] (1.0 is all) or a count (int).
        **options: The options below, by name.
        {options}

    Returns:
        The selection: indices, scores, margins, probabilities, labels, certificate, seconds.

    Raises:
        TypeError: `keep` is no number, the data set is a stream, an option is of a wrong kind.
        ValueError: An option is out of range or does not go with another, the data set is empty or
            changes meanwhile, classes are needed but missing, a batch or a loss has a wrong form,
            `checkpoint` holds another selection's snapshots (OtherSnapshotsError), ranks were given
            different things.
        RuntimeError: Another process writes to `checkpoint`.
        SageError: A loss or gradient is not finite; `index` names the example. Another rank failed.
        OSError: Snapshots cannot be written.

    Warns:
        UserWarning: The model predicts no better than chance; a class gets no example; items change
            from reading to reading; memory ran out and the chunk size was halved; a damaged
            snapshot is ignored.

    Cost:
        One forward pass where the last layer's gradients do and their factors fit `memory_budget`
        (two beyond it, and with `checkpoint`); else two gradients per example (one in one pass). A
        rotation by labels takes forward passes and no sketch, whatever the model ends in.
        About 9 l d operations for each. With `checkpoint`, on disk until it is finished: 4 l bytes
        per example and 10 l d bytes per shard (and C d numbers when streaming).

    Reference:
        Jha and Ahmadi-Asl, "SAGE: Streaming Agreement-Driven Gradient Sketches for Representative
        Subset Selection", arXiv 2510.02470. Kernel herding: Chen, Welling and Smola, UAI 2010.
        Leaving one out: Allen, Technometrics 1974.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from sage_torch import select_subset
        >>> data = TensorDataset(torch.randn(100, 8), torch.arange(100) % 2)
        >>> selection = select_subset(torch.nn.Linear(8, 2), data, keep=0.25, progress=False)
        >>> selection.indices.shape
        (25,)
    """
    group = ranks(options.get("distributed", True) is not False)
    asked = group.together(lambda: Options.given(keep=keep, **options))
    return select(model, dataset, asked)


def select(
    model: nn.Module,
    dataset: Dataset[Any],
    options: Options,
    loading: Loading | None = None,
    earlier: Selection | None = None,
    first_reading: FirstReading | None = None,
) -> Selection:
    """Do what `select_subset` documents, with options that are checked already.

    Args:
        model: As there.
        dataset: As there.
        options: All others.
        loading: How the loader of a sampler reads, but for the options that say so too.
        earlier: The last selection of a sampler, whose readings of the labels count too.
        first_reading: What a sample of the labels said after the first epoch, if it was read.
    """
    group = ranks(options.distributed)
    inner = group.together(lambda: _module(model))
    with preserved(inner):
        job = group.together(lambda: Job.of(inner, dataset, options, group, loading))
        group.share_buffers(inner)
        is_random = options.rule == "random"
        with closing(job.reader):
            if not is_random:  # the first reading: everything has been checked
                group.together(job.reader.warn_if_random)
                readings = Readings.of_selection(earlier, job.reader.total)
                job = group.together(lambda: with_features(job, inner))
                job = replace(job, earlier=readings, first_reading=first_reading)
                announce(job)
            job, finished = identified(job, inner, dataset)
            if finished is not None:
                return finished
            with job.snapshots:
                selection = _chosen(inner, job)
                if options.duplicates == "drop":
                    selection = group.together(lambda: _without_duplicates(selection))
                job.snapshots.sign(selection)
                selection = group.broadcast(selection)  # the same, seconds included
                is_first = group.rank == 0
                group.together(lambda: job.snapshots.finish(selection, job.own, is_first=is_first))
    return selection


def _chosen(model: nn.Module, job: Job) -> Selection:
    if job.options.rule == "random":
        return _at_random(model, job)
    by_labels = _by_labels(model, job) if job.judges_alone else None
    return _by_gradients(model, job) if by_labels is None else by_labels


def _by_gradients(model: nn.Module, job: Job) -> Selection:
    begin = time.perf_counter()
    sketched = sketch_pass(job)
    sketch, classes = sketched.sketch, sketched.classes
    parameters = handling_of(model, job.computer)
    _LOG.info("%s", "\n".join(f"gradient of {name}: {how}" for name, how in parameters.items()))
    quotas = _quotas(classes, job)
    sketched_at = time.perf_counter()
    width = Views.compared_width(sketched)
    rule = job.ranks.together(lambda: _rule(job, classes, quotas, sketched.readout, width))
    keeping = Keeping.of(job, sketched)
    scored = score(job, sketched, both(rule.take, keeping))
    scored_at = time.perf_counter()
    chosen = rule.finish(scored)
    judged = scored.judged if chosen.judged is None else chosen.judged
    end = time.perf_counter()
    return Selection(
        indices=chosen.indices,
        scores=scored.scores,
        labels=classes.labels(),
        certificate=Certificate.of(sketch, scored.consensus_cosine),
        seconds=_seconds(begin, sketched_at, scored_at, end),
        draws=chosen.draws,
        margins=scored.margins,
        **({} if judged is None else judged._asdict()),
        ranks=chosen.ranks,
        coordinates=None if keeping is None else keeping.finish(scored),
        singular_values=sketch.singular_values(),
        settings=_of_readout(sketched.readout)
        | _settings(model, job, classes, chosen)
        | {
            "gradients": getattr(job.computer, "describe", lambda: repr(job.computer))(),
            "gradients_because": _gradients_because(model, job),
            "consensus": job.mode.name,
            "parameters": parameters,
            "dim": sketch.dim,
            "sketch_rows": sketch.sketch_size,
        },
    )


def _by_labels(model: nn.Module, job: Job) -> Selection | None:
    """Select by what is known of the labels alone; None if they turn out to be no classes."""
    begin = time.perf_counter()
    labelled = judging_pass(job)
    if labelled is None:
        return None
    classes, readout, judged = labelled
    quotas = _quotas(classes, job)
    read_at = time.perf_counter()
    rule = job.ranks.together(lambda: _rule(job, classes, quotas, readout, width=0))
    nothing = np.full(job.reader.total, np.nan, np.float32)
    no_rows = np.empty((0, 0), np.float32)
    chosen = rule.finish(Scored(nothing, nothing, no_rows, np.nan, judged))
    end = time.perf_counter()
    return Selection(
        indices=chosen.indices,
        scores=nothing,
        labels=classes.labels(),
        certificate=None,
        seconds=_seconds(begin, read_at, read_at, end),
        draws=chosen.draws,
        **(chosen.judged or judged)._asdict(),
        settings=_of_readout(readout)
        | _settings(model, job, classes, chosen)
        | {"gradients_because": "none are taken: a rotation draws by what is known of labels"},
    )


def _rule(
    job: Job,
    classes: ClassBook,
    quotas: NDArray[np.int64],
    readout: Readout | None,
    width: int,
) -> Rule:
    sample = None if readout is None else classes.of(readout.sample_places)
    return rule_for(
        job, classes, quotas, width=width, known=readout, sample=sample, earlier=job.earlier
    )


def _without_duplicates(selection: Selection) -> Selection:
    cut = recut(selection.find_duplicates(), {})
    seconds = selection.seconds | {
        name: selection.seconds[name] + cut.seconds["rule"] for name in ("rule", "total")
    }
    coordinates = cut.coordinates if selection.settings["keep_coordinates"] else None
    return replace(cut, seconds=seconds, coordinates=coordinates)


def _gradients_because(model: nn.Module, job: Job) -> str:
    options = job.options
    is_last = isinstance(job.features, ClassifierInputs) and options.params is None
    if options.gradients == "auto" and is_last:
        return "auto: examples have classes, and a Linear layer makes the logits"
    return reason_of(model, options.gradients, options.params)


def _seconds(begin: float, read_at: float, scored_at: float, end: float) -> dict[str, float]:
    return {
        "pass_1": read_at - begin,
        "pass_2": scored_at - read_at,
        "rule": end - scored_at,
        "total": end - begin,
    }


def _of_readout(readout: Readout | None) -> dict[str, float]:
    if readout is None:
        return {}
    of = readout.calibration
    return {"temperature": of.temperature, "rho": of.rho, "rho_at_most": of.rho_at_most}


def _at_random(model: nn.Module, job: Job) -> Selection:
    begin = time.perf_counter()
    classes = label_pass(job)
    quotas = _quotas(classes, job)
    read_at = time.perf_counter()
    chosen = choose_at_random(classes, quotas, job.options)
    end = time.perf_counter()
    return Selection(
        indices=chosen.indices,
        scores=np.full(job.reader.total, np.nan, np.float32),
        labels=classes.labels(),
        certificate=None,
        seconds=_seconds(begin, read_at, read_at, end),
        draws=chosen.draws,
        settings=_settings(model, job, classes, chosen),
    )


def _quotas(classes: ClassBook, job: Job) -> NDArray[np.int64]:
    _LOG.info("classes: %s", _because(classes, job))
    quotas = _core.class_quotas(classes.sizes(), job.plan.k, job.options.quotas)
    empty = np.flatnonzero(quotas == 0)
    if len(empty) and classes.is_balanced:
        labels = classes.values()[empty]
        shown = ", ".join(map(str, labels[:10])) + (", ..." if len(labels) > 10 else "")
        warn(
            f"keep={job.options.keep} gives no example to {len(labels)} of {len(quotas)} classes "
            f'(labels {shown}); keep more, or pass quotas="equal"'
        )
    return quotas


def _because(classes: ClassBook, job: Job) -> str:
    """Return how many classes there are, and how that is known."""
    if job.options.labels is None:
        return "none: labels=None"
    return classes.why + (f", by {job.reader.labels.source}" if classes.are_classes else "")


def _settings(model: nn.Module, job: Job, classes: ClassBook, chosen: Chosen) -> dict[str, Any]:
    reason = {}
    if job.options.rule == "herding" and trims_nothing(job.options, classes):
        reason["trimmed_because"] = f'trim="{job.options.trim}" needs at least two classes'
    return job.options.as_json() | {
        "k": job.plan.k,
        "shards": len(job.shards),
        "classes": classes.count if classes.are_classes else 0,
        "classes_because": _because(classes, job),
        "trimmed": chosen.trimmed,
        **chosen.settings,
        **reason,
        "versions": {
            "sage_torch": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "model": type(model).__name__,
    }


def _module(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
    return unwrap(model)
