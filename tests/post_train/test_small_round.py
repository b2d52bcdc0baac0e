"""One round on CPU whose gains are counted: every stage improves the held-out score that it is meant to improve."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import small_rounds
from llama31 import config
from llama31.command import entry, inputs
from llama31.command.entry import compose
from llama31.judging import judge
from llama31.post_train import rounds
from llama31.sampling import drawing
from llama31.slurm import jobs

pytestmark = [pytest.mark.torch, pytest.mark.slow]

SCHEMAS = {**jobs.SCHEMAS, "pack": config.Pack, "pretrain": config.Pretrain, "post_train": config.PostTrain}


def recipe(name: str, arguments: Sequence[str]) -> None:
    """Run a recipe in this process, which has torch already."""
    run = entry.load(SCHEMAS[name], name, arguments, lambda given: 1)
    inputs.check(run)
    importlib.import_module(f"recipes.{name}").main(run)


def in_process(stage: rounds.RoundStage) -> int:
    recipe(stage.recipe, stage.arguments)
    return 0


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole small round, of what came before it, and of answers of the model between SFT and DPO."""
    folder, scale = tmp_path_factory.mktemp("task"), small_rounds.SMALL
    small_rounds.write_task(folder, scale)
    small_rounds.write_config(folder, scale.layers, scale.hidden_size)
    for name, arguments, _ in small_rounds.before(folder, scale):
        recipe(name, arguments)
    run = compose(config.PostTrain, "post_train", small_rounds.post_train(folder, scale))
    rounds.execute(run, rounds.stages(run), lambda text: None, in_process)
    recipe("sample", small_rounds.after_sft(folder, scale))
    return folder


def test_every_stage_improves_what_it_is_meant_to(done: Path) -> None:
    record = small_rounds.gains(done)
    print(json.dumps(record, indent=1))
    assert record["reward model: held-out accuracy"] > 0.85
    assert record["sampling: wanted form, best answers"] > record["sampling: wanted form, all answers"] + 0.2
    assert record["judge: wanted form, after SFT"] > record["judge: wanted form, policy before"] + 0.15
    # asked with the same seeds: what DPO has not changed is answered alike
    assert record["judge: wanted form, after DPO"] > record["judge: wanted form, after SFT"] + 0.05
    assert record["judge: win rate against before"] > 0.6


def test_nothing_is_done_twice(done: Path) -> None:
    scale = small_rounds.SMALL
    run = compose(config.PostTrain, "post_train", small_rounds.post_train(done, scale))
    said: list[str] = []
    again: list[str] = []

    def start(stage: rounds.RoundStage) -> int:
        again.append(stage.name)
        return 0

    result = rounds.stages(run)
    rounds.execute(run, result, said.append, start)
    assert again == []
    assert said == [f"# {stage.name}: done" for stage in result]


def test_artefacts_are_named_by_their_round(done: Path) -> None:
    here = done / "rounds" / "round-01"
    assert (here / "best").resolve() == (here / "dpo").resolve()
    record = json.loads((here / "judge" / judge.NAME).read_text())
    assert record["heldout"]["reward"]["accuracy"] > 0.85 and "loss" in record["heldout"]["dpo"]
    assert record["answers"]["obeyed"]["prompts"]["score"] > record["previous"]["obeyed"]["prompts"]["score"]
    assert (here / "judge" / judge.PAGE).stat().st_size > 5000 and (here / "sample" / drawing.PICTURE).is_file()


def test_records_say_where_they_are_from(done: Path) -> None:
    here = done / "rounds" / "round-01"
    best = drawing.read_lines(here / "sample" / drawing.BEST)
    assert len(best) >= 0.8 * small_rounds.SMALL.prompts
    for record in best:
        recorded = record["provenance"]
        assert recorded["policy"]["name"].startswith(str(done / "seed")) and recorded["finish"] == "stop"
        assert recorded["reward_model"]["name"].startswith(str(here / "reward")) and recorded["server"] == "embedded"
