"""Python in the sandbox as code_interpreter: names of earlier calls are known, as in one session.

A session is the calls before, run again in silence, then the new one: what they made is there, nothing has to stay
alive between two calls, and a dialog can be begun again after a kill. Code that draws at random without a seed gives
other values then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from llama31.sandbox.isolation import ProgramRunner
from llama31.synth.tools.interface import ATTACHED, ToolResult

SESSION = """
import ast, contextlib, io, json, sys, traceback
with open(".cells.json", encoding="utf-8", errors="surrogatepass") as file:
    cells = json.load(file)
space = {"__name__": "__main__"}
def run(source):
    tree = ast.parse(source, "<cell>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), space)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), space)
        if value is not None:
            print(repr(value))
for cell in cells[:-1]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(BaseException):
            run(cell)
try:
    run(cells[-1])
except SystemExit as error:
    sys.exit(error.code)
except BaseException as error:
    kept = [one for one in traceback.extract_tb(error.__traceback__) if one.filename == "<cell>"]
    lines = traceback.format_list(kept) + traceback.format_exception_only(error)
    sys.stderr.write("".join(lines))
    sys.exit(1)
"""


@dataclass(frozen=True)
class CodeInterpreter:
    """code_interpreter. `python`: the command that starts it inside, with the packages that code may import."""

    sandbox: ProgramRunner
    python: Sequence[str] = ("python3", "-I")
    name: str = "code_interpreter"
    purpose: str = "runs Python and gives what it prints; names of earlier calls are known."
    form: str = "a fenced block of Python that prints what is needed."
    fingerprint: str = field(default="session 1")

    def call(self, given: str, before: Sequence[str], files: ATTACHED) -> ToolResult:
        """See `ChatTool`: what was printed; of code that failed, the error too."""
        inside: dict[str, str | bytes] = {**files, ".session.py": SESSION, ".cells.json": json.dumps([*before, given])}
        done = self.sandbox.run([*self.python, ".session.py"], inside)
        said = done.stdout.rstrip()
        if done.passed:
            return ToolResult(said or "(nothing was printed)", failed=not said)
        reason = "" if done.reason == "finished" else f"stopped: {done.reason}"
        error = re.sub(r"^Traceback.*\n", "", done.stderr).strip()
        return ToolResult("\n".join(part for part in (said, error, reason) if part) or "error", failed=True)
