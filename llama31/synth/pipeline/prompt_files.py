"""Every prompt that is sent stands in a file under conf/prompts: TASK/NAME.txt, Jinja, its hash in the provenance.

A file is one message of a user, or several, each behind a line `[system]`, `[user]` or `[assistant]` of its own.
`{{ text | fenced }}` puts material between two lines of equals signs, longer than any within: none can end it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import TemplateError as TemplateError  # of a template that its fields do not fit

OURS = Path(__file__).resolve().parents[3] / "conf" / "prompts"
_ROLE = re.compile(r"^\[(system|user|assistant)\][ \t]*\n", re.MULTILINE)


def fenced(text: object) -> str:
    """A text between two lines of equals signs, more than stand anywhere in it."""
    longest = max((len(run) for run in re.findall("=+", str(text))), default=0)
    line = "=" * max(5, longest + 1)
    return f"{line}\n{str(text).strip()}\n{line}"


@dataclass(frozen=True)
class PromptFile:
    """A prompt's file: its templates by role, in order; the fields that they need; and what tells it from another."""

    name: str
    path: Path
    parts: Sequence[tuple[str, jinja2.Template]]
    fields: frozenset[str]
    fingerprint: str

    def messages(self, fields: Mapping[str, Any]) -> list[dict[str, str]]:
        """The messages with these fields. Raises TypeError where a field is missing or unknown: a programming error."""
        if self.fields != fields.keys():
            raise TypeError(f"{self.path} needs the fields {sorted(self.fields)} and was given {sorted(fields)}")
        return [{"role": role, "content": template.render(fields).strip()} for role, template in self.parts]


@dataclass
class PromptFiles:
    """The files of conf/prompts, each by its name (code/solve); one of the folder `own` comes before ours."""

    own: str | None = None
    known: dict[str, PromptFile] = field(default_factory=dict)

    def __getitem__(self, name: str) -> PromptFile:
        if name not in self.known:
            self.known[name] = read(name, self._path(name))
        return self.known[name]

    def _path(self, name: str) -> Path:
        folders = ([Path(self.own)] if self.own else []) + [OURS]
        paths = [folder / f"{name}.txt" for folder in folders]
        return next((path for path in paths if path.is_file()), paths[-1])

    def check(self, names: Sequence[str]) -> None:
        """Read the files that a task sends, before anything is asked.

        Raises ValueError (key `prompts`) for one that is damaged, for fields that the task does not give, and for
        files of the own folder that have no task.
        """
        for name in names:
            fields, ours = self[name].fields, read(name, OURS / f"{name}.txt").fields
            if fields != ours:
                raise ValueError(
                    f"prompts: {self[name].path} has the fields {', '.join(sorted(fields)) or 'none'}; the task gives "
                    f"{', '.join(sorted(ours))}: use each of them, as {OURS / name}.txt does"
                )
        known = {path.relative_to(OURS) for path in OURS.rglob("*.txt")}
        own = Path(self.own) if self.own else OURS
        if strange := sorted(str(one) for path in own.rglob("*.txt") if (one := path.relative_to(own)) not in known):
            raise ValueError(f"prompts={self.own}: nothing sends {strange[0]}; name it as one of {OURS}")

    def fingerprints(self, names: Sequence[str]) -> dict[str, str]:
        """Hashes of files by name."""
        return {name: self[name].fingerprint for name in names}


def read(name: str, path: Path) -> PromptFile:
    """A file as a prompt. Raises ValueError (key `prompts`) for a template that Jinja cannot read."""
    text = path.read_text("utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["fenced"] = fenced
    pieces = _ROLE.split(text)
    if pieces[0].strip() and len(pieces) > 1:
        raise ValueError(f"prompts: {path}: text before the first [role]; begin with [system] or [user]")
    roles = list(zip(pieces[1::2], pieces[2::2])) if len(pieces) > 1 else [("user", text)]
    try:
        parts = [(role, environment.from_string(content)) for role, content in roles]
        fields = jinja2.meta.find_undeclared_variables(environment.parse(text))
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"prompts: {path}, line {error.lineno}: {error.message}") from error
    return PromptFile(name, path, parts, frozenset(fields), hashlib.sha256(text.encode()).hexdigest()[:12])
