"""The final answer of a solution: what it boxes, or says to be its answer."""

from __future__ import annotations

import re

from llama31.synth.equality import tokens

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BARE_BOX = re.compile(r"\\boxed\s+(\S+)")
_HASHES = re.compile(r"^####\s*(\S.*)$", re.MULTILINE)  # as GSM8K writes it
_SAID = re.compile(
    r"(?:the\s+)?(?:final\s+)?answer\s*(?:is|:|=)\s*:?\s*(.+?)\s*(?:\.\s*$|\.\s+(?=[A-Z])|$)",
    re.IGNORECASE | re.MULTILINE,
)
LAST = 20_000  # characters at the end of a solution that are looked at


def boxed(text: str) -> list[str]:
    """What stands in the boxes of a text, in order."""
    found = []
    for match in _BOX.finditer(text):
        if (end := tokens.closes(text, match.end() - 1)) > 0:
            found.append(text[match.end() : end - 1].strip())
    return found or [match[1].rstrip("$.") for match in _BARE_BOX.finditer(text)]


def answer(solution: str) -> str:
    """The last box of a solution; without one what stands behind its last `####` or `the answer is`.

    Raises ValueError where it says none, or an empty one.
    """
    text = solution[-LAST:]
    said = boxed(text) or _HASHES.findall(text) or _SAID.findall(text)
    if not said or not said[-1].strip("$ .*"):
        raise ValueError("the solution says no final answer; end it with \\boxed{...}")
    return said[-1].strip().strip("*").strip()
