"""The benchmark of a GPU on a CPU: what is compared, its budget, its tables. Nothing here is timed."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks.gpu import ceilings, conductor, plan, profiles, tables
from benchmarks.gpu.conductor import Record, Said
from llama31 import config
from llama31.command import entry
from recipes import benchmark
from tests.processes import LIMIT_S

MODEL = config.Model("t", layers=2, hidden_size=32, ffn_hidden_size=64, heads=4, kv_heads=2, vocab_size=128)
WORK = plan.GpuWork(MODEL, sequence_length=32, rows=2, micro_batch=1, steps=2, warmup_steps=1, bf16=None)


def test_the_word_gpu_brings_the_shapes_of_the_slice() -> None:
    argv = benchmark.expanded(["gpu", "part=rest"])
    options, overrides = entry._parsed(config.Benchmark, "benchmark", argv)
    run = entry.compose(config.Benchmark, options.config_name, overrides)
    assert (run.parts, run.part, run.sequence_length, run.rows, run.micro_batch) == (["gpu"], "rest", 4096, 8, 1)
    assert round(plan.parameters(run.model) / 1e9, 2) == 2.80
    assert benchmark.expanded(["part=rest"]) == ["part=rest"]


def test_unknown_cases_are_refused_with_those_that_there_are() -> None:
    (problem,) = benchmark.check(config.Benchmark(only=["ours", "mine"]))
    assert problem.startswith("only=mine: no case; choose out of ours, megatron, ")


def test_ours_stands_before_and_after_the_peer() -> None:
    names = [case.name for case in plan.PARTS["first"]]
    assert names[:3] == ["ours", "megatron", "ours"] and len(set(plan.NAMES)) == len(plan.NAMES)
    both = ("", "-2x", "-eight", "-tail-8x", "-fp8-delayed", "-fp8-tensorwise", "-fp8-blockwise")
    assert {f"{trainer}{name}" for trainer in ("ours", "megatron") for name in both} <= set(plan.NAMES)
    assert {"transformers", "ours-recompute-swiglu", "ours-dialogs", "ceilings", "micro-loss"} <= set(plan.NAMES)


@pytest.mark.parametrize("length", [1, 8, 512, 4096])
@pytest.mark.parametrize("kind", ["one", "eight", "dialogs", "tail"])
def test_documents_fill_the_row_and_are_the_same_every_time(kind: str, length: int) -> None:
    lengths = plan.documents(kind, length, seed=3)
    assert sum(lengths) == length and min(lengths) > 0 and lengths == plan.documents(kind, length, seed=3)
    if length == 4096:
        number = {"one": (1, 1), "eight": (8, 8), "dialogs": (24, 40), "tail": (2, 20)}[kind]
        assert number[0] <= len(lengths) <= number[1]


def test_longer_rows_are_fewer_and_tokens_stay() -> None:
    given = plan.GpuWork(MODEL, 4096, 8, 1, 10, 3, None)
    of_tail = given.for_case(plan.TAIL)
    assert (of_tail.sequence_length, of_tail.rows, of_tail.model.layers) == (32768, 1, 1)
    assert given.for_case(plan.DOUBLE).tokens == given.tokens == of_tail.tokens


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopA_NTN", "gemm"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize256x128x64_cublas", "gemm"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7i_128x128x128", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("_row", "loss"),
        ("void at::native::multi_tensor_apply_kernel<..., at::native::FusedAdamMathFunctor<float, 4> >", "optimizer"),
        ("void at::native::multi_tensor_apply_kernel<..., at::native::LpNormFunctor<float, 2> >", "gradient norm"),
        ("void transformer_engine::normalization::rmsnorm_fwd_general_kernel<...>", "norm"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, true>", "norm"),
        ("void transformer_engine::fused_rope_forward_kernel<__nv_bfloat16>", "rope"),
        ("void transformer_engine::gated_act_kernel<8, float, Empty, silu>", "swiglu"),
        ("void transformer_engine::cast_transpose_general_kernel<...>", "fp8 cast"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda>", "copy"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "communication"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<float>>", "elementwise and other"),
        ("addmm", "gemm"),
    ],
)
def test_kernels_are_sorted_by_what_they_do(name: str, kind: str) -> None:
    assert profiles.classify(name) == kind


def test_gaps_are_the_time_in_which_nothing_runs() -> None:
    assert profiles.idle_ms([(0, 1000), (500, 2000), (3500, 4000), (3600, 3700)]) == 1.5
    assert profiles.idle_ms([]) == 0


# --- tables ---


def run(case: str, step_ms: float, peak_bytes: float = 1e9, **more: Any) -> Said:
    return {"case": case, "steps_ms": [step_ms, 2 * step_ms, step_ms], "tokens": 100, "notes": ["a note"]} | {
        "peak_bytes": peak_bytes,
        **more,
    }


CARD: Said = {
    "products": [{"name": "qkv", "pass": "forward", "format": "bf16", "m": 10, "n": 10, "k": 10, "tflops": 2e-6}],
    "attention": [{"kernel": "cudnn", "length": 32, "forward_tflops": 1.0, "backward_tflops": 1.0}],
    "copy_bytes_per_s": 3e12,
    "adamw_bytes_per_s": 2e12,
    "adamw_bytes_per_parameter": 28,
}


def test_goals_are_judged_by_medians_of_all_steps() -> None:
    profile = profiles.summary(9.0, [("addmm", 2.0), ("_row", 1.0), ("addmm", 3.0)], 3.0, 1)
    record = Record(
        runs=[
            run("ours", 10, peak_bytes=0.9e9, profile=profile, flops_per_token=10),
            run("megatron", 11),
            run("ours", 8),
            run("ours-fp8-delayed", 5),
            run("ours-fp8-tensorwise", 4),
            run("megatron-fp8-delayed", 4.2),
            {"case": "ceilings", "ceilings": CARD},
        ],
        left_out=[{"case": "transformers", "why": "not done within 100 s"}],
        machine={"device": "cuda", "name": "a card", "versions": {"torch": "2.14.1", "driver": "580"}},
        date="2026-11-28",
        commit="abc1234",
    )
    text = tables.markdown(record, WORK, "first")
    assert "| rows of one length: ours / Megatron's own | 0.77 | 1.100 | >= 1.08 | yes |" in text  # 10 against 11
    assert "| FP8, the best recipe of each: the same | 0.72 | 1.050 | >= 1.1 | no |" in text
    assert "| peak memory: ours / Megatron's own | 1.02 | 1.000 | <= 0.98 | no |" in text  # the most of both runs
    assert "long-tailed" not in text and "- transformers: not done within 100 s" in text
    assert re.search(r"\| gemm \| [\d.,]+ \| 5.0 \(2\) \|", text) and "| loss | | 1.0 (1) |" in text
    assert "device=cuda: a card; torch 2.14.1, driver 580; commit abc1234" in text and "a note" in text
    whole = tables.as_json(record, WORK, "first")
    assert whole["ceilings"] | CARD == whole["ceilings"] and whole["ceilings"]["name"] == "a card"
    assert json.loads(json.dumps(whole))["left_out"] == record.left_out


def test_a_step_at_the_ceilings_is_the_sum_of_its_parts() -> None:
    least = ceilings.least_ms(CARD, WORK)
    assert least["gemm"] == pytest.approx(2 * 2 * 2000 / 2e-6 / 1e9)  # two micro-batches of two layers
    assert least["attention"] == pytest.approx(2 * 2 * 2 * 32 * 32 * 32 * 3.5 / 1e9)
    assert least["optimizer"] == pytest.approx(28 * plan.parameters(MODEL) / 2e12 * 1e3)


# --- the budget ---


class Scripted:
    """A worker that says what a test wrote, and takes the time that it wrote, on a clock of its own."""

    now: ClassVar[float] = 0.0
    events: ClassVar[list[str]] = []
    takes: ClassVar[dict[str, float]] = {}

    def __init__(self, case: plan.GpuCase, work: plan.GpuWork) -> None:
        self.case, self.ready = case, False
        self.events.append(f"start {case.name}")

    def hear(self, seconds: float) -> Said:
        if not self.ready:
            self.ready = True
            return {"ready": {"name": "a card", "device": "cuda", "versions": {}}}
        took = self.takes[self.case.name]
        Scripted.now += min(took, seconds)
        return {"failed": f"not done within {seconds:.0f} s"} if took > seconds else {"result": {"steps_ms": [1.0]}}

    def go(self) -> None:
        self.events.append(f"go {self.case.name}")

    def end(self) -> str:
        self.events.append(f"end {self.case.name}")
        return ""


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    Scripted.now, Scripted.events, Scripted.takes = 0.0, [], {}
    monkeypatch.setattr(conductor, "Worker", Scripted)
    monkeypatch.setattr(conductor.time, "monotonic", lambda: Scripted.now)
    return Scripted


def test_the_next_case_imports_while_the_present_one_has_the_device(scripted: type[Scripted]) -> None:
    cases = [plan.OURS, plan.OURS.of("megatron"), plan.OURS]
    scripted.takes = {"ours": 30, "megatron": 30}
    record = conductor.conduct(cases, WORK, 240, 100)
    assert [one["case"] for one in record.runs] == ["ours", "megatron", "ours"] and not record.left_out
    assert scripted.events == [
        "start ours", "go ours", "start megatron", "end ours",
        "go megatron", "start ours", "end megatron",
        "go ours", "end ours",
    ]  # fmt: skip


def test_what_no_longer_fits_is_left_out_and_named(scripted: type[Scripted]) -> None:
    cases = [plan.OURS, plan.OURS.of("megatron"), plan.GpuCase("transformers"), plan.OURS, plan.EIGHT]
    scripted.takes = {"ours": 50, "megatron": 150, "transformers": 30}
    record = conductor.conduct(cases, WORK, 200, 100)
    assert [one["case"] for one in record.runs] == ["ours", "transformers"]
    assert record.left_out == [
        {"case": "megatron", "why": "not done within 100 s"},
        {"case": "ours", "why": "20 s were left of 200"},
        {"case": "ours-eight", "why": "20 s were left of 200"},
    ]
    assert scripted.events[-1] == "end ours" and scripted.events.count("go ours") == 1


# --- for once in earnest, as small as can be ---


@pytest.mark.torch
@pytest.mark.parallel
def test_ours_and_the_peer_do_their_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = config.Benchmark(
        parts=["gpu"], only=["ours", "megatron"], budget_s=LIMIT_S, timeout_s=LIMIT_S, model=MODEL, sequence_length=32,
        rows=2, micro_batch=1, steps=2, warmup_steps=1, record=str(tmp_path / "record.json"),
    )  # fmt: skip
    benchmark.main(asked)
    text, record = capsys.readouterr().out, json.loads((tmp_path / "record.json").read_text())
    assert not record["left_out"] and record["device"] == "cpu" and record["versions"]["megatron-core"]
    for one in record["runs"]:
        assert len(one["steps_ms"]) == 2 and one["tokens"] == 64 and abs(one["loss"] - math.log(128)) < 0.5
        assert one["profile"]["launches"] > 100 and one["profile"]["classes"]["gemm"]["launches"] > 20
    assert "| ours | " in text and "addmm" in text and "rows of one length: ours / Megatron's own" in text


@pytest.mark.torch
def test_ceilings_and_kernels_are_measured_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu import micro

    monkeypatch.setattr(micro, "LENGTHS", (1,))
    found = ceilings.measure(WORK)
    assert {entry["name"] for entry in found["products"]} == {"square", *plan.linears(MODEL)}
    assert all(entry["tflops"] > 0 for entry in found["products"] if entry["format"] == "fp32")
    assert found["attention"][0].keys() >= {"kernel", "length", "heads", "width", "failed"}  # no cuDNN on a CPU
    assert ceilings.least_ms(found, WORK)["gemm"] > 0 and "copy, TB/s" in tables.ceiling_table(found)
    rows = [row for measure in micro.TOPICS.values() for row in measure(WORK)]
    assert not [row for row in rows if "failed" in row]
    assert {row["what"] for row in rows} == {"head and loss", "attention", "rms_norm", "swiglu"}
    assert len(tables.micro_table(rows).splitlines()) == len(rows) + 2
