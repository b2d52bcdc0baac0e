"""Continuations of prompts: batched greedy or sampled decoding with a KV cache, on any TP x PP layout.

Megatron's attention keeps the cache (`StaticInferenceContext`). Prompts of different lengths are padded on the left and
a row's table of documents begins after the padding: attention then never sees it, and rotary positions are relative, so
the shift changes nothing but rounding. Sequence parallelism cannot split the one token of a decoding step, so the
model has to be built without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor

from llama31.model.llama import Llama
from llama31.parallel.mesh import Grid
from llama31.quantise import delayed

GREEDY = 1e-5  # temperatures below would overflow the quotient, and choose the likeliest all the same


def sample(logits: Tensor, temperature: float | Tensor, top_p: float, uniforms: Tensor) -> Tensor:
    """Choose one token per row of FP32 logits [b, v]; returns int64 [b].

    `temperature`: of all rows, or [b, 1], each at least `GREEDY`. 0 takes the likeliest. Otherwise the smallest set of
    likeliest tokens that together reach `top_p` is kept (the nucleus, Holtzman et al. 2020), and `uniforms` [b] in
    [0, 1) say where in their cumulative probability each row's choice falls: all chance comes from outside.
    """
    if isinstance(temperature, float | int) and temperature < GREEDY:
        return logits.argmax(-1)
    likely, order = torch.softmax(logits.double() / temperature, -1).sort(dim=-1, descending=True, stable=True)
    kept = likely.cumsum(-1) - likely < top_p
    reached = (likely * kept).cumsum(-1)
    place = (reached <= uniforms[:, None] * reached[:, -1:]).sum(-1)
    place = torch.minimum(place, kept.sum(-1) - 1)  # a number next to 1 may round up to the whole
    return order.gather(-1, place[:, None])[:, 0]


def generate(
    chunks: list[Llama],
    grid: Grid,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    temperature: float | Sequence[float] = 0.0,
    top_p: float = 1.0,
    seed: int = 1234,
    vocab_size: int | None = None,
) -> list[list[int]]:
    """New tokens for each prompt, equal on all ranks; a list ends with the first stop id, or at `max_new_tokens`.

    Prompts are dealt out to the data-parallel replicas and each replica decodes its own in one batch. What is sampled
    depends on (seed, index of the prompt) alone, not on the other prompts or the layout (up to rounding of the logits).
    `temperature`: of all prompts, or one for each, then 0 for all or for none.
    `vocab_size` is that of the tokenizer where the model's is padded: ids from there on are never chosen. Collective.
    Raises ValueError for a layout with context parallelism, interleaving or sequence parallelism, an empty prompt,
    prompts that do not fit the model's positions or vocabulary, and FP8 by scales that nothing has taught.
    """
    _check_layout(chunks[0], grid)
    kept = delayed.Histories(chunks)
    if kept.scales == "ones":
        raise ValueError(
            "precision.fp8=delayed: its scales come from earlier passes, and there were none; give "
            "precision=fp8_tensorwise, or precision=bf16"
        )
    _check_prompts(chunks[0], prompts, max_new_tokens)
    given = [temperature] * len(prompts) if isinstance(temperature, float | int) else list(temperature)
    if len(given) != len(prompts) or min(given, default=0) < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature={temperature}, top_p={top_p}: give at least 0, and above 0 up to 1")
    one = next(iter(set(given))) if len(set(given)) == 1 else None
    if one is None and min(given, default=1) < GREEDY:
        raise ValueError(f"temperature={temperature}: give 0 to all prompts or to none")

    known = min(vocab_size or chunks[0].vocab_size, chunks[0].vocab_size)

    mine = range(grid.dp_rank, len(prompts), grid.dp)
    of_rows = torch.tensor([[given[i]] for i in mine], dtype=torch.float64, device=grid.device)

    def choose(logits: Tensor, uniforms: Tensor) -> Tensor:
        return sample(logits[:, :known], of_rows if one is None else one, top_p, uniforms)

    chance = torch.zeros(len(mine), max_new_tokens, dtype=torch.float64)
    for row, index in enumerate(mine):
        chance[row] = torch.from_numpy(np.random.default_rng([seed, index]).random(max_new_tokens))
    done: list[list[int]] = []
    if mine:
        with kept.untouched(), _evaluating(chunks[0]):
            tokens = _decode(chunks[0], grid, [prompts[i] for i in mine], stop_ids, choose, chance.to(grid.device))
        done = [_until(row, stop_ids) for row in tokens.tolist()]
    parts: list[list[list[int]]] = [[] for _ in range(grid.dp)]
    dist.all_gather_object(parts, done, group=grid.dp_group)
    return [parts[i % grid.dp][i // grid.dp] for i in range(len(prompts))]


def _check_layout(chunk: Llama, grid: Grid) -> None:
    for key, size in (("cp", grid.cp), ("vpp", grid.vpp)):
        if size > 1:
            raise ValueError(f"parallel.{key}={size}: generation needs {key}=1; load the checkpoint onto such a layout")
    if chunk.config.sequence_parallel:
        raise ValueError(
            "parallel.sequence_parallel=true: one token at a time cannot be split; build with sequence_parallel=false"
        )


def _check_prompts(chunk: Llama, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: give at least 1")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompts[{index}] is empty: begin it with the tokenizer's bos_id")
        if len(prompt) + max_new_tokens > chunk.max_sequence_length:
            raise ValueError(
                f"prompts[{index}]: {len(prompt)} tokens and max_new_tokens={max_new_tokens} exceed "
                f"model.max_positions={chunk.max_sequence_length}; shorten one of them"
            )
        if not 0 <= min(prompt) <= max(prompt) < chunk.vocab_size:
            raise ValueError(
                f"prompts[{index}] holds ids from {min(prompt)} to {max(prompt)}, the model has 0 to "
                f"{chunk.vocab_size - 1}; use the tokenizer that it was trained with"
            )


@contextlib.contextmanager
def _evaluating(chunk: Llama) -> Iterator[None]:
    """Evaluation mode, without which Megatron ignores the cache.

    Not `inference_mode`: the rotary embedding keeps its tensors, and training could not differentiate through such.
    """
    training = chunk.training
    chunk.eval()
    chunk.set_is_first_microbatch()  # FP8's weights of an earlier step may be kept
    try:
        with torch.no_grad():
            yield
    finally:
        chunk.train(training)
        chunk.set_input_tensor(None)


def _decode(
    chunk: Llama,
    grid: Grid,
    prompts: list[Sequence[int]],
    stop_ids: Collection[int],
    choose: Callable[[Tensor, Tensor], Tensor],
    chance: Tensor,
) -> Tensor:
    """One replica's prompts -> new tokens int64 [b, at most the columns of `chance`]; rows run on past a stop id."""
    rows, longest = len(prompts), max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    step = torch.zeros(rows, longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        step[row, padding[row] :] = torch.tensor(prompt)
    step = step.to(grid.device)
    context = StaticInferenceContext(rows, longest + chance.size(1))
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=grid.device)
    new, stopped = [], torch.zeros(rows, dtype=torch.bool, device=grid.device)
    for column in chance.unbind(1):
        logits = _forward(chunk, grid, context, step, padding)
        token = torch.empty(rows, dtype=torch.long, device=grid.device)
        if logits is not None:
            token = choose(logits, column)
        # One rank chooses for its replica: the others' logits could differ in the last bit.
        dist.broadcast(token, dist.get_process_group_ranks(grid.model_group)[-1], group=grid.model_group)
        new.append(token)
        stopped |= torch.isin(token, stops)
        if stopped.all():
            break
        step = token[:, None]
    return torch.stack(new, 1)


def _forward(
    chunk: Llama, grid: Grid, context: StaticInferenceContext, step: Tensor, padding: list[int]
) -> Tensor | None:
    """The next tokens [b, s] of every row through all stages; FP32 logits [b, v] of the last, on the last stage."""
    rows, length = step.shape
    total = context.sequence_len_offset + length
    documents = torch.tensor([(row, begin, total) for row, begin in enumerate(padding)], dtype=torch.int32)
    if not grid.first_stage:
        hidden = torch.empty(
            length, rows, chunk.config.hidden_size, dtype=chunk.config.pipeline_dtype, device=grid.device
        )
        dist.recv(hidden, group=grid.pp_group, group_src=grid.pp_rank - 1)
        chunk.set_input_tensor(hidden)
    output = chunk(step, None, documents, inference_context=context, gather_logits=True)
    context.sequence_len_offset = total
    if grid.last_stage:
        return output[:, -1].float()
    dist.send(output, group=grid.pp_group, group_dst=grid.pp_rank + 1)
    return None


def _until(tokens: list[int], stop_ids: Collection[int]) -> list[int]:
    """Up to the first stop id, and with it."""
    end = next((i + 1 for i, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return tokens[:end]
