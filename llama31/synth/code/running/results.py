"""What tests say of themselves, in lines that their own text alone can write.

Tests and solution are one process, and a solution may print what it likes and end that process with 0. So the marks
that tests print are replaced before each run, in the tests' text and nowhere else, by random words of the same length:
a line counts where such a word is in it, and all of them only where the last word is that of the end. A solution that
searched its own process or the tests' file for the words would find them; printing and leaving is not enough.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

MARKS = PASSED, FAILED, DONE = ("test-passed:", "test-failed:", "all-tests-done")
_LETTERS = "ghjkmnpqrstvwxyz"  # 4 bits each; none that would go on with an escape such as \x1


@dataclass(frozen=True)
class MarkedTests:
    """Tests with random words for their marks. `text`: as it is run, of the length of `tests`."""

    tests: str
    words: Mapping[str, str]

    @property
    def text(self) -> str:
        """The tests with the words."""
        return _replaced(self.tests, self.words)

    def plain(self, written: str) -> str:
        """What a program has written, with the marks as the tests have them: nobody is to learn the words."""
        return _replaced(written, {word: mark for mark, word in self.words.items()})

    def passed(self, stdout: str) -> int:
        """How many tests have passed: names behind the word that stand in the tests as they are, each once."""
        names = re.findall(rf"{self.words[PASSED]}[ \t]*(.*\S)", stdout)
        return sum(name in self.tests for name in set(names))

    def failed(self, stdout: str) -> bool:
        """Whether one says that it has failed."""
        return self.words[FAILED] in stdout

    def done(self, stdout: str) -> bool:
        """Whether the end was reached: its word is there, and none behind it."""
        last = max(self.words.values(), key=stdout.rfind)
        return last == self.words[DONE] and last in stdout


def marked(tests: str) -> MarkedTests:
    """Tests with words that were never used before."""
    return MarkedTests(tests, {mark: "".join(secrets.choice(_LETTERS) for _ in mark) for mark in MARKS})


def malformed(tests: str) -> str:
    """What is missing in tests, in a sentence; "" where nothing is."""
    missing = [f"`{mark}`" for mark in (PASSED, DONE) if mark not in tests]
    return f"The tests print no line with {' and none with '.join(missing)}." if missing else ""


def _replaced(text: str, words: Mapping[str, str]) -> str:
    for old, new in words.items():
        text = text.replace(old, new)
    return text
