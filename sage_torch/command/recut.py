"""`python -m sage_torch recut`: another cut of a selection, without the model and the data."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

from sage_torch.command.failures import check_output, one_line
from sage_torch.command.flags import (
    OUTPUTS,
    WORDS,
    Force,
    Saved,
    Traceback,
    place_option,
    value_option,
)
from sage_torch.command.summary import tell
from sage_torch.command.values import word
from sage_torch.selection.result import Selection
from sage_torch.selection.table import ENDINGS


def recut(
    selection: Saved,
    out: Annotated[str, place_option("File to write: all, a table, or the indices.", OUTPUTS)],
    keep: Annotated[Any, value_option("Share in (0, 1], or a count such as 500.", "KEEP")] = None,
    rule: Annotated[Any, value_option(WORDS["rule"])] = None,
    quotas: Annotated[Any, value_option(WORDS["quotas"])] = None,
    trim: Annotated[Any, value_option(WORDS["trim"])] = "same",
    seed: Annotated[Any, value_option("Of blocks and draws.")] = None,
    duplicates: Annotated[Any, value_option(WORDS["duplicates"])] = None,
    force: Force = False,
    traceback: Traceback = False,
) -> None:
    """Choose again from a selection that kept its coordinates, without a gradient.

    It needs neither the model nor the data, but a file of `select --keep-coordinates`. An option
    that is not given stays as it was.
    """
    with one_line(with_traceback=traceback):
        check_output(Path(out), ENDINGS, force=force)
        asked = {"keep": keep, "rule": rule, "quotas": quotas, "seed": seed}
        given = {n: v for n, v in (asked | {"duplicates": duplicates}).items() if v is not None}
        if trim != "same":
            given["trim"] = trim
        command = ["python", "-m", "sage_torch", "recut", os.fspath(selection)]
        command += [part for name, each in given.items() for part in (f"--{name}", word(each))]
        cut = Selection.load(selection).recut(**given)
        settings = cut.settings | {"command": [*command, "--out", out]}
        cut = dataclasses.replace(cut, settings=settings)
        cut.save(out)
        tell(cut, out)
