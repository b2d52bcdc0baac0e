"""One optimizer step of each trainer on the same rows, in the process that calls: ours, Megatron's own, transformers'.

Megatron's own is what its examples build: GPTModel of its Transformer Engine layers, its DDP with FP32 gradients, its
distributed optimizer, gradients of weights accumulated inside the products, fused cross entropy, documents as THD. All
hold FP32 masters, moments and gradients; transformers' are FP32 weights under autocast.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.plan import GpuCase, GpuWork, documents
from benchmarks.peers import llama_config
from llama31 import config

Step = Callable[[], float]
Made = tuple[Step, list[str]]  # and what a reader of its figures should know
LEARNING_RATE = 1e-4


def imports(case: GpuCase) -> None:
    """All that the case will import late, torch first."""
    import torch

    if case.trainer == "transformers":
        from transformers import LlamaForCausalLM  # noqa: F401

        return
    import deepspeed  # noqa: F401

    from llama31.engine import pipeline  # noqa: F401
    from llama31.model import precision

    if torch.cuda.is_available():
        precision.have_transformer_engine()
    if case.trainer == "megatron":
        from megatron.core.models.gpt import GPTModel  # noqa: F401


def number_format(work: GpuWork, device: Any) -> str:
    """BF16 on a GPU; on a CPU FP32, unless BF16 is asked for."""
    wanted = device.type == "cuda" if work.bf16 is None else work.bf16
    return "bf16" if wanted else "fp32"


def rows(case: GpuCase, work: GpuWork) -> tuple[np.ndarray, list[list[int]]]:
    """Tokens [rows, length + 1], and of each row the lengths of its documents. The same for every trainer."""
    tokens = np.random.default_rng(0).integers(0, work.model.vocab_size, (work.rows, work.sequence_length + 1))
    return tokens, [documents(case.documents, work.sequence_length, seed) for seed in range(work.rows)]


# --- ours ---


def ours(case: GpuCase, work: GpuWork) -> Made:
    """The engine that `recipes.pretrain` drives; rows of dialogs as `recipes.sft` hands them over."""
    import torch

    from llama31.engine.pipeline import Engine
    from llama31.model import llama
    from llama31.parallel import mesh

    recompute = [] if case.recompute == "none" else [case.recompute]
    parallel = config.Parallel(micro_batch=work.micro_batch, recompute=recompute)
    grid = mesh.create(parallel)
    numbers = config.Precision(params=number_format(work, grid.device), fp8=case.fp8)
    chunks = llama.build(work.model, numbers, parallel, grid)
    with torch.no_grad():
        for _, weight in (pair for chunk in chunks for pair in chunk.named_parameters()):
            _ = weight.normal_(0, work.model.init_std) if weight.ndim > 1 else weight.fill_(1)
    engine = Engine(chunks, work.model, config.Optimizer(), numbers, parallel, grid)
    batches = _micro_batches(case, work, grid.device)

    def step() -> float:
        result = engine.accumulate(batches)
        engine.apply(LEARNING_RATE)
        return result.loss

    return step, [f"parameters in {numbers.params}"]


def _micro_batches(case: GpuCase, work: GpuWork, device: Any) -> list[Any]:
    from llama31.engine.objectives import MicroBatch

    tokens, lengths = rows(case, work)
    result = []
    for begin in range(0, work.rows, work.micro_batch):
        at = slice(begin, begin + work.micro_batch)
        x, y, those = tokens[at, :-1], tokens[at, 1:], lengths[at]
        numbers = np.stack([np.repeat(np.arange(len(one)), one) for one in those])
        weights = np.ones(x.shape, np.float32)
        if case.documents == "dialogs":
            result.append(MicroBatch.from_packed(_dialogs(x, y, numbers, those), device))
        else:
            result.append(MicroBatch.from_numpy(x, y, weights, numbers, device))
    return result


def _dialogs(x: np.ndarray, y: np.ndarray, numbers: np.ndarray, lengths: list[list[int]]) -> Any:
    """Rows of supervised finetuning: the first half of each dialog is its prompt, and not learned."""
    from llama31.dialogs.rows import PackedRows

    ends = [np.cumsum(one) for one in lengths]
    table = [
        (row, end - size, end, 0, 0)
        for row, one in enumerate(lengths)
        for end, size in zip(ends[row], one, strict=True)
    ]
    positions = np.stack([np.concatenate([np.arange(size) for size in one]) for one in lengths])
    learned = np.stack([np.concatenate([np.arange(size) >= size // 2 for size in one]) for one in lengths])
    return PackedRows(
        tokens=x,
        labels=y,
        weights=learned.astype(np.float32),
        documents=np.array(table, np.int32),
        positions=positions,
        of_token=np.full(numbers.shape, -1),
        responses=0,
        pairs=np.zeros((0, 2), np.int64),
        reference=np.zeros(0, np.float32),
        targets=np.zeros(0, np.float32),
        compares=False,
    )


# --- Megatron's own ---


def megatron(case: GpuCase, work: GpuWork) -> Made:
    """GPTModel, DDP and distributed optimizer of Megatron-Core; on a CPU with its local layers."""
    import torch
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.models.gpt import GPTModel, gpt_layer_specs
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    from llama31.parallel import mesh

    grid = mesh.create(config.Parallel(micro_batch=work.micro_batch))
    cuda, notes = grid.device.type == "cuda", []
    if not cuda and case.documents != "one":
        raise ValueError("Megatron's layers without Transformer Engine know no documents (THD)")
    dtype = torch.bfloat16 if number_format(work, grid.device) == "bf16" else torch.float32
    notes += _fused_head(cuda)
    if not cuda:
        _on_cpu()
    m = work.model
    settings = _megatron_config(case, m, dtype, cuda)
    spec = (
        gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec()
        if cuda
        else gpt_layer_specs.get_gpt_layer_local_spec(normalization="RMSNorm")
    )
    if not cuda:
        notes.append("local layers, no distributed optimizer, no clipping: those are for GPUs")
    scaling = {"rope_scaling": True, "rope_scaling_factor": m.rope_factor} if m.rope_factor else {}
    model = GPTModel(
        settings,
        spec,
        vocab_size=m.vocab_size,
        max_sequence_length=m.max_positions,
        share_embeddings_and_output_weights=m.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=m.rope_theta,
        **scaling,
    )
    reduced = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=cuda)
    model = DistributedDataParallel(settings, reduced, model.to(device=grid.device, dtype=dtype))
    asked = OptimizerConfig(
        optimizer="adam",
        lr=LEARNING_RATE,
        weight_decay=0.1,
        adam_beta1=0.9,
        adam_beta2=0.95,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=cuda,
        clip_grad=1.0 if cuda else 0.0,
    )
    optimizer = get_megatron_optimizer(asked, [model], use_gloo_process_groups=False)
    batches = _megatron_batches(case, work, grid.device)
    number = len(batches)

    def step() -> float:
        model.zero_grad_buffer()
        optimizer.zero_grad()
        total = torch.zeros((), device=grid.device)
        for x, y, positions, packed in batches:
            loss = model(x, positions, None, labels=y, packed_seq_params=packed).float().mean() / number
            loss.backward()
            total += loss.detach()
        finalize_model_grads([model])
        optimizer.step()
        return float(total.item())

    return step, notes


def _megatron_config(case: GpuCase, m: config.Model, dtype: Any, cuda: bool) -> Any:
    import torch
    from megatron.core.transformer import TransformerConfig

    fp8 = {"fp8": "hybrid", "fp8_recipe": case.fp8} if case.fp8 != "none" else {}
    return TransformerConfig(
        num_layers=m.layers,
        hidden_size=m.hidden_size,
        ffn_hidden_size=m.ffn_hidden_size,
        num_attention_heads=m.heads,
        num_query_groups=m.kv_heads,
        kv_channels=m.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=m.norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=cuda,
        apply_rope_fusion=cuda,
        masked_softmax_fusion=cuda,
        bias_dropout_fusion=cuda,
        persist_layer_norm=cuda,
        gradient_accumulation_fusion=True,
        cross_entropy_loss_fusion=cuda,
        cross_entropy_fusion_impl="te",
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        use_cpu_initialization=not cuda,
        cuda_graph_modules=[],
        **fp8,
    )


def _fused_head(cuda: bool) -> list[str]:
    """Give its head's weight gradient a product that accumulates in FP32: APEX's where that is, else torch's."""
    import torch
    from megatron.core.tensor_parallel import layers

    try:
        import fused_weight_gradient_mlp_cuda  # noqa: F401

        return ["head: APEX's fused accumulation"]
    except ImportError:
        pass_on = "head: torch.addmm in the place of APEX's fused accumulation, which is not installed"

    def accumulate(hidden: Any, grad: Any, main_grad: Any) -> None:
        if cuda and hidden.dtype != torch.float32:
            torch.addmm(main_grad, grad.t(), hidden, out_dtype=torch.float32, out=main_grad)
        else:
            main_grad.add_(grad.t() @ hidden)

    layers.fused_weight_gradient_mlp_cuda = types.SimpleNamespace(wgrad_gemm_accum_fp32=accumulate)
    layers._grad_accum_fusion_available = True
    return [pass_on]


