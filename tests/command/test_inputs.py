"""A missing file is named before torch is loaded, and what is there is taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import recipes
from llama31 import config
from llama31.command import inputs
from llama31.command.entry import compose
from tests import forkserver
from tests.conftest import Command


def made(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def problems(run: object) -> list[str]:
    with pytest.raises(config.ConfigError) as caught:
        inputs.check(run)
    return [str(issue) for issue in caught.value.issues]


def test_everything_that_a_run_will_miss_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = compose(config.Pretrain, "demo", ["data.folder=d", "tokenizer.path=d/tokenizer", "init_from=x"])
    tokenizer, python, docs, start = problems(run)
    assert tokenizer.startswith("tokenizer.path=d/tokenizer: there is no d/tokenizer/tokenizer.json; train it first")
    assert "there is no d/docs/packed.json; pack it first" in docs and "there is no d/python/packed.json" in python
    assert start == "init_from=x: there is no such folder; give a checkpoint folder (.../step-00000100) or a run folder"
    made(tmp_path, "d/tokenizer/tokenizer.json", "d/docs/packed.json", "d/python/packed.json", "x/notes.txt")
    assert problems(run) == [
        "init_from=x: it holds no complete checkpoint, but notes.txt; "
        "give a checkpoint folder (.../step-00000100) or a run folder"
    ]
    made(tmp_path, "x/checkpoints/step-00000003/checkpoint.json")
    inputs.check(run)


def test_what_the_gates_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path, *(f"data/demo/{name}" for name in ("tokenizer/tokenizer.json", "docs/packed.json")))
    made(tmp_path, "data/demo/python/packed.json", "before/checkpoint.json")
    words = ["init_from=before", "gates.baseline=b.json", "gates.tasks.arc.path=arc.jsonl", "gates.needle.haystack=hay"]
    words += ["name=x", "model=tiny", "schedule=demo", "data=demo", "tokenizer=demo"]
    run = compose(config.Pretrain, "long_context", words)
    haystack, task, baseline = problems(run)
    assert haystack.startswith("gates.needle.haystack=hay: neither a text file nor a source of data (python, docs)")
    assert task.startswith("gates.tasks.arc.path=arc.jsonl: cannot be read")
    assert baseline.startswith("gates.baseline=b.json: there is no such file; evaluate the model before (recipes.eval")
    made(tmp_path, "runs/x/gates.json")
    assert problems(run) == [haystack, task]
    run.gates.every_tokens = None
    inputs.check(run)


@pytest.mark.parametrize("place", ["x/checkpoint.json", "x/step-00000001/checkpoint.json", "x-a0002/checkpoint.json"])
def test_checkpoints_are_found_where_they_may_be(place: str, tmp_path: Path) -> None:
    run = config.Convert(direction="to_hf", hf="new", checkpoint=str(tmp_path / "x"))
    assert "there is no such folder" in problems(run)[0]
    made(tmp_path, place)
    inputs.check(run)


@pytest.mark.parametrize(
    ("direction", "files"),
    [("from_hf", ["config.json", "model.safetensors"]), ("from_meta", ["params.json", "consolidated.00.pth"])],
)
def test_weights_to_convert(direction: str, files: list[str], tmp_path: Path) -> None:
    run = config.Convert(direction=direction, hf=str(tmp_path / "hf"), checkpoint="new")
    assert f"hf={tmp_path / 'hf'}: there is no such folder" in problems(run)[0]
    made(tmp_path / "hf", files[0])
    assert ": it has no " in problems(run)[0]
    made(tmp_path / "hf", files[1])
    inputs.check(run)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrain", "--config-name", "demo", "data.folder=nowhere"], "there is no nowhere/docs/packed.json"),
        (["pretrain", "--config-name", "demo", "tokenizer.path=nowhere"], "there is no nowhere/tokenizer.json"),
        (["evaluate", "checkpoint=.", "tokenizer=demo", 'prompts=["x"]'], "checkpoint=.: it holds no complete"),
        (["convert", "direction=to_hf", "hf=x", "checkpoint=nowhere"], "checkpoint=nowhere: there is no such folder"),
        (
            ["sample", "folder=x", "prompts=README.md,nowhere", "policy=."],
            "prompts=nowhere: there is no such file; give JSONL",
        ),
        (["sample", "folder=x", "prompts=README.md", "policy=nowhere"], "policy=nowhere: there is no such folder"),
        (["judge", "folder=x", "answers=nowhere"], "answers=nowhere: there is no scores.jsonl; sample and rank first"),
    ],
)
def test_refused_before_torch(words: list[str], said: str, quick: Command) -> None:
    result = quick("-m", f"recipes.{words[0]}", *words[1:], env={forkserver.TELL: "1"})
    assert result.returncode and said in result.stderr and "Traceback" not in result.stderr
    assert not {"torch", "deepspeed", "transformers"} & set(result.stderr.splitlines()[-1].split())


def test_the_launcher_is_told_what_no_restart_would_heal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    words = ["folder=out", "prompts=p.jsonl", "policy=nowhere"]
    with pytest.raises(SystemExit, match="policy=nowhere"):
        recipes.start(lambda run: None, config.Sample, "sample", words)
    assert not (tmp_path / "out").exists(), "a folder that nobody made"
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match="policy=nowhere"):
        recipes.start(lambda run: None, config.Sample, "sample", words)
    record = json.loads((tmp_path / "out/outcome.json").read_text())
    assert record["outcome"] == "failed" and "policy=nowhere" in record["cause"]
