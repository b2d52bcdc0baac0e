"""What the guard sees and says, without other processes, and the watchdog in processes of its own."""

from __future__ import annotations

import faulthandler
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama31 import config
from llama31.resilience import watchdog
from llama31.resilience.guard import EVENTS, KINDS, Control, RunGuard, Seen, Verdict
from llama31.resilience.ranks import Odd, compare_times, digest, minorities
from llama31.resilience.watchdog import EXIT_CODE, StalledRank, Watchdog, blame
from tests.processes import LIMIT_S, search_path

pytestmark = pytest.mark.torch
NAN, INF = math.nan, math.inf


def settings(**keys: Any) -> config.Guard:
    return replace(config.Guard(window_steps=16), **keys)


def warm(guard: RunGuard, steps: int = 16, first: int = 0) -> int:
    """Steps that nobody would remark on: losses 2.0 and 2.1, norms 1.0 and 1.1; returns the next step."""
    for step in range(first, first + steps):
        seen = Seen(step, 2.0 + 0.1 * (step % 2), 1.0 + 0.1 * (step % 2))
        verdict = guard.judge(seen)
        assert verdict == Verdict(), verdict
        guard.note(seen, verdict)
    return first + steps


def pass_by(guard: RunGuard, seen: Seen) -> Verdict:
    verdict = guard.judge(seen)
    guard.note(seen, verdict)
    return verdict


# --- judging ---


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (-INF, 1.0), (2.0, NAN), (2.0, INF)])
@pytest.mark.parametrize("action", ["skip", "rollback", "stop"])
def test_a_step_that_is_not_finite_is_not_applied(loss: float, norm: float, action: str) -> None:
    guard = RunGuard(settings(on_nonfinite=action))
    verdict = guard.judge(Seen(0, loss, norm))  # also without any history
    assert (verdict.kind, verdict.event) == (action, "nonfinite")
    assert str(loss) in verdict.reason and str(norm) in verdict.reason


def test_ranges_are_those_of_the_data_to_leave_out() -> None:
    keys = {"on_nonfinite": "rollback", "skip_before_steps": 3, "skip_after_steps": 7}
    verdict = RunGuard(settings(**keys)).judge(Seen(40, NAN, 1.0))
    assert (verdict.before_step, verdict.from_step, verdict.to_step) == (37, 37, 48)
    verdict = RunGuard(settings(**keys)).judge(Seen(1, NAN, 1.0))
    assert (verdict.before_step, verdict.from_step, verdict.to_step) == (0, 0, 9)
    verdict = RunGuard(settings()).judge(Seen(40, NAN, 1.0))
    assert (verdict.kind, verdict.from_step, verdict.to_step) == ("skip", 40, 41)


def test_skips_in_a_row_are_bounded() -> None:
    guard = RunGuard(settings(max_skips=2))
    bad = Seen(0, NAN, 1.0)
    assert [pass_by(guard, bad).kind for _ in range(4)] == ["skip", "skip", "stop", "stop"]
    assert "guard.max_skips=2" in guard.judge(bad).reason
    guard = RunGuard(settings(max_skips=2))
    for step in range(6):  # a good step in between, and they are not in a row
        assert [pass_by(guard, Seen(step, NAN, 1.0)).kind for _ in range(2)] == ["skip", "skip"]
        assert pass_by(guard, Seen(step, 2.0, 1.0)).kind == "continue"


def test_rollbacks_of_an_attempt_are_bounded() -> None:
    guard = RunGuard(settings(on_nonfinite="rollback", max_rollbacks=2))
    kinds = []
    for _ in range(3):
        kinds.append(pass_by(guard, Seen(5, NAN, 1.0)).kind)
        guard.restore(None, 4)
    assert kinds == ["rollback", "rollback", "stop"]


@pytest.mark.parametrize(
    ("event", "key", "loss", "norm"), [("loss_spike", "on_loss_spike", 9.0, 1.0), ("norm_spike", "on_norm_spike", 2, 9)]
)
@pytest.mark.parametrize("action", ["continue", "skip", "rollback", "stop"])
def test_spikes_are_named_and_handled(event: str, key: str, loss: float, norm: float, action: str) -> None:
    guard = RunGuard(settings(**{key: action}))
    step = warm(guard)
    verdict = guard.judge(Seen(step, loss, norm))
    assert (verdict.kind, verdict.event) == (action, event)
    assert "deviations above" in verdict.reason and f"step {step + 1}" in verdict.reason


