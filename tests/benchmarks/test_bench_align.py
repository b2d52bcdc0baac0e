"""That the comparison with TRL is of equal work, and its arithmetic. Nothing here is timed."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import pytest

from benchmarks import post_training
from benchmarks.post_training import AlignWork
from benchmarks.timing import TimedRun
from llama31 import config

TINY = config.Model("t", layers=1, hidden_size=32, ffn_hidden_size=64, heads=2, kv_heads=1, vocab_size=64)
WORK = AlignWork(TINY, length=64, records=12, rows=2)


def run(tokens_per_s: float, **extra: float) -> TimedRun:
    return TimedRun(tokens=1000, cpu_s=1000 / tokens_per_s, wall_s=1, peak_bytes=2_000_000, extra=extra)


def test_ratios_are_of_medians() -> None:
    runs = {name: [run(20), run(10), run(30)] for name in post_training.CASES}
    runs |= {"sft-ours": [run(30, fill=0.9)], "dpo-ours": [run(40, fill=0.8, reference_s=2, reference_bytes=256)]}
    lines = post_training.table(runs).splitlines()
    assert lines[4] == "| SFT, TRL, packed (bfd) | 20 (10 to 30) | 1.50 | 2 |  |"
    assert lines[6] == "| DPO, ours, reference kept | 40 (40 to 40) |  | 2 | 2.0 |"
    assert lines[-1].endswith("256 bytes; rows of ours are filled to 90% (SFT) and 80% (DPO).")


@pytest.mark.torch
def test_trl_reads_the_ids_that_ours_reads() -> None:
    words = post_training._words(WORK)
    for prompt, chosen, _ in WORK.preferences():
        text = " ".join(f"w{i}" for i in (*prompt, *chosen[:-1]))
        assert [*words(text)["input_ids"], words.eos_token_id] == [*prompt, *chosen]


@pytest.mark.torch
@pytest.mark.parametrize("case", ["sft-ours", "sft-trl-packed", "dpo-ours", "dpo-trl-kept"])
def test_a_case_reads_all_records_once(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    marks: list[int] = []
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        extra: dict[str, Any] = (post_training.ours if "ours" in case else post_training.trl)(
            WORK, case, lambda: marks.append(1)
        )
    assert len(marks) == 2
    if "ours" in case:
        assert 0.5 < extra["fill"] <= 1
        return
    record = said.getvalue().replace("'", '"').splitlines()
    seen = next(json.loads(line)["num_tokens"] for line in record if "num_tokens" in line)
    assert int(seen) == WORK.tokens(case[:3])
