"""`SageStream`: reads each example once and yields those that are worth a gradient step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from numbers import Integral
from textwrap import shorten
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import IterableDataset, get_worker_info

from sage_torch.checks import whole_number
from sage_torch.gradients import batches
from sage_torch.gradients.computer import GradientChoice, device_of
from sage_torch.gradients.loss import LossFunction, unwrap
from sage_torch.gradients.parameters import ParameterChoice
from sage_torch.option_types import Collate
from sage_torch.options import Options
from sage_torch.reading.loading import joined
from sage_torch.reading.reader import check_count, takes_any
from sage_torch.reading.user_state import preserved
from sage_torch.stream.rate import RateKeeper
from sage_torch.stream.scores import OnlineScores
from sage_torch.stream.workers import Example, read, refuse_batches

__all__ = ["SageStream"]

_STATE = (
    "settings", "scores", "rate", "reading", "read", "is_kept", "given", "stream",
)  # fmt: skip


class SageStream(IterableDataset[Any]):
    """Yields the examples of a stream that are worth a gradient step: a share of `keep`.

    Each batch's gradients go into a Frequent Directions sketch that slowly forgets, with a running
    consensus of each class, which gives each example's agreement and margin. Examples are drawn at
    random, in proportion to what is left to learn of them; labels that are probably wrong are left
    out. Examples come out as the stream gave them, one by one: batch them with a DataLoader without
    workers (give the workers to this stream, which is read ahead while the model trains). Each
    batch is scored with the model as it is then, in evaluation mode; afterwards, everything that
    this changed is restored.

    Decisions are final and depend on what came before, on `batch_size` and on the workers, whose
    batches take turns. The first `warm_up` examples, and the first few of each class, are kept at
    random at the rate `keep`. A second reading continues with the sketch of the first. In a process
    group, each rank filters the stream that it is given: shard the stream by rank.

    Args:
        model: A model, best warmed up; it may keep training meanwhile. DataParallel,
            DistributedDataParallel and torch.compile are unwrapped.
        stream: An IterableDataset of `(input, target)` pairs, of dicts with `"labels"`, or of
            anything that `collate_fn` and `loss` understand.
        keep: Share of the examples to keep, in (0, 1], of the stream and of each class.
        rule: `"random"` draws from the examples whose label is probably right, the less often the
            better it has been learnt: by the readout of `trim="auto"`, solved anew as the stream
            goes on. Without features it draws alike from those with a margin of at least 0. Where a
            class has too few of these, the best of the others come too. `"agreement"` is the
            paper's: the highest scores of each class.
        labels: As in `select_subset`, without an array; None if there are no classes. Memory grows
            with their number. With a loss of your own, `"auto"` gives up labels that nearly all
            differ among the first 512 examples.
        class_balanced: Whether each class has its own share: `"auto"` where there are classes.
        half_life: Examples after which an example counts half in sketch and consensus. Choose less
            if the stream or the model changes faster. `"auto"`: 500 per class so far, at least
            5,000; None: it always counts in full.
        warm_up: Examples before the first score.
        sketch_size: Rows l of the sketch.
        gradients: As in `select_subset`; the chosen parameters must stay the same.
        params: As in `select_subset`.
        compress: As in `select_subset`.
        memory_budget: Most bytes of gradients held at once.
        loss: `loss(model, batch) -> (n,)`; None as in `select_subset`.
        collate_fn: How examples become a batch to score; None for torch's default.
        batch_size: Examples scored at once.
        num_workers: Worker processes that read the stream. Give the DataLoader around it none.
        seed: Determines the compression and every draw.

    Raises:
        TypeError: `stream` is no IterableDataset, or an argument is of a wrong kind.
        ValueError: An argument is out of range.
        RuntimeError: While reading: it runs inside a DataLoader's worker, or a later reading of the
            same SageStream has begun.
        SageError: While reading: a loss or gradient is not finite; `index` names the example.

    Cost:
        Per example one gradient and about 9 l d operations; per batch a copy of the model's
        buffers. Memory does not grow with the stream: 4 (2.5 l + C) d bytes for C classes, 2 KiB
        per class, and the batches read ahead.

    Reference:
        Jha and Ahmadi-Asl, "SAGE: Streaming Agreement-Driven Gradient Sketches for Representative
        Subset Selection", arXiv 2510.02470.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, IterableDataset
        >>> from sage_torch.stream import SageStream
        >>> class Numbers(IterableDataset):
        ...     def __iter__(self):
        ...         random = torch.Generator().manual_seed(0)
        ...         for label in range(4_000):
        ...             yield torch.randn(8, generator=random), label % 2
        >>> stream = SageStream(torch.nn.Linear(8, 2), Numbers(), keep=0.25)
        >>> kept = sum(len(labels) for inputs, labels in DataLoader(stream, batch_size=64))
        >>> kept == stream.kept, stream.seen, round(kept / stream.seen, 2)
        (True, 4000, 0.25)
    """

    def __init__(
        self,
        model: nn.Module,
        stream: IterableDataset[Any],
        keep: float = 0.25,
        *,
        rule: Literal["random", "agreement"] = "random",
        labels: str | Callable[[Any], Any] | None = "auto",
        class_balanced: Literal["auto"] | bool = "auto",
        half_life: Literal["auto"] | int | None = "auto",
        warm_up: int = 512,
        sketch_size: int = 64,
        gradients: GradientChoice = "auto",
        params: ParameterChoice | None = None,
        compress: Literal["auto"] | int | None = "auto",
        memory_budget: int = 2**30,
        loss: LossFunction | None = None,
        collate_fn: Collate | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        _check(model, stream, keep, rule)
        warm_up = whole_number("warm_up", warm_up, wanted="a number of examples")
        if isinstance(sketch_size, str):
            raise ValueError(
                f"expected sketch_size to be a number of rows, got {sketch_size!r}: a stream is "
                "scored from early on with one sketch; only selections choose its size"
            )
        if half_life not in ("auto", None):
            wanted = '"auto", None or a number of examples'
            half_life = whole_number("half_life", half_life, least=1, wanted=wanted)
        self._options = Options(
            keep=keep,
            rule=rule,
            labels=labels,
            class_balanced=class_balanced,
            sketch_size=sketch_size,
            gradients=gradients,
            params=params,
            compress=compress,
            memory_budget=memory_budget,
            loss=loss,
            collate_fn=collate_fn,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        if isinstance(self._options.labels, np.ndarray):
            raise TypeError(
                "expected labels as the name of a field, a callable on the batch or None, got an "
                "array: a stream has no examples to count; let it give the label with each example"
            )
        self._stream = stream
        self._model = unwrap(model)
        self._scores = OnlineScores(self._model, self._options, half_life, warm_up)
        self._rate = RateKeeper(float(keep), self._options.seed)
        self._settings = {
            "keep": float(keep),
            "rule": rule,
            "half_life": half_life,
            "warm_up": warm_up,
        } | {
            name: getattr(self._options, name)
            for name in ("class_balanced", "sketch_size", "batch_size", "num_workers", "seed")
        }
        self._settings["labels"] = self._options.as_json()["labels"]
        self._reading = 0  # readings before the current one
        self._turn = 0  # which iterator is the current one
        self._is_resumed = False
        self._read = 0  # examples before the current batch
        self._is_kept: NDArray[np.bool_] | None = None  # in the current batch, once decided
        self._given = 0  # how many of those have been yielded
        self._stream_state: Any = None  # before the current batch, if the stream has one

    @property
    def seen(self) -> int:
        """Examples decided on so far, in all readings."""
        return self._rate.seen

    @property
    def kept(self) -> int:
        """How many of them were kept."""
        return self._rate.kept

    def set_epoch(self, epoch: int) -> None:
        """Tell the stream the epoch, if it has a `set_epoch`, so that it shuffles anew."""
        if hasattr(self._stream, "set_epoch"):
            self._stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[Example]:
        """Return an iterator over the examples kept; after `load_state_dict`, over the rest."""
        if get_worker_info() is not None:
            raise RuntimeError(
                "expected to be read in the main process, where the model is, but this is a worker "
                "of a DataLoader: give it num_workers=0 and pass num_workers= to SageStream, whose "
                "workers read the stream"
            )
        if not self._is_resumed:
            self._reading += self._read > 0 or self._is_kept is not None  # one was cut short
            self._read, self._given, self._is_kept, self._stream_state = 0, 0, None, None
        self._is_resumed = False
        self._turn += 1
        return self._examples(self._turn)

    def _examples(self, turn: int) -> Iterator[Example]:
        self._check_turn(turn)
        for examples in self._batches():
            self._check_turn(turn)
            if self._is_kept is None:
                self._is_kept, self._given = self._decide(examples), 0
            if len(self._is_kept) != len(examples):
                raise RuntimeError(
                    f"expected the batch of {len(self._is_kept)} examples that the state was saved "
                    f"in, got {len(examples)}: the stream has changed since; give the same stream"
                )
            for place in np.flatnonzero(self._is_kept)[self._given :].tolist():
                self._given += 1
                yield examples[place]
                self._check_turn(turn)
            self._read += len(examples)
            self._is_kept, self._given = None, 0
            self._stream_state = self._state_of_stream()
        self._reading, self._read, self._stream_state = self._reading + 1, 0, None

    def _batches(self) -> Iterator[list[Example]]:
        """Yield lists of examples from the current batch on."""
        options, skipped = self._options, 0
        skip = self._read
        if self._stream_state is not None:
            stream: Any = self._stream
            stream.load_state_dict(copy.deepcopy(self._stream_state))
            skip = 0
        for examples in read(
            self._stream,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            seed=options.seed + self._reading,
        ):
            if skipped < skip:
                skipped += len(examples)
            else:
                yield examples
        if skipped < skip:
            raise RuntimeError(
                f"expected the stream to give again the {skip} examples that it gave before the "
                f"state was saved, got {skipped}: the stream has changed since; give the same one"
            )

    def _decide(self, examples: list[Example]) -> NDArray[np.bool_]:
        with preserved(self._model):
            collate, n, is_any = self._options.collate_fn, len(examples), takes_any(self._options)
            if collate is None and self._options.loss is None and not (is_any or self.seen):
                refuse_batches(examples)
            batch = joined(examples) if collate is None else collate(examples)
            check_count(batch, n, takes_any=is_any)
            judged = self._scores(
                batches.to_device(batch, device_of(self._model)),
                n,
                self._scores.labels.of(batch, np.arange(n)),
                self._read,
            )
        scores = judged.agreement
        if self._options.rule == "random":
            scores = self._rate.drawn(judged.quality, judged.masses)
        return self._rate.decide(scores, self._scores.groups_of(judged.class_ids))

    def _check_turn(self, turn: int) -> None:
        if turn != self._turn:
            raise RuntimeError(
                "expected one reading of a SageStream at a time, but another one has begun or a "
                "state has been loaded: iterate over it anew"
            )

    def _state_of_stream(self) -> Any:
        """Return the stream's own state, if it has one and is read here, not in a worker."""
        stream: Any = self._stream
        if self._options.num_workers or not hasattr(stream, "load_state_dict"):
            return None
        return copy.deepcopy(stream.state_dict())  # some streams keep changing what they return

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain numbers from which `load_state_dict` resumes exactly.

        It holds sketch, consensus, recent scores and the place after the last example yielded. If
        the stream has `state_dict` and is read without workers, it holds the stream's state too.
        `torch.load(..., weights_only=True)` reads it if it can read the stream's state.
        """
        return {
            "settings": dict(self._settings),
            "scores": self._scores.state_dict(),
            "rate": self._rate.state_dict(),
            "reading": self._reading,
            "read": self._read,
            "is_kept": None if self._is_kept is None else torch.from_numpy(self._is_kept.copy()),
            "given": self._given,
            "stream": self._stream_state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where the stream that gave `state` was: the next reading yields the rest.

        A stream without a state of its own is read from its start, and earlier examples are dropped
        without a gradient. So it must give the same examples again.

        Raises:
            ValueError: It is no state of a SageStream, or its options differ. Nothing has
                changed then.
        """
        _check_state(state, self._settings)
        before = self._scores.state_dict()
        try:
            self._scores.load_state_dict(state["scores"])
            self._rate.load_state_dict(state["rate"])
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            self._scores.load_state_dict(before)
            raise ValueError(
                f"expected a state from SageStream.state_dict() of the same model, but: "
                f"{shorten(str(error), 200)}; make the stream with the same model and options"
            ) from error
        self._reading, self._read, self._given = state["reading"], state["read"], state["given"]
        is_kept = state["is_kept"]
        self._is_kept = None if is_kept is None else is_kept.numpy().copy()
        self._stream_state = state["stream"]
        self._is_resumed = True
        self._turn += 1


