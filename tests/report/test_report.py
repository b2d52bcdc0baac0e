"""The report on runs: its numbers against folders that are added up by hand, and the page that shows them."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from llama31 import report
from llama31.report import accounts, charts, record, text
from llama31.report.accounts import DOWN, LOST, OTHER, STALLS, START, TRAINING, Account
from tests import forkserver
from tests.conftest import Command

BEGAN_S = 1_790_000_000.0
CONFIG = """name: {name}
folder: runs/{name}
model:
  name: tiny
  layers: 8
  hidden_size: 256
  ffn_hidden_size: 768
  heads: 8
  kv_heads: 4
  vocab_size: {vocabulary}
schedule:
  total_tokens: {total}
  peak_lr: {lr}
guard:
  heartbeat_s: 600.0
"""


class Folder:
    """Writes a run folder as the trainer does, with a clock of its own."""

    def __init__(self, path: Path, batch: int = 1000, total: int = 100_000, name: str = "", **config: object) -> None:
        self.path, self.batch, self.now_s, self.number = path, batch, BEGAN_S, -1
        path.mkdir(parents=True)
        settings = {"vocabulary": 8192, "lr": 0.003, **config}
        (path / "config.yaml").write_text(CONFIG.format(name=json.dumps(name or path.name), total=total, **settings))

    def attempt(self, step: int = 0, **info: Any) -> Folder:
        self.number += 1
        self.home = self.path / "attempts" / f"{self.number:04d}"
        self.home.mkdir(parents=True)
        facts = {"attempt": self.number, "time_s": self.now_s, "from_step": step, "from_tokens": step * self.batch}
        facts |= {"host": "n1", "hosts": ["n1", "n2"], "world_size": 16, "commit": "abc", **info}
        (self.home / "attempt.json").write_text(json.dumps(facts))
        return self

    def line(self, kind: str, step: int, **values: Any) -> Folder:
        line = {"kind": kind, "step": step, "tokens": step * self.batch, "time_s": round(self.now_s, 3), **values}
        with (self.home / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return self

    def wait(self, seconds: float) -> Folder:
        self.now_s += seconds
        return self

    def steps(self, first: int, last: int, step_s: float = 10.0, **values: Any) -> Folder:
        """Steps `first` to `last`, each `step_s` long."""
        for step in range(first, last + 1):
            self.wait(step_s).line("train", step, **{"loss": 9 / step**0.3, "step_s": step_s, **values})
        return self

    def end(self, outcome: str, cause: str, step: int) -> Folder:
        facts = {"outcome": outcome, "cause": cause, "step": step, "tokens": step * self.batch, "time_s": self.now_s}
        (self.home / "end.json").write_text(json.dumps(facts))
        return self


def account(folder: Folder, silent_s: float = 0.0) -> Account:
    return Account(record.load([folder.path], folder.now_s + silent_s)[0])


@pytest.fixture
def troubled(tmp_path: Path) -> Folder:
    """Three attempts, 400 s of wall time: every number below is added up by hand."""
    run = Folder(tmp_path / "troubled", total=20_000)
    run.attempt().wait(20).line("start", 0).steps(1, 5)  # 20 start, 50 steps
    run.wait(4).line("checkpoint", 5, stall_s=4, write_s=9, asynchronous=True)
    run.wait(10).line("train", 6, loss=5.0, step_s=14.0)  # the stall lies within the step after it
    run.steps(7, 8)  # 20: lost to the restart
    run.wait(30)  # down, since it died without a word
    run.attempt(6).wait(10).line("start", 6).steps(7, 10)  # 10 start, 40 steps
    run.wait(3).line("checkpoint", 10, stall_s=3)  # between the steps
    run.steps(11, 12).line("event", 12, event="loss_spike", reason="z 12").line(
        "rollback", 10, reason="spike"
    )  # 20 lost
    run.steps(11, 13).wait(6).end("stopped", "stop file", 13)  # 30 steps, 6 other
    run.wait(50).attempt(13, commit="def", hosts=["n1", "n9"]).wait(33).line("start", 13).steps(14, 15)  # 20 steps
    run.wait(6).line("validation", 15, loss=5.5, losses={"web": 5.0, "code": 6.0})
    run.wait(8).line("checkpoint", 15, stall_s=8)
    return run.wait(40).end("failed", "step 16: loss nan", 15)


def test_where_the_time_went(troubled: Folder) -> None:
    result = account(troubled)
    assert result.wall_s == pytest.approx(400)
    assert {name: round(value, 3) for name, value in result.seconds.items()} == {
        TRAINING: 50 + 10 + 40 + 30 + 20,
        LOST: 20 + 20,
        STALLS: 4 + 3 + 8,
        START: 20 + 10 + 33,
        DOWN: 30 + 50,
        OTHER: 6 + 6 + 40,
    }
    assert result.effective == pytest.approx(0.375)


def test_endings_and_causes(troubled: Folder) -> None:
    result = account(troubled)
    rows = [(e.outcome, e.cause, e.step, e.lost_steps, round(e.lost_s), e.down_s) for e in result.endings]
    assert rows == [
        ("died", "without a word (killed, or its node was lost)", 8, 2, 20, pytest.approx(30)),
        ("stopped", "stop file", 13, 0, 0, pytest.approx(50)),  # what its rollback undid is not the stop's
        ("failed", "step 16: loss nan", 15, 0, 0, None),
    ]
    assert result.state == "failed" and len(result.interruptions) == 3
    assert accounts.concerns(result)[0] == "Attempt 2 failed at step 15: step 16: loss nan"


def test_causes_differ_by_more_than_numbers() -> None:
    def ending(number: int, cause: str, down_s: float) -> accounts.Ending:
        return accounts.Ending(number, "failed", cause, 0.0, 1.0, number, 2, 5.0, down_s)

    ends = [ending(0, "loss nan at step 7", 10), ending(1, "disk full", 40), ending(2, "loss nan at step 1e5", 20)]
    result = accounts.causes(ends)
    assert [(c.cause, len(c.endings), c.lost_s, c.down_s) for c in result] == [
        ("disk full", 1, 5.0, 40),
        ("loss nan at step #", 2, 10.0, 30),
    ]


def test_time_of_two_attempts_at_once_is_booked_once(tmp_path: Path) -> None:
    run = Folder(tmp_path / "cut").attempt().line("start", 0).steps(1, 10)
    claimed_s, run.now_s = run.now_s, run.now_s - 50
    run.attempt(5).line("start", 5).steps(6, 7)  # began when the old one, cut off, was at step 5, and trained on
    run.now_s = claimed_s
    result = account(run)
    assert result.wall_s == pytest.approx(100)
    assert result.seconds[TRAINING] == pytest.approx(70) and result.seconds[LOST] == result.seconds[DOWN] == 0
    assert result.endings[0].lost_steps == 5


def test_running_or_dead(tmp_path: Path) -> None:
    run = Folder(tmp_path / "run", total=10_000).attempt().wait(5).line("start", 0).steps(1, 4, tokens_per_s=100.0)
    with (run.home / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 5, "tok')
    alive = account(run, silent_s=599)
    assert (alive.state, alive.share, alive.eta_s) == ("running", 0.4, pytest.approx(60)) and not alive.interruptions
    assert accounts.concerns(alive) == []
    assert account(run, silent_s=601).state == "died"  # guard.heartbeat_s is 600
    (run.home / "stalled").mkdir()
    (run.home / "stalled" / "rank-00003.txt").write_text("stack")
    assert account(run, silent_s=601).endings[0].cause == "no progress: rank 3"
    run.end("finished", "the schedule is at its end", 4)
    assert account(run, silent_s=1e9).state == "finished"


def test_concerns(tmp_path: Path) -> None:
    run = Folder(tmp_path / "run").attempt().line("start", 0).steps(1, 3, loss="nan")
    run.line("event", 3, event="divergence", ranks=[1])
    run.line("ranks", 3, phases={}, slow=[{"rank": 7, "host": "n4", "phase": "probe_s", "factor": 2.0}])
    (run.path / "stop").touch()
    assert accounts.concerns(account(run)) == [
        "A stop has been requested",
        "Replicas diverged once, last at step 3",
        "The loss of 3 steps is not finite, last at step 3",
        "Slow at the last comparison: rank 7 on n4",
    ]


# --- the page ---


class Page(HTMLParser):
    """Tags with their attributes, checked to be closed in order, and the text between them."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1:] not in (["script"], ["style"]):
            self.text.append(data.strip())

    def tile(self, name: str) -> str:
        return self.text[self.text.index(name) + 1]


