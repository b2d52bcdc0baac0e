"""What sbatch makes of options and environment: what is left behind, what a job waits for, how long it may take."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from llama31 import config
from llama31.config import Job
from llama31.slurm import jobs, sbatch
from tests.conftest import ROOT
from tests.processes import LIMIT_S

SMALL = ["name=x", "model=tiny", "schedule=demo", "data=demo", "tokenizer=demo"]
KEY = "job.options"


def test_the_job_that_a_command_is_typed_in_stays_behind() -> None:
    own = {"SLURM_CONF": "c", "SBATCH_ACCOUNT": "team", "PYTHON": "p", "MAX_RESTARTS": "3", "PATH": "x", "HOME": "h"}
    step = dict.fromkeys(
        ("SLURM_JOB_ID", "SLURM_CPU_BIND", "SLURM_MEM_PER_CPU", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT",
         "SLURMD_NODENAME", "SRUN_DEBUG", "SQUEUE_STATES", "SBATCH_WAIT", "PMI_RANK", "RANK", "LOCAL_WORLD_SIZE",
         "MASTER_PORT", "PET_NNODES", "CUDA_VISIBLE_DEVICES"), "1",
    )  # fmt: skip
    assert sbatch.environment({**own, **step}) == own
    assert sbatch.environment({"CUDA_VISIBLE_DEVICES": "1"}) == {"CUDA_VISIBLE_DEVICES": "1"}  # no job's


@pytest.mark.parametrize("spelled", ["--time=4", "--time 4", "-t 4", "-t4", "--tim=4", "-t 9 --time=4"])
def test_options_are_known_however_they_are_spelled(spelled: str) -> None:
    words = ["--qos=high", *shlex.split(spelled), "-D", "x"]
    assert sbatch.option(words, "time", "t") == "4"
    assert sbatch.without(words, "time", "t") == ["--qos=high", "-D", "x"]
    assert sbatch.option(["--qos=high", "--test-only"], "time", "t") is None


def test_a_chain_waits_for_its_own_jobs_and_for_those_of_the_user() -> None:
    """Of two --dependency, sbatch takes the last alone."""
    job = Job(options="--qos=high -d afterok:5,afterany:7 --exclude=n3")
    first = jobs.single("pretrain", SMALL, job)
    second = jobs.single("convert", ["direction=to_hf", "hf=h", "checkpoint=c"], job)
    assert "-d afterok:5,afterany:7" in shlex.join(jobs.command(first, job))
    words = jobs.command(second, job, "17:18")
    waits = [word for word in words if word.startswith(("-d", "--dep"))]
    assert waits == ["--dependency=afterok:17:18,afterok:5,afterany:7"]
    assert {"--kill-on-invalid-dep=yes", "--qos=high", "--exclude=n3"} <= set(words)
    wrong = "-d afterok:5?afterok:6"
    for section in ("submit", "job"):
        with pytest.raises(ValueError, match=f"^{section}.options=--dependency=afterok.* join them by commas"):
            jobs.command(second, Job(options=wrong), "17", section=section)
    for array in (config.CurationJobs(options=wrong), config.SynthesisJobs(options=wrong)):
        with pytest.raises(ValueError, match="^job.options=--dependency=afterok"):
            sbatch.of_job(array, "17", {})


def test_jobs_to_wait_for_have_to_be_known_and_not_have_failed() -> None:
    states = {"5": "COMPLETED", "6": "FAILED", "7": "RUNNING", "8_2": "PENDING"}

    def ask(command: Sequence[str]) -> str:
        number = command[-1]
        if number not in states:
            raise config.RunError("slurm_load_jobs error: Invalid job id specified")
        return f"JobId={number} JobState={states[number]} Reason=None"

    for fine in ("afterok:5:7,afterany:6", "after:7+3?afterok:8_2", "singleton", "afterany:8_2"):
        sbatch.check_dependencies(["--dependency", fine], ask)
    for wrong, said in {
        "afterok:5:99": "Slurm knows no job 99",
        "afterany:99_4": "Slurm knows no job 99_4",
        "afterok:5,afterok:6": "job 6 ended FAILED, so what waits",
    }.items():
        with pytest.raises(config.RunError, match=re.escape(said)):
            sbatch.check_dependencies(["--dependency=" + wrong], ask)


def test_export_is_not_torn_and_a_site_that_hands_on_nothing_does_not_lose_what_was_set() -> None:
    given = {"PYTHON": "p", "MAX_RESTARTS": "3", "VLLM_OPTIONS": "a,b", "OTHER": "o"}
    for site in ("NONE", "NIL"):
        assert sbatch.export([], {**given, "SBATCH_EXPORT": site}, KEY) == ["--export=PYTHON,MAX_RESTARTS,VLLM_OPTIONS"]
        assert sbatch.export(["--export=NONE"], {**given, "SBATCH_EXPORT": site}, KEY) == []
    assert sbatch.export([], given, KEY) == sbatch.export([], {"SBATCH_EXPORT": "NONE"}, KEY) == []
    assert sbatch.export(["--export=ALL,PYTHON,X=1"], given, KEY) == []
    with pytest.raises(ValueError, match="^job.options=.* no variable 'b' here; export NAME=VALUE before"):
        sbatch.export(["--export=ALL,X=a,b"], given, KEY)


def test_limits_in_time_as_sbatch_reads_them() -> None:
    minutes = {"4": 4, "0:04:00": 4, "4:30": 4.5, "2:30:00": 150, "1-0": 1440, "1-2:30": 1590, "1-0:0:30": 1440.5}
    assert {text: (sbatch.seconds(text) or 0) / 60 for text in minutes} == minutes
    assert sbatch.seconds("infinite") is sbatch.seconds("0") is None


def test_a_limit_that_is_short_for_the_signal_is_named() -> None:
    script, options = sbatch.SCRIPTS / "pretrain.sh", list[str]()
    said = sbatch.short(script, "0:04:00", options, {})
    assert said is not None and "240 s is short" in said and "300 s before its end" in said and "@80" in said
    assert (
        sbatch.short(script, None, ["-t", "4"], {}) == sbatch.short(script, None, [], {"SBATCH_TIMELIMIT": "4"}) == said
    )
    assert sbatch.short(script, "0:04:00", ["--signal=B:USR1@80"], {}) is None
    assert sbatch.short(script, "0:11:00", options, {}) is sbatch.short(script, None, options, {}) is None
    assert sbatch.short(sbatch.SCRIPTS / "evaluate.sh", "4", options, {}) is None  # which has no signal


def asked(tmp_path: Path, start_s: int, left_s: int, preempted: str = "None") -> list[str]:
    """In how many seconds a job with this time left stops on USR1, and what it says."""
    ends = f"$(at {left_s})" if left_s else "Unknown"
    (tmp_path / "scontrol").write_text(
        '#!/bin/bash\nat() { date -d "now $1 seconds" +%Y-%m-%dT%H:%M:%S; }\n'
        f'echo "JobId=7 StartTime=$(at -{start_s}) EndTime={ends} PreemptTime={preempted} Command=x"\n'
    )
    (tmp_path / "scontrol").chmod(0o755)
    script = (
        f'PATH={tmp_path}:$PATH job=7; say() {{ echo "$*"; }}; source {ROOT}/slurm/job.sh; stop_when; echo $stop_at'
    )
    done = subprocess.run(["bash", "-uc", script], check=True, capture_output=True, text=True, timeout=LIMIT_S)
    return done.stdout.splitlines()[::-1]


def test_a_signal_that_comes_with_the_first_step_is_kept_until_a_third_is_left(tmp_path: Path) -> None:
    late, said = asked(tmp_path, 3, 237)
    assert (
        150 <= int(late) <= 158 and "left: too short for --signal=B:USR1@300" in said and "when 80 s are left" in said
    )
    at_once = [(170, 70, "None"), (3, 237, "2026-11-28T07:00:00"), (300, 86_100, "None"), (300, 0, "None")]
    for start_s, left_s, preempted in at_once:
        assert int(asked(tmp_path, start_s, left_s, preempted)[0]) <= 2


def test_every_task_gets_the_cores_of_the_smallest_node_and_the_gpus_that_were_asked_for() -> None:
    def said(**env: str) -> list[str]:
        words = ["bash", "-uc", f"source {ROOT}/slurm/job.sh; cores; gpus"]
        path = {"PATH": "/usr/bin:/bin"}
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=LIMIT_S, env={**path, **env})
        return done.stdout.split()

    assert said(SLURM_JOB_CPUS_PER_NODE="128(x3),64", SLURM_GPUS_PER_NODE="h100:4", SLURM_GPUS_ON_NODE="8") == [
        "64",
        "4",
    ]
    assert said(SLURM_JOB_CPUS_PER_NODE="96(x2)", SLURM_GPUS_ON_NODE="8") == ["96", "8"]
    assert said(SLURM_CPUS_ON_NODE="2") == ["2", "0"]


def test_every_script_finds_its_checkout_or_says_what_to_set(tmp_path: Path) -> None:
    """From sbatch -D with a relative script; from a folder with a space, with a script among its arguments; a copy."""
    home = tmp_path / "a b"
    (home / "slurm").mkdir(parents=True)
    (home / "slurm/env.sh").write_text('echo "home $LLAMA31_HOME" && exit\n')
    for path in sorted((ROOT / "slurm").glob("*.sh")):
        if path.name in ("env.sh", "job.sh", "launch.sh", "vllm.sh"):
            continue
        for place, called in (
            (home, f"slurm/{path.name} x=1"),
            (home / "slurm", path.name),
            (tmp_path, f"{home}/slurm/{path.name} y=/o/slurm/{path.name}"),
        ):
            found = _home(tmp_path, path, place, called)
            assert found.stdout == f"home {home}\n", (path.name, called, found)
    copy = _home(tmp_path, ROOT / "slurm/sft.sh", tmp_path, f"{tmp_path}/mine.sh")
    assert copy.returncode == 2 and "set LLAMA31_HOME=CHECKOUT before sbatch" in copy.stderr


def _home(tmp_path: Path, script: Path, place: Path, called: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "   Command={called}"\n')
    (tmp_path / "scontrol").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(place)}
    words = ["bash", str(script)]
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=LIMIT_S, env=env, cwd=tmp_path)
