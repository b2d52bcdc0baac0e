"""Text and Python in turns: code runs in a sandbox, its output goes back to the model, and a failure ends the solution.

The report uses execution "as a feedback signal to eliminate cases where the reasoning chain was not valid".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama31.sandbox.isolation import ProgramRunner
from llama31.synth.mathematics import solutions
from llama31.synth.pipeline.draw import ItemDraw

PROMPTS: Sequence[str] = ("mathematics/program", "mathematics/output")
SHOWN = 2000  # characters of a program's output that the model is shown
_BLOCK = re.compile(r"```(?:python3?|py)\s*\n(.*?)\n?```", re.DOTALL | re.IGNORECASE)
# Earlier blocks run again, unheard: what they define is there, as in a notebook.
_MAIN = """
import contextlib, io
names = {"__name__": "__main__"}
for number in range(COUNT):
    source = compile(open(f"block{number}.py", encoding="utf-8").read(), f"block{number}.py", "exec")
    with contextlib.redirect_stdout(io.StringIO()) if number + 1 < COUNT else contextlib.nullcontext():
        exec(source, names)
"""


@dataclass(frozen=True)
class ProgrammedSolution:
    """The messages of a solution with Python, and its final answer."""

    messages: Sequence[Mapping[str, Any]]
    answer: str | None

    @property
    def text(self) -> str:
        """All of it as a text, for judges."""
        said = [
            f"```output\n{one['content']}\n```" if one["role"] == "ipython" else _shown(one) for one in self.messages
        ]
        return "\n\n".join(said)


def _shown(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    code = f"\n\n```python\n{calls[0]['function']['arguments']['code']}\n```" if calls else ""
    return f"{message['content']}{code}"


def solved(draw: ItemDraw, runner: ProgramRunner, question: str, turns: int) -> ProgrammedSolution | None:
    """A solution in at most `turns` messages; None where code failed or printed nothing, or no end was reached."""
    asked: list[Mapping[str, Any]] = [*draw.messages("mathematics/program", question=question)]
    said: list[Mapping[str, Any]] = []
    blocks: list[str] = []
    for _ in range(turns):
        answer = draw.answer([*asked])
        if answer["finish"] != "stop":
            draw.counts["unfinished mathematics/program"] += 1
            return None
        text, found = answer["text"].strip(), _BLOCK.search(answer["text"])
        if found is None:
            said.append({"role": "assistant", "content": text})
            return ProgrammedSolution(said, solutions.answer(text))
        before, code = answer["text"][: found.start()].strip(), found[1]
        blocks.append(code)
        output = _run(draw, runner, blocks)
        if output is None:
            return None
        call = [{"type": "function", "function": {"name": "code_interpreter", "arguments": {"code": code}}}]
        said += [{"role": "assistant", "content": before, "tool_calls": call}, {"role": "ipython", "content": output}]
        # what stands behind the block was written without knowing its output
        asked += [{"role": "assistant", "content": answer["text"][: found.end()].strip()}]
        asked += draw.messages("mathematics/output", output=output)
    draw.counts["solutions with Python that do not end"] += 1
    return None


def _run(draw: ItemDraw, runner: ProgramRunner, blocks: Sequence[str]) -> str | None:
    """What the last block prints; None where a block fails."""
    files: dict[str, str | bytes] = {f"block{number}.py": code for number, code in enumerate(blocks)}
    files["main.py"] = _MAIN.replace("COUNT", str(len(blocks)))

    def run() -> Mapping[str, Any]:
        outcome = runner.run(["python3", "-I", "main.py"], files)
        return {"passed": outcome.passed, "stdout": outcome.stdout[: 2 * SHOWN], "reason": outcome.reason}

    result = draw.check("python", run, files)
    draw.counts["programs run"] += 1
    if not result["passed"] or not result["stdout"].strip():
        ended = result["reason"] if result["reason"] != "finished" else "error"
        draw.counts[f"programs that end by {'printing nothing' if result['passed'] else ended}"] += 1
        return None
    return str(result["stdout"]).strip()[:SHOWN]