def page(*folders: Folder, silent_s: float = 0.0) -> Page:
    path = report.write([folder.path for folder in folders], None, folders[-1].now_s + silent_s)
    assert path == folders[0].path / "report.html" and [*folders[0].path.glob(".report*")] == []
    html = path.read_text()
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "") and "@import" not in html and "url(" not in html
    result = Page(html)
    for tag, attributes in result.tags:
        assert tag not in ("link", "iframe", "object", "base") and "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on") or not re.fullmatch("[a-zA-Z-]+", name)]
        assert re.fullmatch(r"[\w -]*", attributes.get("class") or "")
    numbers = [value for _, attributes in result.tags for value in (attributes.get("d"), attributes.get("x")) if value]
    assert not [value for value in numbers if "nan" in value or "inf" in value]
    return result


def simulated(path: Path, steps: int, **config: Any) -> Folder:
    """A run with everything that a line may hold."""
    source = random.Random(7)
    run = (
        Folder(path, batch=4096, total=4096 * steps, **config)
        .attempt(packages={"torch": "2.6"})
        .wait(60)
        .line("start", 0)
    )
    (run.home / "preflight.json").write_text(
        json.dumps({"nodes": [{"host": "n7", "tflops": 1}], "problems": ["n7 slow"]})
    )
    for step in range(1, steps + 1):
        step_s = 1 + source.random() / 10
        values = {"loss": 2 + 7 / step + source.random() / 10, "grad_norm": source.random(), "lr": 1e-3 / step}
        rates = {"tokens_per_s": 4096 / step_s, "tflops": 400.0, "mfu": 0.4 / step_s, "batch_tokens": 4096}
        phases = {"data_s": 0.1, "forward_backward_s": 0.8, "optimizer_s": 0.05, "step_s": step_s}
        run.wait(step_s).line("train", step, sequence_length=256, **values, **rates, **phases)
        if step % 10 == 0:
            spread = {"min": 0.7, "median": 0.8, "max": 1.6, "slowest": 5}
            slow = [{"rank": 5, "host": "n7", "phase": "forward_backward_s", "factor": 2.0}]
            run.line("ranks", step, phases={"forward_backward_s": spread}, slow=slow)
            run.line("validation", step, loss=2.5, losses={"web": 2.4, "code": 2.6}, validation_s=0.1)
            run.line("checkpoint", step, path="x", asynchronous=True, stall_s=0.05, write_s=3.0)
    return run


