"""The models whose gradients cannot be computed here, and what to do about each."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

__all__ = ["check_model"]

# By name, because importing these classes takes long, and where they have not been imported there
# are no instances. Fully sharded modules hide their parameters or show those of other ranks.
_SHARDED_MODULES = {"FullyShardedDataParallel": "FSDP", "FSDPModule": "FSDP2"}
_SHARDED = (
    "its parameters are sharded over processes, so that no process sees a whole gradient; select "
    "before sharding, with the same model on every rank, or pass gradients=, a function of your "
    "own batch -> (n, D), and distributed=False, so that all ranks go through the same batches"
)


def check_model(model: nn.Module) -> None:
    """Refuse a model whose parameters are not all here, before any work.

    Args:
        model: The model, unwrapped.

    Raises:
        ValueError: A part is sharded (FSDP, DTensor, DeepSpeed ZeRO-3), on the meta device
            (offloaded, or not loaded), not initialised, or compiled by TorchScript with trained
            parameters.
    """
    for name, module in model.named_modules():
        kinds = (cls.__name__ for cls in type(module).__mro__)
        kind = next((_SHARDED_MODULES[each] for each in kinds if each in _SHARDED_MODULES), None)
        if kind is not None:
            raise ValueError(f"{_named(name)} is wrapped by {kind}: {_SHARDED}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise ValueError(
                f"{name!r} of {type(model).__name__} is not initialised; call the model on one "
                "batch first"
            )
        if hasattr(tensor, "ds_tensor"):
            raise ValueError(f"{name!r} is partitioned by DeepSpeed ZeRO-3: {_SHARDED}")
        if any(cls.__name__ == "DTensor" for cls in type(tensor).__mro__):
            raise ValueError(f"{name!r} is a DTensor: {_SHARDED}")
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} of {type(model).__name__} is on the meta device, without values: it is "
                "offloaded or not loaded yet; load the whole model onto one device (without "
                "offloading or device_map), or pass gradients=, a function of your own "
                "batch -> (n, D)"
            )


def _named(name: str) -> str:
    return repr(name) if name else "the model"