def _on_cpu() -> None:
    """Its optimizer makes counters on "cuda", and its softmax a mask, wherever the weights are."""
    import torch
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads, optimizer
    from megatron.core.transformer import utils as masks

    from llama31.parallel import cpu

    for module in (clip_grads, optimizer, masks, utils):
        module.torch = cpu.TorchOnCpu(lambda function: function)
    torch.cuda.current_stream = lambda *_: None  # type: ignore[assignment, return-value]


def _megatron_batches(case: GpuCase, work: GpuWork, device: Any) -> list[tuple[Any, Any, Any, Any]]:
    """Tokens, labels, positions and, of several documents, THD, which takes one row a micro-batch."""
    import torch
    from megatron.core.packed_seq_params import PackedSeqParams

    tokens, lengths = rows(case, work)
    if case.documents != "one" and work.micro_batch != 1:
        raise ValueError(f"micro_batch={work.micro_batch}: with several documents Megatron takes one row a micro-batch")
    positions = torch.arange(work.sequence_length, device=device)[None].expand(work.micro_batch, -1).contiguous()
    batches = []
    for begin in range(0, work.rows, work.micro_batch):
        both = torch.from_numpy(tokens[begin : begin + work.micro_batch]).to(device)
        packed = None
        if case.documents != "one":
            ends = torch.tensor([0, *np.cumsum(lengths[begin])], dtype=torch.int32, device=device)
            longest = max(lengths[begin])
            packed = PackedSeqParams(
                qkv_format="thd",
                cu_seqlens_q=ends,
                cu_seqlens_kv=ends,
                max_seqlen_q=longest,
                max_seqlen_kv=longest,
            )
        batches.append((both[:, :-1].contiguous(), both[:, 1:].contiguous(), positions, packed))
    return batches


# --- transformers ---


def transformers(case: GpuCase, work: GpuWork) -> Made:
    """transformers' Llama in FP32 under torch.compile and autocast, fused AdamW; uncompiled on a CPU."""
    import torch
    from transformers import LlamaForCausalLM

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    with device:
        model = LlamaForCausalLM(llama_config(work.model, "sdpa")).train()
    called = torch.compile(model) if cuda else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    mixed = number_format(work, device) == "bf16"
    tokens = torch.from_numpy(rows(case, work)[0][:, :-1].copy()).to(device)
    number = work.rows // work.micro_batch

    def step() -> float:
        total = torch.zeros((), device=device)
        for x in tokens.split(work.micro_batch):
            with torch.autocast(device.type, torch.bfloat16) if mixed else contextlib.nullcontext():
                loss = called(input_ids=x, labels=x).loss / number
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(total.item())

    return step, [] if cuda else ["not compiled on a CPU"]


TRAINERS: dict[str, Callable[[GpuCase, GpuWork], Made]] = {
    "ours": ours,
    "megatron": megatron,
    "transformers": transformers,
}
