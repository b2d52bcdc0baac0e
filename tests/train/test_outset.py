"""What a run says when it starts."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llama31 import config
from llama31.checkpoint.publish import Meta
from llama31.resilience import resume
from llama31.resilience.attempt import Attempt
from llama31.resilience.resume import Start
from llama31.runs import attempts
from llama31.train import outset

pytestmark = pytest.mark.torch

SCHEDULE = config.Schedule(
    total_tokens=16_384, batch_tokens=2048, sequence_length=128, peak_lr=3e-3, warmup_tokens=2048
)
RUN = config.Pretrain(name="x", model=config.Model(name="m"), schedule=SCHEDULE)
META = Meta(model={}, step=8, tokens=16_384, run="x", schedule=asdict(SCHEDULE))


def resumed(meta: Meta = META) -> Start:
    return Start(Path("runs/x/checkpoints/step-8"), meta, optimizer=True)


def test_a_run_that_begins_says_with_what() -> None:
    assert outset.lines(RUN, Start(), True) == [f"x: begins at step 0 with weights drawn from seed {RUN.seed}"]
    (line,) = outset.lines(replace(RUN, init_from="runs/base"), Start(Path("runs/base/checkpoints/step-4")), True)
    assert line == "x: begins at step 0 with the weights of runs/base/checkpoints/step-4"


def test_a_run_that_goes_on_names_keys_without_effect() -> None:
    (line,) = outset.lines(replace(RUN, init_from="runs/base"), resumed(), True)
    assert line.startswith("x: goes on at step 8 (16,384 tokens) from runs/x/checkpoints/step-8")
    assert "init_from=runs/base has no effect" in line and "name=" in line
    assert len(outset.lines(RUN, resumed(), True)) == 1 and "effect" not in outset.lines(RUN, resumed(), True)[0]


def test_an_extended_run_says_what_the_learning_rate_does() -> None:
    longer = replace(RUN, schedule=replace(SCHEDULE, total_tokens=32_768))
    _, line = outset.lines(longer, resumed(), True)
    assert "from 1.49e-04 to 1.66e-03 (11 times)" in line and "total_tokens 16384 -> 32768" in line
    midway = resumed(replace(META, step=4, tokens=8192))
    assert len(outset.lines(RUN, midway, True)) == 1, "a schedule that goes on is no news"


def test_without_held_out_data_a_run_says_so_or_refuses() -> None:
    _, line = outset.lines(RUN, Start(), False)
    assert "not validated" in line and "data.heldout_fraction" in line
    with pytest.raises(ValueError, match=r"validation.every_tokens=4096: .*validation.every_tokens=null"):
        outset.lines(replace(RUN, validation=config.Validation(every_tokens=4096)), Start(), False)


def test_rows_of_whole_documents_keep_the_length_that_they_had() -> None:
    meta = replace(META, step=4, tokens=8192)
    longer = replace(SCHEDULE, sequence_length=256)
    resume.check_rows(longer, "stream", meta)
    resume.check_rows(SCHEDULE, "whole", meta)
    with pytest.raises(
        ValueError, match=r"schedule.sequence_length=256: .* in rows of 128; .*schedule.ramp="
    ) as refused:
        resume.check_rows(longer, "whole", meta)
    assert "{from_tokens: 8192, batch_tokens: 2048, sequence_length: 256}" in str(refused.value)
    resume.check_rows(replace(SCHEDULE, ramp=[config.Ramp(8192, 2048, 256)]), "whole", meta)


def test_a_twin_is_refused_until_it_may_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Attempt(tmp_path).number == 0
    monkeypatch.setattr(attempts, "living", lambda folder: (0, 4711))
    with pytest.raises(config.RunError, match=r"attempt 0 of this run is training .*process 4711.*take_over=true"):
        Attempt(tmp_path)
    assert attempts.newer(tmp_path, 0) is None, "the living one stays the newest"
    assert Attempt(tmp_path, take_over=True).number == 1
