"""What FP8 asks of lengths, widths and layers, before anything runs.

Products in FP8 take multiples of 16 in all three dimensions, those with a scale per 32 values multiples of 32. One of
the dimensions is the tokens of a rank. Transformer Engine asks for a multiple of 8 of them in the forward pass; cuBLAS
then fails in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from llama31.config import Issue, Model, Parallel, Precision
from llama31.plan.schedule import Stage


def unit(recipe: str) -> int:
    """What tokens of a rank and widths of matrices have to be multiples of."""
    return 32 if recipe == "mxfp8" else 16


def problems(
    model: Model | None, parallel: Parallel, numbers: Precision, stages: Sequence[Stage], replicas: int
) -> list[Issue]:
    """What is impossible in the recipe of `numbers`; keys that have no effect without one."""
    if numbers.fp8 == "none":
        return list(_idle(numbers))
    found = [] if model is None else [*_layers(model, numbers), *_widths(model, parallel, numbers)]
    return found + [issue for stage in stages for issue in _tokens(parallel, numbers.fp8, stage, replicas)]


def _idle(numbers: Precision) -> Iterator[Issue]:
    plain = Precision()
    for name in ("fp8_linears", "fp8_first_layers_bf16", "fp8_last_layers_bf16", "fp8_emulate"):
        if (value := getattr(numbers, name)) != getattr(plain, name):
            remedy = "give precision.fp8=tensorwise or another recipe, or leave it out"
            yield Issue(f"precision.{name}", value, "precision.fp8=none has no use for it", remedy)


def _layers(model: Model, numbers: Precision) -> Iterator[Issue]:
    first, last = numbers.fp8_first_layers_bf16, numbers.fp8_last_layers_bf16
    if first + last >= model.layers:
        name, value = ("first", first) if first >= last else ("last", last)
        reason = f"with the {last if name == 'first' else first} at the other end none of {model.layers} layers is left"
        remedy = f"give less than {model.layers} together, or precision=bf16"
        yield Issue(f"precision.fp8_{name}_layers_bf16", value, reason, remedy)


def _widths(model: Model, parallel: Parallel, numbers: Precision) -> Iterator[Issue]:
    of_attention = {
        "(heads + 2 kv_heads) x head_dim / tp": (model.heads + 2 * model.kv_heads) * model.head_dim / parallel.tp,
        "heads x head_dim / tp": model.heads * model.head_dim / parallel.tp,
    }
    widths = {"hidden_size": model.hidden_size, "ffn_hidden_size / tp": model.ffn_hidden_size / parallel.tp}
    wrong = [
        f"{name} = {width:g}"
        for name, width in (widths | (of_attention if numbers.fp8_linears == "all" else {})).items()
        if width % unit(numbers.fp8)
    ]
    if wrong:
        reason = f"{', '.join(wrong)} of the model: no multiple of {unit(numbers.fp8)}"
        remedy = "give a model of other widths, or precision=bf16"
        if parallel.tp > 1:
            remedy = f"give a smaller parallel.tp, {remedy}"
        yield Issue("precision.fp8", numbers.fp8, reason, remedy)


def _tokens(parallel: Parallel, recipe: str, stage: Stage, replicas: int) -> Iterator[Issue]:
    """The tokens that a rank multiplies at once; lengths that do not split at all are another rule's."""
    shards = parallel.cp * (parallel.tp if parallel.sequence_parallel else 1)
    rows, length, factor = parallel.micro_batch, stage.sequence_length, unit(recipe)
    if length % shards or (rows * length // shards) % factor == 0:
        return
    tokens = f"micro_batch x sequence_length / {shards} = {rows * length // shards}"
    reason = f"{tokens} tokens of a rank are no multiple of {factor}"
    step = math.lcm(factor * shards // math.gcd(factor, rows), 2 * parallel.cp)
    remedy = f"give {_length(stage, step, rows * replicas)}, or precision=bf16"
    yield Issue("precision.fp8", recipe, reason, remedy)


def _length(stage: Stage, step: int, rows: int) -> str:
    """The nearest length that is a multiple of `step`, and the batch of a multiple of `rows` rows that goes with it."""
    length, batch = stage.sequence_length, stage.batch_tokens
    near = max(step, round(length / step) * step)
    whole = max(1, round(batch / (near * rows))) * near * rows
    return f"sequence_length={near}" + (f" with batch_tokens={whole}" if whole != batch else "")