def _check(model: object, stream: object, keep: object, rule: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(stream, IterableDataset):
        raise TypeError(
            f"expected stream to be a torch.utils.data.IterableDataset, got "
            f"{type(stream).__name__}: wrap an iterable in one; a map-style data set is better "
            "served by SageSampler"
        )
    if isinstance(keep, Integral):
        raise TypeError(f"expected keep to be a share in (0, 1], as 1.0, got {keep!r}")
    if rule not in ("agreement", "random"):
        raise ValueError(
            f'expected rule "agreement" or "random", got {rule!r}: herding compares examples that '
            "a stream does not keep"
        )


def _check_state(state: object, settings: dict[str, Any]) -> None:
    if not isinstance(state, dict) or any(name not in state for name in _STATE):
        raise ValueError("expected a state from SageStream.state_dict(); pass what that gave")
    for name, value in settings.items():
        found = state["settings"].get(name) if isinstance(state["settings"], dict) else None
        if found != value:
            raise ValueError(
                f"expected the state of a SageStream with {name}={value!r}, got {found!r}: make "
                "the stream with the same options"
            )
    for name in ("reading", "read", "given"):
        if type(state[name]) is not int or state[name] < 0:
            raise ValueError(f"expected {name} to be a count, got {state[name]!r}")
    is_kept = state["is_kept"]
    if is_kept is not None and not (isinstance(is_kept, Tensor) and is_kept.dtype is torch.bool):
        raise ValueError(f"expected is_kept to be a tensor of truth values or None, got {is_kept}")
