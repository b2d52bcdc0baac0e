"""The record of a run: what is written is what is read, a resume shows each step once, and the views agree with it."""

from __future__ import annotations

import io
import json
import math
import struct
import sys
from pathlib import Path

import pytest

from llama31 import config
from llama31.plan import shapes, utilisation
from llama31.runs import measured, metrics, plots, views

MODEL = config.Model(name="t", layers=2, hidden_size=64, ffn_hidden_size=128, heads=4, kv_heads=2, vocab_size=512)
QUIET = config.Log(progress=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


FIRST = Path("attempts/0000") / metrics.RECORD


def record(folder: Path, steps: range, resumed_step: int = 0, attempt: int = 0) -> None:
    with metrics.open_run(
        folder, QUIET, name="t", total_tokens=1000, attempt=attempt, resumed_step=resumed_step
    ) as run:
        for step in steps:
            run.write("train", step=step, tokens=step * 10, loss=6.0 - step / 10 + resumed_step, lr=1e-3)


def test_lines_are_read_as_written_and_at_once(tmp_path: Path) -> None:
    run = metrics.open_run(tmp_path, QUIET, name="t", total_tokens=1000)
    run.write("train", step=1, tokens=10, loss=1 / 3, losses={"a": 0.25})
    start, line = metrics.read(tmp_path)  # before close: a killed run has lost nothing
    run.close()
    assert line["loss"] == 1 / 3 and line["losses"] == {"a": 0.25}
    assert (line["kind"], line["step"], line["tokens"]) == ("train", 1, 10)
    assert (start["kind"], start["step"], start["tokens"]) == ("start", 0, 0)


def test_unknown_kind_is_refused(tmp_path: Path) -> None:
    with (
        metrics.open_run(tmp_path, QUIET, name="t", total_tokens=1) as run,
        pytest.raises(ValueError, match="kind='trian'"),
    ):
        run.write("trian", step=1, tokens=1)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with metrics.open_run(tmp_path / "run", config.Log(tensorboard=True), name="t", total_tokens=9, main=False) as run:
        run.write("train", step=1, tokens=1, loss=1.0)
    assert not (tmp_path / "run").exists()


def steps_of(folder: Path) -> list[int]:
    return [line["step"] for line in metrics.read(folder) if line["kind"] == "train"]


def test_resume_shows_each_step_once_and_keeps_what_it_replaced(tmp_path: Path) -> None:
    record(tmp_path, range(1, 8))
    record(tmp_path, range(5, 9), resumed_step=4, attempt=1)
    lines = [line for line in metrics.read(tmp_path) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert lines[4]["loss"] == pytest.approx(6.0 - 0.5 + 4)  # step 5 is that of the second attempt
    first, second = metrics.attempts(tmp_path)
    assert [line["step"] for line in first.lines[1:]] == [1, 2, 3, 4, 5, 6, 7]
    assert (second.number, second.lines[0]["step"]) == (1, 4)


def test_what_an_attempt_writes_after_a_newer_one_began_is_left_out(tmp_path: Path) -> None:
    """A node that was cut off goes on alone, and its attempt records steps that nobody will ever stand on."""
    record(tmp_path, range(1, 6))
    record(tmp_path, range(5, 7), resumed_step=4, attempt=1)
    cut_off = metrics._Record(tmp_path / "attempts/0000")
    for step in (6, 7, 8):
        cut_off.write({"kind": "train", "step": step, "tokens": 10 * step, "loss": -1.0})
    cut_off.write({"kind": "event", "step": 8, "tokens": 80, "event": "stop"})
    cut_off.close()
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert all(line.get("loss") != -1.0 for line in metrics.read(tmp_path))
    assert [line["event"] for line in metrics.read(tmp_path) if line["kind"] == "event"] == ["stop"]


def test_checkpoint_published_late_hides_no_abandoned_step() -> None:
    lines = [
        {"kind": kind, "step": step} for kind, step in [("train", 4), ("train", 5), ("checkpoint", 4), ("train", 6)]
    ]
    merged = metrics.merged([*lines, {"kind": "start", "step": 4}, {"kind": "train", "step": 5}])
    assert [line["step"] for line in merged if line["kind"] == "train"] == [4, 5]


def test_rollback_takes_its_steps_out_of_the_curve(tmp_path: Path) -> None:
    with metrics.open_run(tmp_path, QUIET, name="t", total_tokens=1000) as run:
        for step in (1, 2, 3):
            run.write("train", step=step, tokens=10 * step, loss=float(step))
        run.write("rollback", step=1, tokens=10, reason="spike")
        run.write("train", step=2, tokens=20, loss=0.5)
    assert [(line["step"], line["loss"]) for line in metrics.read(tmp_path) if line["kind"] == "train"] == [
        (1, 1.0),
        (2, 0.5),
    ]


def test_torn_last_line_is_left_out_and_not_continued(tmp_path: Path) -> None:
    record(tmp_path, range(1, 4))
    path = tmp_path / FIRST
    path.write_text(path.read_text() + '{"kind": "train", "st')
    assert steps_of(tmp_path) == [1, 2, 3]
    record(tmp_path, range(4, 6), resumed_step=3, attempt=1)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]


def test_folder_without_attempts_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no attempt of a run"):
        metrics.read(tmp_path)
    (tmp_path / "attempts/0000").mkdir(parents=True)
    (attempt,) = metrics.attempts(tmp_path)  # one that got no further than its number
    assert (attempt.info, attempt.lines, attempt.end) == ({}, [], None)


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    record(tmp_path, range(1, 4))
    path = tmp_path / FIRST
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:20], lines[2], ""]))
    with pytest.raises(ValueError, match=r"metrics.jsonl:2 is not JSON"):
        metrics.read_file(path)


