"""Projected gradients on a CUDA device: the same maps and rows; skipped where there is none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from microbatches import assert_rows
from torch import nn
from zoo import Case, case

from sage_torch.gradients import ProjectedGradients, batches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SOME = [
    "lenet",
    "resnet18",
    "timm vit",
    "gpt positions (T,)",
    "transposed 2d grouped",
    "transformer time first",
    "conv3d depthwise",
    "embedding with padding",
    "lstm",
    "gate",
]


@pytest.fixture(autouse=True)
def _float32() -> Iterator[None]:
    # TF32 convolutions would be the user's choice; the comparison wants float32.
    with torch.backends.cudnn.flags(allow_tf32=False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="vmap cannot differentiate")
        yield


def on_cuda(case: Case) -> tuple[nn.Module, Any]:
    model, batch = case.make()
    return model.cuda(), batches.to_device(batch, "cuda")


@pytest.mark.parametrize("case", [case(name) for name in SOME], ids=SOME)
@pytest.mark.parametrize("width", [4, 10**6])
def test_rows_equal_those_of_the_cpu(case: Case, width: int) -> None:
    expected = ProjectedGradients(case.make()[0], width, case.loss)(case.make()[1])
    model, batch = on_cuda(case)
    rows = ProjectedGradients(model, width, case.loss)(batch)
    assert rows.is_cuda
    assert_rows(rows.cpu(), expected, 1e-4)


@pytest.mark.parametrize("name", ["lenet", "timm vit", "gpt positions (T,)"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_float32_rows(name: str, dtype: torch.dtype) -> None:
    model, batch = on_cuda(case(name))
    expected = ProjectedGradients(model, 16, case(name).loss)(batch)
    with torch.autocast("cuda", dtype=dtype):
        rows = ProjectedGradients(model, 16, case(name).loss)(batch)
    assert_rows(rows, expected, 0.05)
