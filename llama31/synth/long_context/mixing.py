"""How often long dialogs are read beside short ones: 0.1 % of all examples were best (report, section 4.3.4).

<folder>/buckets/16K.jsonl, ...    the dialogs of each bucket
<folder>/sources.yaml              data.sources of recipes.sft: each bucket, and how often it is read
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from llama31.dialogs import store
from llama31.runs import files
from llama31.synth.pipeline.shard import DIALOGS

MOST_EPOCHS = 4.0  # readings from which a source says the same too often (as curation warns)


def epochs(dialogs: int, short: int, share: float) -> float:
    """Readings of `dialogs` long ones in a pass over `short` others, so that they are `share` of all that is read.

    Raises ValueError where nothing can be read or the share is not below 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share}: give a share of the examples between 0 and 1, as 0.001")
    if dialogs < 1 or short < 1:
        raise ValueError(f"{dialogs} long and {short} short dialogs: none of them to mix; make some first")
    return share / (1 - share) * short / dialogs


def write(folder: Path, short: str | None, share: float) -> str:
    """Write the buckets and, where files of `short` dialogs are named, the readings; returns what to tell.

    All buckets are read equally often. Raises ValueError (key `short`) where there are no such files.
    """
    counts = _split(folder)
    if not counts:
        return "no long dialogs to mix"
    told = ", ".join(f"{count} of {bucket}" for bucket, count in sorted(counts.items(), key=_size))
    if short is None:
        return f"{told}; name the short dialogs (short=FILES) to be told how often to read them"
    paths = store.files(short)
    if not paths:
        raise ValueError(f"short={short}: no such files; give the JSON lines that the long dialogs are mixed with")
    others = sum(1 for _ in store.records(paths, "short", lambda record: record))
    readings = epochs(sum(counts.values()), others, share)
    lines = [
        f"  long_{one}: {{input: {json.dumps(str(_path(folder, one)))}, epochs: {readings:.6g}}}" for one in counts
    ]
    files.write_whole(folder / "sources.yaml", "sources:\n" + "\n".join(lines) + "\n")
    much = f"; more than {MOST_EPOCHS:.0f} readings repeat too much: make more" if readings > MOST_EPOCHS else ""
    return f"{told}; {share:.2%} of all examples beside {others} short ones is {readings:.4g} epochs of each{much}"


def _split(folder: Path) -> dict[str, int]:
    source = folder / f"{DIALOGS}.jsonl"
    counts: dict[str, int] = {}
    written: dict[str, TextIO] = {}
    with ExitStack() as stack:
        for line in source.open(encoding="utf-8") if source.is_file() else ():
            bucket = json.loads(line)["provenance"]["bucket"]
            if bucket not in written:
                draft = stack.enter_context(files.whole(_path(folder, bucket)))
                written[bucket] = stack.enter_context(draft.open("w", encoding="utf-8"))
            written[bucket].write(line)
            counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def _path(folder: Path, bucket: str) -> Path:
    (folder / "buckets").mkdir(exist_ok=True)
    return folder / "buckets" / f"{bucket}.jsonl"


def _size(entry: tuple[str, int]) -> int:
    return int(entry[0].removesuffix("K")) * (1024 if entry[0].endswith("K") else 1)
