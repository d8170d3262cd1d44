"""Projected gradients of a whole network: see the README of this folder."""

from sage_torch.gradients.projected.projected_gradients import ProjectedGradients

__all__ = ["ProjectedGradients"]
