"""`recipes.synthesize` from the command line to the files, with a server that says what a test wants."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.command import entry, inputs, synthesizing
from llama31.sampling.drawing import read_lines
from llama31.slurm import synthesis
from llama31.synth import tasks
from recipes import synthesize
from tests.conftest import ROOT
from tests.sampling.scripted import Script, serving
from tests.synth.test_reward_servers import Rewarding


@dataclass
class Teacher(Script):
    """A chat model that asks of each snippet's colour, knows only blue, and judges by the snippet."""

    def text(self, number: int, prompt: Any, body: Mapping[str, Any], choice: int) -> str:
        last = prompt[-1]["content"]
        if "Write one question" in last:
            return f"What colour is {last.split('=====')[1].split()[0]}?"
        if "source that counts" in last:
            return f"Verdict: {'yes' if 'is blue' in last.split('=====')[1] else 'no'}"
        if "informative" in last:
            return "Verdict: yes"
        return "I do not know." if "not certain" in last else "Blue."


def words(folder: Path, url: str, *more: str) -> list[str]:
    given = folder / "snippets.jsonl"
    if not given.exists():
        colours = ["blue", "red", "green", "blue", "blue", "red"]
        given.write_text("".join(json.dumps({"text": f"item{n} is {c}."}) + "\n" for n, c in enumerate(colours)))
    begin = ["task=factuality", "name=facts", f"folder={folder}/made", f"input={given}", f"server.urls=[{url}]"]
    return [*begin, "factuality.answers=2", *more]


def run(*arguments: str) -> None:
    loaded = entry.read(config.Synthesize, "synthesize", list(arguments))[0]
    inputs.check(loaded)
    synthesize.main(loaded)


@dataclass
class Solver(Script):
    """A chat model whose own solutions are wrong, and whose next steps are right or wrong by turns."""

    def text(self, number: int, prompt: Any, body: Mapping[str, Any], choice: int) -> str:
        last = prompt[-1]["content"]
        if "Write the next step alone" in last:
            total = 12 if number % 2 else 13
            return "Step 1: 3 + 4 = 7." if "= 7." not in last else f"Step 2: 7 + 5 = {total}, \\boxed{{{total}}}"
        return "Verdict: correct" if "Check a solution" in last else "Step 1: 3 + 4 = 8.\n\nStep 2: \\boxed{13}"


def test_a_served_reward_model_guides_a_search(tmp_path: Path) -> None:
    """What both servers said is kept: the same command asks neither of them again."""
    (tmp_path / "problems.jsonl").write_text(json.dumps({"question": "What is 3 + 4 + 5?", "answer": "12"}) + "\n")
    reward = Rewarding(probs=lambda body: [0.25 if "13" in body["messages"][-1]["content"] else 0.75])
    with serving(Solver()) as url, serving(reward) as reward_url:
        made = tmp_path / "made"
        arguments = ["task=mathematics", "name=m", f"folder={made}", f"input={tmp_path}/problems.jsonl"]
        arguments += [f"server.urls=[{url}]", "mathematics.search.scorer=reward", "mathematics.search.simulations=3"]
        arguments += ["mathematics.answers=2", "mathematics.corrections=0", "mathematics.least_step=0.5"]
        with pytest.raises(config.ConfigError, match=r"reward\.urls=\[\]: .*search\.scorer, mathematics\.least_step"):
            run(*arguments)
        run(*arguments, f"reward.urls=[{reward_url}]")
        (dialog,) = read_lines(made / "dialogs.jsonl")
        assert "7 + 5 = 12" in dialog["messages"][-1]["content"] and dialog["origin"] == "search"
        assert dialog["provenance"]["models"]["reward"] == ["tiny"]
        written, asked = (made / "dialogs.jsonl").read_bytes(), len(reward.asked)
        run(*arguments, f"reward.urls=[{reward_url}]")
        assert (made / "dialogs.jsonl").read_bytes() == written
        assert len(reward.asked) == asked + 2, "whether it is there, and nothing else"


