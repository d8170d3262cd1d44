"""The benchmark of an accelerator: small and on the CPU it runs whole, and goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks.accelerator.__main__ as accelerator
from benchmarks.accelerator import page
from benchmarks.accelerator.machine import Machine
from benchmarks.record import PROJECT

# What is there in the project's environment, and need not be beside the wheel and torch.
OTHERS = [
    "PIL", "hypothesis", "jinja2", "matplotlib", "opacus", "pandas", "psutil", "pytest", "scipy",
    "sklearn", "timm", "torchvision", "transformers", "typer",
]  # fmt: skip
WITHOUT_OTHERS = f"""
import sys
sys.modules.update(dict.fromkeys({OTHERS}))  # as if they were not installed
from benchmarks.accelerator.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
TINY = ["--device", "cpu", "--tiny", "--out"]
MODELS = ["ResNet-18", "ViT-tiny", "GPT-10M"]
Record = dict[str, Any]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a whole run, in a process without other packages."""
    out = tmp_path_factory.mktemp("accelerator") / "tiny.json"
    command = [sys.executable, "-c", WITHOUT_OTHERS, *TINY, str(out)]
    asked = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    return out


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAGE_TORCH_DATA", raising=False)


def test_everything_is_measured_and_says_on_what(measured: Path) -> None:
    record = json.loads(measured.read_text())
    assert list(record["sections"]) == list(accelerator.PARTS) == list(page.WHAT)
    for section in record["sections"].values():
        assert section["is_complete"]
        by = section["made_by"]
        assert (by["device_type"], by["is_tiny"], by["images"]) == ("cpu", True, "made-up images")
    pieces = {name: section["pieces"] for name, section in record["sections"].items()}
    assert all(piece["passed"] for piece in pieces["checks"].values() if "skipped" not in piece)
    assert pieces["checks"]["tests"] == pytest.approx(
        {"skipped": "they need a CUDA device", "seconds": 0}, abs=1
    )
    block = pieces["sketch"]["a block"]
    assert (block["sketch_size"], block["block_rows"]) == (16, 24)
    assert block["operations"]["sketch"] == (4 * 16 * 24 + 24**2 + 2 * 16**2) * block["dim"]
    assert block["share_of_gemm"] > 0
    assert [one["model"] for one in pieces["gradients"].values()] == MODELS
    assert all("projected" in one["description"] for one in pieces["gradients"].values())
    assert pieces["selection"]["whole"]["goals"] == {}  # they are set for a GPU
    runs = list(pieces["quality"].values())
    assert [(run["examples"], run["steps"]) for run in runs] == [(120, 28), (120, 28), (480, 28)]
    assert all(run["seconds_of"]["warm_up"] > 0 for run in runs if "SAGE" in run["rule"])


def test_what_is_there_is_not_measured_again(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again.json"
    out.write_text(measured.read_text())
    assert accelerator.main([*TINY, str(out)]) == 0
    assert capsys.readouterr().out == f"written to {out}\n"
    record = json.loads(out.read_text())
    del record["sections"]["sketch"]
    out.write_text(json.dumps(record))
    assert accelerator.main([*TINY, str(out)]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "sketch, a block",
        f"written to {out}",
    ]


def test_figures_of_a_cpu_are_not_shown_as_those_of_a_gpu(measured: Path) -> None:
    record = json.loads(measured.read_text())
    nothing = page.of_record({})
    assert nothing.count("unmeasured") == len(accelerator.PARTS)
    assert page.of_record(record) == nothing
    for section in record["sections"].values():
        section["made_by"].update(device_type="cuda", device="A GPU")
    assert page.of_record(record) == nothing  # but tiny
    for section in record["sections"].values():
        section["made_by"].update(is_tiny=False)
    shown = page.of_record(record)
    assert "unmeasured" not in shown
    assert "Measured on A GPU" in shown
    assert "8 of 8 checks hold" in shown
    share = record["sections"]["sketch"]["pieces"]["a block"]["share_of_gemm"]
    assert f"**{share:.0%}** of the product's" in shown
    accuracy = record["sections"]["quality"]["pieces"]
    assert all(f"{run['accuracy']:.2f}" in shown for run in accuracy.values())


# The order of work, with pieces that only count.


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pieces that ran, in place of the real ones: two in a, one in b."""
    ran: list[str] = []

    def piece(name: str) -> Callable[[], Record]:
        def run() -> Record:
            ran.append(name)
            return {"value": len(ran)}

        return run

    parts = {
        "a": lambda machine: {"1": piece("a 1"), "2": piece("a 2")},
        "b": lambda machine: {"1": piece("b 1")},
    }
    monkeypatch.setattr(accelerator, "PARTS", parts)
    return ran


