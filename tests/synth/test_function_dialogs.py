"""Dialogs of agents in roles: what each may say, what is refused, and that only APIs give results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.command import entry, inputs
from llama31.synth import tasks
from llama31.synth.pipeline import journal
from llama31.synth.tools import definitions
from llama31.synth.tools.function_calls import FunctionCall
from llama31.synth.tools.roles import apis, domains, messages, talk
from llama31.synth.tools.roles.dialogs import KINDS, FunctionDialogs
from llama31.synth.tools.roles.messages import AssistantMessage
from tests.conftest import ROOT
from tests.synth import scripted, training
from tests.synth.scripted import Scripted

# --- domains ---


def test_domains_are_drawn_without_near_repeats(tmp_path: Path) -> None:
    given = tmp_path / "domains.jsonl"
    names = ["hotel bookings", "Booking of a hotel", "ferry crossings", "tax returns", "return of taxes", "hotels"]
    given.write_text("".join(json.dumps({"text": name}) + "\n" for name in names))
    found = list(domains.read(str(given), "text", 1))
    assert [one.index for one in found] == list(range(6)) and {one.text for one in found} == {*names}
    assert sum("near" in one.beside for one in found) == 3  # of hotels two, of taxes one
    assert [one.text for one in found] != [one.text for one in domains.read(str(given), "text", 2)]
    assert [one.text for one in domains.read(str(given), "text", 1, 2)] == [one.text for one in found[:2]]
    assert domains.listed("Here:\n- **Room rates**\n2. early check-in.\n* of the\nend") == [
        "Room rates",
        "early check-in",
    ]
    given.write_text("".join(json.dumps({"text": name}) + "\n" for name in ["gardens", *names]))
    grown = {one.id: one for one in domains.read(str(given), "text", 1)}
    assert [one for one in grown if one in {each.id for each in found}] == [one.id for one in found]
    assert [grown[one.id].record for one in found] == [one.record for one in found]  # or a result would be refused
    with pytest.raises(ValueError, match="no list"):
        domains.listed("Room rates")
    assert domains.distinct(["room rates", "rates for rooms", "ferry crossing", "spas"], ["ferry crossings"]) == [
        "room rates", "spas",
    ]  # fmt: skip


def test_our_domains_are_no_near_repeats() -> None:
    found = list(domains.read(str(ROOT / "conf" / "function_domains.jsonl"), "text", 1))
    assert len(found) > 100 and not any("near" in one.beside for one in found)
    assert all(len(one.text) <= domains.LONGEST for one in found)


# --- definitions and results ---

FIND = {
    "name": "find_crossings", "description": "Lists crossings from a port on a day",
    "parameters": {
        "type": "object", "required": ["port"],
        "properties": {
            "port": {"type": "string", "description": "port of departure"},
            "day": {"type": "string", "enum": ["Monday", "Tuesday"], "description": "day of the week"},
        },
    },
    "returns": {
        "type": "object", "required": ["crossings"],
        "properties": {"crossings": {"type": "array", "items": {"type": "string"}}},
    },
}  # fmt: skip
BOOK = {
    "name": "book_crossing", "description": "Books seats on a crossing.",
    "parameters": {
        "type": "object", "required": ["crossing", "seats"],
        "properties": {"crossing": {"type": "string"}, "seats": {"type": "integer", "minimum": 1, "maximum": 9}},
    },
    "returns": {"type": "object", "properties": {"price": {"type": "number"}}, "required": ["price"]},
}  # fmt: skip


def changed(place: Sequence[Any], value: Any) -> str:
    """The two functions, in which one value is another."""
    given = json.loads(json.dumps([FIND, BOOK]))
    inner = given
    for one in place[:-1]:
        inner = inner[one]
    inner[place[-1]] = value
    return json.dumps(given)


def test_definitions_that_can_be_checked() -> None:
    find, book = apis.read(f"```json\n{json.dumps([FIND, BOOK])}\n```", 2, 2)
    assert find.definition.tool["function"].keys() == {"name", "description", "parameters"}
    assert json.loads(book.told(returns=True))["returns"] == BOOK["returns"] and "returns" not in book.told()
    assert find.purpose() == (
        "- Lists crossings from a port on a day. Takes: port of departure; day of the week (may be left out)"
    )
    known = [find.definition, book.definition]
    assert definitions.problems("book_crossing", {"crossing": "a", "seats": 2}, known) == []
    for seats in (0, 10, 2.5, "2", True, float("nan")):
        assert definitions.problems("book_crossing", {"crossing": "a", "seats": seats}, known)
    assert apis.response('{"crossings": ["MX-41"]}', find.returns) == '{"crossings": ["MX-41"]}'
    for broken in ('{"crossings": [1]}', "{}", '{"crossings": [], "more": 1}', "[]", "none", '{"price": NaN}'):
        with pytest.raises(ValueError, match="."):
            apis.response(broken, book.returns if "price" in broken else find.returns)
    with pytest.raises(ValueError, match="more than 4000"):
        apis.response(json.dumps({"crossings": ["x" * 5000]}), find.returns)


def test_what_changes_something_is_no_longer_answered_from_memory() -> None:
    find, book = apis.read(changed([1, "changes"], True), 2, 2)
    assert book.changes and not find.changes and json.loads(book.told(returns=True))["changes"] is True
    told = talk.FunctionTalk([find, book])
    looked, booked = FunctionCall("find_crossings", {"port": "a"}), FunctionCall("book_crossing", {"seats": 2})
    told.returned(looked, "[1]")
    told.returned(FunctionCall("find_crossings", {"port": "b"}), "[2]")
    assert told.memory[talk.key(looked)] == "[1]"
    told.returned(booked, "{}")
    assert told.memory == {talk.key(booked): "{}"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("{}", "no list of 2 to 4"),
        (json.dumps([FIND]), "no list of 2 to 4"),
        (json.dumps([FIND, FIND]), "a name that another"),
        (changed([0, "name"], "brave_search"), "a name that another"),
        (changed([0, "name"], "taken_name"), "a name that another"),
        (changed([0, "name"], "Find Crossings"), "no name of a function"),
        (changed([0, "description"], " "), "empty description"),
        (changed([0, "more"], 1), "no function with name"),
        (changed([0, "changes"], "yes"), "neither true nor false"),
        (changed([0, "parameters", "type"], "array"), "properties of a schema of type array"),
        (changed([0, "parameters", "required"], ["quay"]), "required and not defined"),
        (changed([0, "parameters", "properties", "port"], {"$ref": "#/x", "type": "string"}), r"a schema with \$ref"),
        (changed([0, "parameters", "properties", "port"], {"type": ["string", "null"]}), "no schema with a type"),
        (changed([0, "parameters", "properties", "day", "enum"], ["Monday", 2]), "values of another type"),
        (changed([0, "parameters", "properties", "day", "enum"], []), "without values"),
        (changed([0, "parameters", "properties", "port", "minimum"], 1), "a minimum that is no number, or of none"),
        (changed([0, "returns"], {"type": "string"}), "neither object nor array"),
        (changed([1, "parameters", "properties", "seats", "maximum"], "9"), "a maximum"),
        (changed([0, "parameters", "properties", "port", "default"], float("nan")), "not JSON compliant"),
        ("[" * 9999, "too deep"),
    ],
)
def test_definitions_that_are_refused(answer: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        apis.read(answer, 2, 4, {"taken_name"})


def test_one_function_at_least_needs_an_argument() -> None:
    free = [{**one, "parameters": {"type": "object", "properties": {}}} for one in (FIND, BOOK)]
    with pytest.raises(ValueError, match="no function that needs an argument"):
        apis.read(json.dumps(free), 1, 4)


# --- what the assistant writes ---

CALL = 'Call: {"name": "find_crossings", "arguments": {"port": "Arholm"}}'


def test_messages_that_can_be_read() -> None:
    assert messages.read(CALL).call == FunctionCall("find_crossings", {"port": "Arholm"})
    assert messages.read(CALL).written() == CALL
    reply = "Reply: There are two:\n- at noon\n- at night\nResults may change."
    assert messages.read(reply) == AssistantMessage(reply=reply.removeprefix("Reply: "))


@pytest.mark.parametrize(
    "said",
    [
        "", "It is at noon.", CALL + "\nResult: noon", CALL + "\nReturned: {}", CALL + "\n" + CALL,
        CALL + "\nReply: noon",
        "Reply:", "Reply: Done.\nResult: 3", "Reply: Done.\nAPI response: noon", "Reply: Done.\n-> 3", "Reply: {}",
        'Reply: See {"x": 1, "arguments": {}}', "Reply: ```\n3\n```", "Reply: <|python_tag|>x", "Reply: a\n[1]",
        'Call: {"name": "x"}', 'Call: {"name": 1, "arguments": {}}', 'Call: {"name": "brave_search", "arguments": {}}',
        'Call: {"name": "x", "arguments": []}', 'Call: {"name": "x", "arguments": {"a": NaN}}', "Call: find(1)",
        "Reply: Done.\nTool output: 3", "Reply: Done.\n**Observation**: 3",
    ],
)  # fmt: skip
def test_messages_that_are_refused(said: str) -> None:
    with pytest.raises(ValueError, match="."):
        messages.read(said)


def test_shapes_of_turns() -> None:
    one = (FunctionCall("find", {"port": "Arholm"}), '{"crossings": ["MX-41"]}')
    two = (FunctionCall("book", {"crossing": "MX-41", "seats": 2}), '{"price": 30}')
    assert talk.shape([], "") == "none" and talk.shape([one], "") == "simple"
    assert talk.shape([one, two], "To book") == "nested" and talk.shape([one, two], "To book mx-41") == "parallel"
    assert talk.key(FunctionCall("a", {"x": 1, "y": 2})) == talk.key(FunctionCall("a", {"y": 2, "x": 1}))


# --- dialogs ---

BOTH = 'Call: {"name": "book_crossing", "arguments": {"crossing": "MX-41", "seats": 2}}'
OTHER = CALL.replace("Arholm", "Brevik")
BAD = 'Call: {"name": "find_crossings", "arguments": {"harbour": "Arholm"}}'
WANTS = {
    "needs two or three": "parallel", "do not know that value": "nested", "leave out one": "missing",
    "has just asked": "answer", "none of these is needed": "none", "with every value": "simple",
}  # fmt: skip


def agents(
    spoils: Callable[[str, int, bool], str | None] = lambda last, number, mends: None,
    user: Callable[[int], str | None] = lambda number: None,
) -> Scripted:
    """A model that plays all roles well; `spoils` gives what the assistant says instead, by what stands before it."""

    def says(last: str, number: int) -> str:
        if "You judge" in last or "It is right if" in last:
            return "Verdict: no" if "wrongly" in last else "Verdict: yes"
        if "Name " in last and "subdomains" in last:
            return "- seat booking\n- booking seats\n- freight lists\n- night trains\n- late boarding"
        if "Define " in last:
            kind = "freight" if "freight lists" in last else "seat"
            found = [{**one, "name": f"{kind}_{one['name']}"} for one in (FIND, BOOK)]
            return json.dumps(found if "again" not in last else found[:1])
        if "You have never" in last or "which you have never heard of" in last:
            kind = next(kind for text, kind in WANTS.items() if text in last)
            turn = last.count("\nUser: ") + last.count("=\nUser: ")
            return user(number) or f"The wish {kind} {turn} for 2 of Arholm and Brevik."
        if "the JSON schema of what it returns" in last:
            return '{"crossings": ["MX-41"]}' if "find_crossings" in last.split("=====")[1] else '{"price": 30.5}'
        return assistant(last, number)

    def assistant(last: str, number: int) -> str:
        talked = last.split("what they returned:\n")[1].split("\n====")[0]
        name = "freight" if "freight_find" in last else "seat"
        said = spoils(last, number, "It has a fault" in last)
        if said is None:
            kinds = re.findall(r"User: The wish (\w+)", talked)
            done = re.split(r"User: .*\n?", talked)[-1].count("Assistant calls")
            if kinds[-1] in ("missing", "none"):
                said = "Reply: From which port?" if kinds[-1] == "missing" else "Reply: You are welcome."
            else:
                plan = {"parallel": [CALL, OTHER], "nested": [CALL, BOTH]}.get(kinds[-1], [CALL])
                said = plan[done] if done < len(plan) else "Reply: Your crossing is MX-41."
        return said.replace("find_crossings", f"{name}_find_crossings").replace(
            "book_crossing", f"{name}_book_crossing"
        )

    return Scripted(says)


def given(*names: str) -> list[Any]:
    return scripted.items(
        *({"id": name, "text": name, "beside": {"others": ["ferries", "night trains"]}} for name in names)
    )


def run(folder: Path, model: Scripted, *names: str, **changed: Any) -> dict[str, Any]:
    capability = FunctionDialogs(config.FunctionDialogsSynthesis(**{"subdomains": 2, **changed}))
    return scripted.run(folder, capability, given(*names), model)


def test_dialogs_of_all_kinds_of_turns(tmp_path: Path) -> None:
    results = run(tmp_path, agents(), *(f"ferries {n}" for n in range(6)), least_turns=4, most_turns=6)
    seen: set[str] = set()
    for name, result in results.items():
        assert result["dropped"] is None and not result["records"].get("preferences"), name
        assert result["counts"]["subdomains near to others"] == 2  # one repeats the other list, one the first
        dialogs = result["records"]["dialogs"]
        assert [one["subdomain"] for one in dialogs] == ["seat booking", "freight lists"]
        for record in dialogs:
            roles = [one["role"] for one in record["messages"]]
            asked = [one["content"].split()[2] for one in record["messages"] if one["role"] == "user"]
            assert [kind for kind in asked if kind != "answer"] == record["turns"] and 4 <= len(record["turns"]) <= 6
            assert roles.count("ipython") == sum("tool_calls" in one for one in record["messages"])
            for place, one in enumerate(record["messages"]):
                if "tool_calls" in one:
                    function = one["tool_calls"][0]["function"]
                    after = record["messages"][place + 1]
                    returns = record["returns"][function["name"]]
                    assert after["role"] == "ipython" and definitions.fits(json.loads(after["content"]), returns)
            learned = training.learned(record)
            assert len(learned) == roles.count("assistant")
            assert not any("MX-41" in text and 'crossings": [' in text for text in learned)
            seen |= {*record["turns"]}
    assert seen == {*KINDS}
    names = [tool["function"]["name"] for one in results["ferries 0"]["records"]["dialogs"] for tool in one["tools"]]
    assert len({*names}) == len(names) == 4


def test_the_same_call_returns_the_same(tmp_path: Path) -> None:
    model = agents()
    results = run(tmp_path, model, "ferries", subdomains=1, least_turns=6, most_turns=6)
    counts = results["ferries"]["counts"]
    (record,) = results["ferries"]["records"]["dialogs"]
    made = [json.dumps(one["tool_calls"]) for one in record["messages"] if "tool_calls" in one]
    assert counts["calls"] == len({*made}) and counts["calls answered from memory"] == len(made) - len({*made}) > 0
    assert (
        sum("the JSON schema of what it returns" in str(one[-1]["content"]) for one in model.asked) == counts["calls"]
    )


@pytest.mark.parametrize(
    ("wrong", "fault", "pairs"),
    [
        (BAD, "a call that breaks its definition", True),
        (CALL.replace("}}", ', "day": "Sunday"}}'), "a call that breaks its definition", True),
        (CALL.replace("find_crossings", "unknown"), "a call that breaks its definition", True),
        ("Reply: At noon.", "a reply before the calls that it needs", False),
    ],
)
def test_a_message_with_a_fault_is_mended(tmp_path: Path, wrong: str, fault: str, pairs: bool) -> None:
    """Of each user's wish the first message is wrong, and mended when its fault is told."""

    def first(last: str, number: int, mends: bool) -> str | None:
        talked = last.split("what they returned:\n")[1].split("\n====")[0]
        begins = re.search(r"User: The wish (?:simple|parallel|nested) [^\n]*$", talked)
        return wrong if begins and not mends else None

    results = run(tmp_path, agents(first), *(f"ferries {n}" for n in range(3)))
    for result in results.values():
        assert result["dropped"] is None
        turns = [kind for one in result["records"]["dialogs"] for kind in one["turns"]]
        expected = sum(kind in ("simple", "parallel", "nested") for kind in turns)
        assert result["counts"].get(f"messages: {fault}", 0) == expected
        found = result["records"].get("preferences", [])
        assert len(found) == (expected if pairs else 0)
        for pair in found:
            assert pair["messages"][-1]["role"] == "user" and pair["strength"] == "significantly_better"
            known = [apis.FunctionDefinition(one["function"]["name"], one) for one in pair["tools"]]
            better, worse = (pair[side]["tool_calls"][0]["function"] for side in ("chosen", "rejected"))
            assert not definitions.problems(better["name"], better["arguments"], known)
            assert definitions.problems(worse["name"], worse["arguments"], known)
            assert not isinstance(training.compared(pair), str)
        for record in result["records"]["dialogs"]:
            assert "harbour" not in json.dumps(record["messages"]) and training.learned(record)
    assert (sum(len(result["records"].get("preferences", [])) for result in results.values()) > 3) == pairs


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (BAD, "nothing but a call that breaks its definition"),
        (CALL + '\nReturned: {"crossings": ["MX-41"]}', "unparsed function_dialogs/assistant"),
        ("Reply: I looked.\nResult: MX-41", "unparsed function_dialogs/assistant"),
        ("Reply: wrongly", None),
    ],
)
def test_what_never_becomes_right_is_dropped(tmp_path: Path, said: str, why: str | None) -> None:
    results = run(tmp_path, agents(lambda last, number, mends: said), "ferries", repairs=1)
    dropped = results["ferries"]["dropped"]
    assert why is None or dropped == why
    assert dropped is not None and results["ferries"]["counts"][f"dialogs dropped: {dropped}"] > 0
    assert not results["ferries"]["records"]


