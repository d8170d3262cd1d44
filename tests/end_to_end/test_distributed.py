"""Ranks that select together: the same subset as one process, and one error for all."""

from __future__ import annotations

import gc
import math
import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # imported while a group is up, its default arguments hold the group for ever
import torch.distributed as dist
from distributed_job import CASES, KEEP, SHARDS, images, network, selections
from torch.utils.data import TensorDataset

import sage_torch
from sage_torch import SageError, select_subset
from sage_torch.reading.ranks import Ranks, ranks
from sage_torch.reading.shards import MergeTree, Shard, cut, of_rank, places_of

SCRIPT = Path(__file__).parents[1] / "distributed_job.py"
JOBS = [("all", 3), ("killed", 2)]
SLOW = [2, 4]  # ranks; of eight shards, three get unequal parts


@dataclass(frozen=True)
class Job:
    """What each rank found (those that lived), and the exit code of each."""

    found: list[dict[str, Any]]
    codes: list[int | None]


Outcomes = dict[tuple[str, int], tuple[Path, Job]]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Each job's folder and outcome: all of them from one process, which forks the ranks."""
    return run(JOBS, tmp_path_factory)


def run(jobs: list[tuple[str, int]], folders: pytest.TempPathFactory) -> Outcomes:
    asked = {(what, size): folders.mktemp("ranks") for what, size in jobs}
    words = [str(word) for (what, size), folder in asked.items() for word in (folder, what, size)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(sage_torch.__file__).parents[1]),
    }
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        env=environment, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4_000:]
    outcomes = {}
    for (what, size), folder in asked.items():
        paths = [folder / f"{rank}-of-{size}.pickle" for rank in range(size)]
        found = [pickle.loads(path.read_bytes()) for path in paths if path.exists()]
        codes = pickle.loads((folder / f"ended-{size}.pickle").read_bytes())
        if what == "all":
            assert codes == [0] * size, ended.stderr[-4_000:]
        outcomes[what, size] = folder, Job(found, codes)
    return outcomes