MACHINE = Machine(torch.device("cpu"), is_tiny=True)


def pieces_of(out: Path) -> dict[str, Record]:
    sections = json.loads(out.read_text())["sections"]
    return {name: section["pieces"] for name, section in sections.items()}


def test_a_failure_is_written_down_and_tried_again(
    calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, good = tmp_path / "out.json", accelerator.PARTS["a"]

    def fails() -> Record:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(accelerator.PARTS, "a", lambda machine: good(machine) | {"1": fails})
    assert not accelerator.measure(MACHINE, out, 100)
    assert calls == ["a 2", "b 1"]
    assert pieces_of(out)["a"]["1"]["failed"] == "RuntimeError: out of memory"
    assert not json.loads(out.read_text())["sections"]["a"]["is_complete"]
    monkeypatch.setitem(accelerator.PARTS, "a", good)
    assert accelerator.measure(MACHINE, out, 100)
    assert calls == ["a 2", "b 1", "a 1"]
    assert json.loads(out.read_text())["sections"]["a"]["is_complete"]


def test_a_check_that_does_not_hold_is_a_failure(
    calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {"value": 2.0, "limit": 1.0, "passed": False}
    monkeypatch.setitem(accelerator.PARTS, "b", lambda machine: {"1": lambda: bad})
    assert not accelerator.measure(MACHINE, tmp_path / "out.json", 100)
    assert not accelerator.measure(MACHINE, tmp_path / "out.json", 100)  # nor the next time
    assert calls == ["a 1", "a 2"]


def test_nothing_begins_without_time(calls: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    accelerator.measure(MACHINE, out, 0)
    assert calls == []
    accelerator.measure(MACHINE, out, 100)
    assert calls == ["a 1", "a 2", "b 1"]
    record = json.loads(out.read_text())
    del record["sections"]["a"]["pieces"]["2"]
    record["sections"]["a"]["pieces"]["1"]["seconds"] = 99  # the next one may take as long
    out.write_text(json.dumps(record))
    accelerator.measure(MACHINE, out, 90)
    assert calls == ["a 1", "a 2", "b 1"]
    accelerator.measure(MACHINE, out, 110)
    assert calls == ["a 1", "a 2", "b 1", "a 2"]


@pytest.mark.parametrize("what", ["commit", "code", "torch", "device", "images"])
def test_another_code_or_device_is_measured_anew(
    calls: list[str], tmp_path: Path, what: str
) -> None:
    out = tmp_path / "out.json"
    accelerator.measure(MACHINE, out, 100)
    record = json.loads(out.read_text())
    record["sections"]["b"]["made_by"][what] = "another"
    out.write_text(json.dumps(record))
    accelerator.measure(MACHINE, out, 100)
    assert calls == ["a 1", "a 2", "b 1", "b 1"]


def test_a_file_is_written_whole_or_not_at_all(
    calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    accelerator.measure(MACHINE, out, 100)
    before = out.read_text()

    def killed(self: Path, text: str) -> None:
        with self.open("w") as file:
            file.write(text[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        accelerator.write_whole(out, {"sections": {}})
    assert out.read_text() == before


def test_another_file_is_left_alone(calls: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    for text in ('{"question": "Why?"}', "no JSON", "[]"):
        out.write_text(text)
        with pytest.raises(ValueError, match="to be written by this benchmark; give another"):
            accelerator.measure(MACHINE, out, 100)
        assert out.read_text() == text
    assert calls == []


def test_only_a_gpu_in_full_size_writes_to_the_results() -> None:
    cuda = torch.device("cuda")
    assert accelerator.default_out(Machine(cuda)) == PROJECT / "benchmarks/results" / page.FILE
    others = [Machine(cuda, is_tiny=True), Machine(torch.device("cpu")), MACHINE]
    assert {accelerator.default_out(one).parent for one in others} == {PROJECT / "outputs"}
