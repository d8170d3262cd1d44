"""What a selection gives: indices, scores, what the sketch guarantees, and draws for each epoch."""

from sage_torch.selection.certificate import Certificate
from sage_torch.selection.result import Selection

__all__ = ["Certificate", "Selection"]
