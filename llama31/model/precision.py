"""Number formats: BF16 or FP32 parameters, FP8 and the layers that compute in it, and bits that do not vary."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama31 import config
from llama31.model import versions
from llama31.plan import fp8
from llama31.quantise import delayed, twin

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

SLOWER = 1.2  # BF16 that takes so much longer than FP32 is worth a line
_ORDER = 128  # of the matrices that are multiplied to see

# FP8 recipe -> compute capability from which Transformer Engine offers it (Ada 8.9, Hopper 9.0, Blackwell 10.0)
FP8_CAPABILITY = {"delayed": (8, 9), "tensorwise": (8, 9), "blockwise": (9, 0), "mxfp8": (10, 0)}


def dtype(precision: config.Precision) -> torch.dtype:
    """Format of parameters and activations."""
    return DTYPES[precision.params]


def check(precision: config.Precision, device: torch.device) -> None:
    """Raise ValueError with the reason where this machine cannot compute in the format asked for.

    On a CPU without BF16 products the first process says so once: they are many times slower than those of FP32.
    """
    if precision.fp8 == "none":
        if device.type == "cpu" and precision.params == "bf16":
            _tell_slow_bf16()
        return
    refusal = f"precision.fp8={precision.fp8}: "
    if precision.fp8_emulate:
        return
    remedy = "; choose precision=bf16, or run where it is available"
    if device.type != "cuda":
        remedy += ", or add precision.fp8_emulate=true, which rounds as FP8 does and multiplies in FP32"
        raise ValueError(refusal + "there is no GPU here, and CPUs have no FP8 matrix product" + remedy)
    have, need = torch.cuda.get_device_capability(device), FP8_CAPABILITY[precision.fp8]
    if have < need:
        raise ValueError(f"{refusal}needs compute capability {need[0]}.{need[1]}, this GPU has {have}{remedy}")
    if not have_transformer_engine():
        raise ValueError(refusal + "Transformer Engine is not installed (requirements-gpu.txt)" + remedy)
    if precision.params != "bf16":
        raise ValueError(f"{refusal}goes with precision.params=bf16, not {precision.params}")


@functools.cache
def _tell_slow_bf16() -> None:
    """One line on standard error where BF16 is slower than FP32, once in a process."""
    ratio = bf16_ratio()
    if ratio > SLOWER and os.environ.get("RANK", "0") == "0":
        print(
            f"precision.params=bf16: on this CPU a product takes {ratio:.1f} times as long in BF16 as in FP32; "
            "precision=fp32 computes in FP32",
            file=sys.stderr,
            flush=True,
        )


def bf16_ratio() -> float:
    """Time of a matrix product on this CPU in BF16, relative to one in FP32; measured in a few milliseconds.

    In seconds that this thread had: how many others share its cores says nothing about its kernels.
    """
    seconds = {}
    for name, kind in DTYPES.items():
        factor = torch.full((_ORDER, _ORDER), 1 / _ORDER, dtype=kind)
        factor @ factor  # libraries load
        seconds[name] = min(_product_s(factor) for _ in range(3))
    return seconds["bf16"] / max(seconds["fp32"], 1e-9)


def _product_s(factor: torch.Tensor) -> float:
    begin = time.thread_time()
    factor @ factor
    return time.thread_time() - begin


@functools.cache
def have_transformer_engine() -> bool:
    """Whether Transformer Engine is installed. It is then loaded: after torch, whose cuDNN and NCCL it shall take.

    Raises ValueError, in one line, where it is there and cannot work with this torch: as if it were not there, training
    would go on at three quarters of the speed.
    """
    if importlib.util.find_spec("transformer_engine") is None:
        return False
    packages = versions.engine_packages()
    if fault := versions.engine_fault(packages, str(torch.__version__), torch.version.cuda):
        raise ValueError(fault)
    try:
        import transformer_engine.pytorch  # noqa: F401
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"Transformer Engine {packages.get(versions.ENGINE, 'of no version')} cannot be loaded with torch "
            f"{torch.__version__}: {cause}; compile it against this torch "
            "(requirements-gpu.txt), or uninstall it"
        ) from None
    return True


# What the libraries ask for beside torch's switch: a workspace for each stream of cuBLAS (its documentation, "results
# reproducibility"), and of Transformer Engine's attention kernels only those that add in a fixed order.
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"}


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within it, where `wanted`, torch and the libraries below it choose kernels that give equal bits every time.

    An operation that has none raises RuntimeError. cuBLAS reads its variable at its first use: enter before that.
    """
    if not wanted:
        yield
        return
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    given = {name: os.environ.get(name) for name in DETERMINISTIC}
    os.environ.update(DETERMINISTIC)
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # a search for mistakes, which writes everything twice
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]
        for name, value in given.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# Where all of a tensor shares a scale, gradients have a format of more range (E5M2); blocks have range enough for E4M3,
# whose mantissa is longer. Either is Transformer Engine's default for the recipe.
FP8_FORMAT = {"delayed": "hybrid", "tensorwise": "hybrid", "blockwise": "e4m3", "mxfp8": "e4m3"}
ROW_PARALLEL = ("self_attention.linear_proj", "mlp.linear_fc2")
LINEARS: dict[str, tuple[str, ...]] = {"mlp": ("mlp.linear_fc1", "mlp.linear_fc2")}
LINEARS["all"] = ("self_attention.linear_qkv", "self_attention.linear_proj", *LINEARS["mlp"])


