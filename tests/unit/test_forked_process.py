"""A process that forks goes on: the sketch's threads live in the parent alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FORKING = """
import os, sys, threading, torch
from sage_torch import FrequentDirections

rows = torch.randn(40, 500, generator=torch.Generator().manual_seed(0))

def sketched():
    sketch = FrequentDirections(8, 500)
    sketch.update(rows)
    return sketch.matrix().tolist()

for threads in (1, 2):
    torch.set_num_threads(threads)
    before = sketched()
    child = os.fork()
    if child == 0:
        found = [sketched()]
        other = threading.Thread(target=lambda: found.append(sketched()))
        other.start()
        other.join()
        os._exit(0 if found == [before, before] else 1)
    assert os.waitpid(child, 0)[1] == 0, threads
    assert sketched() == before, threads
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_sketches_like_its_parent() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKING]
    subprocess.run(command, check=True, timeout=240)
