"""Accelerate, `Trainer` and Lightning on two processes: each example once, nobody splits twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

Told = list[dict[str, Any]]  # by rank
SCRIPT = Path(__file__).with_name("two_processes.py")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What the two processes wrote; both are ended when one hangs."""
    out = tmp_path_factory.mktemp("two")
    job = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "none",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": "1",
    }
    with (out / "log").open("w") as log:
        parent = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(out)],
            env=os.environ | job,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, which ends as a whole
        )
        try:
            code = parent.wait(timeout=240)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)
    assert code == 0, (out / "log").read_text()[-8000:]
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


def check_split(epochs: tuple[list[int], list[int]], subset: list[int]) -> None:
    first, second = epochs
    assert len(first) == len(second) == 12
    assert sorted(first + second) == subset  # so disjoint, too
    assert len(subset) == 24


def test_accelerate_splits_once(told: Told) -> None:
    ranks = [rank["accelerate"] for rank in told]
    assert ranks[0]["subsets"] == ranks[1]["subsets"]
    for epoch in range(2):
        seen = (ranks[0]["seen"][epoch], ranks[1]["seen"][epoch])
        check_split(seen, ranks[0]["subsets"][epoch])
    assert ranks[0]["subsets"][0] != ranks[0]["subsets"][1]  # of the model as it was then
    assert ranks[0]["weights"] == ranks[1]["weights"]
    for rank in ranks:
        assert rank["length"] == rank["steps"] == 3


def test_accelerate_resumes(told: Told) -> None:
    for rank in told:
        assert rank["accelerate"]["rest"] == rank["accelerate"]["seen"][1][4:]


def test_accelerate_must_not_read_on_one_process(told: Told) -> None:
    for rank in told:
        message = rank["accelerate refuses"]["dispatched"]
        assert message.startswith("RuntimeError")
        assert "dispatch_batches=False" in message


def test_accelerate_must_not_split_a_second_time(told: Told) -> None:
    for rank in told:
        message = rank["accelerate refuses"]["twice"]
        assert message.startswith("RuntimeError")
        assert "Accelerate" in message
        assert "num_replicas" in message


def test_trainer_splits_once(told: Told) -> None:
    ranks = [rank["transformers"] for rank in told]
    assert ranks[0]["subsets"] == ranks[1]["subsets"]
    subset, loaded = ranks[0]["subsets"]
    assert subset == loaded
    for epoch in range(2):
        check_split((ranks[0]["seen"][epoch], ranks[1]["seen"][epoch]), subset)
    assert ranks[0]["seen"][0] != ranks[0]["seen"][1]


def test_trainer_resumes(told: Told) -> None:
    for rank in told:
        seen = rank["transformers"]["seen"]
        assert rank["transformers"]["rest"] == seen[1][4:]


def test_lightning_splits_once(told: Told) -> None:
    ranks = [rank["lightning"] for rank in told]
    assert ranks[0]["subset"] == ranks[1]["subset"]
    check_split((ranks[0]["seen"][1], ranks[1]["seen"][1]), ranks[0]["subset"])
    first = sorted(ranks[0]["seen"][0] + ranks[1]["seen"][0])
    assert len(set(first)) == 24
    assert first != ranks[0]["subset"]  # of the model as it was then
    assert ranks[0]["weights"] == ranks[1]["weights"]
    for rank in ranks:
        assert rank["steps"] == [6, 6]


def test_lightning_resumes(told: Told) -> None:
    for rank in told:
        assert rank["lightning"]["rest"] == [rank["lightning"]["seen"][1][4:]]


def test_lightning_must_not_wrap(told: Told) -> None:
    for rank in told:
        assert "RuntimeError: expected nobody else to split" in rank["lightning wraps"]
        for message in (rank["lightning wraps"], rank["lightning wraps unseen"]):
            assert message.startswith("RuntimeError")
            assert "use_distributed_sampler=False" in message
