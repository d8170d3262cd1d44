"""The compiled part links no libtorch: what it needs of it, it looks up when it is first needed.

Some tests change names in a copy of the compiled part, so that functions are missing or refuse.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

import sage_torch
import sage_torch._core as _core
from sage_torch import FrequentDirections

CORE = Path(str(_core.__file__))
PACKAGE = Path(str(sage_torch.__file__)).parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")


def section(elf: bytes, wanted: int) -> tuple[bytes, int]:
    """The first section of a kind in a 64-bit ELF file, and the section that it refers to."""
    table, (size, count) = (
        struct.unpack_from("<Q", elf, 0x28)[0],
        struct.unpack_from("<HH", elf, 0x3A),
    )
    for at in range(table, table + size * count, size):
        kind, start, length, link = struct.unpack_from("<4xI16xQQI", elf, at)
        if kind == wanted:
            return elf[start : start + length], link
    raise AssertionError(f"no section of kind {wanted}")


def text_at(elf: bytes, number: int) -> bytes:
    """The names that a section of numbers refers to."""
    table, (size,) = struct.unpack_from("<Q", elf, 0x28)[0], struct.unpack_from("<H", elf, 0x3A)
    start, length = struct.unpack_from("<24xQQ", elf, table + size * number)
    return elf[start : start + length]


def symbols(path: Path) -> tuple[set[str], set[str]]:
    """The names that a shared library defines, and those it wants from others."""
    elf = path.read_bytes()
    dynsym, link = section(elf, 11)
    names, defined, undefined = text_at(elf, link), set(), set()
    for at in range(0, len(dynsym), 24):
        name, _, _, where = struct.unpack_from("<IBBH", dynsym, at)
        word = names[name : names.index(b"\0", name)].decode()
        (defined if where else undefined).add(word)
    return defined, undefined


def needed(path: Path) -> set[str]:
    """The libraries that a shared library asks the loader for."""
    elf = path.read_bytes()
    dynamic, link = section(elf, 6)
    names = text_at(elf, link)
    entries = struct.iter_unpack("<qQ", dynamic)
    return {names[at : names.index(b"\0", at)].decode() for tag, at in entries if tag == 1}


def run(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    setup = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}\n"
    command = [sys.executable, "-c", setup + code]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=CORE.parent.parent
    )


def renamed(folder: Path, name: str, other: str) -> Path:
    """A copy of the package that looks up another function of libtorch than it should."""
    shutil.copytree(PACKAGE, folder / "sage_torch", ignore=shutil.ignore_patterns("__pycache__"))
    copy = folder / "sage_torch" / CORE.name
    before, after = name.encode() + b"\0", other.encode().ljust(len(name) + 1, b"\0")
    assert before in copy.read_bytes()
    copy.write_bytes(copy.read_bytes().replace(before, after))
    return folder


@linux
def test_it_asks_for_nothing_of_libtorch() -> None:
    assert not [
        name for name in needed(CORE) if "torch" in name or "c10" in name or "stdc++" in name
    ]


@linux
def test_every_function_that_tch_calls_is_defined_in_it() -> None:
    defined, undefined = symbols(CORE)
    assert "at_free" in defined
    assert "dlsym" in undefined
    foreign = ("at_", "atg_", "atc_", "ato_", "atm_", "ati_", "aoti_", "torch_")
    assert not [name for name in undefined if name.startswith(foreign)]


def test_it_loads_where_torch_cannot_be_imported() -> None:
    code = f"""
import importlib.machinery, importlib.util

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is blocked")

sys.meta_path.insert(0, Blocked())
loader = importlib.machinery.ExtensionFileLoader("sage_torch._core", {str(CORE)!r})
spec = importlib.util.spec_from_file_location("sage_torch._core", {str(CORE)!r}, loader=loader)
core = importlib.util.module_from_spec(spec)
loader.exec_module(core)
print(core.device_path(), set(core.device_functions().values()), "torch" in sys.modules)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("libtorch is not loaded")
    assert done.stdout.split(maxsplit=8)[-1].strip().endswith("{False} False")


def test_this_torch_has_all_functions() -> None:
    functions = _core.device_functions()
    assert len(functions) == 19
    assert all(functions.values()), functions
    assert _core.device_path() is None