def test_from_snippets_to_dialogs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Teacher()) as url:
        run(*words(tmp_path, url, "shards=2", "part=make", "shard=1"))
        assert not (tmp_path / "made" / "dialogs.jsonl").exists()
        run(*words(tmp_path, url, "shards=2", "samples=6"))
        said = capsys.readouterr().out
        assert "shard 1: 0 kept, 0 dropped, 3 done before" in said and "6 of 6 items kept" in said
        lines = read_lines(tmp_path / "made" / "dialogs.jsonl")
        answers = [line["messages"][-1]["content"] for line in lines]
        assert answers == ["Blue.", "I do not know.", "I do not know.", "Blue.", "Blue.", "I do not know."]
        origin = lines[1]["provenance"]
        assert origin["models"] == {"judge": ["tiny"], "policy": ["tiny"]} and origin["sampling"]["seed"] == 1234
        assert origin["prompts"].keys() == {f"factuality/{n}" for n in (
            "answer", "correct", "informative", "question", "refusal")}  # fmt: skip
        page = (tmp_path / "made" / "summary.html").read_text()
        assert "What colour is item1?" in page and "right answers" in page
        with pytest.raises(ValueError, match=r"begun with shards=2 \(now 3\)"):
            run(*words(tmp_path, url, "shards=3"))
    # Gathering asks nobody.
    run(*words(tmp_path, url, "shards=2", "part=gather"))


def test_a_killed_run_goes_on_to_the_same_files(tmp_path: Path) -> None:
    """Killed while its server answers slowly, at a moment of its own."""
    kept = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        with serving(Teacher(slow_s=0.05 if name == "killed" else 0.0)) as url:
            given = words(folder, url, "server.concurrency=1")
            if name == "killed":
                command = [sys.executable, "-m", "recipes.synthesize", *given]
                child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                steps = folder / "made" / "shards" / "00000" / "steps.jsonl"
                try:
                    while child.poll() is None and not (steps.exists() and steps.stat().st_size > 3000):
                        pass
                    assert child.poll() is None
                finally:
                    child.kill()
                    child.wait(30)
            run(*given)
        kept[name] = [(folder / "made" / file).read_bytes() for file in ("dialogs.jsonl", "summary.json")]
    assert kept["whole"] == kept["killed"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["task=nothing"], "task=nothing: no such choice"),
        (["shard=4"], "shard=4: there are 1 shards; give at most 0"),
        (["server.urls=[]"], r"server.urls=\[\]: answers come from a chat model behind a server"),
        (["input=nowhere.jsonl"], "input=nowhere.jsonl: there is no such file"),
        (["input=README.md,nowhere.jsonl"], "input=nowhere.jsonl: there is no such file"),
        (["prompts=nowhere"], "prompts=nowhere: there is no such folder"),
    ],
)
def test_wrong_keys_are_refused(tmp_path: Path, given: list[str], said: str) -> None:
    with pytest.raises(config.ConfigError, match=said):
        run(*words(tmp_path, "http://nowhere:1/v1"), *given)


def test_shards_are_an_array_and_the_gathering_waits_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").mkdir()
    with serving(Teacher()) as url:
        given = words(tmp_path, url, "shards=3")
        run(*given, "part=make", "shard=1")
        capsys.readouterr()
        run(*given, "dry_run=true", "job.at_once=2", "job.partition=cpu")
        array, gather = capsys.readouterr().out.splitlines()
        run(*given)
        capsys.readouterr()
        run(*given, "dry_run=true")
        assert re.match(r"# make: done\n# gather: done, \S+/made has it", capsys.readouterr().out)
        (tmp_path / "snippets.jsonl").write_text(json.dumps({"text": "item0 is blue."}) + "\n")
        run(*given, "dry_run=true")
        assert capsys.readouterr().out.endswith("part=gather\n")
    assert "--array=0,2%2" in array and "--partition=cpu" in array and f"{synthesis.SCRIPT}" in array
    assert "--dependency=afterok:<make>" in gather.replace("'", "") and re.search(r"part=gather$", gather)


def test_a_field_that_no_record_has_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "snippets.jsonl").write_text('{"instruction": "What is it?", "output": "A stone."}\n')
    given = words(tmp_path, "http://127.0.0.1:1/v1")
    with pytest.raises(ValueError, match=r"text_key=text: no record .* has a field text; .* are: instruction, output"):
        run(*given)
    with pytest.raises(ValueError, match=r"has a field messages or text;"):
        run(*(word for word in given if not word.startswith("factuality.")), "task=guard")
    assert not (tmp_path / "made").exists()
    (tmp_path / "snippets.jsonl").write_text('{"conversations": [{"from": "human", "value": "What is it?"}]}\n')
    tasks.check_fields(keyed("guard", input=str(tmp_path / "snippets.jsonl")))


