"""Rejection sampling with servers that do as they are told and with ones that do not; no torch."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama31 import config
from llama31.judging import rejection
from llama31.sampling import capability_probe, drawing, prompts, servers
from llama31.sampling.prompts import Prompt
from llama31.tokens import chat
from tests.processes import LIMIT_S
from tests.sampling.scripted import Bytes, Script, serving

WORDS = Bytes()
FORM = chat.Format(WORDS)
POLICY = drawing.Policy("runs/policy", "abc")
STOPS = {name: WORDS.special[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")}
RUN = config.Sampling(answers=3, temperature=0.8, max_new_tokens=32)
QUICK = config.Server(attempts=3, backoff_s=0.005, timeout_s=LIMIT_S, concurrency=4)


def given(count: int = 4) -> list[Prompt]:
    records = [{"messages": [{"role": "user", "content": f"Say something about number {i}"}]} for i in range(count)]
    return [prompts._prompt(record, FORM) for record in records]


def request(prompt: Prompt | None = None, **changes: Any) -> servers.Request:
    prompt = prompt or given(1)[0]
    return replace(drawing.request_of(prompt, RUN, 7), **changes)


def connected(urls: Sequence[str], **changes: Any) -> list[servers.Server]:
    return capability_probe.connect(replace(QUICK, urls=list(urls), **changes), WORDS, STOPS, request())


def http(connected: Sequence[servers.Server], run: config.Sampling = RUN, **changes: Any) -> drawing.Http:
    return drawing.Http(connected, replace(QUICK, **changes), POLICY, run)


def drawn(folder: Path, source: drawing.AnswerSource, asked: Sequence[Prompt], answers: int = 3) -> int:
    tasks = drawing.missing(asked, answers, drawing.read_lines(folder / drawing.CANDIDATES))
    return drawing.draw(folder, tasks, source, lambda done, total: None)


def lines(folder: Path) -> list[dict[str, Any]]:
    return drawing.read_lines(folder / drawing.CANDIDATES)


def test_every_answer_is_drawn_once_with_its_provenance(tmp_path: Path) -> None:
    with serving(Script()) as url:
        assert drawn(tmp_path, http(connected([url])), given()) == 12
    found = lines(tmp_path)
    assert {(line["prompt"], line["k"]) for line in found} == {(p.id, k) for p in given() for k in range(3)}
    assert len({line["text"] for line in found}) == 12
    one = found[0]
    assert one["policy"] == {"name": "runs/policy", "fingerprint": "abc"} and one["finish"] == "stop"
    assert (one["temperature"], one["top_p"], one["asked"]) == (
        0.8,
        1.0,
        {p.id: drawing.asked(p) for p in given()}[one["prompt"]],
    )
    (capabilities,) = drawing.Register(tmp_path).known.items()
    assert (
        {line["server"] for line in found} == {capabilities[0]}
        and capabilities[1]["model"] == "tiny"
        and capabilities[1]["seeds"]
    )
    assert isinstance(one["seed"], int) and one["time_s"] > 1e9


@pytest.mark.parametrize("honours", [True, False])
def test_n_is_used_where_it_is_honoured(honours: bool, tmp_path: Path) -> None:
    script = Script(n=honours)
    with serving(script) as url:
        found = connected([url])
        probes = len(script.asked)
        drawn(tmp_path, http(found), given())
    after = script.asked[probes:]
    assert [body.get("n", 1) for body in after] == ([3] * 4 if honours else [1] * 12)
    assert len({body["seed"] for body in after}) == len(after) and len(lines(tmp_path)) == 12


def test_answers_that_are_missing_are_asked_for_again(tmp_path: Path) -> None:
    script = Script()
    with serving(script) as url:
        found = connected([url])
        script.n = False  # it honoured n when it was probed
        script.garbage = "first"  # and what is asked for again may fail at first, too
        assert drawn(tmp_path, http(found), given()) == 12
    assert not any("refused" in line for line in lines(tmp_path))
    assert Counter(line["prompt"] for line in lines(tmp_path)) == {prompt.id: 3 for prompt in given()}


def test_what_is_drawn_follows_from_the_seed(tmp_path: Path) -> None:
    with serving(Script()) as url:
        for name, run in [("a", RUN), ("b", RUN), ("c", replace(RUN, seed=5))]:
            drawn(tmp_path / name, http(connected([url]), run), given())
    texts = {name: {(x["prompt"], x["k"]): x["text"] for x in lines(tmp_path / name)} for name in "abc"}
    assert texts["a"] == texts["b"] != texts["c"]


def test_a_server_that_dies_midway_loses_nothing(tmp_path: Path) -> None:
    script = Script(n=False)
    with serving(script) as url:
        found = connected([url])
        script.die_after = len(script.asked) + 5
        with pytest.raises(
            config.RunError,
            match=r"any more: http://127.0.0.1.*again \(http://127.0.0.1\S+\), or give .* goes on where",
        ):
            drawn(tmp_path, http(found), given())
        assert len(lines(tmp_path)) == 5
        before = lines(tmp_path)
        script.die_after = None
        assert drawn(tmp_path, http(connected([url])), given()) == 7
    assert lines(tmp_path)[:5] == before and len({(x["prompt"], x["k"]) for x in lines(tmp_path)}) == 12


def test_another_server_takes_over(tmp_path: Path) -> None:
    bad, good = Script(n=False), Script(n=False)
    with serving(bad) as one, serving(good) as other:
        found = connected([one, other])
        bad.die_after = len(bad.asked) + 1
        assert drawn(tmp_path, http(found), given(6)) == 18
    known = drawing.Register(tmp_path).known
    answered = Counter(known[line["server"]]["url"] for line in lines(tmp_path))
    assert answered == {one: 1, other: 17}


def test_those_that_are_left_are_not_asked_more_at_once(tmp_path: Path) -> None:
    bad, good = Script(n=False), Script(n=False)
    with serving(bad) as one, serving(good) as other:
        pair = connected([one, other], concurrency=1)
        bad.die_after = len(bad.asked)
        good.slow_s, good.most = 0.05, 0
        assert drawn(tmp_path, http(pair, concurrency=1), given()) == 12
    assert good.most == 1


def test_busy_servers_are_asked_again(tmp_path: Path) -> None:
    script = Script(n=False)
    with serving(script) as url:
        found = connected([url], attempts=8)
        script.busy = len(script.asked) + 3
        assert drawn(tmp_path, http(found), given(2)) == 6
    assert not any("refused" in line for line in lines(tmp_path))


def test_a_prompt_that_is_not_answered_takes_no_server_along(tmp_path: Path) -> None:
    """Of a slow one nothing comes in time, and each server would be given up for it, one after the other."""
    with serving(Script(n=False, hangs="number 2")) as one, serving(Script(n=False, hangs="number 2")) as other:
        assert drawn(tmp_path, http(connected([one, other])), given()) == 12
    refused = [line for line in lines(tmp_path) if "refused" in line]
    assert {line["prompt"] for line in refused} == {given()[2].id} and len(refused) == 3
    assert "(after 3 attempts); the server is well, so it is this prompt" in refused[0]["refused"]


def test_a_busy_server_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than all attempts, but not for ever."""
    script = Script(n=False)
    with serving(script) as url:
        found = connected([url], attempts=1, backoff_s=0.0, timeout_s=300)
        script.busy = len(script.asked) + 20
        assert drawn(tmp_path, http(found), given(2)) == 6
        assert capsys.readouterr().out == f"{url} is busy (HTTP 503: busy): waiting, 300 s at most\n"
        seconds = itertools.count(10**9)  # later than all that was
        monkeypatch.setattr(servers, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
        script.busy = 10**9
        with pytest.raises(config.RunError, match="no server answers any more: .*HTTP 503: busy, for too long"):
            drawn(tmp_path, http(found), given(4))
    assert len(lines(tmp_path)) == 6 and not any("refused" in line for line in lines(tmp_path))


def test_an_error_may_be_cut_off(tmp_path: Path) -> None:
    script = Script(n=False)
    with serving(script) as url:
        found = connected([url])
        script.cut = len(script.asked) + 4
        assert drawn(tmp_path, http(found), given(2)) == 6
    assert not any("refused" in line for line in lines(tmp_path))


def test_a_key_that_is_missing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Script(key="mine")) as url:
        with pytest.raises(ValueError, match="server.key_variable=null: .* HTTP 401: who are you?"):
            connected([url], wait_s=1000)
        monkeypatch.setenv("MINE", "mine")
        assert connected([url], key_variable="MINE")[0].capabilities is not None