def transformer_config(precision: config.Precision, zero: int = 1) -> dict[str, Any]:
    """The fields of Megatron's TransformerConfig that follow from the precision.

    A weight is cast once a step and kept for its micro-batches, but not under ZeRO-3, which keeps no whole weights.
    """
    fields: dict[str, Any] = {
        "params_dtype": dtype(precision),
        "pipeline_dtype": dtype(precision),
        "bf16": precision.params == "bf16",
    }
    if precision.fp8 != "none":
        fields |= {"disable_parameter_transpose_cache": zero == 3}
    if precision.fp8 != "none" and not precision.fp8_emulate:
        fields |= {"fp8": FP8_FORMAT[precision.fp8], "fp8_recipe": precision.fp8}
        fields |= {"fp8_amax_history_len": delayed.PASSES, "fp8_amax_compute_algo": "max"}
    return fields


def in_fp8(precision: config.Precision, layer: int, layers: int, name: str) -> bool:
    """Whether the linear layer `name` of layer number `layer`, from 0, of all `layers` of the model computes in FP8."""
    inner = precision.fp8_first_layers_bf16 <= layer < layers - precision.fp8_last_layers_bf16
    return precision.fp8 != "none" and inner and name in LINEARS[precision.fp8_linears]


def place_fp8(chunk: Any, precision: config.Precision, layers: int, device: torch.device) -> None:
    """Say to each linear layer of a chunk (`Llama`) of a model of `layers` whether and how it computes in FP8.

    Those that keep state between passes have it in `chunk.histories`, by the layer's global name; what is known of it
    says `chunk.fp8_scales` (`delayed.Histories`).
    """
    chunk.histories, chunk.fp8_scales = {}, "ones" if precision.fp8 == "delayed" else "learned"
    if precision.fp8 == "none":
        return
    chosen: dict[str, Any] = {}
    for layer in chunk.decoder.layers:
        for name in LINEARS["all"]:
            linear, number = layer.get_submodule(name), layer.layer_number - 1
            if in_fp8(precision, number, layers, name):
                chosen[f"decoder.layers.{number}.{name}"] = linear
            elif not precision.fp8_emulate:
                linear.forward = _outside_fp8(linear.forward)
    if precision.fp8_emulate:
        _place_twins(chunk, chosen, precision.fp8, device)
    elif precision.fp8 == "delayed":
        chunk.histories = {name: _history(linear, chunk.config) for name, linear in chosen.items()}
    ranks = chunk.config.tensor_model_parallel_size if chunk.config.sequence_parallel else 1
    for name, linear in chosen.items():
        linear.forward = padded(linear, fp8.unit(precision.fp8), ranks, row=name.endswith(ROW_PARALLEL))


def _place_twins(chunk: Any, chosen: dict[str, Any], recipe: str, device: torch.device) -> None:
    if recipe != "delayed":
        for linear in chosen.values():
            linear.cast = twin.STATELESS[recipe]()
        return
    book = delayed.Book(len(chosen), device)
    if chosen:
        book.follow(chunk.decoder)
    for place, (name, linear) in enumerate(chosen.items()):
        linear.cast = delayed.Rounding(book, place)
        chunk.histories[name] = linear.cast.history


def _history(linear: Any, settings: Any) -> delayed.ScaleHistory:
    """State that a layer of Transformer Engine would make before its first pass, made now so that it can be filled."""
    from megatron.core.fp8_utils import get_fp8_recipe

    recipe = get_fp8_recipe(settings)
    linear.fp8_meta.update(recipe=recipe, num_gemms=1)
    linear.init_fp8_meta_tensors(recipe)
    forward, backward = linear.fp8_meta["scaling_fwd"], linear.fp8_meta["scaling_bwd"]
    return delayed.ScaleHistory(forward.scale, forward.amax_history, backward.scale, backward.amax_history)


def _outside_fp8(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's forward pass in BF16, whatever the block around it computes in."""
    import transformer_engine.pytorch as engine

    def in_bf16(*args: Any, **kwargs: Any) -> Any:
        with engine.fp8_autocast(enabled=False):
            return forward(*args, **kwargs)

    return in_bf16


def padded(linear: nn.Module, unit: int, ranks: int, row: bool) -> Callable[[Tensor], Any]:
    """The forward pass of a linear layer for x [s, b, h] of any length: zeros make up the unit in evaluation.

    Decoding comes with one token a row. `ranks` share the sequence outside of the layer (1 without sequence
    parallelism), whose input is whole in a `row`-parallel layer and whose output is in the other. Raises ValueError for
    tokens that training brings off the unit: `plan.fp8` refuses such lengths, and cuBLAS fails in the backward pass.
    """
    forward = linear.forward

    def whole(x: Tensor) -> Any:
        parts, others = (ranks, 1) if row else (1, ranks)
        local = x.size(0) // parts
        missing = -local % (unit // math.gcd(unit, x.size(1)))
        if not missing:
            return forward(x)
        if linear.training:
            tokens = local * x.size(1)
            raise ValueError(f"FP8 computes with multiples of {unit} tokens a rank, not with {tokens}")
        longer = F.pad(x.unflatten(0, (parts, local)), (0, 0, 0, 0, 0, missing)).flatten(0, 1)
        out, bias = forward(longer)
        return out.unflatten(0, (others, local + missing))[:, :local].flatten(0, 1), bias

    return whole
