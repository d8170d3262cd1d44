"""The doctor finds what is there, and what is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import sage_torch
from sage_torch import FrequentDirections, SageError, select_subset
from sage_torch.command import application

TESTS = ("sketch", "device path", "selection", "threads")
module: Any = import_module("sage_torch.command.doctor")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(application, ["doctor", *arguments], env={"COLUMNS": "200"})


def findings(done: Result) -> dict[str, dict[str, Any]]:
    found = json.loads(done.output)["findings"]
    return {f"{one['part']}: {one['name']}": one for one in found}


def test_all_is_well_here() -> None:
    before = torch.get_rng_state(), torch.get_num_threads()
    done = run("--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["is_well"]
    found = findings(done)
    assert found["versions: sage_torch"]["found"] == sage_torch.__version__
    assert found["versions: torch"]["found"] == torch.__version__
    assert found["versions: numpy"]["found"] == np.__version__
    assert found["optional: scikit-learn"]["found"] == metadata.version("scikit-learn")
    assert found["build: torch, at least"] == {
        "part": "build", "name": "torch, at least", "found": "2.6", "state": "ok"
    }  # fmt: skip
    assert found["build: device path"]["found"] == "19 of 19 functions"
    assert found["build: device path"]["state"] == "ok"
    tests = {name: one["state"] for name, one in found.items() if name.startswith("self-test")}
    assert set(tests) >= {f"self-test: {name}" for name in TESTS}
    assert set(tests.values()) == {"ok"}
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.get_num_threads() == before[1]


def test_the_table_says_the_same() -> None:
    done = run()
    assert done.exit_code == 0
    for words in (f"torch {torch.__version__}", "processor", "all is well"):
        assert words in " ".join(done.output.split())


class Wrong:
    """A sketch with one thing wrong."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.inner = FrequentDirections(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Longer(Wrong):
    def singular_values(self) -> Any:
        return 1.01 * self.inner.singular_values()


class Overestimating(Wrong):
    def matrix(self) -> Any:
        return 1.05 * self.inner.matrix()


class Promising(Wrong):
    shrinkage = 1e-3


class Grabbing(Wrong):
    def update(self, rows: Any) -> None:
        self.inner.update(rows)
        torch.set_num_threads(1)


class Astray(Wrong):
    def matrix(self) -> Any:
        return self.inner.matrix() * (1.001 if self.inner.backend == "torch" else 1.0)


class Failing(Wrong):
    def update(self, rows: Any) -> None:
        raise SageError("no memory at all")


def other_seeds() -> Callable[..., Any]:
    seeds = iter(range(100))
    return lambda *arguments, **options: select_subset(
        *arguments, rule="random", seed=next(seeds), **options
    )


def drawing(*arguments: Any, **options: Any) -> Any:
    torch.rand(1)
    return select_subset(*arguments, **options)


@pytest.mark.parametrize(
    ("name", "broken", "test", "words"),
    [
        ("FrequentDirections", Longer, "sketch", "singular values differ"),
        ("FrequentDirections", Overestimating, "sketch", "promised 0 to"),
        ("FrequentDirections", Promising, "sketch", "promised 0 to 0.001"),
        ("FrequentDirections", Grabbing, "threads", "2 threads became 1"),
        ("FrequentDirections", Astray, "device path", "the two paths differ by 2.0e-03"),
        ("FrequentDirections", Failing, "sketch", "SageError: no memory at all"),
        ("FrequentDirections", Failing, "device path", "SageError: no memory at all"),
        ("select_subset", other_seeds(), "selection", "the second subset is another"),
        ("select_subset", drawing, "selection", "the random state has moved"),
    ],
)
def test_what_is_broken_is_named_and_the_exit_code_is_1(
    name: str, broken: Any, test: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(module, name, broken)
    with torch.random.fork_rng():
        try:
            done = run("--json")
        finally:
            torch.set_num_threads(threads)  # which `Grabbing` has changed
    assert done.exit_code == 1
    assert not json.loads(done.output)["is_well"]
    found = findings(done)[f"self-test: {test}"]
    assert found["state"] == "failed"
    assert words in found["found"]


def test_the_table_names_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FrequentDirections", Failing)
    done = run()
    assert done.exit_code == 1
    assert done.output.strip().endswith("failed: sketch, device path, threads")


def test_what_is_not_installed_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OPTIONAL", ("no-such-package",))
    done = run("--json")
    assert done.exit_code == 0
    assert findings(done)["optional: no-such-package"]["found"] == "not installed"
