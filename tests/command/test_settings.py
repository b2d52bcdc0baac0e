"""What is wrong with the config of a recipe of post-training, named before torch is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama31 import config
from llama31.command import entry, inputs
from llama31.command.validate import validate

GIVEN = ["name=x", "model=tiny", "tokenizer=demo", "init_from=runs/x", "schedule.total_tokens=1e9"]
SCHEMAS = {"sft": config.Sft, "reward": config.Reward, "dpo": config.Dpo}


def composed(recipe: str, *overrides: str) -> config.Training:
    return entry.compose(SCHEMAS[recipe], recipe, [*GIVEN, "data.sources.a.input=a.jsonl", *overrides])


@pytest.mark.parametrize("recipe", SCHEMAS)
def test_defaults_are_valid(recipe: str) -> None:
    run = composed(recipe)
    assert validate(run, 1) == [] and run.schedule.peak_lr == 1e-5
    assert run.model.head == ("reward" if recipe == "reward" else "tokens")


def test_a_reward_model_s_head_is_known_under_an_own_root_file(tmp_path: Path) -> None:
    (tmp_path / "chat.yaml").write_text(
        "defaults: [base, model: tiny, override tokenizer: demo, _self_]\ndata: {folder: x}\n"
        "schedule: {total_tokens: 8192, batch_tokens: 1024, sequence_length: 256, peak_lr: 1e-3}\n"
    )
    given = ["name=x", "init_from=runs/x", "data.sources.a.input=a.jsonl"]
    for recipe, schema in SCHEMAS.items():
        run = entry.compose(schema, "chat", given, tmp_path)
        assert run.model.head == ("reward" if recipe == "reward" else "tokens") and validate(run, 1) == []


def test_the_report_s_numbers() -> None:
    run = composed("dpo")
    assert isinstance(run, config.Dpo) and (run.beta, run.nll, run.masked) == (0.1, 0.2, True)
    assert run.data.strengths == ["significantly_better", "better"]


@pytest.mark.parametrize(
    ("recipe", "overrides", "said"),
    [
        ("sft", ["init_from=null"], "init_from=null: post-training begins with a model; give a checkpoint"),
        ("sft", ["data.sources={}"], "data.sources={}: "),
        ("sft", ["data.sources.a.input="], "data.sources.a.input=: nothing to read; give a JSONL file"),
        ("sft", ["data.sources.a.epochs=0"], "data.sources=a: all epochs are 0; give at least one some"),
        ("sft", ["data.targets=some"], "data.targets=some: "),
        ("sft", ["model.head=reward"], "model.head=reward: not what this recipe trains; give model.head=tokens"),
        ("reward", ["model.head=tokens"], "model.head=tokens: not what this recipe trains; give model.head=reward"),
        ("reward", ["layout=forest"], "layout=forest: "),
        ("dpo", ["data.strengths=[good]"], "no strengths of preference; give some of significantly_better"),
        ("dpo", ["data.sources.a.strength=good"], "data.sources.a.strength=good: no such choice; give one of signi"),
        ("sft", ["data.sources.a.strength=better"], "data.sources.a.strength=better: no such key"),
        ("dpo", ["beta=0"], "beta=0"),
        (
            "dpo",
            ["schedule.ramp=[{from_tokens: 1048576, batch_tokens: 524288, sequence_length: 4096}]"],
            "schedule.ramp=1: dialogs are packed into rows of one length; give schedule.sequence_length=8192",
        ),
    ],
)
def test_refused(recipe: str, overrides: list[str], said: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        validate(composed(recipe, *overrides), 1)
    assert said in str(caught.value)


def test_missing_files_are_named_together(tmp_path: Path) -> None:
    run = composed("dpo", f"tokenizer.path={tmp_path}", f"data.sources.a.input={tmp_path}/a.jsonl")
    with pytest.raises(config.ConfigError) as caught:
        inputs.check(run)
    assert [issue.key for issue in caught.value.issues] == ["tokenizer.path", "data.sources.a.input", "init_from"]
