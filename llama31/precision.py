"""Number formats: BF16 or FP32 parameters, and the names of Megatron's FP8 recipes."""

from __future__ import annotations

from typing import Any

import torch

from llama31 import config

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

# FP8 recipe -> compute capability from which Transformer Engine offers it (Ada 8.9, Hopper 9.0, Blackwell 10.0)
FP8_CAPABILITY = {"delayed": (8, 9), "tensorwise": (8, 9), "blockwise": (9, 0), "mxfp8": (10, 0)}


def dtype(precision: config.Precision) -> torch.dtype:
    """Format of parameters and activations."""
    return DTYPES[precision.params]


def check(precision: config.Precision, device: torch.device) -> None:
    """Raise ValueError with the reason where this machine cannot compute in the format asked for."""
    if precision.fp8 == "none":
        return
    refusal = f"precision.fp8={precision.fp8}: "
    remedy = "; choose precision=bf16, or run where it is available"
    if device.type != "cuda":
        raise ValueError(refusal + "there is no GPU here, and CPUs have no FP8 matrix product" + remedy)
    have, need = torch.cuda.get_device_capability(device), FP8_CAPABILITY[precision.fp8]
    if have < need:
        raise ValueError(f"{refusal}needs compute capability {need[0]}.{need[1]}, this GPU has {have}{remedy}")
    if not have_transformer_engine():
        raise ValueError(refusal + "Transformer Engine is not installed (requirements-gpu.txt)" + remedy)
    if precision.params != "bf16":
        raise ValueError(f"{refusal}goes with precision.params=bf16, not {precision.params}")


def have_transformer_engine() -> bool:
    """Whether Transformer Engine can be imported."""
    try:
        import transformer_engine.pytorch  # noqa: F401
    except ImportError:
        return False
    return True


def transformer_config(precision: config.Precision) -> dict[str, Any]:
    """The fields of Megatron's TransformerConfig that follow from the precision."""
    fields: dict[str, Any] = {
        "params_dtype": dtype(precision),
        "pipeline_dtype": dtype(precision),
        "bf16": precision.params == "bf16",
    }
    if precision.fp8 != "none":
        fields |= {"fp8": "hybrid", "fp8_recipe": precision.fp8}
    return fields
