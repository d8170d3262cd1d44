"""What comes out of a stream's worker is what the stream gave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from sage_torch.gradients.batches import same_item
from sage_torch.stream.rate import RateKeeper
from sage_torch.stream.workers import pack, read, unpack

EXAMPLES: list[Any] = [
    (torch.arange(6.0).view(2, 3), 3),
    {"a": torch.tensor(True), "b": [torch.zeros(0, 4), "text", None], "c": np.arange(3)},
    torch.arange(12).view(3, 4).t()[1:],
    torch.ones(3, dtype=torch.bfloat16),
    torch.tensor([1 + 2j, 3j]).conj(),
    torch.tensor(5, dtype=torch.uint8),
    torch.eye(3).to_sparse(),
]


class Numbers(IterableDataset[Any]):
    """`count` examples of two tensors each, cut up among workers."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(first, self.count, step):
            yield torch.tensor([float(number)]), torch.rand(())


@pytest.mark.parametrize("example", EXAMPLES[:-1], ids=str)
def test_an_example_comes_out_as_it_went_in(example: object) -> None:
    (found,) = unpack(*pack([example]))
    assert same_item(found, example)


def test_other_kinds_of_tensor_go_their_own_way() -> None:
    with torch.sparse.check_sparse_tensor_invariants():
        parameter, sparse = unpack(*pack([nn.Parameter(torch.ones(2)), EXAMPLES[-1]]))
    assert isinstance(parameter, nn.Parameter)
    assert parameter.requires_grad
    assert torch.equal(sparse.to_dense(), torch.eye(3))


def test_examples_share_no_memory_with_what_was_sent() -> None:
    content, storage = pack([torch.ones(3), torch.ones(3)])
    first, second = unpack(content, storage)
    storage.zero_()
    first += 1
    assert first.tolist() == [2, 2, 2]
    assert second.tolist() == [1, 1, 1]


def test_a_batch_of_many_tensors_takes_one_file_handle() -> None:
    # 3,000 tensors, each of which would take a handle of its own: more than most systems grant.
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
    try:
        batches = list(read(Numbers(1_500), batch_size=500, num_workers=2, seed=0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert sorted(map(len, batches)) == [250, 250, 500, 500]
    numbers = sorted(int(number) for batch in batches for number, _ in batch)
    assert numbers == list(range(1_500))


def test_a_default_device_of_the_users_does_not_matter() -> None:
    examples = [torch.tensor([float(number)]) for number in range(4)]
    with torch.device("meta"):
        assert unpack(*pack(examples)) == examples
        (batch,) = read(Numbers(4), batch_size=4, num_workers=0, seed=0)
        assert len(batch) == 4
        kept = RateKeeper(0.5, seed=0).decide(np.zeros(4, np.float32), np.zeros(4, np.int32))
    assert kept.shape == (4,)


def test_reading_draws_no_global_random_number() -> None:
    before = torch.random.get_rng_state()
    once, again, other = (
        [float(noise) for batch in read(Numbers(8), batch_size=4, num_workers=1, seed=seed)
         for _, noise in batch]
        for seed in (0, 0, 1)
    )  # fmt: skip
    assert torch.equal(torch.random.get_rng_state(), before)
    assert once == again != other
