"""One page about a selection: a single HTML file without scripts, for any browser.

It needs jinja2, matplotlib and pandas (`pip install 'sage-torch[command]'`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from sage_torch.report.page import page
from sage_torch.selection.archive import write_whole
from sage_torch.selection.result import Selection
from sage_torch.selection.table import table_bytes

__all__ = ["page", "write_report"]


def write_report(
    selection: Selection,
    path: str | os.PathLike[str],
    dataset: Dataset[Any] | None = None,
    *,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write a page that shows kept and dropped examples, and how certain the selection is.

    It contains scores, the labels to check, near duplicates, what was kept by class, the spectrum
    of the sketch, how sure all of it is, timings, settings, versions and the command that repeats
    the selection. The file includes all pictures; opening it executes and fetches nothing. The
    whole table (`Selection.to_frame`) is written beside it, as CSV of the same name.

    Args:
        selection: Any selection; parts that it lacks are left out.
        path: The page to write. It and the table appear whole or not at all.
        dataset: The data set of the selection, to show examples: as pictures if the first part of
            an item is an image, otherwise as text and numbers.
        class_names: Names by label; None for `dataset.classes` if that fits, otherwise the labels.

    Raises:
        ValueError: The data set has another length than the selection, or a label has no name.
        ImportError: matplotlib or pandas is not installed.

    Cost:
        O(N), a second or two for the charts, and up to 168 items of the data set.

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
    beside = Path(path).with_suffix(".csv")
    table = table_bytes(selection.to_frame(), ".csv")
    text = page(selection, dataset, class_names=class_names, table=beside.name)
    write_whole(beside, table)
    write_whole(path, text.encode(errors="replace"))  # half of a surrogate pair becomes "?"
