"""slurm/sample.sh and serve.sh with stand-ins for Slurm, Python and vLLM: servers start, answer, and leave in time."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.processes import LIMIT_S

SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
for ((SLURM_NODEID = 0; SLURM_NODEID < SLURM_JOB_NUM_NODES; SLURM_NODEID++)); do
    SLURM_NODEID=$SLURM_NODEID "$@" &
    children+=" $!"
done
trap 'kill $children; wait $children; exit 143' TERM
wait $children
"""
SCONTROL = """#!/bin/bash
[ "$1" = requeue ] && echo "requeued $2" >>"$HERE/told"
[ "$2" = hostnames ] && printf '127.0.0.%d\n' $(seq "$SLURM_JOB_NUM_NODES")
exit 0
"""
PYTHON = """#!/bin/bash
echo "python $*" >>"$HERE/told"
case "$*" in
*recipes.convert*) mkdir -p "$HERE/drawn/hf" && touch "$HERE/drawn/hf/config.json" ;;
*recipes.sample*)
    for i in $(seq 9999); do
        (exec 3<>/dev/tcp/127.0.0.1/$VLLM_PORT) 2>/dev/null && break
        sleep 0.1
    done
    [ "$i" = 9999 ] && exit 7
    echo "server is up" >>"$HERE/told"
    touch "$HERE/drawing"
    sleep "$DRAWS_S" & wait $!
    exit "$DRAW_CODE"
    ;;
esac
"""
VLLM = """#!/bin/bash
echo "vllm $* PYTHONPATH=$PYTHONPATH" >>"$HERE/told"
case "$*" in *--headless*) exec sleep 9999 ;; esac
if [ "$VLLM_DIES" = 1 ]; then
    "$REAL_PYTHON" -m http.server --bind 127.0.0.1 "$VLLM_PORT" >/dev/null 2>&1 &
    until [ -e "$HERE/drawing" ]; do sleep 0.1; done
    kill $!
    exit 1
fi
exec "$REAL_PYTHON" -m http.server --bind 127.0.0.1 "$VLLM_PORT" >/dev/null 2>&1
"""
LAUNCH = """#!/bin/bash
(exec 3<>/dev/tcp/127.0.0.1/$VLLM_PORT) 2>/dev/null && echo "server still there" >>"$HERE/told"
echo "launch $*" >>"$HERE/told"
"""


class Job:
    """One job of the script, in a folder of its own."""

    def __init__(self, here: Path, draws_s: float = 0.2, code: int = 0, vllm: bool = True, **further: str) -> None:
        self.here, self.log = here, here / "told"
        self.log.touch()
        shutil.copytree(ROOT / "slurm", here / "home" / "slurm")
        programs = {"bin/srun": SRUN, "bin/scontrol": SCONTROL, "python": PYTHON, "vllm": VLLM}
        for name, text in {**programs, "home/slurm/launch.sh": LAUNCH}.items():
            (here / name).parent.mkdir(exist_ok=True)
            (here / name).write_text(text)
            (here / name).chmod(0o755)
        with socket.socket() as result:
            result.bind(("127.0.0.1", 0))
            self.port = result.getsockname()[1]
        self.environment = {
            **os.environ, "PATH": f"{here / 'bin'}:{os.environ['PATH']}", "HERE": str(here),
            "LLAMA31_HOME": str(here / "home"), "PYTHON": str(here / "python"), "REAL_PYTHON": sys.executable,
            "VLLM_PORT": str(self.port), "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1",
            "SLURM_CPUS_ON_NODE": "2", "SLURM_GPUS_ON_NODE": "8", "DRAWS_S": str(draws_s), "DRAW_CODE": str(code),
            "VLLM_DIES": "0", **further,
        }  # fmt: skip
        if vllm:
            self.environment["VLLM_PYTHON"] = str(here / "vllm")

    def start(self, *further: str) -> subprocess.Popen[bytes]:
        words = [f"folder={self.here / 'drawn'}", "prompts=p.jsonl", "policy=runs/x", *further]
        script = str(self.here / "home" / "slurm" / "sample.sh")
        return subprocess.Popen(["bash", script, *words], env=self.environment, stdin=subprocess.DEVNULL)

    def serve(self, *further: str) -> subprocess.Popen[str]:
        """The script that serves; what it serves is well."""
        (self.here / "health").touch()
        script = str(self.here / "home" / "slurm" / "serve.sh")
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(["bash", script, *further], env=self.environment, cwd=self.here, text=True, **streams)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def port_is_free(self) -> bool:
        with socket.socket() as result:
            return result.connect_ex(("127.0.0.1", self.port)) != 0


