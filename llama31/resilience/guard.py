"""What a run watches while it trains, and what it does about it. Verdicts are data, and all ranks hold the same one.

A step is judged before its update is applied: `Seen` says what was measured, `RunGuard.judge` answers with a `Verdict`,
`agree` makes rank 0's verdict (and any rank's wish to stop) that of all ranks, `RunGuard.note` remembers the decision.
Every rank does all of this, at the price of one all-reduce of one integer per step.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llama31 import config
from llama31.parallel.mesh import Grid
from llama31.resilience.ranks import Odd

KINDS = ("continue", "skip", "rollback", "stop")  # from the mildest to the hardest
EVENTS = ("", "divergence", "nonfinite", "loss_spike", "norm_spike", "slow_rank")
_RELATIVE_FLOOR = 1e-3  # least deviation of a window, relative to its mean: a constant window makes no spikes


@dataclass(frozen=True)
class Seen:
    """What is known of a step before its update is applied. `step` counts the steps done before it."""

    step: int
    loss: float
    grad_norm: float
    odd: tuple[Odd, ...] | None = None  # None: replicas were not compared at this step
    slow: tuple[str, ...] = ()  # hosts slow enough to do without


@dataclass(frozen=True)
class Verdict:
    """What happens to a step. An `event` is set with every kind but an unremarkable `continue`.

    continue: apply the update. skip: discard it, and do the step again without its data. rollback: load a checkpoint
    of at most `before_step` steps. stop: discard it and end the attempt. `from_step` to `to_step` - 1 are the steps
    whose data is left out (`mixture.Skip`), none where both are equal.
    """

    kind: str = "continue"
    event: str = ""
    reason: str = ""
    before_step: int = 0
    from_step: int = 0
    to_step: int = 0


class RunGuard:
    """Judges steps by what came before them. No torch, no clock, no files: what it says is a function of what it saw.

    `step` is where training stands when it begins.
    """

    def __init__(self, settings: config.Guard, step: int = 0) -> None:
        self.settings = settings
        self.rollbacks = 0  # of this attempt: not part of the history
        self._losses = _Window(settings.window_steps)
        self._norms = _Window(settings.window_steps)
        self._skips = 0  # in a row
        self._equal_step = step  # replicas were last known to be equal here

    def judge(self, seen: Seen) -> Verdict:
        """The verdict on a step; changes nothing. Of several events the hardest answer counts, and all are told."""
        anomalies = [*self._divergence(seen), *(self._nonfinite(seen) or self._spikes(seen)), *self._slow(seen)]
        if not anomalies:
            return Verdict()
        kind, event, _ = max(anomalies, key=lambda one: KINDS.index(one[0]))  # the first of the hardest
        reason = "; ".join(why for _, _, why in anomalies)
        step, settings = seen.step, self.settings
        if kind == "skip" and self._skips >= settings.max_skips:
            return Verdict("stop", event, f"{reason}; guard.max_skips={settings.max_skips} were skipped in a row")
        if kind == "rollback" and self.rollbacks >= settings.max_rollbacks:
            why = f"guard.max_rollbacks={settings.max_rollbacks} rollbacks of this attempt did not help"
            return Verdict("stop", event, f"{reason}; {why}")
        if kind == "rollback" and event == "divergence":  # the data is not to blame
            return Verdict(kind, event, reason, before_step=self._equal_step)
        if kind == "rollback":
            first = max(0, step - settings.skip_before_steps)
            return Verdict(kind, event, reason, first, first, step + 1 + settings.skip_after_steps)
        if kind == "skip":
            return Verdict(kind, event, reason, step, step, step + 1)
        return Verdict(kind, event, reason)

    def note(self, seen: Seen, verdict: Verdict) -> None:
        """Remember an agreed verdict. After a rollback, `restore` the history of the checkpoint that was loaded."""
        if verdict.kind == "rollback":
            self.rollbacks += 1
        elif verdict.kind == "skip":
            self._skips += 1
        elif verdict.kind == "continue":
            self._skips = 0
            self._losses.add(seen.loss, self.settings.loss_zscore)
            self._norms.add(seen.grad_norm, self.settings.norm_zscore)
            if seen.odd == ():
                self._equal_step = seen.step

    def history(self) -> dict[str, Any]:
        """What a checkpoint keeps, ready for JSON: with it a resumed run judges as one that was never interrupted."""
        windows = {"losses": asdict(self._losses), "norms": asdict(self._norms)}
        return {**windows, "skips": self._skips, "equal_step": self._equal_step}

    def restore(self, history: Mapping[str, Any] | None, step: int) -> None:
        """Go on from the history of a checkpoint at `step`; None where it has none. Rollbacks stay counted."""
        known = history or {}
        size = self.settings.window_steps
        self._losses = _Window.of(known.get("losses"), size)
        self._norms = _Window.of(known.get("norms"), size)
        self._skips = int(known.get("skips", 0))
        self._equal_step = int(known.get("equal_step", step))

    def _nonfinite(self, seen: Seen) -> list[tuple[str, str, str]]:
        if math.isfinite(seen.loss) and math.isfinite(seen.grad_norm):
            return []
        reason = f"step {seen.step + 1}: loss {seen.loss}, gradient norm {seen.grad_norm}"
        return [(self.settings.on_nonfinite, "nonfinite", reason)]

    def _spikes(self, seen: Seen) -> list[tuple[str, str, str]]:
        settings, anomalies = self.settings, []
        for event, action, name, window, value, most in (
            ("loss_spike", settings.on_loss_spike, "loss", self._losses, seen.loss, settings.loss_zscore),
            ("norm_spike", settings.on_norm_spike, "gradient norm", self._norms, seen.grad_norm, settings.norm_zscore),
        ):
            score = window.score(value)
            if score > most:
                mean = statistics.fmean(window.values)
                reason = f"step {seen.step + 1}: {name} {value:.6g} is {score:.1f} deviations above {mean:.6g}"
                anomalies.append((action, event, reason))
        return anomalies

    def _divergence(self, seen: Seen) -> list[tuple[str, str, str]]:
        if not seen.odd:
            return []
        ranks = ", ".join(f"{one.rank} on {one.host}" for one in seen.odd[:16])
        more = f" and {len(seen.odd) - 16} more" if len(seen.odd) > 16 else ""
        doubt = "" if all(one.certain for one in seen.odd) else " (which of them is right cannot be told)"
        reason = f"step {seen.step + 1}: parameters differ between replicas, on rank {ranks}{more}{doubt}"
        return [(self.settings.on_divergence, "divergence", reason)]

    def _slow(self, seen: Seen) -> list[tuple[str, str, str]]:
        if not seen.slow or self.settings.on_slow_rank == "continue":
            return []
        return [("stop", "slow_rank", f"step {seen.step + 1}: {', '.join(seen.slow)} is slow")]


@dataclass
class _Window:
    """The last ordinary values, and the spikes since the last of them.

    A spike that was let pass does not enter, so that it cannot hide the next. But where a quarter of a window comes as
    spikes in a row, the level has moved (a new source, a longer sequence), and they become the window.
    """

    size: int
    values: list[float] = field(default_factory=list)
    spikes: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, known: Mapping[str, Any] | None, size: int) -> _Window:
        """A window as `asdict` gave it, cut where `size` has become smaller."""
        return cls(size, list(known["values"])[-size:], list(known["spikes"])) if known else cls(size)

    @property
    def enough(self) -> int:
        return max(2, self.size // 4)

    def score(self, value: float) -> float:
        """Standard deviations above the mean; 0 before a quarter of the window is there."""
        if len(self.values) < self.enough:
            return 0.0
        mean = statistics.fmean(self.values)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in self.values) / len(self.values))
        return (value - mean) / max(deviation, _RELATIVE_FLOOR * abs(mean), 1e-12)

    def add(self, value: float, most: float) -> None:
        """Take in a value, by whether it is a spike: more than `most` deviations above the mean."""
        if self.score(value) <= most:
            self.values = [*self.values, value][-self.size :]
            self.spikes = []
            return
        self.spikes.append(value)
        if len(self.spikes) >= self.enough:
            self.values, self.spikes = self.spikes, []


# --- what all ranks agree on ---


@dataclass(frozen=True)
class Control:
    """What all ranks do after a step: rank 0's verdict, and what any rank asked for.

    `save` asks for a checkpoint, `stop` for one and the end of the attempt; `superseded` says that a newer attempt
    has begun, so that nothing may be saved. `reason` says why, of the last two.
    """

    verdict: Verdict = Verdict()
    stop: bool = False
    save: bool = False
    superseded: bool = False
    reason: str = ""

    def to_tensor(self, rank: int, device: torch.device) -> Tensor:
        """[1] int64, of which the sum over ranks says all that an ordinary step needs; only rank 0 sends a verdict.

        One number, because gloo's all-reduce of several takes three times as long.
        """
        flags = (self.stop, self.save, self.superseded)
        number = sum(flag << place * _COUNT_BITS for place, flag in enumerate(flags))
        if rank == 0:
            verdict = KINDS.index(self.verdict.kind) + len(KINDS) * EVENTS.index(self.verdict.event)
            number += verdict << len(flags) * _COUNT_BITS
        return torch.tensor([number], dtype=torch.int64, device=device)

    @classmethod
    def from_tensor(cls, summed: Tensor) -> Control:
        """What the sum says: kind and event of the verdict, and what any rank asked for."""
        number = int(summed.item())
        stop, save, superseded = (number >> place * _COUNT_BITS & (1 << _COUNT_BITS) - 1 for place in range(3))
        event, kind = divmod(number >> 3 * _COUNT_BITS, len(KINDS))
        return cls(Verdict(KINDS[kind], EVENTS[event]), stop > 0, save > 0, superseded > 0)


_COUNT_BITS = 18  # room for the ranks that ask for the same: three such counts and a verdict fit into 63 bits


def agree(mine: Control, grid: Grid) -> Control:
    """The control that all ranks follow; collective over all ranks. More is sent only when something happened."""
    summed = mine.to_tensor(grid.rank, grid.device)
    dist.all_reduce(summed)
    agreed = Control.from_tensor(summed)
    asked = agreed.stop or agreed.superseded
    if not agreed.verdict.event and not asked:
        return agreed
    asker = torch.tensor([grid.rank if mine.stop or mine.superseded else -1], device=grid.device)
    dist.all_reduce(asker, dist.ReduceOp.MAX)
    shared: list[Any] = [mine.verdict, mine.reason]
    dist.broadcast_object_list(shared, src=0, device=grid.device)
    reason = (shared[1] or f"asked for on rank {int(asker.item())}") if asked else ""
    return replace(agreed, verdict=shared[0], reason=reason)
