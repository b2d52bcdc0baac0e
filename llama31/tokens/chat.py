"""Llama 3.1's dialog format: messages -> token ids, and which of them an assistant wrote (report, section 4.1.1).

    <|begin_of_text|>
    <|start_header_id|>system<|end_header_id|>\\n\\n ... <|eot_id|>
    <|start_header_id|>user<|end_header_id|>\\n\\n ... <|eot_id|>
    <|start_header_id|>assistant<|end_header_id|>\\n\\n<|python_tag|>print(1)<|eom_id|>     awaits what the tool says
    <|start_header_id|>ipython<|end_header_id|>\\n\\n1<|eot_id|>
    <|start_header_id|>assistant<|end_header_id|>\\n\\n ... <|eot_id|>

The lesson of this file: format is ids, text is text. Special ids are put between texts that were encoded apart, so
nothing that a user writes can become one. `template` says the same in Jinja for transformers and vLLM.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ROLES = {role: role for role in ("system", "user", "assistant", "ipython")}
ROLES |= {"tool": "ipython", "developer": "system", "function": "ipython"}  # as OpenAI calls them
SEARCHES = ("brave_search", "wolfram_alpha")
BUILTIN = (*SEARCHES, "code_interpreter")
NEEDED = {"code_interpreter": "code"} | dict.fromkeys(SEARCHES, "query")  # the argument that a built-in tool takes
LOST = ("function_call", "function_calls", "tool_call", "calls", "call")  # keys of other formats, each a call
APART = ("reasoning_content", "reasoning", "thinking")  # keys of what an assistant says outside of its content
PARTS = ("text", "image", "image_url", "input_image", "audio", "input_audio", "audio_url", "video", "video_url", "file")
UNLEARNED = ("loss", "train", "training")  # of ms-swift and axolotl: false is OpenAI's weight of 0
SEVERAL = "with several calls in one message"
CALLS_OTHERWISE = "with a call in another form than tool_calls"
REASONS = "with reasoning apart from the content"
PICTURES = "with content that is no text"
NO_ARGUMENTS = "with a call whose arguments are none"
SHOWN_CHARS = 60
PROMPT, HEADER, BODY, END = range(4)  # parts: not the assistant's; its header, what it says, its termination token
CUTOFF = "December 2023"
END_OF_TEXT, EOM, EOT, TAG = "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"
TOKENS = ("<|start_header_id|>", "<|end_header_id|>", EOM, EOT, TAG)  # of which dialogs consist
_SEARCH = re.compile(rf'({"|".join(SEARCHES)})\.call\(query="([^"]*)"\)')  # as llama-models finds one
CALLING = (
    "These functions can be called. A call is one JSON object and nothing else: "
    '{"type": "function", "name": NAME, "parameters": {ARGUMENT: VALUE}}.'
)


class OutsideFormat(ValueError):
    """A record that is well-formed, and that this format cannot say: it is left out, and counted under `reason`."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason  # said behind the number of such records