MISSING = """
import warnings
import torch
import sage_torch._core as _core
from sage_torch import FrequentDirections, SageError
assert sage_torch_is_the_copy in _core.__file__, _core.__file__
rows = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
host = FrequentDirections(4, 30)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    host.update(rows)
    assert not told
    sketches = [FrequentDirections(4, 30, device="cuda") for _ in range(2)]
assert len(told) == 1, told
assert issubclass(told[0].category, RuntimeWarning)
print(told[0].message)
for sketch in sketches:
    assert (sketch.backend, str(sketch.device)) == ("host", "cpu")
    sketch.update(rows)
    assert torch.equal(sketch.matrix(), host.matrix())
    assert torch.equal(sketch.project(rows), host.project(rows))
try:
    FrequentDirections(4, 30, backend="torch")
except SageError as error:
    print(error)
"""


def test_without_a_function_sketches_run_on_the_host_after_one_warning(tmp_path: Path) -> None:
    folder = renamed(tmp_path, "aoti_torch_bmm_out", "aoti_torch_bmm_ouX")
    done = run(f"sage_torch_is_the_copy = {str(tmp_path)!r}" + MISSING, folder)
    assert done.returncode == 0, done.stderr
    warning, error = done.stdout.splitlines()
    assert "this libtorch has no aoti_torch_bmm_ouX" in warning
    assert "sketching on the CPU" in warning
    assert error.startswith('backend="torch" cannot work beside this torch: this libtorch has no')


def test_the_doctor_names_a_missing_function(tmp_path: Path) -> None:
    folder = renamed(tmp_path, "aoti_torch_bmm_out", "aoti_torch_bmm_ouX")
    code = "from sage_torch.command import application; application(['doctor', '--json'])"
    done = run(code, folder)
    assert done.returncode == 1, done.stderr
    found = {f"{one['part']} {one['name']}": one for one in json.loads(done.stdout)["findings"]}
    path = found["build device path"]
    assert path["state"] == "failed"
    assert path["found"].startswith("18 of 19 functions: this libtorch has no aoti_torch_bmm_ouX")
    assert found["self-test sketch"]["state"] == "ok"


REFUSED = """
import psutil, torch
from sage_torch import FrequentDirections, SageError
rows = torch.randn(7, 50_000)
texts, sketch = set(), FrequentDirections(4, 50_000, backend="torch")
def attempt():
    try:
        sketch.update(rows)
    except SageError as error:
        texts.add(str(error))
for _ in range(20):
    attempt()
before = psutil.Process().memory_info().rss
for _ in range(200):
    attempt()
grown = psutil.Process().memory_info().rss - before
assert sketch.rows_seen == 0
assert torch.is_grad_enabled()
print(grown)
print(*texts, sep="|")
"""


def test_what_libtorch_refuses_is_told_and_leaves_no_memory_behind(tmp_path: Path) -> None:
    # A product of matrices refuses what the product of batches takes.
    folder = renamed(tmp_path, "aoti_torch_bmm_out", "aoti_torch_mm_out")
    done = run(REFUSED, folder)
    assert done.returncode == 0, done.stderr
    grown, text = done.stdout.strip().split("\n", 1)
    assert int(grown) < 8 * 2**20  # one failed call works on 1.4 MB and more
    assert text.startswith("libtorch refused aoti_torch_bmm_out")
    if keeps_texts():
        assert "matrix" in text
        assert "Exception raised from" not in text
    else:
        assert "on stderr" in text


def keeps_texts() -> bool:
    """Whether this torch keeps the text of an error: 2.13 and later."""
    major, minor = map(int, torch.__version__.split(".")[:2])
    return (major, minor) >= (2, 13)


@pytest.mark.parametrize("backend", ["host", "torch"])
def test_ten_thousand_updates_leave_the_resident_memory_flat(backend: str) -> None:
    rows = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    sketch = FrequentDirections(8, 64, backend=backend)
    process, resident = psutil.Process(), []
    for _ in range(3):
        for _ in range(5_000):
            sketch.update(rows)
        resident.append(process.memory_info().rss)
    assert sketch.rows_seen == 3 * 5_000 * 16
    # One leaked handle a call would be at least 100 bytes: 1 MB. Whole pages come and go.
    assert resident[2] - resident[0] < 2**20
