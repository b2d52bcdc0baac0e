"""Questions on an attached file (report, section 4.3.5): its text, or the first rows of a table, stands in the prompt.

A question on a table (.csv .tsv .json .jsonl) is answered by Python, which finds the file in its folder; others from
the text, with Python where it helps. No figure of an answer may be from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama31 import config
from llama31.synth.pipeline import items, parsing
from llama31.synth.pipeline.draw import ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import Records
from llama31.synth.tools import single, trajectories
from llama31.synth.tools.stand_ins import documents
from llama31.synth.tools.trajectories import ToolTask, Trajectories

QUERY, ATTACHED = "tool_files/query", "tool_files/attached"
INTERPRETER = "code_interpreter"


@dataclass(frozen=True)
class ToolFiles:
    """See the module."""

    settings: config.ToolFilesSynthesis
    steps: Trajectories
    name: str = "tool_files"
    prompts: Sequence[str] = (QUERY, ATTACHED, *trajectories.PROMPTS)

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """A dialog on one file, and pairs of its messages."""
        path = Path(item.record["file"])
        content = path.read_bytes()
        if len(content) > self.settings.most_bytes:
            draw.drop(f"file of more than {self.settings.most_bytes} bytes")
        try:
            file = documents.read(path.name, content)
        except documents.UnreadableFile as error:
            draw.drop(str(error))
        if not file.is_table and len(file.text) > self.settings.characters:
            draw.drop(f"text of more than {self.settings.characters} characters")
        shown = beginning(file.text, self.settings.preview_lines) if file.is_table else file.text
        draw.counts[f"files: {file.kind}"] += 1
        request = draw.read(QUERY, parsing.said, name=file.name, text=shown, table=file.is_table)
        fields = {"name": file.name, "text": shown, "request": request, "whole": shown == file.text}
        question = draw.messages(ATTACHED, **fields)[0]["content"]
        least = 1 if file.is_table else 0
        task = ToolTask(question, [INTERPRETER], least, self.settings.most_calls, {file.name: content}, [])
        return single.records(self.steps.make(draw, task))


def beginning(text: str, lines: int) -> str:
    """The first lines of a text; a very long line, as of JSON, is cut."""
    return "\n".join(line[:1000] for line in text.splitlines()[:lines])


def read(given: str, limit: int | None = None) -> Iterator[SynthesisItem]:
    """An item for each file of these folders of a kind that is read; the others are named. Raises ValueError (`input`).

    Raises ValueError too where a package that reads one of them is missing, and for two of one name.
    """
    return items.distinct(_each(given, limit))


def _each(given: str, limit: int | None) -> Iterator[SynthesisItem]:
    roots = [Path(part.strip()) for part in given.split(",") if part.strip()]
    paths = sorted({path for root in roots for path in (root.rglob("*") if root.is_dir() else [root])})
    known = [path for path in paths if path.is_file() and documents.suffix(path.name) in documents.READERS]
    if not known:
        raise ValueError(f"input={given}: no file in it of {', '.join(documents.READERS)}; give a folder with some")
    if packages := documents.missing(sorted({documents.suffix(path.name) for path in known})):
        raise ValueError(f"input={given}: files in it need packages; pip install {' '.join(packages)}")
    for index, path in enumerate(known[:limit]):
        root = next(root for root in roots if path == root or root in path.parents)
        name = path.relative_to(root).as_posix() if path != root else path.name
        yield SynthesisItem(name, index, {"id": name, "file": str(path.resolve())}, "", str(path))
