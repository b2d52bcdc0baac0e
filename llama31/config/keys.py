"""What a key of the schema is, and how a wrong one is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any, NamedTuple

MISSING: Any = "???"  # OmegaConf's mark for a key that has to be given
MOST_TOKENS = 10**16  # a thousand times what is trained on today, and still exact in FP64 and int64


class Issue(NamedTuple):
    """One problem of a config: the key, its value, what is wrong and what to do about it."""

    key: str
    value: Any
    problem: str
    remedy: str

    def __str__(self) -> str:
        shown = str(self.value).lower() if isinstance(self.value, bool) else self.value
        given = self.key if self.value is MISSING else f"{self.key}={'null' if shown is None else shown}"
        return f"{given}: {self.problem}; {self.remedy}"


class RunError(RuntimeError):
    """Work that had begun could not go on; the message says why, what is safe, and what to do."""


class ConfigError(ValueError):
    """All problems of a config at once. `hint` is a last line that concerns them together."""

    def __init__(self, issues: Sequence[Issue], hint: str = "") -> None:
        self.issues = list(issues)
        self.hint = hint
        super().__init__("\n".join([*map(str, self.issues), *([hint] if hint else [])]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[Issue], str]]:
        """Other processes are told of it by pickle, which would give the message as `issues`."""
        return type(self), (self.issues, self.hint)


def key(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    former: dict[str, str] | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> Any:
    """One key of the schema: its default, the sentence that `--help` prints, and the values that it may take.

    `choices` are those of a text, or of each in a list, for which one alone may stand; `former` has what to give in
    the place of one that is no longer there. `low` and `high` are inclusive bounds, `above` is an exclusive one; None
    itself is judged by the type alone.
    """
    metadata = {"help": help, "choices": choices, "former": former, "low": low, "above": above, "high": high}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
