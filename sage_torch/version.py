"""The version of this package and the least version of torch: every file may import them."""

__version__ = "0.1.0"

LEAST_TORCH = (2, 6)
