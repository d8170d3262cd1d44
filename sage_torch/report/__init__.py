"""One page about a selection: HTML in a single file, without scripts, for any browser.

It needs jinja2 and matplotlib (`pip install 'sage-torch[command]'`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from sage_torch.report.page import page
from sage_torch.selection.archive import write_whole
from sage_torch.selection.result import Selection

__all__ = ["page", "write_report"]


def write_report(
    selection: Selection,
    path: str | os.PathLike[str],
    dataset: Dataset[Any] | None = None,
    *,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write a page that shows what was kept, what was dropped and how sure that is.

    Scores and margins, kept and total by class, the spectrum of the sketch, its certificate in
    words, timings, settings, versions and the command that makes the selection again. Everything is
    in the one file: pictures too, and nothing is executed or fetched when it is opened.

    Args:
        selection: Any; what it does not have is left out.
        path: Where to write; the file appears whole or not at all.
        dataset: The data set the selection was made from, to show kept and dropped examples: as
            pictures where the first part of an item is one, else as text and numbers.
        class_names: Names by label; None for `dataset.classes` where that fits, else the labels.

    Raises:
        ValueError: The data set has another length than the selection, or a label has no name.
        ImportError: matplotlib is not installed.

    Cost:
        O(N), a second or two for the charts, and up to 132 items of the data set.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from torch.utils.data import TensorDataset
        >>> from sage_torch import select_subset
        >>> from sage_torch.report import write_report
        >>> data = TensorDataset(torch.randn(100, 8), torch.arange(100) % 2)
        >>> selection = select_subset(torch.nn.Linear(8, 2), data, keep=0.25, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(selection, f"{folder}/subset.html", data)
        ...     "25 of 100 examples" in Path(folder, "subset.html").read_text(encoding="utf-8")
        True
    """
    text = page(selection, dataset, class_names=class_names)
    write_whole(path, text.encode(errors="replace"))  # half a character shows as "?"
