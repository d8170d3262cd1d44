"""A selection as a table, one row an example (pandas), and the files of it: Parquet, CSV, text.

Where a column means what one of cleanlab's Datalab means, it has its name.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

# The columns and their types, all of which know missing values.
COLUMNS = {
    "index": "Int64",
    "given_label": "Int64",
    "predicted_label": "Int64",
    "label_score": "Float32",
    "is_label_issue": "boolean",
    "margin": "Float32",
    "agreement": "Float32",
    "kept": "boolean",
    "rank": "Int64",
    "weight": "Float32",
    "duplicate_of": "Int64",
}
TABLES = (".parquet", ".csv")
ENDINGS = (".npz", *TABLES, ".txt")  # of the files that a selection is saved to
_NEEDED = {".parquet": ("pandas", "pyarrow")}
_NO_JUDGEMENT = (
    "expected a selection that judges labels, got one without `is_wrong`; select again with "
    'trim="auto", which needs two classes or more and a model with features'
)


def frame(known: Mapping[str, Any]) -> pd.DataFrame:
    """Return the table of a selection.

    Args:
        known: The fields of a selection, and its `predicted_labels` and `is_label_issue`. None
            where something is not known.

    Raises:
        ImportError: pandas is not installed.
    """
    check_installed()
    kept = known["indices"]
    total = len(known["scores"])
    places, duplicate_of = np.arange(total), known["duplicate_of"]
    is_kept = np.zeros(total, bool)
    is_kept[kept] = True
    values: dict[str, NDArray[Any] | None] = {
        "index": places,
        "given_label": known["labels"],
        "predicted_label": known["predicted_labels"],
        "label_score": known["label_scores"],
        "is_label_issue": known["is_label_issue"],
        "margin": known["margins"],
        "agreement": known["scores"],
        "kept": is_kept,
        "rank": _spread(known["ranks"], kept, total),
        "weight": _spread(known["weights"], kept, total),
        "duplicate_of": duplicate_of,
    }
    is_missing = {"rank": ~is_kept, "weight": ~is_kept}
    if duplicate_of is not None:
        is_missing["duplicate_of"] = duplicate_of < 0
    columns = {
        name: _column(kind, values[name], is_missing.get(name), total)
        for name, kind in COLUMNS.items()
    }
    table: pd.DataFrame = import_module("pandas").DataFrame(columns)
    return table


def doubtful(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose label is taken to be wrong, the least likely label first.

    Labels that are equally likely stay in the order of the data set.

    Raises:
        ValueError: The table does not say which labels are taken to be wrong.
    """
    if table["is_label_issue"].isna().any():
        raise ValueError(_NO_JUDGEMENT)
    rows = table[table["is_label_issue"].astype(bool)]
    return rows.sort_values("label_score", kind="stable", ignore_index=True)


def table_bytes(table: pd.DataFrame, ending: str) -> bytes:
    """Return a table as a file.

    Args:
        table: Of `frame` or `doubtful`.
        ending: One of `TABLES`.

    Raises:
        ImportError: It is ".parquet", and pyarrow is not installed.
    """
    check_installed(ending)
    if ending == ".csv":
        text: str = table.to_csv(index=False, lineterminator="\n")
        return text.encode()
    buffer = io.BytesIO()
    table.to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()


def lines(indices: NDArray[np.int64]) -> bytes:
    """Return indices as a text, one a line."""
    return "".join(f"{index}\n" for index in indices.tolist()).encode()


def described(start: bytes) -> str | None:
    """Return what a file is that begins so, if it is one of a selection's but not the `.npz`."""
    if start.startswith(b"PAR1"):
        return "a table (Parquet), which pandas.read_parquet reads"
    if start.startswith(b"index,given_label"):
        return "a table (CSV), which pandas.read_csv reads"
    first, newline, _ = start.partition(b"\n")
    return "a list of indices" if newline and first.strip().isdigit() else None


def check_installed(ending: str = "") -> None:
    """Check that what writes a file of this ending, or a table in memory, is installed.

    Raises:
        ImportError: It is not.
    """
    missing = [name for name in _NEEDED.get(ending, ("pandas",)) if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"expected {' and '.join(missing)} for a table, not installed; "
            "pip install 'sage-torch[table]'"
        )


def _spread(
    of_kept: NDArray[Any] | None, kept: NDArray[np.int64], total: int
) -> NDArray[Any] | None:
    """Return values of the kept examples as values of all, with 0 for the others."""
    if of_kept is None:
        return None
    values = np.zeros(total, of_kept.dtype)
    values[kept] = of_kept
    return values


def _column(
    kind: str, values: NDArray[Any] | None, is_missing: NDArray[np.bool_] | None, total: int
) -> Any:
    """Return a column of its own memory; NaN is missing, too."""
    arrays = import_module("pandas").arrays
    make, dtype = {
        "Int64": (arrays.IntegerArray, np.int64),
        "Float32": (arrays.FloatingArray, np.float32),
        "boolean": (arrays.BooleanArray, np.bool_),
    }[kind]
    if values is None:
        return make(np.zeros(total, dtype), np.ones(total, bool))
    is_nan = np.isnan(values) if kind == "Float32" else np.zeros(total, bool)
    return make(values.astype(dtype), is_nan if is_missing is None else is_nan | is_missing)
