"""Win rates, refusals and instructions that can be counted by hand; the page; what becomes `best`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama31 import config
from llama31.judging import distribution, judge, ranking
from llama31.report import rounds
from llama31.sampling import drawing

MODEL = "reward-1"


def answers(folder: Path, given: Sequence[dict[str, Any]], model: str = MODEL) -> Path:
    """A folder as recipes.sample leaves it; each entry: id, texts, rewards, and what the prompt carries."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts, candidates, scores = [], [], []
    for one in given:
        record = {key: value for key, value in one.items() if key not in ("texts", "rewards")}
        prompts.append({"messages": [{"role": "user", "content": f"Question {one['id']}"}], **record})
        for k, (text, reward) in enumerate(zip(one["texts"], one["rewards"], strict=True)):
            candidates.append({"prompt": one["id"], "k": k, "text": text, "finish": "stop"})
            scores.append(
                {"prompt": one["id"], "k": k, "reward": reward, "model": model, "name": f"runs/{model}/step-1"}
            )
    for name, lines in ((drawing.PROMPTS, prompts), (drawing.CANDIDATES, candidates), (drawing.SCORES, scores)):
        with (folder / name).open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return folder


def plain(rewards: Sequence[float | None]) -> list[dict[str, Any]]:
    return [{"id": str(i), "texts": [f"Answer {i}"], "rewards": [reward]} for i, reward in enumerate(rewards)]


def test_wins_are_counted(tmp_path: Path) -> None:
    mine, model = judge.answered(answers(tmp_path / "a", plain([1.0, 2.0, 0.0, 5.0, None])))
    others, _ = judge.answered(answers(tmp_path / "b", plain([0.0, 3.0, 0.0, 4.0, 1.0])), model)
    assert sorted(judge.wins(mine, others)) == [0.0, 0.0, 0.5, 1.0, 1.0], "whoever says nothing has lost"
    assert sorted(judge.wins(mine, others, lose=False)) == [0.0, 0.5, 1.0, 1.0]
    run = config.Judge(folder="x", answers=str(tmp_path / "a"), previous=str(tmp_path / "b"), unanswered="leave_out")
    record = judge.judge(run)
    assert record["answers"]["lengths"]["unanswered"] == 1 and record["previous"]["lengths"]["unanswered"] == 0
    assert record["win_rate"]["score"] == 0.625 and record["win_rate"]["count"] == 4
    assert record["win_rate"]["ci95"] == pytest.approx(1.96 * math.sqrt(0.625 * 0.375 / 4))
    assert judge.better(record)
    swapped = judge.judge(replace(run, answers=str(tmp_path / "b"), previous=str(tmp_path / "a")))
    assert swapped["win_rate"]["score"] == 0.375 and not judge.better(swapped)


def test_a_prompt_without_an_answer_is_lost_and_obeys_nothing(tmp_path: Path) -> None:
    """A server that fails on every second prompt must not look like one that wins them all."""
    check = [{"kind": "json", "value": False}]
    asked: list[dict[str, Any]] = [{"id": str(i), "checks": check} for i in range(10)]
    good = [{**one, "texts": ["So."], "rewards": [2.0]} for one in asked]
    answers(tmp_path / "a", [one if i < 2 else {**one, "texts": [], "rewards": []} for i, one in enumerate(good)])
    answers(tmp_path / "b", [{**one, "texts": ["No."], "rewards": [1.0]} for one in asked])
    record = judge.judge(config.Judge(folder="x", answers=str(tmp_path / "a"), previous=str(tmp_path / "b")))
    assert record["win_rate"]["score"] == 0.2 and record["win_rate"]["count"] == 10
    assert record["answers"]["obeyed"]["prompts"]["score"] == 0.2
    assert record["answers"]["lengths"]["unanswered"] == 8
    assert "a prompt that one model alone answered is lost by the other" in rounds.html(record)


def test_the_reward_model_may_be_named(tmp_path: Path) -> None:
    """Answers that a later round's model has ranked too are judged again as they were."""
    answers(tmp_path / "a", plain([1.0, 1.0]), "reward-1")
    with (tmp_path / "a" / drawing.SCORES).open("a") as file:
        for k in "01":
            record = {"prompt": k, "k": 0, "reward": -5.0, "model": "reward-2", "name": "runs/reward-2/step-1"}
            file.write(json.dumps(record) + "\n")
    answers(tmp_path / "b", plain([0.0, 0.0]), "reward-1")
    run = config.Judge(folder="x", answers=str(tmp_path / "a"), previous=str(tmp_path / "b"), reward="runs/reward-1")
    assert judge.judge(run)["win_rate"]["score"] == 1.0
    with pytest.raises(ValueError, match="reward=runs/reward-3: it has ranked nothing"):
        judge.judge(replace(run, reward="runs/reward-3"))