def test_some_garbage_is_asked_again_and_much_of_it_ends_the_run(tmp_path: Path) -> None:
    script = Script(n=False)
    with serving(script) as url:
        found = connected([url])
        script.garbage = "first"
        drawn(tmp_path / "some", http(found), given())
        script.garbage = "always"
        with pytest.raises(
            config.RunError, match=r"2\d of 2\d prompts got no answer, the last since: (no JSON|no choices|a choice)"
        ):
            drawn(tmp_path / "much", http(connected_as(found)), given(40))
    assert len(lines(tmp_path / "some")) == 12 and all("text" in line for line in lines(tmp_path / "some"))
    assert all("refused" in line for line in lines(tmp_path / "much"))


def connected_as(found: Sequence[servers.Server]) -> list[servers.Server]:
    """The same servers as they were probed: a pool closes those that it has used."""
    return [servers.Server(one.url, one.settings, one.tokenizer, one.stops, one.capabilities) for one in found]


def test_one_prompt_does_not_end_the_run(tmp_path: Path) -> None:
    with serving(Script(poison="number 3")) as url:
        assert drawn(tmp_path, http(connected([url])), given(6)) == 18
    refused = [line for line in lines(tmp_path) if "refused" in line]
    assert {line["prompt"] for line in refused} == {given(6)[3].id} and len(refused) == 3
    assert "HTTP 500: out of memory (after 3 attempts)" in refused[0]["refused"]


