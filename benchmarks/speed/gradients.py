"""What do per-example gradients cost, in seconds and peak memory per example?

Side by side in one run, rounds interleaved, medians of the rounds:

    forward             the model in evaluation mode, nothing recorded
    forward + backward  mean loss into `.grad`: a training step without the optimizer
    last layer          sage_torch, the classifier's gradient in closed form
    projected           sage_torch, the whole network through projections of the default width
    functional          sage_torch, the whole network exactly
    vmap(grad)          torch.func as its tutorial writes it
    opacus              GradSampleModule
    single backward     a loop over batches of one

The first four take whole batches, the others, which hold every gradient in full, a part of one.
Memory is measured in processes of their own (benchmarks/speed/peak_memory.py).

    python -m benchmarks.speed.gradients
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.quality.models import CASES, Case
from benchmarks.record import RESULTS, Run, environment, read, spread, table, write
from benchmarks.speed.contenders import AT_WIDTH, CONTENDERS, examples_of, maker
from benchmarks.speed.peak_memory import increase_of

SHORTEST_TIMING = 0.2  # seconds: shorter calls are repeated
Timed = Callable[[], float]
# Headline: what is compared with what. By time and, for whole batches, by memory.
RATIOS = {
    "projected / (forward + backward)": ("projected", "forward + backward"),
    "last layer / forward": ("last layer", "forward"),
}
TEXT = """\
## Gradients: seconds and memory per example

`python -m benchmarks.speed.gradients --device {device}`; {machine}, threads: {threads}; float32,
evaluation mode, medians of {rounds} interleaved rounds. *Projected*, *last layer* and *functional*
are ours. A cell gives milliseconds per example and MiB per example. Memory is the peak over what
was held before the batch, rows and parameter gradients included (median of {processes} processes).
Contenders that hold every gradient in full were given fewer examples at once, as *of n* says.
"""


def timed(case: Case, contender: str, seed: int, device: str) -> tuple[Timed, str]:
    """Return what times a contender, in seconds an example, and the contender's own description.

    Building it makes two calls that are not timed: the first one prepares, the second one says how
    many calls a timing needs.
    """
    examples = examples_of(case, contender)
    run = maker(contender)(case, case.model(seed, device))
    batch = case.batch(examples, seed, device)

    def seconds(calls: int) -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            run(batch)
        _wait(device)
        return time.perf_counter() - start

    seconds(1)
    calls = 1 + int(SHORTEST_TIMING / seconds(1))
    describe = getattr(run, "describe", None)
    return lambda: seconds(calls) / (calls * examples), describe() if describe else ""


def timings(
    case: Case, contenders: list[str], rounds: int, seed: int, device: str
) -> dict[str, dict[str, Any]]:
    """Return, for each contender, its seconds an example or why there are none."""
    found: dict[str, dict[str, Any]] = {}
    ready: dict[str, Timed] = {}
    for name in contenders:
        found[name] = {"examples": examples_of(case, name)}
        try:
            ready[name], found[name]["description"] = timed(case, name, seed, device)
        except Exception as error:  # whatever a contender refuses a model with, it is its result
            found[name]["refused"] = _reason(error)
    runs: dict[str, list[float]] = {name: [] for name in ready}
    for number in range(rounds):
        order = list(ready) if number % 2 == 0 else list(ready)[::-1]
        for name in order:
            runs[name].append(ready[name]())
    for name, seconds in runs.items():
        found[name]["seconds_an_example"] = spread(seconds) | {"all": seconds}
    return found


def memory(case: Case, contender: str, processes: int, seed: int, device: str) -> dict[str, Any]:
    """Return the peak bytes an example, the median of some processes."""
    arguments = (case.name, contender, device, torch.get_num_threads(), seed)
    bytes_taken = [increase_of(*arguments) for _ in range(processes)]
    return spread([taken / examples_of(case, contender) for taken in bytes_taken])


def with_ratios(case: Case, contenders: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return one model's result."""
    ratios: dict[str, dict[str, float]] = {}
    for name, pair in RATIOS.items():
        ours, plain = (contenders[one] for one in pair)
        ratios[name] = {
            what.split("_")[0]: ours[what]["median"] / plain[what]["median"]
            for what in ("seconds_an_example", "bytes_an_example")
            if what in ours and what in plain
        }
    parameters = sum(parameter.numel() for parameter in case.model(0).parameters())
    return {
        "model": case.name,
        "parameters": parameters,
        "examples": case.examples,
        "contenders": contenders,
        "ratios": ratios,
    }


def shown(result: dict[str, Any]) -> str:
    """Return one model's result as lines of text."""
    lines = [f"{result['model']}, {result['parameters']:,} parameters"]
    for name, one in result["contenders"].items():
        line = f"  {name:<20}{one['examples']:>4} examples"
        if "refused" in one:
            lines.append(f"{line}   {one['refused']}")
            continue
        line += f"{1e3 * one['seconds_an_example']['median']:>10.3f} ms"
        if "bytes_an_example" in one:
            line += f"{one['bytes_an_example']['median'] / 2**20:>10.2f} MiB"
        lines.append(f"{line}   {one['description']}")
    for name, ratio in result["ratios"].items():
        values = ", ".join(f"{what} {value:.2f}" for what, value in ratio.items())
        lines.append(f"  {name}: {values or 'nothing to compare'}")
    return "\n".join(lines)


