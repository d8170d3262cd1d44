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

import re as _re

import torch as _torch

from sage_torch.version import LEAST_TORCH as _LEAST_TORCH

# Whatever follows the first two numbers: "2.16.0.dev20261101+cu132" is 2.16.
_found = _re.match(r"(\d+)\.(\d+)", str(_torch.__version__))
if _found and tuple(map(int, _found.groups())) < _LEAST_TORCH:
    raise ImportError(
        f"sage_torch needs PyTorch {_LEAST_TORCH[0]}.{_LEAST_TORCH[1]} or later, but PyTorch "
        f"{_torch.__version__} is installed. Run: pip install -U torch"
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
