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
# The same two runs repeated: their difference varied by up to 0.4 MiB (page-granular heaps).
NOISE = 2**19

# Each run is a process of its own: a peak never falls. VmHWM, because ru_maxrss survives exec and
# would report the peak of the process that ran pytest where that is higher.
PROGRAM = """
import sys
import numpy as np
import torch
from torch.utils.data import Dataset
from sage_torch import select_subset

examples, (rule, draw), hoard = int(sys.argv[1]), sys.argv[2:4], int(sys.argv[4])
torch.set_num_threads(1)


class Computed(Dataset):
    def __len__(self):
        return examples

    def __getitem__(self, index):
        return self.__getitems__([index])

    def __getitems__(self, indices):
        places = torch.tensor(indices)
        return torch.sin(places[:, None] * torch.arange(1, 17) * 0.37), places % 10


kept = np.ones(examples * hoard, np.uint8)
selection = select_subset(
    torch.nn.Linear(16, 10), Computed(), 0.1, rule=rule, draw=draw, consensus="streaming",
    sketch_size=16, gradients=lambda batch: batch[0], collate_fn=lambda batch: batch,
    batch_size=512, progress=False,
)
assert len(selection.indices) == examples // 10
assert len(selection.scores) == len(selection.margins) == len(selection.labels) == examples
(peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak.split()[1]) * 1024)
"""


def peak(examples: int, rule: str, draw: str, hoard: int = 0) -> int:
    """Return the peak resident bytes of one selection, while holding `hoard` bytes an example."""
    # One arena and fixed thresholds: freed blocks go back to the system, so that what is measured
    # is what the program holds, not how the C library splits its heap.
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    malloc["MALLOC_TRIM_THRESHOLD_"] = "65536"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(examples), rule, draw, str(hoard)],
        env={**os.environ, **malloc, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def growth(small: int, large: int) -> float:
    return (large - small) / (LARGE - SMALL)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(("rule", "draw"), BYTES_AN_EXAMPLE)
def test_streaming_memory_grows_by_a_few_bytes_an_example(rule: str, draw: str) -> None:
    expected = BYTES_AN_EXAMPLE[rule, draw]
    allowed = expected + NOISE / (LARGE - SMALL)
    small, large = peak(SMALL, rule, draw), peak(LARGE, rule, draw)
    print(f"{rule}, {draw}: peak grows by {growth(small, large):.1f} bytes an example")
    assert growth(small, large) <= allowed
    if rule == "agreement":  # and the measurement would have noticed as much again
        assert growth(small, peak(LARGE, rule, draw, hoard=expected)) > allowed