def test_a_spike_is_measured_in_standard_deviations_of_the_window() -> None:
    guard = RunGuard(settings(loss_zscore=4.0))
    step = warm(guard)  # mean 2.05, deviation 0.05
    assert guard.judge(Seen(step, 2.05 + 0.05 * 3.9, 1.0)).event == ""
    assert guard.judge(Seen(step, 2.05 + 0.05 * 4.1, 1.0)).event == "loss_spike"


def test_only_upward() -> None:
    guard = RunGuard(settings())
    assert guard.judge(Seen(warm(guard), 0.001, 0.001)).event == ""


def test_a_constant_window_has_a_least_deviation() -> None:
    guard = RunGuard(settings())
    for step in range(16):
        assert pass_by(guard, Seen(step, 2.0, 1.0)).event == ""
    assert guard.judge(Seen(16, 2.0 * 1.007, 1.0)).event == ""
    assert guard.judge(Seen(16, 2.0 * 1.009, 1.0)).event == "loss_spike"


def test_nothing_is_judged_before_a_quarter_of_the_window() -> None:
    guard = RunGuard(settings())
    warm(guard, 3)
    assert guard.judge(Seen(3, 1e6, 1e6)).event == ""
    warm(guard, 1, first=3)
    assert guard.judge(Seen(4, 1e6, 1.0)).event == "loss_spike"


def test_a_spike_that_was_let_pass_does_not_hide_the_next() -> None:
    guard = RunGuard(settings())
    step = warm(guard)
    for loss in (4.0, 4.0, 4.0):
        assert pass_by(guard, Seen(step, loss, 1.0)).event == "loss_spike"
        step += 1
    warm(guard, 8, first=step)
    assert guard.judge(Seen(step + 8, 4.0, 1.0)).event == "loss_spike"


def test_a_level_that_stays_is_no_spike_for_ever() -> None:
    guard = RunGuard(settings())
    step = warm(guard)
    events = [pass_by(guard, Seen(step + i, 4.0 + 0.1 * (i % 2), 1.0)).event for i in range(12)]
    assert events == ["loss_spike"] * 4 + [""] * 8


def test_the_hardest_answer_counts_and_all_are_told() -> None:
    guard = RunGuard(settings(on_loss_spike="skip", on_norm_spike="rollback"))
    verdict = guard.judge(Seen(warm(guard), 9.0, 9.0))
    assert (verdict.kind, verdict.event) == ("rollback", "norm_spike")
    assert "loss 9" in verdict.reason and "gradient norm 9" in verdict.reason


def test_divergence_goes_back_to_where_replicas_were_equal() -> None:
    guard = RunGuard(settings(), step=10)
    odd = (Odd(3, "n1", True),)
    assert guard.judge(Seen(12, 2.0, 1.0, odd)).before_step == 10
    for step in (12, 13, 14):
        pass_by(guard, Seen(step, 2.0, 1.0, () if step == 13 else None))
    verdict = guard.judge(Seen(15, 2.0, 1.0, odd))
    assert (verdict.kind, verdict.event, verdict.before_step) == ("rollback", "divergence", 13)
    assert verdict.from_step == verdict.to_step, "the data is not to blame"
    assert "rank 3 on n1" in verdict.reason and "cannot be told" not in verdict.reason
    unsure = Seen(15, 2.0, 1.0, (Odd(0, "n0", False), Odd(1, "n1", False)))
    assert "cannot be told" in guard.judge(unsure).reason
    assert RunGuard(settings(on_divergence="stop")).judge(Seen(15, 2.0, 1.0, odd)).kind == "stop"


def test_a_slow_host_is_done_without_only_where_asked() -> None:
    seen = Seen(5, 2.0, 1.0, slow=("n7",))
    assert RunGuard(settings()).judge(seen) == Verdict()
    verdict = RunGuard(settings(on_slow_rank="exclude")).judge(seen)
    assert (verdict.kind, verdict.event) == ("stop", "slow_rank") and "n7" in verdict.reason


