"""The scripts of slurm/ on a real Slurm cluster: they run, stop, come back, avoid nodes, and depend on each other."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from llama31.runs import metrics
from tests.conftest import ROOT
from tests.slurm.conftest import SMALL, Slurm, submit

pytestmark = pytest.mark.slurm

# Stands in for recipes/pretrain.py: it counts, and what it does with its life depends on the attempt.
TRAINER = """
import json, os, signal, sys, time
from pathlib import Path
from llama31 import config
from recipes import start

def main(run):
    folder, attempt = Path(run.folder), os.environ.get("SLURM_RESTART_COUNT", "0")
    with (folder / "attempts").open("a") as file:
        bound = os.environ.get("SLURM_CPU_BIND")
        file.write(f"{attempt} {os.environ['SLURMD_NODENAME']} {os.environ['WORLD_SIZE']} {bound}\\n")
    plan = os.environ["PLAN"].split(",")[int(attempt)]
    if plan == "die":
        (folder / "exclude_nodes").write_text(os.environ["SLURMD_NODENAME"] + "\\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if plan == "wait":
        while not (folder / "stop").exists():
            time.sleep(0.1)
    outcome = {"wait": "stopped"}.get(plan, plan)
    (folder / "outcome.json").write_text(json.dumps({"outcome": outcome, "step": 3}))
    sys.exit(outcome == "failed")

start(main, config.Pretrain, "pretrain")
"""

# Stands in for recipes/probe.py: the last arm, whose number Slurm gives to the whole array too, stops once.
PROBER = """
import json, os
from llama31 import config
from llama31.evaluate import probe
from recipes import start

def main(run):
    arm, attempt = probe.arms(run)[run.arm], os.environ.get("SLURM_RESTART_COUNT", "0")
    with (arm.folder / "attempts").open("a") as file:
        file.write(f"{attempt} {os.environ['SLURM_JOB_ID']}\\n")
    stops = os.environ["SLURM_JOB_ID"] == os.environ["SLURM_ARRAY_JOB_ID"] and attempt == "0"
    (arm.folder / "outcome.json").write_text(json.dumps({"outcome": "stopped" if stops else "finished"}))

start(main, config.Probe, "probe")
"""


TWICE = """
stages:
  - {recipe: long_context, label: first, config_name: small}
  - {recipe: long_context, label: second, config_name: small, overrides: [name=second]}
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A checkout whose trainer is the one above, so that signals need no step of a model."""
    home = tmp_path / "home"
    (home / "recipes").mkdir(parents=True)
    for name in ("llama31", "conf", "slurm"):
        (home / name).symlink_to(ROOT / name)
    for name in ("__init__.py", "submit.py"):
        shutil.copy(ROOT / "recipes" / name, home / "recipes")
    (home / "recipes/pretrain.py").write_text(TRAINER)
    (home / "recipes/probe.py").write_text(PROBER)
    for name in ("tokenizer/tokenizer.json", "words/packed.json"):  # looked for before a job is submitted
        (tmp_path / "packed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "packed" / name).touch()
    return home


def log_of(folder: Path, number: str) -> str:
    return (folder / f"runs/small/logs/{number}.out").read_text()


# What sbatch finds where it is typed in a job step of an array's task that came back three times.
STEP = {
    "SLURM_ARRAY_JOB_ID": "4000", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "3", "SLURM_MEM_PER_CPU": "1000",
    "SLURM_CPU_BIND": "quiet,mask_cpu:3", "SLURM_CPU_BIND_TYPE": "mask_cpu:", "SLURM_GPUS_PER_TASK": "9",
    "SLURM_NTASKS": "2", "SLURM_EXPORT_ENV": "NONE", "RANK": "1", "PET_NNODES": "5", "TMPDIR": "/tmp/gone",
}  # fmt: skip


def test_pretrain_on_two_nodes(slurm: Slurm, workplace: Path) -> None:
    """Of 128 and 64 cores; sbatch hands on nothing but PYTHON, and is told to work elsewhere than where it is typed."""
    pack = [sys.executable, "-m", "recipes.pack", "--config-dir", "my", "data=words", "tokenizer=words"]
    slurm.run(*pack, "data.workers=1", cwd=workplace)
    words = ["--parsable", "--nodes=2", "--output=job.out", "--chdir", workplace, "--export=PYTHON"]
    number = slurm.run("sbatch", *words, "slurm/pretrain.sh", *SMALL, cwd=ROOT)
    state = slurm.end(number)
    printed = (workplace / "job.out").read_text()
    assert state == "COMPLETED", printed
    assert "START pretrain on n[1-2], 2 x 1 process(es)" in printed
    lines = metrics.read(workplace / "runs/small")
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == [1, 2, 3, 4]
    assert all(line["batch_tokens"] == 256 for line in train)
    attempts = [attempt.info for attempt in metrics.attempts(workplace / "runs/small")]
    assert [(told["hosts"], told["world_size"], told["slurm_job"]) for told in attempts] == [(["n1", "n2"], 2, number)]
    assert (workplace / f"runs/small/logs/{number}.0.log").read_text()


def test_one_job_stops_dies_avoids_a_node_and_finishes(slurm: Slurm, workplace: Path, stand_in: Path) -> None:
    env = {"LLAMA31_HOME": str(stand_in), "PLAN": "wait,die,finished", **STEP}
    (workplace / "runs/small/logs").mkdir(parents=True)
    words = ["--parsable", "--output=runs/small/logs/%j.out", ROOT / "slurm/pretrain.sh", *SMALL]
    number = slurm.run("sbatch", *words, cwd=workplace, **env)
    attempts = workplace / "runs/small/attempts"
    slurm.until(attempts.exists, "first attempt")
    slurm.run("scancel", "--batch", "--signal=USR1", number)  # what --signal=B:USR1 sends, but now
    state = slurm.end(number)
    printed = log_of(workplace, number)
    assert state == "COMPLETED", printed
    assert slurm.job(number)["Restarts"] == "2"
    assert [line.split()[0] for line in attempts.read_text().splitlines()] == ["0", "1", "2"]
    died, finished = (line.split()[1] for line in attempts.read_text().splitlines()[1:])
    assert {line.split()[3] for line in attempts.read_text().splitlines()} == {"None"}, "bound as the step was"
    assert f"excluding {died}" in printed and finished != died
    for said in ("signal: asking pretrain to save", "stopped with a checkpoint; restarting", "died; restarting"):
        assert said in printed
    assert len(list((workplace / "runs/small/logs").glob(f"{number}.*.log"))) == 3


def test_chain_ends_with_its_first_failure(slurm: Slurm, workplace: Path, stand_in: Path) -> None:
    """No restart where the trainer said why it failed (gates that stay shut), nor where restarts are used up.

    What follows is cancelled. Here it is the same recipe again, with a root file that is the user's own.
    """
    (workplace / "my/chain").mkdir()
    (workplace / "my/chain/twice.yaml").write_text(TWICE)
    words = ["--config-dir", "my", "chain=twice", "name=small"]
    home = {"LLAMA31_HOME": str(stand_in)}
    for env in ({"PLAN": "failed"}, {"PLAN": "die", "MAX_RESTARTS": "0"}, {"PLAN": "die", "MAX_FRUITLESS": "1"}):
        first, second = submit(slurm, workplace, *words, **home, **env)
        assert slurm.end(first) == "FAILED", log_of(workplace, first)
        assert slurm.job(first)["Restarts"] == "0"
        assert slurm.end(second) == "CANCELLED"
        shutil.rmtree(workplace / "runs")


def test_arms_of_a_probe_are_an_array_of_which_each_comes_back_alone(
    slurm: Slurm, workplace: Path, stand_in: Path
) -> None:
    (workplace / "half").mkdir()
    (workplace / "half/checkpoint.json").touch()  # looked for before the job is submitted
    words = ["recipe=probe", "submit.nodes=1", "--config-dir", "my", "name=worth", "init_from=half", "model=tiny"]
    words += ["schedule=probe", "data=words", "tokenizer=words", "candidates=[more]", "seeds=[1,2]"]
    words += ["data.sources.more.packed=packed/words", "cluster.processes_per_node=1"]
    (number,) = submit(slurm, workplace, *words, LLAMA31_HOME=str(stand_in))
    slurm.until(lambda: not slurm.run("squeue", "-h", "--job", number, check=False), "end of the array")
    found = {
        path.parent.name: path.read_text().split("\n")[:-1] for path in workplace.glob("runs/worth/arms/*/attempts")
    }
    arms = ["default-seed-1", "default-seed-2", "with-more-seed-1", "with-more-seed-2"]
    assert sorted(found) == arms
    again = [name for name, attempts in found.items() if len(attempts) == 2]
    assert len(again) == 1 and found[again[0]] == [f"0 {number}", f"1 {number}"]
    assert sum(len(attempts) for attempts in found.values()) == 5
    printed = (workplace / f"runs/worth/logs/{number}.out").read_text()
    assert f"job {number}_" in printed and "stopped with a checkpoint; restarting" in printed


def test_what_slurm_does_itself_is_one_restart_each(slurm: Slurm, workplace: Path, stand_in: Path) -> None:
    """Preemption without grace, power loss: Slurm requeues, the script neither does so again nor counts a death."""
    env = {"LLAMA31_HOME": str(stand_in), "PLAN": "wait,wait,finished", "MAX_FRUITLESS": "1"}
    (number,) = submit(slurm, workplace, "recipe=pretrain", "submit.nodes=2", *SMALL, **env)
    attempts = workplace / "runs/small/attempts"

    def running(attempt: int) -> None:
        begun = f"{attempt} "
        slurm.until(lambda: attempts.exists() and f"\n{begun}" in f"\n{attempts.read_text()}", f"attempt {attempt}")

    running(0)
    other = ["--partition=high", "--nodes=4", "--gpus-per-node=8", "--output=/dev/null", "--wrap=sleep 1"]
    slurm.run("sbatch", *other, cwd=workplace)
    running(1)
    lost = slurm.run("scontrol", "show", "hostnames", slurm.job(number)["NodeList"]).split()[1]
    slurm.ctl("down", lost)
    slurm.run("scontrol", "update", f"nodename={lost}", "state=down", "reason=power")  # else Slurm looks for it first
    state = slurm.end(number)
    printed = log_of(workplace, number)
    assert state == "COMPLETED", printed
    assert slurm.job(number)["Restarts"] == "2", printed


def test_cancelled_job_stays_cancelled(slurm: Slurm, workplace: Path, stand_in: Path) -> None:
    env = {"LLAMA31_HOME": str(stand_in), "PLAN": "wait,finished"}
    (number,) = submit(slurm, workplace, "recipe=pretrain", *SMALL, **env)
    slurm.until((workplace / "runs/small/attempts").exists, "first attempt")
    slurm.run("scancel", number)
    slurm.until(lambda: not slurm.run("squeue", "-h", "-j", number, check=False), "end of the cancelled job")
    assert (slurm.job(number)["JobState"], slurm.job(number)["Restarts"]) == ("CANCELLED", "0")


def test_wrong_configs_never_reach_a_node(slurm: Slurm, workplace: Path) -> None:
    before = slurm.jobs()
    refused = slurm.run(
        sys.executable, "-m", "recipes.submit", "recipe=pretrain", *SMALL, "submit.nodes=2", "parallel.tp=4",
        cwd=workplace, check=False,
    )  # fmt: skip
    assert "does not divide the 2 process(es)" in refused and "nearest layout that works" in refused
    (workplace / "packed/words").mkdir(parents=True)
    for name in ("tokenizer/tokenizer.json", "words/packed.json"):  # looked for before a job is submitted
        (workplace / "packed" / name).parent.mkdir(exist_ok=True)
        (workplace / "packed" / name).touch()
    refused = slurm.run(
        sys.executable, "-m", "recipes.submit", "recipe=pretrain", *SMALL, "submit.options=-d afterok:4000",
        cwd=workplace, check=False,
    )  # fmt: skip
    assert "--dependency=afterok:4000: Slurm knows no job 4000" in refused
    assert slurm.jobs() == before
    # by hand, past recipes.submit: the batch script refuses it before torchrun
    script = ["--output=job.out", ROOT / "slurm/pretrain.sh", *SMALL, "parallel.tp=2", "parallel.cp=2"]
    number = slurm.run("sbatch", "--parsable", "--nodes=2", *script, cwd=workplace)
    assert slurm.end(number) == "FAILED"
    assert "does not divide the 2 process(es)" in (workplace / "job.out").read_text()
    assert "START" not in (workplace / "job.out").read_text()
