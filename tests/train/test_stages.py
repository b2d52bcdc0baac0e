"""The end of pre-training as `conf/` lays it out: stages of long context, annealing, and what they hand on."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest

from llama31 import config
from llama31.command import entry
from llama31.command.entry import compose
from llama31.command.validate import validate
from llama31.plan import layout, schedule

GIVEN = ["name=x", "data=demo", "tokenizer=demo"]
STAGE = [*GIVEN, "init_from=before", "gates.baseline=before.json"]
LENGTHS = [16_384, 32_768, 49_152, 65_536, 98_304, 131_072]
LAYOUTS = [*(f"405b_len{thousand}k" for thousand in (16, 32, 48, 64, 96)), "405b_128k"]
CPS = [2, 4, 8, 8, 16, 16]
SERVED = {"405b": 16_384, "70b": 1024, "8b": 256}  # processes


@functools.cache
def stages(model: str) -> list[config.Pretrain]:
    """The six stages, as they are given for the 405B, and with `parallel.cp` alone for the smaller ones."""
    if model == "405b":
        pairs = [(f"schedule=long_{number}", f"parallel={name}") for number, name in enumerate(LAYOUTS, start=1)]
        result = [[*STAGE, "model=405b", *pair] for pair in pairs]
        return [entry.load(config.Pretrain, "long_context", given, lambda _: SERVED[model]) for given in result]
    layout_of = {"70b": "parallel=70b", "8b": "parallel=8b_1node"}[model]
    run = compose(config.Pretrain, "long_context", [*STAGE, f"model={model}", "schedule=long_1", layout_of])
    return [
        replace(run, schedule=stage.schedule, parallel=replace(run.parallel, cp=cp))
        for stage, cp in zip(stages("405b"), CPS, strict=True)
    ]


@pytest.mark.parametrize("model", SERVED)
def test_every_stage_is_possible_and_wastes_nothing(model: str) -> None:
    processes = SERVED[model]
    for run in stages(model):
        assert validate(run, processes) == []
        assert layout.dp(run.parallel, processes) * layout.size(run.parallel) == processes
        held = run.schedule.sequence_length // run.parallel.cp
        assert held <= 8192, "no process holds more of a row than in pre-training"
    assert [run.parallel.cp for run in stages(model)] == CPS == sorted(CPS)


def test_six_stages_lead_from_8k_to_128k() -> None:
    result = [run.schedule for run in stages("405b")]
    assert [given.sequence_length for given in result] == LENGTHS
    assert sum(given.total_tokens for given in result) == 800_000_000_000
    assert all(abs(given.batch_tokens / 2**24 - 1) < 0.02 for given in result)
    assert {schedule.learning_rate(given, tokens) for given in result for tokens in (0, 10**11)} == {2e-6}


def test_a_stage_goes_on_where_pretraining_ended() -> None:
    """Its rate, its optimizer, and its model apart from the scaling of RoPE, which one key allows to differ."""
    pretrained = compose(config.Pretrain, "pretrain", [*GIVEN, "model=405b", "schedule=405b"])
    ended = schedule.learning_rate(pretrained.schedule, pretrained.schedule.total_tokens)
    first, *later = stages("405b")
    assert first.schedule.peak_lr == pytest.approx(ended, rel=0.1)
    assert first.init_optimizer and first.init_changes == ["rope_factor"]
    assert (pretrained.model.rope_factor, first.model.rope_factor) == (0, 8)
    assert vars(first.model) == {**vars(pretrained.model), "rope_factor": 8}
    assert all(run.model == first.model and run.init_optimizer for run in later)


def test_every_run_reads_in_an_order_of_its_own() -> None:
    pretrained = compose(config.Pretrain, "pretrain", [*GIVEN, "model=405b", "schedule=405b"])
    runs = [pretrained, *stages("405b"), *annealings()]
    assert len({run.data.seed for run in runs}) == len(runs)
    assert all(run.data.packing == "whole" and run.data.length_buckets[-1].weight > 1 for run in runs[1:])


def test_gates_are_asked_on_the_way_and_know_the_scores_before() -> None:
    for run in stages("405b"):
        assert run.gates.every_tokens and run.schedule.total_tokens >= 5 * run.gates.every_tokens
        assert (run.gates.recall, run.gates.needle.kind, run.gates.short_length) == (1.0, "text", 8192)
        assert run.gates.baseline == "before.json"
    with pytest.raises(config.ConfigError, match="gates.baseline=null: the model would be measured with its positions"):
        validate(compose(config.Pretrain, "long_context", [*STAGE[:-1], "model=tiny", "schedule=demo"]), 1)
    wrong = replace(stages("405b")[0], gates=replace(stages("405b")[0].gates, needle=config.Needle("text", asked=2)))
    with pytest.raises(config.ConfigError, match="gates.needle.asked=2: more than gates.needle.inserted=1"):
        validate(wrong, 16_384)


# --- annealing ---


@functools.cache
def annealings() -> list[config.Pretrain]:
    """The default, ours, and the report's 40M tokens."""
    given = [*GIVEN, "init_from=before", "model=405b", "parallel=405b_128k"]
    return [
        entry.load(config.Pretrain, "anneal", [*given, *more], lambda _: 16_384)
        for more in ([], ["schedule=anneal_40m"])
    ]


def rates(run: config.Pretrain) -> Sequence[float]:
    """Learning rate of the last three steps, and of what would follow them."""
    last = schedule.total_steps(run.schedule)
    seen = [schedule.step_tokens(run.schedule, step) for step in range(last - 3, last + 1)]
    return [schedule.learning_rate(run.schedule, tokens) for tokens in seen]


@pytest.mark.parametrize(("index", "steps"), [(0, 2385), (1, 3)])
def test_the_rate_falls_to_exactly_0_and_the_last_step_still_learns(index: int, steps: int) -> None:
    run = annealings()[index]
    assert schedule.total_steps(run.schedule) == steps and run.schedule.sequence_length == 131_072
    *falling, end = rates(run)
    assert end == 0.0 and falling[-1] > 0
    assert all(later < earlier for earlier, later in itertools.pairwise(falling))
    assert schedule.learning_rate(run.schedule, 0) == run.schedule.peak_lr == stages("405b")[-1].schedule.peak_lr
    halfway = schedule.learning_rate(run.schedule, run.schedule.total_tokens // 2)
    assert halfway == pytest.approx(run.schedule.peak_lr / 2)
    assert schedule.learning_rate(run.schedule, run.schedule.total_tokens) == 0.0


def test_annealing_keeps_what_is_averaged_and_has_more_code_and_mathematics() -> None:
    default, named = annealings()
    assert default.init_optimizer and default.checkpoint.keep_last is None
    assert default.schedule.total_tokens // (default.checkpoint.every_tokens or 1) == 10
    assert named.schedule.total_tokens == 40_000_000
    before, after = (
        {name: source.weight for name, source in compose(config.Pack, "pack", [f"data={name}", "tokenizer=demo"])
         .data.sources.items()} for name in ("report", "report_anneal")
    )  # fmt: skip
    assert before == {"general": 50, "mathematics": 25, "code": 17, "multilingual": 8}  # report, section 3.1.2
    assert before.keys() == after.keys() and sum(after.values()) == 100
    assert {name for name in before if after[name] > before[name]} == {"mathematics", "code"}