@pytest.mark.parametrize("honours", [True, False])
def test_few_prompts_do_not_end_the_run(honours: bool, tmp_path: Path) -> None:
    """With 30 answers each: what is counted are prompts, whose refusals come together."""
    with serving(Script(n=honours, poison="number 0")) as url:
        found = capability_probe.connect(replace(QUICK, urls=[url], attempts=1), WORDS, STOPS, request(given(2)[1]))
        assert drawn(tmp_path / "first", http(found), given(6), answers=30) == 180
        assert drawn(tmp_path / "alone", http(connected_as(found)), given(1), answers=30) == 30
    refused = [line for line in lines(tmp_path / "first") if "refused" in line]
    assert {line["prompt"] for line in refused} == {given(1)[0].id} and len(refused) == 30
    assert all("refused" in line for line in lines(tmp_path / "alone"))


def test_the_probe_asks_the_shortest_prompt(tmp_path: Path) -> None:
    """The first may be the one that is too long, of which others know nothing."""
    asked = [prompts._prompt({"prompt": text}, FORM) for text in ("too long " * 40, "Name a river", "Name many rivers")]
    script = Script(poison="too long")
    with serving(script) as url:
        run = config.Sample(sampling=RUN, server=replace(QUICK, urls=[url]))
        session: Any = rejection.Session(run, tmp_path, asked, 0, None, WORDS, POLICY)  # type: ignore[arg-type]
        assert drawn(tmp_path, rejection.connect(session, drawing.missing(asked, 3, ())), asked) == 9
    assert script.asked[0]["prompt"] == list(asked[1].ids)


def test_a_source_that_refuses_the_rest_has_done_it(tmp_path: Path) -> None:
    """Twenty prompts that are too long are what a run before has left."""

    class Refusing:
        def draw(self, tasks: Sequence[drawing.Task]) -> Iterator[list[dict[str, Any]]]:
            yield [drawing.line_of(task, POLICY, RUN, 1, refused="too long") for task in tasks]

    assert drawn(tmp_path, Refusing(), given(20)) == 60


def test_a_torn_line_is_cut_and_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / drawing.CANDIDATES
    path.write_text('{"prompt": "a", "k": 0}\n{"prompt": "b", "k"')
    assert drawing.read_lines(path) == [{"prompt": "a", "k": 0}]
    with drawing.Ledger(path) as ledger:
        with pytest.raises(config.RunError, match="is being written by another process"):
            drawing.Ledger(path)
        ledger.append([{"prompt": "c", "k": 1}])
    assert path.read_text() == '{"prompt": "a", "k": 0}\n{"prompt": "c", "k": 1}\n'
    with path.open("a") as file:
        file.write("x" * 3000)
    drawing.Ledger(path).__exit__(None, None, None)
    assert drawing._whole_lines(path, 7) == path.stat().st_size == drawing._whole_lines(path) == 48
    path.write_text('nonsense\n{"prompt": "a", "k": 0}\n')
    with pytest.raises(ValueError, match=r"candidates.jsonl:1 is damaged"):
        drawing.read_lines(path)


def test_a_folder_holds_answers_of_one_kind(tmp_path: Path) -> None:
    drawing.settle(tmp_path, POLICY, RUN, {"tokenizer": "t"})
    drawing.settle(tmp_path, replace(POLICY, name="moved"), replace(RUN, answers=30), {"tokenizer": "t"})
    with pytest.raises(ValueError, match="answers drawn with fingerprint=abc, temperature=0.8; give another folder"):
        drawing.settle(tmp_path, drawing.Policy("x", "other"), replace(RUN, temperature=1), {"tokenizer": "t"})
    drawing.settle(tmp_path, POLICY, None, {"tokenizer": "t"})  # to be ranked
    with pytest.raises(ValueError, match="answers drawn with tokenizer=t; give another folder"):
        drawing.settle(tmp_path, POLICY, None, {"tokenizer": "another"})


