"""Writes RESULTS.md and the marked blocks of README.md and docs/ from the committed result files.

A block stands between `<!-- results:NAME -->` and `<!-- /results -->`; `BLOCKS` has the names.

    python -m benchmarks.results.page
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.accelerator import page as accelerator
from benchmarks.choices import consensus, finished, sketch_rows, sketch_size
from benchmarks.quality import (
    compression,
    duplicates,
    labels,
    long_tables,
    pictures,
    subset,
    tables,
    tasks,
    torches,
)
from benchmarks.record import PROJECT, RESULTS
from benchmarks.speed import (
    before_after,
    calls,
    cost,
    derived_weights,
    determinism,
    duplicate_rows,
    gradients,
    indices,
    memory,
    modes,
    rates,
    recut,
    selection,
    shards,
    sketch,
    stream,
)

PAGE = RESULTS.parent / "RESULTS.md"
HEAD = """\
# Results

`python -m benchmarks.results.page` generates this page from the files in `benchmarks/results/`.
Each file holds every run, the versions, the processor, the threads, the commit and the seeds.{gpu}
"""
NO_GPU = """
**No figure on this page was measured on a GPU.** The CUDA path is tested on the CPU through the
same code (`backend="torch"`). What waits for a machine: `python -m benchmarks.accelerator`, which
runs the tests for CUDA as well, and `benchmarks.speed.sketch` and `benchmarks.speed.gradients` with
`--device cuda`."""
GPU = "\nFigures measured on a GPU say so."
SECTIONS: tuple[Callable[[], str], ...] = (
    tables.section,
    long_tables.section,
    cost.section,
    subset.section,
    tasks.section,
    compression.section,
    labels.section,
    duplicates.section,
    gradients.section,
    derived_weights.section,
    sketch.section,
    rates.section,
    accelerator.section,
    memory.section,
    recut.section,
    modes.section,
    stream.section,
    shards.section,
    duplicate_rows.section,
    indices.section,
    selection.section,
    determinism.section,
    before_after.section,
    calls.section,
    torches.section,
    sketch_size.section,
    sketch_rows.section,
    consensus.section,
    finished.section,
    tables.former_section,
)
BLOCKS: dict[str, Callable[[], str]] = {
    "quality": lambda: tables.means(0.0, tables.README_RULES),
    "noisy": lambda: tables.means(0.2, tables.README_RULES),
    "gradients": gradients.block,
    "labels": labels.block,
    "modes": modes.block,
    "sketch": sketch.block,
}
MARKED = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def main() -> None:
    """Write pictures, page and blocks."""
    pictures.draw_pictures()
    long_tables.draw_pictures()
    PAGE.write_text(results_page())
    for page in pages():
        page.write_text(with_blocks(page.read_text()))


def results_page() -> str:
    """Return the text of RESULTS.md."""
    head = HEAD.format(gpu=GPU if any(RESULTS.glob("*_cuda.json")) else NO_GPU)
    return "\n".join([head, *(section() for section in SECTIONS)])


def pages() -> list[Path]:
    """Return the pages that may have blocks."""
    return [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]


def with_blocks(text: str) -> str:
    """Return a page with its blocks made anew.

    Raises:
        ValueError: There is no block of that name.
    """

    def anew(found: re.Match[str]) -> str:
        if found[2] not in BLOCKS:
            raise ValueError(f"expected a block of {', '.join(BLOCKS)}, got {found[2]!r}")
        return found[1] + BLOCKS[found[2]]() + found[3]

    return MARKED.sub(anew, text)


if __name__ == "__main__":
    main()