class ChatTokenizer(Protocol):
    """What is needed of a tokenizer."""

    bos_id: int
    eot_id: int
    special: dict[str, int]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Call:
    """A tool's name and arguments: {"query": ...} for searches, {"code": ...} for code_interpreter, or any."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """As the model has to write it."""
        if self.name in SEARCHES:
            return f'{self.name}.call(query="{self.arguments["query"]}")'
        if self.name == "code_interpreter":
            return str(self.arguments["code"])
        return json.dumps({"type": "function", "name": self.name, "parameters": dict(self.arguments)})


@dataclass(frozen=True)
class Message:
    """One message. `awaits`: it ends with <|eom_id|>, because a tool's result has to follow before the turn ends.

    A call may stand behind content. `learned`: false where an assistant's message is context alone.
    """

    role: str  # a value of ROLES
    content: str = ""
    call: Call | None = None
    awaits: bool = False
    learned: bool = True

    @property
    def code(self) -> bool:
        """Whether it calls code_interpreter, before whose code <|python_tag|> stands."""
        return self.call is not None and self.call.name == "code_interpreter"

    def text(self) -> str:
        """What stands between header and termination, <|python_tag|> apart."""
        return self.content + (self.call.text() if self.call else "")


@dataclass(frozen=True)
class Encoded:
    """Token ids of a dialog [n], the part of each (PROMPT to END), and its message (-1: <|begin_of_text|>).

    What is not to be learned of an assistant is PROMPT as well. `last`: the assistant's last message; -1 without one.
    """

    tokens: NDArray[np.int32]
    parts: NDArray[np.int8]
    message: NDArray[np.int32]
    last: int = -1

    def targets(self, which: str = "all") -> NDArray[np.bool_]:
        """Tokens to be learned [n]: what assistants say and the termination; of `all` their messages or the `last`.

        Headers are no targets: whoever samples gives them.
        """
        wanted = (self.parts == BODY) | (self.parts == END)
        return wanted & (self.message == self.last) if which == "last" else wanted


def read(record: Mapping[str, Any]) -> list[Message]:
    """The messages of a record {"messages": [...], "tools": [...], "builtin_tools": [...], "date": "..."}.

    Messages are those of OpenAI and transformers: role, content, tool_calls. What the other keys say becomes the
    beginning of the system message. Texts are stripped, as Llama 3's own formatter and template do. An assistant who
    says nothing stands there, as in Meta's template, and is not learned. Raises ValueError with what is wrong, and
    LeftOut for a dialog that the format cannot say, such as two calls in one message.
    """
    given = record.get("messages")
    if not isinstance(given, list) or not given:
        keys = "" if "messages" in record else f"; this record has {', '.join(map(str, record)) or 'nothing'}"
        raise ValueError(
            f'messages: a dialog is {{"messages": [{{"role": ..., "content": ...}}, ...]}}, with at least one{keys}'
        )
    messages = [message(one, place) for place, one in enumerate(given)]
    messages = [replace(one, learned=False) if _silent(one) else one for one in messages]
    options = {key: record[key] for key in ("tools", "builtin_tools", "date") if record.get(key) is not None}
    tools, builtin, date = options.get("tools", []), options.get("builtin_tools"), options.get("date", "")
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"tools: give a list of JSON objects; it is {_shown(tools)}")
    if not isinstance(builtin, list | None) or not all(isinstance(name, str) for name in builtin or ()):
        raise ValueError(f"builtin_tools: give a list of {', '.join(BUILTIN)}; it is {_shown(builtin)}")
    if not isinstance(date, str):
        raise ValueError(f"date: give a text; it is {_shown(date)}")
    return introduced(messages, tools, builtin, date)


def message(given: Any, place: int = 0) -> Message:
    """One message of a record, which stands at `place`; keys that are null count as not there.

    Raises ValueError, and LeftOut.
    """
    where = f"messages[{place}]"
    role = given.get("role") if isinstance(given, Mapping) else None
    if not isinstance(role, str) or role not in ROLES:
        said = f"role is {_shown(role)}" if isinstance(given, Mapping) else f"it is {_shown(given)}"
        raise ValueError(f"{where}: give an object whose role is one of {', '.join(ROLES)}; {said}")
    if lost := [key for key in LOST if given.get(key)]:
        raise OutsideFormat(CALLS_OTHERWISE, f"{where}.{lost[0]}: this call would be lost; give it as tool_calls")
    if lost := [key for key in APART if given.get(key)]:
        raise OutsideFormat(
            REASONS, f"{where}.{lost[0]}: Llama 3.1 has no place for it; give what belongs to the content there"
        )
    role, call = ROLES[role], _call(given.get("tool_calls"), where)
    text = _text(_content(given, role), where, role).strip()
    if call and role != "assistant":
        raise ValueError(f"{where}.tool_calls: only an assistant calls")
    if role == "assistant" and call is None and "content" not in given and not text:
        raise ValueError(f"{where}: neither content nor tool_calls; give what the assistant says, or leave it out")
    awaits = _awaits(call) if (awaited := given.get("awaits")) is None else awaited
    if not isinstance(awaits, bool) or (awaits and role != "assistant"):
        raise ValueError(
            f"{where}.awaits: give true or false, and true to an assistant's alone; it is {_shown(awaits)}"
        )
    return Message(role, text, call, awaits, _learned(given, role, where))


def _content(given: Mapping[str, Any], role: str) -> Any:
    """The content, or what OpenAI's models put beside it when they refuse."""
    refused = given.get("refusal") if role == "assistant" and given.get("content") is None else None
    return refused if isinstance(refused, str) else given.get("content")


def _learned(given: Mapping[str, Any], role: str, where: str) -> bool:
    weight = given.get("weight")
    if weight is not None and (weight not in (0, 1) or (weight and role != "assistant")):
        raise ValueError(f"{where}.weight: give 0 or 1, and 1 to an assistant's alone; it is {_shown(weight)}")
    return weight != 0 and not any(given.get(key) is False for key in UNLEARNED)


def _silent(one: Message) -> bool:
    return one.role == "assistant" and not one.call and not one.content


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."