def test_headline(tmp_path: Path) -> None:
    result = page(simulated(tmp_path / "run", 40), silent_s=5)
    assert "▶ running" in result.text
    assert (
        result.tile("Step") == "40" and result.tile("Tokens") == "163.8k" and result.tile("Held-out loss") == "2.5000"
    )
    assert result.tile("Newest checkpoint") == "step 40" and result.tile("Interruptions") == "0"
    assert "100.0% of 164k" in result.text and "last sign of life 5.0 s ago" in result.text
    assert result.tile("MFU").startswith("38.") and result.tile("Time left") == "0.0 s"
    titles = {"Loss", "Loss, second half", "Gradient norm", "Learning rate", "Batch and sequence length", "Checkpoints"}
    titles |= {
        "Tokens per second",
        "Model FLOPs utilisation",
        "Time per phase",
        "Ranks: forward and backward",
        "Progress",
    }
    assert titles <= set(result.text) and "not recorded" not in result.text
    assert {"held out: web", "held out: code", "n7 slow", "packages.torch", "Slow ranks"} <= set(result.text)
    assert any("ln V = 9.01" in word for word in result.text)


def test_lengths_of_documents_where_rows_hold_whole_ones(tmp_path: Path) -> None:
    """Shares by length, of which a step leaves out what it has none of; and no such chart for other runs."""
    run = Folder(tmp_path / "run").attempt().wait(1).line("start", 0)
    for step in range(1, 5):
        shares = {"0": 0.25, "8192": 0.75} if step % 2 else {"8192": 1.0}
        recorded = {"document_tokens": 9000.0, "piece_tokens": 4096.0, "padding_share": 0.01, "length_shares": shares}
        run.wait(1).line("train", step, loss=2.0, sequence_length=8192, **recorded)
    result = page(run)
    assert {"Length of documents", "Tokens by length of their document"} <= set(result.text)
    at = result.text.index("Tokens by length of their document")
    legend = result.text[at + 1 : at + 7]
    assert legend == ["from 0 tokens", "12.5%", "from 8,192 tokens", "87.5%", "padding, of all places", "1.0%"]
    assert "whole documents" in result.text and "9,000" in result.text
    assert "Length of documents" not in page(simulated(tmp_path / "other", 3)).text