def test_answers_to_a_prompt_as_it_was_before_are_none(tmp_path: Path) -> None:
    folder = answers(tmp_path / "a", [{"id": "0", "texts": ["now"], "rewards": [1.0], "asked": "new"}])
    line = {"prompt": "0", "k": 0, "finish": "stop", "asked": "old", "text": "then"}
    now = {**line, "asked": "new", "text": "now"}
    (folder / drawing.CANDIDATES).write_text(f"{json.dumps(line)}\n{json.dumps(now)}\n")
    record = {"prompt": "0", "k": 0, "model": MODEL, "name": "x"}
    scores = [{**record, "reward": value, "judged": ranking.judged(one)} for one, value in ((now, 3.0), (line, -3.0))]
    (folder / drawing.SCORES).write_text("".join(json.dumps(score) + "\n" for score in scores))
    result, _ = judge.answered(folder)
    assert result["0"].texts == ["now"] and result["0"].rewards == [3.0]


def test_several_answers_are_one_outcome(tmp_path: Path) -> None:
    mine, _ = judge.answered(answers(tmp_path / "a", [{"id": "0", "texts": ["x", "y"], "rewards": [1.0, 3.0]}]))
    others, _ = judge.answered(answers(tmp_path / "b", [{"id": "0", "texts": ["u", "v"], "rewards": [2.0, 2.5]}]))
    assert judge.wins(mine, others) == [0.5]


def test_rewards_of_one_model_are_compared(tmp_path: Path) -> None:
    """The answers of the round before were ranked by its own reward model too, whose numbers mean something else."""
    answers(tmp_path / "a", plain([1.0]))
    answers(tmp_path / "b", plain([9.0]), "reward-0")
    run = config.Judge(folder="x", answers=str(tmp_path / "a"), previous=str(tmp_path / "b"))
    with pytest.raises(ValueError, match="nothing was ranked by the reward model reward-1"):
        judge.judge(run)
    with (tmp_path / "b" / drawing.SCORES).open("a") as file:
        file.write(json.dumps({"prompt": "0", "k": 0, "reward": 0.5, "model": MODEL}) + "\n")
    assert judge.judge(run)["win_rate"]["score"] == 1.0


def test_instructions_and_refusals(tmp_path: Path) -> None:
    short, comma = {"kind": "max_words", "value": 2}, {"kind": "no_comma"}
    given = [
        {"id": "0", "texts": ["one two"], "checks": [short, comma]},
        {"id": "1", "texts": ["one, two three"], "checks": [short, comma]},
        {"id": "2", "texts": ["one two three"], "checks": [short]},
        {"id": "3", "texts": ["I can't help with that."], "safety": "harmful"},
        {"id": "4", "texts": ["Gladly, here is how."], "safety": "harmful"},
        {"id": "5", "texts": ["Kill the process by its number."], "safety": "borderline"},
        {"id": "6", "texts": ["It rains."]},
    ]
    result, _ = judge.answered(answers(tmp_path / "a", [{**one, "rewards": [0.0]} for one in given]))
    obeyed = {name.strip(): (score.score, score.count) for name, score in judge.obedience(result).items()}
    assert obeyed["prompts"] == (pytest.approx(1 / 3), 3) and obeyed["instructions"] == (pytest.approx(2 / 5), 5)
    assert obeyed["max_words"] == (pytest.approx(1 / 3), 3) and obeyed["no_comma"] == (0.5, 2)
    refused = {name: score.score for name, score in judge.refused(result).items()}
    assert refused == {"harmful": 0.5, "borderline": 0.0, "other": 0.0}
    (tmp_path / "mine.txt").write_text("gladly\n")
    given = [f"file:{tmp_path / 'mine.txt'}", "^it rains"]
    record = judge.judge(config.Judge(folder="x", answers=str(tmp_path / "a"), refusals=given))
    shares = {name: score["score"] for name, score in record["answers"]["refused"].items()}
    assert shares == {"harmful": 0.5, "borderline": 0.0, "other": 0.25}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = answers(tmp_path / "a", plain([1.0]))
    other = answers(tmp_path / "b", [{"id": "elsewhere", "texts": ["x"], "rewards": [1.0]}])
    with pytest.raises(ValueError, match="no prompt was answered and ranked both there and in"):
        judge.judge(config.Judge(folder="x", answers=str(folder), previous=str(other)))
    (folder / drawing.SCORES).unlink()
    with pytest.raises(ValueError, match="there is no scores.jsonl; rank its answers"):
        judge.answered(folder)


@pytest.mark.parametrize(("rewards", "best"), [([2.0, 2.0], "dpo"), ([0.0, 0.0], "before")])
def test_the_best_model_feeds_the_next_round(rewards: list[float], best: str, tmp_path: Path) -> None:
    answers(tmp_path / "mine", plain(rewards))
    answers(tmp_path / "others", plain([1.0, 1.0]))
    models = {name: tmp_path / "round-02" / name for name in ("dpo", "before")}
    for path in models.values():
        path.mkdir(parents=True)
    run = config.Judge(
        folder=str(tmp_path / "round-02" / "judge"), answers=str(tmp_path / "mine"),
        previous=str(tmp_path / "others"), candidate=str(models["dpo"]), incumbent=str(models["before"]),
    )  # fmt: skip
    for _ in range(2):
        record, _ = judge.write(run)
    link = tmp_path / "round-02" / "best"
    assert link.resolve() == models[best].resolve() and not Path(link.readlink()).is_absolute()
    assert record["best"] == str(models[best])


