"""What a selection must leave alone in the process: random states, modes and settings."""

from __future__ import annotations

import random
import signal
import warnings
from typing import Any

import numpy as np
import torch
import torch._dynamo


def process_state() -> dict[str, object]:
    return {
        "torch random": torch.get_rng_state().numpy().tobytes(),
        "torch seed": torch.initial_seed(),
        "numpy random": [repr(np.asarray(part).tolist()) for part in np.random.get_state()],  # noqa: NPY002
        "python random": random.getstate(),
        "compiler": torch._dynamo.eval_frame._stance,
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "precision": (
            legacy_precision(),
            getattr(torch.backends.cuda.matmul, "fp32_precision", None),  # since torch 2.9
            getattr(mkldnn_matmul(), "fp32_precision", None),
        ),
        "defaults": (torch.get_default_dtype(), torch.get_default_device()),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warnings": list(warnings.filters),
        "interrupt": signal.getsignal(signal.SIGINT),
    }


def mkldnn_matmul() -> Any:
    return getattr(torch.backends.mkldnn, "matmul", None)


def legacy_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to say once its newer settings are in use
        return "refused"
