"""Streaming selection is constant memory but for scores, margins, labels and indices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL, LARGE = 20_000, 200_000
# By rule and draw, at keep=0.1. 8 bytes a label, 4 a score, 4 a margin and 4 a class id, with
# herding no more than an index for what is kept. The other rules hold an index of what the trim
# leaves, before there are labels; an order of them all is also checked, in sorted copies.
BYTES_AN_EXAMPLE = {("herding", "fixed"): 24, ("agreement", "fixed"): 28, ("herding", "rotate"): 45}
AGREEMENT = ("agreement", "fixed")
# The same two runs repeated: their difference varied by up to 0.4 MiB (page-granular heaps).
NOISE = 2**19

# Each run is a process of its own, since a peak never falls, forked from one that has imported all
# that it takes and has done nothing yet. VmHWM, because ru_maxrss survives exec and
# would report the peak of the process that ran pytest where that is higher.
PROGRAM = """
import os
import sys
import numpy as np
import torch
from torch.utils.data import Dataset
from sage_torch import select_subset

torch.set_num_threads(1)


class Computed(Dataset):
    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return self.examples

    def __getitem__(self, index):
        return self.__getitems__([index])

    def __getitems__(self, indices):
        places = torch.tensor(indices)
        return torch.sin(places[:, None] * torch.arange(1, 17) * 0.37), places % 10


def peak(examples, rule, draw, hoard):
    kept = np.ones(examples * hoard, np.uint8)
    selection = select_subset(
        torch.nn.Linear(16, 10), Computed(examples), 0.1, rule=rule, draw=draw,
        consensus="streaming", sketch_size=16, gradients=lambda batch: batch[0],
        collate_fn=lambda batch: batch, batch_size=512, progress=False,
    )
    assert len(selection.indices) == examples // 10
    assert len(selection.scores) == len(selection.margins) == len(selection.labels) == examples
    (peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(peak.split()[1]) * 1024


for run in sys.argv[1:]:
    examples, rule, draw, hoard = run.split()
    child = os.fork()
    if child == 0:
        print(peak(int(examples), rule, draw, int(hoard)), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, run
"""
Run = tuple[int, str, str, int]  # examples, rule, draw, and bytes an example held besides


@pytest.fixture(scope="module")
def peaks() -> dict[Run, int]:
    """The peak resident bytes of each selection."""
    runs: list[Run] = [(n, *how, 0) for how in BYTES_AN_EXAMPLE for n in (SMALL, LARGE)]
    runs.append((LARGE, *AGREEMENT, BYTES_AN_EXAMPLE[AGREEMENT]))
    # One arena and fixed thresholds: freed blocks go back to the system, so that what is measured
    # is what the program holds, not how the C library splits its heap.
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    malloc["MALLOC_TRIM_THRESHOLD_"] = "65536"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(" ".join(map(str, run)) for run in runs)],
        env={**os.environ, **malloc, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(runs, map(int, done.stdout.split()), strict=True))


def growth(small: int, large: int) -> float:
    return (large - small) / (LARGE - SMALL)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(("rule", "draw"), BYTES_AN_EXAMPLE)
def test_streaming_memory_grows_by_a_few_bytes_an_example(
    rule: str, draw: str, peaks: dict[Run, int]
) -> None:
    expected = BYTES_AN_EXAMPLE[rule, draw]
    allowed = expected + NOISE / (LARGE - SMALL)
    small, large = peaks[SMALL, rule, draw, 0], peaks[LARGE, rule, draw, 0]
    print(f"{rule}, {draw}: peak grows by {growth(small, large):.1f} bytes an example")
    assert growth(small, large) <= allowed
    if (rule, draw) == AGREEMENT:  # and the measurement would have noticed as much again
        assert growth(small, peaks[LARGE, rule, draw, expected]) > allowed
