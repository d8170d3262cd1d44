"""Per-example gradients: the interface of a gradient computer, and three implementations."""

from sage_torch.gradients.batches import Batch
from sage_torch.gradients.choice import choose_gradients, handling_of, reason_of
from sage_torch.gradients.computer import GradientChoice, GradientComputer, rows_of
from sage_torch.gradients.functional import FunctionalGradients
from sage_torch.gradients.last_layer import LastLayerGradients
from sage_torch.gradients.loss import LossFunction, unwrap
from sage_torch.gradients.parameters import ParameterChoice
from sage_torch.gradients.projected.projected_gradients import ProjectedGradients

__all__ = [
    "Batch",
    "FunctionalGradients",
    "GradientChoice",
    "GradientComputer",
    "LastLayerGradients",
    "LossFunction",
    "ParameterChoice",
    "ProjectedGradients",
    "choose_gradients",
    "handling_of",
    "reason_of",
    "rows_of",
    "unwrap",
]
