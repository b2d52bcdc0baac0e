"""Commands as a newcomer types them: help, refusals and their exit status, without torch."""

from __future__ import annotations

import pytest

from llama31 import config, usage
from tests.conftest import ROOT, Command

RECIPES = {
    "pack": config.Pack,
    "pretrain": config.Pretrain,
    "convert": config.Convert,
    "evaluate": config.Evaluate,
    "benchmark": config.Benchmark,
    "simulate": config.Simulate,
    "submit": config.Submit,
}
LOAD = """
import atexit, sys
from llama31 import config
heavy = {"torch", "megatron", "deepspeed", "transformers", "numpy"}
atexit.register(lambda: print("heavy:", sorted(heavy & set(sys.modules))))
config.load(getattr(config, sys.argv[1].capitalize()), sys.argv[1], sys.argv[2:])
print("loaded")
"""


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_lists_every_key(recipe: str, command: Command) -> None:
    result = command("-c", LOAD, recipe, "--help", check=True)
    assert f"usage: python -m recipes.{recipe}" in result.stdout
    for name, _, field in usage.keys(RECIPES[recipe]):
        assert f"  {name}  (" in result.stdout
        assert field.metadata["help"] in result.stdout
    assert "heavy: []" in result.stdout


@pytest.mark.parametrize("recipe", [name for name in RECIPES if (ROOT / "recipes" / f"{name}.py").exists()])
def test_recipes_answer_help_and_refuse_a_wrong_key(recipe: str, command: Command) -> None:
    assert "keys (type, default)" in command("-m", f"recipes.{recipe}", "-h", check=True).stdout
    result = command("-X", "importtime", "-m", f"recipes.{recipe}", "typo=1")
    assert result.returncode == 2
    assert "typo=1: no such key" in result.stderr and "Traceback" not in result.stderr
    assert not [line for line in result.stderr.splitlines() if line.endswith((" torch", " deepspeed", " transformers"))]


def test_refusal_names_everything_and_ends_with_2(command: Command) -> None:
    result = command("-c", LOAD, "pretrain", "--config-name", "demo", "parallel.tp=two", "+typo=1", "parallel.pp=3")
    assert result.returncode == 2
    assert result.stdout == "heavy: []\n"
    lines = result.stderr.splitlines()
    assert lines[0] == "python -m recipes.pretrain: 4 problems in the configuration"
    assert lines[1].startswith("  +typo=1: no key can be added")
    assert lines[2] == "  parallel.tp=two: wrong type; give a whole number"
    assert lines[3].startswith("  parallel.pp=3: 8 layers do not split")
    assert lines[5] == "  nearest layout that works with 1 process(es): parallel.pp=1 (dp=1)"
    assert "Traceback" not in result.stderr


def test_only_one_process_speaks(command: Command) -> None:
    result = command("-c", LOAD, "pretrain", "--config-name", "demo", "typo=1", env={"RANK": "3", "WORLD_SIZE": "4"})
    assert (result.returncode, result.stderr) == (2, "")


def test_warning_of_a_wasteful_layout(command: Command) -> None:
    words = [
        "pretrain",
        "--config-name",
        "demo",
        "parallel.pp=4",
        "parallel.micro_batch=1",
        "schedule.batch_tokens=512",
    ]
    result = command("-c", LOAD, *words, env={"RANK": "0", "WORLD_SIZE": "4"}, check=True)
    assert "warning: parallel.pp=4: only 2 micro-batches" in result.stderr and "loaded" in result.stdout
    assert command("-c", LOAD, *words, env={"RANK": "1", "WORLD_SIZE": "4"}, check=True).stderr == ""


def test_cfg_prints_the_whole_config(command: Command) -> None:
    result = command("-c", LOAD, "pretrain", "--config-name", "demo", "--cfg", "parallel.tp=2", check=True)
    assert "folder: runs/demo\n" in result.stdout and "  tp: 2\n" in result.stdout and "loaded" not in result.stdout


@pytest.mark.parametrize("words", [["--config-name", "nope"], ["--config-dir", "nope"]])
def test_wrong_file_or_folder(words: list[str], command: Command) -> None:
    result = command("-c", LOAD, "pack", *words)
    assert result.returncode == 2 and "there is no such" in result.stderr and "Traceback" not in result.stderr
