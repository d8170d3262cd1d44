"""The version of this package and the torch that it was built for: every file may import them."""

__version__ = "0.1.0"

# The compiled part is built against the layouts of one minor version of torch.
BUILT_FOR = (2, 11)
