"""`select_subset`: from a model and a data set to the examples worth a gradient step."""

from __future__ import annotations

import logging
import os
import platform
import time
import warnings
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

import sage_torch._core as _core
from sage_torch.gradients.choice import handling_of, reason_of
from sage_torch.gradients.computer import GradientChoice
from sage_torch.gradients.loss import LossFunction, unwrap
from sage_torch.gradients.parameters import ParameterChoice
from sage_torch.options import (
    Basis,
    Collate,
    ConsensusMode,
    Draw,
    Options,
    Quotas,
    Rule,
    budget,
    count_examples,
)
from sage_torch.passes.job import Task, identified, new_task
from sage_torch.passes.scoring import carried_score, score_pass, streaming_score_pass
from sage_torch.passes.sketching import label_pass, sketch_pass
from sage_torch.reading.classes import ClassBook
from sage_torch.reading.ranks import Ranks, ranks
from sage_torch.reading.shards import cut
from sage_torch.reading.user_state import preserved
from sage_torch.rules import Chosen, choose, choose_at_random, streams_for
from sage_torch.selection.result import Certificate, Selection

_LOG = logging.getLogger("sage_torch")


def select_subset(
    model: nn.Module,
    dataset: Dataset[Any],
    keep: float,
    *,
    rule: Rule = "herding",
    draw: Draw = "fixed",
    weights: bool = False,
    trim: Literal["negative"] | float | None = "negative",
    basis: Basis = "weighted",
    class_balanced: Literal["auto"] | bool = "auto",
    quotas: Quotas = "proportional",
    sketch_size: int | Literal["auto"] = 64,
    gradients: GradientChoice = "auto",
    params: ParameterChoice | None = None,
    compress: Literal["auto"] | int | None = "auto",
    consensus: ConsensusMode = "auto",
    memory_budget: int = 2**30,
    loss: LossFunction | None = None,
    score_dataset: Dataset[Any] | None = None,
    collate_fn: Collate | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    seed: int = 0,
    progress: bool = True,
    shards: int | None = None,
    distributed: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 30.0,
) -> Selection:
    """Choose the `round(keep * N)` examples of a data set that are worth a gradient step.

    Pass 1 streams per-example gradients into a Frequent Directions sketch. Pass 2 scores each
    example by its agreement `a_i = <z_i/|z_i|, u_c>` with the consensus of its class c, and takes
    its margin `m_i = a_i - o_i/2` against the class that it opposes most,
    `o_i = max(0, -min_b <z_i/|z_i|, u_b>)`. The trim drops by margin, and a rule turns scores and
    sketched gradients of the rest into a subset. The model is in evaluation mode meanwhile, and
    everything of the user's is afterwards what it was before.

    Args:
        model: A trained or at least warmed-up model (an epoch will do); DataParallel,
            DistributedDataParallel and torch.compile are unwrapped.
        dataset: A map-style data set of `(inputs, targets)` pairs, dicts with `"labels"`, or
            anything that `collate_fn` and `loss` agree on.
        keep: A share in (0, 1] (1.0 is all) or a count (int).
        rule: `"herding"` (greedy kernel herding in each class: cover), `"facility_location"` (the
            same kernel: every example has a kept one near), `"stratified"` (coverage-centric:
            evenly from 50 strata of agreement), `"weighted"` (random, with probability in
            proportion to (1 + a)/2), `"agreement"` (the paper's rule, the k highest scores: the
            most typical examples, without cover) or `"random"` (the baseline, no gradients).
        draw: `"fixed"` (one subset), `"rotate"` (a new subset each epoch: the herding order of the
            untrimmed examples in representative windows, every one seen within a turn) or
            `"random"` (a new random subset of them each epoch); the last two need rule "herding"
            or "random". See `Selection.epoch_indices`.
        weights: Whether to count how many untrimmed examples of its class each kept one stands for
            (see `Selection.weights`): any rule but random; in streaming mode herding and facility
            location.
        trim: What is dropped before the rule chooses: `"negative"` (negative margins: opposed to
            another class more than twice as much as in agreement with its own), a share of each
            class (lowest margin first), or None. Never below the quota. Margins are taken in the
            weighted basis. The rules `"agreement"` and `"random"` do not trim.
        basis: Coordinates of the reported scores, which the rule `"agreement"` ranks: `"weighted"`
            (S g, by singular values) or `"orthonormal"` (V g). Trim, strata and probabilities
            always read the weighted ones.
        class_balanced: Consensus and quotas by class: `"auto"` where targets are integer classes.
        quotas: `"proportional"` to the classes' sizes, or `"equal"` for long tails; what a short
            class cannot give goes to the others.
        sketch_size: Rows l of the sketch. `"auto"` begins with 64 and doubles them, up to 512 and
            within `memory_budget`, as long as the sketch has lost over a quarter of the energy of
            the first 8 l examples (of the first shard); `settings["sketch_rows"]` says what came
            of it.
        gradients: `"auto"` (`"functional"` up to 8,192 parameters, else `"projected"`),
            `"functional"` (exact), `"projected"` (the whole network, cheaper than a training step),
            `"last_layer"` or a computer of your own (see `sage_torch.gradients`).
        params: Parameters to take gradients of: names or patterns (`"blocks.11.*"`), a predicate
            `(name, parameter) -> bool`, or None for all that require grad.
        compress: Count sketch of gradients longer than `"auto"` (8,192) or this many coordinates;
            None for no compression.
        consensus: `"exact"` keeps N x l numbers on the host, `"streaming"` scores at once with a
            consensus carried along in pass 1, in memory that grows with N by scores, margins,
            labels and indices only: at keep=0.25 by about 24 bytes an example with herding and
            facility location, 26 to 33 with the other rules, 45 with a draw. `"auto"` is exact
            while its numbers fit `memory_budget`. `"one_pass"` asks for one gradient an example
            instead of two: every example's N x l numbers are carried along with the sketch, so that
            scores are those under a sketch that grew meanwhile (benchmarks/RESULTS.md says how near
            they come). Where the sketch keeps little of the energy (an untrained model: see
            `certificate.energy_kept`) they have nothing to do with the exact ones;
            `certificate.consensus_cosine` is NaN, as the exact consensus is not known.
            `"exact"` and `"one_pass"` hold 4 l bytes an example whatever `memory_budget` is.
        memory_budget: Bytes for gradients held at once, and for exact scoring with `"auto"`.
        loss: `loss(model, batch) -> (n,)`, one loss per example; None for the cross-entropy of
            integer class or token targets, and for what Hugging Face models train on.
        score_dataset: The same examples without augmentation, read instead of `dataset`.
        collate_fn: How examples become a batch; None for torch's default.
        batch_size: Examples scored at once; it does not change the result beyond rounding.
        num_workers: Worker processes that read the data.
        seed: Names the compression, the reading order and every draw.
        progress: Whether to show a progress bar on a pass that takes over two seconds.
        shards: Contiguous parts that the data set is cut into, sketched apart and merged in a fixed
            tree; on a stream herding covers each by itself, too. The subset depends on their number
            and not on who shares them. None: 8 in a process group (N, if fewer), else 1.
        distributed: Whether the ranks of torch.distributed's default process group share the
            shards. All must call this together then, with one model; all get the same selection,
            and all raise when one fails (within a day, when one hangs). Buffers are rank 0's
            meanwhile.
        checkpoint: A folder for snapshots of this one selection, shared by the ranks: the same call
            goes on where a killed one stopped, to the same subset, and returns at once what was
            finished there. The same is: the model, the options, the data set's length, labels
            (where `targets`, `labels` or a TensorDataset hold them) and 16 examples with their
            gradients. Where reading an example draws random numbers, the parts read before and
            after a kill draw other ones than in one go.
        checkpoint_every: Seconds of the passes between two snapshots: what a kill costs, besides a
            batch and what has no snapshots: the merge of shards and the rule.

    Returns:
        The selection: indices, scores, margins, labels, certificate, seconds.

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
        UserWarning: A class gets no example; items change from reading to reading; memory ran out
            and the chunk size was halved; a damaged snapshot is ignored.

    Cost:
        Two gradients an example (one in one pass), and about 9 l d operations. With
        `checkpoint`, on disk until it is finished: 4 l bytes an example and 10 l d bytes a shard
        (and C d numbers when streaming).

    Reference:
        Jha and Ahmadi-Asl, "SAGE: Streaming Agreement-Driven Gradient Sketches for Representative
        Subset Selection", arXiv 2510.02470. Kernel herding: Chen, Welling and Smola, UAI 2010.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from sage_torch import select_subset
        >>> data = TensorDataset(torch.randn(100, 8), torch.arange(100) % 2)
        >>> selection = select_subset(torch.nn.Linear(8, 2), data, keep=0.25, progress=False)
        >>> selection.indices.shape
        (25,)
    """
    together = ranks(distributed is not False)
    options = together.together(
        lambda: _checked(
            model,
            dataset,
            keep=keep,
            rule=rule,
            draw=draw,
            weights=weights,
            trim=trim,
            basis=basis,
            class_balanced=class_balanced,
            quotas=quotas,
            sketch_size=sketch_size,
            gradients=gradients,
            params=params,
            compress=compress,
            consensus=consensus,
            memory_budget=memory_budget,
            loss=loss,
            score_dataset=score_dataset,
            collate_fn=collate_fn,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            progress=progress,
            shards=shards,
            distributed=distributed,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
        )
    )
    inner = unwrap(model)
    with preserved(inner):
        together.share_buffers(inner)
        return _select(inner, dataset, options, together)


