"""A repository without a file that at least five others import: who does, and what is in it (report, section 4.3.4).

The first answer is worked out by a program, the second is the file itself. A judge, who sees the file and what imports
it, says whether the rest tells what it has to do; where it does not, only the first is asked.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama31 import config
from llama31.synth.long_context import imports, questions
from llama31.synth.long_context.imports import Files, Import
from llama31.synth.long_context.lengths import DocumentLengths
from llama31.synth.pipeline.draw import JUDGE, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import Records

IMPORTERS, IMPORTED, MISSING, JUDGED = (f"long_code/{name}" for name in ("importers", "imported", "missing", "judge"))


@dataclass(frozen=True)
class LongCode:
    """See the module."""

    settings: config.LongCodeSynthesis
    lengths: DocumentLengths = field(default_factory=DocumentLengths)
    name: str = "long_code"
    prompts: Sequence[str] = (IMPORTERS, IMPORTED, MISSING, JUDGED, questions.DOCUMENT)

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """One dialog on one missing file."""
        files = _files(item, draw)
        found, unread = imports.found(files)
        draw.counts["files that do not parse"] += len(unread)
        files = {path: text for path, text in files.items() if path not in unread}
        candidates = self.candidates(files, found)
        if not candidates:
            draw.drop(f"no file that {self.settings.importers} others import")
        missing = draw.random.choice(sorted(candidates))
        statements = candidates[missing]
        importers = sorted({one.importer for one in statements})
        shown = self._shown(draw, files, missing, importers)
        document = rendered(shown)
        lines = {path: _statements(files[path], path, statements) for path in importers}
        turns = [self._who(draw, missing, lines)]
        if self._told_by_the_rest(draw, missing, files, importers):
            turns.append((draw.messages(MISSING, path=missing)[0]["content"], fenced(files[missing], missing)))
        else:
            draw.counts["files that the rest does not tell"] += 1
        return questions.dialog(draw, self.lengths, document, turns, {"missing": missing, "importers": importers})

    def candidates(self, files: Files, found: Sequence[Import]) -> dict[str, list[Import]]:
        """Files that may be left out, with the statements that import them.

        Enough others import such a file; it is neither tiny nor large; no other has the same text; no wildcard may
        mean it; and what others take out of it is in it.
        """
        statements: dict[str, list[Import]] = {}
        for one in found:
            if one.importer in files and one.target in files:
                statements.setdefault(one.target, []).append(one)
        open_to_all = imports.wildcards(files)
        texts = [text.strip() for text in files.values()]
        return {
            path: some
            for path, some in statements.items()
            if len({one.importer for one in some}) >= self.settings.importers
            and self.settings.least_tokens <= self.lengths.tokens(files[path]) <= self.settings.most_tokens
            and texts.count(files[path].strip()) == 1
            and path not in open_to_all
            and not undefined(path, files[path], some)
        }

    def _shown(self, draw: ItemDraw, files: Files, missing: str, importers: Sequence[str]) -> dict[str, str]:
        """The importers and as many others as a bucket holds, which is drawn from those that the repository fills.

        Dropped where no bucket holds the importers, or nothing longer than a chunk comes of it.
        """
        tokens = {path: 8 + self.lengths.tokens(path) + self.lengths.tokens(text) for path, text in files.items()}
        spare = tokens[missing] + questions.SPARE_TOKENS
        need, whole = sum(tokens[path] for path in importers) + spare, sum(tokens.values()) + spare
        enough = next((size for size in self.lengths.buckets if size >= whole), self.lengths.longest)
        sizes = [size for size in self.lengths.buckets if need <= size <= enough]
        if not sizes:
            draw.drop("importers longer than all buckets")
        others = sorted(files.keys() - {missing, *importers})
        draw.random.shuffle(others)
        draw.random.shuffle(sizes)
        for size in sizes:
            room = size - need
            shown = {path: files[path] for path in importers}
            for path in others:
                if tokens[path] <= room:
                    room -= tokens[path]
                    shown[path] = files[path]
            if self.lengths.tokens(rendered(shown)) > self.settings.chunk_tokens:
                draw.counts["files without room"] += len(files) - 1 - len(shown)
                return shown
        draw.drop("repository no longer than a chunk")

    @staticmethod
    def _who(draw: ItemDraw, missing: str, lines: Mapping[str, Sequence[str]]) -> tuple[str, str]:
        listed = [(path, "; ".join(f"`{line}`" for line in some)) for path, some in lines.items()]
        answer = draw.messages(IMPORTED, path=missing, importers=[f"`{path}`: {some}" for path, some in listed])
        return draw.messages(IMPORTERS, path=missing)[0]["content"], answer[0]["content"]

    def _told_by_the_rest(self, draw: ItemDraw, missing: str, files: Files, importers: Sequence[str]) -> bool:
        """What a judge says, who sees the file and as many of its importers as a chunk holds."""
        shown, room = [], self.settings.chunk_tokens
        for path in importers:
            if (tokens := self.lengths.tokens(files[path])) <= room:
                room -= tokens
                shown.append(f"=== {path}\n{files[path].rstrip()}")
        fields: dict[str, Any] = {"path": missing, "file": files[missing], "importers": "\n\n".join(shown)}
        return draw.read(JUDGED, questions.VERDICT, model=JUDGE, temperature=0, **fields) == "yes"


def _files(item: SynthesisItem, draw: ItemDraw) -> dict[str, str]:
    """The files of a record: {"files": {PATH: TEXT}}, or {"files": [{"path": PATH, "text": TEXT}]}."""
    given = item.record.get("files")
    if isinstance(given, list) and all(isinstance(one, Mapping) for one in given):
        given = {one.get("path"): one.get("text") for one in given}
    if not isinstance(given, Mapping) or not given:
        draw.drop("no repository: a record needs files, by path")
    kept = {path: text for path, text in given.items() if isinstance(path, str) and isinstance(text, str)}
    draw.counts["files without path or text"] += len(given) - len(kept)
    return kept


def rendered(files: Files) -> str:
    """Files as one document, each behind a line with its path, in the order of paths."""
    return "\n\n".join(f"=== {path}\n{files[path].rstrip()}" for path in sorted(files))


def undefined(path: str, text: str, statements: Sequence[Import]) -> list[str]:
    """Names that others take out of a Python file and that it does not define: nobody could write them by its rest."""
    names = {name for one in statements for name in one.names}
    if not names or not path.endswith(".py"):
        return []
    return sorted(names - _defined(ast.parse(text)))


def _defined(tree: ast.Module) -> set[str]:
    defined: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return defined


def _statements(text: str, path: str, statements: Sequence[Import]) -> list[str]:
    lines = text.splitlines() or [""]
    numbers = sorted({one.line for one in statements if one.importer == path})
    return list(dict.fromkeys(lines[number - 1].strip() for number in numbers if number <= len(lines)))


def fenced(text: str, path: str) -> str:
    """A file as a block of Markdown, whose fence is longer than any inside."""
    ticks = max([2, *(len(run) for run in re.findall(r"`+", text))]) + 1
    return f"{'`' * ticks}{path[path.rfind('.') + 1 :]}\n{text.rstrip()}\n{'`' * ticks}"
