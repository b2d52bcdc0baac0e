"""What a model said, as a message: encoded again it has the same tokens, whatever it looks like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31 import config
from llama31.sampling import prompts
from llama31.tokens import chat, tokenizers
from tests.sampling.scripted import Bytes

WORDS = Bytes()
FORM = chat.Format(WORDS)
SEARCH = chat.Call("brave_search", {"query": "weather in Zürich"})
CODE = chat.Call("code_interpreter", {"code": "  print(1 + 1)\n"})
CUSTOM = chat.Call("träger", {"where": "Zürich", "n": 3, "deep": {"a": 1.5, "b": None}, "list": [True, 2]})
SAID = {
    "search": chat.Message("assistant", call=SEARCH, awaits=True),
    "search, ended": chat.Message("assistant", call=SEARCH),
    "sum": chat.Message("assistant", call=chat.Call("wolfram_alpha", {"query": ""}), awaits=True),
    "code": chat.Message("assistant", call=CODE, awaits=True),
    "code, ended": chat.Message("assistant", call=CODE),
    "custom": chat.Message("assistant", call=CUSTOM),
    "custom, awaited": chat.Message("assistant", call=CUSTOM, awaits=True),
    "plain": chat.Message("assistant", "Grüße, 日本語"),
    "plain, awaited": chat.Message("assistant", "Wait.", awaits=True),
    "odd arguments": chat.Message("assistant", call=chat.Call("f", {"": {"\u2028": "\ud7ff"}})),
}
LOOKS = [
    '{"name": "f", "parameters": {}}',
    '{"type": "function", "name": "f", "parameters": {"a":1}}',
    '{"type": "function", "name": "f", "parameters": {"é": 1}}',
    '{"type": "function", "name": "f", "parameters": []}',
    '{"type": "function", "name": 3, "parameters": {}}',
    '{"type": "function", "name": "f", "parameters": {"a": 1, "a": 2}}',
    '{"type": "function", "name": "f", "parameters": {"a": NaN}}',
    '{"type": "function", "name": "f", "parameters": {"a": "\\ud800"}}',
    '{"type": "function", "name": "f", "parameters": {"a": 1e400}}',
    '{"type": "function", "name": "brave_search", "parameters": {"query": "x"}}',
    '{"type": "function", "name": "f", "parameters": {"a": ' + "[" * 2000 + "]" * 2000 + "}}",
    "9" * 5000,
    'brave_search.call(query="a"b")',
    'brave_search.call(query="a") and more',
    'photogen.call(query="a")',
    "<|python_tag|",
    "[f(a=1)]",
]


def spoken(one: chat.Message) -> list[int]:
    """What a model would have to say for it: body and ending."""
    encoded = FORM.encode([one], bos=False)
    return encoded.tokens[encoded.parts != chat.HEADER].tolist()


def again(record: dict[str, Any]) -> list[int]:
    return spoken(chat.message(json.loads(json.dumps(record, ensure_ascii=False).encode())))


@pytest.mark.parametrize("name", SAID)
def test_every_kind_of_message_is_read_back(name: str) -> None:
    one = SAID[name]
    record = FORM.parse(spoken(one))
    assert chat.message(record) == one and chat.message(chat.record(one)) == one
    assert again(record) == spoken(one)
    ending = chat.EOM if one.awaits else chat.EOT
    text = WORDS.decode(spoken(one)).removesuffix(ending)
    assert chat.message_of(text, ending) == record


@pytest.mark.parametrize("text", LOOKS)
def test_what_only_looks_like_a_call_stays_content(text: str) -> None:
    assert chat.message_of(text, chat.EOT) == {"role": "assistant", "content": text}
    assert chat.message_of(text, chat.EOM) == {"role": "assistant", "content": text, "awaits": True}


names = st.sampled_from(["brave_search", "wolfram_alpha", "code_interpreter", "f", "", "é"])
texts = st.one_of(
    st.text(),
    st.sampled_from([*filter(lambda text: len(text) < 99, LOOKS), chat.TAG, chat.TAG + "x", chat.EOT, '"', " x "]),
)
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | texts, st.lists, max_leaves=5)


@st.composite
def messages(draw: Any) -> chat.Message:
    if draw(st.booleans()):
        return chat.Message("assistant", draw(texts).strip(), awaits=draw(st.booleans()))
    record = {"query": draw(texts), "code": draw(texts)} | draw(st.dictionaries(texts, values, max_size=3))
    return chat.Message("assistant", call=chat.Call(draw(names), record), awaits=draw(st.booleans()))


def writable(one: chat.Message) -> bool:
    """Texts that UTF-8 can hold, which is what tokens are."""
    try:
        return bool(one.text().encode()) or True
    except UnicodeEncodeError:
        return False


@settings(max_examples=80, derandomize=True, deadline=None)
@given(messages().filter(writable))
def test_encoded_parsed_and_encoded_again_is_the_same(one: chat.Message) -> None:
    assert again(FORM.parse(spoken(one))) == spoken(one)


@settings(max_examples=80, derandomize=True, deadline=None)
@given(texts.filter(lambda text: writable(chat.Message("assistant", text))), st.sampled_from([chat.EOM, chat.EOT]))
def test_any_text_is_said_again(text: str, ending: str) -> None:
    tagged = text.startswith(chat.TAG)
    body = (
        [WORDS.special[chat.TAG], *WORDS.encode(text.removeprefix(chat.TAG))] if tagged else WORDS.encode(text.strip())
    )
    assert again(chat.message_of(text, ending)) == [*body, WORDS.special[ending]]


def test_a_tag_that_is_spelled_is_text_and_one_that_is_said_is_code() -> None:
    spelled = WORDS.encode("<|python_tag|>print(1)")
    assert FORM.parse([*spelled, WORDS.eot_id]) == {"role": "assistant", "content": "<|python_tag|>print(1)"}
    record = FORM.parse([WORDS.special[chat.TAG], *WORDS.encode("print(1)"), WORDS.special[chat.EOM]])
    assert record == chat.message_of("<|python_tag|>print(1)", chat.EOM) == chat.message_of("<|python_tag|>print(1)")
    assert record["tool_calls"][0]["function"] == {"name": "code_interpreter", "arguments": {"code": "print(1)"}}
    with pytest.raises(ValueError, match=r"<\|python_tag\|> stands within"):
        FORM.parse([*WORDS.encode("So: "), WORDS.special[chat.TAG], *WORDS.encode("1"), WORDS.special[chat.EOM]])


def test_an_answer_without_its_ending() -> None:
    assert FORM.parse(WORDS.encode("cut o")) == {"role": "assistant", "content": "cut o"}
    assert FORM.parse([*WORDS.encode("x"), WORDS.eos_id]) == {"role": "assistant", "content": "x"}
    assert "awaits" not in chat.message_of(SEARCH.text())
    assert chat.message_of(SEARCH.text(), chat.EOT)["awaits"] is False


@pytest.mark.parametrize("call", [SEARCH, CODE, CUSTOM])
def test_openais_response_is_our_message(call: chat.Call) -> None:
    function = {"name": call.name, "arguments": json.dumps(dict(call.arguments))}
    said = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [{"id": "a", "type": "function", "index": 0, "function": function}],
    }
    assert chat.message(chat.message_of(said)).call == call
    assert again(chat.message_of(said)) == spoken(
        chat.Message("assistant", call=call, awaits=call.name in chat.BUILTIN)
    )
    assert chat.message(chat.message_of({**said, "content": "\n\n"}, chat.EOM)).awaits
    both = chat.message(chat.message_of({**said, "content": "Let me see."}))
    assert (both.content, both.call) == ("Let me see.", call) and chat.message(chat.record(both)) == both


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}] * 2}, "one call per message"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "no JSON"),
        ({"tool_calls": []}, "neither content nor tool_calls"),
    ],
)
def test_a_response_that_no_message_can_say(changes: dict[str, Any], said: str) -> None:
    given = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    with pytest.raises(ValueError, match=said):
        chat.message_of({**given, **changes})


def test_metas_own_decoder_reads_the_same() -> None:
    meta = pytest.importorskip("llama_models.llama3.chat_format")
    types = pytest.importorskip("llama_models.datatypes")
    path = Path(meta.__file__).parent / "tokenizer.model"
    form = chat.Format(tokenizers.load(config.Tokenizer(kind="tiktoken", path=str(path))))
    theirs = meta.ChatFormat(pytest.importorskip("llama_models.llama3.tokenizer").Tokenizer.get_instance())
    for one in SAID.values():
        encoded = form.encode([one], bos=False)
        ids = encoded.tokens[encoded.parts != chat.HEADER].tolist()
        record = chat.message(form.parse(ids))
        read = theirs.decode_assistant_message(ids, types.StopReason.out_of_tokens)
        assert record == one and record.awaits == (read.stop_reason == types.StopReason.end_of_message)
        assert record.content == read.content and bool(record.call) == bool(read.tool_calls)
        if record.call:
            name = read.tool_calls[0].tool_name
            assert record.call == chat.Call(getattr(name, "value", name), read.tool_calls[0].arguments)


TOOL = {"name": "f", "description": "does", "parameters": {"type": "object", "properties": {}}}


def test_a_chat_server_is_given_calls_results_and_tools(tmp_path: Path) -> None:
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"ort": "Zürich"}}}]},
        {"role": "ipython", "content": '{"rain": true}'},
    ]
    record = {"messages": history, "tools": [TOOL, {"type": "function", "function": TOOL}], "date": "1 May 2025"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    [prompt], _ = prompts.read(str(tmp_path / "a.jsonl"), FORM)
    system, user, called, result = prompt.openai()
    assert system == {
        "role": "system",
        "content": "Cutting Knowledge Date: December 2023\nToday Date: 1 May 2025\n\nBe brief.",
    }
    assert user == {"role": "user", "content": "Rain?"}
    assert called["content"] is None and called["tool_calls"][0]["type"] == "function"
    function = called["tool_calls"][0]["function"]
    assert function["name"] == "f" and json.loads(function["arguments"]) == {"ort": "Zürich"}
    assert result == {"role": "tool", "content": '{"rain": true}', "tool_call_id": called["tool_calls"][0]["id"]}
    assert prompt.tools == [{"type": "function", "function": TOOL}] * 2
    assert chat.read({"messages": list(prompt.openai())})[2:] == list(prompt.messages[2:])