def _checked(model: nn.Module, dataset: Dataset[Any], **options: Any) -> Options:
    """Return the options, checked with what they are for, before work starts."""
    checked = Options(**options)
    total = count_examples(dataset)
    budget(checked.keep, total)
    checked.is_streaming(total)
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
    cut(total, checked.number_of_shards(total, is_group=False))
    return checked


def _select(model: nn.Module, dataset: Dataset[Any], options: Options, ranks: Ranks) -> Selection:
    total = count_examples(dataset)
    k = budget(options.keep, total)
    shards = cut(total, options.number_of_shards(total, is_group=ranks.is_group))
    task = ranks.together(lambda: new_task(model, dataset, options, shards, ranks))
    task, finished = identified(task, model, dataset, k)
    if finished is not None:
        return finished
    snapshots = task.snapshots
    try:
        if options.rule == "random":
            selection = _random_selection(model, task, k)
        else:
            selection = _sage_selection(model, task, k)
        if snapshots is not None:
            selection.settings["fingerprint"] = snapshots.name
        selection = ranks.broadcast(selection)  # the same, seconds included
        if snapshots is not None:
            ranks.together(lambda: snapshots.finish(selection, task.own, is_first=ranks.rank == 0))
    finally:
        if snapshots is not None:
            snapshots.close()
    return selection