def test_judging_changes_nothing() -> None:
    guard = RunGuard(settings(on_loss_spike="skip"))
    step = warm(guard)
    before = json.dumps(guard.history())
    for loss in (2.0, 9.0, NAN):
        guard.judge(Seen(step, loss, 1.0))
    assert json.dumps(guard.history()) == before


ACTIONS = [
    {"on_loss_spike": "skip", "on_norm_spike": "continue", "max_skips": 2},
    {"on_loss_spike": "continue", "on_norm_spike": "skip", "on_nonfinite": "skip"},
    {"on_loss_spike": "rollback", "on_nonfinite": "stop", "max_rollbacks": 100},
]


@pytest.mark.parametrize("actions", ACTIONS)
def test_resumed_judges_as_uninterrupted(actions: dict[str, Any]) -> None:
    """Interrupted anywhere, with its history through a checkpoint's JSON: the same verdicts to the end."""
    for seed in range(3):
        draw = random.Random(seed)
        steps = [planted(draw, step) for step in range(80)]
        whole, verdicts, histories = RunGuard(settings(**actions)), [], []
        for seen in steps:
            histories.append(json.dumps(whole.history()))
            verdicts.append(pass_by(whole, seen))
        assert {"continue"} < {verdict.kind for verdict in verdicts}
        assert {"loss_spike", "norm_spike"} & {verdict.event for verdict in verdicts}
        for cut in range(80):
            resumed = RunGuard(settings(**actions))
            resumed.restore(json.loads(histories[cut]), cut)
            resumed.rollbacks = sum(verdict.kind == "rollback" for verdict in verdicts[:cut])
            assert [pass_by(resumed, seen) for seen in steps[cut:]] == verdicts[cut:]
            assert resumed.history() == whole.history()


def planted(draw: random.Random, step: int) -> Seen:
    """A noisy step, one in ten with a spike, a NaN, or unequal replicas; some in a row with each."""
    loss, norm = 3.0 - 0.01 * step + draw.gauss(0, 0.02), abs(draw.gauss(1, 0.05))
    chance = draw.random()
    if chance < 0.04 or step in range(30, 37):
        loss *= 1.5
    elif chance < 0.08 or step in range(45, 52):
        norm *= 5
    elif chance < 0.1 or step in range(60, 65):
        loss = NAN
    odd = None if step % 5 else ((Odd(1, "n1", True),) if chance > 0.95 else ())
    return Seen(step, loss, norm, odd)


def test_a_window_that_becomes_shorter_keeps_the_last_values() -> None:
    guard = RunGuard(settings())
    warm(guard)
    short = RunGuard(settings(window_steps=8))
    short.restore(guard.history(), 16)
    assert short.history()["losses"]["values"] == guard.history()["losses"]["values"][-8:]


# --- control ---


CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("asked", range(8))
def test_a_control_survives_its_tensor(kind: str, event: str, asked: int) -> None:
    control = Control(Verdict(kind, event), bool(asked & 1), bool(asked & 2), bool(asked & 4))
    assert Control.from_tensor(control.to_tensor(0, CPU)) == control


def test_only_rank_0_sends_a_verdict_and_any_rank_may_ask() -> None:
    mine = Control(Verdict("stop", "nonfinite"), stop=True)
    assert Control.from_tensor(mine.to_tensor(3, CPU)) == Control(stop=True)


def test_many_ranks_may_ask_for_the_same() -> None:
    """The sum over 131,072 ranks, each of which asks for everything, still says what rank 0 says."""
    first = Control(Verdict("stop", EVENTS[-1]), True, True, True)
    other = Control(Verdict("skip", "nonfinite"), True, True, True)
    summed = first.to_tensor(0, CPU) + 131_071 * other.to_tensor(1, CPU)
    assert summed.item() > 0 and Control.from_tensor(summed) == first


# --- digests ---

Change = Callable[[list[tuple[str, torch.Tensor]]], Any]


def flip(tensor: torch.Tensor, place: int, bit: int) -> None:
    words = tensor.view(-1).view(torch.int16 if tensor.element_size() == 2 else torch.int32)
    words[place] ^= torch.tensor(1, dtype=words.dtype) << bit


