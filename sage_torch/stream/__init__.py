"""Streams: examples of an IterableDataset that are kept or dropped as they pass."""

from sage_torch.stream.sage_stream import SageStream

__all__ = ["SageStream"]
