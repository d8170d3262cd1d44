"""`python -m sage_torch select`: choose a subset with what a project already has."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed
import typer

from sage_torch.command.failures import check_output, one_line
from sage_torch.command.flags import (
    OUTPUTS,
    Force,
    Traceback,
    option_flag,
    place_option,
    value_option,
)
from sage_torch.command.objects import make_dataset, make_model, named
from sage_torch.command.summary import tell
from sage_torch.command.values import read_configuration, word
from sage_torch.options import Options
from sage_torch.select import select_subset
from sage_torch.selection.result import Selection
from sage_torch.selection.table import ENDINGS

_OWN = ("config", "model", "dataset", "weights_file", "device", "out", "force", "traceback")
_OPTIONS = [option for option in dataclasses.fields(Options) if option.name != "keep"]
_GIVEN_AS = {option.name: option.metadata["given_as"] for option in _OPTIONS}
_FLAGS = (
    "force",
    "traceback",
    *(name for name, how in _GIVEN_AS.items() if how in ("switch", "names")),
)
_UNRECORDED = ("config", "force", "traceback", "progress", "checkpoint", "distributed")


def _configured(context: typer.Context, path: str | None) -> str | None:
    """Let a file give the defaults, so that its values pass the same checks."""
    if path is None:
        return None
    known = [option.name or "" for option in context.command.params if option.name != "config"]
    with one_line():
        values = read_configuration(Path(path), known)
        for name, value in values.items():
            if name == "params" and isinstance(value, str):
                values[name] = [value]
            elif isinstance(value, list) and name != "params":
                raise ValueError(
                    f"expected one value for {name!r} in {path!r}, got a list; write one"
                )
            elif value is None and name not in _FLAGS:
                values[name] = "none"  # None itself would mean: not given
    context.default_map = values
    return path


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for each option of a selection, before its last parameters."""
    own = inspect.signature(command, eval_str=True)
    *first, force, traceback = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    flags = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=option_flag(option),
        )
        for option in _OPTIONS
    ]
    parameters = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for each in (*first, *flags, force, traceback)
    ]
    command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
    return command


@_with_options
def select(
    context: typer.Context,
    model: Annotated[str, place_option("A torch.nn.Module, or a function that makes it.")],
    dataset: Annotated[str, place_option("A map-style data set, or a function that makes it.")],
    keep: Annotated[
        Any, value_option("Share in (0, 1], or a count such as 500; 1.0 is all.", "KEEP")
    ],
    out: Annotated[str, place_option("File to write: all, a table, or the indices.", OUTPUTS)],
    config: Annotated[
        str | None,
        typer.Option(
            help="Options by name; the command line wins.",
            metavar="FILE.yaml|json",
            is_eager=True,
            callback=_configured,
        ),
    ] = None,
    weights_file: Annotated[
        str | None, place_option("State dict for the model.", "FILE.pt|safetensors")
    ] = None,
    device: Annotated[str | None, place_option("Where the model computes.", "DEVICE")] = None,
    force: Force = False,
    traceback: Traceback = False,
    **_: Any,
) -> None:
    """Choose the examples worth a gradient step, and write them to a file.

    The ending of --out says what is written: .npz is all, which `report`, `issues` and `recut`
    read; .parquet and .csv are a table with one row an example; .txt is one kept index a line.

    The model and the data set come from your own code: `--model training:make_model` is the
    function make_model of training.py in this folder, called without arguments after
    torch.manual_seed(seed); an object is taken as it is. Every option of
    sage_torch.select_subset is here under its own name, and in the configuration under the same
    one. Options that are not given have the defaults of select_subset. `torchrun ... -m sage_torch
    select` shares the work among processes.
    """
    given = {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None
        and source.name in ("COMMANDLINE", "DEFAULT_MAP")
    }
    with one_line(with_traceback=traceback), _process_group():
        options = {name: value for name, value in given.items() if name not in _OWN}
        _check(options)
        check_output(Path(out), ENDINGS, force=force)
        torch.manual_seed(options.get("seed", 0))  # also for what modules make when imported
        options = {name: _object(name, value) for name, value in options.items()}
        made = make_model(model, None if weights_file is None else Path(weights_file), device)
        data = make_dataset(dataset)
        is_first = _rank() == 0
        if not is_first:
            options["progress"] = False
        selection = select_subset(made, data, **options)
        if is_first:
            selection = _with_command(selection, given)
            selection.save(out)
            tell(selection, out)


def _check(options: dict[str, Any]) -> None:
    """Refuse wrong values before any code of the user's runs, which may take long."""
    Options(**{name: value for name, value in options.items() if not _names(name, value)})


def _names(name: str, value: Any) -> bool:
    """Whether an option's value is `module:name`, for an object to be found."""
    if name == "params":
        return value is not None and len(value) == 1 and ":" in value[0]
    if name in ("gradients", "labels"):
        return isinstance(value, str) and ":" in value
    return _GIVEN_AS.get(name) == "object" and value is not None


def _object(name: str, value: Any) -> Any:
    """Return the option's value, or the object that it names."""
    if not _names(name, value):
        return value
    return named(value[0] if name == "params" else value)


def _with_command(selection: Selection, given: dict[str, Any]) -> Selection:
    command = ["python", "-m", "sage_torch", "select"]
    shards = selection.settings.get("shards")
    if shards is not None:
        given = given | {"shards": shards}  # else it would depend on the number of processes
    for name, value in given.items():
        flag = name.replace("_", "-")
        if name in _UNRECORDED:
            continue
        if _GIVEN_AS.get(name) == "switch":
            command.append(f"--{flag}" if value else f"--no-{flag}")
        elif name == "params":
            command += [part for pattern in value or () for part in ("--params", pattern)]
        else:
            command += [f"--{flag}", word(value)]
    return dataclasses.replace(selection, settings=selection.settings | {"command": command})


@contextmanager
def _process_group() -> Iterator[None]:
    """Join the other processes where torchrun started this one."""
    joins = torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
    if not joins or torch.distributed.is_initialized():
        yield
        return
    if torch.cuda.is_available():  # `--device cuda` is a device of its own for each process
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.distributed.init_process_group("gloo")  # what crosses is on the host
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _rank() -> int:
    is_there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if is_there else 0
