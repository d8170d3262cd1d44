"""Which rule: the one that the options name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sage_torch.passes.rating import Known, Rating
from sage_torch.passes.readings import Readings
from sage_torch.reading.classes import ClassBook
from sage_torch.rules.chosen import Rule, Task
from sage_torch.rules.streamed import HerdingInBlocks
from sage_torch.rules.trimming import Trimming, trims_nothing
from sage_torch.rules.whole import Agreement, Herding, RandomDraws
from sage_torch.rules.worth import Worth


def rule_for(
    job: Task,
    classes: ClassBook,
    quotas: NDArray[np.int64],
    *,
    width: int,
    known: Known | None,
    sample: NDArray[np.int32] | None,
    earlier: Readings | None = None,
) -> Rule:
    """Return the rule that the options name.

    Args:
        job: `options.rule`, `draw`, `trim`, `seed`; the mode; the shards.
        classes: The class and the group of every example.
        quotas: int64 (C,), how many of each group to keep.
        width: Numbers of an example that herding compares.
        known: What is known of the labels; None without a readout.
        sample: int32 (m,), the classes of its sample.
        earlier: What earlier selections have read of the labels.
    """
    trim = job.options.trim
    if trims_nothing(job.options, classes):
        trim = None
    elif trim == "auto":
        trim = "negative"  # margins, or what the rating puts in their place
    options, class_ids = replace(job.options, trim=trim), classes.groups()
    if options.rule == "agreement":
        return Agreement(class_ids, quotas, options)
    rating = None
    if known is not None and sample is not None:
        sizes = classes.sizes()  # of groups
        shares = np.divide(quotas, sizes, out=np.ones(len(sizes)), where=sizes > 0)
        shares = np.broadcast_to(shares, (classes.count,))  # one group, or the classes
        rating = Rating.of(known, sample, shares, has_budget=options.draw == "fixed")
    trimming = Trimming(rating, classes.of(slice(None)))
    if options.draw == "rotate" and rating is not None and known is not None:
        return Worth(class_ids, quotas, options, rating, known.calibration.rho, earlier)
    if options.draw == "random":
        return RandomDraws(class_ids, quotas, options, trimming)
    if job.mode.is_streaming:
        return HerdingInBlocks(job, options, classes, quotas, width, trimming)
    return Herding(class_ids, quotas, options, trimming)