def named(dtype: torch.dtype) -> list[tuple[str, torch.Tensor]]:
    """Two equal matrices of more than a block, a vector of ones, and one of a block exactly."""
    generator = torch.Generator().manual_seed(1)
    big = torch.randn(401, 257, generator=generator).to(dtype)
    return [
        ("a", big),
        ("b", big.clone()),
        ("norm", torch.ones(64, dtype=dtype)),
        ("c", torch.randn(256, 256, generator=generator).to(dtype)),
    ]


def exchange_equal_shapes(tensors: list[tuple[str, torch.Tensor]]) -> None:
    tensors[0][1][0, 0] += 1
    tensors[0], tensors[1] = (tensors[0][0], tensors[1][1]), (tensors[1][0], tensors[0][1])


CHANGES: dict[str, Change] = {
    "lowest bit of the first": lambda tensors: flip(tensors[0][1], 0, 0),
    "sign of the last": lambda tensors: flip(tensors[0][1], -1, 15),
    "last bit of a vector": lambda tensors: flip(tensors[2][1], 63, 0),
    "the same bit twice in one block": lambda tensors: [flip(tensors[0][1], i, 15) for i in (5, 9)],
    "the same bit in two blocks": lambda tensors: [flip(tensors[0][1], i, 3) for i in (5, 65541)],
    "the same bit in two parameters": lambda tensors: [flip(tensors[i][1], 5, 3) for i in (0, 1)],
    "two elements swapped": lambda tensors: tensors[0][1][0, :2].copy_(tensors[0][1][0, :2].flip(0)),
    "minus zero": lambda tensors: tensors[3][1][0, 0].copy_(torch.tensor(-0.0)),
    "another name": lambda tensors: tensors.__setitem__(0, ("other", tensors[0][1])),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_bit_changes_the_digest(change: Change, dtype: torch.dtype) -> None:
    mine, other = named(dtype), named(dtype)
    mine[3][1][0, 0] = other[3][1][0, 0] = 0.0
    assert digest(mine) == digest(other)
    change(other)
    assert digest(mine) != digest(other)


def test_parameters_that_change_places_change_the_digest() -> None:
    mine, other = named(torch.float32), named(torch.float32)
    mine[0][1][0, 0] += 1
    exchange_equal_shapes(other)
    assert digest(mine) != digest(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_bit_of_an_element_counts(dtype: torch.dtype) -> None:
    mine = [("a", torch.randn(3, 5, generator=torch.Generator().manual_seed(2)).to(dtype))]
    result = {digest(mine)}
    for bit in range(8 * mine[0][1].element_size()):
        other = [("a", mine[0][1].clone())]
        flip(other[0][1], 7, bit)
        result.add(digest(other))
    assert len(result) == 1 + 8 * mine[0][1].element_size()


def test_a_digest_is_of_values_and_not_of_their_place_in_memory() -> None:
    flat = torch.randn(1001)
    assert digest([("a", flat[1:].view(10, 100))]) == digest([("a", flat[1:].clone().view(10, 100))])
    assert digest([("a", flat[1:].view(10, 100).t())]) == digest([("a", flat[1:].view(10, 100).t().contiguous())])
    assert digest([("a", torch.empty(0))]) == digest([("a", torch.empty(0))])


# --- replicas ---

HOSTS = [f"n{rank // 2}" for rank in range(8)]


def test_equal_replicas_are_not_odd() -> None:
    assert minorities([(10 + r % 2, 5, r % 2, 0) for r in range(8)], HOSTS) == ()


def test_the_minority_is_named() -> None:
    table = [(10 + r % 2, 5, r % 2, 0) for r in range(8)]  # tp 2, dp 4
    table[5] = (99, 5, 1, 0)
    assert minorities(table, HOSTS) == (Odd(5, "n2", True),)
    table[2] = (98, 5, 0, 0)
    assert minorities(table, HOSTS) == (Odd(2, "n1", True), Odd(5, "n2", True))


def test_of_two_replicas_both_are_named() -> None:
    table = [(10, 5, 0, 0), (11, 5, 0, 0)]
    assert minorities(table, HOSTS) == (Odd(0, "n0", False), Odd(1, "n0", False))


def test_all_are_named_without_a_majority() -> None:
    assert [odd.certain for odd in minorities([(n, 5, 0, 0) for n in range(4)], HOSTS)] == [False] * 4


def test_vectors_are_compared_over_tensor_parallel_ranks() -> None:
    table = [(10 + r, 5, r, 0) for r in range(4)]  # tp 4, no data parallelism
    table[2] = (12, 6, 2, 0)
    assert minorities(table, HOSTS) == (Odd(2, "n1", True),)
    stages = [(10 + r, 5 + r // 2, r % 2, r // 2) for r in range(4)]  # stages have other norms
    assert minorities(stages, HOSTS) == ()


def test_tensor_parallel_ranks_settle_a_tie_of_replicas() -> None:
    table = [(10 + r % 2, 5, r % 2, 0) for r in range(4)]  # tp 2, dp 2: each parameter has two replicas
    table[3] = (77, 6, 1, 0)  # the wrong parameter is a vector, of which there are four
    assert minorities(table, HOSTS) == (Odd(3, "n1", True),)


# --- times ---


def test_slow_ranks_are_named_with_their_phase() -> None:
    table = [[0.01, 1.0, 0.004] for _ in range(8)]
    table[6] = [0.01, 1.0, 0.012]
    table[3] = [0.2, 1.7, 0.004]
    result = compare_times(table, ("data_s", "forward_backward_s", "probe_s"), HOSTS, 1.5)
    assert result.line()["slow"] == [
        {"rank": 3, "host": "n1", "phase": "data_s", "factor": 20.0},
        {"rank": 6, "host": "n3", "phase": "probe_s", "factor": 3.0},
        {"rank": 3, "host": "n1", "phase": "forward_backward_s", "factor": 1.7},
    ]
    assert result.phases["data_s"] == {"min": 0.01, "median": 0.01, "max": 0.2, "slowest": 3}


def test_noise_of_tiny_steps_is_no_alarm() -> None:
    table = [[0.0001, 0.002, 0.0004], [0.004, 0.006, 0.0012]]
    assert compare_times(table, ("data_s", "forward_backward_s", "probe_s"), HOSTS, 1.5).slow == []


def test_of_two_ranks_one_can_be_slow() -> None:
    result = compare_times([[1.0], [1.6]], ("forward_backward_s",), HOSTS, 1.5).slow
    assert [(one["rank"], one["factor"]) for one in result] == [(1, 1.6)]


# --- watchdog ---


def stalled(rank: int, step: int = 7, phase: str = "forward_backward", waiting: bool = True) -> StalledRank:
    return StalledRank(rank, HOSTS[rank], 100 + rank, step, phase, 30.0, waiting, "f (x.py:1)", 0.0)


def suspects(*result: StalledRank, world: int = 4) -> list[int]:
    return [one.rank for one in blame(result, HOSTS[:world])]


def test_who_is_to_blame() -> None:
    assert suspects(*(stalled(r) for r in (0, 1, 3))) == [2], "wrote nothing"
    assert suspects(stalled(0), stalled(1), stalled(2, step=6), stalled(3)) == [2], "is a step behind"
    assert suspects(stalled(0), stalled(1), stalled(2, phase="data", waiting=False), stalled(3)) == [2], (
        "waits for its data"
    )
    assert suspects(stalled(0), stalled(1, waiting=False), stalled(2), stalled(3)) == [1], "is in no collective"
    assert suspects(stalled(0, step=8), stalled(1, step=8), stalled(2), stalled(3, waiting=False)) == [3]
    assert suspects(*(stalled(r) for r in range(4))) == [], "all alike"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def dog(tmp_path: Path) -> Iterator[tuple[Watchdog, Clock, list[int]]]:
    """A watchdog whose clock the test turns and whose thread does not run; and the codes it left with."""
    clock, left = Clock(), []
    yield (
        Watchdog(
            tmp_path / "stalled", 1, ["n0", "n1"], 60.0, clock=clock, pause=lambda seconds: None, leave=left.append
        ),
        clock,
        left,
    )


Dog = tuple[Watchdog, Clock, list[int]]


def test_beats_keep_it_quiet(dog: Dog) -> None:
    watch, clock, left = dog
    for step in range(5):
        watch.beat(step, "data")
        clock.now += 59
        watch.look()
    assert left == [] and not watch.folder.exists()


def test_the_first_step_may_take_longer(dog: Dog) -> None:
    watch, clock, left = dog
    watch.beat(0, "forward_backward")
    clock.now += 10_000
    watch.look()
    assert left == []
    watch.beat(1, "data")
    watch.beat(0, "forward_backward")  # a rollback to the beginning does not disarm it
    clock.now += 61
    watch.look()
    assert left == [EXIT_CODE]


def test_a_phase_may_have_a_limit_of_its_own(dog: Dog) -> None:
    watch, clock, left = dog
    watch.beat(3, "save", limit_s=600)
    clock.now += 599
    watch.look()
    watch.beat(3, "validation", limit_s=math.inf)
    clock.now += 1e6
    watch.look()
    assert left == []
    watch.beat(3, "save", limit_s=600)
    clock.now += 601
    watch.look()
    assert left == [EXIT_CODE]


def test_a_stall_leaves_stacks_and_a_culprit(dog: Dog, capfd: pytest.CaptureFixture[str]) -> None:
    watch, clock, left = dog
    watch.beat(7, "forward_backward")
    clock.now += 61
    watch.look()
    first, stacks = watch.path.read_text().split("\n", 1)
    assert watch.path.name == "rank-00001.txt"
    written = json.loads(first)
    assert (written["rank"], written["host"], written["pid"], written["step"]) == (1, "n1", os.getpid(), 7)
    assert (written["phase"], written["since_s"]) == ("forward_backward", 61.0)
    assert "test_a_stall_leaves_stacks_and_a_culprit" in stacks
    assert [one.rank for one in watchdog.read(watch.folder)] == [1]
    assert json.loads((watch.folder / watchdog.BLAME).read_text())["suspects"][0]["host"] == "n0"
    assert "rank 0 on n0 wrote nothing" in capfd.readouterr().err
    assert left == [EXIT_CODE]


def test_the_lowest_rank_that_wrote_has_the_last_word(dog: Dog) -> None:
    watch, clock, left = dog
    watch.folder.mkdir()
    (watch.folder / "rank-00000.txt").write_text("{}")
    watch.beat(7, "data")
    clock.now += 61
    watch.look()
    assert left == [EXIT_CODE] and not (watch.folder / watchdog.BLAME).exists()


def test_who_goes_on_in_the_grace_lives(dog: Dog) -> None:
    watch, clock, left = dog
    watch._pause = lambda seconds: watch.beat(8, "data")
    watch.beat(7, "data")
    clock.now += 61
    watch.look()
    assert left == [] and not watch.path.exists()


def test_a_full_disk_sends_the_stacks_to_the_log(dog: Dog, capfd: pytest.CaptureFixture[str]) -> None:
    watch, clock, left = dog
    watch.folder.write_text("a file where the folder should be")
    watch.beat(7, "data")
    clock.now += 61
    watch.look()
    assert "test_a_full_disk" in capfd.readouterr().err
    assert left == [EXIT_CODE]


def test_the_flight_recorder_is_kept(dog: Dog, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, clock, _ = dog
    recorder = types.SimpleNamespace(_dump_nccl_trace=lambda: b"collectives")
    monkeypatch.setitem(sys.modules, "torch._C._distributed_c10d", recorder)
    watch.beat(7, "data")
    clock.now += 61
    watch.look()
    assert watch.path.with_suffix(".flight").read_bytes() == b"collectives"


def test_the_first_beat_that_is_judged_sets_the_timer_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread looks every few seconds: a main thread that takes the lock for ever before would never be ended."""
    seconds = []

    def timer(after_s: float, **_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            seconds.append(after_s)

    monkeypatch.setattr(faulthandler, "dump_traceback_later", timer)
    with Watchdog(tmp_path, 0, ["n0"], 3600.0) as watch:
        watch.beat(0, "forward_backward")
        assert seconds == []
        watch.beat(1, "data")
        watch.beat(1, "forward_backward")
        assert len(seconds) == 1 and seconds[0] > 3600.0
        watch.beat(1, "validation", limit_s=math.inf)
        watch.beat(2, "data")
        assert len(seconds) == 2


def test_nothing_is_watched_without_a_timeout(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0, ["n0"], None) as watch:
        watch.beat(5, "data")
        assert "watchdog" not in [thread.name for thread in threading.enumerate()]
        watch.look()
    assert not list(tmp_path.iterdir())


# Four ranks: one waits in what looks like a collective, one hangs on its data, one freezes, one holds the lock. They
# begin to when all are there; their watchdogs count from then, and give the others the grace that they need.
STALLS = """
import ctypes, os, signal, sys, time
from pathlib import Path
from llama31.resilience.watchdog import Watchdog
folder, rank, how, ranks, tellers = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
begun = None
def clock():
    return 0.0 if begun is None else time.monotonic() - begun
def until(count, pattern):
    while len(list(folder.glob(pattern))) < count:
        time.sleep(0.01)
hosts = ["n0", "n1", "n2", "n3"]
told = lambda grace_s: until(tellers, "rank-*.txt")
watch = Watchdog(folder, rank, hosts, 3.0, grace_s=2.0, clock=clock, pause=told).start()
for step in range(1, 4):
    watch.beat(step, "data")
    watch.beat(step, "forward_backward")
    time.sleep(0.05)
(folder / f"here-{rank}").touch()
until(ranks, "here-*")
begun = time.monotonic()
def hang():
    if how == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "lock":
        ctypes.PyDLL(None).sleep(9999)
    elif how == "data":
        watch.beat(4, "data")
        time.sleep(9999)
    else:
        watch.beat(4, "forward_backward")
        wait = "import socket; pair = socket.socketpair(); pair[0].recv(1)"
        exec(compile(wait, "/x/torch/distributed/c10d.py", "exec"))
hang()
"""


def stall(folder: Path, *ways: str) -> tuple[list[int | None], list[str]]:
    """Exit codes and errors of processes that stall in the given ways; frozen ones are killed when the others left."""
    environment = {**os.environ, "PYTHONPATH": search_path()}
    words = [sys.executable, "-c", STALLS, str(folder)]
    numbers = [str(len(ways)), str(sum(way in ("wait", "data") for way in ways))]
    children = [
        subprocess.Popen([*words, str(rank), way, *numbers], env=environment, stderr=subprocess.PIPE, text=True)
        for rank, way in enumerate(ways)
    ]
    codes: list[int | None] = []
    errors = []
    try:
        for child, way in sorted(zip(children, ways), key=lambda pair: pair[1] == "freeze"):
            if way == "freeze":
                child.send_signal(signal.SIGKILL)
            _, error = child.communicate(timeout=LIMIT_S)
            errors.append(error)
        codes = [child.returncode for child in children]
    finally:
        for child in children:
            child.kill()
    return codes, errors


def test_processes_that_hang_on_one_of_them_die_and_name_it(tmp_path: Path) -> None:
    codes, errors = stall(tmp_path, "wait", "wait", "data", "wait")
    assert codes == [EXIT_CODE] * 4
    assert [one.waiting for one in watchdog.read(tmp_path)] == [True, True, False, True]
    assert "hang" in (tmp_path / "rank-00002.txt").read_text()
    (suspect,) = json.loads((tmp_path / watchdog.BLAME).read_text())["suspects"]
    assert (suspect["rank"], suspect["host"]) == (2, "n2") and "step 4, data" in suspect["why"]
    assert sum("rank 2 on n2 step 4" in error for error in errors) == 1, errors


def test_frozen_processes_and_those_that_hold_the_lock_are_named(tmp_path: Path) -> None:
    codes, errors = stall(tmp_path, "freeze", "wait", "wait", "lock")
    assert codes == [-signal.SIGKILL, EXIT_CODE, EXIT_CODE, 1]
    result = json.loads((tmp_path / watchdog.BLAME).read_text())["suspects"]
    assert [one["rank"] for one in result] == [0, 3], "only they wrote nothing"
    assert any("Timeout" in error and "in hang" in error for error in errors), errors
