"""What a sandbox costs: the start of a program, and checks per core-second, beside the same by a plain subprocess.

Both run the same program, written here, by turns, so that what else the machine does falls on both.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llama31.sandbox.bubblewrap import ENVIRONMENT
from llama31.sandbox.isolation import Sandbox
from llama31.sandbox.limits import SandboxLimits
from llama31.sandbox.workers import Workers

# Without site-packages a start takes half as long; the work folder stays importable, as it does not with -I.
PYTHON = ("/usr/bin/python3", "-E", "-s", "-S", "-B")
SOLUTION = """
def roman(number):
    result = ""
    for value, letters in ((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"),
                           (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")):
        result += letters * (number // value)
        number %= value
    return result
"""
TESTS = """
from solution import roman
assert [roman(n) for n in (1, 4, 1994, 3999)] == ["I", "IV", "MCMXCIV", "MMMCMXCIX"]
assert len({roman(n) for n in range(1, 4000)}) == 3999
"""
FILES = {"solution.py": SOLUTION, "test_solution.py": TESTS}
TRUE = ("/bin/true",)
CHECK = (*PYTHON, "test_solution.py")
Run = Callable[[Sequence[str]], bool]


def plain(words: Sequence[str]) -> bool:
    """The same in a folder of its own and nothing around it: for programs of ours alone."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in FILES.items():
            Path(folder, name).write_text(text)
        return subprocess.run(words, cwd=folder, env=ENVIRONMENT, check=False, capture_output=True).returncode == 0


def starts(runs: dict[str, Run], words: Sequence[str], turns: int) -> dict[str, list[float]]:
    """Milliseconds of each run, one after the other, by turns."""
    result: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            begin = time.perf_counter()
            if not run(words):
                raise RuntimeError(f"{name}: {' '.join(words)} fails")
            result[name].append(1000 * (time.perf_counter() - begin))
    return result


def rate(run: Run, workers: Workers, seconds: float) -> float:
    """Checks per second and core with all cores at work."""
    begin = time.perf_counter()
    end = begin + seconds

    def some(_: int) -> int:
        count = 0
        while not count or time.perf_counter() < end:
            count += run(CHECK)
        return count

    done = sum(count for _, count in workers.each(some, range(workers.count)))
    return done / (time.perf_counter() - begin) / workers.count


def beside(inside: Sequence[float], outside: Sequence[float]) -> str:
    """Milliseconds in a sandbox and without."""
    a, b = statistics.median(inside), statistics.median(outside)
    return f"{a:.1f} ms (fastest {min(inside):.1f}), plain {b:.1f} ms (fastest {min(outside):.1f}): {a - b:.1f} ms more"


def measure(turns: int = 100, seconds: float = 1.5, program: str | None = None) -> dict[str, str]:
    """Name and figure, one for each row of a table; raises SandboxUnavailable where there is no sandbox."""
    sandbox = Sandbox(SandboxLimits(), program=program)
    runs: dict[str, Run] = {"sandbox": lambda words: sandbox.run(words, FILES).passed, "plain": plain}
    figures = {}
    for name, words in (("/bin/true", TRUE), ("unit tests in Python", CHECK)):
        times = starts(runs, words, turns)
        figures[f"{name} in a sandbox, median"] = beside(times["sandbox"], times["plain"])
    both: dict[str, list[float]] = {name: [] for name in runs}
    with Workers() as workers:
        for _ in range(7):
            for name, run in runs.items():
                both[name].append(rate(run, workers, seconds))
    a, b = (statistics.median(both[name]) for name in ("sandbox", "plain"))
    shown = f"{a:.0f} in sandboxes, {b:.0f} plain: {a / b:.2f} of them"
    return {**figures, f"unit tests in Python per second and core, {workers.count} at once": shown}
