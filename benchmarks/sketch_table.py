"""The section of RESULTS.md on the speed of the sketch."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.record import RESULTS

HEAD = """\
## Sketch: rows a second

`python -m benchmarks.speed.sketch`, {cpu}, threads: {threads}, float32 rows, medians of {rounds}
interleaved rounds (3 at d = 500,000). `host` and `torch` are ours; `gram` is the same algorithm in
plain torch; `scipy` the same in SciPy (half the Gram matrix, no eigenpair too many); `svd` and
`numpy` decompose the 2l buffer in float32; `public` is what the public NumPy code does (float64,
row by row). A ratio below 1 means that the other was faster.
"""
PARTS = """\
Where the time goes: `python -m benchmarks.speed.rates`, {cpu}, one thread, everything in turns, medians
of 5 to 61 turns and of the turns' ratios (least - most of the turns: above 100 % is noise).
*GFLOP/s* counts `(4l + b + 2l²/b) d` operations a row, all else (norms, eigenproblem) within the
time; *GEMM* is faer's float32 matrix product of 1,024 x 1,024, *shaped* its product of (b, d) with
(d, l). *faer's* is the time of faer's own eigensolver over that of ours. *Project* is the time of
`project` over that of one such product of 256 rows. *b* is the number of rows between two shrinks:
1.5 l ships.
"""
HELD = """\
`gram` once more, with `MKL_ENABLE_INSTRUCTIONS=AVX2`: torch's products are MKL's, which holds back
on other makers' processors (pytorch/builder#504 and #1245); ours and faer's take whatever there is.
What an AVX-512 processor from someone else may show, as far as an Intel one can tell: no other was
measured. {cpu}, threads: {threads}, {rounds} rounds (3 at d = 500,000).
"""
NAMES = ("host", "torch", "gram", "scipy", "svd", "numpy", "public")


def sketch_section() -> list[str]:
    """Return update throughput by contender, and where ours goes."""
    record: dict[str, Any] = json.loads((RESULTS / "sketch_cpu.json").read_text())
    held: dict[str, Any] = json.loads((RESULTS / "sketch_mkl_avx2.json").read_text())
    rates: dict[str, Any] = json.loads((RESULTS / "rates_cpu.json").read_text())
    return [
        HEAD.format(rounds=record["settings"]["rounds"], **record),
        _throughput(record["results"]),
        HELD.format(rounds=held["settings"]["rounds"], **held),
        _held(held["results"]),
        PARTS.format(**rates),
        _parts(rates["results"]),
    ]


def _throughput(cells: list[dict[str, Any]]) -> str:
    lines = [
        f"| l | d | {' | '.join(NAMES)} | host / gram | host / scipy | host / svd |",
        "|---" * (len(NAMES) + 5) + "|",
    ]
    for cell in cells:
        rates = cell["rows_a_second"]
        shown = [
            str(cell["sketch_size"]),
            f"{cell['dim']:,}",
            *(
                f"{rates[name]:,.{0 if rates[name] >= 10 else 1}f}" if name in rates else "-"
                for name in NAMES
            ),
            *(
                f"{rates['host'] / rates[name]:.{0 if name == 'svd' else 2}f}"
                for name in ("gram", "scipy", "svd")
            ),
        ]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _parts(cells: list[dict[str, Any]]) -> str:
    blocks = list(cells[0]["seconds_a_row_by_block"])
    lines = [
        "| l | d | GFLOP/s | GEMM | shaped | host / GEMM | eigenproblem | faer's | "
        "project / GEMM | " + " | ".join(f"b = {ratio} l" for ratio in blocks) + " |",
        "|---" * (9 + len(blocks)) + "|",
    ]
    for cell in cells:
        of_blocks = cell["seconds_a_row_by_block"]
        least = min(of_blocks.values())
        shown = [
            str(cell["sketch_size"]),
            f"{cell['dim']:,}",
            f"{cell['gflops']:.0f}",
            f"{cell['gemm_gflops']:.0f}",
            f"{cell['shaped_gflops']:.0f}",
            "{median:.0%} ({min:.0%} - {max:.0%})".format(**cell["share_of_gemm"]),
            f"{cell['eigenproblem_share']:.0%}",
            f"{cell['faer_eigenproblem_over_ours']['median']:.1f}",
            f"{cell['project_over_gemm']['median']:.2f}",
            *(f"{of_blocks[ratio] / least:.2f}" for ratio in blocks),
        ]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _held(cells: list[dict[str, Any]]) -> str:
    lines = ["| l | d | host | gram | host / gram |", "|---" * 5 + "|"]
    for cell in cells:
        rates = cell["rows_a_second"]
        lines.append(
            f"| {cell['sketch_size']} | {cell['dim']:,} | {rates['host']:,.0f} "
            f"| {rates['gram']:,.0f} | {rates['host'] / rates['gram']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def readme_table() -> str:
    """Return how many times as fast as others ours is, and its share of a bare product's rate."""
    cells = json.loads((RESULTS / "sketch_cpu.json").read_text())["results"]
    names = [f"{cell['sketch_size']}, {cell['dim']:,}" for cell in cells]
    lines = [
        f"| times as fast as, at l, d = | {' | '.join(names)} |",
        "|---" * (len(cells) + 1) + "|",
    ]
    others = {
        "gram": "the Gram form in plain torch",
        "scipy": "the same in SciPy, half the matrix",
        "svd": "`torch.linalg.svd` of a 2l buffer",
        "public": "the public NumPy code",
    }
    for name, shown in others.items():
        digits = 1 if name in ("gram", "scipy") else 0
        rates = [cell["rows_a_second"] for cell in cells]
        ratios = [f"{of['host'] / of[name]:.{digits}f}" if name in of else "-" for of in rates]
        lines.append(f"| {shown} | {' | '.join(ratios)} |")
    of_time = json.loads((RESULTS / "rates_cpu.json").read_text())["results"]
    shares = [f"{cell['share_of_gemm']['median']:.0%}" for cell in of_time]
    lines.append(f"| *share of faer's matrix product rate* | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"
