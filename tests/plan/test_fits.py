"""Layouts and the memory of a device: what is refused and what is offered, and that what is shipped fits."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from typing import Any

import pytest

from llama31 import config
from llama31.command import entry
from llama31.command.layouts import stages
from llama31.command.validate import validate
from llama31.config import ConfigError
from llama31.plan import layout, memory

GIVEN = ["name=x", "data=demo", "tokenizer=demo", "cluster=h100"]
LATER = [*GIVEN, "init_from=x"]
RECORDS = ["name=x", "tokenizer=demo", "cluster=h100", "init_from=x", "schedule.total_tokens=1e9"]
RECORDS += ["data.sources.mine.input=x.jsonl"]
SCHEMAS: dict[str, tuple[Any, list[str]]] = {
    "pretrain": (config.Pretrain, GIVEN),
    "long_context": (config.Pretrain, [*LATER, "gates.baseline=y"]),
    "anneal": (config.Pretrain, LATER),
    "probe": (config.Probe, [*LATER, "candidates=[docs]", "schedule=probe"]),
    "sft": (config.Sft, RECORDS),
    "reward": (config.Reward, RECORDS),
    "dpo": (config.Dpo, RECORDS),
}
POST = ("sft", "reward", "dpo")
CPS = [2, 4, 8, 8, 16, 16]  # of the six lengths, as conf/long_context.yaml says
LENGTHS = ["16k", "32k", "48k", "64k", "96k"]


def of_size(size: str, name: str, processes: int, long_processes: int) -> list[tuple[str, list[str], int]]:
    chosen = [f"model={size}", f"parallel={name}"]
    result = [("pretrain", [*chosen, f"schedule={size}"], processes), ("probe", chosen, processes)]
    result += [
        ("long_context", [*chosen, f"schedule=long_{number}", f"parallel.cp={cp}"], long_processes)
        for number, cp in enumerate(CPS, start=1)
    ]
    result += [("anneal", [*chosen, "parallel.cp=16"], long_processes)]
    return [*result, *((recipe, chosen, processes) for recipe in POST)]


# All that is shipped by layout: recipe, keys and processes.
SHIPPED: dict[str, list[tuple[str, list[str], int]]] = {
    "8b_1node": of_size("8b", "8b_1node", 8, 256),
    "70b": of_size("70b", "70b", 32, 1024),
    "405b_8k": [
        ("pretrain", ["model=405b", "schedule=405b", "parallel=405b_8k"], 8192),
        *((recipe, ["model=405b", "parallel=405b_8k", "parallel.dp=4"], 512) for recipe in POST),
    ],
    "405b_16k": [("pretrain", ["model=405b", "schedule=405b", "parallel=405b_16k"], 16_384)],
    **{
        f"405b_len{length}": [
            ("long_context", ["model=405b", f"schedule=long_{number}", f"parallel=405b_len{length}"], 16_384)
        ]
        for number, length in enumerate(LENGTHS, start=1)
    },
    "405b_128k": [
        ("long_context", ["model=405b", "schedule=long_6", "parallel=405b_128k"], 16_384),
        ("anneal", ["model=405b", "parallel=405b_128k"], 16_384),
    ],
}


@functools.cache
def _composed(recipe: str, words: tuple[str, ...]) -> Any:
    schema, given = SCHEMAS[recipe]
    return entry.compose(schema, recipe, [*given, *words])


def composed(recipe: str, words: list[str]) -> Any:
    """The run; layouts and lengths of the smaller sizes are put together, which takes no composing."""
    own = [text for text in words if text.startswith("parallel.")]
    stage = [text for text in words if text.startswith("schedule=long") and "model=405b" not in words]
    rest = [text for text in words if text not in (*own, *stage)]
    run = _composed(recipe, (*rest, *["schedule=long_1"] * len(stage)))
    for text in stage:
        use = next(use for uses in SHIPPED.values() for use in uses if {text, "model=405b"} <= set(use[1]))
        run = replace(run, schedule=composed(*use[:2]).schedule)
    layout_keys = {key.removeprefix("parallel."): int(value) for key, value in (text.split("=") for text in own)}
    return replace(run, parallel=replace(run.parallel, **layout_keys))


def most(run: Any, processes: int) -> memory.StageMemory:
    capacity = memory.Capacity(80, responses=isinstance(run, config.Dpo))
    replicas = layout.dp(run.parallel, processes)
    return layout.worst(run.model, run.parallel, stages(run), replicas, run.precision, capacity)[0]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_layouts_fit_and_say_what_they_take(name: str) -> None:
    needs = []
    for recipe, words, processes in SHIPPED[name]:
        run = composed(recipe, words)
        assert run.cluster.memory_gb == 80
        validate(run, processes)  # of what fits a 70B's pipeline may idle for want of micro-batches
        needs.append(most(run, processes).total / 1e9)
    comment, _, _ = (entry.CONF / "parallel" / f"{name}.yaml").read_text().partition("\ntp:")
    (told,) = re.findall(r"takes ([\d.]+) of 80 GB", re.sub(r"\n# ?", " ", comment))
    assert told == f"{max(needs):.1f}"


def test_all_layouts_of_the_three_sizes_are_here() -> None:
    assert {path.stem for path in (entry.CONF / "parallel").glob("*.yaml")} == {*SHIPPED, "single"}


def test_the_first_two_or_the_last_stage_need_most() -> None:
    for recipe, words, processes in (use for uses in SHIPPED.values() for use in uses):
        run = composed(recipe, words)
        work = memory.workload(run.parallel, stages(run)[-1], layout.dp(run.parallel, processes))
        every = memory.predict(run.model, run.parallel, run.precision, work)
        assert memory.worst(run.model, run.parallel, run.precision, work).total == max(one.total for one in every)


# --- what does not fit ---


def refusal(recipe: str, words: list[str], processes: int, **parallel: Any) -> str:
    run = composed(recipe, words)
    with pytest.raises(ConfigError) as caught:
        validate(replace(run, parallel=replace(run.parallel, **parallel)), processes)
    return str(caught.value)


def test_the_405b_without_recomputation_is_refused_for_what_comes_after_60_steps() -> None:
    """It fits with rows of 4,096, where the ramp begins."""
    words = ["model=405b", "schedule=405b", "parallel=405b_8k"]
    said = refusal("pretrain", words, 8192, recompute=[])
    assert (
        "cluster.memory_gb=80: a rank of pipeline stage 1 (from 0) needs 97.5 GB (activations 75.2, gradients" in said
    )
    assert "at rows of 8192 tokens, 16777216 a step; give parallel.recompute=[norms,swiglu] (72.8 GB)" in said
    assert "nearest layout that works with 8192 process(es): parallel.recompute=[norms,swiglu] (dp=64)" in said
    run = composed("pretrain", words)
    bare = replace(run, parallel=replace(run.parallel, recompute=[]))
    needs = [layout.worst(run.model, bare.parallel, [stage], 64, run.precision)[0].total / 1e9 for stage in stages(run)]
    assert needs == pytest.approx([56.2, 90.6, 97.5], abs=0.05)
    anywhere = replace(bare, cluster=replace(run.cluster, memory_gb=None))
    assert validate(anywhere, 8192) == []


@pytest.mark.parametrize(
    ("given", "processes", "told"),
    [
        ({"tp": 1}, 8, "parallel.recompute=[mlp] (dp=8)"),  # for which another axis would be farther away
        ({"tp": 1, "zero": 2, "micro_batch": 4}, 8, "parallel.recompute="),
        ({"tp": 1}, 1, "no layout of 1 process(es) works"),  # 8.03e9 parameters, 18 bytes each
    ],
)
def test_the_nearest_that_fits(given: dict[str, Any], processes: int, told: str) -> None:
    assert told in refusal("pretrain", ["model=8b", "schedule=8b", "parallel=8b_1node"], processes, **given)


def test_the_nearest_layout_keeps_tensor_parallelism_within_a_node() -> None:
    one = {"tp": 1, "pp": 1, "vpp": 1}
    said = refusal("pretrain", ["model=70b", "schedule=70b", "parallel=70b"], 32, **one)
    run = composed("pretrain", ["model=70b", "schedule=70b", "parallel=70b"])
    capacity = memory.Capacity(80)
    given = replace(run.parallel, **one)
    other = layout.nearest(run.model, given, stages(run), 32, run.precision, capacity)
    assert other is not None and other.tp == 8 and "parallel.tp=8" in said
    assert layout.problems(run.model, other, stages(run), 32, run.precision, capacity) == []


def test_delayed_fp8_is_offered_no_part_that_would_be_rounded_again() -> None:
    run = composed("pretrain", ["model=405b", "schedule=405b", "parallel=405b_8k"])
    numbers, capacity = config.Precision(fp8="delayed"), memory.Capacity(80)
    bare = replace(run.parallel, recompute=[])
    (issue,) = layout.problems(run.model, bare, stages(run), 8192, numbers, capacity)
    assert "buffers 7.0" in issue.problem and "parallel.recompute=[mlp]" in issue.remedy  # 6.4 of FP8 copies
    other = layout.nearest(run.model, bare, stages(run), 8192, numbers, capacity)
    assert other is not None and other.recompute == ["mlp"]


def test_what_beside_the_layout_takes_memory() -> None:
    """An average of the masters and DPO's losses by token."""
    run = composed("dpo", ["model=8b", "parallel=8b_1node"])
    plain, average = (memory.Workload(8192, 16, 4, average=average, responses=False) for average in (False, True))
    needs = [memory.of_stage(run.model, run.parallel, run.precision, work, 0) for work in (plain, average)]
    assert needs[1].states - needs[0].states == memory.parameters(run.model, run.parallel, 0)  # 4 bytes, 4 replicas
    of_tokens = memory.of_stage(run.model, run.parallel, run.precision, replace(plain, responses=True), 0)
    assert of_tokens.head - needs[0].head == 8192 * run.model.hidden_size * 2


def test_zero_3_is_made_whole_before_it_is_taken_apart() -> None:
    run = composed("pretrain", ["model=70b", "schedule=70b", "parallel=70b"])
    whole = config.Parallel(zero=3, recompute=["full"])
    need = memory.of_stage(run.model, whole, run.precision, memory.Workload(8192, 1, 1024), 0)
    assert need.weights == 2 * 70_553_706_496 and need.activations == 0
