"""The version of this package, and of nothing else: every file may import it."""

__version__ = "0.1.0"
