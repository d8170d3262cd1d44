"""Checks that all ranks want the same selection, and finds what is done of it already."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from sage_torch.checkpoint.fingerprint import difference, fingerprint, probed
from sage_torch.checkpoint.snapshots import OtherSnapshotsError, Snapshots
from sage_torch.gradients.compressed import counted_rows
from sage_torch.passes.job import Job
from sage_torch.reading.reader import naming_the_example
from sage_torch.selection.result import Selection


def identified(job: Job, model: nn.Module, dataset: Dataset[Any]) -> tuple[Job, Selection | None]:
    """Check that all ranks want the same selection, and look for snapshots of it.

    Args:
        job: The result of `Job.of`.
        model: As in `Job.of`.
        dataset: As in `Job.of`.

    Returns:
        The job, with snapshots if a folder was given, and the selection if it is finished.

    Raises:
        OtherSnapshotsError: The folder holds another selection's snapshots.
        ValueError: Ranks do not want the same selection.
        RuntimeError: Another process writes to the folder.
        OSError: The folder cannot be written.
        SageError: Another rank failed.
    """
    folder, ranks = job.options.checkpoint, job.ranks
    if folder is None and ranks.size == 1:
        return job, None
    what, device = ranks.together(lambda: _identity(job, model, dataset))
    everyone = ranks.gather((what, folder is None))
    for rank, (other, has_none) in enumerate(everyone):
        differs = difference(other, everyone[0][0])
        if has_none != everyone[0][1]:
            differs = "a checkpoint folder" if everyone[0][1] else "no checkpoint folder"
        if differs is not None:
            raise ValueError(
                f"expected every rank to select the same, but rank {rank} has {differs}, compared "
                "with rank 0; give all the same model, data set and options"
            )
    job = replace(job, device=device)
    if folder is None:
        return job, None
    snapshots, is_first = Snapshots(os.fspath(folder), what), ranks.rank == 0
    found = ranks.broadcast(ranks.together(lambda: snapshots.found() if is_first else None))
    if found is not None and (differs := difference(found, what)) is not None:
        raise OtherSnapshotsError(os.fspath(folder), differs)
    finished = ranks.broadcast(ranks.together(lambda: snapshots.result() if is_first else None))
    if finished is None:
        ranks.together(lambda: snapshots.open(is_first=True) if is_first else None)
        ranks.together(lambda: None if is_first else snapshots.open(is_first=False))
    return replace(job, snapshots=snapshots), finished


def _identity(
    job: Job, model: nn.Module, dataset: Dataset[Any]
) -> tuple[dict[str, Any], torch.device | None]:
    """Return the fingerprint, and the device of the gradients.

    A computer learns from the first batch that it sees. Here, that batch is the same on all ranks,
    and the same when a selection resumes.
    """
    indices = probed(job.reader.total)
    batch, rows = job.reader.probe(indices), None
    if job.options.rule != "random" and batch is not None:
        with naming_the_example(indices):
            rows = counted_rows(job.computer, batch, len(indices))
    what = fingerprint(
        model, dataset, job.options, batch, rows, k=job.plan.k, shards=len(job.shards)
    )
    return what, None if rows is None else rows.device
