"""For the API page: documentation that is written when the package is imported.

`select_subset` gets its options from the fields of `Options`. A tool that only
reads the source does not see them.
"""

from __future__ import annotations

import inspect
from typing import Any

import griffe

WRITTEN = "sage_torch.select.select_subset"


class WrittenOptions(griffe.Extension):
    """Takes the docstring and the signature from the imported function."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Replace them."""
        if func.path != WRITTEN or func.docstring is None:
            return
        from sage_torch import select_subset

        func.docstring.value = inspect.getdoc(select_subset) or ""
        kinds = {each.name: each for each in func.parameters}
        for each in inspect.signature(select_subset).parameters.values():
            if each.name not in kinds:
                func.parameters.add(
                    griffe.Parameter(
                        each.name,
                        annotation=str(each.annotation),
                        kind=griffe.ParameterKind.keyword_only,
                        default=repr(each.default),
                    )
                )
        del func.parameters["options"]
