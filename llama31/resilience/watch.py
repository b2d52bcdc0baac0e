"""All that is looked at while a run trains, brought together: one control per step, the same on all ranks.

The pieces know nothing of each other: `guard` judges numbers, `watchdog` notices a rank that stands still, `stopping`
hears who asks to stop, `interval` knows when a checkpoint is due.
"""

from __future__ import annotations

import contextlib
import os

from llama31 import config
from llama31.engine.pipeline import Engine, StepResult
from llama31.parallel.mesh import Grid
from llama31.plan import shapes
from llama31.plan.interval import Interval
from llama31.resilience import preflight, resume
from llama31.resilience.attempt import Attempt, ComeBack, environment, exclude_nodes
from llama31.resilience.guard import Control, RunGuard, Seen, agree
from llama31.resilience.ranks import Comparison, Divergence, Odd, RankTimes
from llama31.resilience.stopping import StopRequests
from llama31.resilience.watchdog import Watchdog
from llama31.runs import files
from llama31.runs.metrics import Metrics
from llama31.runs.node import once_a_node


class AttemptSuperseded(config.RunError):
    """A newer attempt of the same run trains elsewhere; this one has saved nothing since."""


class Watch:
    """What one rank looks at. `follow` comes when there is an engine, `begin` when training does."""

    def __init__(
        self, guard: config.Guard, checkpoint: config.Checkpoint, zero: int, grid: Grid, attempt: Attempt
    ) -> None:
        """`zero`: the stage of ZeRO, which says whose parameters have to be equal."""
        self.settings, self.grid, self.attempt = guard, grid, attempt
        self.zero = zero
        self.main = grid.rank == 0
        self.environment = once_a_node("environment", environment)
        self.hosts = preflight.gather_hosts(grid)
        self.guard = RunGuard(guard)
        self.interval = Interval(checkpoint)
        self.requests = StopRequests(attempt.run_folder, attempt.newer, self.main)
        self._own: dict[str, float] = {}
        self._own_steps = 0

    def check_nodes(self, settings: config.Preflight, model: config.Model, precision: config.Precision) -> None:
        """Ask all nodes whether they are fit to train, and the disk whether two checkpoints fit. Collective.

        Raises ComeBack in a job of Slurm that can go on without the bad ones, which are excluded, else RunError.
        """
        folder, packages, commit = self.attempt.run_folder, self.environment["packages"], self.environment["commit"]
        needed = 2 * shapes.checkpoint_bytes(model, precision.params)
        report = preflight.check(settings, folder, needed, self.grid, packages, commit)
        bad = report.bad_nodes()
        elsewhere = 0 < len(bad) < len(set(self.hosts)) and "SLURM_JOB_ID" in os.environ
        if self.main:
            files.write_whole(self.attempt.folder / "preflight.json", report.to_json())
            if elsewhere:
                exclude_nodes(folder, bad)
        if not report.problems:
            return
        reason = f"preflight: {'; '.join(map(str, report.problems))}"
        if elsewhere:
            raise ComeBack(f"{reason}. The next attempt avoids {', '.join(bad)}")
        raise config.RunError(
            f"{reason}. Mend that, change preflight.*, or skip the checks with preflight.enabled=false"
        )

    def follow(self, engine: Engine, start: resume.Start) -> None:
        """Watch the parameters of `engine`, and go on from the history that the checkpoint of `start` keeps."""
        self._engine = engine
        self.guard.restore(start.resumed.extra.get("guard") if start.resumed else None, start.step)
        named = [(shard.name, shard.parameter) for shard in engine.shards]
        self._divergence = Divergence(named, self.grid, self.hosts, self.zero)
        self._times = RankTimes(self.settings, self.grid, self.hosts)
        stalled, limit_s = self.attempt.folder / "stalled", self.settings.heartbeat_s
        self.dog = Watchdog(stalled, self.grid.rank, self.hosts, limit_s, armed_from=start.step + 1)

    def begin(self, parts: contextlib.ExitStack, record: Metrics) -> None:
        """Hear signals and watch for stalls until `parts` are closed; what happens goes to `record`."""
        self._record = record
        parts.enter_context(self.requests)
        self.requests.forget_file()
        parts.enter_context(self.dog)

    def judge(self, step: int, tokens: int, result: StepResult, data_s: float) -> Control:
        """What all ranks do with the step that was just computed, the one after `step` steps. Collective.

        Raises AttemptSuperseded on all ranks.
        """
        seen = self._seen(step, tokens, result, data_s)
        cause = self.requests.cause()
        superseded = self.requests.superseded()
        mine = Control(
            self.guard.judge(seen),
            stop=cause is not None,
            save=self.main and self.interval.due(),
            superseded=superseded is not None,
            reason=superseded or cause or "",
        )
        control = agree(mine, self.grid)
        if control.superseded:
            number = self.attempt.number
            raise AttemptSuperseded(f"{control.reason}: this one, number {number}, makes way and saves nothing")
        control = self._excluding(seen, control)
        self.guard.note(seen, control.verdict)
        self._tell(step, tokens, control)
        return control

    def _seen(self, step: int, tokens: int, result: StepResult, data_s: float) -> Seen:
        """The step's numbers, and every so many steps those of all ranks."""
        self._own_steps += 1
        for name, seconds in (("data_s", data_s), ("forward_backward_s", self._engine.own_s)):
            self._own[name] = self._own.get(name, 0.0) + seconds
        odd: tuple[Odd, ...] | None = None
        slow: tuple[str, ...] = ()
        if _every(self.settings.hash_every_steps, step):
            self._engine.settle()
            odd = self._divergence.compare()
        if _every(self.settings.ranks_every_steps, step):
            comparison = self._times.compare(self._own, self._own_steps)
            self._own, self._own_steps, slow = {}, 0, comparison.hosts
            self._record.write("ranks", step=step, tokens=tokens, **comparison.line())
            self._tell_slow(step, tokens, comparison)
        return Seen(step, result.loss, result.grad_norm, odd, slow)

    def _excluding(self, seen: Seen, control: Control) -> Control:
        """A slow host is no reason to lose the step: save, stop, and go on without it."""
        if control.verdict.event != "slow_rank" or control.verdict.kind != "stop":
            return control
        if self.main:
            exclude_nodes(self.attempt.run_folder, seen.slow)
        return Control(stop=True, save=True, reason=control.verdict.reason)

    def _tell(self, step: int, tokens: int, control: Control) -> None:
        verdict = control.verdict
        if verdict.event:
            fields = {"event": verdict.event, "verdict": verdict.kind, "reason": verdict.reason}
            skipped = {"from_step": verdict.from_step, "to_step": verdict.to_step}
            self._record.write("event", step=step, tokens=tokens, **fields, **skipped)
        if control.stop:
            self._record.write("event", step=step, tokens=tokens, event="stop", reason=control.reason)
        news = self.interval.news() if self.main else None
        if news:
            self._record.write("event", step=step, tokens=tokens, event="interval", reason=news)

    def _tell_slow(self, step: int, tokens: int, comparison: Comparison) -> None:
        for one in comparison.slow[:8]:
            reason = f"rank {one['rank']} on {one['host']}: {one['phase']} is {one['factor']} times the median"
            self._record.write("event", step=step, tokens=tokens, event="slow_rank", reason=reason, **one)


def _every(steps: int | None, step: int) -> bool:
    return steps is not None and step > 0 and step % steps == 0