def _text(given: Any, where: str, role: str) -> str:
    """The text of a content, whose parts (OpenAI's) follow on each other as in llama-models.

    A tool's result may be any JSON, which is written as such.
    """
    if role == "ipython" and not isinstance(given, str | None) and not _parted(given):
        return json.dumps(given, ensure_ascii=False)
    for part in given if isinstance(given, list) else ():
        kind = part.get("type") if isinstance(part, Mapping) else part
        if kind in PARTS[1:]:
            raise OutsideFormat(PICTURES, f"{where}.content: a part of type {_shown(kind)}; Llama 3.1 reads text alone")
        if not isinstance(part, Mapping) or kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f'{where}.content: a part of type {_shown(kind)}; give {{"type": "text", "text": TEXT}}')
    if not isinstance(given, str | list | None):
        raise ValueError(f"{where}.content: give a text, or a list of texts' parts; it is {_shown(given)}")
    return "".join(part["text"] for part in given) if isinstance(given, list) else given or ""


def _parted(given: Any) -> bool:
    """Whether a tool's result is a list of OpenAI's parts, and none of its own."""
    return isinstance(given, list) and any(isinstance(one, Mapping) and one.get("type") in PARTS for one in given)


def _call(given: Any, where: str) -> Call | None:
    if given is None or given == []:
        return None
    if not isinstance(given, list):
        raise ValueError(f"{where}.tool_calls: give a list with one call; it is {_shown(given)}")
    if len(given) != 1:
        raise OutsideFormat(SEVERAL, f"{where}.tool_calls: Llama 3.1 makes one call per message; split the message")
    function = given[0].get("function", given[0]) if isinstance(given[0], Mapping) else None
    function = function if isinstance(function, Mapping) else {}
    name, arguments = function.get("name"), function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise OutsideFormat(NO_ARGUMENTS, f"{where}.tool_calls: the arguments are no JSON ({error})") from error
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        said = f"it is {_shown(given[0])}"
        raise ValueError(f'{where}.tool_calls: give [{{"function": {{"name": ..., "arguments": {{...}}}}}}]; {said}')
    if (needed := NEEDED.get(name)) and not isinstance(arguments.get(needed), str):
        raise OutsideFormat(NO_ARGUMENTS, f"{where}.tool_calls: {name} takes the text {needed!r}")
    return Call(name, arguments)


def introduced(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    builtin: Sequence[str] | None = None,
    date: str = "",
) -> list[Message]:
    """`messages`, whose system message begins with the environment, the dates and the functions that are given.

    `builtin`: tools of BUILTIN that are switched on; code_interpreter always is with one of them, or an empty list.
    """
    unknown = [name for name in builtin or () if name not in BUILTIN]
    if unknown:
        raise ValueError(f"builtin_tools: {', '.join(unknown)} unknown; Llama 3.1 has {', '.join(BUILTIN)}")
    beginning = ""
    if builtin is not None:
        searches = ", ".join(name for name in builtin if name != "code_interpreter")
        beginning = "Environment: ipython\n" + (f"Tools: {searches}\n" if searches else "") + "\n"
    if date:
        beginning += f"Cutting Knowledge Date: {CUTOFF}\nToday Date: {date}\n\n"
    if tools:
        listed = "".join(f"{json.dumps(tool, ensure_ascii=False)}\n" for tool in tools)
        beginning += f"{CALLING}\n{listed}\n"
    if not beginning:
        return list(messages)
    first = messages[0] if messages and messages[0].role == "system" else Message("system")
    rest = messages[1:] if messages and messages[0].role == "system" else messages
    return [replace(first, content=(beginning + first.content).strip()), *rest]


def record(one: Message) -> dict[str, Any]:
    """A message as `message` reads it: message(record(one)) == one."""
    result: dict[str, Any] = {"role": one.role}
    if one.call:
        result["tool_calls"] = [
            {"type": "function", "function": {"name": one.call.name, "arguments": dict(one.call.arguments)}}
        ]
    if one.content or not one.call:
        result["content"] = one.content
    if not one.learned:
        result["weight"] = 0
    return result | ({"awaits": one.awaits} if one.awaits != _awaits(one.call) else {})


def openai(messages: Sequence[Message]) -> tuple[dict[str, Any], ...]:
    """Messages as OpenAI's API takes them: arguments are JSON text, and a result names the call that it answers.

    `awaits` has no place there: a server ends the messages of the history by its own template.
    """
    result, last = [], None
    for place, one in enumerate(messages):
        given = record(one)
        for key in ("awaits", "weight"):
            given.pop(key, None)
        if one.call:
            last = f"call_{place}"
            written = {"name": one.call.name, "arguments": json.dumps(dict(one.call.arguments), ensure_ascii=False)}
            given |= {
                "content": one.content or None,
                "tool_calls": [{"id": last, "type": "function", "function": written}],
            }
        if one.role == "ipython":
            given |= {"role": "tool"} | ({"tool_call_id": last} if last else {})
        result.append(given)
    return tuple(result)


