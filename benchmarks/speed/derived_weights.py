"""What do projected gradients cost where weights are functions of parameters?

Weight norm and weight standardisation make a layer's weight from a parameter, row by row; spectral
norm divides it as a whole. A batch through such a layer is timed beside the plain layer, and beside
a training step for two models of timm with random weights: `nfnet_l0` (standardised convolutions)
and `maxvit_tiny_tf_224` (a learnt bias of attention). Rounds are interleaved; ratios are those of
medians.

    python -m benchmarks.speed.derived_weights
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.record import RESULTS, environment, read, spread, table, write
from sage_torch import select_subset
from sage_torch.gradients import ProjectedGradients

NAME = "derived_weights.json"
WIDTHS, EXAMPLES = (1000, 1200), 64
MODELS = {"nfnet_l0": 4, "maxvit_tiny_tf_224": 4}  # and examples in a batch
TEXT = """\
## Weights that are functions of parameters

`python -m benchmarks.speed.derived_weights`; {machine}, threads: {threads}; medians of {rounds}
interleaved rounds. Milliseconds of one batch of projected gradients: {examples} examples through
64 -> n -> n -> 4, whose middle layer is plain or makes its weight from parameters; and models of
timm with random weights beside a training step (forward, backward, SGD). *First* is the first
batch of a selection, which plans and checks. *Selection* is a whole selection of one such batch,
beside that with the plain layer.
"""


class Standardised(nn.Linear):
    """A layer whose weight has rows of mean 0 and deviation 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        w = self.weight
        w = (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5)
        return F.linear(x, w, self.bias)


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "plain": lambda n: nn.Linear(n, n),
    "weight norm": lambda n: nn.utils.parametrizations.weight_norm(nn.Linear(n, n)),
    "standardised": lambda n: Standardised(n, n),
    "spectral norm": lambda n: nn.utils.parametrizations.spectral_norm(nn.Linear(n, n)),
}


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss of each example."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def seconds(run: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleaved(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, Any]]:
    """Return the spread of each run's seconds."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            found[name].append(seconds(runs[name]))
    return {name: spread(values) for name, values in found.items()}


def layers(width: int, rounds: int) -> dict[str, Any]:
    """Time the layers of one width side by side."""
    batch = (torch.randn(EXAMPLES, 64), torch.arange(EXAMPLES) % 4)
    computers, first = {}, {}
    selections: dict[str, Callable[[], object]] = {}
    for name, make in LAYERS.items():
        torch.manual_seed(0)
        ends = nn.Linear(64, width), nn.Linear(width, 4)
        model = nn.Sequential(ends[0], nn.ReLU(), make(width), nn.ReLU(), ends[1])
        computers[name] = ProjectedGradients(model.eval(), loss=loss)
        selections[name] = lambda model=model: select_subset(  # type: ignore[misc]
            model, TensorDataset(*batch), 0.25, gradients="projected", batch_size=EXAMPLES,
            progress=False,
        )  # fmt: skip
        first[name] = seconds(lambda computer=computers[name]: computer(batch))  # type: ignore[misc]
    runs: dict[str, Callable[[], object]] = {
        name: (lambda computer=computer: computer(batch)) for name, computer in computers.items()
    }
    return {
        "what": f"n = {width:,}",
        "seconds": interleaved(runs, rounds),
        "first": first,
        "selection": interleaved(selections, max(1, rounds // 5)),
    }


def model_of_timm(name: str, rounds: int) -> dict[str, Any]:
    """Time one model beside a training step."""
    import timm

    torch.manual_seed(0)
    examples = MODELS[name]
    model = timm.create_model(name, num_classes=10).eval()
    batch = (torch.randn(examples, 3, 224, 224), torch.arange(examples))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    computer = ProjectedGradients(model, loss=loss)
    first = {"projected": seconds(lambda: computer(batch))}

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(loss(model, batch).mean())
        optimizer.step()

    runs = {"training step": step, "projected": lambda: computer(batch)}
    return {"what": name, "seconds": interleaved(runs, rounds), "first": first}


def main(
    rounds: Annotated[int, typer.Option(help="interleaved rounds of the layers")] = 25,
    steps: Annotated[int, typer.Option(help="interleaved rounds of the models")] = 3,
    out: Annotated[Path | None, typer.Option(help="result file")] = None,
) -> None:
    """Time projected gradients and write the numbers down."""
    torch.set_num_threads(1)
    where = environment("timm")
    results = [layers(width, rounds) for width in WIDTHS]
    results += [model_of_timm(name, steps) for name in MODELS]
    write(
        out or RESULTS / NAME,
        "What do projected gradients cost where weights are functions of parameters?",
        where,
        settings={"rounds": rounds, "steps": steps, "examples": EXAMPLES, "seed": 0},
        results=results,
    )
    typer.echo(_table(results))


def section() -> str:
    """Return what RESULTS.md says of weights that are functions of parameters."""
    record = read(NAME)
    text = TEXT.format(machine=record["cpu"], threads=record["threads"], **record["settings"])
    return text + "\n" + _table(record["results"])


def _table(results: list[dict[str, Any]]) -> str:
    rows = []
    for one in results:
        beside = next(iter(one["seconds"]))
        plain = one["seconds"][beside]["median"]
        for name, taken in one["seconds"].items():
            if name == beside:
                continue
            whole = one.get("selection")
            ratio = whole and whole[name]["median"] / whole[beside]["median"]
            rows.append(
                [
                    f"{one['what']}, {name}",
                    f"{1e3 * taken['median']:,.0f}",
                    f"{beside}: {1e3 * plain:,.0f}",
                    f"{taken['median'] / plain:.2f}",
                    f"{1e3 * one['first'][name]:,.0f}",
                    f"{1e3 * whole[name]['median']:,.0f} ({ratio:.2f} times)" if whole else "-",
                ]
            )
    return table(["", "ms", "beside", "ratio", "first, ms", "selection, ms"], rows)


if __name__ == "__main__":
    typer.run(main)
