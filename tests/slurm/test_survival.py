"""What happens to a long job, to the real trainer: whatever it is, the loss curve is the uninterrupted one, exactly."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llama31.checkpoint import publish
from llama31.runs import metrics
from tests.slurm.conftest import SMALL, Slurm, submit
from tests.slurm.soak import trainers

pytestmark = pytest.mark.slurm

STEPS = 120
# Steps of about a tenth of a second, so that there is something to interrupt.
LONG = [
    *SMALL,
    f"schedule.total_tokens={STEPS * 1024}",
    "schedule.batch_tokens=1024",
    "schedule.warmup_tokens=2048",
    "checkpoint.every_tokens=4096",
    "checkpoint.keep_last=3",
    "validation.every_tokens=null",
    "cluster.timeout_s=60",
]


def steps_of(folder: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by step."""
    return {x["step"]: (x["loss"], x["grad_norm"]) for x in metrics.read(folder) if x["kind"] == "train"}


def progress(folder: Path) -> Callable[[int, int], bool]:
    """Whether attempt `number` has trained `steps` steps."""

    def trained(number: int, steps: int) -> bool:
        path = folder / f"attempts/{number:04d}/metrics.jsonl"
        return path.exists() and path.read_text().count('"train"') >= steps

    return trained


@pytest.fixture(scope="module")
def place(slurm_cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with packed text, and the run that nothing happens to: two nodes, one process each."""
    from tests.slurm.conftest import lay_out

    folder = lay_out(tmp_path_factory.mktemp("place"))
    pack = [sys.executable, "-m", "recipes.pack", "--config-dir", "my", "data=words", "tokenizer=words"]
    slurm_cluster.run(*pack, "data.workers=1", cwd=folder)
    (number,) = submit(slurm_cluster, folder, "recipe=pretrain", "submit.nodes=2", *LONG, "name=plain")
    assert slurm_cluster.end(number) == "COMPLETED", log_of(folder, "plain", number)
    return folder


def log_of(folder: Path, name: str, number: str) -> str:
    return (folder / f"runs/{name}/logs/{number}.out").read_text()


def test_one_job_that_everything_happens_to(slurm: Slurm, place: Path) -> None:
    """A bad node, USR1, preemption without grace, a controller that dies, a requeue, power loss."""
    free = int(slurm.run("srun", "--quiet", "-N1", "-w", "n1", "stat", "-f", "-c", "%a", "/dev/shm"))
    size = int(slurm.run("srun", "--quiet", "-N1", "-w", "n1", "stat", "-f", "-c", "%S", "/dev/shm"))
    slurm.run("srun", "--quiet", "-N1", "-w", "n1", "fallocate", "-l", str(2**26), "/dev/shm/left-behind")
    asked = f"preflight.min_scratch_bytes={free * size - 2**25}"
    words = ["recipe=pretrain", "submit.nodes=2", *LONG, "name=life", asked]
    (number,) = submit(slurm, place, *words)  # Slurm begins with n1
    folder = place / "runs/life"
    trained = progress(folder)
    slurm.until((folder / "attempts/0000/end.json").exists, "preflight")
    slurm.until(lambda: trained(1, 5), "second attempt")
    assert "n1" not in slurm.job(number)["NodeList"]
    slurm.run("scancel", "--batch", "--signal=USR1", number)  # (hurrying a requeued job on loses it now and then)
    slurm.until(lambda: trained(2, 5), "third attempt")
    slurm.ctl("ctld-kill")
    slurm.ctl("ctld-start")
    slurm.until(lambda: trained(2, 15), "third attempt goes on without a controller")
    other = ["--partition=high", "--nodes=4", "--gpus-per-node=8", "--output=/dev/null", "--wrap=sleep 1"]
    slurm.run("sbatch", *other, cwd=place)
    slurm.until(lambda: trained(3, 5), "fourth attempt")
    slurm.run("scontrol", "requeue", number)
    slurm.until(lambda: trained(4, 5), "fifth attempt")
    lost = slurm.run("scontrol", "show", "hostnames", slurm.job(number)["NodeList"].strip()).split()[1]
    slurm.ctl("down", lost)
    slurm.run("scontrol", "update", f"nodename={lost}", "state=down", "reason=power")  # else Slurm looks for it first
    state = slurm.end(number)
    printed = log_of(place, "life", number)
    assert state == "COMPLETED", printed
    attempts = metrics.attempts(folder)
    first = attempts[0].end
    assert first is not None and first["outcome"] == "stopped" and "node n1" in first["cause"]
    assert (folder / "exclude_nodes").read_text() == "n1\n" and "excluding n1" in printed
    assert all("n1" not in attempt.info["hosts"] for attempt in attempts[1:])
    stopped = [attempt.end["outcome"] if attempt.end else None for attempt in attempts]
    assert stopped[1] == "stopped" and stopped[-2:] == [None, "finished"]  # told to stop; power loss; the end
    assert steps_of(folder) == steps_of(place / "runs/plain")
    assert list(steps_of(folder)) == list(range(1, STEPS + 1))


def test_three_random_sigkills(slurm: Slurm, place: Path) -> None:
    """Random ranks at random moments, as thirty times in `soak.py`."""
    chance = random.Random(3)
    (number,) = submit(slurm, place, "recipe=pretrain", "submit.nodes=2", *LONG, "name=killed", MAX_FRUITLESS="10")
    folder = place / "runs/killed"
    trained = progress(folder)
    for attempt in range(3):
        steps = chance.randrange(STEPS // 4)  # so that none of the three can reach the end
        slurm.until(functools.partial(trained, attempt, steps), f"{steps} steps of attempt {attempt}")
        os.kill(chance.choice(trainers("killed")), signal.SIGKILL)
        slurm.until(lambda: slurm.job(number).get("JobState") != "RUNNING", "end of the attempt")
    assert slurm.end(number) == "COMPLETED", log_of(place, "killed", number)
    *killed, last = metrics.attempts(folder)
    assert [attempt.end for attempt in killed[:3]] == [None] * 3, "none had a last word"
    # on a busy machine the controller may end a job that came back once more, for the sake of the one before
    assert all(attempt.end is None or attempt.end["cause"] == "SIGTERM" for attempt in killed[3:])
    assert last.end is not None and last.end["outcome"] == "finished" and last.info["from_step"] > 0
    assert steps_of(folder) == steps_of(place / "runs/plain")


def test_attempt_on_a_node_that_was_cut_off_changes_nothing(slurm: Slurm, place: Path) -> None:
    """Split brain: the node trains on behind a pulled cable, while Slurm starts the job elsewhere."""
    words = ["recipe=pretrain", "submit.nodes=1", "cluster.processes_per_node=2", *LONG, "name=cut"]
    longer = [f"schedule.total_tokens={20 * STEPS * 1024}", "checkpoint.keep_last=null"]
    (number,) = submit(slurm, place, *words, *longer)
    folder = place / "runs/cut"
    trained = progress(folder)
    slurm.until(lambda: trained(0, 10), "first attempt")
    node = slurm.job(number)["NodeList"]
    slurm.ctl("cut", node)
    slurm.until(lambda: trained(1, 5), "second attempt, elsewhere")
    slurm.until((folder / "attempts/0000/end.json").exists, "the first attempt makes way")
    (folder / "stop").write_text("end\n")
    slurm.until(lambda: slurm.job(number)["JobState"] != "RUNNING", "end")
    first, second = metrics.attempts(folder)
    assert first.end is not None and first.end["outcome"] == "superseded", first.end
    assert second.info["hosts"] != first.info["hosts"] == [node]
    begun = second.info["from_step"]
    alone = {x["step"]: x["loss"] for x in first.lines if x["kind"] == "train" and x["step"] > begun}
    stands = steps_of(folder)
    assert alone and begun > 10 and list(stands) == list(range(1, len(stands) + 1))
    merged = metrics.merged([*first.lines, *second.lines])
    later = [line for line in merged if line["kind"] == "train" and line["step"] > begun]
    assert later and all(line in second.lines for line in later)
    # the first attempt is the uninterrupted run: what both trained is equal
    both = alone.keys() & stands.keys()
    assert both and all(alone[step] == stands[step][0] for step in both)
    late = [path for path in (folder / "checkpoints").glob("step-*") if publish.read_meta(path).step > begun]
    assert late and all(path.name.endswith("-a0001") for path in late)


def test_chain_of_three_goes_on_after_a_preemption_with_grace(slurm: Slurm, place: Path) -> None:
    """Submitted again, it is queued already; when all of it is done, nothing is submitted."""
    stages = [
        {"recipe": "pretrain", "config_name": "small", "overrides": [*LONG[len(SMALL) :], "name={name}"]},
        {"recipe": "evaluate", "overrides": ["data=words", "tokenizer=words", "output=scores.json"]},
        {"recipe": "convert", "overrides": ["direction=to_hf", "hf=runs/{name}/hf"]},
    ]
    (place / "my/chain").mkdir()
    (place / "my/chain/three.yaml").write_text(json.dumps({"stages": stages}))
    words = ["--config-dir", "my", "chain=three", "name=chain", "submit.partition=grace", "submit.nodes=2"]
    jobs = submit(slurm, place, *words)
    assert len(jobs) == 3 and not submit(slurm, place, *words)
    folder = place / "runs/chain"
    slurm.logs = [folder / f"logs/{jobs[0]}.out"]
    trained = progress(folder)
    slurm.until(lambda: trained(0, 5), "first attempt")
    held = trainers("chain")
    for process in held:
        os.kill(process, signal.SIGSTOP)  # so that it has not ended before Slurm has come to preempt it
    other = ["--partition=high", "--nodes=4", "--gpus-per-node=8", "--output=/dev/null", "--wrap=sleep 1"]
    slurm.run("sbatch", *other, cwd=place)
    slurm.until(lambda: slurm.job(jobs[0]).get("PreemptTime", "None") != "None", "preemption")
    for process in held:
        os.kill(process, signal.SIGCONT)
    assert [slurm.end(number) for number in jobs] == ["COMPLETED"] * 3, log_of(place, "chain", jobs[0])
    first, second = metrics.attempts(folder)
    assert first.end is not None and second.end is not None
    assert [first.end["outcome"], second.end["outcome"]] == ["stopped", "finished"]
    assert steps_of(folder) == steps_of(place / "runs/plain")
    assert json.loads((place / "scores.json").read_text())["total"]["loss"] > 0
    assert list((folder / "hf").glob("*.safetensors"))
    said = slurm.run(sys.executable, "-m", "recipes.submit", *words, cwd=place).splitlines()
    assert said[-3:] == ["# pretrain: done", "# evaluate: done", "# convert: done"]
