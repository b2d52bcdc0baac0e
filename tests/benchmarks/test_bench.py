"""The benchmark's arithmetic and its watch on a process. Nothing here is timed."""

from __future__ import annotations

import pytest

from benchmarks import timing
from benchmarks.peers import Case, Work
from llama31 import config
from recipes import benchmark
from tests.processes import LIMIT_S

MODEL = config.Model(
    name="t", layers=1, hidden_size=32, ffn_hidden_size=64, heads=2, kv_heads=1, vocab_size=64, max_positions=64
)
WORK = Work(MODEL, sequence_length=16, rows=4, micro_batch=2, steps=2, warmup_steps=1)


def run(tokens_per_cpu_s: float, peak_bytes: int = 1_000_000, **extra: float) -> timing.TimedRun:
    return timing.TimedRun(tokens=1000, cpu_s=1000 / tokens_per_cpu_s, wall_s=1.0, peak_bytes=peak_bytes, extra=extra)


def test_ratio_is_of_medians_within_a_precision() -> None:
    table = timing.training_table(
        {
            "ours-own-fp32": [run(120), run(90), run(5000)],
            "loop-sdpa-fp32": [run(100), run(80), run(1)],
            "ours-own-mixed": [run(300, shim_share=0.01)],
            "loop-sdpa-bf16": [run(200, peak_bytes=7_000_000)],
        }
    )
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in table.splitlines()[2:6]
    }
    assert rows["loop-sdpa-fp32"][1:3] == ["80 (1 to 100)", "1.50"]
    assert rows["loop-sdpa-bf16"] == ["all BF16", "200 (200 to 200)", "1.50", "7"]
    assert rows["ours-own-fp32"][2] == ""
    assert "1.000%" in table.splitlines()[-1]


def test_batches_are_the_same_for_every_trainer() -> None:
    first, second = list(WORK.batches()), list(WORK.batches())
    assert len(first) == 3 and first[0].shape == (4, 17)
    assert all((a == b).all() for a, b in zip(first, second)) and (first[0] != first[1]).any()


@pytest.mark.parametrize("name", ["ours-own-bf16", "ours-sdpa-fp32", "loop-own-fp32", "loop-sdpa", "loop-sdpa-fp64"])
def test_a_case_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"cases='{name}'"):
        Case.parse(name)


def test_cases_in_bf16_are_left_out_where_it_is_slow_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    run = config.Benchmark(cases=["ours-own-mixed", "loop-sdpa-fp32", "loop-sdpa-bf16"])
    assert [str(case) for case in benchmark.cases_of(run, "bf16")] == run.cases
    assert capsys.readouterr().err == ""
    assert [str(case) for case in benchmark.cases_of(run, "fp32")] == ["loop-sdpa-fp32"]
    assert "left out: ours-own-mixed, loop-sdpa-bf16 (bf16=null: BF16 is slower" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"cases: nothing is left .*\(bf16=false\); give cases in fp32, or bf16=true"):
        benchmark.cases_of(config.Benchmark(cases=["ours-own-mixed"], bf16=False), "fp32")


@pytest.mark.torch
def test_what_is_computed_in_follows_the_cpu_unless_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from llama31.model import precision

    for ratio, wanted in ((27.0, "fp32"), (0.7, "bf16")):
        monkeypatch.setattr(precision, "bf16_ratio", lambda ratio=ratio: ratio)
        assert benchmark.computes_in(config.Benchmark()) == wanted
        assert benchmark.computes_in(config.Benchmark(bf16=True)) == "bf16"
        assert benchmark.computes_in(config.Benchmark(bf16=False)) == "fp32"


@pytest.mark.torch
@pytest.mark.parametrize("name", ["ours-own-fp32", "loop-eager-mixed", "trainer-sdpa-bf16"])
def test_a_trainer_does_the_steps_asked_of_it(name: str) -> None:
    done = timing.run_case(WORK, Case.parse(name), timeout_s=LIMIT_S)
    assert done.tokens == 2 * 4 * 16 and done.cpu_s > 0 and done.peak_bytes > 0
    assert 3.5 < done.extra["loss"] < 5  # ln 64 is 4.16


@pytest.mark.torch
def test_a_trainer_that_fails_says_why() -> None:
    broken = Work(config.Model("t", 1, 30, 64, 4, 2, vocab_size=64), 16, 4, 2, 1, 1)
    with pytest.raises(RuntimeError, match=r"(?s)loop-sdpa-fp32 failed.*hidden"):
        timing.run_case(broken, Case.parse("loop-sdpa-fp32"), timeout_s=LIMIT_S)