def test_figures_that_nothing_says_and_calls_beyond_need_are_mended(tmp_path: Path) -> None:
    def spoils(last: str, number: int, mends: bool) -> str | None:
        if mends:
            return None
        talked = last.split("what they returned:\n")[1].split("\n====")[0]
        if re.search(r"User: The wish (none|missing) [^\n]*$", talked):
            return CALL
        return "Reply: MX-41 costs 99." if talked.rstrip().endswith("}") else None

    results = run(tmp_path, agents(spoils), *(f"ferries {n}" for n in range(4)), least_turns=4)
    counts = {name: sum(result["counts"].get(name, 0) for result in results.values()) for name in (
        "messages: a reply with a figure that nothing says", "messages: a call that is not needed")}  # fmt: skip
    assert all(counts.values()) and not any(result["dropped"] for result in results.values())
    assert "99" not in json.dumps([result["records"] for result in results.values()])


@pytest.mark.parametrize(
    ("kind", "wrong", "fault"),
    [
        ("missing", "Reply: Say from which port.", "no question for what is missing"),
        ("parallel", CALL, "a call that was made before"),
    ],
)
def test_other_faults_are_mended(tmp_path: Path, kind: str, wrong: str, fault: str) -> None:
    """Said wherever the turn is of that kind, at its beginning or behind its first result."""

    def spoils(last: str, number: int, mends: bool) -> str | None:
        talked = last.split("what they returned:\n")[1].split("\n====")[0]
        turn = re.split(r"User: ", talked)[-1]
        begins = turn.startswith(f"The wish {kind}") and turn.count("\n") == (2 if kind == "parallel" else 0)
        return wrong if begins and not mends else None

    results = run(tmp_path, agents(spoils), *(f"ferries {n}" for n in range(3)), least_turns=5)
    turns = [turn for result in results.values() for one in result["records"]["dialogs"] for turn in one["turns"]]
    counts = [result["counts"].get(f"messages: {fault}", 0) for result in results.values()]
    assert sum(counts) == turns.count(kind) > 0
    assert not any(result["records"].get("preferences") for result in results.values())


