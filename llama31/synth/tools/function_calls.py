"""Calls of functions that a model has never seen, mined from code: one, several, or one inside another (section 4.3.5).

functions of a module -> definitions -> a request -> calls -> checked against the definitions -> run in the sandbox with
the module -> answer -> judged. Llama 3.1 makes one call a message, so that of a nested call the inner one comes first,
and its result is the outer one's argument. A call that breaks its definition is the worse one of a pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama31 import config
from llama31.sandbox.isolation import ProgramRunner
from llama31.synth import grounding, labelled
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import JUDGE, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import DIALOGS, PREFERENCES, Records
from llama31.synth.tools import definitions, interface
from llama31.synth.tools.definitions import FunctionDefinition
from llama31.synth.tools.trajectories import BETTER_BY_PROGRAM

QUERY, CALLS, ANSWER, JUDGED = (f"function_calls/{name}" for name in ("query", "calls", "answer", "judge"))
SIMPLE, PARALLEL, NESTED = KINDS = ("simple", "parallel", "nested")
DEEPEST = 5
# Runs inside: the module's own printing goes nowhere, and the result is the only thing that is printed.
MODULE = """
import contextlib, io, json, sys
with open(".call.json") as file:
    call = json.load(file)
space = {"__name__": "module"}
with contextlib.redirect_stdout(io.StringIO()):
    with open(".module.py", encoding="utf-8", errors="replace") as file:
        exec(compile(file.read(), "module.py", "exec"), space)
    result = space[call["name"]](**call["arguments"])
