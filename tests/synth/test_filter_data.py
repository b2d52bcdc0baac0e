"""`recipes.filter_data` from dialogs to what is kept, with a judge that says what a test wants. No torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama31 import config
from llama31.command import entry, inputs
from llama31.sampling.drawing import read_lines
from llama31.sampling.servers import Refused
from llama31.slurm import synthesis
from llama31.synth.pipeline import journal
from llama31.synth.quality import asking, filtering, outcome, page
from recipes import filter_data
from tests.synth.scripted import Scripted

OFF = ["deduplication.enabled=false"]
GOOD = "Accuracy: 1\nInstruction following: 1\nTone: 1"


def dialog(asked: str, answer: str = "That is so.", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], **more}


def judge(last: str, number: int) -> str:
    """Words of a dialog say what is answered: `hard`, `wrong`, `code`, `late`, and `never`, where nothing parses."""
    said = last.split("=====")[1]
    if "Which topic" in last:
        if "late" in said and number == 0:
            return "Well, it is about code."
        return "Topic: code\nFiner: debugging" if "code" in said else "Topic: writing\nFiner: other"
    if "Name each intention" in last:
        return "Tag: one thing\nTag: another - because" if "hard" in said else "Tag: one thing"
    if "How difficult" in last:
        return "Difficulty: 3" if "hard" in said else "It is easy.\nDifficulty: 1"
    if "never" in said:
        return "It is good."
    if "Correct: the code" in last:
        return f"Correct: {int('wrong' not in said)}\nIntention: 1"
    return GOOD.replace("Tone: 1", "Tone: 0") if "wrong" in said else GOOD


DIALOGS = [
    dialog("good and plain", reward=0.1),  # 0: by judge alone
    dialog("wrong but loved", reward=0.9),  # 1: by reward alone
    dialog("hard and good", reward=0.8),  # 2: by both
    dialog("wrong and plain", reward=0.2),  # 3: by nobody
    dialog("never judged, plain", reward=0.3),  # 4: no verdict of the judge
    dialog("code wrong", "```\nx = 1\n```", reward=0.0),  # 5
    dialog("code good, late", "```\nx = 1\n```"),  # 6: no reward
    dialog("joy", "Yes!!! Great!!! \N{PARTY POPPER}\N{PARTY POPPER}", reward=0.95),  # 7
    dialog("good and plain", reward=0.1),  # 8: 0 again
    dialog("What is the capital of France, and why?", reward=0.99),  # 9: a benchmark's
    dialog("never judged, no reward"),  # 10
    {"messages": [{"role": "user", "content": "nobody answers"}], "reward": 0.99},  # 11
]


@pytest.fixture
def words(tmp_path: Path) -> Callable[..., list[str]]:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in DIALOGS))
    (tmp_path / "set.jsonl").write_text(json.dumps({"question": "what is the capital of France - and why"}) + "\n")
    given = [
        "name=first", f"folder={tmp_path}/out", f"input={tmp_path}/in.jsonl", "judge.urls=[http://127.0.0.1:9/v1]",
        f"decontamination.sets.capitals.path={tmp_path}/set.jsonl", *OFF,
    ]  # fmt: skip
    return lambda *more: [*given, *more]


def loaded(arguments: list[str]) -> config.FilterData:
    return entry.read(config.FilterData, "filter_data", arguments)[0]


def filtered(arguments: list[str], model: Scripted | None = None, shards: Any = None) -> dict[str, Any]:
    run = loaded(arguments)
    programs = asking.Programs(run.rules, run.decontamination)
    asking.ask(run, programs, shards if shards is not None else range(run.shards), model or Scripted(judge))
    return filtering.select(run, programs)


def test_kept_is_the_union_and_all_that_goes_is_told(tmp_path: Path, words: Callable[..., list[str]]) -> None:
    model = Scripted(judge)
    summary = filtered(words(), model)
    kept, dropped = (read_lines(tmp_path / "out" / name) for name in (outcome.KEPT, outcome.DROPPED))
    assert [{k: v for k, v in one.items() if k != "quality"} for one in kept] == [DIALOGS[i] for i in (0, 1, 2, 6)]
    assert Counter((one["quality"]["dropped"], one["quality"]["reason"]) for one in dropped) == {
        ("reading", "repeated"): 1,
        ("reading", "without an answer"): 1,
        ("rules", "emoji"): 1,
        ("decontamination", "capitals, a prompt of it"): 1,
        ("quality", "not best by reward or judge"): 2,
        ("quality", "not best by reward"): 1,
        ("quality", "neither reward nor judgement"): 1,
    }
    said = {one["messages"][0]["content"]: one["quality"] for one in [*kept, *dropped]}
    assert said["hard and good"]["intentions"] == ["one thing", "another"] and said["hard and good"]["difficulty"] == 3
    assert said["hard and good"]["worth"] > said["wrong but loved"]["worth"] > 0
    assert said["code wrong"]["judged_as"] == "code" and said["code wrong"]["points"] == {"bugs": 0, "intention": 1}
    assert said["wrong and plain"]["topic"] == "writing"
    assert said["joy"].keys() == {"id", "apologises", "dropped", "reason"}
    assert [step["left"] for step in summary["steps"]] == [10, 9, 8, 8, 4, 4, 4]
    counts = summary["disagreement"]["counts"]  # of the six with a reward the two best are the quarter
    assert counts["best"] == {"best": 1, "not best": 1, "unknown": 0}
    assert counts["not best"] == {"best": 1, "not best": 2, "unknown": 1}
    assert counts["unknown"] == {"best": 1, "not best": 0, "unknown": 1}
    asked = summary["questions"]
    assert {name: (one["asked"], one["answered"], one["unread"], one["missing"]) for name, one in asked.items()} == {
        "topic": (8, 8, 0, 0), "intentions": (8, 8, 0, 0), "difficulty": (8, 8, 0, 0), "points": (8, 6, 2, 0),
    }  # fmt: skip
    assert asked["topic"]["counts"] == {"unparsed quality/topic": 1}
    assert asked["points"]["counts"] == {"unparsed quality/general": 4}
    assert len(model.asked) == 4 * 8 + 1 + 2 and not any("joy" in str(one) for one in model.asked)
    assert summary["topics"]["code"] == {"debugging": [2, 1]} and summary["contamination"]["capitals"]["prompts"] == 1
    assert set(summary["prompts"]) == {f"quality/{n}" for n in ["topic", "intentions", "difficulty", "general", "code"]}
    html = (tmp_path / "out" / page.NAME).read_text()
    assert "Every question was asked" in html and "nobody answers" in html and "best by judge alone" in html


def test_what_was_answered_is_not_asked_again(tmp_path: Path, words: Callable[..., list[str]]) -> None:
    first = filtered(words("intentions.enabled=false"))
    files = {name: (tmp_path / "out" / name).read_bytes() for name in (outcome.KEPT, outcome.DROPPED)}
    silent = Scripted(lambda last, number: pytest.fail("asked again"))
    assert filtered(words("intentions.enabled=false"), silent) == first
    assert files == {name: (tmp_path / "out" / name).read_bytes() for name in files}
    looser = filtered(words("intentions.enabled=false", "quality.reward.share=1"), silent)
    assert looser["kept"] == 7  # all but the one that nobody knows
    model = Scripted(judge)
    filtered(words("rules.enabled=false"), model)  # the tags, and all of the one that the rules kept away
    tags = ["Name each" in one[-1]["content"] for one in model.asked]
    joy = ["joy" in one[-1]["content"] for one in model.asked]
    assert sum(tags) == 9 and sum(joy) == 4 and len(model.asked) == 9 + 3
    with pytest.raises(ValueError, match=r"begun with longest_characters=40000 \(now 50000\); give another folder"):
        filtered(words("longest_characters=50000"))


def test_a_kill_and_shards_change_nothing(tmp_path: Path, words: Callable[..., list[str]]) -> None:
    filtered(words())
    two = words("shards=2", f"folder={tmp_path}/two")
    filtered(two, shards=[1, 0])
    for name in (outcome.KEPT, outcome.DROPPED):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    before = read_lines(tmp_path / "two" / outcome.KEPT)
    results = tmp_path / "two" / "judged" / "points" / "shards" / "00000" / journal.RESULTS
    lines = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(lines[0] + lines[1][:9])
    with pytest.raises(ValueError, match=r"begun with shards=2 \(now 1\)"):
        filtered(words(f"folder={tmp_path}/two"))
    run = loaded(two)
    unfinished = filtering.select(run, asking.Programs(run.rules, run.decontamination))
    assert unfinished["questions"]["points"]["missing"] == len(lines) - 1
    assert "Not asked, or refused" in (tmp_path / "two" / page.NAME).read_text()
    model = Scripted(lambda last, number: pytest.fail("what was drawn is recorded"))
    filtered(two, model)
    assert read_lines(tmp_path / "two" / outcome.KEPT) == before


def test_refusals_are_asked_again(tmp_path: Path, words: Callable[..., list[str]]) -> None:
    def says(last: str, number: int) -> str:
        if "hard" in last.split("=====")[1]:
            raise Refused("too long for the context")
        return judge(last, number)

    assert filtered(words(), Scripted(says))["questions"]["difficulty"]["missing"] == 1
    model = Scripted(judge)
    assert filtered(words(), model)["questions"]["difficulty"]["missing"] == 0 and len(model.asked) == 4


def test_every_filter_can_be_off(tmp_path: Path, words: Callable[..., list[str]]) -> None:
    off = ["topic", "intentions", "difficulty", "quality.judge", "quality.reward", "rules", "decontamination"]
    silent = Scripted(lambda last, number: pytest.fail("nothing is asked"))
    summary = filtered(words(*(f"{name}.enabled=false" for name in off), "judge.urls=[]"), silent)
    assert summary["kept"] == 10 and not summary["questions"] and not summary["contamination"]
    only = filtered(words(*(f"{name}.enabled=false" for name in off[1:]), "topic.only=[code]"))
    assert only["kept"] == 2 and only["steps"][3]["reasons"] == {"about writing": 8}
    rewarded = filtered(words(*(f"{name}.enabled=false" for name in off if name != "quality.reward")))
    assert rewarded["kept"] == 2  # the quarter of the eight that are fit and have a reward
    with pytest.raises(ValueError, match=r"quality.reward.reward_key=score: no record .* has a reward there"):
        filter_data.main(loaded(words("quality.reward.reward_key=score")))  # and no server is asked
    sampled = [{**one, "provenance": {"score": one["reward"]}} for one in DIALOGS if "reward" in one]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in sampled))
    again = words(
        *(f"{name}.enabled=false" for name in off if name != "quality.reward"), "quality.reward.reward_key=score"
    )
    assert filtered(again)["kept"] == 2  # rewards of recipes.sample stand in the provenance


def test_a_judge_whom_nobody_understands_is_no_fine_run(tmp_path: Path, words: Callable[..., list[str]]) -> None:
    filtered(words("topic.enabled=false"), Scripted(lambda last, number: "It is good."))
    html = (tmp_path / "out" / page.NAME).read_text()
    assert "No answer could be read" in html and "intentions, difficulty, points" in html
    assert "Every question was asked" not in html


def test_apologies_and_odd_texts(tmp_path: Path, words: Callable[..., list[str]]) -> None:
    odd = ["", "half \ud800", "zero \0", "\N{GRINNING FACE}", "Word. " * 170_000 + "No. 1 " * 9]
    given = [dialog(text, f"{text}x" if len(text) < 99 else text, reward=i) for i, text in enumerate(odd)]
    given += [dialog("sorry?", f"I'm sorry, {i}.", reward=10 + i) for i in range(4)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in given))
    model = Scripted(judge)
    summary = filtered(words("quality.reward.share=1", "apologies.share=0.3"), model)
    assert summary["steps"][-1]["reasons"] == {"more apologies than their share": 2}  # two beside five
    assert summary["kept"] == 7 and summary["apologising"] == 2
    kept = read_lines(tmp_path / "out" / outcome.KEPT)
    assert [one["messages"] for one in kept[:5]] == [one["messages"] for one in given[:5]]
    assert [one["messages"][1]["content"] for one in kept[5:]] == ["I'm sorry, 2.", "I'm sorry, 3."]
    assert summary["questions"]["topic"]["counts"] == {"shown in part": 1}
    (long,) = {one[-1]["content"] for one in model.asked if "left out here" in str(one) and "Which topic" in str(one)}
    assert len(long) < 45_000 and "[2000127 characters are" in long


def test_a_topic_model_needs_no_server(
    tmp_path: Path, words: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def classify(text: str) -> tuple[str, float]:
        return ("code/other things" if "```" in text else "talk", 0.75)

    monkeypatch.setattr(asking, "classifier", lambda path: classify)
    (tmp_path / "model.bin").write_bytes(b"")
    off = [f"{name}.enabled=false" for name in ("intentions", "difficulty", "quality.judge", "quality.reward")]
    run = loaded(words(*off, "judge.urls=[]", f"topic.model={tmp_path}/model.bin"))
    inputs.check(run)
    programs = asking.Programs(run.rules, run.decontamination)
    asking.ask(run, programs, [0])
    assert filtering.select(run, programs)["topics"] == {"code": {"other things": [2, 2]}, "talk": {"other": [6, 6]}}


def test_near_duplicates_go_by_worth(
    tmp_path: Path, words: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With embeddings that a test gives: those of an encoder are in test_quality_embedding.py."""
    from llama31.synth.quality import embedding

    angles = {"good": 0.0, "wrong": 1.0, "hard": 0.05, "never": 1.04, "code": 2.0}
    monkeypatch.setattr(
        embedding, "embedded",
        lambda folder, texts, asked, progress: np.array(
            [[np.cos(a), np.sin(a)] for _, text in texts for a in [angles[text.split()[0]]]], np.float32
        ),
    )  # fmt: skip
    summary = filtered(words("deduplication.enabled=true", "deduplication.clusters=1", "quality.reward.share=1"))
    kept = [one["messages"][0]["content"] for one in read_lines(tmp_path / "out" / outcome.KEPT)]
    assert kept == ["wrong but loved", "hard and good", "code good, late"]
    gone = {one["messages"][0]["content"]: one["quality"] for one in read_lines(tmp_path / "out" / outcome.DROPPED)}
    ids = {one["messages"][0]["content"]: one["quality"]["id"] for one in read_lines(tmp_path / "out" / outcome.KEPT)}
    assert gone["good and plain"]["reason"] in ("says the same as a kept one", "repeated")
    assert gone["never judged, plain"]["nearest"] == ids["wrong but loved"]
    assert gone["never judged, plain"]["cosine"] == pytest.approx(np.cos(0.04), abs=1e-4)
    assert summary["clusters"] == 1 and sum(summary["cosines"]["all"]) == 6


