"""Labels of documents from a chat model, through any server with OpenAI's API; what training of a scorer begins with.

    <folder>/criteria.json    what was asked, and how much of a document was shown
    <folder>/labels.jsonl     a line per document, appended every second: document, id, label (null where the answer is
                              none), answer, finish, model, url; or why it was refused
    <folder>/documents.jsonl  document, id, metadata and the text that was shown
    <folder>/summary.json     counts by label

labels.jsonl only grows: whoever is killed goes on with what is missing. What was refused is asked for again at the
next start; an answer without a label is not, for at temperature 0 it would be the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datatrove.data import Document

from llama31 import config
from llama31.curate.scoring.criteria import Criteria
from llama31.runs import files
from llama31.sampling import capability_probe
from llama31.sampling.drawing import Ledger, read_lines
from llama31.sampling.pool import Pool
from llama31.sampling.servers import Capabilities, Refused, Request

CRITERIA, LABELS, DOCUMENTS, SUMMARY = "criteria.json", "labels.jsonl", "documents.jsonl", "summary.json"
CHARACTERS = 3000
ANSWER_TOKENS = 128
JUDGED = 20  # answers from which on it is judged whether they are any good
FLUSH_S = 1.0
NO_LABEL, REFUSED = "no label", "refused"


@dataclass(frozen=True)
class Labelled:
    """A document's text, as it was shown, its label, and its language, ISO 639-1, where that is known."""

    document: str
    text: str
    label: str
    language: str = ""


def request(criteria: Criteria, text: str, max_new_tokens: int = ANSWER_TOKENS) -> Request:
    """The question about a text, at temperature 0."""
    return Request((), ({"role": "user", "content": criteria.prompt(text)},), 0.0, 1.0, max_new_tokens, seed=1)


def shown(text: str, characters: int = CHARACTERS) -> str:
    """What of a text is shown: its beginning, as a scorer reads it, cut at white space where there is some."""
    text = _valid(text).replace("\0", " ").strip()
    if len(text) <= characters:
        return text
    cut = text[:characters]
    return cut[: max(cut.rfind(" "), cut.rfind("\n"))].rstrip() if len(cut.split(None, 1)) > 1 else cut


