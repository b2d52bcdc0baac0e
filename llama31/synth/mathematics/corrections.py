"""Wrong solutions, mended: where one goes wrong, why, and how it goes on (report, section 4.3.3)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama31.dialogs import stepwise
from llama31.synth.mathematics import solutions
from llama31.synth.mathematics.solutions import Solution
from llama31.synth.pipeline.draw import Dropped, ItemDraw

PROMPTS: Sequence[str] = ("mathematics/mend", "mathematics/recheck")
_PARTS = re.compile(
    r"^\W*first wrong step\W*?:\W*(?:step\s*)?(\d+)\W*?$(.*?)^\W*reason\W*?:(.*?)^\W*corrected\W*?:(.*)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)


def parser(count: int) -> Callable[[str], tuple[int, str, str]]:
    """Reads `First wrong step: K`, `Reason: ...` and `Corrected: ...`; K of 1 to `count`, from 0 in the result."""

    def parse(said: str) -> tuple[int, str, str]:
        found = _PARTS.search(said)
        if found is None:
            raise ValueError("not the three parts")
        place, reason, rest = int(found[1]) - 1, found[3].strip(" *\n"), found[4].strip(" *\n")
        if not 0 <= place < count or not reason or not rest:
            raise ValueError("no step of the solution, or nothing said about it")
        return place, reason, rest

    return parse


def mended(
    draw: ItemDraw, question: str, wrong: Solution, right: Callable[[str], bool], known_place: int | None = None
) -> dict[str, Any] | None:
    """A dialog in which a wrong solution is found wrong and mended; None where the model could not.

    right: whether a final answer is. known_place: the first wrong step by rollouts; a model that names a later one has
    not found it. The wrong solution is context in the dialog, and not learned.
    """
    steps = wrong.steps
    draw.counts["corrections tried"] += 1
    try:
        place, reason, rest = draw.read(
            "mathematics/mend", parser(len(steps)), question=question, steps=stepwise.numbered(steps)
        )
    except Dropped:
        return None
    if known_place is not None and place > known_place:
        draw.counts["corrections that name a later step"] += 1
        return None
    whole = stepwise.numbered([*steps[:place], *stepwise.split(rest)])
    answer = solutions.answer(whole)
    if answer is None or not right(answer):
        draw.counts["corrections that stay wrong"] += 1
        return None
    said = f"Step {place + 1} is wrong: {reason}\n\n{whole}"
    return {
        "messages": [
            _message("user", question),
            {**_message("assistant", stepwise.numbered(steps)), "weight": 0},
            *draw.messages("mathematics/recheck"),
            _message("assistant", said),
        ],
        "wrong_step": place + 1,
    }


def _message(role: str, content: str) -> Mapping[str, Any]:
    return {"role": role, "content": content}
