"""Exact gradients of few parameters, by the fastest way that the model allows."""

from __future__ import annotations

import logging

from torch import Tensor, nn

from sage_torch.gradients.batches import Batch
from sage_torch.gradients.functional import FunctionalGradients
from sage_torch.gradients.loss import LossFunction
from sage_torch.gradients.parameters import ParameterChoice
from sage_torch.gradients.projected.projected_gradients import ProjectedGradients

__all__ = ["SmallGradients"]


class SmallGradients(FunctionalGradients):
    """The rows of `FunctionalGradients`, for `gradients="auto"`.

    Where vmap refuses a model, as it does many of Hugging Face, `ProjectedGradients` is tried
    before one backward pass per example. Its width is D here, so that nothing is projected: rows
    and columns are the same.

    Args:
        model: As `FunctionalGradients`.
        loss: As `FunctionalGradients`.
        params: As `FunctionalGradients`.
        memory_budget: As `FunctionalGradients`.

    Raises:
        ValueError: As `FunctionalGradients`.

    Cost:
        As `FunctionalGradients`, or as `ProjectedGradients`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction | None = None,
        params: ParameterChoice | None = None,
        *,
        memory_budget: int = 2**30,
    ) -> None:
        super().__init__(model, loss, params, memory_budget=memory_budget)
        self._projected = ProjectedGradients(
            model, self.dim, loss, params, fallback=False, memory_budget=memory_budget
        )

    def describe(self) -> str:
        """Return one line that describes the computation."""
        is_projected = self._instead is self._projected
        return self._projected.describe() if is_projected else super().describe()

    @property
    def handling(self) -> dict[str, str]:
        """How each chosen parameter is handled."""
        is_projected = self._instead is self._projected
        return self._projected.handling if is_projected else super().handling

    def _without_vmap(self, batch: Batch, cause: str) -> Tensor:
        try:
            rows = self._projected(batch)
        except Exception:  # a parameter without a rule, or an error that the loop raises too
            rows = None
        if rows is None:
            return super()._without_vmap(batch, cause)
        self._projected.fallback = True  # a later batch may use parameters in a new way
        self._instead = self._projected
        logging.getLogger("sage_torch").info(
            "vmap refuses this model (%s): exact gradients layer by layer instead", cause
        )
        return rows
