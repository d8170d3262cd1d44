"""What labels say after the first epoch of a longer warm-up."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset, Subset

import sage_torch._core as _core
from sage_torch.checks import count_examples
from sage_torch.gradients.loss import unwrap
from sage_torch.options import Options
from sage_torch.passes.calibration import FirstReading
from sage_torch.passes.job import Job, with_features
from sage_torch.passes.labelling import judging_pass
from sage_torch.reading.loading import Loading
from sage_torch.reading.ranks import ranks
from sage_torch.reading.user_state import preserved

_MOST = 8_192  # examples that are read
_STREAM = 2**34  # keeps the sample apart from other permutations


def first_reading(
    model: nn.Module, dataset: Dataset[Any], options: Options, loading: Loading
) -> FirstReading | None:
    """Return how many labels look wrong now, and how far that can be trusted, by a sample.

    A network learns right labels before wrong ones (Arpit et al., "A Closer Look at Memorization in
    Deep Networks", ICML 2017). After some epochs few labels contradict it, and fewer are taken to
    be wrong than are. After one epoch it is rather the other way: what is hard contradicts it, too.

    Args:
        model: The live model, after its first epoch.
        dataset: The examples.
        options: Those of the selection to come.
        loading: How the loader of the sampler reads.

    Returns:
        The reading; None where the selection will not ask for it, where there are no classes or
        features, or where something fails: the selection will say what, and which example.

    Cost:
        A forward pass of all examples, of 8,192 at most.
    """
    if (
        options.rule != "herding"
        or options.trim != "auto"
        or not isinstance(options.gradients, str)
    ):
        return None
    total = count_examples(dataset)
    drawn = _core.Permutation(total, options.seed, _STREAM).take(0, min(total, _MOST))
    places = np.sort(drawn)
    labels = options.labels
    asked = replace(
        options,
        keep=0.5,
        draw="rotate",
        labels=labels[places] if isinstance(labels, np.ndarray) else labels,
        gradients="auto",
        consensus="auto",
        duplicates="keep",
        keep_coordinates=False,
        shards=None,
        checkpoint=None,
    )
    group, inner = ranks(options.distributed), unwrap(model)
    sample: Dataset[Any] = Subset(dataset, places.tolist())
    try:
        with preserved(inner):
            job = group.together(lambda: Job.of(inner, sample, asked, group, loading))
            group.share_buffers(inner)
            with closing(job.reader):
                job = group.together(lambda: with_features(job, inner))
                labelled = judging_pass(job) if job.judges_alone else None
    except (_core.SageError, TypeError, ValueError):
        return None
    if labelled is None:
        return None
    found = labelled.readout.calibration
    return FirstReading(found.rho, found.skill, found.trust)
