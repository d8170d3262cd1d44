"""What users hand over by mistake is refused in a few words that end with what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from typer.testing import CliRunner

from sage_torch import SageSampler, SageStream, Selection, select_subset
from sage_torch.command import application
from sage_torch.command.objects import make_model, named
from sage_torch.report import page

N = 24
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 3
DATA = TensorDataset(X, Y)


def model() -> nn.Module:
    return nn.Linear(6, 3)


def select(data: Any, **options: Any) -> Any:
    return select_subset(model(), data, 0.5, progress=False, **options)


class Flow(IterableDataset[Any]):
    def __init__(self, *examples: Any) -> None:
        self.examples = examples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.examples)


class NoLength:
    def __getitem__(self, index: int) -> Any:
        return DATA[index]


class Table:
    """Stands for a table of a package that is not installed."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, name: str) -> Any:
        raise KeyError(name)


def table(package: str, kind: str) -> Any:
    return type(kind, (Table,), {"__module__": f"{package}.core.frame"})()


class DatasetDict(dict[str, Any]):
    """As in `datasets`."""


class File(IterableDataset[Any]):
    """Batches, as of a pipeline that makes them itself."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return (self.make(i) for i in range(6))


def run(stream: SageStream) -> None:
    list(stream)


def in_loader(mine: Any, theirs: Any) -> None:
    sampler = SageSampler(model(), mine, keep=0.5, progress=False)
    list(DataLoader(theirs, 4, sampler=sampler))


def command(*arguments: str) -> None:
    done = CliRunner().invoke(application, arguments)
    assert done.exit_code == 1
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1
    raise ValueError(done.output[7:-1])


def sampler(**options: Any) -> SageSampler:
    return SageSampler(model(), DATA, **({"keep": 0.5, "progress": False} | options))


def weights(content: Any, folder: Path) -> None:
    torch.save(content, folder / "weights.pt")
    make_model("torch.nn:Identity", folder / "weights.pt", None)


def load(content: bytes, folder: Path) -> None:
    path = folder / "scores.csv"
    path.write_bytes(content)
    Selection.load(path)


def sparse(examples: list[Any]) -> Any:
    return torch.stack([x for x, _ in examples]).to_sparse(), torch.tensor([y for _, y in examples])


def nested(examples: list[Any]) -> Any:
    return torch.nested.nested_tensor([x for x, _ in examples]), torch.tensor(
        [y for _, y in examples]
    )


# By name: what is done in a folder, and words of the message.
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "pair of tensors": (lambda _: select((X, Y)), "tuple of 2 columns of 24 rows.*TensorDataset"),
    "list of arrays": (lambda _: select([X.numpy(), Y.numpy()]), "list of 2 columns of 24 rows"),
    "pair of lists": (lambda _: select((["text"] * N, Y.tolist())), r"list\(zip\(inputs"),
    "pair for a sampler": (lambda _: in_loader((X, Y), DATA), "tuple of 2 columns"),
    "loader's pair": (lambda _: in_loader(None, (X, Y)), "tuple of 2 columns"),
    "score pair": (lambda _: sampler(score_dataset=(X, Y)), "score_dataset.*2 columns"),
    "splits": (
        lambda _: select(DatasetDict(train=DATA, test=DATA)),
        r"DatasetDict of 'train', 'test'.*dataset\['train'\]",
    ),
    "columns": (lambda _: select({"x": X, "y": Y}), r"dict of 'x', 'y'.*TensorDataset\("),
    "data frame": (
        lambda _: select(table("pandas", "DataFrame")),
        "a DataFrame, whose items are columns",
    ),
    "polars": (lambda _: select(table("polars", "DataFrame")), "a DataFrame.*rows"),
    "arrow": (lambda _: select(table("pyarrow", "Table")), "a Table.*rows"),
    "series": (lambda _: select(table("pandas", "Series")), "a Series.*rows"),
    "scipy": (lambda _: select(table("scipy.sparse", "csr_matrix")), "csr_matrix.*toarray"),
    "loader": (lambda _: select(DataLoader(DATA)), r"a DataLoader: pass.*loader\.dataset"),
    "stream": (lambda _: select(Flow()), "IterableDataset Flow.*SageStream"),
    "no length": (lambda _: select(NoLength()), "__len__.*NoLength; give"),
    "empty": (lambda _: select([]), "at least one example.*filtered"),
    "short view": (lambda _: sampler(score_dataset=DATA.tensors[0][:5]), "same 24.*got 5;"),
    "lengths": (
        lambda _: select([(torch.ones(3 + i % 2), 0) for i in range(N)]),
        "joins to a batch.*equal size.*collate_fn=",
    ),
    "objects": (
        lambda _: select([(object(), 0) for _ in range(N)]),
        "joins to a batch.*object.*collate_fn=",
    ),
    "sparse": (lambda _: select(DATA, collate_fn=sparse), r"sparse.*\.to_dense\(\)"),
    "nested": (lambda _: select(DATA, collate_fn=nested), r"nested.*to_padded_tensor"),
    "sparse items": (
        lambda _: select([(X[i].to_sparse(), int(Y[i])) for i in range(N)]),
        "sparse tensors.*pads or converts them",
    ),
    "file for a data set": (lambda _: select("train.csv"), "got a str: load the file"),
    "labels of bytes": (
        lambda _: select([(X[i], b"cat") for i in range(N)]),
        "got texts such as b'cat': number",
    ),
    "named loss": (lambda _: select(DATA, loss="mse" * 300), r"'msemse.*; pass loss\(model"),
    "named collate": (lambda _: select(DATA, collate_fn=3), "got 3; pass a function of a list"),
    "no tensors": (lambda _: select(DATA, collate_fn=lambda part: ["a"]), "gradients=, a function"),
    "dropped": (lambda _: select(DATA, collate_fn=lambda part: (X[:5], Y[:5])), "drop none"),
    "few rows": (lambda _: select(DATA, gradients=lambda b: b[0][:3]), "return one row for each"),
    "no rows": (lambda _: select(DATA, gradients=lambda b: None), "NoneType; return a tensor"),
    "other data": (lambda _: in_loader(DATA, TensorDataset(X[:9], Y[:9])), "of 24.*of 9 holds it"),
    "no loader": (lambda _: list(SageSampler(model(), keep=0.5)), "or pass SageSampler"),
    "long keep": (lambda _: select(DATA, num_workers="many " * 500), "num_workers.*many many"),
    "long rule": (lambda _: select(DATA, rule="herd" * 500), "expected rule to be one of"),
    "batches": (
        lambda _: run(SageStream(model(), File(lambda i: (X[4 * i :][:4], Y[4 * i :][:4])))),
        "batches of 4.*webdataset",
    ),
    "arrays of batches": (
        lambda _: run(SageStream(model(), File(lambda i: (X.numpy()[:8], Y.numpy()[:8], "key")))),
        "batches of 8",
    ),
    "batches of tokens": (
        lambda _: run(
            SageStream(
                model(),
                File(
                    lambda i: {"input_ids": torch.ones(5, 7).long(), "labels": torch.ones(5).long()}
                ),
            )
        ),
        "batches of 5",
    ),
    "batches of texts": (
        lambda _: run(SageStream(model(), File(lambda i: (["a", "b"], torch.tensor([0, 1]))))),
        "batches of 2",
    ),
    "file for a model": (lambda _: named("my_task.py:model"), "pass my_task:model"),
    "path for a model": (
        lambda _: named("src/my_task.py:make"),
        "in its folder, pass my_task:make",
    ),
    "no name": (lambda _: named("my_task"), "pass training:make_model"),
    "file in the command": (
        lambda _: command(
            "select",
            "--model",
            "my_task.py:model",
            "--dataset",
            "my_task:data",
            "--keep",
            "0.5",
            "--out",
            "a.npz",
        ),
        "pass my_task:model",
    ),
    "csv": (
        lambda folder: load(b"index,score\n0,0.5\n", folder),
        "begins with b'inde'; give a file",
    ),
    "other weights": (
        lambda folder: weights({f"layer.{i}": X for i in range(99)}, folder),
        "pass a",
    ),
    "pickled weights": (
        lambda folder: weights(nn.Linear(2, 2), folder),
        "without executing.*write",
    ),
    "no such name": (lambda _: named("json:dump_it"), "no attribute 'dump_it'; name what"),
    "state": (lambda _: sampler().load_state_dict({"epoch": 0}), "without.*; pass what its state"),
    "other state": (
        lambda _: sampler(keep=0.25).load_state_dict(sampler().state_dict()),
        "keep=0.25, got that of one with keep=0.5; make both",
    ),
    "damaged state": (
        lambda _: sampler().load_state_dict(sampler().state_dict() | {"made_for": X}),
        "made for.*; pass what state_dict",
    ),
    "rank": (lambda _: sampler(num_replicas=2), "or neither, got 2 and None; give both"),
    "high rank": (lambda _: sampler(num_replicas=2, rank=2), "got 2; count ranks from 0"),
    "shards": (lambda _: select(DATA, shards=25), "at most 24 shards.*; pass fewer"),
    "stream's state": (
        lambda _: SageStream(model(), Flow()).load_state_dict({}),
        "; pass what that gave",
    ),
    "short report": (lambda _: page(select(DATA), DATA.tensors[0][:5]), "24 examples, got 5; pass"),
    "pickle": (lambda folder: load(b"\x80\x04K\x01.", folder), "begins with .*; give a file"),
    "array": (
        lambda folder: np.save(folder / "a.npy", X) or Selection.load(folder / "a.npy"),
        "begins with .*NUM.*; give a file",
    ),
    "csv for a report": (
        lambda folder: (
            (folder / "a.csv").write_text("a,b\n") and command("report", str(folder / "a.csv"))
        ),
        "holds no readable selection.*sage-torch select --out",
    ),
}
TO_DO = re.compile(r"\b(pass|give|make|call|name|write|count|filter|return|drop|leave|look|put)\b")


@pytest.mark.parametrize("name", BAD)
def test_a_message_says_in_few_words_what_to_do(name: str, tmp_path: Path) -> None:
    do, words = BAD[name]
    with pytest.raises((TypeError, ValueError, RuntimeError), match=f"(?s){words}") as caught:
        do(tmp_path)
    message = str(caught.value)
    assert len(message) <= 500
    last = re.split(r"[;:] ", message)[-1]
    says_what_an_option_should_be = re.match(r"expected \w+ to be ", message)
    assert TO_DO.search(last) or says_what_an_option_should_be, message


GOOD: dict[str, Any] = {
    "list of pairs": [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    "numbered mapping": {i: DATA[i] for i in range(N)},
    "two examples": [DATA[0], DATA[1]],
    "tuple of three examples": tuple(DATA[i] for i in range(3)),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_holds_examples_is_taken(name: str) -> None:
    assert len(select(GOOD[name])) == round(0.5 * len(GOOD[name]))


def length(parts: Any) -> Tensor:
    return parts[0].flatten(1).sum(1, keepdim=True).repeat(1, 2)


def test_arrays_of_examples_are_taken() -> None:
    for data in (X, X.numpy(), [X[0], X[1]], list(X[:, None])):
        assert len(select(data, gradients=lambda b: b.flatten(1))) == round(0.5 * len(data))


class Tokens(nn.Module):
    """Scores each of the positions of an example."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs)


def loss(model: nn.Module, batch: Any) -> Tensor:
    logits = model(batch[0])
    return nn.functional.cross_entropy(logits.mT, batch[1], reduction="none").mean(1)


def test_examples_with_a_label_for_each_position_are_no_batches() -> None:
    positions = [(X[i : i + 4], Y[i : i + 4]) for i in range(20)]
    named_loss = SageStream(Tokens(), Flow(*positions), 1.0, loss=loss, class_balanced=False)
    assert len(list(named_loss)) == 20
    of_many_lengths = [(X[i : i + 2], Y[i : i + 1 + i % 2]) for i in range(20)]
    by_chance = SageStream(
        Tokens(), Flow(*of_many_lengths), 1.0, batch_size=2,
        collate_fn=None, gradients=lambda batch: torch.ones(2, 3),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="collate_fn="):  # and not: batches
        list(by_chance)


def test_one_example_of_a_stream_is_taken_as_it_is() -> None:
    single = SageStream(Tokens(), Flow((X[:2], Y[:2])), 1.0, class_balanced=False)
    assert len(list(single)) == 1
