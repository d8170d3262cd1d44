"""A selection holds a few gradients of D numbers at once, and nothing of size D x l."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PARAMETERS, SKETCH_SIZE = 5_000_000, 64
# Over what the network takes; 2.2 (functional) and 3.2 (projected) were measured.
COPIES = 6

PROGRAM = """
import os
import sys
import torch
from torch import nn
from torch.utils.data import TensorDataset
from sage_torch import select_subset

parameters, sketch_size = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
torch.manual_seed(0)


def select(width, gradients, hoard, count=12):
    data = TensorDataset(torch.randn(count, 90), torch.arange(count) % 10)
    model = nn.Sequential(nn.Linear(90, width), nn.ReLU(), nn.Linear(width, 10))
    held = sum(parameter.numel() for parameter in model.parameters())
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    kept = torch.ones(held, hoard) if hoard else None
    selection = select_subset(
        model, data, 6, gradients=gradients, sketch_size=sketch_size, memory_budget=2**24,
        progress=False,
    )
    assert len(selection) == 6
    return (peak() - before) / (4 * held)


def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


for run in sys.argv[3:]:
    gradients, hoard = run.split()
    child = os.fork()  # a process each, all that they import imported once
    if child == 0:
        select(1000, gradients, int(hoard))  # what is made once
        print(select(parameters // 101, gradients, int(hoard)), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, run
"""
RUNS = [("functional", 0), ("projected", 0), ("projected", COPIES)]


@pytest.fixture(scope="module")
def copies() -> dict[tuple[str, int], float]:
    """The peak of each selection, over the network's own parameters, in copies of them."""
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(PARAMETERS), str(SKETCH_SIZE),
         *(f"{gradients} {hoard}" for gradients, hoard in RUNS)],
        env={**os.environ, **malloc, "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(RUNS, map(float, done.stdout.split()), strict=True))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("gradients", ["functional", "projected"])
def test_no_matrix_of_all_parameters_is_held(
    gradients: str, copies: dict[tuple[str, int], float]
) -> None:
    found = copies[gradients, 0]
    print(f"{gradients}: {found:.2f} copies of the parameters")
    assert found < COPIES < SKETCH_SIZE
    if gradients == "projected":  # and the measurement would have noticed a few more
        assert copies[gradients, COPIES] > COPIES