def test_a_user_knows_no_functions(tmp_path: Path) -> None:
    said = agents(user=lambda number: None if number else "Do seat_find_crossings or freight_find_crossings for me.")
    results = run(tmp_path, said, "ferries")
    assert "find_crossings for me" not in json.dumps(results["ferries"]["records"])
    assert results["ferries"]["counts"]["unparsed function_dialogs/user"] > 2


def test_domains_that_give_nothing_say_why(tmp_path: Path) -> None:
    known = ["seat booking", "freight lists", "night trains", "late boarding"]
    items = scripted.items(
        {"id": "a", "text": " "}, {"id": "b", "text": "x" * 101}, {"id": "c", "text": "x", "beside": {"near": "y"}},
        {"id": "d", "text": "x", "beside": {"others": known}},
        {"id": "e", "text": "wrongly"},
    )  # fmt: skip
    capability = FunctionDialogs(config.FunctionDialogsSynthesis(subdomains=1, dialogs=2))
    wrong = agents(lambda last, number, mends: "Reply: You asked wrongly?")
    results = scripted.run(tmp_path / "out", capability, items, wrong)
    assert {name: result["dropped"] for name, result in results.items()} == {
        "a": "empty", "b": "domain of more than 100 characters", "c": "a domain near to one before it",
        "d": "no subdomain that is not near to others", "e": results["e"]["dropped"],
    }  # fmt: skip
    assert results["e"]["dropped"] and results["e"]["counts"]["unparsed function_dialogs/designer"] == 2  # names again