def test_page_of_a_troubled_run(troubled: Folder) -> None:
    (troubled.path / "decisions.jsonl").write_text('{"skip": [11, 12]}\n{"skip": [3')
    result = page(troubled)
    assert (
        "▲ failed" in result.text and result.tile("Effective time") == "37.5%" and result.tile("Interruptions") == "3"
    )
    assert "1 planned, 2 not; 3 attempts" in result.text and "Interruptions by cause" in result.text
    assert "skip: [11, 12]" in result.text and "z 12" in " ".join(result.text)
    assert "hosts: gone, new" in result.text and "n9" in result.text  # what changed between attempts
    assert accounts.DEFINITION in result.text


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_short_runs(steps: int, tmp_path: Path) -> None:
    result = page(simulated(tmp_path / "run", steps))
    assert result.tile("Step") == str(steps) and "No training step yet." not in result.text


def test_run_without_a_step(tmp_path: Path) -> None:
    run = Folder(tmp_path / "run")
    (run.path / "config.yaml").unlink()
    (run.path / "attempts" / "0000").mkdir(parents=True)  # claimed, and nothing written yet
    result = page(run)
    assert "No training step yet." in result.text and "no config.yaml in the run folder" in result.text


def test_numbers_that_are_none(tmp_path: Path) -> None:
    run = simulated(tmp_path / "run", 30)
    for step, value in ((31, "nan"), (32, "inf"), (33, "-inf"), (34, None)):
        run.wait(1).line(
            "train", step, loss=value, grad_norm=value, lr=value, step_s=value, mfu=value, tokens_per_s=value
        )
    run.line("validation", 34, loss="nan", losses={"web": "nan", "code": 2.0})
    result = page(run)
    assert result.tile("Held-out loss") == "nan"
    assert any("The loss of 3 steps is not finite, last at step 33" in word for word in result.text)


def test_files_of_another_kind(tmp_path: Path) -> None:
    run = simulated(tmp_path / "run", 12)
    (run.path / "config.yaml").write_text("model: [1\n")
    (run.path / "decisions.jsonl").write_text("no json\n3\n")
    (run.home / "attempt.json").write_text("[]")
    (run.home / "preflight.json").write_text('{"nodes": 3, "problems": null}')
    run.line("ranks", 12, phases={"data_s": 3, "x_s": {"min": "nan"}}, slow=[3]).line("checkpoint", 12)
    run.line("validation", 12, losses=[1]).line("event", 12).line("train", 13)
    result = page(run)
    assert "Files that could not be read" in result.text and result.tile("Step") == "13"


def test_nothing_from_files_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
    run = simulated(tmp_path / "<script>alert(1)<b>", 12, name=evil)
    (run.path / "config.yaml").write_text(f"name: {json.dumps(evil)}\nmodel: {{name: {json.dumps(evil)}}}\n")
    run.line("validation", 12, loss=1.0, losses={evil: 1.0}).line("event", 12, event=evil, reason=evil)
    slow = {"rank": evil, "host": evil, "phase": evil, "factor": evil}
    run.line("ranks", 12, phases={evil: {"slowest": evil, "median": 1.0, "min": 1.0, "max": 1.0}}, slow=[slow])
    (run.path / "decisions.jsonl").write_text(json.dumps({evil: evil}) + "\n")
    (run.path / "exclude_nodes").write_text(evil)
    (run.home / "stalled").mkdir()
    (run.home / "stalled" / "<script>.txt").write_text(evil)
    (run.home / "preflight.json").write_text(json.dumps({"nodes": [{evil: evil}], "problems": [evil]}))
    run.end(evil, evil, 12)
    run.attempt(12, host=evil, command=[evil], packages={evil: evil}, weights_from=evil, slurm_job=evil)
    other = simulated(tmp_path / "other", 12)
    result = page(run, other)
    assert [tag for tag, _ in result.tags].count("script") == 1 and "img" not in [tag for tag, _ in result.tags]
    assert any(evil in word for word in result.text)


def test_runs_side_by_side(tmp_path: Path) -> None:
    runs = [simulated(tmp_path / place / "run", 20, lr=lr) for place, lr in (("a", 0.001), ("b", 0.002))]
    result = page(*runs)
    assert {"2 runs", "Side by side", "Training loss over time", "Differences of the configs"} <= set(result.text)
    assert "schedule.peak_lr" in result.text and "0.002" in result.text
    assert str(tmp_path / "a" / "run") in {
        attributes.get("title") for _, attributes in result.tags
    }  # names were the same
    assert {"#run-0", "#run-1"} <= {attributes.get("href") for _, attributes in result.tags}


def test_many_steps_and_attempts_stay_a_small_page(tmp_path: Path) -> None:
    run = Folder(tmp_path / "run", total=10**9, name="long")
    for number in range(60):
        run.attempt(100 * number).line("start", 100 * number)
        run.steps(100 * number + 1, 100 * number + 130, loss=2.0, grad_norm=1.0).wait(30)
    result = page(run)
    assert (run.path / "report.html").stat().st_size < 1_000_000
    assert result.tile("Interruptions") == "59" and result.tile("Step") == "6,030"


