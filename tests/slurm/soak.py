"""Random SIGKILLs of random ranks at random moments over one run: `python -m tests.slurm.soak [kills] [seed]`.

No test but a benchmark of half an hour: it starts a cluster of its own, trains a small run that nothing happens to, one
whose jobs have a minute each by Slurm's own clock, and one that is killed again and again, and prints whether all
curves are equal, and how long each recovery took: from the kill to the end of the attempt (detection), to the next
attempt's start (queue), to its first line (start: imports, processes, preflight; load: the checkpoint), to its first
step. No kills: the minutes alone.
"""

from __future__ import annotations

import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from llama31.runs import metrics
from tests.slurm import cluster
from tests.slurm.conftest import ENDED, SMALL, Slurm, lay_out, submit

STEPS = 1500
LONG = [
    *SMALL,
    f"schedule.total_tokens={STEPS * 1024}",
    "schedule.batch_tokens=1024",
    "schedule.warmup_tokens=2048",
    "checkpoint.every_tokens=8192",
    "checkpoint.keep_last=3",
    "cluster.timeout_s=60",
    "preflight.matmul_share=0",
    "preflight.link_share=0",
]
ENDS = re.compile(r"(\S+)Z launch: job \d+ attempt (\d+): (START|END)")


def trainers(name: str) -> list[int]:
    """Processes of the run's ranks, here and in the cluster's namespaces."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if b"recipes.pretrain" in words and f"name={name}".encode() in words and b"torch.distributed.run" not in words:
            found.append(int(path.parent.name))
    return found


def recoveries(folder: Path, log: str, kills: list[float]) -> list[dict[str, float]]:
    """Seconds of each phase between a kill and the next step, where the kill hit a training attempt."""
    times: dict[tuple[str, str], float] = {}
    for stamp, attempt, what in ENDS.findall(log):
        times[attempt, what] = datetime.fromisoformat(f"{stamp}+00:00").timestamp()
    found = []
    attempts = metrics.attempts(folder)
    for killed in kills:
        ended = min((t for (_, what), t in times.items() if what == "END" and t >= killed), default=None)
        begun = ended and min((t for (_, what), t in times.items() if what == "START" and t >= ended), default=None)
        if not begun:
            continue
        after = [a for a in attempts if a.info.get("time_s", 0) >= begun]
        if not after or not [line for line in after[0].lines if line["kind"] == "train"]:
            continue
        attempt = after[0]
        first = next(line["time_s"] for line in attempt.lines if line["kind"] == "train")
        claimed = (attempt.folder / "preflight.json").stat().st_mtime
        found.append(
            {
                "detection": ended - killed,
                "queue": begun - ended,
                "start": claimed - begun,
                "load": attempt.lines[0]["time_s"] - claimed,
                "first step": first - attempt.lines[0]["time_s"],
                "whole": first - killed,
            }
        )
    return found


def curve(folder: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by step."""
    return {x["step"]: (x["loss"], x["grad_norm"]) for x in metrics.read(folder) if x["kind"] == "train"}


def soak(slurm: Slurm, place: Path, kills: int, seed: int) -> bool:
    """Train, kill, compare; whether the curves are equal."""
    chance = random.Random(seed)
    pack = [sys.executable, "-m", "recipes.pack", "--config-dir", "my", "data=words", "tokenizer=words"]
    slurm.run(*pack, "data.workers=1", cwd=place)
    (plain,) = submit(slurm, place, "recipe=pretrain", "submit.nodes=2", *LONG, "name=plain")
    assert slurm.end(plain) == "COMPLETED"
    in_time = within_minutes(slurm, place)
    if not in_time or not kills:
        return in_time
    limits = {"MAX_RESTARTS": str(10 * kills), "MAX_FRUITLESS": "10"}
    (number,) = submit(slurm, place, "recipe=pretrain", "submit.nodes=2", *LONG, "name=killed", **limits)
    folder, when, moments = place / "runs/killed", [], []
    while len(when) < kills:
        slurm.until(lambda: trainers("killed") or slurm.job(number).get("JobState") in ENDED, "ranks to kill")
        if slurm.job(number).get("JobState") in ENDED:
            break
        time.sleep(chance.uniform(0.0, 25.0))
        ranks = trainers("killed")
        if not ranks:
            continue
        try:
            os.kill(chance.choice(ranks), signal.SIGKILL)
        except ProcessLookupError:
            continue
        when.append(time.time())
        attempts = metrics.attempts(folder) if (folder / "attempts").exists() else []
        moments.append(len(attempts[-1].lines) > 1 if attempts else False)
        print(f"kill {len(when)} of {kills}: attempt {len(attempts) - 1}, training: {moments[-1]}", flush=True)
        slurm.until(lambda: slurm.job(number).get("JobState") != "RUNNING", "end of the attempt")
    state = slurm.end(number)
    log = (folder / f"logs/{number}.out").read_text()
    equal = curve(folder) == curve(place / "runs/plain")
    loaded = [a.info.get("weights_from") for a in metrics.attempts(folder)]
    print(f"{len(when)} kills ({sum(moments)} while training): {state}, {len(loaded)} attempts, "
          f"{len(curve(folder))} steps, curve equal to the uninterrupted one: {equal}")  # fmt: skip
    print(f"checkpoints ignored as damaged: {log.count('ignoring checkpoint')}")
    seconds = recoveries(folder, log, [t for t, training in zip(when, moments) if training])
    for name in seconds[0] if seconds else ():
        values = sorted(one[name] for one in seconds)
        middle = statistics.median(values)
        print(f"| {name} | {middle:.1f} s | {values[0]:.1f} to {values[-1]:.1f} s | n={len(values)}")
    return equal and state == "COMPLETED"


def within_minutes(slurm: Slurm, place: Path) -> bool:
    """Whether a run whose time limit comes every minute ends with the same curve."""
    options = ["submit.time=00:01:00", "submit.options=--signal=B:USR1@25"]
    (number,) = submit(slurm, place, "recipe=pretrain", "submit.nodes=2", *options, *LONG, "name=limited")
    state, folder = slurm.end(number), place / "runs/limited"
    equal = curve(folder) == curve(place / "runs/plain")
    print(
        f"time limits of a minute: {state}, {len(metrics.attempts(folder))} attempts, curve equal: {equal}", flush=True
    )
    return equal and state == "COMPLETED"


def main(kills: int = 30, seed: int = 1) -> None:
    """Run it on a cluster of four nodes, which ends with this process."""
    folder, place = Path(tempfile.mkdtemp(prefix="sk.", dir="/tmp")), Path(tempfile.mkdtemp(prefix="soak."))
    command = [sys.executable, cluster.__file__]
    subprocess.run([*command, "start", str(folder), "--owner", str(os.getpid())], check=True, timeout=120)
    try:
        good = soak(Slurm(folder), lay_out(place), kills, seed)
    finally:
        subprocess.run([*command, "stop", str(folder)], check=True, timeout=60)
    sys.exit(not good)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
