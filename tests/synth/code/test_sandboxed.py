"""The real sandbox under the tasks of code, and the command from its keys to its files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.sampling.drawing import read_lines
from llama31.sandbox import cgroups
from llama31.sandbox.limits import MIB, SandboxLimits, SandboxUnavailable
from llama31.synth import tasks
from llama31.synth.code.execution import CodeExecution
from llama31.synth.code.running.bench import Bench
from tests.sampling.scripted import Script, serving
from tests.sandbox import bwrap
from tests.synth import scripted
from tests.synth.code.teacher import MARKS, Teacher
from tests.synth.test_synthesize import run

RIGHT = "def f(a):\n    return a + 1\n"
TESTS = "".join(f"assert f({n}) == {n + 1}\nprint('test-passed: {n}')\n" for n in range(3))
TESTS = f"from solution import f\n\n{TESTS}print('all-tests-done')\n"


def python(text: str) -> str:
    return f"```python\n{text}```"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("while True: pass", "it did not end in time"),
        ("open({planted!r}).read()", "FileNotFoundError"),
        ("open('/usr/planted', 'w')", "Read-only file system"),
        ("import socket; socket.create_connection(('127.0.0.1', 1), 2)", "Error: [Errno"),
        ("'a' * 10**10", "it took too much memory"),
    ],
)
def test_what_a_solution_may_not_do_is_told_and_mended(tmp_path: Path, body: str, told: str) -> None:
    planted = tmp_path / "planted"
    planted.write_text("secret of this machine")
    planted.chmod(0o644)
    bad = f"def f(a):\n    {body.format(planted=str(planted))}\n    return a + 1\n"
    says = {"problem": ["<problem>f(a)</problem>"], "solve": [python(bad)], "tests": [python(TESTS)]}
    teacher = Teacher({**says, "mend": [python(RIGHT)]})
    keys = config.SynthesisPrograms(bubblewrap=bwrap.program(), wall_s=10, cpu_s=1, memory_mib=256)
    bench = Bench(lambda: tasks.sandboxed(keys), ["python"])
    capability = CodeExecution(config.CodeSynthesis(), config.ReviewCodeSynthesis(), bench)
    result = scripted.run(tmp_path / "made", capability, scripted.items({"text": "x = 1\n"}), teacher)["0"]
    assert result["counts"]["kept: first wrong, then mended"] == 1
    said = teacher.heard["mend"][0][-1]["content"]
    assert told in said and "secret of this machine" not in said


@dataclass
class Server(Script):
    """Solves a problem rightly, wrongly with a right repair, or never, as its snippet says."""

    def text(self, number: int, prompt: Any, body: Mapping[str, Any], choice: int) -> str:
        last = prompt[-1]["content"]
        kind = next((name for name, mark in MARKS.items() if mark in last), "")
        if kind == "problem":
            return f"<problem>{last.split('=====')[1].strip()}: f(a) is a + 1.</problem>"
        wrong = RIGHT.replace("+ 1", "+ 2")
        said = "\n".join(message["content"] for message in prompt)
        answers = {"right": (RIGHT, RIGHT), "mended": (wrong, RIGHT), "never": (wrong, wrong)}
        first, later = next((pair for name, pair in answers.items() if f"{name}:" in said), (RIGHT, RIGHT))
        return python({"solve": first, "mend": later, "tests": TESTS}.get(kind, ""))


def words(folder: Path, url: str) -> list[str]:
    lines = ["right", "mended", "never"]
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    begin = ["task=code", "name=c", f"folder={folder}/made", f"input={folder}/in.jsonl", f"server.urls=[{url}]"]
    return [*begin, "code.languages=[python]", "code.repairs=1"]


def test_the_command_from_snippets_to_dialogs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Server()) as url:
        run(*words(tmp_path, url), f"programs.bubblewrap={bwrap.program()}")
    dialogs = read_lines(tmp_path / "made" / "dialogs.jsonl")
    assert [(one["solution"], one["repairs"]) for one in dialogs] == [(RIGHT, 0), (RIGHT, 1)]
    assert [len(one["messages"]) for one in dialogs] == [2, 4]
    summary = json.loads((tmp_path / "made" / "summary.json").read_text())
    assert summary["dropped"] == {"never passed: tests": 1}
    assert summary["counts"]["kept: first wrong, then mended"] == summary["counts"]["kept: right at once"] == 1
    said = capsys.readouterr().out
    assert "2 of 3 items kept" in said and "1 (50.0%) kept: first wrong, then mended" in said


def test_programs_that_do_not_fit_into_memory_at_once_are_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama31.sandbox.cgroups.memory_bound", lambda: (2048 * MIB, "/job/memory.max"))
    server = Server()
    programs = ["checks=3", "programs.memory_mib=700", f"programs.bubblewrap={bwrap.program()}"]
    with serving(server) as url:
        with pytest.raises(ValueError, match=r"checks=3: .*programs.memory_mib=700 .* 2,532 MiB, .* 2,048 \(/job/mem"):
            run(*words(tmp_path, url), *programs)
        assert server.asked == []
        run(*words(tmp_path, url), *programs, "dry_run=true")  # what runs elsewhere is not judged here


@pytest.mark.parametrize(("bound", "job"), [(2048 * MIB, True), (2048 * MIB, False), (500 * MIB, True), (10, False)])
def test_remedies_for_too_little_memory_work(monkeypatch: pytest.MonkeyPatch, bound: int, job: bool) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7") if job else monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    limits = SandboxLimits(memory_bytes=1024 * MIB)
    told = tasks.crowded(4, limits, bound, "/job/memory.max")
    if found := re.search(r"give .*\bchecks=(\d+)", told):
        assert tasks.crowded(int(found[1]), limits, bound, "") == ""
        assert tasks.crowded(int(found[1]) + 1, limits, bound, "") != ""
    if found := re.search(r"give .*memory_mib=(\d+)", told):
        assert tasks.crowded(4, replace(limits, memory_bytes=int(found[1]) * MIB), bound, "") == ""
        assert tasks.crowded(4, replace(limits, memory_bytes=(int(found[1]) + 2) * MIB), bound, "") != ""
    if found := re.search(r"--mem=(\d+)M", told):
        assert tasks.crowded(4, limits, int(found[1]) * MIB, "") == ""
    named = [
        word for word in ("checks=", "programs.memory_mib=", "--mem=", "a machine") if word in told.split("give")[1]
    ]
    assert (
        named
        == {
            (2048, True): ["checks=", "programs.memory_mib=", "--mem="],
            (2048, False): ["checks=", "programs.memory_mib="],
            (500, True): ["--mem="],
            (0, False): ["a machine"],
        }[bound // MIB, job]
    )
    assert ("--mem=" in tasks.crowded(4, limits, bound, cgroups.MACHINE)) is False


def test_without_a_sandbox_the_command_refuses_with_the_remedy(tmp_path: Path) -> None:
    server = Server()
    with serving(server) as url, pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        run(*words(tmp_path, url), "programs.bubblewrap=/nowhere/bwrap")
    assert not list(tmp_path.glob("made/**/dialogs.jsonl"))
