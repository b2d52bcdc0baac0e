"""That the benchmark of long rows compares equal work, and its arithmetic. Nothing here is timed."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import long_rows
from benchmarks.timing import TimedRun
from llama31 import config
from tests.processes import LIMIT_S


def run(tokens_per_s: float, peak_bytes: int = 1_000_000) -> TimedRun:
    return TimedRun(tokens=1000, cpu_s=1000 / tokens_per_s, wall_s=2000 / tokens_per_s, peak_bytes=peak_bytes)


def test_documents_are_of_mixed_lengths_and_fill_the_row() -> None:
    ends = long_rows.document_ends(8192)
    lengths = [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    assert ends[-1] == 8192 and min(lengths) > 0 and max(lengths) > 4 * min(lengths)
    assert ends == long_rows.document_ends(8192)


def test_ratios_are_of_medians() -> None:
    runs = {"ours-8": [run(60), run(10), run(30)], "transformers-8": [run(20, 8_000)] * 3, "ours-one-8": [run(40)]}
    lines = [line.split("|")[2:-1] for line in long_rows.attention_table(runs, [8], "bf16").splitlines()[2:]]
    assert [cell.strip() for cell in lines[1][1:]] == ["20", "1.50", "0", "1.0"]
    lines = long_rows.cp_table({"1": [run(40)], "2": [run(60)]}).splitlines()
    assert lines[-1] == "| 2 processes, CP 2 | 30 | 0.75 | 60 | 1.50 |"


@pytest.mark.torch
def test_both_paths_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    original, length = torch.randn, 300

    def alike(*shape: int, requires_grad: bool, **given: Any) -> torch.Tensor:
        """The same numbers in either order of positions and heads."""
        ours = shape[0] == length
        drawn = original(length, 1, shape[2] if ours else shape[1], shape[3], **given)
        return (drawn if ours else drawn.permute(1, 2, 0, 3).contiguous()).requires_grad_(requires_grad)

    monkeypatch.setattr(torch, "randn", alike)
    outs = []
    for make in (long_rows._ours, long_rows._transformers):
        torch.manual_seed(0)
        outs.append(make(length, [7, 120, 300], "bf16")().flatten(2).view(length, -1))
    torch.testing.assert_close(*outs, rtol=3e-2, atol=3e-2)


@pytest.mark.torch
@pytest.mark.parallel
def test_every_case_does_the_work_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_rows, "LAYOUTS", {"1": "one", "2-waiting": "two"})
    monkeypatch.setattr(long_rows, "ATTENTIONS", {"ours": "ours"})
    tiny = config.Model("t", layers=1, hidden_size=32, ffn_hidden_size=64, heads=2, kv_heads=1, vocab_size=64)
    asked = config.Benchmark(attention_lengths=[64], cp_length=64, repeats=1, steps=1, timeout_s=LIMIT_S, model=tiny)
    attention, training = long_rows.tables(asked, "fp32")
    assert (
        attention.splitlines()[2].startswith("| 64 | ours | ")
        and "in FP32" in attention
        and len(training.splitlines()) == 4
    )
