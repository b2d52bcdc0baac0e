"""What the benchmark of long context trains on, asks, and tells. It learns nothing here: that takes minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import extension
from benchmarks.extension import SHORT, STAGES, ExtensionStage
from llama31 import config
from llama31.command import entry
from llama31.command.validate import validate
from llama31.evaluate import haystack, tasks
from llama31.tokens import tokenizers


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extend")
    with pytest.MonkeyPatch.context() as patch:
        few = {text: extension.Text(text.length, 30, text.facts, text.filler, text.cp) for text in (SHORT, *STAGES)}
        patch.setattr(extension, "SHORT", few[SHORT])
        patch.setattr(extension, "STAGES", tuple(few[text] for text in STAGES))
        extension.write(folder)
    return folder


def words(top: Path) -> tokenizers.Tokenizer:
    return tokenizers.load(config.Tokenizer(kind="huggingface", path=str(top / "letters")))


def test_each_letter_is_a_token(top: Path) -> None:
    text = "".join(extension.LETTERS)
    assert words(top).encode(text) == list(range(31)) and words(top).decode(list(range(31))) == text
    assert (words(top).bos_id, words(top).vocab_size) == (31, 33)
    dealt = haystack.printable(words(top))
    assert (dealt.mark, dealt.keys.size, dealt.values.size, dealt.filler.size) == (0, 10, 10, 10)


@pytest.mark.parametrize("text", [SHORT, *STAGES], ids=lambda text: str(text.length))
def test_documents_fill_a_row(top: Path, text: extension.Text) -> None:
    dealt = haystack.printable(words(top))
    random = np.random.default_rng(1)
    written = [words(top).encode(extension.document(text, dealt, random)) for _ in range(20)]
    assert {len(ids) for ids in written} == {text.length - 1}
    shares = [np.isin(ids, dealt.filler).mean() for ids in written]
    assert max(shares) - min(shares) > 0.1
    facts = [len({ids[i + 1] for i, letter in enumerate(ids) if letter == dealt.mark}) for ids in written]
    assert text.facts[0] <= min(facts) <= max(facts) <= text.facts[1]


def test_the_task_asks_for_the_value_of_a_key(top: Path) -> None:
    task = config.Task(str(top / "lookup.jsonl"), delimiter="")
    result = tasks.read("lookup", task)
    assert len(result) == 3 * 11 * 6
    for example, prompt in zip(result, tasks.prompts(result, task), strict=True):
        text = prompt.context
        known = dict(zip(text.split("!")[1:-1], text.split("!")[1:-1]))
        values = {fact[0]: fact[1] for fact in known}
        assert example.choices[example.gold] == values[text[-1]] and text[-2] == "!" and len(values) == 4


def test_runs_are_configs_that_can_be(top: Path) -> None:
    """As the benchmark gives them to its commands, which are not started."""
    given: list[tuple[str, list[str]]] = []
    with pytest.MonkeyPatch.context() as patch:

        def record(timeout_s: float, *arguments: str) -> tuple[float, str]:
            launched = "-m" in arguments
            words = list(arguments[arguments.index("-m") + 1 :] if launched else arguments)
            given.append((words[0], words[1:]))
            folder = next((Path(word.split("=")[1]) for word in words if word.startswith("folder=")), None)
            if folder is not None:
                folder.mkdir(exist_ok=True)
                (folder / "gates.json").write_text('{"baseline": {}, "examinations": []}')
            return 0.0, ""

        patch.setattr("benchmarks.timing.command", record)
        work = extension.ExtensionWork(top, 1)
        work.pack()
        work.learn()
        for text in STAGES:
            work.extend(f"s{text.length}", text, "x", "y", 400)
        with pytest.raises(RuntimeError, match="the gates have opened for a model that has not learned"):
            work.extend("control", STAGES[0], "x", "y", 40, fails=True)
        work.before("x", "before")
    schemas: dict[str, Any] = {
        "recipes.pack": config.Pack,
        "recipes.pretrain": config.Pretrain,
        "recipes.evaluate": config.Evaluate,
    }
    assert [name for name, _ in given] == ["recipes.pack"] * 2 + ["recipes.pretrain"] * 5 + ["recipes.evaluate"]
    runs = []
    for name, arguments in given:
        root = name.removeprefix("recipes.")
        if "--config-name" in arguments:
            at = arguments.index("--config-name")
            root = arguments[at + 1]
            del arguments[at : at + 2]
        at = arguments.index("--config-dir")
        folder = arguments[at + 1]
        del arguments[at : at + 2]
        run = entry.compose(schemas[name], root, arguments, folder)
        assert validate(run, extension.PROCESSES if root not in ("pack", "evaluate") else 1) == []
        runs.append(run)
    learn, *stages = runs[2:6]
    assert [learn.model.rope_factor, *(run.model.rope_factor for run in stages)] == [0, 8, 8, 8]
    assert [run.schedule.sequence_length for run in stages] == [128, 512, 1024] and 16 * SHORT.length == 1024
    assert [run.parallel.cp for run in stages] == [1, 2, 2]
    assert all(run.init_optimizer and run.init_changes == ["rope_factor"] and run.gates.recall == 1 for run in stages)
    assert all(run.gates.needle.lengths[-1] == run.schedule.sequence_length for run in [learn, *stages])
    assert all(run.gates.needle.inserted == 4 for run in [learn, *stages]) and not learn.gates.tasks


def test_tables() -> None:
    def record(result: float, score: float, shut: list[str]) -> dict[str, Any]:
        needle = {"lengths": [512, 1024], "found": [1.0, result]}
        return {"step": 20, "scores": {"needle": needle, "tasks": {"lookup": {"score": score}}}, "shut": shut}

    baseline = {"tasks": {"lookup": {"score": 0.9}}}
    gates = {"baseline": baseline, "examinations": [record(0.25, 0.8, ["x"]), record(1.0, 0.95, [])]}
    shut = {"baseline": {}, "examinations": [record(0.25, 0.8, ["x"])]}
    text = extension.stages_table(
        [
            ExtensionStage("stage-3", 1024, "CP 2", gates, 71.4),
            ExtensionStage("control", 1024, "CP 2", shut, 9, "25.00% of the needles"),
        ]
    )
    assert (
        "| stage-3 | 1024 | CP 2 | 20 | 512: 100%, 1,024: 25% | 512: 100%, 1,024: 100% | 90.0%, 95.0% | open | 71 |"
        in text
    )
    assert "| 512: 100%, 1,024: 25% | 80.0% | shut | 9 |" in text and text.endswith("control: 25.00% of the needles.")
    result = {"lengths": [64, 1024], "by_length": [{"score": 1.0}, {"score": 0.25}]}
    assert extension.recall_table({"before": result}).splitlines() == [
        "| needles found | 64 | 1,024 |", "|---|---|---|", "| before the three stages | 100.0% | 25.0% |",
    ]  # fmt: skip
