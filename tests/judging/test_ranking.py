"""What was drawn from servers, ranked: rewards asked for once, best answers as dialogs and pairs, calls among them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.dialogs import preferences
from llama31.judging import ranking
from llama31.sampling import answers, drawing, prompts, servers
from llama31.sampling.prompts import Prompt
from llama31.tokens import chat, template
from tests.sampling.scripted import Script, serving
from tests.sampling.test_sampling import (
    FORM,
    QUICK,
    STOPS,
    WORDS,
    connected,
    connected_as,
    drawn,
    given,
    http,
    lines,
)

REWARD = drawing.Policy("runs/reward", "def")


def by_length(pairs: Sequence[tuple[Prompt, chat.Message]]) -> list[float | None]:
    return [float(len(message.text())) for _, message in pairs]


def ranked(
    folder: Path, asked: Sequence[Prompt], scorer: ranking.Scorer = by_length, limit: int = 100, **changes: Any
) -> dict[str, Any]:
    result, refused = ranking.candidates(folder, drawing.known(asked), 3)
    known = ranking.rewards(drawing.read_lines(folder / drawing.SCORES), REWARD.fingerprint, result, limit)
    todo = ranking.unscored(result, known)
    known = {**known, **ranking.score(folder, asked, todo, REWARD, scorer, limit, chunk=5)}
    run = config.Sample(folder=str(folder), prompts="", policy="", **changes)
    return ranking.publish(folder, asked, result, known, REWARD, run.filters, run.pairs, {"refused": refused})


def test_the_best_answer_becomes_a_dialog_and_a_pair(tmp_path: Path) -> None:
    with serving(Script()) as url:
        drawn(tmp_path, http(connected([url])), given())
    recorded = ranked(tmp_path, given(), pairs=config.Pairs(margin=1, strong=1000))
    by_prompt: dict[str, list[str]] = {}
    for line in lines(tmp_path):
        by_prompt.setdefault(line["prompt"], []).append(line["text"])
    best = drawing.read_lines(tmp_path / drawing.BEST)
    assert len(best) == recorded["kept"] == 4
    for record in best:
        chat.read(record)
        user, answer = record["messages"]
        assert user["role"] == "user" and len(answer["content"]) == max(map(len, by_prompt[record["id"]]))
        assert record["provenance"]["reward"] == len(answer["content"])
        assert record["provenance"]["reward_model"]["fingerprint"] == "def" and "seed" in record["provenance"]
        assert record["provenance"]["server"]["model"] == "tiny"
    for record in drawing.read_lines(tmp_path / drawing.PAIRS):
        chosen, rejected = len(record["chosen"]), len(record["rejected"])
        sizes = sorted(map(len, by_prompt[record["id"]]))
        assert (rejected, chosen) == (sizes[0], sizes[-1]) and record["strength"] == "better"
    assert recorded["reward_best"] > recorded["reward_mean"] and recorded["refused"] == 0


def test_scores_are_asked_for_once(tmp_path: Path) -> None:
    with serving(Script()) as url:
        drawn(tmp_path, http(connected([url])), given())
    calls: list[int] = []

    def counting(pairs: Sequence[tuple[Prompt, chat.Message]]) -> list[float | None]:
        calls.append(len(pairs))
        return by_length(pairs)

    assert ranked(tmp_path, given(), counting) == ranked(tmp_path, given(), counting)
    assert calls == [5, 5, 2]


def test_another_prompt_of_the_same_id_is_answered_anew(tmp_path: Path) -> None:
    """And its answers are scored anew, though prompt and k are the same; lines of before say nothing, and count."""
    old, new = (prompts._prompt({"id": "1", "prompt": text}, FORM) for text in ("Name a river", "Name a bird"))
    script = Script()
    with serving(script) as url:
        assert drawn(tmp_path, http(connected([url])), [old]) == 3
        ranked(tmp_path, [old])
        script.says = "Sparrow and what else there is to be said about it."
        assert drawn(tmp_path, http(connected_anew(url)), [new]) == 3
    record = ranked(tmp_path, [new])
    assert record["answers"] == 3 and record["reward_best"] == len(script.says)
    assert not drawing.missing([new], 3, lines(tmp_path)) and not drawing.missing([old], 3, lines(tmp_path))
    silent = [{key: value for key, value in line.items() if key != "asked"} for line in lines(tmp_path)[:3]]
    assert not drawing.missing([new], 3, silent) and len(drawing.missing([new], 3, lines(tmp_path)[:3])) == 3


def connected_anew(url: str) -> list[servers.Server]:
    capabilities = servers.Capabilities(url, "tiny", "ids", "stop_token_ids", True, n=True, seeds=True, greedy=True)
    return [servers.Server(url, QUICK, WORDS, STOPS, capabilities)]


def test_a_score_is_that_of_what_was_judged(tmp_path: Path) -> None:
    """Not of an answer that was removed and drawn again, nor that of a limit which has grown."""
    with serving(Script()) as url:
        drawn(tmp_path, http(connected([url])), given(2))
    calls: list[int] = []

    def short(pairs: Sequence[tuple[Prompt, chat.Message]]) -> list[float | None]:
        calls.append(len(pairs))
        return [None if prompt.id == given(2)[1].id else 1.0 for prompt, _ in pairs]

    record = ranked(tmp_path, given(2), short)
    assert (record["kept"], record["without a reward"], sum(calls)) == (1, 3, 6)
    for limit, more in ((100, 0), (101, 3), (100, 0), (50, 0)):
        calls.clear()
        assert ranked(tmp_path, given(2), short, limit)["kept"] == 1 and sum(calls) == more
    assert ranked(tmp_path, given(2), by_length, 200)["kept"] == 2
    path, calls = tmp_path / drawing.CANDIDATES, []
    path.write_text(path.read_text().replace('"text": "', '"text": "Well, ', 1))
    ranked(tmp_path, given(2), short, 200)
    assert calls == [1]


def test_rewards_that_are_no_numbers_are_counted(tmp_path: Path) -> None:
    with serving(Script()) as url:
        drawn(tmp_path, http(connected([url])), given(3))
    wrong = iter([math.nan, math.inf, -math.inf])

    def odd(pairs: Sequence[tuple[Prompt, chat.Message]]) -> list[float | None]:
        return [next(wrong, 2.0) for _ in pairs]

    record = ranked(tmp_path, given(3), odd)
    assert (record["without a reward"], record["kept"], record["reward_mean"]) == (3, 2, 2.0)
    for name in (drawing.SUMMARY, drawing.SCORES):
        assert not {"NaN", "Infinity"} & set(re.findall(r"[:\[] (\w+)", (tmp_path / name).read_text()))
    assert ranked(tmp_path, given(3), odd, 10**6) == record, "and they are not asked for again"
    old = {"prompt": given(3)[1].id, "k": 0, "reward": math.nan, "model": REWARD.fingerprint, "name": REWARD.name}
    with (tmp_path / drawing.SCORES).open("a") as file:
        file.write(json.dumps(old) + "\n")
    assert ranked(tmp_path, given(3))["without a reward"] == 4


def test_repeated_answers_count_once(tmp_path: Path) -> None:
    script = Script()
    with serving(script) as url:
        result = connected([url])
        script.says = "The same again."
        drawn(tmp_path, http(result), given())
    record = ranked(tmp_path, given())
    assert record["dropped"] == {"duplicate": 8} and record["kept"] == 4 and record["pairs"] == 0


# --- calls of tools ---

CODE = "<|python_tag|>print(1 + 1)"


def spoken(record: Any) -> list[int]:
    """Tokens of an assistant's message, header apart."""
    encoded = FORM.encode([chat.message(record)], bos=False)
    return encoded.tokens[encoded.parts != chat.HEADER].tolist()


