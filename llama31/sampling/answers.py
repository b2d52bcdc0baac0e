"""What a model has said: text for filters and people, and a message that has the same tokens for rewards and training.

A call of a tool begins with <|python_tag|> or ends with <|eom_id|>, which its text does not show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llama31.tokens import chat


@dataclass(frozen=True)
class Answer:
    """What was said, why it ended (stop, length or another word of the server's), and its tokens where known.

    `end`: name of the token that ended it, where known. `message`: the record of what was said, where it is more than
    the text as the content of a turn. `wrong`: why there can be none.
    """

    text: str
    finish: str
    tokens: int | None = None
    end: str | None = None
    message: Mapping[str, Any] | None = None
    wrong: str | None = None

    def record(self) -> dict[str, Any]:
        """As in candidates.jsonl."""
        if self.wrong is not None:
            return {"refused": f"no message can say what came back: {self.wrong}"}
        silent = [name for name in ("end", "message", "wrong") if getattr(self, name) is None]
        return {name: value for name, value in asdict(self).items() if name not in silent}


def of_server(
    content: str | Mapping[str, Any], finish: str, tokens: int | None = None, end: str | None = None
) -> Answer:
    """What a server gave: text, or a message of OpenAI's with `tool_calls`. `end` may stand at the end of the text."""
    if isinstance(content, str):
        content = valid(content)
        if finish == "stop":
            for name in (chat.EOM, chat.EOT, chat.END_OF_TEXT):
                if content.endswith(name):
                    content, end = content.removesuffix(name), end or name
        return _answer(chat.message_of(content, end), content, finish, tokens, end)
    try:
        message = json.loads(valid(json.dumps(chat.message_of(content, end), ensure_ascii=False)))
    except ValueError as error:
        return Answer("", finish, tokens, wrong=str(error))
    return _answer(message, None, "stop" if finish in ("tool_calls", "function_call") else finish, tokens, end)


def of_ids(ids: Sequence[int], form: chat.Format, tokenizer: chat.ChatTokenizer, ends: Mapping[str, int]) -> Answer:
    """What our own decoder gave, with the token of `ends` (by name) that ended it if there was one."""
    end = next((name for name, number in ends.items() if ids and ids[-1] == number), None)
    finish, text = "stop" if end else "length", tokenizer.decode(ids[:-1] if end else ids)
    try:
        return _answer(form.parse(ids), text, finish, len(ids), end)
    except ValueError:  # a special token within, by whose name the filters know garbage
        return Answer(text, finish, len(ids), end)


def _answer(message: Mapping[str, Any], text: str | None, finish: str, tokens: int | None, end: str | None) -> Answer:
    if text is not None and message == {"role": "assistant", "content": text.strip()}:
        return Answer(text, finish, tokens, end)
    return Answer(chat.message(message).text(), finish, tokens, end, message)


def message(line: Mapping[str, Any]) -> dict[str, Any]:
    """What a line of candidates.jsonl says, as a message of a record."""
    return line.get("message") or {"role": "assistant", "content": line["text"].strip()}


def valid(text: str) -> str:
    """Without lone surrogates, which JSON can say and no file can hold: U+FFFD, by which filters know garbage."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
