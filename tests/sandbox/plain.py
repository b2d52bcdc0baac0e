"""Runs programs that the tests themselves wrote, without a sandbox: some machines have none."""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llama31.sandbox.limits import Execution

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


@dataclass
class Plain:
    """As the sandbox. `hidden`: tools that this machine is to be without. `commands`: what was run."""

    hidden: frozenset[str] = frozenset()
    wall_s: float = 20.0
    commands: list[Sequence[str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self, command: Sequence[str], files: Mapping[str, str | bytes] | None = None, stdin: str | bytes = b"",
        build: Sequence[Sequence[str]] = (),
    ) -> Execution:  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="plain-") as name, self._lock:
            for file, text in (files or {}).items():
                path = Path(name, file)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(text.encode() if isinstance(text, str) else text)
            for words in build:
                if (ended := self._one(words, name)).returncode != 0:
                    return Execution(ended.returncode, ended.stdout, ended.stderr, "build", 0.0)
            return self._one(command, name)

    def _one(self, words: Sequence[str], folder: str) -> Execution:
        self.commands.append(words)
        if words[0] in self.hidden:
            return Execution(127, "", f"{words[0]}: not found", "finished", 0.0)
        try:
            ended = subprocess.run(
                words, cwd=folder, env=ENVIRONMENT, capture_output=True, timeout=self.wall_s, check=False, input=b""
            )
        except FileNotFoundError:
            return Execution(127, "", f"{words[0]}: not found", "finished", 0.0)
        except subprocess.TimeoutExpired as late:
            return Execution(137, (late.stdout or b"").decode(), (late.stderr or b"").decode(), "timeout", 0.0)
        return Execution(
            ended.returncode, ended.stdout.decode(errors="replace"), ended.stderr.decode(), "finished", 0.0
        )
