"""Peak memory of one contender of benchmarks/speed/gradients.py, in a process of its own.

The level before: model, a first call on two examples, which leaves behind what is made once
(kernels, projections), and the batch, but no gradient. The peak: the most that was held while one
whole batch was worked on, rows returned included. On the CPU resident memory, with an allocator
that gives freed memory back at once; on CUDA what torch has allocated.

    python -m benchmarks.speed.peak_memory ResNet-18 projected cpu 2 0  # device, threads, seed
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import warnings
from pathlib import Path

import torch

from benchmarks.quality.models import CASES
from benchmarks.record import in_own_process
from benchmarks.speed.contenders import examples_of, maker

# glibc keeps freed memory for later otherwise, and the peak would hang on what was freed before.
GIVES_MEMORY_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def increase_of(model: str, contender: str, device: str, threads: int, seed: int) -> int:
    """Return the increase in bytes that a fresh process measures."""
    arguments = (model, contender, device, str(threads), str(seed))
    module = "benchmarks.speed.peak_memory"
    return int(in_own_process(module, *arguments, variables=GIVES_MEMORY_BACK).split()[-1])


def increase(model: str, contender: str, device: str, threads: int, seed: int) -> int:
    """Return the peak over the level before, in bytes, of one batch in this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    case = CASES[model]
    network = case.model(seed, device)
    run = maker(contender)(case, network)
    run(case.batch(2, seed + 1, device))
    for parameter in network.parameters():
        parameter.grad = None
        if hasattr(parameter, "grad_sample"):
            parameter.grad_sample = None
    batch = case.batch(examples_of(case, contender), seed, device)
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = run(batch)
        torch.cuda.synchronize()
        after = torch.cuda.max_memory_allocated()
    else:
        before = restarted_peak()
        kept = run(batch)
        after = resident_peak()
    del kept
    return after - before


def restarted_peak() -> int:
    """Return resident memory now, after making it the peak where the system allows that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return resident_peak()


def resident_peak() -> int:
    """Return the most memory that this process has had resident, in bytes."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    model, contender, device, threads, seed = sys.argv[1:]
    print(increase(model, contender, device, int(threads), int(seed)))
