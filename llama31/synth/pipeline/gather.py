"""All shards together: records in the order of the input, each once, with where they come from, and what was counted.

    <folder>/dialogs.jsonl, preferences.jsonl, ...   records of a kind: id, provenance, and what training reads
    <folder>/summary.json                            items, dropped by reason, repeated, counts of the programs

A function of the shards' results and of the input's items alone: written whole, summary.json last.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from llama31 import config
from llama31.runs import files
from llama31.synth.pipeline.journal import RESULTS

SUMMARY = "summary.json"
UNCOUNTED = ("id", "provenance")


def results(
    folder: Path, input_places: Mapping[str, int] | None = None, others: set[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The results of all shards, in the order of the input; an item that two shards have counts once.

    input_places: items of the input and their places, which may have changed since; a result of another is left out,
    and its item added to `others`. None: all, by the places that they had. Held in memory is where each begins, not
    the results.
    """
    places: list[tuple[int, str, Path, int]] = []
    for path in sorted(folder.glob(f"shards/*/{RESULTS}")):
        with path.open("rb") as file:
            begin = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                found = json.loads(line)
                if input_places is None:
                    places.append((found["index"], found["item"], path, begin))
                elif (index := input_places.get(found["item"])) is not None:
                    places.append((index, found["item"], path, begin))
                elif others is not None:
                    others.add(found["item"])
                begin += len(line)
    seen: set[str] = set()
    with ExitStack() as stack:
        opened = {path: stack.enter_context(path.open("rb")) for path in {place[2] for place in places}}
        for _, item, path, begin in sorted(places, key=lambda place: (place[0], place[1])):
            if item not in seen:
                seen.add(item)
                opened[path].seek(begin)
                yield json.loads(opened[path].readline())


def gather(
    folder: Path,
    settings: Mapping[str, Any],
    input_places: Mapping[str, int] | None = None,
    seen_by: Callable[[Mapping[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Write the files of all records and return what summary.json says.

    Records that say the same are written once, the first of the input. Files of kinds that are none any more go.

    Args:
        settings: what answers were drawn with; part of every record's provenance.
        input_places: see `results`; items of the input without a result are counted as missing, results of others as
            of_other_input.
        seen_by: is shown each result.

    Raises RunError, and writes nothing, where no item of the input has a result: what follows would go on with nothing.
    """
    counts, dropped, kinds, repeated = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    items, prompts, models = Counter[str](), dict[str, str](), dict[str, set[str]]()
    seen, others = set[bytes](), set[str]()
    with ExitStack() as stack:
        written: dict[str, TextIO] = {}
        for result in results(folder, input_places, others):
            seen_by(result)
            items["kept" if result["dropped"] is None else "dropped"] += 1
            counts.update(result["counts"])
            prompts |= result["provenance"]["prompts"]
            for role, names in result["provenance"]["models"].items():
                models.setdefault(role, set()).update(names)
            if result["dropped"] is not None:
                dropped[result["dropped"]] += 1
            for kind, number, record in _records(result):
                if (said := _digest(kind, record)) in seen:
                    repeated[kind] += 1
                    continue
                seen.add(said)
                kinds[kind] += 1
                if kind not in written:
                    draft = stack.enter_context(files.whole(folder / f"{kind}.jsonl"))
                    written[kind] = stack.enter_context(draft.open("w", encoding="utf-8"))
                provenance = {**result["provenance"], **settings, **record.get("provenance", {})}
                name = {"id": f"{result['provenance']['task']}-{result['item']}-{kind}-{number}"}
                line = {**name, **record, "provenance": provenance}
                written[kind].write(json.dumps(line, ensure_ascii=False) + "\n")
    if input_places and not items:
        beside = f", and the {len(others):,} that there are belong to another input" if others else ""
        raise config.RunError(
            f"folder={folder}: no result of any of the input's {len(input_places):,} items{beside}. Why the last was "
            "refused stands above, or in the logs of the shards; the same command, without part=gather, asks again"
        )
    summary = {
        "items": items.total(),
        **({"missing": len(input_places) - items.total()} if input_places is not None else {}),
        **({"of_other_input": len(others)} if others else {}),
        "kept": items["kept"],
        "dropped": dict(dropped.most_common()),
        "records": dict(sorted(kinds.items())),
        "repeated": dict(sorted(repeated.items())),
        "counts": dict(sorted(counts.items())),
        "prompts": dict(sorted(prompts.items())),
        "models": {role: sorted(names) for role, names in sorted(models.items())},
        "settings": dict(settings),
    }
    earlier = files.read_object(folder / SUMMARY) or {}
    for kind in earlier.get("records", {}).keys() - kinds.keys():
        (folder / f"{kind}.jsonl").unlink(missing_ok=True)
    files.write_whole(folder / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary


def _records(result: Mapping[str, Any]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for kind, records in result["records"].items():
        for number, record in enumerate(records):
            yield kind, number, record


def _digest(kind: str, record: Mapping[str, Any]) -> bytes:
    said = {name: value for name, value in record.items() if name not in UNCOUNTED}
    return hashlib.sha256(json.dumps([kind, said], sort_keys=True).encode()).digest()[:16]
