"""Two commits side by side: the same subsets, and how long a whole selection takes.

Both trees must be built. Each works in a process of its own, and the processes take turns, so that
a slow minute of the machine meets both.

    python -m benchmarks.speed.before_after --before DIR --data-root DIR
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.quality.models import CASES, warmed_up_cnn
from benchmarks.record import PROJECT, RESULTS, Run, environment, read, spread, table, write

MODULE = "benchmarks.speed.before_after"
TEXT = """\
## The same selections as before the house had rooms

`python -m benchmarks.speed.before_after --before DIR`; {cpu}; commit {commit} beside {before}.
Each option that stays, {kinds} of them, was compared on {data}, index by index, with the trim
and the draws of four epochs. The eigenproblem is solved by another routine now and rounds
otherwise. So a kernel herding step between near ties may fall otherwise.

{compared}
A whole selection took, one thread, medians of {runs} turns of both processes on one core:

{timed}
"""
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    **{f"keep={keep}": {"keep": keep} for keep in (0.05, 0.5, 1.0, 200)},
    **{f"trim={trim}": {"trim": trim} for trim in (None, 0.2)},
    "agreement": {"rule": "agreement"},
    "agreement over all": {"rule": "agreement", "class_balanced": False},
    "random": {"rule": "random"},
    "herding over all": {"class_balanced": False},
    "equal quotas": {"quotas": "equal"},
    "streaming": {"consensus": "streaming"},
    "one pass": {"consensus": "one_pass"},
    "rotate": {"draw": "rotate"},
    "rotate, streaming": {"draw": "rotate", "consensus": "streaming"},
    "random draws": {"draw": "random"},
    "random, rotated": {"rule": "random", "draw": "rotate"},
    "16 rows": {"sketch_size": 16},
    "auto rows": {"sketch_size": "auto"},
    "functional": {"gradients": "functional"},
    "projected": {"gradients": "projected"},
    "last layer": {"gradients": "last_layer"},
    "factors": {"gradients": "last_layer", "compress": None},
    "compressed to 500": {"compress": 500},
    "params": {"params": "*weight"},
    "4 shards": {"shards": 4},
    "batches of 100": {"batch_size": 100},
    "seed 3": {"seed": 3},
}


def digits() -> tuple[nn.Module, TensorDataset]:
    """Return scikit-learn's digits and a small network a little trained on them."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16).float(), torch.tensor(labels))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for part in torch.randperm(len(data)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.tensors[0][part]), data.tensors[1][part]).backward()
        optimizer.step()
    return model, data


def fashion(root: str) -> tuple[nn.Module, TensorDataset]:
    """Return 4,000 pictures of Fashion-MNIST and a small CNN a little trained on them."""
    from sage_torch.demo.data import load

    pixels, labels = load("fashion-mnist", root).train.tensors
    data = TensorDataset(pixels[:4_000].clone(), labels[:4_000].clone())
    return warmed_up_cnn(*data.tensors, torch.Generator().manual_seed(0)), data


def work(root: str) -> None:
    """Answer, line by line, what is asked: subsets of a data set, or the seconds of a selection."""
    from sage_torch import select_subset

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {0})  # both on one core: two cores of a machine are not equally fast
    made: dict[str, Any] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["what"] == "subsets":
            name = asked["data"]
            model, data = made.setdefault(name, digits() if name == "digits" else fashion(root))
            options = {"keep": 0.25, "progress": False, **OPTIONS[asked["case"]]}
            chosen = select_subset(model, data, **options)
            answer = {
                "indices": [chosen.epoch_indices(epoch).tolist() for epoch in range(4)],
                "scores": np.nan_to_num(chosen.scores).tolist(),
                "trimmed": chosen.settings["trimmed"],
            }
        else:
            case = CASES[asked["model"]]
            if case.name not in made:
                made[case.name] = case.model(0), TensorDataset(*case.batch(asked["examples"], 1))
            model, data = made[case.name]
            begin = time.perf_counter()
            select_subset(model, data, 0.25, progress=False)
            answer = {"seconds": time.perf_counter() - begin}
        print(json.dumps(answer), flush=True)


