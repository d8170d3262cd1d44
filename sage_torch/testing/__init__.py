"""For your own test suite: a subset must not train a worse model than a baseline does."""

from sage_torch.testing.accuracy import assert_subset_accuracy
from sage_torch.testing.comparison import Comparison

__all__ = ["Comparison", "assert_subset_accuracy"]
