"""Pictures of a selection, of a sketch and of training runs.

They need matplotlib (`pip install 'sage-torch[demo]'`), imported when a function is called. Colours
are those of Okabe and Ito: told apart by every kind of colour vision, and most of them in grey.

`score_histogram`, `score_histogram_by_class`
    how many examples were kept and dropped at each agreement, or at each margin
`kept_and_dropped`, `overview`, `worst`
    the examples themselves: of each class, or those of the lowest margin
`spectrum`
    what a sketch holds, and between which bounds the truth lies
`accuracy_against_keep`, `accuracy_against_time`
    what training on subsets came to
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
