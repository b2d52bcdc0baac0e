"""What a layer copies and adds in one step beyond attention: each such operation reads and writes all states once."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llama31 import config
from llama31.model import llama, parts, precision
from llama31.parallel import mesh

pytestmark = pytest.mark.torch

MODEL = config.Model(name="l", layers=1, hidden_size=64, ffn_hidden_size=96, heads=4, kv_heads=4, vocab_size=61)
COPIES = ("_to_copy", "clone", "copy_", "cat", "add.Tensor")


class Operations(TorchDispatchMode):
    """Counts those of COPIES."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function).removeprefix("aten.")
        self.counts.update(kind for kind in COPIES if name.startswith(kind))
        return function(*args, **(kwargs or {}))


def product(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """In the place of attention, which has copies of its own."""
    return (query * key * value).flatten(2)


@pytest.mark.parametrize(("params", "casts"), [("fp32", (0, 0)), ("bf16", (4, 8))])
def test_copies_and_additions_of_a_step(params: str, casts: tuple[int, int]) -> None:
    """Forward two additions into the residual stream; back none, for the norms add what bypasses them.

    On a CPU each norm computes in FP32 by casts of its own; on a GPU it is one kernel.
    """
    parallel = config.Parallel()
    chunk = llama.build(MODEL, config.Precision(params=params), parallel, mesh.create(parallel), seed=3)[0]
    layer = chunk.decoder.layers[0]
    layer.self_attention.core_attention.forward = product
    states = torch.randn(8, 1, MODEL.hidden_size, dtype=layer.mlp.linear_fc1.weight.dtype, requires_grad=True)
    with Operations() as forward:
        out, _ = layer(hidden_states=states, attention_mask=None)
    with Operations() as backward:
        out.backward(torch.ones_like(out))
    mesh.close()
    assert +forward.counts == +Counter({"add.Tensor": 2, "_to_copy": casts[0]})
    # back: gradients of Q, K and V come into one tensor, and the gate's into its half
    assert +backward.counts == +Counter({"cat": 1, "copy_": 1, "_to_copy": casts[1]})


def test_what_cannot_overlap_or_be_rounded_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = mesh.create(config.Parallel())
    with pytest.raises(ValueError, match="tp_overlap=true: there is no GPU with Transformer Engine here; leave"):
        llama.build(MODEL, config.Precision(params="fp32"), config.Parallel(tp_overlap=True), grid)
    monkeypatch.setattr(precision, "check", lambda *_: None)  # which says that there is no FP8 here
    with pytest.raises(ValueError, match=r"recompute=\[norms\]: delayed FP8 .*; give mlp or full, or precision"):
        llama.build(MODEL, config.Precision(fp8="delayed"), config.Parallel(recompute=["norms"]), grid)
    mesh.close()


def test_buffers_of_tp_overlap_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made anew for a second model of a process; of the size of all micro-batches, and a model takes no other."""
    calls: list[Any] = []
    base = types.ModuleType("base")
    base.__dict__.update(
        _ub_communicators=None,
        UserBufferQuantizationMode=types.SimpleNamespace(NONE="none", FP8="fp8"),
        initialize_ub=lambda *args, **kwargs: calls.append((args, kwargs)),
        destroy_ub=lambda: calls.append("destroyed"),
    )
    for name in ("transformer_engine", "transformer_engine.pytorch", "transformer_engine.pytorch.module"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["transformer_engine.pytorch.module"].base = base  # type: ignore[attr-defined]
    monkeypatch.setattr(precision, "have_transformer_engine", lambda: True)
    grid = dataclasses.replace(mesh.create(config.Parallel()), tp=2, device=torch.device("cuda"))
    mesh.close()
    parts.start_tp_overlap(1024, 64, config.Precision(), grid)
    wanted = {"quantization_modes": ["none"], "dtype": torch.bfloat16, "bootstrap_backend": "nccl"}
    assert calls == [(([1024, 64], 2), wanted)]
    base.__dict__["_ub_communicators"] = {}
    parts.start_tp_overlap(512, 64, config.Precision(fp8="tensorwise"), grid)
    assert calls[1] == "destroyed" and calls[2][1]["quantization_modes"] == ["fp8"]
    with pytest.raises(ValueError, match="micro-batches are not of one size"):
        parts.start_tp_overlap(None, 64, config.Precision(), grid)