def _sage_selection(model: nn.Module, task: Task, k: int) -> Selection:
    start, options = time.perf_counter(), task.options
    sketched = sketch_pass(task)
    parameters = handling_of(model, task.gradients)
    _LOG.info("%s", "\n".join(f"gradient of {name}: {how}" for name, how in parameters.items()))
    quotas = _quotas(sketched.classes, k, options)
    middle = time.perf_counter()
    streams: list[_core.BlockStream | None] = []
    if task.is_streaming:
        width = sketched.sketch.sketch_size
        streams = task.ranks.together(lambda: streams_for(task, sketched.classes, quotas, width))
        scored = streaming_score_pass(task, sketched, streams)
    elif task.is_one_pass:
        scored = carried_score(task, sketched)
    else:
        scored = score_pass(task, sketched)
    scored_at = time.perf_counter()
    chosen = choose(task, scored, sketched.classes, quotas, streams)
    end = time.perf_counter()
    return Selection(
        indices=chosen.indices,
        scores=scored.scores,
        labels=_labels(sketched.classes),
        certificate=_certificate(sketched.sketch, scored.consensus_cosine),
        seconds={
            "pass_1": middle - start,
            "pass_2": scored_at - middle,
            "rule": end - scored_at,
            "total": end - start,
        },
        weights=chosen.weights,
        draws=chosen.draws,
        margins=scored.margins,
        singular_values=sketched.sketch.singular_values(),
        settings=_settings(options, k, chosen, len(task.shards))
        | {
            "gradients": getattr(task.gradients, "describe", lambda: repr(task.gradients))(),
            "gradients_because": reason_of(model, options.gradients, options.params),
            "consensus": task.mode,
            "parameters": parameters,
            "dim": sketched.sketch.dim,
            "sketch_rows": sketched.sketch.sketch_size,
            "model": type(model).__name__,
        },
    )


def _random_selection(model: nn.Module, task: Task, k: int) -> Selection:
    start, options = time.perf_counter(), task.options
    classes = label_pass(task)
    quotas = _quotas(classes, k, options)
    middle = time.perf_counter()
    chosen = choose_at_random(classes, quotas, options)
    end = time.perf_counter()
    return Selection(
        indices=chosen.indices,
        scores=np.full(task.examples.total, np.nan, np.float32),
        labels=_labels(classes),
        certificate=None,
        seconds={
            "pass_1": middle - start,
            "pass_2": 0.0,
            "rule": end - middle,
            "total": end - start,
        },
        draws=chosen.draws,
        settings=_settings(options, k, chosen, len(task.shards)) | {"model": type(model).__name__},
    )


def _quotas(classes: ClassBook, k: int, options: Options) -> NDArray[np.int64]:
    quotas = _core.class_quotas(classes.sizes(), k, options.quotas)
    empty = np.flatnonzero(quotas == 0)
    if len(empty) and classes.is_balanced:
        labels = classes.values()[empty]
        shown = ", ".join(map(str, labels[:10])) + (", ..." if len(labels) > 10 else "")
        warnings.warn(
            f"keep={options.keep} gives no example to {len(labels)} of {len(quotas)} classes "
            f'(labels {shown}); keep more, or pass quotas="equal"',
            UserWarning,
            stacklevel=5,
        )
    return quotas


def _certificate(sketch: _core.FrequentDirections, consensus_cosine: float) -> Certificate:
    squares = sketch.singular_values() ** 2
    kept, total = float(squares.sum()), sketch.squared_norm
    at_most = kept + len(squares) * sketch.shrinkage
    return Certificate(
        shrinkage=sketch.shrinkage,
        relative_shrinkage=sketch.shrinkage / float(squares[0]) if squares[0] > 0 else 0.0,
        squared_norm=total,
        energy_kept=min(1.0, kept / total) if total > 0 else 1.0,
        energy_kept_at_most=min(1.0, at_most / total) if total > 0 else 1.0,
        consensus_cosine=consensus_cosine,
    )


def _labels(classes: ClassBook) -> NDArray[np.int64] | None:
    return classes.labels_of(slice(None)) if classes.has_labels else None


def _settings(options: Options, k: int, chosen: Chosen, shards: int) -> dict[str, Any]:
    from sage_torch.version import __version__

    return options.as_json() | {
        "k": k,
        "shards": shards,
        "trimmed": chosen.trimmed,
        "versions": {
            "sage_torch": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
