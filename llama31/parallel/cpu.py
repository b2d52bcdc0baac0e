"""The one shim that lets Megatron-Core run where there is no CUDA.

Megatron asks `torch.cuda` for the current device and for random states; its schedules create one counter on "cuda",
and its rotary embedding pins one index. Llama has no dropout, so the random states may be dummies; everything else is
answered with the CPU. Nothing intercepts tensor operations, so a step pays only for the few calls below (`install`
counts their time on request).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

_installed = False
spent_s = 0.0  # time inside the shim, counted only after `install(count_time=True)`


class TorchOnCpu(ModuleType):
    """The `torch` that two of Megatron's modules see: new tensors asked for on "cuda", or pinned, are plain ones."""

    def __init__(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        super().__init__("torch")

        def on_cpu(create: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
            def created(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
                return create(*args, device="cpu" if device == "cuda" else device, **kwargs)

            return wrap(created)

        self.zeros, self.ones, self.tensor = (on_cpu(create) for create in (torch.zeros, torch.ones, torch.tensor))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _timed(function: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        global spent_s  # noqa: PLW0603 - a shim belongs to the process
        begin = time.perf_counter()
        result = function(*args, **kwargs)
        spent_s += time.perf_counter() - begin
        return result

    return timed


def install(count_time: bool = False) -> None:
    """Answer Megatron's CUDA questions with the CPU; does nothing where there is a GPU or when called again."""
    global _installed  # noqa: PLW0603 - a shim belongs to the process
    if _installed or torch.cuda.is_available():
        return
    _installed = True
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.pipeline_parallel import schedules
    from megatron.core.tensor_parallel import random as megatron_random

    wrap = _timed if count_time else lambda function: function
    cpu = torch.device("cpu")
    no_state = torch.zeros(0, dtype=torch.uint8)

    def answer(value: Any) -> Callable[..., Any]:  # a new function each time: torch.compile refuses one under two names
        return wrap(lambda *args, **kwargs: value)

    for name in ("synchronize", "set_device", "empty_cache", "manual_seed", "set_rng_state"):
        setattr(torch.cuda, name, answer(None))
    torch.cuda.current_device = answer(cpu)
    torch.cuda.get_rng_state = answer(no_state)
    megatron_random._get_cuda_rng_state = answer(no_state)
    megatron_random._set_cuda_rng_state = answer(None)
    torch.Tensor.cuda = wrap(lambda self, *args, **kwargs: self)  # type: ignore[method-assign]
    for module in (schedules, rope_utils):
        module.torch = TorchOnCpu(wrap)