sys.stdout.write(json.dumps(result))
"""


@dataclass(frozen=True)
class FunctionCall:
    """A call; an argument may be another call."""

    name: str
    arguments: Mapping[str, Any]

    def message(self) -> dict[str, Any]:
        """As a message of a record."""
        function = {"name": self.name, "arguments": dict(self.arguments)}
        return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}

    def inner(self) -> list[FunctionCall]:
        """The calls among its arguments."""
        return [value for value in self.arguments.values() if isinstance(value, FunctionCall)]


@dataclass(frozen=True)
class FunctionCalls:
    """See the module."""

    settings: config.FunctionCallsSynthesis
    sandbox: ProgramRunner
    name: str = "function_calls"
    prompts: Sequence[str] = (QUERY, CALLS, ANSWER, JUDGED)

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """A dialog of a request, calls with results, and the answer; a pair, where a call broke its definition."""
        offered = self._offered(item, draw)
        kind = draw.random.choice(KINDS)
        draw.counts[f"requests for {kind} calls"] += 1
        listed = "\n".join(json.dumps(one.tool["function"], ensure_ascii=False) for one in offered)
        request = draw.read(QUERY, parsing.said, functions=listed, kind=kind)
        calls, broken = self._calls(draw, kind, listed, request, offered)
        messages: list[dict[str, Any]] = [{"role": "user", "content": request}]
        results: list[str] = []
        for call in calls:
            self._run(item, draw, call, offered, messages, results)
        transcript = _transcript(messages[1:])
        answer = draw.read(ANSWER, parsing.said, request=request, transcript=transcript)
        if grounding.unsupported(answer, [request, *results]):
            draw.drop("answer with a figure that nothing says")
        fields: dict[str, Any] = {"functions": listed, "request": request, "transcript": transcript, "answer": answer}
        if draw.read(JUDGED, parsing.choice(("yes", "no")), model=JUDGE, temperature=0, **fields) == "no":
            draw.drop("calls or answer judged wrong")
        tools = [dict(one.tool) for one in offered]
        pair = {"messages": messages[:1], "tools": tools, "chosen": messages[1], "strength": BETTER_BY_PROGRAM}
        return {
            DIALOGS: [{"messages": [*messages, {"role": "assistant", "content": answer}], "tools": tools}],
            PREFERENCES: [{**pair, "rejected": broken.message()}] if broken else [],
        }

    def _offered(self, item: SynthesisItem, draw: ItemDraw) -> list[FunctionDefinition]:
        """Some functions of the module, drawn; dropped where it has none that JSON can call."""
        try:
            found, left = definitions.mined(item.text)
        except ValueError as error:
            draw.drop(str(error))
        for reason, count in left.items():
            draw.counts[f"left out: {reason}"] += count
        if not found:
            draw.drop("no function that JSON can call")
        return draw.random.sample(found, min(len(found), self.settings.functions))

    def _calls(
        self, draw: ItemDraw, kind: str, listed: str, request: str, offered: Sequence[FunctionDefinition]
    ) -> tuple[list[FunctionCall], FunctionCall | None]:
        """The first calls of several draws that keep to the definitions, and one that does not, if there was one."""
        good: list[FunctionCall] | None = None
        broken: FunctionCall | None = None
        for text in draw.several(CALLS, self.settings.candidates, functions=listed, request=request, kind=kind):
            try:
                calls = read(text)
            except ValueError:
                draw.counts[f"unparsed {CALLS}"] += 1
                continue
            wrong = [one for call in calls for one in faults(call, offered)]
            shaped = shape(calls) == kind
            draw.counts["calls that break their definition"] += bool(wrong)
            draw.counts["calls of another kind"] += not wrong and not shaped
            if not wrong and shaped:
                good = good or calls
            elif wrong and not calls[0].inner():
                broken = broken or (calls[0] if faults(calls[0], offered) else None)
        if good is None:
            draw.drop("no calls that keep to the definitions")
        return good, broken

    def _run(
        self, item: SynthesisItem, draw: ItemDraw, call: FunctionCall, offered: Sequence[FunctionDefinition],
        messages: list[dict[str, Any]], results: list[str],
    ) -> Any:  # fmt: skip
        """The result of a call, after those inside it; all of them become messages. Dropped where it fails."""
        values = {
            name: self._run(item, draw, value, offered, messages, results) if isinstance(value, FunctionCall) else value
            for name, value in call.arguments.items()
        }
        plain = FunctionCall(call.name, values)
        if definitions.problems(plain.name, values, offered):
            draw.drop("result that the outer call cannot take")
        done = draw.check("function call", lambda: self._ran(item.text, plain), item.text, plain.name, values)
        if done is None:
            draw.drop("call that cannot be run")
        messages += [plain.message(), {"role": "ipython", "content": interface.cut(done)}]
        results.append(done)
        return json.loads(done)

    def _ran(self, source: str, call: FunctionCall) -> str | None:
        """What a function returns, as JSON; None where it fails or returns what JSON has not."""
        asked = json.dumps({"name": call.name, "arguments": call.arguments})
        files = {".run.py": MODULE, ".module.py": source, ".call.json": asked}
        done = self.sandbox.run([*self.settings.python, ".run.py"], files)
        try:
            return json.dumps(json.loads(done.stdout), ensure_ascii=False) if done.passed else None
        except (ValueError, RecursionError):
            return None


def read(answer: str) -> list[FunctionCall]:
    """The calls of an answer: a JSON list of {"name": ..., "arguments": {...}}. Raises ValueError."""
    given = labelled.json_value(answer)
    if not isinstance(given, list) or not given:
        raise ValueError("no list of calls")
    calls = [_call(one, 0) for one in given]
    if any(call is None for call in calls):
        raise ValueError("not a call")
    return [call for call in calls if call is not None]


def _call(given: Any, depth: int) -> FunctionCall | None:
    """A call, whose arguments are values or calls; None for anything else."""
    if not isinstance(given, dict) or given.keys() != {"name", "arguments"} or depth > DEEPEST:
        return None
    if not isinstance(given["name"], str) or not isinstance(given["arguments"], dict):
        return None
    return FunctionCall(
        given["name"], {name: _call(value, depth + 1) or value for name, value in given["arguments"].items()}
    )


def faults(call: FunctionCall, known: Sequence[FunctionDefinition]) -> list[str]:
    """What is wrong with a call and those inside it; the type of what an inner one returns is seen when it has run."""
    wrong = [one for inner in call.inner() for one in faults(inner, known)]
    plain = {name: value for name, value in call.arguments.items() if not isinstance(value, FunctionCall)}
    pending = {name for name in call.arguments if name not in plain}
    said = definitions.problems(call.name, plain, known)
    wrong += [one for one in said if not any(one == f"{call.name}: {name} is missing" for name in pending)]
    schemas: Mapping[str, Any] = next((one.parameters["properties"] for one in known if one.name == call.name), {})
    return wrong + [f"{call.name}: there is no argument {name}" for name in sorted(pending - schemas.keys())]


def shape(calls: Sequence[FunctionCall]) -> str:
    """What kind of request calls belong to."""
    if any(call.inner() for call in calls):
        return NESTED
    return SIMPLE if len(calls) == 1 else PARALLEL


def _transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(_told(messages))


def _told(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in messages:
        if one["role"] == "assistant":
            function = one["tool_calls"][0]["function"]
            yield f"{function['name']}({json.dumps(function['arguments'], ensure_ascii=False)})"
        else:
            yield f"-> {one['content']}"