@pytest.mark.parametrize(
    ("changes", "world", "said"),
    [
        ({"sampling": config.Sampling(temperature=0)}, 1, "sampling.answers=10: at sampling.temperature=0"),
        ({"server": config.Server(urls=["http://x"])}, 2, "part=all: servers are asked by one process, and 2 were"),
        ({"part": "rank"}, 1, "part=rank: there is no reward model"),
    ],
)
def test_what_cannot_be_asked_together(changes: dict[str, Any], world: int, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        drawing.check(config.Sample(**changes), world)
    assert str(caught.value).startswith(said)


# --- prompts ---


def write(path: Path, records: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_prompts_are_read_once_and_without_their_answers(tmp_path: Path) -> None:
    dialog = [{"role": "user", "content": "Hi"}]
    answered = [*dialog, {"role": "assistant", "content": "Hello"}]
    preference = {"prompt": "Hi", "chosen": "Hello", "rejected": "No", "strength": "better"}
    file = write(tmp_path / "a.jsonl", [{"messages": dialog}, {"messages": answered}, preference, {"prompt": "Bye"}])
    found, repeated = prompts.read(file, FORM)
    assert [one.asked for one in found] == ["Hi", "Bye"] and repeated == 2
    assert found[0].ids == tuple(FORM.prompt(chat.read({"messages": dialog})))
    assert "chosen" not in found[0].record
    assert [one.asked for one in prompts.read(file, FORM, limit=1)[0]] == ["Hi"]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ([], "a.jsonl, line 1: no JSON object"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "a dialog is"),
        ({"messages": [{"role": "system", "content": "x"}]}, "a prompt ends with what a user or a tool says"),
        ({"prompt": "x", "safety": "odd"}, "safety=odd: give one of harmful, borderline"),
        ({"prompt": "x", "checks": [{"kind": "rhyme"}]}, "give {kind, value}, a kind of min_words"),
        ({"prompt": "x", "checks": [{"kind": "max_words", "value": "3"}]}, "max_words='3': give a whole number"),
        ({"prompt": "x", "checks": [{"kind": "matches", "value": "("}]}, "no regular expression"),
    ],
)
def test_what_is_no_prompt_is_named(record: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        prompts.read(write(tmp_path / "a.jsonl", [record]), FORM)
    assert said in str(caught.value)


def test_one_id_one_prompt(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"id": "1", "prompt": "x"}, {"id": "1", "prompt": "y"}])
    with pytest.raises(ValueError, match="a.jsonl, line 2: id 1 stands for another prompt"):
        prompts.read(file, FORM)
    with pytest.raises(ValueError, match="prompts=nowhere: no such file"):
        prompts.read("nowhere", FORM)


def test_each_prompt_may_have_a_temperature_of_its_own(tmp_path: Path) -> None:
    script, run = Script(n=False), replace(RUN, temperature=0.2, temperature_to=1.0)
    with serving(script) as url:
        found = connected([url])
        probes = len(script.asked)
        drawn(tmp_path, http(found, run), given(6))
    asked = {(body["seed"], body["temperature"]) for body in script.asked[probes:]}
    by_prompt = {line["prompt"]: set[float]() for line in lines(tmp_path)}
    for line in lines(tmp_path):
        by_prompt[line["prompt"]].add(line["temperature"])
        assert (line["seed"], line["temperature"]) in asked
    assert all(len(values) == 1 for values in by_prompt.values()), "the answers to a prompt share it"
    several = {value for values in by_prompt.values() for value in values}
    assert len(several) == 6 and 0.2 <= min(several) < max(several) <= 1.0
    # by seed and prompt, whatever the order
    again = {prompt.id: drawing.temperature_of(prompt, run) for prompt in reversed(given(6))}
    assert {name: {value} for name, value in again.items()} == by_prompt
    assert drawing.temperature_of(given(1)[0], replace(run, seed=5)) != again[given(1)[0].id]
    even = [drawing.temperature_of(prompt, run) for prompt in given(400)]
    assert abs(sum(even) / 400 - 0.6) < 0.05
    drawing.settle(tmp_path, POLICY, run, {}, given(6))
    with pytest.raises(ValueError, match="drawn with temperature_to=1.0"):
        drawing.settle(tmp_path, POLICY, replace(run, temperature_to=None), {}, given(6))


@pytest.mark.parametrize("low", [0.0, 1.2])
def test_temperatures_are_drawn_upwards_from_above_0(low: float) -> None:
    run = config.Sample(sampling=config.Sampling(answers=1, temperature=low, temperature_to=1.0))
    with pytest.raises(ValueError, match="sampling.temperature_to=1.0: temperatures are drawn from"):
        drawing.check(run, 1)