def collect(
    folder: str | Path,
    documents: Sequence[Document],
    criteria: Criteria,
    settings: config.Server,
    characters: int = CHARACTERS,
    max_new_tokens: int = ANSWER_TOKENS,
    most_without: float = 0.5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Ask for the labels that are missing in `folder`, write them, and return what summary.json says.

    A text that stands there twice is asked about once; empty ones are counted. What was asked before with other
    documents stays. `progress` takes (done, all).

    Args:
        characters: how much of a document is shown; 3,000, ours, are some 750 tokens of English, where an encoder
            reads 512.
        max_new_tokens: longest answer: a sentence of reasons and the label.
        most_without: share of answers without a label, out of 20 or more, that ends it.

    Raises RunError where no server answers any more, and where too many answers have no label; ValueError where the
    folder holds answers to another question.
    """
    folder = Path(folder)
    texts, left_out = _texts(documents, characters)
    _settle(folder, criteria, characters)
    everything = {line["document"]: line for line in read_lines(folder / DOCUMENTS)} | texts
    files.write_whole(folder / DOCUMENTS, "".join(json.dumps(line) + "\n" for line in everything.values()))
    known = {line["document"] for line in _answered(folder)}
    missing = [key for key in texts if key not in known]
    if missing:
        example = request(criteria, texts[missing[0]]["text"], max_new_tokens)
        pool = Pool(capability_probe.connect_chat(settings, example), settings.concurrency)
        asked = ((key, request(criteria, texts[key]["text"], max_new_tokens)) for key in missing)
        lines = (
            {"document": key, "id": texts[key]["id"], **_line(criteria, answers), **_origin(server)}
            for key, answers, server in pool.run(asked)
        )
        counts = Counter[str]()
        with contextlib.closing(_kept(folder / LABELS, lines)) as kept:
            for done, line in enumerate(kept, start=1):
                counts[_kind(line)] += 1
                progress(done, len(missing))
                _enough(counts, most_without, line, folder)
    return _summary(folder, everything, left_out)


def read(folder: str | Path) -> tuple[list[Labelled], dict[str, Any]]:
    """What is labelled in a folder, sorted by document, and what its criteria.json says.

    Raises ValueError where there is nothing.
    """
    folder = Path(folder)
    texts = {line["document"]: line for line in read_lines(folder / DOCUMENTS)}
    labels = {line["document"]: line["label"] for line in _answered(folder) if line["label"] is not None}
    known = sorted(labels.keys() & texts.keys())
    if not known:
        raise ValueError(f"labels={folder}: no label in it; make some by task=label")
    asked: dict[str, Any] = json.loads((folder / CRITERIA).read_text("utf-8"))
    languages = {key: str(texts[key].get("metadata", {}).get("language") or "") for key in known}
    return [Labelled(key, texts[key]["text"], labels[key], languages[key]) for key in known], asked


def _valid(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _texts(documents: Sequence[Document], characters: int) -> tuple[dict[str, dict[str, Any]], Counter[str]]:
    texts: dict[str, dict[str, Any]] = {}
    left_out = Counter[str]()
    for document in documents:
        text = shown(document.text, characters)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        if not text or key in texts:
            left_out["empty" if not text else "there before"] += 1
            continue
        metadata = {name: document.metadata.get(name, "") for name in ("url", "source", "language")}
        texts[key] = {"document": key, "id": _valid(document.id), "metadata": metadata, "text": text}
    return texts, left_out


def _settle(folder: Path, criteria: Criteria, characters: int) -> None:
    """State in the folder what is asked. Raises ValueError where it was something else."""
    asked = {"fingerprint": criteria.fingerprint, "characters": characters, "criteria": asdict(criteria)}
    path = folder / CRITERIA
    if path.is_file():
        before = json.loads(path.read_text("utf-8"))
        if (before["fingerprint"], before["characters"]) != (criteria.fingerprint, characters):
            raise ValueError(
                f"output={folder}: it holds answers to another question, {before['criteria']['name']} with "
                f"{before['characters']} characters shown; give another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, json.dumps(asked, indent=1, ensure_ascii=False) + "\n")


def _answered(folder: Path) -> Iterator[dict[str, Any]]:
    """Lines with an answer, whatever it says."""
    return (line for line in read_lines(folder / LABELS) if REFUSED not in line)


def _kept(path: Path, lines: Iterator[dict[str, Any]]) -> Generator[dict[str, Any]]:
    """The same lines, appended to a file once a second: on disk at the latest when this ends, however it does."""
    waiting: list[dict[str, Any]] = []
    written_s = time.monotonic()
    with Ledger(path) as ledger:
        try:
            for line in lines:
                waiting.append(line)
                if time.monotonic() - written_s >= FLUSH_S:
                    ledger.append(waiting)
                    waiting, written_s = [], time.monotonic()
                yield line
        finally:
            ledger.append(waiting)


def _line(criteria: Criteria, answers: Any) -> dict[str, Any]:
    if isinstance(answers, Refused):
        return {REFUSED: str(answers)}
    (answer,) = answers
    label = None if answer.wrong is not None else criteria.read(answer.text)
    return {"label": label, "answer": answer.text, "finish": answer.finish}


def _origin(server: Capabilities) -> Mapping[str, str]:
    return {"model": server.model, "url": server.url}


def _kind(line: Mapping[str, Any]) -> str:
    return REFUSED if REFUSED in line else NO_LABEL if line["label"] is None else str(line["label"])


def _enough(counts: Counter[str], most: float, line: Mapping[str, Any], folder: Path) -> None:
    bad, total = counts[NO_LABEL] + counts[REFUSED], counts.total()
    if total >= JUDGED and bad > most * total:
        raise config.RunError(
            f"{bad} of {total} answers have no label, the last: {line.get(REFUSED) or line.get('answer')!r}. Ask "
            f"another model; {folder / LABELS} keeps the others"
        )


def _summary(folder: Path, texts: Mapping[str, Any], left_out: Counter[str]) -> dict[str, Any]:
    last = {line["document"]: line for line in read_lines(folder / LABELS) if line["document"] in texts}
    counts = Counter(_kind(line) for line in last.values())
    summary = {"documents": len(texts), "labels": dict(sorted(counts.items())), "left_out": dict(left_out)}
    files.write_whole(folder / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary
