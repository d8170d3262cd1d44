"""What RESULTS.md says of an accelerator: figures of a GPU, or that there are none."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.accelerator import quality
from benchmarks.accelerator.gradients import OURS, PLAIN
from benchmarks.accelerator.sketch import GEMM
from benchmarks.accelerator.sketch import OURS as SKETCH
from benchmarks.record import RESULTS, Run, kinds, of, read, table

FILE = "accelerator_cuda.json"
UNMEASURED = "unmeasured"
TEXT = """\
## One accelerator

`python -m benchmarks.accelerator --data-root DIR` measures the product on one GPU in at most eight
minutes. It needs the package, torch and `DIR/cifar10/cifar10_jpeg.npz` (55 MB). Without a data root
it makes images up, and its file says so. A second call goes on where the first one stopped. With
`--device cpu --tiny` everything is small and runs anywhere, as it does in the tests; such a file is
not shown here.

{where}

- *Sketch*: a block of b rows takes `(4 l b + b² + 2 l²) d` operations. Their rate is compared with
  that of a float32 product of 8,192 x 8,192, without TF32.
- *Gradients*: what `gradients="auto"` takes for the whole network, over forward and backward of the
  same batch.
- *Selection*: the defaults on 50,000 images, a quarter kept, over an epoch of training on the
  device (batches of 128, under bfloat16 autocast where the GPU has it). The goals are 15 s and half
  an epoch.
- *Quality*: ResNet-18 on CIFAR-10. Every row takes the steps of 30 epochs on the subset.
"""
WHAT = {
    "checks": "the device computes what the CPU does",
    "sketch": "a block at l = 256, d = 1,000,000",
    "gradients": "gradients / (forward + backward)",
    "selection": "a whole selection with ResNet-18",
    "quality": "test accuracy after the same steps",
}
Pieces = dict[str, dict[str, Any]]


def section() -> str:
    """Return what RESULTS.md says of an accelerator."""
    record = read(FILE) if (RESULTS / FILE).exists() else {}
    return of_record(record)


def of_record(record: dict[str, Any]) -> str:
    """Return the section; what no GPU has measured in full size is unmeasured."""
    sections: dict[str, Pieces] = {}
    devices: list[str] = []
    for name, one in record.get("sections", {}).items():
        by = one["made_by"]
        if by["device_type"] == "cuda" and not by["is_tiny"]:
            good = {title: piece for title, piece in one["pieces"].items() if "failed" not in piece}
            sections[name] = good
            devices += [f"{by['device']}, torch {by['torch']}, commit {by['commit']}"]
    where = "**Nothing has been measured on a GPU yet.**"
    if devices:
        where = f"Measured on {'; '.join(dict.fromkeys(devices))}."
    rows = [
        [name, what, SHOWN[name](sections[name]) if sections.get(name) else UNMEASURED]
        for name, what in WHAT.items()
    ]
    parts = [TEXT.format(where=where), table(["part", "what", "measured"], rows)]
    if sections.get("quality"):
        parts.append(_of_quality(list(sections["quality"].values())))
    return "\n".join(parts)


def _checks(pieces: Pieces) -> str:
    checks = [piece for piece in pieces.values() if "value" in piece]
    held = sum(piece["passed"] for piece in checks)
    tests = pieces.get("tests", {})
    of_tests = tests.get("skipped") or " ".join(tests.get("summary", [])) or UNMEASURED
    return f"{held} of {len(checks)} checks hold; tests: {of_tests}"


def _sketch(pieces: Pieces) -> str:
    (piece,) = pieces.values()
    seconds, rate = piece["seconds_of"][SKETCH]["median"], piece["gflops"][GEMM] / 1e3
    share = f"**{piece['share_of_gemm']:.0%}** of the product's {rate:.1f} TFLOP/s"
    return f"{1e3 * seconds:.1f} ms for {piece['block_rows']} rows, {share}"


def _gradients(pieces: Pieces) -> str:
    cells = []
    for piece in pieces.values():
        ours, plain = (piece["seconds_of_a_batch"][name]["median"] for name in (OURS, PLAIN))
        name = f"{piece['model']}, {piece['precision']}, {piece['examples']} examples"
        cells.append(f"{name}: **{ours / plain:.2f}** ({1e3 * ours:.1f} / {1e3 * plain:.1f} ms)")
    return "<br>".join(cells)


def _selection(pieces: Pieces) -> str:
    (piece,) = pieces.values()
    ours = piece["seconds_of_a_selection"]["median"]
    epoch = piece["seconds_of_an_epoch"]["median"]
    missed = [goal for goal, is_met in piece["goals"].items() if not is_met]
    goals = f"missed: {', '.join(missed)}" if missed else "both goals are met"
    return (
        f"{ours:.1f} s ({piece['images']}), **{piece['share_of_an_epoch']:.2f}** of an epoch of "
        f"{epoch:.1f} s; {goals}"
    )


def _quality(pieces: Pieces) -> str:
    names = kinds(pieces.values(), "images")
    return f"{', '.join(name for (name,) in names)}, {len(pieces)} networks, below"


def _of_quality(runs: list[Run]) -> str:
    rows = []
    for keep, rule in kinds(runs, "keep", "rule"):
        ours = of(runs, keep=keep, rule=rule)
        cost = [
            f"{statistics.mean(run['seconds_of'][what] for run in ours):.1f}"
            for what in ("warm_up", "selection", "training")
        ]
        spent = " + ".join(cost)
        rows.append([f"{keep:.0%}", rule, _mean(ours), _paired(runs, ours), spent, str(len(ours))])
    heads = ["keep", "rule", "accuracy", f"over {quality.RANDOM}", "seconds", "seeds"]
    note = "Seconds are those of warm-up, selection and training.\n"
    return table(heads, rows) + "\n" + note


def _mean(runs: Iterable[Run]) -> str:
    return f"{statistics.mean(run['accuracy'] for run in runs):.2f}"


def _paired(runs: list[Run], ours: list[Run]) -> str:
    """Return the mean difference to the random subset of the same seed."""
    rule, keep = ours[0]["rule"], ours[0]["keep"]
    base = {run["seed"]: run["accuracy"] for run in of(runs, keep=keep, rule=quality.RANDOM)}
    found = [run["accuracy"] - base[run["seed"]] for run in ours if run["seed"] in base]
    return "–" if rule == quality.RANDOM or not found else f"{statistics.mean(found):+.2f}"


SHOWN: dict[str, Callable[[Pieces], str]] = {
    "checks": _checks,
    "sketch": _sketch,
    "gradients": _gradients,
    "selection": _selection,
    "quality": _quality,
}
