"""The sampler: what it selects and when, in which order it yields, and who splits it over ranks."""

from sage_torch.sampler.sage_sampler import SageSampler

__all__ = ["SageSampler"]
