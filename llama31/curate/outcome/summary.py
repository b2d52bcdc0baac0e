"""All tasks' records put together: what each block let through and removed, by reason, with texts to read.

Tokens of what was removed are an estimate, and named so: by the bytes per token of the texts that were drawn of it.
`shortened` is what a block took out of documents that stay; `mixture`, what comes after, is put in by the recipe.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llama31.curate.outcome import sources
from llama31.curate.passage.meters import size
from llama31.curate.running import folder as begun
from llama31.curate.running import ledger
from llama31.curate.running.shares import WARNING
from llama31.curate.running.stages import CurationStage
from llama31.runs import files

NAME = "report.json"
# Of a block's own counts those that its meter has, or that say how its documents are long.
PLAIN = ("total", "forwarded", "dropped", "doc_len", "doc_len_tokens", "documents", "input_files")
LOST = ("empty", "unreadable")  # what is counted where a block is no filter
LEFT_OUT = "left out: "
NO_SCORE = "no score"  # counted by MinHash's signatures of each document without one

Encode = Callable[[str], int]  # how many tokens a text has


def summary(
    folder: Path, name: str, known: list[CurationStage], samples: int, encode: Encode | None = None
) -> dict[str, Any]:
    """The whole report, as JSON can hold it. Stages that are not done are there without blocks."""
    record = files.read_object(folder / begun.NAME) or {}
    keys = record.get("keys", {})
    packed = next((sources.packed_sources(folder, stage) for stage in known if stage.name == "tokens"), {})
    return {
        "name": name,
        "folder": str(folder),
        "shards": record.get("tasks"),
        "keys": {key: value for key, value in keys.items() if not key.startswith(begun.VERSION)},
        "versions": {key.removeprefix(begun.VERSION): keys[key] for key in keys if key.startswith(begun.VERSION)},
        "commits": record.get("commits", []),
        "inputs": record.get("inputs", {}),
        "stages": [_stage(folder, stage, samples, encode) for stage in known],
        "mixture": None,
        "packed": {
            source: {split: {k: one[split][k] for k in ("tokens", "documents")} for split in ("train", "heldout")}
            for source, one in packed.items()
        },
    }


def _stage(folder: Path, stage: CurationStage, samples: int, encode: Encode | None) -> dict[str, Any]:
    records = [one for one in (ledger.read(folder, stage.name, rank) for rank in range(stage.tasks)) if one]
    drawn = [files.read_object(folder / stage.name / "samples" / f"{one['rank']:05d}.json") or {} for one in records]
    texts = _texts(drawn, samples)
    return {
        "name": stage.name,
        "what": stage.what,
        "tasks": stage.tasks,
        "done": len(records),
        "cpu_seconds": round(sum(one["cpu_seconds"] for one in records), 3),
        "peak_bytes": max((one["peak_bytes"] for one in records), default=0),
        "written_bytes": sum(left.bytes for one in records for left in ledger.left(one)),
        "blocks": list(_blocks(records, texts, encode)),
        "samples": texts,
    }


def _texts(drawn: list[dict[str, Any]], most: int) -> dict[str, Any]:
    """Of the texts that tasks drew those with the smallest hashes."""
    removed: dict[str, dict[str, list[dict[str, Any]]]] = {}
    shortened: dict[str, list[dict[str, Any]]] = {}
    for one in drawn:
        for block, texts in one.get("shortened", {}).items():
            shortened.setdefault(block, []).extend(texts)
        for block, reasons in one.get("removed", {}).items():
            for reason, texts in reasons.items():
                removed.setdefault(block, {}).setdefault(reason, []).extend(texts)
    return {
        "kept": _first([text for one in drawn for text in one.get("kept", [])], most),
        "removed": {
            block: {reason: _first(texts, most) for reason, texts in sorted(reasons.items())}
            for block, reasons in removed.items()
        },
        "shortened": {block: _first(texts, most) for block, texts in shortened.items()},
    }


def _first(texts: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    return sorted(texts, key=lambda text: (text["drawn"], text["id"]))[:most]


def _blocks(records: list[dict[str, Any]], drawn: Mapping[str, Any], encode: Encode | None) -> Iterator[dict[str, Any]]:
    """Every block once, in the order of the pipeline; readers of several sources stand before the others."""
    together: dict[str, dict[str, Any]] = {}
    for record in records:
        before, source = (0, 0), dict[str, Any]()
        for block in record["blocks"]:
            into = together.setdefault(block["name"], _empty(block))
            into["documents_in"] += before[0]
            into["bytes_in"] += before[1]
            for key in ("documents", "bytes", "seconds"):
                into[key] += block[key]
            for key in ("languages", "lengths", "counts"):
                _add(into[key], block[key])
            if into["reads"]:  # a reader hands on what those before it read
                for key in ("languages", "lengths"):
                    _add(into[key], {name: -number for name, number in source.get(key, {}).items()})
                source = block
            for reason, one in block["removed"].items():
                _add(into["removed"].setdefault(reason, {}), one)
            if "shortened" in block:
                into["shortened"] = into["shortened"] or {}
                _add(into["shortened"], block["shortened"])
            before = (block["documents"], block["bytes"])
    for block in sorted(together.values(), key=lambda one: not one["reads"]):
        if block["shortened"] is not None:
            cut = drawn["shortened"].get(block["name"], [])
            block["shortened"]["tokens_estimated"] = _tokens(block["shortened"]["bytes"], cut, encode)
        yield _finished(block, drawn["removed"].get(block["name"], {}), encode)


def _empty(block: dict[str, Any]) -> dict[str, Any]:
    numbers = {"documents_in": 0, "bytes_in": 0, "documents": 0, "bytes": 0, "seconds": 0.0}
    reads = block["class"] == "Files"
    return {
        "name": block["name"],
        "reads": reads,
        **numbers,
        "languages": {},
        "lengths": {},
        "counts": {},
        "removed": {},
        "shortened": None,
    }


def _add(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        into[key] = into.get(key, 0) + value


def _finished(block: dict[str, Any], drawn: Mapping[str, Any], encode: Encode | None) -> dict[str, Any]:
    counts = block["counts"]
    if block["reads"]:  # behind those that read before it
        for key in ("languages", "lengths"):
            block[key] = {name: number for name, number in block[key].items() if number}
        block["documents"] -= block["documents_in"]
        block["bytes"] -= block["bytes_in"]
        block["documents_in"] = block["bytes_in"] = 0
        lost = {key.removeprefix(LEFT_OUT): value for key, value in counts.items() if key.startswith(LEFT_OUT)}
    else:
        lost = {key: counts[key] for key in LOST if key in counts}
    for reason, documents in sorted(lost.items()):
        block["removed"].setdefault(reason, {"documents": int(documents), "bytes": None})
    for reason, removed in block["removed"].items():
        removed["tokens_estimated"] = _tokens(removed["bytes"], drawn.get(reason, []), encode)
    shown = (*PLAIN, *LOST)
    block["counts"] = {
        key: value
        for key, value in sorted(counts.items())
        if key not in shown and not key.startswith(("dropped_", LEFT_OUT))
    }
    block["seconds"] = round(block["seconds"], 3)
    return block


def _tokens(removed: int | None, drawn: list[dict[str, Any]], encode: Encode | None) -> int | None:
    texts = [text["text"] for text in drawn]
    tokens = sum(map(encode, texts)) if encode is not None else 0
    return round(removed * tokens / max(1, sum(map(size, texts)))) if removed is not None and tokens else None


def said(content: dict[str, Any]) -> str:
    """How many documents were read and are left, and why most others went, in a line."""
    blocks = [block for stage in content["stages"] for block in stage["blocks"]]
    gone: Counter[str] = Counter()
    for block in blocks:
        gone.update({reason: one["documents"] for reason, one in block["removed"].items()})
    read = sum(block["documents"] for block in blocks if block["reads"])
    lost = sum(one["documents"] for block in blocks if not block["reads"] for one in block["removed"].values())
    most = ", ".join(f"{reason} {documents:,}" for reason, documents in gone.most_common(3))
    return f"{read:,} documents read, {read - lost:,} left" + (f"; of the others most: {most}" if most else "")


def warnings(content: dict[str, Any]) -> list[str]:
    """What blocks warn of, once, and a score that no document has had."""
    blocks = [block for stage in content["stages"] for block in stage["blocks"]]
    found = {name for block in blocks for name in block["counts"] if name.startswith(WARNING)}
    if any(0 < block["counts"].get(NO_SCORE, 0) == block["documents_in"] for block in blocks):
        found.add(
            f"{WARNING}minhash.score={content['keys'].get('minhash.score')}: no document has a number there, and of "
            "near duplicates any stayed; give cited, or the field of records that holds one"
        )
    return sorted(found)


def write(folder: Path, content: dict[str, Any]) -> Path:
    """Write report.json."""
    path = folder / NAME
    files.write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path