def message_of(said: str | Mapping[str, Any], ending: str | None = None) -> dict[str, Any]:
    """What a model said as a message of a record: {"role": "assistant", "content": TEXT}, or with `tool_calls`.

    `said` is the text without its ending, or an OpenAI response's message (arguments as JSON text). `ending` is the
    name of the token that ended it: <|eom_id|> awaits a tool, all others end the turn; None where it was not told:
    then built-in tools are awaited, as everywhere.

    Encoded again, the message is what was said (white space around plain content apart, which `read` strips): what
    only looks like a call and would be written otherwise stays content. After <|python_tag|> all is code, a search too,
    for Llama's own formatter writes the tag before nothing else. Raises ValueError for what no message can say, such as
    several calls.
    """
    if isinstance(said, Mapping) and (said.get("tool_calls") or said.get("function_call")):
        return record(_ended(message({**said, "role": "assistant"}), ending))
    text = said.get("content") if isinstance(said, Mapping) else said
    if not isinstance(text, str):
        raise ValueError("message: neither content nor tool_calls; a model has to say one of them")
    return record(_spoken(text.removeprefix(TAG), text.startswith(TAG), ending))


def _spoken(text: str, tagged: bool, ending: str | None) -> Message:
    call = Call("code_interpreter", {"code": text}) if tagged else _written(text.strip())
    return _ended(Message("assistant", "" if call else text.strip(), call, _awaits(call)), ending)


def _ended(one: Message, ending: str | None) -> Message:
    return one if ending is None else replace(one, awaits=ending == EOM)


def _awaits(call: Call | None) -> bool:
    return call is not None and call.name in BUILTIN


def _written(text: str) -> Call | None:
    """The call that is written as `text`, letter by letter, and that JSON in UTF-8 can hold."""
    if match := _SEARCH.fullmatch(text):
        return Call(match[1], {"query": match[2]})
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()  # lone surrogates, NaN
    except (ValueError, RecursionError):
        return None
    name, given = (content.get("name"), content.get("parameters")) if isinstance(content, dict) else (None, None)
    if not isinstance(name, str) or name in BUILTIN or not isinstance(given, dict):
        return None
    call = Call(name, given)
    return call if call.text() == text else None


class Format:
    """Dialogs -> ids with one tokenizer. Raises ValueError (key `tokenizer.path`) where it lacks Llama 3's tokens."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        missing = [name for name in TOKENS if name not in tokenizer.special]
        if missing:
            raise ValueError(f"tokenizer.path: no {', '.join(missing)}; dialogs need the special tokens of Llama 3")
        self._tokenizer = tokenizer
        self._begin, self._end, self._eom, self._eot, self._python = (tokenizer.special[name] for name in TOKENS)
        self._headers = {role: self._header(role) for role in dict.fromkeys(ROLES.values())}

    def _header(self, role: str) -> list[int]:
        return [self._begin, *self._tokenizer.encode(role), self._end, *self._tokenizer.encode("\n\n")]

    def encode(self, messages: Sequence[Message], bos: bool = True) -> Encoded:
        """Ids of a dialog, or of its continuation (`bos` false), with the part and message of each."""
        tokens, parts, places = ([self._tokenizer.bos_id], [PROMPT], [-1]) if bos else ([], [], [])
        for place, one in enumerate(messages):
            body = self._tokenizer.encode(one.text())
            if one.code:
                code = self._tokenizer.encode(one.call.text() if one.call else "")
                body = [*self._tokenizer.encode(one.content), self._python, *code]
            header, end = self._headers[one.role], self._eom if one.awaits else self._eot
            kinds = [HEADER] * len(header) + [BODY] * len(body) + [END]
            tokens += [*header, *body, end]
            parts += kinds if one.role == "assistant" and one.learned else [PROMPT] * len(kinds)
            places += [place] * len(kinds)
        last = max((place for place, one in enumerate(messages) if one.role == "assistant"), default=-1)
        return Encoded(np.array(tokens, np.int32), np.array(parts, np.int8), np.array(places, np.int32), last)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a dialog that the assistant has to go on with."""
        return [*self.encode(messages).tokens.tolist(), *self._headers["assistant"]]

    def parse(self, ids: Sequence[int]) -> dict[str, Any]:
        """What a model said after `prompt`, its ending included where it came to one, as a message of a record.

        The reverse of `encode`: see `message_of`, from whose texts a tag that was only spelled cannot be told; here it
        stays text. Raises ValueError where a special token stands within, which no message can say.
        """
        special = {number: name for name, number in self._tokenizer.special.items()}
        body, ending = list(ids), None
        if body and special.get(body[-1]) in (EOM, EOT, END_OF_TEXT):
            ending = special[body.pop()]
        tagged = body[:1] == [self._python]
        body = body[1:] if tagged else body
        if within := [special[one] for one in body if one in special]:
            raise ValueError(f"{within[0]} stands within what was said; no message can say that")
        return record(_spoken(self._tokenizer.decode(body), tagged, ending))
