"""The folders of `src/` stand in the order of the trip: each uses only folders to its left.

A file uses what its paths name that begin with `crate::` and its `use` lines at the margin that
begin with `super::`. A `mod.rs` also uses a module of its own where a path begins with it. Test
modules are included.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
ORDER = ["error", "test_numbers", "seeded", "products", "sketch", "scores", "rules", "python"]
"""Left to right; what lies loose in `src/` comes first."""

LOOSE, LONGEST = 3, 400
Graph = dict[str, set[str]]

USE = re.compile(r"^(?:pub(?:\([^)]*\))? )?use (super\b[^;]*);", re.MULTILINE)
CRATE_USE = re.compile(r"\buse (crate\b[^;]*);")
CRATE = re.compile(r"\bcrate((?:::\w+)+)")
OWN = re.compile(r"(?<![:\w])(\w+)::")


def files(src: Path) -> dict[str, str]:
    """The text of every file, by its module: `sketch::state`, `sketch` for `sketch/mod.rs`."""
    found = {}
    for path in sorted(src.rglob("*.rs")):
        parts = path.relative_to(src).with_suffix("").parts
        name = "::".join(parts[:-1] if parts[-1] == "mod" else parts)
        found[name] = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
    return found


def leaves(tree: str) -> Iterator[str]:
    """The paths of a `use` tree: `a::{b, c::{d, self}}` is a::b, a::c::d and a::c."""
    before, brace, inside = tree.partition("{")
    if not brace:
        yield re.sub(r"(::self)?( as \w+)?$", "", tree.strip())
        return
    inside, depth, part = inside[: inside.rindex("}")], 0, ""
    for letter in inside + ",":
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            if part.strip():
                yield from leaves(before.strip() + part.strip())
            part = ""
        else:
            part += letter


def used(module: str, text: str, modules: dict[str, str]) -> set[str]:
    """The files that a file uses; itself left out."""
    paths = {path.removeprefix("::") for path in CRATE.findall(text)}
    for tree in CRATE_USE.findall(text):
        paths |= {path.removeprefix("crate::") for path in leaves(tree)}
    for tree in USE.findall(text):
        for path in leaves(tree):
            above = module
            while path.startswith("super::"):
                above, path = above.rpartition("::")[0], path.removeprefix("super::")
            paths.add(f"{above}::{path}".removeprefix("::"))
    own = {f"{module}::{name}" for name in OWN.findall(text)}
    paths |= own & modules.keys()
    found = set()
    for path in paths:
        # The longest beginning that is a file; what is left of the path is an item in it.
        while path and path not in modules:
            path = path.rpartition("::")[0]
        found.add(path)
    return found - {module, ""}


def of_files(src: Path) -> Graph:
    modules = files(src)
    return {name: used(name, text, modules) for name, text in modules.items()}


def of_folders(graph: Graph) -> Graph:
    folders: Graph = {name.partition("::")[0]: set() for name in graph}
    for name, targets in graph.items():
        folder = name.partition("::")[0]
        folders[folder] |= {target.partition("::")[0] for target in targets} - {folder}
    return folders


def circle(graph: Graph) -> list[str]:
    """What is left when all that uses nothing, or is used by nothing, has been taken away."""
    left = {name: targets & graph.keys() for name, targets in graph.items()}
    while left:
        of_others = set().union(*left.values())
        kept = {name for name, targets in left.items() if targets and name in of_others}
        if len(kept) == len(left):
            break
        left = {name: left[name] & kept for name in kept}
    return sorted(left)


def pointing_right(graph: Graph) -> list[str]:
    return [
        f"{folder} -> {target}"
        for folder, targets in of_folders(graph).items()
        for target in sorted(targets)
        if folder in ORDER and ORDER.index(target) > ORDER.index(folder)
    ]


def wrong(src: Path) -> list[str]:
    """All that breaks the layout of a `src/`, in words."""
    graph = of_files(src)
    loose = sorted(path.name for path in src.glob("*.rs"))
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines()) for path in src.rglob("*.rs")
    }
    found = [f"points right: {arrow}" for arrow in pointing_right(graph)]
    found += [f"circle of files: {names}" for names in [circle(graph)] if names]
    found += [f"circle of folders: {names}" for names in [circle(of_folders(graph))] if names]
    found += [f"loose: {loose}"] if len(loose) > LOOSE else []
    return found + [f"too long: {path.name}" for path, lines in lengths.items() if lines > LONGEST]


def test_the_rooms_are_in_order() -> None:
    assert {name.partition("::")[0] for name in files(SRC)} == {"lib", *ORDER}
    assert wrong(SRC) == []


def test_every_arrow_is_seen() -> None:
    graph = of_files(SRC)
    assert {"products", "products::rows", "sketch::shrink", "error"} <= graph["sketch::state"]
    assert graph["python::sketch::calls"] >= {"python::sketch", "python::threads"}
    assert graph["python"] >= {"python::scores", "python::sketch"}
    assert "test_numbers" in graph["products::transpose"]  # of its test module
    assert of_folders(graph)["rules"] == {"error", "scores", "seeded", "test_numbers"}


MORE: dict[str, tuple[dict[str, str], str]] = {
    "right": ({"seeded/draw.rs": "use crate::rules::top_k::ranked;"}, "points right: seeded ->"),
    "right inside": (
        {"products/host.rs": "fn f() { crate::sketch::state::block_rows(1); }"},
        "points right: products -> sketch",
    ),
    "circle of files": (
        {"sketch/shrink.rs": "use super::{state::{self, State}, eigen};"},
        "circle of files: ['sketch::shrink', 'sketch::state']",
    ),
    "circle with a folder's own file": (
        {"python/threads.rs": "use super::_core;"},
        "circle of files",
    ),
    "circle of folders": (
        {"error.rs": "use crate::seeded::draw::keys;"},
        "circle of folders: ['error', 'seeded']",
    ),
    "loose": ({"helpers.rs": ""}, "loose: ['error.rs', 'helpers.rs'"),
    "long": ({"rules/trim.rs": "\n" * 400}, "too long: trim.rs"),
}


@pytest.mark.parametrize("name", list(MORE))
def test_what_breaks_the_order_is_found(name: str, tmp_path: Path) -> None:
    added, expected = MORE[name]
    shutil.copytree(SRC, tmp_path / "src")
    for file, text in added.items():
        path = tmp_path / "src" / file
        path.write_text((path.read_text() if path.exists() else "") + "\n" + text + "\n")
    assert expected in "; ".join(wrong(tmp_path / "src"))
