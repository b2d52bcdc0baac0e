"""What an answer says, read strictly: whoever cannot be read is asked once more."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence


def choice(names: Sequence[str], word: str = "Verdict") -> Callable[[str], str]:
    """A parser of answers that end with a line `Verdict: X`, X one of `names`, or say X alone. Case does not matter.

    The last such line counts. The parser raises ValueError where there is none, or its X is another.
    """
    known = {name.casefold(): name for name in names}

    def parse(answer: str) -> str:
        marked = re.findall(rf"^\W*{word}\W*?[:=]\s*(.+)$", answer, re.IGNORECASE | re.MULTILINE)
        said = (marked[-1] if marked else answer).strip().strip("*_`\"'.()[] ").casefold()
        if said not in known:
            raise ValueError(f"none of {', '.join(names)} is said")
        return known[said]

    return parse


def said(answer: str) -> str:
    """The answer without white space around it, and without quotation marks or a fence around all of it.

    Raises ValueError where nothing is left.
    """
    text = answer.strip()
    if fenced := re.fullmatch(r"```\w*\n(.*?)\n?```", text, re.DOTALL):
        text = fenced[1].strip()
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
        text = text[1:-1].strip()
    if not text:
        raise ValueError("nothing is said")
    return text


def question(answer: str) -> str:
    """One question, in one paragraph that ends with a question mark. Raises ValueError for anything else."""
    text = re.sub(r"^(?:\**question\**\s*[:.]\**|q[:.])\s*", "", said(answer), flags=re.IGNORECASE).strip()
    if "\n\n" in text or not text.rstrip("\"'”)").endswith(("?", "\uff1f", "\u061f")):
        raise ValueError("no single question")
    return text
