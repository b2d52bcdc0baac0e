"""Rounds as a chain of jobs, with stand-ins for Slurm's clients: what is submitted, what is not submitted again."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama31 import config
from llama31.post_train import rounds
from llama31.slurm import chains, submission
from llama31.slurm.jobs import Step
from recipes import post_train
from tests.post_train.test_rounds import MODEL, Pretender, argument, planned

NAMES = [f"round-01/{stage}" for stage in ("reward", "sample", "sft", "dpo", "previous", "answers", "judge")]
COMPOSE = chains.compose
SETS = [f'{stage}.set=[{MODEL},"parallel.micro_batch=1"]' for stage in ("reward", "sft", "dpo")]
# Files: `queue` is what squeue prints, `calls` what was asked for, `refused` what sbatch says against all.
CLIENTS = {
    "sbatch": """
[ -e $at/refused ] && { cat $at/refused >&2; exit 1; }
number=$(($(cat $at/last) + 1)) && echo $number >$at/last
for word in "$@"; do
    case "$word" in
    --comment=*) echo "$number PENDING ${word#--comment=}" >>$at/queue ;;
    --dependency=*) after=${word#--dependency=afterok:} ;;
    esac
done
echo "sbatch $number after ${after:-none}" >>$at/calls
echo "$number;test"
""",
    "squeue": '[ -z "${SQUEUE_STATES:-}" ] && cat $at/queue\n',
    "scontrol": """
sed -n "s/^$4 \\([A-Z]*\\).*/JobId=$4 JobState=\\1 Reason=None/p" $at/queue | grep . ||
    { echo "Invalid job id specified" >&2; exit 1; }
""",
    "scancel": 'echo "scancel $1" >>$at/calls && sed -i "/^$1 /d" $at/queue\n',
}


class Cluster:
    """What the stand-ins know, and what happens on the cluster that they stand for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.queue, self.calls = folder / "queue", folder / "calls"
        for path, text in ((self.queue, "1 RUNNING (null)\n2 PENDING\n"), (self.calls, ""), (folder / "last", "16\n")):
            path.write_text(text)

    def jobs(self) -> dict[str, str]:
        """Number and state of the jobs of the rounds, by stage."""
        return {
            re.sub(r".*/(?=round-)", "", comment): f"{number} {state}"
            for number, state, comment in (line.split(maxsplit=2) for line in self.queue.read_text().splitlines()[2:])
        }

    def becomes(self, stage: str, state: str | None) -> None:
        """A job changes its state, or is gone."""
        lines = self.queue.read_text().splitlines()
        changed = [re.sub(r" \w+ ", f" {state} ", line) if line.endswith(f"/{stage}") else line for line in lines]
        kept = [line for line in changed if state or not line.endswith(f"/{stage}")]
        self.queue.write_text("".join(f"{line}\n" for line in kept))

    def asked(self) -> list[str]:
        """What was submitted and cancelled since it was asked last."""
        found = self.calls.read_text().splitlines()
        self.calls.write_text("")
        return found


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    for name, text in CLIENTS.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\nset -e\nat={tmp_path}\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(chains, "compose", composed)
    return Cluster(tmp_path)


COMPOSED: dict[tuple[str, ...], Any] = {}


def composed(stage: chains.ChainedJob, known: Mapping[str, str], world: chains.World) -> tuple[Step, list[str]]:
    """A stage with its config in some folder: what Hydra takes its time for is the same in all tests."""
    key = (stage.name, *(text for text in stage.arguments if "=/" not in text and '"/' not in text))
    if key not in COMPOSED:
        step, _ = COMPOSE(stage, known, world)
        assert step is not None and step.arguments == stage.arguments, "rounds leave nothing to be taken"
        COMPOSED[key] = step.run
    run = dataclasses.replace(COMPOSED[key])
    if hasattr(run, "folder"):
        run.folder = argument(stage, "folder")
    return Step(stage.name, stage.recipe, stage.arguments, run, stage.after), []


def chained(folder: Path, *overrides: str) -> config.PostTrain:
    job = ["submit=true", "job.gpus_per_node=8", "job.partition=big"]
    return planned(folder / "runs", "rounds=1", *job, *SETS, *overrides)


def submitted(run: config.PostTrain) -> list[str]:
    printed: list[str] = []
    submission.submit(rounds.chain(run, rounds.stages(run)), printed.append)
    return printed


def does(run: config.PostTrain, *names: str) -> None:
    """The jobs of these stages come to their end."""
    for stage in rounds.stages(run):
        assert stage.name not in names or Pretender()(stage) == 0


def test_a_chain_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without Slurm
    variants = ['dpo.variants.a.set=["seed=1"]', 'dpo.variants.b.set=["seed=2"]']
    run = chained(tmp_path, "dry_run=true", "rounds=2", *variants)
    printed = submitted(run)
    assert printed[0].startswith("# what is queued is not known: squeue is not on this machine")
    commands = {text.split("\n")[0].removeprefix("# "): text.split("\n")[1] for text in printed[1:]}
    after = {name: re.findall(r"--dependency=afterok:(\S+)", line) for name, line in commands.items()}
    assert after["round-01/reward"] == [] and after["round-01/sample"] == ["ROUND_01_REWARD_JOB_ID"]
    assert after["round-01/dpo"] == ["ROUND_01_DPO_A_JOB_ID:ROUND_01_DPO_B_JOB_ID"]
    assert after["round-02/reward"] == ["ROUND_01_JUDGE_JOB_ID"]
    assert "slurm/average.sh" in commands["round-01/dpo"] and "slurm/sample.sh" in commands["round-01/answers"]
    assert all("--partition=big" in line for line in commands.values())
    assert f"--output={tmp_path}/runs/round-01/dpo/logs/" in commands["round-01/dpo"], "an average's is no run folder"
    # its folder is a link that a job before makes: a folder there, for its logs, would be in the way
    assert f"--output={tmp_path}/runs/round-02/previous/logs/" in commands["round-02/previous"]
    with pytest.raises(config.RunError, match="squeue is not on this machine; dry_run=true shows the command"):
        submitted(chained(tmp_path))


def test_what_is_queued_is_not_submitted_again(tmp_path: Path, cluster: Cluster) -> None:
    run = chained(tmp_path)
    assert submitted(run) == [f"{name}: job {number}" for number, name in enumerate(NAMES, 17)]
    assert cluster.asked() == [
        "sbatch 17 after none", "sbatch 18 after 17", "sbatch 19 after 18", "sbatch 20 after 19", "sbatch 21 after 17",
        "sbatch 22 after 20", "sbatch 23 after 22:21",
    ]  # fmt: skip
    cluster.becomes("round-01/reward", "RUNNING")
    said = [f"# {name}: queued as job {number} (PENDING)" for number, name in enumerate(NAMES, 17)]
    said[0] = "# round-01/reward: queued as job 17 (RUNNING)"
    assert submitted(run) == said == submitted(chained(tmp_path, "dry_run=true"))
    does(run, *NAMES[:2])
    cluster.becomes("round-01/reward", "COMPLETING")  # it has left what it should: its end is nobody's concern
    said[:2] = ["# round-01/reward: done", "# round-01/sample: done"]
    assert submitted(run) == said and cluster.asked() == []
    assert json.loads((tmp_path / "runs/stages/round-01-dpo.json").read_text())["job"] == "20"


def test_what_failed_is_submitted_again_with_what_came_after_it(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = chained(tmp_path)
    submitted(run)
    does(run, *NAMES[:2])
    for name in NAMES:  # sft has failed, and Slurm has removed what waited for it
        cluster.becomes(name, "RUNNING" if name == "round-01/previous" else None)
    cluster.asked()
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")  # a filter of the user's own hides nothing
    dry = submitted(chained(tmp_path, "dry_run=true"))
    assert dry[2] == "# round-01/sft: job 19 is gone, and this is not done"
    assert "--dependency=afterok:ROUND_01_ANSWERS_JOB_ID:21 " in dry[-1] and not cluster.asked()
    said = submitted(run)
    assert said[:4] == ["# round-01/reward: done", "# round-01/sample: done", dry[2], "round-01/sft: job 24"]
    assert said[6] == "# round-01/previous: queued as job 21 (RUNNING)"
    afresh = ("24 after none", "25 after 24", "26 after 25", "27 after 26:21")
    assert cluster.asked() == [f"sbatch {job}" for job in afresh]


def test_jobs_that_wait_for_one_that_is_gone_are_replaced(tmp_path: Path, cluster: Cluster) -> None:
    """As they are until Slurm's scheduler comes by."""
    run = chained(tmp_path)
    submitted(run)
    does(run, "round-01/reward", "round-01/sample", "round-01/previous")
    for name in ("round-01/reward", "round-01/sample", "round-01/sft", "round-01/previous"):
        cluster.becomes(name, None)
    cluster.asked()
    dry = submitted(chained(tmp_path, "dry_run=true"))
    assert "# round-01/dpo: job 20 waits for one that is gone\nscancel 20" in dry and not cluster.asked()
    submitted(run)
    assert cluster.asked() == [
        "sbatch 24 after none", "scancel 20", "sbatch 25 after 24", "scancel 22", "sbatch 26 after 25", "scancel 23",
        "sbatch 27 after 26",
    ]  # fmt: skip
    left = ("sft", "dpo", "answers", "judge")
    assert cluster.jobs() == {f"round-01/{name}": f"{number} PENDING" for number, name in enumerate(left, 24)}


def test_a_job_that_is_ending_is_waited_for(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled, or about to come back: squeue calls both COMPLETING."""
    run = chained(tmp_path)
    submitted(run)

    def after_a_while(state: str | None) -> list[str]:
        cluster.becomes("round-01/reward", "COMPLETING")
        cluster.asked()
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda s: cluster.becomes("round-01/reward", state))
        monkeypatch.setattr(submission, "time", clock)
        return submitted(run)

    said = after_a_while("PENDING")
    assert said[:2] == ["# job 17 is ending; waiting for that", "# round-01/reward: queued as job 17 (PENDING)"]
    assert cluster.asked() == []
    said = after_a_while(None)
    assert said[:3] == [said[0], "# round-01/reward: job 17 is gone, and this is not done", "round-01/reward: job 24"]
    assert cluster.asked()[:3] == ["sbatch 24 after none", "scancel 18", "sbatch 25 after 24"]
    cluster.becomes("round-01/reward", "COMPLETING")
    monkeypatch.setattr(submission, "ENDING_S", -1)
    with pytest.raises(config.RunError, match="job 24 has been ending for -1 s; wait until squeue shows it no more"):
        submitted(run)


def test_a_submission_that_broke_off_goes_on(tmp_path: Path, cluster: Cluster) -> None:
    """sbatch fails, or fails to say that it did not: the queue is believed, not what was noted."""
    run = chained(tmp_path)
    submission.submit(rounds.chain(run, rounds.stages(run)[:2]), lambda text: None)
    (tmp_path / "refused").write_text("sbatch: error: Socket timed out on send/recv operation\n")
    with pytest.raises(config.RunError, match="Socket timed out"):
        submitted(run)
    (tmp_path / "refused").unlink()
    assert submission.record(Path(run.folder), "round-01/sft")["job"] is None
    with cluster.queue.open("a") as queue:
        queue.write(f"40 PENDING {tmp_path}/runs/round-01/sft\n")
    said = submitted(run)
    assert said[2:4] == ["# round-01/sft: queued as job 40 (PENDING)", "round-01/dpo: job 19"]
    assert cluster.asked()[2] == "sbatch 19 after 40"


def test_a_number_that_came_again_is_not_taken_for_the_job(tmp_path: Path, cluster: Cluster) -> None:
    run = chained(tmp_path)
    submitted(run)
    others = [f"{number} RUNNING /elsewhere/round-01/{name}\n" for number, name in enumerate(NAMES, 17)]
    cluster.queue.write_text("".join(others))
    assert [text for text in submitted(run) if text[0] != "#"][::6] == [
        "round-01/reward: job 24",
        "round-01/judge: job 30",
    ]


@pytest.mark.parametrize(
    ("happens", "overrides", "said"),
    [
        (
            lambda cluster: None,
            [f'sft.set=[{MODEL},"parallel.micro_batch=1","seed=9"]'],
            r"folder=\S+: round-01/sft is queued as job 19 by another command, without seed=9; give another name, or "
            "scancel 19",
        ),
        (
            lambda cluster: [cluster.becomes("round-01/reward", None), cluster.becomes("round-01/sample", "RUNNING")],
            [],
            "round-01/sample is RUNNING as job 18, but round-01/reward, which it needs, is neither done nor queued; "
            "wait for the job's end, or scancel 18",
        ),
        (
            lambda cluster: cluster.queue.write_text(cluster.queue.read_text() * 2),
            [],
            "round-01/reward is queued twice, as jobs 17 and 17; scancel one of them",
        ),
        (lambda cluster: None, ["job.options=--comment=mine"], "job.options=--comment=mine: by its comment a job is"),
        (lambda cluster: None, ["submit=false"], r"submit=false: round-01/reward is queued as job 17 \(PENDING\); g"),
    ],
)  # fmt: skip
def test_wrong_states_are_refused_before_anything_is_submitted(
    happens: Callable[[Cluster], object], overrides: list[str], said: str, tmp_path: Path, cluster: Cluster
) -> None:
    submitted(chained(tmp_path))
    happens(cluster)
    cluster.asked()
    run = chained(tmp_path, *overrides)
    with pytest.raises(ValueError, match=said):
        post_train.main(run)
    assert cluster.asked() == []


def test_slurm_is_asked_only_where_there_were_jobs(tmp_path: Path, cluster: Cluster) -> None:
    run = chained(tmp_path, "submit=false")
    jobs = rounds.chain(run, rounds.stages(run))
    squeue = tmp_path / "bin/squeue"
    squeue.write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    squeue.chmod(0o755)
    submission.refuse_queued(jobs)
    submission.note(jobs.folder, jobs.steps[0], [], "17")
    with pytest.raises(config.RunError, match="no controller. .*round-01-reward.json names a job, which may be queued"):
        submission.refuse_queued(jobs)
    does(run, "round-01/reward")
    submission.refuse_queued(jobs)
