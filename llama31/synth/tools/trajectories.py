"""Steps and results until the answer, as a dialog; at each step several messages are drawn, and pairs of them kept.

What people ranked for the report were single messages of assistants, never what tools said (section 4.3.5). Here a
program ranks where it can: a call that fails, repeats one or is not needed, an answer too early or with a figure that
nothing says, is worse than a message without such a fault. Between two good ones a judge chooses, asked in both orders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama31.synth import grounding
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import JUDGE, ItemDraw
from llama31.synth.tools import interface, steps
from llama31.synth.tools.interface import ATTACHED, ChatTool, ToolResult
from llama31.synth.tools.steps import ToolStep

STEP, COMPARED, JUDGED = "tools/step", "tools/compare", "tools/judge"
PROMPTS = (STEP, COMPARED, JUDGED)
BETTER_BY_PROGRAM, BETTER_BY_JUDGE = "significantly_better", "better"
CALL_FAILS = "a call that fails"


@dataclass(frozen=True)
class ToolTask:
    """What is asked, with which tools, and how many calls are due. `sources`: texts beside the results."""

    question: str
    enabled: Sequence[str]
    least: int
    most: int
    files: ATTACHED = field(default_factory=dict)
    sources: Sequence[str] = ()
    figures: bool = True  # whether those of the answer have to stand in question, sources or results


@dataclass
class Trajectory:
    """A dialog as it grows: what was said and done, messages, and pairs of messages."""

    task: ToolTask
    messages: list[dict[str, Any]]
    done: list[tuple[ToolStep, ToolResult]] = field(default_factory=list)
    preferences: list[dict[str, Any]] = field(default_factory=list)
    answer: str = ""

    def transcript(self) -> str:
        """The calls and their results so far, as a prompt tells them."""
        told = []
        for number, (step, result) in enumerate(self.done, start=1):
            thought = f"Thought: {step.thought}\n" if step.thought else ""
            told.append(f"{number}. {thought}Tool: {step.tool}\nInput: {step.given}\nResult:\n{result.text}")
        return "\n\n".join(told) or "(no call yet)"

    def before(self, tool: str) -> list[str]:
        """Inputs of earlier calls of a tool."""
        return [step.given for step, _ in self.done if step.tool == tool]

    def record(self) -> dict[str, Any]:
        """The dialog as a record."""
        return {"messages": list(self.messages), "builtin_tools": list(self.task.enabled)}


@dataclass(frozen=True)
class Trajectories:
    """Makes them. `candidates`: messages drawn at each step; with one there are no pairs."""

    tools: Mapping[str, ChatTool]
    candidates: int = 2
    reasoning: bool = False

    def make(self, draw: ItemDraw, task: ToolTask) -> Trajectory:
        """A whole trajectory, whose answer a judge finds right; otherwise the item is dropped."""
        made = Trajectory(task, [{"role": "user", "content": task.question}])
        while not made.answer:
            self._step(draw, made)
        draw.counts["calls"] += len(made.done)
        fields: dict[str, Any] = {
            "question": task.question, "transcript": made.transcript(), "answer": made.answer,
        }  # fmt: skip
        if draw.read(JUDGED, parsing.choice(("yes", "no")), model=JUDGE, temperature=0, **fields) == "no":
            draw.drop("answer judged wrong")
        return made

    def _step(self, draw: ItemDraw, made: Trajectory) -> None:
        tried = [(one, *self._tried(draw, made, one)) for one in self._drawn(draw, made)]
        for _, _, fault in tried:
            draw.counts[f"messages: {fault}"] += fault is not None
        good = [(one, result) for one, result, fault in tried if fault is None]
        bad = [(one, result, fault) for one, result, fault in tried if fault is not None]
        if not good:
            failing = [(one, result) for one, result, fault in bad if fault == CALL_FAILS]
            if not failing or len(made.done) + 1 >= made.task.most:
                draw.drop(f"nothing but {bad[0][2]}")
            self._go_on(made, *failing[0], weight=0)  # context, from which the model has to recover
            return
        chosen = good[0]
        if bad:
            self._pair(made, chosen[0], bad[0][0], BETTER_BY_PROGRAM)
        elif len(good) > 1 and good[0][0].message() != good[1][0].message():
            chosen = self._compared(draw, made, good[0], good[1])
        self._go_on(made, *chosen)

    def _drawn(self, draw: ItemDraw, made: Trajectory) -> list[ToolStep]:
        """The steps that the model proposes, those alike once; at least one that can be read."""
        task, calls = made.task, len(made.done)
        due = "call" if calls < task.least else "answer" if calls >= task.most > 0 else "either"
        fields: dict[str, Any] = {
            "tools": interface.described(self.tools[name] for name in task.enabled), "question": task.question,
            "transcript": made.transcript(), "due": due, "sources": "\n\n".join(task.sources),
        }  # fmt: skip
        found: list[ToolStep] = []
        for text in draw.several(STEP, self.candidates, **fields) if self.candidates > 1 else ():
            try:
                found.append(steps.read(text, task.enabled))
            except ValueError:
                draw.counts[f"unparsed {STEP}"] += 1
        return list(dict.fromkeys(found)) or [draw.read(STEP, lambda text: steps.read(text, task.enabled), **fields)]

    def _tried(self, draw: ItemDraw, made: Trajectory, step: ToolStep) -> tuple[ToolResult | None, str | None]:
        """The result of a call, and what is wrong with a step, if anything."""
        task, calls = made.task, len(made.done)
        if not step.tool:
            if calls < task.least:
                return None, "an answer before the calls that it needs"
            said = [task.question, *task.sources, *(result.text for _, result in made.done)]
            if task.figures and grounding.unsupported(step.answer, said):
                return None, "an answer with a figure that nothing says"
            return None, None
        if calls >= task.most:
            return None, "a call that is not needed"
        if step.given in made.before(step.tool):
            return None, "a call that was made before"
        result = interface.use(draw, self.tools[step.tool], step.given, made.before(step.tool), task.files)
        return result, CALL_FAILS if result.failed else None

    def _compared[T: tuple[ToolStep, ToolResult | None]](self, draw: ItemDraw, made: Trajectory, one: T, other: T) -> T:
        """The one that a judge prefers in both orders, and the pair; the first, and none, where it does not."""
        fields: dict[str, Any] = {"question": made.task.question, "transcript": made.transcript()}
        parse, verdicts = parsing.choice(("first", "second")), []
        for first, second in ((one, other), (other, one)):
            shown: dict[str, Any] = {"first": _shown(first[0]), "second": _shown(second[0])}
            verdicts.append(draw.read(COMPARED, parse, model=JUDGE, temperature=0, **fields, **shown))
        if verdicts[0] == verdicts[1]:
            draw.counts["messages of which a judge prefers none"] += 1
            return one
        better, worse = (one, other) if verdicts[0] == "first" else (other, one)
        self._pair(made, better[0], worse[0], BETTER_BY_JUDGE)
        return better

    def _pair(self, made: Trajectory, better: ToolStep, worse: ToolStep, strength: str) -> None:
        messages = {"chosen": better.message(self.reasoning), "rejected": worse.message(self.reasoning)}
        made.preferences.append({**made.record(), **messages, "strength": strength})

    def _go_on(self, made: Trajectory, step: ToolStep, result: ToolResult | None, weight: int = 1) -> None:
        made.messages.append(step.message(self.reasoning) | ({} if weight else {"weight": 0}))
        if result is None:
            made.answer = step.answer
        else:
            made.done.append((step, result))
            made.messages.append({"role": "ipython", "content": result.text})


def _shown(step: ToolStep) -> str:
    return f"Tool: {step.tool}\nInput: {step.given}" if step.tool else f"Answer: {step.answer}"