@contextmanager
def one_thread() -> Iterator[None]:
    """As the ranks have: with more, a model rounds otherwise, and herding chooses otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    with one_thread():
        data = images()
        model = network(data)
        model.eval()
        return selections(data, model)


@pytest.fixture(
    scope="module", params=[3, *(pytest.param(size, marks=pytest.mark.slow) for size in SLOW)]
)
def together(
    request: pytest.FixtureRequest, jobs: Outcomes, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    job = "all", request.param
    found = (jobs if job in jobs else run([job], tmp_path_factory))[job][1].found
    assert len(found) == request.param
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_subset_is_that_of_one_process(
    together: list[dict[str, Any]], alone: dict[str, Any], case: str
) -> None:
    of_first = together[0]["selections"][case]
    for other in together[1:]:
        for ours, theirs in zip(of_first, other["selections"][case], strict=True):
            np.testing.assert_equal(theirs, ours)  # bit by bit, on every rank
    indices, scores, margins, probabilities, labels, weights, certificate, *others = alone[case]
    differing = len(np.setxor1d(of_first[0], indices))
    # The arithmetic is the same, shard by shard and in the same order: here not one differs. Sums
    # of a consensus that is carried along are matrix products over classes, whose order, of first
    # appearance, is a rank's own: there float32 may round otherwise.
    allowed = 2 if "streaming" in CASES[case].get("consensus", "") else 0
    assert differing <= allowed, f"{differing} of {len(indices)} indices differ"
    np.testing.assert_allclose(of_first[1], scores, atol=1e-5)
    np.testing.assert_equal(of_first[4], labels)
    if margins is not None:
        np.testing.assert_allclose(of_first[2], margins, atol=1e-5)
    if probabilities is not None:
        np.testing.assert_allclose(of_first[3], probabilities, atol=1e-6)
    if weights is not None and not differing:
        np.testing.assert_allclose(of_first[5], weights, rtol=1e-5)
    if certificate is not None:
        assert of_first[6]["shrinkage"] == pytest.approx(certificate["shrinkage"], rel=1e-6)
    if not differing:
        for ours, theirs in zip(of_first[7:], others, strict=True):  # ranks, predicted, another cut
            np.testing.assert_equal(ours, theirs)


def test_one_failing_rank_fails_all(together: list[dict[str, Any]]) -> None:
    last = len(together) - 1
    assert together[last]["failed"] == "OSError: the disk is gone"
    for found in together[:last]:
        assert found["failed"].startswith("SageError: expected every rank to select, but 1 of ")
        assert f"rank {last}: OSError: the disk is gone" in found["failed"]


def test_ranks_must_agree_on_what_to_select(together: list[dict[str, Any]]) -> None:
    for found in together:
        assert "rank 1 has another model, compared with rank 0" in found["other model"]
        assert "other options (k=" in found["other keep"]


def test_what_one_rank_refuses_all_refuse(together: list[dict[str, Any]]) -> None:
    for found in together:
        assert "rank 1 has no checkpoint folder, compared with rank 0" in found["other folder"]
    assert "expected to keep at most" in together[0]["too many"]
    for found in together[1:]:
        assert "rank 0: ValueError: expected to keep at most" in found["too many"]


def test_rank_0_says_when_to_refresh(together: list[dict[str, Any]]) -> None:
    assert all(found["refreshed"] for found in together)


def test_fewer_examples_than_shards(together: list[dict[str, Any]]) -> None:
    for found in together:
        assert np.array_equal(found["few"], together[0]["few"])
        assert len(found["few"]) == 2


def test_ranks_that_share_a_folder(together: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    first, _ = together[0]["finished"]
    assert first.settings["fingerprint"]
    for found in together:
        selection, files = found["finished"]
        assert files == ["fingerprint.json", "selection.npz"]
        assert selection.to_bytes() == first.to_bytes()
    assert np.array_equal(first.labels, alone["herding"][4])


def test_one_rank_may_select_alone(together: list[dict[str, Any]]) -> None:
    assert len(together[0]["alone"]) == round(KEEP * len(images()))
    assert all("alone" not in found for found in together[1:])


def test_statistics_are_rank_0s_and_restored(together: list[dict[str, Any]]) -> None:
    first, kept = together[0]["own statistics"]
    assert kept
    for found in together[1:]:
        indices, kept = found["own statistics"]
        assert kept
        assert np.array_equal(indices, first)


def test_training_under_ddp(together: list[dict[str, Any]]) -> None:
    size, total = len(together), len(images())
    k = round(KEEP * total)
    of_rank_0 = together[0]["training"]
    steps = [math.ceil(math.ceil(n / size) / 32) for n in (total, k, k)]
    for found in together:
        training = found["training"]
        assert training["lengths"] == [(n, n) for n in steps]  # as announced, on every rank
        assert torch.equal(training["weights"], of_rank_0["weights"])
        for ours, theirs in zip(training["subsets"][1:], of_rank_0["subsets"][1:], strict=True):
            assert np.array_equal(ours, theirs)
    assert of_rank_0["subsets"][0] is None
    assert not np.array_equal(of_rank_0["subsets"][1], of_rank_0["subsets"][2])


def test_a_killed_rank_is_an_error_on_the_others_and_one_process_goes_on(
    jobs: Outcomes,
) -> None:
    folder, job = jobs["killed", 2]
    assert job.codes == [0, -signal.SIGKILL]  # and the first has ended: no rank hangs
    (of_rank_0,) = job.found
    assert "lost another rank during a selection" in of_rank_0["killed"]
    assert list((folder / "snapshots").glob("shard-*-sketch.npz"))
    with one_thread():
        data = images()
        model = network(data)
    options: dict[str, Any] = {"shards": SHARDS, "progress": False, "sketch_size": 32}
    read = []

    class Noting(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return data[index]

    Noting.__qualname__ = "Broken"  # to a fingerprint, the data set of the job
    with one_thread():
        ours = select_subset(model, Noting(), KEEP, checkpoint=folder / "snapshots", **options)
        expected = select_subset(model, data, KEEP, **options)
    assert np.array_equal(ours.indices, expected.indices)
    assert len(read) < 2 * len(data) - len(data) // SHARDS  # of pass 1, more than a shard was done


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_the_tree_is_the_same_whoever_holds_the_shards(count: int, size: int) -> None:
    shards = cut(100, count)
    assert [shard.start for shard in shards[1:]] == [shard.stop for shard in shards[:-1]]
    assert (shards[0].start, shards[-1].stop) == (0, 100)
    box: dict[tuple[int, int], list[list[str]]] = defaultdict(list)  # what was sent, in order

    def merge(first: list[str], second: list[str]) -> list[str]:
        return [f"({''.join(first)} {''.join(second)})"]

    trees: list[MergeTree[list[str]]] = []
    owned: list[int] = []
    for rank in range(size):
        me = Ranks(rank, size)
        trees.append(MergeTree(shards, me, merge))
        trees[-1].build(lambda shard: [str(shard.number)])
        owned += [shard.number for shard in of_rank(shards, me)]
        places = places_of(of_rank(shards, me))
        assert places.stop - places.start == sum(map(len, of_rank(shards, me)))
    assert owned == list(range(count))
    whole = None
    for rank in reversed(range(size)):  # a rank receives from later ones only
        whole = trees[rank].join(
            lambda part, to, rank=rank: box[rank, to].append(part),  # type: ignore[misc]
            lambda source, rank=rank: box[source, rank].pop(0),  # type: ignore[misc]
        )
    expected: MergeTree[list[str]] = MergeTree(shards, Ranks(), merge)
    expected.build(lambda shard: [str(shard.number)])
    assert whole == expected.join(lambda *_: None, lambda _: [])
    assert not any(box.values())
    if count == 5:
        assert whole == ["(((0 1) (2 3)) 4)"]


def test_a_destroyed_process_group_leaves_nothing(tmp_path: Path) -> None:
    gone = []
    for turn in range(2):
        dist.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/{turn}", rank=0, world_size=1
        )
        try:
            me = ranks()
            assert me.is_group
            first, second = (me._group() for _ in range(2))
            assert first is second
            gone += [weakref.ref(first), weakref.ref(dist.group.WORLD)]
            data = TensorDataset(*images()[:64])
            selection = select_subset(network(images()), data, 20, progress=False)
            assert selection.settings["shards"] == 8
        finally:
            dist.destroy_process_group()
        del me, first, second
        gc.collect()
        assert [each() for each in gone] == [None] * len(gone)


def test_more_shards_than_examples() -> None:
    with pytest.raises(ValueError, match="at most 3 shards, one an example, got shards=4"):
        cut(3, 4)
    assert cut(3, 3) == [Shard(0, 0, 1), Shard(1, 1, 2), Shard(2, 2, 3)]


def test_without_a_process_group_there_is_one_rank() -> None:
    me = ranks()
    assert (me.rank, me.size) == (0, 1)
    assert me.gather("x") == ["x"]
    assert me.broadcast("x") == "x"
    with pytest.raises(KeyError):
        me.together(lambda: {}["missing"])
    assert issubclass(SageError, RuntimeError)