def test_servers_are_gone_before_the_ranking(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert job.start("reward=runs/r").wait(LIMIT_S) == 0
    export, draw, up, launch = [line for line in job.lines() if not line.startswith("vllm")]
    (vllm,) = [line for line in job.lines() if line.startswith("vllm")]
    assert "recipes.convert direction=to_hf checkpoint=runs/x" in export
    assert f"serve {tmp_path}/drawn/hf --served-model-name policy" in vllm and "--tensor-parallel-size 8" in vllm
    assert "--nnodes" not in vllm
    assert "--generation-config vllm" in vllm, "or the folder's file would say what the answers are drawn with"
    assert vllm.endswith("PYTHONPATH=")  # vLLM's environment is its own
    assert f'part=draw server.urls=["http://127.0.0.1:{job.port}/v1"] server.wait_s=3600' in draw
    assert up == "server is up" and launch.startswith("launch sample") and launch.endswith("reward=runs/r part=rank")
    assert job.port_is_free()


@pytest.mark.parametrize(("further", "code"), [((), 0), (("reward=r", "part=draw"), 0), (("reward=r",), 3)])
def test_nothing_is_ranked_that_need_not_or_cannot(tmp_path: Path, further: tuple[str, ...], code: int) -> None:
    job = Job(tmp_path, code=code)
    assert job.start(*further).wait(LIMIT_S) == code
    assert not any(line.startswith("launch") for line in job.lines()) and job.port_is_free()


def test_a_server_takes_several_nodes(tmp_path: Path) -> None:
    nodes = {"SLURM_JOB_NUM_NODES": "4", "VLLM_NODES_PER_SERVER": "2"}
    job = Job(tmp_path, **nodes)
    assert job.start().wait(LIMIT_S) == 0
    started = [line for line in job.lines() if line.startswith("vllm")]
    for head, rank in itertools.product((1, 3), (0, 1)):
        given = f"--pipeline-parallel-size 2 --nnodes 2 --node-rank {rank} --master-addr 127.0.0.{head} "
        (line,) = [line for line in started if given in line]
        assert ("--headless" in line) == (rank == 1)
    (draw,) = [line for line in job.lines() if "part=draw" in line]
    assert f'server.urls=["http://127.0.0.1:{job.port}/v1","http://127.0.0.3:{job.port}/v1"]' in draw


def test_nodes_that_no_server_would_take_are_refused(tmp_path: Path) -> None:
    job = Job(tmp_path, SLURM_JOB_NUM_NODES="3", VLLM_NODES_PER_SERVER="2")
    assert job.start().wait(LIMIT_S) == 2
    assert job.lines() == []


def test_drawing_ends_with_the_last_server(tmp_path: Path) -> None:
    job = Job(tmp_path, draws_s=600, VLLM_DIES="1")
    assert job.start("reward=r").wait(LIMIT_S) == 143
    assert not any(line.startswith("launch") for line in job.lines()) and job.port_is_free()


def test_ranking_alone_and_our_own_decoder_start_no_server(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rank, own = Job(tmp_path / "a"), Job(tmp_path / "b", vllm=False)
    assert rank.start("part=rank", "reward=r").wait(LIMIT_S) == own.start("reward=r").wait(LIMIT_S) == 0
    assert [line.split()[0] for line in rank.lines()] == ["launch"]
    (line,) = own.lines()
    assert line.startswith("launch sample") and "part=rank" not in line


def test_a_signal_brings_the_job_back(tmp_path: Path) -> None:
    job = Job(tmp_path, draws_s=600)
    child = job.start("reward=r")
    for _ in range(10 * LIMIT_S):
        if (tmp_path / "drawing").exists():
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGUSR1)
    assert child.wait(LIMIT_S) == 0
    assert job.lines()[-1] == "requeued 7" and job.port_is_free()
    assert not any(line.startswith("launch") for line in job.lines())


# --- serve.sh ---


def test_a_server_is_split_over_the_nodes_and_named_when_it_answers(tmp_path: Path) -> None:
    """As the 405B in BF16 needs it; told to stop, it comes back and leaves nothing behind."""
    job = Job(tmp_path, SLURM_JOB_NUM_NODES="2")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text('{"quantization_config": {"quant_method": "fbgemm_fp8"}}')
    child = job.serve("model=hf", "--max-model-len", "4096", "name=mine")
    assert child.stdout is not None
    said = next(line for line in child.stdout if " answers at " in line)
    assert said.endswith(f"mine answers at http://127.0.0.1:{job.port}/v1\n")
    child.send_signal(signal.SIGTERM)
    rest, _ = child.communicate(timeout=LIMIT_S)
    assert child.returncode == 0 and "serving goes on in a new attempt" in rest and "answers" not in rest
    assert job.lines()[-1] == "requeued 7" and job.port_is_free()
    started = [line for line in job.lines() if line.startswith("vllm")]
    for rank in (0, 1):
        given = f"--pipeline-parallel-size 2 --nnodes 2 --node-rank {rank} --master-addr 127.0.0.1 "
        (line,) = [line for line in started if given in line]
        assert "serve hf --served-model-name mine" in line
        assert "--tensor-parallel-size 8 --allow-deprecated-quantization --max-model-len 4096" in line
        assert ("--headless" in line) == (rank == 1)


def test_a_node_of_its_own_needs_no_pipeline_and_a_dead_server_ends_the_job(tmp_path: Path) -> None:
    job = Job(tmp_path, VLLM_DIES="1")
    (tmp_path / "drawing").touch()
    (tmp_path / "config.json").touch()
    child = job.serve(f"model={tmp_path}")
    said, _ = child.communicate(timeout=LIMIT_S)
    assert child.returncode == 1 and "END all servers have ended, exit code" in said
    (line,) = [line for line in job.lines() if line.startswith("vllm")]
    assert "pipeline" not in line and "deprecated" not in line and line.endswith("PYTHONPATH=")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vllm": False}, "VLLM_PYTHON is not set"),
        ({"SLURM_JOB_NUM_NODES": "3", "VLLM_NODES_PER_SERVER": "2"}, "does not divide the 3 node"),
        ({}, "model=nowhere: no Hugging Face folder; make one"),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    job = Job(tmp_path, **given)
    (tmp_path / "config.json").touch()
    child = job.serve("model=nowhere" if not given else "model=.")
    said, _ = child.communicate(timeout=LIMIT_S)
    assert child.returncode == 2 and message in said and job.lines() == []
