"""Records as public data sets and OpenAI have them, and what of them the format cannot say."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from llama31.judging import scored
from llama31.sampling import prompts
from llama31.tokens import chat
from tests.dialogs.conftest import Written, dialog, preference
from tests.dialogs.test_data import GOOD, dialogs, preferred


def test_ultrafeedback_as_it_is_published(form: chat.Format, write: Written) -> None:
    """Its column messages repeats the chosen dialog."""
    chosen, rejected = dialog("Name a colour.", "Blue is one.")["messages"], dialog("Name a colour.", "No.")["messages"]
    record = {
        "prompt": "Name a colour.",
        "chosen": chosen,
        "rejected": rejected,
        "messages": chosen,
        "score_chosen": 8.0,
    }
    plain = preference("Name a colour.", "Blue is one.", "No.")
    result = preferred(write("p.jsonl", record, plain), form, strength="better")
    assert [ids.tolist() for ids, _ in result.example(0)] == [ids.tolist() for ids, _ in result.example(1)]
    with pytest.raises(ValueError, match="messages: neither what chosen and rejected begin with nor the chosen dialog"):
        preferred(write("bad.jsonl", {**record, "messages": rejected}), form, strength="better")


CALL = {"name": "f", "arguments": {"a": 1}}
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
CALLED = [
    *({"from": "human", "value": "Hi"}, {"from": "function_call", "value": json.dumps(CALL)}),
    *({"from": "observation", "value": "1"}, {"from": "gpt", "value": "One."}),
]
OURS = [
    *({"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [CALL]}),
    *({"role": "tool", "content": "1"}, {"role": "assistant", "content": "One."}),
]
SYSTEM, HI = {"role": "system", "content": "Be brief."}, dialog("Hi", "Hello")["messages"]


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ({"conversations": TURNS}, HI),
        ({"conversations": TURNS, "system": "Be brief."}, [SYSTEM, *HI]),
        ({"conversation": HI}, HI),
        ({"conversations": CALLED, "tools": "[]"}, OURS),
        ({"prompt": "Hi", "completion": "Hello"}, HI),
        ({"prompt": HI[:1], "completion": HI[1:]}, HI),
    ],
)
def test_dialogs_as_data_sets_have_them(published: Any, ours: Any, form: chat.Format, write: Written) -> None:
    result = dialogs(write("d.jsonl", published, {"messages": ours}), form)
    assert result.header["examples"] == 2
    assert [column.tolist() for column in result.sequence(0)] == [column.tolist() for column in result.sequence(1)]


PUBLISHED = [
    {
        "input": {"messages": HI[:1], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "Hello"}],
        "non_preferred_output": [{"role": "assistant", "content": "No"}],
    },
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    {"question": "Hi", "system": "", "chosen": "Hello", "rejected": "No"},
    {"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": {"from": "gpt", "value": "No"}},
]


@pytest.mark.parametrize("published", PUBLISHED)
def test_preferences_as_data_sets_have_them(published: Any, form: chat.Format, write: Written) -> None:
    result = preferred(write("p.jsonl", published, preference("Hi", "Hello", "No")), form, strength="better")
    assert result.header["examples"] == 2
    assert [ids.tolist() for ids, _ in result.example(0)] == [ids.tolist() for ids, _ in result.example(1)]


def test_what_the_format_cannot_say_does_not_end_the_command(form: chat.Format, write: Written) -> None:
    two = {"role": "assistant", "tool_calls": [CALL, CALL]}
    broken = {"messages": [*HI[:1], two, {"role": "tool", "content": "1"}, HI[1]]}
    apart = {"messages": [*HI[:1], {**HI[1], "reasoning_content": "Hm."}]}
    result = dialogs(write("d.jsonl", broken, GOOD, broken, apart), form)
    assert result.header["examples"] == 1 and result.header["left_out"] == {chat.SEVERAL: 2, chat.REASONS: 1}
    record = preference("Hi", "Hello", "No")
    pairs = preferred(write("p.jsonl", {**record, "chosen": [two, HI[1]]}, record), form)
    assert pairs.header["examples"] == 1 and pairs.header["left_out"] == {chat.SEVERAL: 1}
    left, path = Counter[str](), write("q.jsonl", {"messages": broken["messages"][:3]}, GOOD)
    asked, _ = prompts.read(str(path), form, left_out=left)
    assert len(asked) == 1 and left == {chat.SEVERAL: 1}
    entries = scored.read(str(write("s.jsonl", broken, GOOD)))
    assert [list(entry.dialogs) for entry in entries] == [[], [scored.WHOLE]]
    scored.write(path, entries, [{}, {scored.WHOLE: 1.0}], [None, None])
    assert [json.loads(line).get("reward") for line in path.read_text().splitlines()] == [None, 1.0]


def test_a_message_of_weight_0_is_context(form: chat.Format, write: Written) -> None:
    turns = dialog("Two plus two?", "It is five.", "Check again.", "It is four.")["messages"]
    result = dialogs(write("d.jsonl", {"messages": [turns[0], {**turns[1], "weight": 0}, *turns[2:]]}), form)
    tokens, targets = result.sequence(0)
    assert bytes(tokens[targets == 1][:-1].astype(np.uint8)) == b"It is four."
    silent = {"messages": [turns[0], {"role": "assistant", "content": ""}]}
    result = dialogs(write("e.jsonl", silent, GOOD), form)
    assert result.header["left_out"] == {"without a target": 1} and result.header["examples"] == 1
