"""What an item's program may do: ask a model by the name of a prompt, run a check, count, drop the item.

A program is a plain function of an item and an `ItemDraw`, run in a thread of its own. It has to be a function of what
it asked and nothing else: no clock, and randomness only from `draw.random`. Then it can be begun again after a kill.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn, cast

from llama31 import config
from llama31.sampling.drawing import seed_of
from llama31.synth.pipeline import chat_models
from llama31.synth.pipeline.chat_models import ChatModel, Drawn
from llama31.synth.pipeline.items import SynthesisItem, writable
from llama31.synth.pipeline.journal import Appended, Steps, digest
from llama31.synth.pipeline.prompt_files import PromptFiles

POLICY, JUDGE, REWARD = "policy", "judge", "reward"
ATTEMPTS = 2  # an answer that does not parse is asked for once more


class Dropped(Exception):
    """An item that gives no record, and why; the reason is counted."""


@dataclass(frozen=True)
class Workshop:
    """What all items of a shard share. `checks`: a slot of it is held while a check runs, one per core."""

    models: Mapping[str, ChatModel]
    prompts: PromptFiles
    sampling: config.SynthesisSampling  # how answers are drawn where a program says nothing else
    steps: Appended
    checks: threading.Semaphore
    several: Executor


@dataclass
class ItemDraw:
    """See the module. `sent`: names of prompts that went out; `by`: names of models by their role; `unread`: the last
    answer that was cut or could not be read where a second one could not either.
    """

    item: SynthesisItem
    shared: Workshop
    before: Steps = field(default_factory=dict)  # what an earlier attempt has recorded
    counts: Counter[str] = field(default_factory=Counter)
    sent: set[str] = field(default_factory=set)
    by: dict[str, set[str]] = field(default_factory=dict)
    unread: str = ""
    _step: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(seed_of(self.shared.sampling.seed, self.item.id, "random"))

    def ask(
        self, prompt: str, /, *, model: str = POLICY, temperature: float | None = None,
        max_new_tokens: int | None = None, history: Sequence[Mapping[str, Any]] = (), **fields: Any,
    ) -> str:  # fmt: skip
        """The text that a model answers to the prompt of that name, with these fields, after `history`.

        `model`: POLICY or JUDGE. An answer that does not end by itself is asked for once more, and counted; then the
        item is dropped.
        """
        return self.read(
            prompt, str, model=model, temperature=temperature, max_new_tokens=max_new_tokens, history=history, **fields
        )

    def read[T](
        self, prompt: str, parse: Callable[[str], T], /, *, model: str = POLICY, temperature: float | None = None,
        max_new_tokens: int | None = None, history: Sequence[Mapping[str, Any]] = (), **fields: Any,
    ) -> T:  # fmt: skip
        """What `parse` makes of the answer. Where it raises ValueError the model is asked once more, with another seed.

        Counts `unparsed NAME` and `unfinished NAME` for each such answer; the second drops the item.
        """
        messages = [*history, *self._messages(prompt, fields)]
        reason = ""
        for _ in range(ATTEMPTS):
            answer = self.answer(messages, model=model, temperature=temperature, max_new_tokens=max_new_tokens)
            if answer["finish"] != "stop":
                reason = f"unfinished {prompt}"
            else:
                try:
                    return parse(answer["text"])
                except ValueError:
                    reason = f"unparsed {prompt}"
            self.counts[reason] += 1
        self.unread = answer["text"]
        self.drop(reason)

    def several(
        self, prompt: str, count: int, /, *, model: str = POLICY, temperature: float | None = None,
        max_new_tokens: int | None = None, history: Sequence[Mapping[str, Any]] = (), **fields: Any,
    ) -> list[str]:  # fmt: skip
        """`count` answers, drawn at once; those that do not end by themselves are left out and counted."""
        messages = [*history, *self._messages(prompt, fields)]
        steps = [self._next() for _ in range(count)]
        asked = [(step, messages, model, self._drawn(step, temperature, max_new_tokens), ()) for step in steps]
        answers = [one.result() for one in [self.shared.several.submit(self._reply, *one) for one in asked]]
        whole = [answer["text"] for answer in answers if answer["finish"] == "stop"]
        self.counts[f"unfinished {prompt}"] += len(answers) - len(whole)
        return whole

    def answer(
        self, messages: Sequence[Mapping[str, Any]], *, model: str = POLICY, temperature: float | None = None,
        max_new_tokens: int | None = None, tools: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """The answer to messages as they are: {text, finish, message}; `message` may hold tool_calls."""
        step = self._next()
        return self._reply(step, messages, model, self._drawn(step, temperature, max_new_tokens), tools)

    def messages(self, prompt: str, /, **fields: Any) -> list[dict[str, str]]:
        """The messages of a prompt's file, as `ask` sends them; for dialogs that go on by `answer`."""
        return self._messages(prompt, fields)

    def check[T](self, name: str, run: Callable[[], T], *of: Any, core: bool = True) -> T:
        """The result of a check (JSON: it is recorded), run while a core is free for it, where it needs one.

        `of` is what the result depends on: after a kill a recorded result counts if name and `of` are the same.
        """
        asked, step = digest(name, *of), self._next()
        if (known := self.before.get(step)) is not None and known[0] == asked:
            return cast(T, known[1])  # as it was recorded
        with self.shared.checks if core else contextlib.nullcontext():
            value = run()
        self._record(step, asked, value)
        return value

    def drop(self, reason: str) -> NoReturn:
        """End the item without a record."""
        raise Dropped(reason)

    # --- inside ---

    def _messages(self, prompt: str, fields: Mapping[str, Any]) -> list[dict[str, str]]:
        self.sent.add(prompt)
        return self.shared.prompts[prompt].messages(fields)

    def _next(self) -> int:
        self._step += 1
        return self._step

    def _drawn(self, step: int, temperature: float | None, max_new_tokens: int | None) -> Drawn:
        """The seed is by item and step: a repeated question is another draw, and a repeated run draws the same."""
        settings = self.shared.sampling
        return Drawn(
            settings.temperature if temperature is None else temperature,
            settings.top_p,
            settings.max_new_tokens if max_new_tokens is None else max_new_tokens,
            seed_of(settings.seed, self.item.id, step),
        )

    def _reply(
        self, step: int, messages: Sequence[Mapping[str, Any]], model: str, drawn: Drawn,
        tools: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:  # fmt: skip
        """An answer as it was recorded before, or a fresh one."""
        asked = digest(model, messages, asdict(drawn), tools)
        known = self.before.get(step)
        if known is not None and known[0] == asked:
            value: dict[str, Any] = known[1]
        else:
            answer, name = self.shared.models[model].reply(messages, drawn, tools)
            said = {"text": answer.text, "finish": answer.finish, "message": chat_models.message(answer), "by": name}
            value = writable(said)
            self._record(step, asked, value)
        self.by.setdefault(model, set()).add(value["by"])
        return value

    def _record(self, step: int, asked: str, value: Any) -> None:
        self.shared.steps.add({"item": self.item.id, "step": step, "asked": asked, "value": value})