def test_thinned_points_draw_the_same_picture() -> None:
    source = random.Random(1)
    points = [charts.Point(x, source.random()) for x in range(200_000)]
    points[77_777], points[123_456] = charts.Point(77_777, 50.0), charts.Point(123_456, -50.0)
    result = charts.thinned(points, 300, 0, 200_000)
    assert len(result) <= 4 * 300 and result == sorted(result)
    assert result[0] == points[0] and result[-1] == points[-1] and {points[77_777], points[123_456]} <= set(result)
    assert charts.thinned(points[:10], 300, 0, 9) == points[:10]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("extent", [1e-9, 0.3, 1.0, 7.0, 123.0, 9e12])
def test_ticks_are_few_and_inside(extent: float, log: bool) -> None:
    scale = charts.Scale(extent if log else 0.0, 50 * extent if log else extent, 0, 100, log)
    for ticks in (scale.ticks(5), *([] if log else [scale.ticks(5, seconds=True)])):
        assert 1 <= len(ticks) <= 7 and all(scale.low * 0.999 <= tick <= scale.high * 1.001 for tick in ticks)


def test_numbers_as_text() -> None:
    assert [text.count(x) for x in (0, 999, 1000, 999_999, 15.6e12, 0.5)] == ["0", "999", "1k", "1M", "15.6T", "0.5"]
    assert [text.duration(x) for x in (0.004, 12.34, 245, 59.99, 3 * 3600, 90061)] == [
        "4 ms", "12.3 s", "4:05 min", "1:00 min", "3:00:00", "1 d 1:01:01",
    ]  # fmt: skip
    assert [text.percent(x) for x in (0.0, 1e-6, 0.973, 0.99999, 1.0)] == ["0.0%", "<0.1%", "97.3%", ">99.9%", "100.0%"]
    assert [text.fixed(x) for x in (None, 1.23456, 1e-5, 0.0)] == [text.NONE, "1.2346", "1.00e-05", "0"]


# --- the command ---


def test_refusals(tmp_path: Path) -> None:
    old, empty = tmp_path / "old", tmp_path / "empty"
    for folder in (old, empty):
        folder.mkdir()
    (old / "metrics.jsonl").touch()
    run = simulated(tmp_path / "run", 1)
    with pytest.raises(ValueError) as caught:
        report.write([tmp_path / "none", old, empty, run.path, f"{run.path}/../run"])
    lines = str(caught.value).splitlines()
    assert lines[0] == f"runs={tmp_path}/none: there is no such folder; give the folder of a run, such as runs/demo"
    assert lines[1].startswith(
        f"runs={old}: there is a metrics.jsonl but no attempts/: an older version wrote it; move it"
    )
    assert lines[2].startswith(f"runs={empty}: holds no attempt (attempts/0000), but nothing; give the folder of a run")
    assert lines[3].endswith("is named twice; name each run once") and len(lines) == 4
    with pytest.raises(ValueError, match=r"runs=\[\]: names no run"):
        report.write([])
    run.line("train", 2)
    (run.home / "metrics.jsonl").write_text("broken\n")
    with pytest.raises(ValueError, match=r"runs=.*run: .*metrics.jsonl:1 is not JSON"):
        report.write([run.path])


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    run = simulated(tmp_path / "run", 1)
    with pytest.raises(ValueError, match="output=/proc/x.html: cannot be written .*; give another file"):
        report.write([run.path], "/proc/x.html")


def test_command_writes_the_page_without_torch(tmp_path: Path, quick: Command) -> None:
    run = simulated(tmp_path / "run", 3)
    words = ["-m", "recipes.report", f"runs=[{run.path}]", f"output={tmp_path}/page.html"]
    result = quick(*words, check=True, env={forkserver.TELL: "1"})
    assert result.stdout == f"report: {tmp_path}/page.html (0.0 MB)\n" and (tmp_path / "page.html").exists()
    assert result.stderr.splitlines()[-1] in ("imported:", "imported: numpy")


def test_command_helps_and_refuses(quick: Command) -> None:
    assert "runs  (" in quick("-m", "recipes.report", "--help", check=True).stdout
    wrong = quick("-m", "recipes.report", "run=[x]")
    assert wrong.returncode == 2 and "run=[x]: no such key" in wrong.stderr
    nothing = quick("-m", "recipes.report")
    assert nothing.returncode == 1 and nothing.stderr.startswith("python -m recipes.report: runs=[]: names no run")
