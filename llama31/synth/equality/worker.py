"""A process that compares answers with sympy: lines of JSON in and out, each within its time, all within its memory."""

from __future__ import annotations

import json
import resource
import signal
import sys
from types import FrameType

from llama31.synth.equality import symbolic, verdict
from llama31.synth.equality.same import EqualityRules

AGAIN_S = 0.05  # until it is told once more that its time is over: libraries may swallow what they are told


class Expired(BaseException):
    """The time of one comparison is over."""


def _expire(number: int, frame: FrameType | None) -> None:
    raise Expired


def compare(one: str, other: str, cpu_seconds: float) -> str:
    """The verdict, "undecided" where it takes longer, more memory, or sympy fails."""
    try:
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, cpu_seconds, AGAIN_S)
            return verdict.of(one, other, EqualityRules(symbolic.equal, symbolic.equal_equations))
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except Expired:
        return verdict.UNDECIDED
    except Exception as error:  # noqa: BLE001 - sympy raises all kinds; what it cannot do is not decided
        print(f"sympy on {one!r}, {other!r}: {error!r}"[:500], file=sys.stderr)
        return verdict.UNDECIDED


def main() -> None:
    """Answer until the input ends. Arguments: CPU seconds of a comparison, bytes of memory."""
    cpu_seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGVTALRM, _expire)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is for who asks
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for line in sys.stdin:
        one, other = json.loads(line)
        print(json.dumps(compare(one, other, cpu_seconds)), flush=True)


if __name__ == "__main__":
    main()