def test_a_folder_in_the_place_of_the_link_is_named(tmp_path: Path) -> None:
    answers(tmp_path / "mine", plain([1.0]))
    (tmp_path / "round-01" / "best").mkdir(parents=True)
    run = config.Judge(folder=str(tmp_path / "round-01" / "j"), answers=str(tmp_path / "mine"), candidate="runs/x")
    with pytest.raises(ValueError, match="round-01/best is a folder"):
        judge.write(run)


def test_the_page_says_it_all_and_nothing_else(tmp_path: Path) -> None:
    wanted = [{"kind": "max_words", "value": 2}]
    sly = [{"id": "0", "texts": ["<script>alert(1)</script>"], "rewards": [2.0], "checks": wanted, "safety": "harmful"}]
    answers(tmp_path / "a", sly)
    answers(tmp_path / "b", [{**sly[0], "texts": ["no"], "rewards": [1.0]}])
    run = config.Judge(
        folder=str(tmp_path / "j"), answers=str(tmp_path / "a"), previous=str(tmp_path / "b"), title="Two"
    )
    record, page = judge.write(run)
    text = page.read_text()
    assert "alert(1)&lt;/script&gt;" in text and "<script>alert" not in text
    assert "Better than the model before" in text and ">100.0%<" in text and "Harmful refused" in text
    assert not re.search(r'(?:src|href)="?http', text) and "Over the rounds" not in text
    later = rounds.html({**record, "title": "Three", "win_rate": {"score": 0.5, "ci95": 0.1, "count": 90}}, [record])
    assert "Over the rounds" in later and "As good as the model before" in later and later.count("<svg") == 4
    worse = rounds.html({**record, "win_rate": {"score": 0.2, "ci95": 0.1, "count": 60}})
    assert "Worse than the model before" in worse
    first = rounds.html(
        {key: value for key, value in record.items() if key not in ("win_rate", "previous", "examples")}
    )
    assert "no model before" in first


# --- rewards as a distribution ---


def test_the_largest_distance_is_that_of_the_definition() -> None:
    found = distribution.compare([([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])])
    assert found["ks"] == pytest.approx(1 / 3) and found["difference"] == -1 and found["difference_ci95"] is None
    assert found["mine"]["quantiles"][3] == 2 and found["previous"]["answers"] == 3
    assert sum(found["mine"]["density"]) * (found["edges"][1] - found["edges"][0]) == pytest.approx(1)
    assert distribution.compare([([], [1.0]), ([1.0], [])]) == {}
    equal = distribution.compare([([2.0], [2.0])] * 9)
    assert equal["ks"] == equal["difference"] == 0 and equal["ks_p"] == 1 and "no more than chance" in equal["said"]


def drawn(seed: int, shift: float, tail: float = 0.0) -> list[tuple[list[float], list[float]]]:
    """Rewards of 200 prompts, four answers by either model; prompts differ far more than answers do."""
    random = np.random.default_rng(seed)
    level = random.normal(0, 3, 200)
    mine, other = (level[:, None] + random.normal(0, 1, (200, 4)) for _ in range(2))
    mine += shift - 6 * (random.random((200, 4)) < tail)
    return [(a.tolist(), b.tolist()) for a, b in zip(mine, other, strict=True)]


def test_chance_is_told_from_a_model_that_is_worse() -> None:
    """Alike: p is anything; shifted, or with a few answers that are broken: it is small. 400 exchanges."""
    alike = [distribution.compare(drawn(seed, 0), 400)["ks_p"] for seed in range(20)]
    assert sum(p < 0.05 for p in alike) <= 3 and max(alike) > 0.5
    for seed in range(3):
        worse, broken = (distribution.compare(drawn(seed, *bad), 400) for bad in ((-0.5, 0), (0, 0.08)))
        for found in (worse, broken):
            assert found["ks_p"] < 0.05 and found["difference"] + found["difference_ci95"] < 0
        assert "more than chance makes" in distribution.text(worse)


def test_rewards_of_both_models_are_on_the_page(tmp_path: Path) -> None:
    mine = [{"id": str(i), "texts": ["x", "y"], "rewards": [i, i + 1.0]} for i in range(8)]
    answers(tmp_path / "a", mine)
    answers(tmp_path / "b", [{**one, "rewards": [one["rewards"][0] - 0.5, None]} for one in mine[:6]])
    record = judge.judge(config.Judge(folder="x", answers=str(tmp_path / "a"), previous=str(tmp_path / "b")))
    rewards = record["rewards"]
    assert rewards["prompts"] == 6 and rewards["mine"]["answers"] == 12 and rewards["previous"]["answers"] == 6
    assert rewards["difference"] == 1 and json.loads(json.dumps(rewards)) == rewards
    page = rounds.html(record)
    assert "<h2>Rewards" in page and rewards["said"] in page
