"""Pictures of a selection, of a sketch and of training runs.

They need matplotlib (`pip install 'sage-torch[demo]'`), which each function imports when it is
called. The colours are those of Okabe and Ito, which suit every kind of colour vision.

`score_histogram`, `score_histogram_by_class`
    the number of examples kept and dropped at each agreement, margin or label probability
`kept_and_dropped`, `overview`, `worst`
    the examples themselves: some of each class, or those whose labels look wrong
`spectrum`
    the energy in a sketch, with bounds for the exact values
`accuracy_against_keep`, `accuracy_against_time`
    the accuracy of training on subsets
"""

from sage_torch.plots.examples import kept_and_dropped, overview, worst
from sage_torch.plots.runs import accuracy_against_keep, accuracy_against_time
from sage_torch.plots.scores import score_histogram, score_histogram_by_class
from sage_torch.plots.spectrum import spectrum

__all__ = [
    "accuracy_against_keep",
    "accuracy_against_time",
    "kept_and_dropped",
    "overview",
    "score_histogram",
    "score_histogram_by_class",
    "spectrum",
    "worst",
]
