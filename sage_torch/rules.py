"""From scores and sketched gradients to a subset: which rule runs, and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sage_torch import _core
from sage_torch.classes import ClassBook
from sage_torch.draws import Draws
from sage_torch.options import STREAMED, Options
from sage_torch.passes import Scored

_ORDER_BLOCK = 512  # examples herded together where all of them are put in order
_STREAM_BLOCK = 1024  # the same on a stream, where the quota alone is picked
_OF_SCORES = {"stratified": _core.stratified, "weighted": _core.weighted_subset}
_OF_COORDINATES = {"herding": _core.herding, "facility_location": _core.facility_location}


@dataclass(frozen=True)
class Chosen:
    """What a rule leaves behind."""

    indices: NDArray[np.int64]  # (k,) ascending
    weights: NDArray[np.float32] | None  # (k,)
    draws: Draws | None  # None for draw="fixed"
    trimmed: int  # examples that the trim dropped


def stream_for(
    options: Options, classes: ClassBook, quotas: NDArray[np.int64]
) -> _core.BlockStream | None:
    """Return what gets the batches of a streaming pass 2; None for rules that read scores only."""
    if options.rule not in STREAMED or options.draw == "random":
        return None
    is_order = options.draw == "rotate"
    return _core.BlockStream(
        classes.sizes(),
        quotas,
        width=options.sketch_size,
        trim=options.trim,
        rule="herding" if options.rule == "herding" else "facility_location",
        whole_order=is_order,
        weights=options.weights,
        block_size=_ORDER_BLOCK if is_order else _STREAM_BLOCK,
    )


def choose(
    scored: Scored,
    classes: ClassBook,
    quotas: NDArray[np.int64],
    stream: _core.BlockStream | None,
    options: Options,
) -> Chosen:
    """Apply the rule.

    Args:
        scored: What pass 2 left behind.
        classes: The class of every example.
        quotas: int64 (C,), how many of each class to keep.
        stream: What has seen the batches of a streaming pass 2 (see `stream_for`).
        options: `rule`, `trim`, `draw`, `weights`, `seed`.

    Returns:
        The subset; with a draw that of epoch 0, and the draws.

    Raises:
        ValueError: The data set changed between the passes.
    """
    class_ids = classes.of(slice(None))
    if options.draw == "rotate":
        return _in_order(scored, class_ids, quotas, stream, options)
    if stream is not None:
        return Chosen(*stream.finish(), None, stream.trimmed)
    trim = None if options.rule == "agreement" else options.trim  # the paper's rule trims nothing
    left = _core.untrimmed(scored.margins, class_ids, quotas, trim=trim)
    trimmed = len(class_ids) - len(left)
    if options.draw == "random":
        return _drawn(draws_of(left, class_ids, quotas, "random", options.seed), trimmed)
    indices = _indices(scored, class_ids, quotas, left, options)
    weights = None
    if options.weights:
        assert scored.coordinates is not None  # `Options.is_streaming` has refused
        weights = _core.weights(
            scored.coordinates, class_ids, len(quotas), left, indices, seed=options.seed
        )
    return Chosen(indices, weights, None, trimmed)


def _indices(
    scored: Scored,
    class_ids: NDArray[np.int32],
    quotas: NDArray[np.int64],
    left: NDArray[np.int64],
    options: Options,
) -> NDArray[np.int64]:
    if options.rule == "agreement":
        return _core.top_k(scored.scores, class_ids, quotas)
    if options.rule in _OF_SCORES:
        places = _OF_SCORES[options.rule](
            scored.agreement[left], class_ids[left], quotas, trim=None, seed=options.seed
        )
        chosen: NDArray[np.int64] = left[places]
        return chosen
    assert scored.coordinates is not None  # kept whenever there is no stream
    return _OF_COORDINATES[options.rule](
        scored.coordinates,
        scored.margins,
        class_ids,
        quotas,
        trim=options.trim,
        seed=options.seed,
    )


def choose_at_random(classes: ClassBook, quotas: NDArray[np.int64], options: Options) -> Chosen:
    """Apply `rule="random"`, which knows no scores and trims nothing."""
    class_ids = classes.of(slice(None))
    if options.draw == "fixed":
        return Chosen(_core.random_subset(class_ids, quotas, options.seed), None, None, 0)
    everything = np.arange(len(class_ids))
    return _drawn(draws_of(everything, class_ids, quotas, options.draw, options.seed), 0)


def draws_of(
    left: NDArray[np.int64],
    class_ids: NDArray[np.int32],
    quotas: NDArray[np.int64],
    draw: Literal["rotate", "random"],
    seed: int,
) -> Draws:
    """Return draws without a herding order: each class is one block, ascending.

    Args:
        left: int64 (M,) ascending, the examples to draw from.
        class_ids: int32 (N,) of all examples.
        quotas: int64 (C,).
        draw: `"rotate"` or `"random"`.
        seed: Names the draws.
    """
    order = left[np.argsort(class_ids[left], kind="stable")]
    classes, starts = np.unique(class_ids[order], return_index=True)
    return Draws(
        draw=draw,
        order=order,
        starts=np.append(starts, len(order)),
        classes=classes.astype(np.int64),
        quotas=quotas,
        seed=seed,
        is_herded=False,
    )


def _in_order(
    scored: Scored,
    class_ids: NDArray[np.int32],
    quotas: NDArray[np.int64],
    stream: _core.BlockStream | None,
    options: Options,
) -> Chosen:
    if stream is not None:
        order, starts, of_blocks = stream.finish_order()
    else:
        assert scored.coordinates is not None  # kept whenever there is no stream
        order, starts, of_blocks = _core.herding_order(
            scored.coordinates,
            scored.margins,
            class_ids,
            quotas,
            trim=options.trim,
            block_size=_ORDER_BLOCK,
            seed=options.seed,
        )
    draws = Draws("rotate", order, starts, of_blocks, quotas, options.seed, is_herded=True)
    return _drawn(draws, len(class_ids) - len(order))


def _drawn(draws: Draws, trimmed: int) -> Chosen:
    return Chosen(draws.epoch(0), None, draws, trimmed)
