"""Per-example gradients of a whole network, projected: cheaper than a training step."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import sage_torch.gradients.batches as batches
from sage_torch.checks import whole_number
from sage_torch.gradients.batches import Batch
from sage_torch.gradients.chunks import Chunks
from sage_torch.gradients.functional import FunctionalGradients
from sage_torch.gradients.interaction import (
    FirstBatch,
    refuse_if_examples_interact,
    refuse_zeros,
    tolerance_of,
)
from sage_torch.gradients.loop import LoopGradients
from sage_torch.gradients.loss import ExampleLoss, LossFunction, UnrecordedError
from sage_torch.gradients.parameters import ParameterChoice, choose_parameters
from sage_torch.gradients.projected.maps import Block
from sage_torch.gradients.projected.recorder import UnsupportedUseError, Uses
from sage_torch.gradients.projected.self_check import wrong_blocks
from sage_torch.gradients.projected.uses import UnstableModelError, name_of
from sage_torch.gradients.projected.watched_model import WatchedModel

__all__ = ["ProjectedGradients"]

_LOG = logging.getLogger("sage_torch")
_OR_ELSE = "; or pass ProjectedGradients(..., self_check=False)"


class ProjectedGradients:
    """Per-example gradients `P_left G_i P_right^T`, parameter by parameter, of a whole network.

    A batch takes one forward and one backward pass. No gradient of length D exists, and no weight
    gradient is computed. Every use of a chosen parameter in a torch function adds its part to the
    rows: the forward pass keeps the projected input, and the backward pass multiplies it by the
    projected gradient of the output. On average over seeds, inner products between rows are those
    between gradients. If no side is longer than `width`, nothing is projected and the rows are
    those of `FunctionalGradients`. The README of this folder describes the method.

    Columns follow `model.named_parameters()`; each parameter takes at most `2 width^2` of them (see
    `Block`). The caller sets the mode of the model: use eval mode, as in the selection passes.
    Parameters, their `.grad` and `requires_grad`, and buffers stay unchanged.

    Args:
        model: The model; DataParallel, DistributedDataParallel and torch.compile are unwrapped.
        width: Coordinates w that the longer side of a weight is projected to; the shorter side
            keeps twice as many. The default is the smallest of 8, 16, 32 and 64 whose top quarter
            of scores shares 0.9 with that of exact gradients (benchmarks/quality/compression.py).
        loss: `loss(model, batch) -> (n,)`, one loss per example; None for that of `ExampleLoss`.
        params: The parameters; None for all that require grad (see `choose_parameters`).
        seed: A seed gives the same maps on every device and in every process.
        fallback: Whether parameters without a rule (in recurrent layers, custom kernels) get exact
            gradients from `FunctionalGradients`, which are then projected.
        self_check: Whether the losses of the first batch are compared with those of single
            examples, and four of its rows with one backward pass per example. Without it the rows
            of a model are wrong if examples interact in it, if it reorders them or computes
            gradients itself, or if it uses a parameter both in torch functions and outside of them
            (for example in a custom autograd.Function).
        memory_budget: Bytes that one chunk of examples may hold until its backward pass.

    Raises:
        TypeError: `width` or `seed` is not a whole number.
        ValueError: `width` is below 1, `params` matches nothing, nothing requires grad, or a chosen
            parameter is complex.

    Cost:
        A forward pass, a backward pass without weight gradients, and about `2 w I + w O`
        multiply-adds per position and layer of I <= O; 4 n d bytes for the rows; one wait for the
        device per batch. The first batch also takes three runs of two or three examples, a forward
        pass of eight, and four runs and forward passes of a single example.

    Reference:
        Choe et al., "What is your data worth to GPT?" (LoGra), arXiv 2405.13954.

    Example:
        >>> import torch
        >>> from sage_torch.gradients import ProjectedGradients
        >>> model = torch.nn.Sequential(torch.nn.Linear(100, 50), torch.nn.Linear(50, 10))
        >>> gradients = ProjectedGradients(model, width=8)
        >>> gradients((torch.randn(4, 100), torch.randint(10, (4,)))).shape
        torch.Size([4, 268])
    """

    def __init__(
        self,
        model: nn.Module,
        width: int = 32,
        loss: LossFunction | None = None,
        params: ParameterChoice | None = None,
        seed: int = 0,
        *,
        fallback: bool = True,
        self_check: bool = True,
        memory_budget: int = 2**30,
    ) -> None:
        self.width, self.seed = whole_number("width", width, least=1), whole_number("seed", seed)
        if memory_budget <= 0:
            raise ValueError(f"expected memory_budget in bytes, above 0, got {memory_budget}")
        self._losses = ExampleLoss(model, loss)
        chosen = choose_parameters(self._losses.model, params)
        self._blocks: dict[str, Block] = {}
        self._dim = 0
        for name, parameter in chosen.items():
            block = Block(name, parameter.shape, self.width, self.seed, self._dim)
            self._blocks[name], self._dim = block, block.stop
        self._parameters = sum(parameter.numel() for parameter in chosen.values())
        self._loss = loss
        self._watched = WatchedModel(self._losses)
        self.fallback, self._self_check = fallback, self_check
        self._first = FirstBatch(self._losses, _OR_ELSE)
        self._memory_budget = memory_budget
        self._uses: Uses | None = None
        self._left_out: dict[str, str] = {}  # parameters of the fallback, and the reasons
        self._functional: FunctionalGradients | None = None
        self._chunks = Chunks()
        self._checked = 0  # the most examples of one checked batch: 0, 1, or 2 for more
        self._was_alone = False  # whether the uses were learned from a batch of one example

    @property
    def dim(self) -> int:
        """Number of columns d."""
        return self._dim

    @property
    def handling(self) -> dict[str, str]:
        """How each chosen parameter is handled; complete after the first batch.

        Returns:
            For example `{"conv1.weight": "conv2d: (64, 27) projected to (64, 27)"}`.
        """
        return {name: self._handling_of(name) for name in self._blocks}

    def describe(self) -> str:
        """Return one line that describes the computation.

        Returns:
            For example "projected: width 32 over 62 parameters, D = 11,173,962 -> d = 49,706".
        """
        text = f"projected: width {self.width} over {len(self._blocks)} parameters"
        if self._left_out:
            text += f" ({len(self._left_out)} by the functional fallback)"
        return f"{text}, D = {self._parameters:,} -> d = {self._dim:,}"

    def __call__(self, batch: Batch) -> Tensor:
        """Return the projected gradients of a batch.

        Args:
            batch: n examples, on the model's device.

        Returns:
            Tensor (n, d) float32 on the model's device, detached, for a model of any dtype.

        Raises:
            ValueError: The loss or the batch does not fit, examples interact, or a parameter has no
                rule and `fallback` is False.
            SageError: A loss is not finite; `row` is its position in the batch.

        Warns:
            UserWarning: Memory ran out and the chunk size was halved.
        """
        distinct = min(2, batches.length(batch))
        with torch.inference_mode(False):  # rows are added to while gradients are recorded
            if self._checked < distinct:
                return self._prepare(batch)
            rows = self._in_chunks(batch)
            if self._checked < distinct:  # a new use was found and planned
                rows = self._prepare(batch)
        return rows

    def _in_chunks(self, batch: Batch) -> Tensor:
        rows = self._zeros(batches.length(batch))

        def fill(start: int, part: Batch) -> None:
            self._fill(rows[start : start + batches.length(part)], part)

        self._chunks.run(batch, fill)
        return rows

    def _fill(self, rows: Tensor, batch: Batch) -> None:
        """Fill the rows of a batch; plan again if it takes a new path through the model."""
        is_new = True
        while True:
            try:
                return self._try_to_fill(rows.zero_(), batch)
            except UnsupportedUseError as error:
                if not is_new:
                    self._leave_out(error.names, error.reason)
            is_new = False
            self._plan(batch)

    def _try_to_fill(self, rows: Tensor, batch: Batch) -> None:
        assert self._uses is not None  # there is a plan
        ruled = self._ruled()
        is_recorded = bool(ruled) and self._watched.fill(rows, batch, ruled, self._uses)
        if self._left_out:
            is_recorded |= self._add_fallback(rows, batch)
        if not is_recorded and self._checked:  # before that, single examples raise it
            raise UnrecordedError

    def _add_fallback(self, rows: Tensor, batch: Batch) -> bool:
        """Add the parameters without a rule; return whether the losses depend on them."""
        if self._functional is None:
            self._functional = FunctionalGradients(
                self._losses.model,
                self._loss,
                lambda name, _: name in self._left_out,
                memory_budget=self._memory_budget,
            ).unchecked()
        names = [name for name in self._blocks if name in self._left_out]
        at_once = max(1, self._memory_budget // (8 * self._functional.dim))
        try:
            for start in range(0, len(rows), at_once):
                exact = self._functional(batches.take(batch, start, start + at_once))
                self._add_exact(rows[start : start + at_once], exact, names)
        except UnrecordedError:
            return False
        return True

    def _add_exact(self, rows: Tensor, exact: Tensor, names: Sequence[str]) -> None:
        """Project exact gradients (n, D) of some parameters, and add them to their columns."""
        column = 0
        for name in names:
            block = self._blocks[name]
            length = block.left.side * block.right.side
            block.of(rows).add_(block.project(exact[:, column : column + length]))
            column += length

    def _prepare(self, batch: Batch) -> Tensor:
        """Learn from a batch how parameters are used, and return its checked rows."""
        before = (self._uses, dict(self._left_out), self._checked)
        n = batches.length(batch)
        if self._self_check:
            self._first.check(batch)
        try:
            if self._was_alone:
                self._uses = None  # one example shows less than several
            self._was_alone = n == 1
            self._plan(batch)
            checked = sorted({0, n // 3, 2 * n // 3, n - 1})
            others = sorted({n // 6, n // 2, 5 * n // 6, n - 2} & set(range(n)) - set(checked))
            blocks, exact = list(self._blocks.values()), None
            tolerance = tolerance_of(self._losses.model, self._watched.dtypes)
            while True:
                rows = self._in_chunks(batch)
                wrong = self._missing(rows[checked])
                if exact is None and (wrong or self._self_check or not self._ruled()):
                    exact = self._exact_rows(batches.places(batch, checked))
                if exact is not None:
                    wrong = [name for name in wrong if bool(self._blocks[name].of(exact).any())]
                if exact is not None and self._self_check:
                    found = wrong_blocks(blocks, rows[checked], exact, tolerance)
                    if max(found.values(), default=0) == 1 and others:
                        # One example may lie at a kink, such as that of a ReLU, where rounding
                        # decides between two gradients. A wrong rule shows in others, too.
                        again = self._exact_rows(batches.places(batch, others))
                        found = wrong_blocks(blocks, rows[others], again, tolerance)
                    wrong = list(found)
                if not wrong:
                    break
                refuse_if_examples_interact(self._losses, batch, tolerance, _OR_ELSE)
                self._refuse_if_left_out(wrong)
                self._leave_out(wrong, "its rows differ from those of single examples")
                self._plan(batch)
            if n > 1:
                refuse_zeros(rows)
            self._checked = min(2, n)
            return rows
        except BaseException:
            self._uses, self._left_out, self._checked = before
            self._functional = None
            raise

    def _missing(self, rows: Tensor) -> list[str]:
        """Return the parameters whose rules have added nothing to the rows."""
        return [b.name for b in self._ruled() if not bool(b.of(rows).any())]

    def _plan(self, batch: Batch) -> None:
        """Observe and try the model until every parameter has a rule or is left to the fallback."""
        some = batches.places(batch, range(2))
        self._checked = 0
        while True:
            try:
                observed = self._watched.observe(batch, self._ruled())
                self._uses = {**(self._uses or {}), **observed}
            except UnstableModelError:
                self._leave_out(list(self._blocks), "other functions are called for more examples")
                self._uses = {}
            ruled = {block.name for block in self._ruled()}
            for use in (use for found in self._uses.values() for use in found):
                if use.problem:
                    self._leave_out(use.names, f"{name_of(use.function)}: {use.problem}")
            if any(name in self._left_out for name in ruled):
                continue  # tensors made of several parameters are now made of fewer
            rows = self._zeros(2)
            try:
                held = self._watched.measure(rows, some, self._ruled(), self._uses)
            except UnsupportedUseError as error:
                self._leave_out(error.names, error.reason)
                continue
            # `held` is for two examples: half of it for one, half for work in its largest layer.
            self._chunks.fit(max(1, self._memory_budget // (held + 16 * self._dim)))
            return

    def _exact_rows(self, some: Batch) -> Tensor:
        """Return projected exact gradients, computed by one backward pass per example."""
        loop = LoopGradients(self._losses, list(self._blocks))
        rows = self._zeros(batches.length(some))
        for i in range(len(rows)):
            self._add_exact(rows[i : i + 1], loop(batches.take(some, i, i + 1)), list(self._blocks))
        return rows

    def _leave_out(self, names: Sequence[str], reason: str) -> None:
        fresh = [name for name in names if name not in self._left_out]
        if fresh and not self.fallback:
            module, _, _ = fresh[0].rpartition(".")
            kind = type(self._losses.model.get_submodule(module)).__name__
            raise ValueError(
                f"parameter {fresh[0]!r} of {module or 'the model'} ({kind}) has no rule: "
                f'{reason}; pass fallback=True, gradients="functional", or leave it out with '
                "params="
            )
        if fresh:
            _LOG.warning("no rule for %s: %s; exact gradients instead", ", ".join(fresh), reason)
        self._left_out.update(dict.fromkeys(fresh, reason))
        self._functional = None

    def _refuse_if_left_out(self, wrong: Sequence[str]) -> None:
        if all(name in self._left_out for name in wrong):
            raise ValueError(
                f"gradients of {wrong[0]!r} differ from one computation to the next: the loss of "
                "an example must not depend on chance; call model.eval(), or pass self_check=False"
            )

    def _ruled(self) -> list[Block]:
        return [block for name, block in self._blocks.items() if name not in self._left_out]

    def _handling_of(self, name: str) -> str:
        sizes = self._blocks[name].describe()
        if name in self._left_out:
            return f"functional fallback: {sizes} ({self._left_out[name]})"
        if self._uses is None:
            return sizes
        functions = dict.fromkeys(name_of(f) for f, names in self._uses if name in names)
        if not functions:
            return "unused so far: zero columns"
        return f"{', '.join(functions)}: {sizes}"

    def _zeros(self, n: int) -> Tensor:
        device = next(self._losses.model.parameters()).device
        return torch.zeros((n, self._dim), dtype=torch.float32, device=device)