def test_the_same_records_after_a_kill_and_of_two_shards(tmp_path: Path) -> None:
    names = [f"ferries {n}" for n in range(3)]
    model = agents()
    whole = run(tmp_path / "whole", model, *names)
    asked = len(model.asked)
    steps = (tmp_path / "whole" / "shards" / "00000" / journal.STEPS).read_text().splitlines()
    (tmp_path / "killed" / "shards" / "00000").mkdir(parents=True)
    (tmp_path / "killed" / "shards" / "00000" / journal.STEPS).write_text("\n".join(steps[: len(steps) // 2]) + "\n")
    again = agents()
    assert run(tmp_path / "killed", again, *names) == whole and len(again.asked) == asked - len(steps) // 2
    capability = FunctionDialogs(config.FunctionDialogsSynthesis(subdomains=2))
    sharded: dict[str, Any] = {}
    for number in range(2):
        sharded |= scripted.run(tmp_path / "two", capability, given(*names), agents(), number=number, count=2)
    assert sharded == whole


def test_the_task_is_built_of_its_keys(tmp_path: Path) -> None:
    words = ["task=function_dialogs", "name=x", f"folder={tmp_path / 'out'}", "server.urls=[http://127.0.0.1:9/v1]"]
    words.append(f"input={ROOT / 'conf' / 'function_domains.jsonl'}")

    def read(*more: str) -> config.Synthesize:
        loaded = entry.read(config.Synthesize, "synthesize", [*words, *more])[0]
        inputs.check(loaded)
        return loaded

    loaded = read("function_dialogs.dialogs=3", "limit=5")
    capability: Any = tasks.build(loaded)
    assert capability.settings.dialogs == 3 and len(list(tasks.read(loaded))) == 5
    assert tasks.opened(loaded, capability).provenance.keys() == {"sampling"}
    with pytest.raises(config.ConfigError, match="function_dialogs.most_turns=1: it is below the least; give at least"):
        read("function_dialogs.most_turns=1")