class Tree:
    """A process that works with the package of one tree."""

    def __init__(self, tree: Path, root: str) -> None:
        # Our scripts, but the package of that tree: it is imported first, and stays.
        code = (
            f"import sys; sys.path.insert(0, {str(tree)!r}); import sage_torch; "
            f"sys.path[0] = {str(PROJECT)!r}; from {MODULE} import work; work({root!r})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=RESULTS,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def ask(self, **asked: Any) -> Any:
        """Return the answer to a question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def compared(before: Any, after: Any) -> Run:
    """Return how two answers differ: examples kept otherwise, in the worst epoch, and scores."""
    pairs = zip(before["indices"], after["indices"], strict=True)
    scores = np.abs(np.array(before["scores"]) - np.array(after["scores"]))
    return {
        "kept": len(after["indices"][0]),
        "other": max(len(set(then) - set(now)) for then, now in pairs),
        "scores": float(scores.max()),
        "trimmed": after["trimmed"] == before["trimmed"],
    }


def section() -> str:
    """Return the section of RESULTS.md."""
    result = read("before_after.json")
    runs: list[Run] = result["subsets"]
    rows = []
    for name in dict.fromkeys(run["data"] for run in runs):
        of_data = [run for run in runs if run["data"] == name]
        differ = [run for run in of_data if run["other"]]
        words = ", ".join(f"{r['case']}: {r['other']} of {r['kept']}" for r in differ) or "none"
        equal = f"{len(of_data) - len(differ)} of {len(of_data)}"
        rows.append([name, equal, words, f"{max(run['scores'] for run in of_data):.1e}"])
    timed = [
        [run["model"], f"{run['examples']:,}", f"{run['before']['median']:.2f} s",
         f"{run['after']['median']:.2f} s", f"{run['ratio']:.3f}"]
        for run in result["timings"]
    ]  # fmt: skip
    return TEXT.format(
        **result["settings"],
        cpu=result["cpu"],
        commit=result["commit"],
        kinds=len({run["case"] for run in runs}),
        data=" and ".join(dict.fromkeys(run["data"] for run in runs)),
        compared=table(["data", "equal subsets", "others", "scores differ by at most"], rows),
        timed=table(["model", "examples", "before", "after", "ratio"], timed),
    )


def main(
    before: Annotated[Path, typer.Option(help="The other tree, built.")],
    data_root: Annotated[str, typer.Option(help="The folder of fashion-mnist.")],
    rounds: Annotated[int, typer.Option(help="Turns of the timing.")] = 31,
    subsets: Annotated[
        bool, typer.Option(help="Compare subsets, or keep those of the file.")
    ] = True,
) -> None:
    """Compare this tree with another one."""
    where = environment(seeds=[0])
    trees = {"before": Tree(before.resolve(), data_root), "after": Tree(PROJECT, data_root)}
    found: list[Run] = [] if subsets else read("before_after.json")["subsets"]
    for data in ("digits", "fashion-mnist") if subsets else ():
        for case in OPTIONS:
            answers = {
                name: tree.ask(what="subsets", data=data, case=case) for name, tree in trees.items()
            }
            found.append({"data": data, "case": case, **compared(**answers)})
            typer.echo(found[-1])
    timings: list[Run] = []
    for model, examples in (("LeNet", 2_000), ("ResNet-18", 16)):
        seconds: dict[str, list[float]] = {"before": [], "after": []}
        for turn in range(-1, rounds):  # the first warms up
            for name in list(trees)[:: 1 if turn % 2 else -1]:
                took = trees[name].ask(what="seconds", model=model, examples=examples)["seconds"]
                if turn >= 0:
                    seconds[name].append(took)
        medians = {name: statistics.median(taken) for name, taken in seconds.items()}
        timings.append(
            {"model": model, "examples": examples, "ratio": medians["after"] / medians["before"]}
            | {name: spread(taken) for name, taken in seconds.items()}
        )
        typer.echo(timings[-1])
    commit = ["git", "-C", str(before), "rev-parse", "--short", "HEAD"]
    settings = {
        "before": subprocess.check_output(commit, text=True).strip(),
        "runs": rounds,
    }
    write(
        RESULTS / "before_after.json",
        "Are subsets the same as in another commit, and how long does a whole selection take?",
        where,
        settings=settings,
        subsets=found,
        timings=timings,
    )


if __name__ == "__main__":
    typer.run(main)