def _reason(error: Exception) -> str:
    """Say in one short line what a contender said."""
    first = error.args[0] if error.args else error
    while isinstance(first, (list, tuple)) and first:  # opacus raises a list of errors
        first = first[0]
    line = " ".join(str(first).split())
    return f"{type(error).__name__}: {line[:160]}{'...' if len(line) > 160 else ''}"


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="torch threads; torch's own choice")] = None,
    rounds: Annotated[int, typer.Option(help="interleaved rounds")] = 15,
    processes: Annotated[int, typer.Option(help="measurements of memory; 0 for none")] = 3,
    models: Annotated[str, typer.Option(help="names with commas between")] = ",".join(CASES),
    widths: Annotated[str, typer.Option(help="more widths of projections, with commas")] = "",
    seed: Annotated[int, typer.Option(help="seed of models and batches")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="3 rounds, 1 process, no file")] = False,
    out: Annotated[Path | None, typer.Option(help="result file")] = None,
) -> None:
    """Measure every contender on every model and write the numbers down."""
    if threads is not None:
        torch.set_num_threads(threads)
    if quick:
        rounds, processes = 3, min(1, processes)
    warnings.simplefilter("ignore")  # of the contenders; what they refuse is in the result
    where = environment("opacus")
    names = [*CONTENDERS, *(AT_WIDTH + width for width in widths.split(",") if width)]
    results = []
    for case in (CASES[name] for name in models.split(",")):
        contenders = timings(case, names, rounds, seed, device)
        if processes:
            working = [name for name, one in contenders.items() if "refused" not in one]
            # Nothing is timed now, so processes may run side by side.
            with ThreadPoolExecutor(1 if device == "cuda" else os.cpu_count()) as pool:
                asked = {
                    name: pool.submit(memory, case, name, processes, seed, device)
                    for name in working
                }
            for name, answer in asked.items():
                contenders[name]["bytes_an_example"] = answer.result()
        results.append(with_ratios(case, contenders))
        typer.echo(shown(results[-1]))
    if quick and out is None:
        return
    write(
        out or RESULTS / f"gradients_{device}.json",
        "What do per-example gradients cost, in seconds and memory per example?",
        where,
        settings={
            "device": device,
            "rounds": rounds,
            "processes": processes,
            "seed": seed,
            "dtype": "float32",
            "mode": "evaluation",
            "memory": "resident memory (cpu) or allocated by torch (cuda) over the level "
            "before the batch; rows and parameter gradients included, model and batch not",
        },
        results=results,
    )


def section() -> str:
    """Return what RESULTS.md says of the cost of gradients, a part for each device there is."""
    files = sorted(RESULTS.glob("gradients_*.json"))
    return "\n".join(_of_device(read(file.name)) for file in files)


def _of_device(record: dict[str, Any]) -> str:
    settings, results = record["settings"], record["results"]
    heads = [
        f"{one['model']}, {one['parameters'] / 1e6:.2f} M, {one['examples']} examples"
        for one in results
    ]
    notes: list[str] = []
    rows = [
        [name, *(_cost(one, name, notes) for one in results)] for name in results[0]["contenders"]
    ]
    for name in RATIOS:
        for what in ("seconds", "bytes"):
            ratios = [one["ratios"][name] for one in results]
            shown = [f"{ratio[what]:.2f}" if what in ratio else "–" for ratio in ratios]
            rows.append([f"**{name}**, {what}", *shown])
    machine = record["device"] if settings["device"] == "cuda" else record["cpu"]
    text = TEXT.format(machine=machine, threads=record["threads"], **settings)
    return "\n".join([text, table(["", *heads], rows), *notes])


def _cost(result: Run, name: str, notes: list[str]) -> str:
    """Return one cell; why there is none goes to the notes."""
    one = result["contenders"][name]
    if "refused" in one:
        notes.append(f"{name} refused {result['model']}: {one['refused']}.\n")
        return "refused"
    cell = f"{_digits(1e3 * one['seconds_an_example']['median'])} ms"
    if "bytes_an_example" in one:
        cell += f", {_digits(one['bytes_an_example']['median'] / 2**20)} MiB"
    few = one["examples"] != result["examples"]
    return cell + (f" of {one['examples']}" if few else "")


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def block() -> str:
    """Return what projected gradients cost on the CPU, relative to a forward and backward pass."""
    results = read("gradients_cpu.json")["results"]
    name = next(iter(RATIOS))
    rows = [
        [shown, *(f"{one['ratios'][name][what]:.2f}" for one in results)]
        for what, shown in (("seconds", "time"), ("bytes", "peak memory"))
    ]
    return table([name, *(one["model"] for one in results)], rows)


if __name__ == "__main__":
    typer.run(main)
