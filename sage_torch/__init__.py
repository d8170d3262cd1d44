"""Choose the training examples worth a gradient step.

SAGE (Streaming Agreement-Driven Gradient Sketches): pass 1 streams per-example gradients into a
Frequent Directions sketch, pass 2 scores each example by its agreement with the consensus of its
class, and a rule keeps a fraction. Memory grows neither with N x N nor with N x D.

    from torch.utils.data import DataLoader
    from sage_torch import SageSampler

    loader = DataLoader(dataset, batch_size=128, sampler=SageSampler(model, keep=0.25))
    for epoch in range(epochs):
        for inputs, targets in loader:  # the first epoch selects; the loop is the one you had
            ...
"""

import torch as _torch

from sage_torch.version import BUILT_FOR as _BUILT_FOR

# The loader would not notice another torch than the compiled part was built for: it would crash
# later. So the versions are compared before it is loaded.
_found = tuple(int(part) for part in _torch.__version__.split("+")[0].split(".")[:2])
if _found != _BUILT_FOR:
    raise ImportError(
        f"sage_torch was built for PyTorch {_BUILT_FOR[0]}.{_BUILT_FOR[1]}, but PyTorch "
        f"{_torch.__version__} is installed. Install torch 2.11 (pip install 'torch==2.11.*'), or "
        "build sage_torch against your version."
    )

try:
    from sage_torch._core import FrequentDirections, SageError
except ModuleNotFoundError as _error:
    if _error.name != "sage_torch._core":
        raise
    raise ImportError(
        "sage_torch._core, the compiled part, is missing: this looks like a source folder that was "
        "not built. Run `pip install .` (or `pip install -e .`) in the project root; it needs Rust."
    ) from _error

from sage_torch.gradients.compressed import CountSketch
from sage_torch.gradients.functional import FunctionalGradients
from sage_torch.gradients.last_layer import LastLayerGradients
from sage_torch.gradients.projected.projected_gradients import ProjectedGradients
from sage_torch.sampler.sage_sampler import SageSampler
from sage_torch.select import select_subset
from sage_torch.selection.certificate import Certificate
from sage_torch.selection.result import Selection
from sage_torch.stream.sage_stream import SageStream
from sage_torch.version import __version__ as __version__

__all__ = [
    "Certificate",
    "CountSketch",
    "FrequentDirections",
    "FunctionalGradients",
    "LastLayerGradients",
    "ProjectedGradients",
    "SageError",
    "SageSampler",
    "SageStream",
    "Selection",
    "select_subset",
]