def test_the_command_names_what_is_missing(tmp_path: Path, words: Callable[..., list[str]]) -> None:
    bare = loaded(["name=x", f"input={tmp_path}/none.jsonl", "prompts=/nowhere"])
    with pytest.raises(config.ConfigError) as caught:
        inputs.check(bare)
    said = str(caught.value)
    for part in (
        r"prompts=/nowhere: there is no such folder", r"input=.*none.jsonl: there is no such file",
        r"decontamination.sets.*or decontamination.enabled=false", r"deduplication.encoder=null: there is none",
        r"judge.urls.*for topic, intentions, difficulty, quality.judge; .*quality.judge.enabled=false",
    ):  # fmt: skip
        assert re.search(part, said), part
    for wrong, remedy in (
        ("shard=1", "give at most 0"), ("topic.only=[cooking]", "give some of mathematical reasoning"),
    ):  # fmt: skip
        with pytest.raises(config.ConfigError, match=remedy):
            loaded(words(wrong))
    inputs.check(loaded(words()))


def test_from_the_command_line_and_on_slurm(
    tmp_path: Path, words: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    off = [f"{name}.enabled=false" for name in ("topic", "intentions", "difficulty", "quality.judge")]
    filter_data.main(loaded(words(*off)))
    assert "2 of 12 dialogs kept" in capsys.readouterr().out
    arguments = words(f"folder={tmp_path}/three", "shards=3", "dry_run=true", "job.at_once=2", "job.partition=cpu")
    arguments.append("job.gathering=--gpus=1")
    monkeypatch.setattr("sys.argv", ["filter_data", *arguments])

    def said() -> list[str]:
        capsys.readouterr()
        filter_data.main(loaded(arguments))
        return capsys.readouterr().out.splitlines()

    array, gather = said()
    assert "--gpus=1" in gather and "--gpus" not in array
    assert "--array=0-2%2" in array and "--partition=cpu" in array and str(synthesis.FILTER_SCRIPT) in array
    assert (
        "dependency=afterok:<make>" in gather and gather.endswith("part=gather") and synthesis.FILTER_SCRIPT.is_file()
    )
    run = loaded(arguments)
    programs = asking.Programs(run.rules, run.decontamination)
    asking.ask(run, programs, [0, 2], Scripted(judge))
    assert "--array=1%2" in said()[0]
    asking.ask(run, programs, [1], Scripted(judge))
    made, gather = said()
    assert made == "# make: done" and gather.endswith("part=gather") and "--dependency" not in gather
    filtering.select(run, programs)
    assert said()[1].startswith("# gather: done, ")
    for change in (lambda: arguments.append("samples=6"), (tmp_path / "three" / outcome.KEPT).unlink):
        change()
        assert said()[1].endswith("part=gather")
        filtering.select(loaded(arguments), programs)
        assert said()[1].startswith("# gather: done, ")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*DIALOGS, dialog("new")]))
    assert "--array=0%2" in said()[0]
    with pytest.raises(ValueError, match=r"begun with shards=3 \(now 2\)"):
        filter_data.main(loaded([*arguments, "shards=2"]))