def test_nan_keeps_the_record_valid_json(tmp_path: Path) -> None:
    with metrics.open_run(tmp_path, QUIET, name="t", total_tokens=9) as run:
        run.write("train", step=1, tokens=1, loss=math.nan, by_source={"a": math.inf})

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    line = json.loads((tmp_path / FIRST).read_text().splitlines()[1], parse_constant=refuse)
    assert line["loss"] == "nan" and line["by_source"] == {"a": "inf"}


def test_wandb_without_its_package_names_the_remedy(tmp_path: Path) -> None:
    try:
        import wandb  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="pip install wandb"):
            metrics.open_run(tmp_path, config.Log(wandb=True, progress=False), name="t", total_tokens=1)
        assert not (tmp_path / FIRST).exists()
    else:
        pytest.skip("wandb is installed here")


class Site:
    """Weights & Biases as far as `Wandb` knows it: what it was asked, and what it refuses."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.asked: list[dict[str, str]] = []
        self.logged: list[int] = []
        self.refusal = refusal

    def init(self, **given: str) -> Site:
        self.asked.append(given)
        if set(given["id"]) & set("/\\#?%:"):
            raise RuntimeError("the id holds characters that it may not")
        if self.refusal:
            raise self.refusal
        return self

    def log(self, scalars: dict[str, float], step: int) -> None:
        if step == 2:
            raise ConnectionError("gone")
        self.logged.append(step)

    def finish(self) -> None:
        self.logged.append(-1)


def test_wandb_takes_any_name_and_a_fresh_run_gets_a_page_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site, settings = Site(), config.Log(wandb=True, progress=False)
    monkeypatch.setitem(sys.modules, "wandb", site)
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    for step in (0, 4, 0):
        with metrics.open_run(tmp_path, settings, name="lr:1e-3/a b", total_tokens=9, resumed_step=step) as run:
            for number in (1, 2, 3):
                run.write("train", step=number, tokens=number, loss=1.0)
    first, resumed, fresh = (asked["id"] for asked in site.asked)
    assert first == resumed != fresh
    assert {asked["project"] for asked in site.asked} == {"theirs"} and site.asked[0]["name"] == "lr:1e-3/a b"
    assert site.logged == [0, 1, 4, 1, 0, 1], "a view that fails is shown no more"
    assert "Wandb shows no more of this run: ConnectionError: gone" in caplog.text
    assert [line["step"] for line in metrics.read_file(tmp_path / FIRST)][:4] == [0, 1, 2, 3]


def test_wandb_without_a_login_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Site(RuntimeError("no key")))
    with metrics.open_run(tmp_path, config.Log(wandb=True, progress=False), name="t", total_tokens=1) as run:
        run.write("train", step=1, tokens=1, loss=1.0)
    assert "RuntimeError: no key" in caplog.text
    assert len(metrics.read_file(tmp_path / FIRST)) == 2


@pytest.mark.torch
def test_tensorboard_has_the_values_of_the_record(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with metrics.open_run(tmp_path, config.Log(tensorboard=True, progress=False), name="t", total_tokens=9) as run:
        run.write("train", step=1, tokens=10, loss=2.5)
        run.write("validation", step=2, tokens=20, loss=2.25, losses={"a": 2.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.5)]
    assert [(e.step, e.value) for e in events.Scalars("validation/losses/a")] == [(2, 2.0)]


def test_progress_lines_are_spaced_and_the_eta_counts_from_the_resume() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = views.Progress(1000, 500, stream=stream, interval_s=10, clock=clock)
    for step in range(1, 6):
        clock.now_s += 4
        line = {
            "kind": "train",
            "step": step,
            "tokens": 500 + 100 * step,
            "loss": 2.0,
            "lr": 1e-3,
            "tokens_per_s": 25.0,
        }
        progress.write(line)
    shown = stream.getvalue().splitlines()
    assert [text.split()[1] for text in shown] == ["1", "4", "5"]  # the first, ten seconds later, the last
    # 100 tokens took 4 s, so the 400 that are left take 16.
    assert "60%" in shown[0] and "loss 2.0000" in shown[0] and shown[0].endswith("ETA 0:00:16")
    assert shown[-1].endswith("ETA 0:00:00")


def test_progress_bar_on_a_terminal_stands_at_the_tokens() -> None:
    stream = Terminal()
    progress = views.Progress(1000, 400, stream=stream)
    progress.write({"kind": "train", "step": 5, "tokens": 750, "loss": 2.0})
    progress.write({"kind": "validation", "step": 5, "tokens": 750, "losses": {"a": 1.5}})
    progress.close()
    assert "75%" in stream.getvalue() and "loss 2.0000" in stream.getvalue()
    assert "validation at step 5: losses[a] 1.5000" in stream.getvalue()


def test_phases_add_up_and_start_anew() -> None:
    clock = Clock()
    phases = measured.Phases(clock)
    for _ in range(2):
        with phases("data"):
            clock.now_s += 1
    with phases("optimizer"):
        clock.now_s += 3
    clock.now_s += 5
    assert phases.pop() == {"data_s": 2, "optimizer_s": 3, "step_s": 10}
    assert phases.pop() == {"step_s": 0}


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("Tesla T4", None),
        (None, None),
    ],
)
def test_peak_of_a_device(device: str | None, peak: float | None) -> None:
    assert utilisation.peak_tflops(device) == peak


def test_mfu_is_the_share_of_the_peak() -> None:
    per_token = shapes.flops_per_token(MODEL, 128)
    tokens_per_s = 0.4 * 2 * 100e12 / per_token  # 40 % of two devices of 100 TFLOPs
    assert utilisation.mfu(MODEL, 128, tokens_per_s, 2, 100.0) == pytest.approx(0.4)
    assert utilisation.mfu(MODEL, 128, tokens_per_s, 2, None) is None


def test_peak_memory_prefers_the_device() -> None:
    assert measured.peak_memory_bytes(7) == 7
    assert 10e6 < measured.peak_memory_bytes() < 1e12


def test_loss_curve_is_a_picture_of_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with metrics.open_run(tmp_path, QUIET, name="t", total_tokens=9) as run:
        for step in range(1, 101):
            run.write("train", step=step, tokens=step * 100, loss=6 - step / 50, lr=1e-3)
        run.write("train", step=101, tokens=10100, loss=math.nan, lr=1e-3)
        run.write("validation", step=100, tokens=10000, loss=4.5)
    drawn: dict[str, object] = {}
    monkeypatch.setattr(plots, "_draw_losses", lambda _axes, *given: drawn.update(given=given))
    path = plots.draw_loss_curve(tmp_path, vocab_size=512)
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", header[16:]) == (1350, 900)
    train, validation, vocab_size = drawn["given"]  # type: ignore[misc]
    assert (len(train), validation, vocab_size) == (100, [(10000, 4.5)], 512)
    assert [path.name for path in tmp_path.iterdir() if "png" in path.name] == [plots.CURVE]


def test_smoothing_neither_lags_nor_leads() -> None:
    line = plots._smoothed([(x, 2.0 * x) for x in range(1000)])
    assert all(y == pytest.approx(2 * x) for x, y in line[20:-20])
    noise = plots._smoothed([(x, 5.0 + (-1) ** x) for x in range(1000)])
    assert max(abs(y - 5) for _, y in noise) < 0.1
    assert plots._smoothed([(7, 1.5)]) == [(7, 1.5)]


def test_curve_without_a_step_says_so(tmp_path: Path) -> None:
    record(tmp_path, range(0))
    with pytest.raises(ValueError, match="before the first step"):
        plots.draw_loss_curve(tmp_path)
