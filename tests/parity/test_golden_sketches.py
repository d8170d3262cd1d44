"""Host sketches have the same bits beside every torch, and the device path agrees with them."""

from __future__ import annotations

import golden
import pytest
import torch

# By the widest registers of the processor: sums of the small eigenproblem follow them.
# Those of other registers are not known; `benchmarks.quality.torches` compares versions of torch
# on any processor.
GOLDEN = {
    "AVX2": {
        "matrix": "bf4108785a2248b0c8a32b157d9d7fc1976ce5545b3253a89b46b30bcb9c3fc3",
        "values": "99881f143f569c503c94c03b69ce565b0151f2cd9768324161cff907b419eb88",
        "consensus": "f667786ec4e7ae1b5d52e1ea07ba32aa54102e9e26762c53eaaa9bc5ee6076f2",
        "coordinates": "1ac21efb6d2fa21b96c439dd0d956cd14a3bf705ef33b5a9f1ef5bdbbbc117e1",
        "orthonormal": "0e3581a077e5466c87469b5a9460ee644b28e35fac07638edea9600864cfe2e3",
        "half": "780fae1dfd8775a7617570c4c02a2f37d8b971949e4c7adc3884532583979a91",
        "outer": "509bda9076542fb02a7c462a29a586d8a827e72417ec6d29f4afd0554665bd03",
    }
}


def test_host_sketches_have_the_bits_that_they_always_had() -> None:
    found = golden.bits(golden.sketched("host"))
    registers = torch.backends.cpu.get_cpu_capability()
    if registers not in GOLDEN:
        pytest.skip(f"no hashes are known of a processor with {registers}: {found}")
    assert found == GOLDEN[registers]


def test_the_device_path_agrees_with_the_host_path() -> None:
    host, device = golden.sketched("host"), golden.sketched("torch")
    assert golden.differs_by(device, host) < 1e-5
    assert golden.differs_by(host, host) == 0


def test_a_difference_would_be_seen() -> None:
    host = golden.sketched("host")
    other = host | {"half": host["half"] * (1 + 2e-5)}
    assert golden.differs_by(other, host) > 1e-5
    assert golden.bits(other)["half"] != golden.bits(host)["half"]
