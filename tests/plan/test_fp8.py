"""What FP8 cannot compute is refused before anything runs, with keys that work when they are given."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from llama31 import config
from llama31.command import entry
from llama31.command.validate import validate
from llama31.config import ConfigError, Issue
from llama31.plan import fp8, layout
from llama31.plan.schedule import Stage

MODEL = config.Model("x", layers=4, hidden_size=64, ffn_hidden_size=128, heads=4, kv_heads=2, max_positions=8192)


def found(
    parallel: config.Parallel,
    batch: int,
    length: int,
    recipe: str = "tensorwise",
    model: config.Model = MODEL,
    dp: int = 1,
) -> list[Issue]:
    stage, world = Stage(0, None, 0, batch, length), layout.size(parallel) * dp
    return layout.problems(model, parallel, [stage], world, config.Precision(fp8=recipe))


@pytest.mark.parametrize(
    ("keys", "batch", "length", "dp", "given"),
    [
        ({}, 8 * 4104, 4104, 1, "sequence_length=4096 with batch_tokens=32768"),  # a multiple of 8, which TE lets pass
        ({}, 16000, 1000, 2, "sequence_length=992 with batch_tokens=15872"),
        ({"micro_batch": 3}, 24 * 100, 100, 1, "sequence_length=96 with batch_tokens=2304"),
        ({"tp": 2}, 16 * 1040, 1040, 1, "sequence_length=1024 with batch_tokens=16384"),
        ({"cp": 2}, 4 * 1000, 1000, 1, "sequence_length=992 with batch_tokens=3968"),
        ({"tp": 4, "cp": 2, "micro_batch": 2}, 8 * 1000, 1000, 2, "sequence_length=1024 with batch_tokens=8192"),
    ],
)
def test_the_nearest_length_is_named_and_works(
    keys: dict[str, int], batch: int, length: int, dp: int, given: str
) -> None:
    parallel = config.Parallel(**keys)  # type: ignore[arg-type]
    (issue,) = found(parallel, batch, length, dp=dp)
    assert issue.key == "precision.fp8" and given in issue.remedy and "tokens of a rank" in issue.problem, issue
    numbers = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", issue.remedy)}
    assert not found(parallel, numbers.get("batch_tokens", batch), numbers["sequence_length"], dp=dp)


def test_lengths_on_the_unit_are_none_of_its_business() -> None:
    assert not found(config.Parallel(), 8 * 4112, 4112)
    assert not found(config.Parallel(micro_batch=2), 16 * 1000, 1000)  # 2 rows of 1,000
    assert not found(config.Parallel(tp=2, sequence_parallel=False), 16 * 1040, 1040)
    assert found(config.Parallel(), 16 * 1040, 1040, "mxfp8"), "32 values share a scale"
    assert not found(config.Parallel(), 16 * 1040, 1040, "none")


def test_every_stage_of_the_ramp_counts() -> None:
    stages = [Stage(0, 9, 0, 8 * 4096, 4096), Stage(9, None, 1, 8 * 4104, 4104)]
    found = layout.problems(MODEL, config.Parallel(), stages, 1, config.Precision(fp8="delayed"))
    assert len(found) == 1 and "= 4104 tokens" in found[0].problem


def test_widths_that_no_product_takes() -> None:
    (issue,) = found(config.Parallel(tp=2), 64, 64, model=replace(MODEL, ffn_hidden_size=144, heads=8))
    assert "ffn_hidden_size / tp = 72 of the model: no multiple of 16; give a smaller parallel.tp" in str(issue)
    assert fp8.unit("mxfp8") == 32 and all(fp8.unit(name) == 16 for name in ("delayed", "tensorwise", "blockwise"))
    narrow = replace(MODEL, hidden_size=48, heads=6, kv_heads=2)  # queries, keys and values: 80
    assert not found(config.Parallel(), 64, 64, model=narrow)
    assert "hidden_size = 48" in str(found(config.Parallel(), 64, 64, "mxfp8", model=narrow))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["precision=bf16", "precision.fp8_linears=mlp"], "precision.fp8_linears=mlp: precision.fp8=none has no use"),
        (["precision=fp32", "precision.fp8_emulate=true"], "precision.fp8_emulate=true: precision.fp8=none has no use"),
        (
            ["precision=fp8_delayed", "precision.fp8_first_layers_bf16=6", "precision.fp8_last_layers_bf16=2"],
            "precision.fp8_first_layers_bf16=6: with the 2 at the other end none of 8 layers is left; give less than 8",
        ),
        (
            ["precision=fp8_tensorwise", "schedule.sequence_length=200", "schedule.batch_tokens=800"],
            "precision.fp8=tensorwise: micro_batch x sequence_length / 1 = 200 tokens of a rank are no multiple of 16; "
            "give sequence_length=192 with batch_tokens=768, or precision=bf16",
        ),
    ],
)
def test_refused_before_torch_is_loaded(overrides: list[str], said: str) -> None:
    given = ["name=x", "model=tiny", "schedule=demo", "data=demo", "tokenizer=demo", "schedule.ramp=[]"]
    with pytest.raises(ConfigError, match=re.escape(said)):
        validate(entry.compose(config.Pretrain, "pretrain", [*given, *overrides]), 1)