def keyed(task: str, **given: Any) -> config.Synthesize:
    """A config of values by keys, `__` in the place of dots."""
    made = config.Synthesize(task=task)
    for key, value in given.items():
        *sections, name = key.split("__")
        setattr(functools.reduce(getattr, sections, made), name, value)
    return made


@pytest.mark.parametrize(("task", "given", "said"), [
    ("factuality", {"steerability__rules": 3}, "rules=3: task=factuality does not read it; leave.*or give task=steer"),
    ("function_dialogs", {"programs__wall_s": 5.0}, r"programs.wall_s=5.0: .*; leave it out$"),
    ("tool_files", {"services__brave__max_requests": 5}, r"services.brave.max_requests=5: .*; leave it out$"),
    ("tool_single", {"services__brave__per_second": 2.0}, r", or give tool_single.search=brave$"),
    ("tool_multi", {"services__wolfram__url": "http://n"}, r", or give tool_multi.wolfram=wolfram$"),
    ("mathematics", {"programs__readable": ["/opt"]}, r"=\['/opt'\]: .*, or give mathematics.python.enabled=true$"),
    ("translate_code", {"judge__urls": ["http://n"]}, r"judge.urls=.*: task=translate_code .*; leave it out$"),
    ("code", {"review_code__revisions": 1}, r"review_code.revisions=1: .*, or give code.with_judge=true$"),
    ("guard", {"reward__urls": ["http://n"]}, r"reward.urls=.*, or give task=mathematics$"),
])  # fmt: skip
def test_keys_that_the_task_does_not_read_are_found(task: str, given: Mapping[str, Any], said: str) -> None:
    typed = [f"{key.replace('__', '.')}={value}" for key, value in given.items()]
    (issue,) = synthesizing.unread(keyed(task, **given), typed)
    assert re.search(said, str(issue))
    assert not synthesizing.unread(keyed(task, **given)) and synthesizing.warnings(keyed(task, **given))


@pytest.mark.parametrize(
    "url", ["api.search.brave.com/res", "", "https://", "https://a b/res", "ftp://a", "http://a:x"]
)
def test_an_address_of_a_service_that_is_none_is_refused(url: str) -> None:
    given = keyed("tool_single", tool_single__search="brave", services__brave__url=url)
    (issue,) = (issue for issue in synthesizing.problems(given) if issue.key != "server.urls")
    assert str(issue) == (
        f"services.brave.url={url}: no address of HTTP; give one such as https://api.search.brave.com/res/v1/web/search"
        ", or tool_single.search=local"
    )
    assert not synthesizing.problems(replace(given, server=config.Server(["http://n"]), services=config.ToolServices()))


def test_keys_that_the_task_reads_stay(tmp_path: Path) -> None:
    """Those of a file may be for several tasks, and are told; those of the command line are not."""
    for task, given in (
        ("code", {"code__with_judge": True, "review_code__revisions": 1, "programs__wall_s": 5.0}),
        (
            "tool_multi",
            {"tool_multi__search": "brave", "services__brave__per_second": 2.0, "judge__urls": ["http://n"]},
        ),
        ("mathematics", {"questions__per_text": 7, "reward__urls": ["http://n"], "factuality__answers": 8}),
    ):
        assert synthesizing.warnings(keyed(task, **given)) == []
    (tmp_path / "site.yaml").write_text("programs: {readable: [/opt/rust]}\nsteerability: {rules: 3}\n")
    given = ["name=x", "input=in.jsonl", "server.urls=[http://n:1/v1]", "--config-dir", str(tmp_path)]
    given += ["--config-name", "site"]
    (told,) = entry.read(config.Synthesize, "synthesize", [*given, "task=steerability"])[1]
    assert told == "task=steerability does not read what the config files give as programs.readable=['/opt/rust']"
    with pytest.raises(config.ConfigError, match=r"steerability.rules=4: task=factuality does not read it") as refused:
        entry.read(config.Synthesize, "synthesize", [*given, "task=factuality", "steerability.rules=4"])
    assert len(refused.value.issues) == 1
