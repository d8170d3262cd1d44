"""The sampler: when it selects, in which order it yields, and who splits its epochs over ranks."""

from sage_torch.sampler.sage_sampler import SageSampler

__all__ = ["SageSampler"]
