"""Commands as a newcomer types them: help, refusals and their exit status, without torch."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import subprocess
import sys
import typing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import recipes
from llama31 import config
from llama31.command import usage, written
from llama31.command.entry import _quoted, compose
from llama31.command.validate import validate
from tests import forkserver
from tests.conftest import ROOT, Command
from tests.processes import LIMIT_S

RECIPES = {
    "curate": config.Curate,
    "pack": config.Pack,
    "pretrain": config.Pretrain,
    "sft": config.Sft,
    "reward": config.Reward,
    "dpo": config.Dpo,
    "sample": config.Sample,
    "score": config.Score,
    "judge": config.Judge,
    "post_train": config.PostTrain,
    "convert": config.Convert,
    "average": config.Average,
    "evaluate": config.Evaluate,
    "probe": config.Probe,
    "benchmark": config.Benchmark,
    "simulate": config.Simulate,
    "plan": config.Plan,
    "scaling": config.Scaling,
    "submit": config.Submit,
    "report": config.Report,
}
LOAD = """
import sys
from llama31 import config
from llama31.command import entry
name = "".join(word.capitalize() for word in sys.argv[1].split("_"))
entry.load(getattr(config, name), sys.argv[1], sys.argv[2:])
print("loaded")
"""
TELL = {forkserver.TELL: "1"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_lists_every_key(recipe: str, quick: Command) -> None:
    result = quick("-c", LOAD, recipe, "--help", check=True, env=TELL)
    assert f"usage: python -m recipes.{recipe}" in result.stdout
    for name, _, field in usage.keys(RECIPES[recipe]):
        assert f"  {name}  (" in result.stdout
        assert field.metadata["help"] in result.stdout
    for name, hint in typing.get_type_hints(RECIPES[recipe]).items():
        if dataclasses.is_dataclass(hint):
            assert f"  {name}: {str(hint.__doc__).strip().splitlines()[0]}\n" in result.stdout
    assert result.stderr.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("recipe", [name for name in RECIPES if (ROOT / "recipes" / f"{name}.py").exists()])
def test_recipes_answer_help_and_refuse_a_wrong_key(recipe: str, quick: Command) -> None:
    assert "keys (type, default)" in quick("-m", f"recipes.{recipe}", "-h", check=True).stdout
    result = quick("-m", f"recipes.{recipe}", "typo=1", env=TELL)
    assert result.returncode == 2
    assert "typo=1: no such key" in result.stderr and "Traceback" not in result.stderr
    assert not {"torch", "deepspeed", "transformers"} & set(result.stderr.splitlines()[-1].split())


def test_help_into_a_reader_that_leaves() -> None:
    line = f"{sys.executable} -m recipes.pretrain --help | head -n1"
    result = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert result.stdout.startswith("usage: ") and result.stderr == ""


def test_refusal_names_everything_and_ends_with_2(quick: Command) -> None:
    words = ["pretrain", "--config-name", "demo", "parallel.tp=two", "+typo=1", "parallel.pp=3"]
    result = quick("-c", LOAD, *words, env=TELL)
    assert result.returncode == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0] == "python -m recipes.pretrain: 4 problems in the configuration"
    assert lines[1].startswith("  +typo=1: no key can be added")
    assert lines[2] == "  parallel.tp=two: wrong type; give a whole number"
    assert lines[3].startswith("  parallel.pp=3: 8 layers do not split")
    assert lines[5] == "  nearest layout that works with 1 process(es): parallel.pp=1 (dp=1)"
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("given", ["hello", "["])
def test_refused_prompts_are_the_only_problem(given: str, quick: Command) -> None:
    result = quick("-c", LOAD, "evaluate", "checkpoint=x", "tokenizer=demo", f"prompts={given}")
    lines = result.stderr.splitlines()
    assert lines[0] == "python -m recipes.evaluate: 1 problem in the configuration"
    assert (
        lines[1].startswith(f"  prompts={given}: ") and """give a list of quoted texts, 'prompts=["..."]'""" in lines[1]
    )


def test_only_one_process_speaks(quick: Command) -> None:
    result = quick("-c", LOAD, "pretrain", "--config-name", "demo", "typo=1", env={"RANK": "3", "WORLD_SIZE": "4"})
    assert (result.returncode, result.stderr) == (2, "")


def test_warning_of_a_wasteful_layout(quick: Command) -> None:
    words = [
        "pretrain",
        "--config-name",
        "demo",
        "parallel.pp=4",
        "parallel.micro_batch=1",
        "schedule.batch_tokens=512",
    ]
    result = quick("-c", LOAD, *words, env={"RANK": "0", "WORLD_SIZE": "4"}, check=True)
    assert "warning: parallel.pp=4: only 2 micro-batches" in result.stderr and "loaded" in result.stdout
    assert quick("-c", LOAD, *words, env={"RANK": "1", "WORLD_SIZE": "4"}, check=True).stderr == ""


def test_cfg_prints_the_whole_config(quick: Command) -> None:
    result = quick("-c", LOAD, "pretrain", "--config-name", "demo", "--cfg", "parallel.tp=2", check=True)
    assert "folder: runs/demo\n" in result.stdout and "  tp: 2\n" in result.stdout and "loaded" not in result.stdout


@pytest.mark.parametrize("words", [["--config-name", "nope"], ["--config-dir", "nope"]])
def test_wrong_file_or_folder(words: list[str], quick: Command) -> None:
    result = quick("-c", LOAD, "pack", *words)
    assert result.returncode == 2 and "there is no such" in result.stderr and "Traceback" not in result.stderr


# --- values and keys that are refused or taken as they stand ---


def composed(*overrides: str) -> config.Pretrain:
    return compose(config.Pretrain, "demo", overrides)


def refused(run: object) -> str:
    with pytest.raises(config.ConfigError) as caught:
        validate(run, 1)
    return str(caught.value)


DATA = "data=code_expert|demo|multilingual_expert|own|report|report_anneal"
SECTION = "is a section with keys of its own; "


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("name=", "name=: is empty; give name=..."),
        ("folder=", "folder=: is empty; give folder=..."),
        ("schedule.peak_lr=inf", "schedule.peak_lr=inf: not finite; give a finite number"),
        ("schedule.final_lr=nan", "schedule.final_lr=nan: not finite"),
        ("data.sources.docs.weight=inf", "data.sources.docs.weight=inf: not finite"),
        (f"optimizer.eps=1{'0' * 400}", "wrong type"),
        ("data.seed=18446744073709551616", "data.seed=18446744073709551616: out of range; give at most 92233"),
        *(
            (f"schedule.{name}_tokens=1e30", ": out of range; give at most 10000000000000000")
            for name in ("total", "batch", "warmup", "decay")
        ),
        ("schedule.ramp=[{from_tokens: 1e30, batch_tokens: 5, sequence_length: 5}]", "out of range; give at most 1000"),
        ("schedule.ramp=[{from_tokens: 1, batch_tokens: 1e30, sequence_length: 5}]", "out of range; give at most 1000"),
        ("data.sources=null", f"data.sources=null: {SECTION}choose {DATA}, or name"),
        ("data.sources={}", f"data.sources={{}}: {SECTION}choose {DATA}, or name"),
        ("data.sources.docs=x", f"data.sources.docs=x: {SECTION}give data.sources.docs.KEY=VALUE"),
        ("optimizer=null", f"optimizer=null: {SECTION}give optimizer.KEY=VALUE"),
        ("data.sources.a/b.input=x", "data.sources.a/b.input=x: no name for a source; give letters, digits, _ and -"),
        ("data.sources.2nd.input=x", "data.sources.2nd.input=x: no name for a source"),
    ],
)
def test_refused_value(override: str, said: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        validate(composed(override), 1)
    assert said in str(caught.value) and len(caught.value.issues) == 1


def evaluation(*overrides: str) -> config.Evaluate:
    return compose(config.Evaluate, "evaluate", ["checkpoint=x", "tokenizer=demo", *overrides])


@pytest.mark.parametrize("name", ["a-b", "A_1"])
def test_names_of_sources(name: str) -> None:
    run = composed(f"data.sources.{name}.input=x")
    assert run.data.sources[name].input == "x" and validate(run, 1) == []


def test_wrong_names_of_sources_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("folder: x\nsources: {a/b: {input: x}, 7: {input: x}}\n")
    run = compose(config.Pretrain, "demo", ["data=mine"], tmp_path)
    text = refused(run)
    assert "data.sources=a/b: no name for a source; give letters" in text and "data.sources=7" not in text


PROMPTS = ["costs ${HOME} here", "???", "${", r"\${a b}", r"\\${x", "$1 {}", "${name}", "plain \\", 'a "quote"']


def test_prompts_are_data(tmp_path: Path) -> None:
    words = ", ".join(_quoted(text) for text in PROMPTS)
    run = evaluation(f"prompts=[{words}]")
    assert run.prompts == PROMPTS and validate(run, 1) == []
    (tmp_path / "again.yaml").write_text(written.to_yaml(run))
    assert compose(config.Evaluate, "again", [], tmp_path) == run
    assert evaluation("prompts=[costs${HOME}, 3]").prompts == ["costs${HOME}", "3"]


def test_missing_keys_are_named_beside_prompts() -> None:
    with pytest.raises(config.ConfigError) as caught:
        compose(config.Evaluate, "evaluate", ["tokenizer=demo", 'prompts=["???"]'])
    assert [issue.key for issue in caught.value.issues] == ["checkpoint"]


def test_output_has_a_place(tmp_path: Path) -> None:
    run = evaluation('prompts=["x"]')
    for output, said in [
        ("/nope/x.json", "output=/nope/x.json: there is no folder /nope; create it, or give another file"),
        (str(tmp_path), f"output={tmp_path}: is no file"),
        ("", "output=: is no file"),
    ]:
        assert said in refused(dataclasses.replace(run, output=output))
    for output in [str(tmp_path / "x.json"), "x.json", "/dev/null"]:
        assert validate(dataclasses.replace(run, output=output), 1) == []


def test_output_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    from recipes.evaluate import write

    for text in ("old", "new"):
        write(tmp_path / "x.json", text)
        assert (tmp_path / "x.json").read_text() == text
    write(Path("/dev/null"), "x")
    with pytest.raises(ValueError, match=r"output=/proc/x.json: cannot be written .* stands above"):
        write(Path("/proc/x.json"), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(run: config.Report) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes.inputs, "check", lambda run: None)
    with pytest.raises(SystemExit) as ended:
        recipes.start(interrupted, config.Report, "report", ["runs=[x]"])
    assert ended.value.code == 130


def test_what_a_process_of_a_pool_refuses_is_told_as_what_this_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(run: config.Report, of: str, *given: Any) -> None:
        called = {"ours": compose, "others": json.loads}[of]
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.submit(called, *given).result()

    monkeypatch.setattr(recipes.inputs, "check", lambda run: None)
    with pytest.raises(SystemExit, match="^python -m recipes.report: .*no_such_key"):
        recipes.start(
            lambda run: refused(run, "ours", config.Report, "report", ["no_such_key=1"]),
            config.Report,
            "report",
            ["runs=[x]"],
        )
    with pytest.raises(json.JSONDecodeError):
        recipes.start(lambda run: refused(run, "others", "{"), config.Report, "report", ["runs=[x]"])