@pytest.mark.parametrize(
    ("says", "ends", "ids"),
    [
        (CODE, "<|eom_id|>", [WORDS.special["<|python_tag|>"], *b"print(1 + 1)", WORDS.special["<|eom_id|>"]]),
        (CODE + "<|eom_id|>", None, [WORDS.special["<|python_tag|>"], *b"print(1 + 1)", WORDS.special["<|eom_id|>"]]),
        ('brave_search.call(query="x")', "<|eot_id|>", [*b'brave_search.call(query="x")', WORDS.eot_id]),
        ("Let me look.", "<|eom_id|>", [*b"Let me look.", WORDS.special["<|eom_id|>"]]),
        ("It is two.", "<|eot_id|>", [*b"It is two.", WORDS.eot_id]),
    ],
)
def test_what_was_sampled_is_scored_and_trained(says: str, ends: str | None, ids: list[int], tmp_path: Path) -> None:
    """With the tokens that the model said, not with its text and <|eot_id|>."""
    script, heard = Script(), list[list[int]]()
    with serving(script) as url:
        result = connected([url])
        script.says, script.ends = says, ends
        drawn(tmp_path, http(result), given(1), answers=1)
        script.says, script.ends = "I do not know.", "<|eot_id|>"
        drawn(tmp_path, http(connected_as(result)), given(1), answers=2)

    def by_call(pairs: Sequence[tuple[Prompt, chat.Message]]) -> list[float | None]:
        encoded = [FORM.encode([message], bos=False) for _, message in pairs]
        heard.extend(one.tokens[one.parts != chat.HEADER].tolist() for one in encoded)
        return [1.0, 0.0]

    record = ranked(tmp_path, given(1), by_call)
    assert record["dropped"] == {} and heard[0] == ids and lines(tmp_path)[0].get("end") in (ends, "<|eom_id|>")
    (best,) = drawing.read_lines(tmp_path / drawing.BEST)
    assert spoken(best["messages"][-1]) == ids and "message" not in best["provenance"]
    (pair,) = drawing.read_lines(tmp_path / drawing.PAIRS)
    encoded = preferences.encode(pair, FORM, 1.0)
    assert encoded is not None and pair["rejected"] == "I do not know."
    tokens, parts = encoded.sequences[1]
    assert tokens[parts >= chat.BODY].tolist() == ids


