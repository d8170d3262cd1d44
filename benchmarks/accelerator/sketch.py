"""How fast a Frequent Directions sketch takes long rows, against a plain matrix product.

A block of b rows costs `(4 l b + b^2 + 2 l^2) d` operations that cannot be spared: b^2 d for their
Gram matrix (of which one half is needed), 2 l b d for their products with the l rows of the sketch,
and 2 l (l + b) d to turn both into the new sketch. The time includes all else, such as norms and
the eigenproblem. The product that it is held against is one of float32, without TF32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.accelerator.machine import Machine, Piece
from benchmarks.record import spread
from sage_torch import FrequentDirections

ROWS, DIM, SQUARE, ROUNDS = 256, 1_000_000, 8_192, 7
TINY_ROWS, TINY_DIM, TINY_SQUARE, TINY_ROUNDS = 16, 4_000, 256, 2
OURS, GEMM, SHAPED = "sketch", "square product", "product of the block's shape"
FORMULA = "(4 l b + b^2 + 2 l^2) d for a block of b rows; 2 m n k for a product"


def pieces(machine: Machine) -> dict[str, Piece]:
    """Return the one piece of this part."""
    return {"a block": partial(a_block, machine)}


def a_block(machine: Machine) -> dict[str, Any]:
    """Time updates of one block, and float32 products, in turns."""
    tiny = machine.is_tiny
    size, dim = (TINY_ROWS, TINY_DIM) if tiny else (ROWS, DIM)
    square, rounds = (TINY_SQUARE, TINY_ROUNDS) if tiny else (SQUARE, ROUNDS)
    device = machine.device
    generator = torch.Generator(device).manual_seed(0)
    sketch = FrequentDirections(size, dim, device=device, backend="torch")
    block = sketch.block_rows
    decay = torch.linspace(0, -3, block, device=device)[:, None].exp()
    rows = torch.randn(block, dim, generator=generator, device=device).mul_(decay)
    tall = torch.randn(size, dim, generator=generator, device=device)
    left = torch.randn(square, square, generator=generator, device=device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        seconds = machine.interleaved(
            {
                OURS: lambda: sketch.update(rows),
                GEMM: lambda: left @ left,
                SHAPED: lambda: rows @ tall.T,
            },
            rounds,
            0.05,
        )
    finally:
        torch.set_float32_matmul_precision(before)
    operations = {
        OURS: (4 * size * block + block**2 + 2 * size**2) * dim,
        GEMM: 2 * square**3,
        SHAPED: 2 * block * size * dim,
    }
    shown = {name: spread(values) for name, values in seconds.items()}
    rates = {name: operations[name] / shown[name]["median"] for name in shown}
    return {
        "sketch_size": size,
        "dim": dim,
        "block_rows": block,
        "square": square,
        "formula": FORMULA,
        "operations": operations,
        "seconds_of": shown,
        "gflops": {name: rate / 1e9 for name, rate in rates.items()},
        "share_of_gemm": rates[OURS] / rates[GEMM],
        "share_of_shaped": rates[OURS] / rates[SHAPED],
    }
