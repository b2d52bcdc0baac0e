"""A chat model for tests of code: an answer by the prompt that it recognises, each time the next of a list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama31.sampling.answers import Answer
from llama31.synth.pipeline.chat_models import Drawn

# What stands in a prompt of ours and in no other.
MARKS = {
    "problem": "You write programming problems",
    "solve": "Solve this problem in",
    "tests": "Write tests for a solution",
    "mend": "Find out why, and say so",
    "program": "Make of it a complete",
    "inputs": "different inputs for it",
    "translate": "It has to write exactly what the original writes",
    "mend_translation": "Find out where both go apart",
    "explain": "to a programmer who will not see it",
    "document": "Add documentation to this",
    "plant": "Put one bug into it",
    "debug": "What was seen of it",
    "rebuild": "that does exactly what is described here",
    "faithful": "Two pieces of code follow",
    "score": "You review an answer",
    "difficulty": "How hard is this request",
    "revise": "that is not good enough yet",
}


@dataclass
class Teacher:
    """`says`: answers by prompt, in turn, the last for ever. `heard`: all messages by prompt."""

    says: Mapping[str, Sequence[str | Answer]]
    name: str = "teacher"
    heard: dict[str, list[Sequence[Mapping[str, Any]]]] = field(default_factory=dict)
    drawn: list[Drawn] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def reply(
        self, messages: Sequence[Mapping[str, Any]], drawn: Drawn, tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[Answer, str]:
        (prompt,) = [name for name, mark in MARKS.items() if mark in messages[-1]["content"]]
        assert all(set(one) == {"role", "content"} for one in messages)
        self.heard.setdefault(prompt, []).append(messages)
        self.drawn.append(drawn)
        said = self.says[prompt][min(self.counts[prompt], len(self.says[prompt]) - 1)]
        self.counts[prompt] += 1
        return (said if isinstance(said, Answer) else Answer(said, "stop")), self.name

    def close(self) -> None:
        """Nothing waits."""