def test_a_chat_server_is_offered_tools_and_may_call_them(tmp_path: Path) -> None:
    tool = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    asked = [prompts._prompt({"prompt": "Rain?", "tools": [tool]}, FORM)]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"where": "\\ud800"}'}}
    script = Script(template=5)
    with serving(script) as url:
        result = connected([url], api="chat")
        script.calls = [call]
        drawn(tmp_path, http(result), asked, answers=1)
        script.calls = [call, call]
        drawn(tmp_path, http(connected_as(result)), asked, answers=2)
    assert script.asked[-1]["tools"] == [{"type": "function", "function": tool}]
    first, second = lines(tmp_path)
    where = {"where": "\N{REPLACEMENT CHARACTER}"}
    assert first["finish"] == "stop" and first["message"]["tool_calls"][0]["function"]["arguments"] == where
    assert first["text"] == chat.message(first["message"]).text()
    assert "no message can say what came back: messages[0].tool_calls" in second["refused"]


def test_our_own_decoder_says_what_ended_an_answer() -> None:
    tag, eom = WORDS.special["<|python_tag|>"], WORDS.special["<|eom_id|>"]
    ends = template.stops(WORDS)  # type: ignore[arg-type]
    code = answers.of_ids([tag, *b"print(1)", eom], FORM, WORDS, ends)
    assert (code.text, code.finish, code.end, code.tokens) == ("print(1)", "stop", "<|eom_id|>", 10)
    assert spoken(answers.message(code.record())) == [tag, *b"print(1)", eom]
    assert answers.of_ids(list(b" plain "), FORM, WORDS, ends) == answers.Answer(" plain ", "length", 7)
    assert answers.of_ids([*b"So", tag, *b"x", eom], FORM, WORDS, ends).text == "So<|python_tag|>x"
    assert (
        spoken(answers.message(answers.of_ids([*b"Hi", WORDS.eos_id], FORM, WORDS, ends).record()))[-1] == WORDS.eot_id
    )


def test_answers_in_another_language_are_not_ranked(tmp_path: Path) -> None:
    """Nor read by the reward model. What is asked for is what the record says, or the prompt."""
    asked = [
        prompts._prompt({"id": str(n), "prompt": f"Say {n}", "language": "fr" if n else ""}, FORM) for n in range(2)
    ]
    with serving(Script()) as url:
        drawn(tmp_path, http(connected([url])), asked)
    texts = {(line["prompt"], line["k"]): line["text"] for line in lines(tmp_path)}
    result, _ = ranking.candidates(tmp_path, drawing.known(asked), 3)
    told: list[tuple[str, str | None]] = []

    def matches(prompt: str, answer: str, language: str | None) -> bool:
        told.append((prompt, language))
        return answer not in (texts["0", 1], texts["1", 0], texts["1", 1], texts["1", 2])

    foreign = ranking.foreign(result, asked, matches)
    assert foreign == {("0", 1), ("1", 0), ("1", 1), ("1", 2)}
    assert set(told) == {("Say 0", None), ("Say 1", "fr")}
    todo = ranking.unscored(result, {}, foreign)
    assert [(one.prompt, one.k) for one in todo] == [("0", 0), ("0", 2)]
    scores = ranking.score(tmp_path, asked, todo, REWARD, by_length, 100)
    run = config.Sample(folder=str(tmp_path), prompts="", policy="")
    record = ranking.publish(tmp_path, asked, result, scores, REWARD, run.filters, run.pairs, {}, foreign)
    assert record["kept"] == 1 and record["dropped"]["another language"] == 4
    (best,) = drawing.read_lines(tmp_path / drawing.BEST)
    assert best["id"] == "0" and best["messages"][-1]["content"] in (texts["0", 0], texts["0", 2])
