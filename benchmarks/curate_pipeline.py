"""From HTML to `.bin/.idx`: the stages of recipes.curate beside datatrove's own blocks, on the same pages.

    python -m recipes.benchmark parts='[curate]' 'pages=[FOLDER,...]'     folders of English HTML

Copies are planted among the pages: exact ones, and ones of which words are changed evenly, so that about 0.95, 0.9 and
0.8 of the shingles of both are the same. Each side runs in a process of its own, one task of each stage after the
other, with Llama 3's vocabulary; what is counted is the processor's time of that process and those it starts, from the
imports on to the last file. Each runs with a tenth of the pages before: the rate is that of the other nine tenths, for
tables and vocabularies are read once by a task of any size.

The peer has the tools that its users take, by their defaults: Trafilatura, Gopher's filters, C4's and MinHash on words
of spaCy, `tokenizers`. It is helped where that is honest: signatures are written in the pass that filters, duplicates
dropped in the pass that tokenizes, Trafilatura and spaCy are imported before it is timed (else the first page exceeds
datatrove's second), and xxHash gets bytes, for since 4 it takes no text, which datatrove 0.10.1 hands it. It does not
do what our defaults do besides: URLs, words unlike the corpus, repeated content, lines, personal data, held-out text.
"""

from __future__ import annotations

import gzip
import importlib
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llama31 import config

PAGES = 800  # evenly drawn from all folders
FEW = 10  # a run of one of so many pages is subtracted
COPIED = 4  # of every so many pages one has a copy
KINDS = {"exact": 1.0, "0.95": 0.95, "0.9": 0.9, "0.8": 0.8}  # by turns
SAME = 0.7  # Jaccard similarity from which on two documents count as duplicates; MinHash finds half of them at 0.72
NGRAM = 5
TAGS = re.compile(r"(<(script|style|head)\b.*?</\2\s*>|<[^>]*>)", re.DOTALL | re.IGNORECASE)
WORD = re.compile(r"&?\w+;?")
SIDES = ("ours", "datatrove")


# --- what both read ---


def changed(html: str, similarity: float) -> str:
    """A page with words written backwards, evenly, so that its shingles have about this Jaccard similarity with it.

    A changed word takes all n shingles that it stands in: of w words and r changes (w - n r) / (w + n r) stay.
    """
    if similarity == 1:
        return html
    every, before = round(NGRAM * (1 + similarity) / (1 - similarity)), 0

    def turned(match: re.Match[str]) -> str:
        nonlocal before
        before += 1
        word = match[0]
        if before < every // 2 or not (word.isascii() and word.isalpha() and len(word) > 3):
            return word
        before -= every
        return word[::-1]

    parts = TAGS.split(html)  # text, a tag, its name where it is one of three, text, ...
    return "".join(WORD.sub(turned, part) if i % 3 == 0 else part for i, part in enumerate(parts) if part and i % 3 < 2)


def write_pages(folders: list[str], work: Path) -> tuple[int, dict[str, str]]:
    """All and few of pages and copies as JSON lines; how many, and what kind each copy is of, `NAME-copy` of `NAME`."""
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.htm*") if file.is_file())
    files = [file for file in files if not file.is_symlink()]
    drawn = [files[i * len(files) // PAGES] for i in range(PAGES)] if len(files) > PAGES else files
    rows = [page(f"page-{i}", file.as_uri(), file.read_bytes()) for i, file in enumerate(drawn)]
    copied = dict(zip((row["id"] for row in rows[::COPIED]), itertools.cycle(KINDS)))
    rows += [copy(row, KINDS[copied[row["id"]]]) for row in rows[::COPIED]]
    for name, some in (("few", rows[::FEW]), ("all", rows)):
        (work / name / "pages").mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (work / name / "pages" / "pages.jsonl").write_text(lines, encoding="utf-8")
    return len(rows), {f"{name}-copy": kind for name, kind in copied.items()}


def page(name: str, url: str, html: bytes) -> dict[str, str]:
    """A record that both readers understand."""
    return {"id": name, "url": url, "date": "2024-01-01T00:00:00Z", "text": html.decode("utf-8", "replace")}


def copy(row: dict[str, str], similarity: float) -> dict[str, str]:
    """The same page from elsewhere."""
    changes = {"id": f"{row['id']}-copy", "url": f"{row['url']}.copy", "text": changed(row["text"], similarity)}
    return row | changes


def tokenizer_file(given: str | None) -> str:
    """Meta's tokenizer.model. Raises ValueError where it is not there."""
    if given is not None:
        return given
    package = find_spec("llama_models")
    if package is None or package.origin is None:
        raise ValueError("llama3_tokenizer=null: the package llama-models is not installed; give a tokenizer.model")
    return str(Path(package.origin).parent / "llama3" / "tokenizer.model")


# --- the two sides, each in its process ---


def ours(work: Path) -> Callable[[], None]:
    """All stages of recipes.curate, by its defaults; not its report, which datatrove has none of."""
    from llama31.curate.running import folder, local, stages

    source = config.PageSource(str(work / "pages"), "jsonl", content="html", language="en")
    run = config.Curate("pipeline", str(work / "ours"), {"pages": source}, tasks=1, workers=1)
    run.tokenizer = config.Tokenizer("tiktoken", str(work.parent / "tokenizer.model"))

    def execute() -> None:
        with local.alone(Path(run.folder)):
            known = stages.stages(run, folder.opened(run).tasks)
            local.execute(run, known, known)

    return execute


def datatrove(work: Path) -> Callable[[], None]:
    """Its own blocks, as FineWeb's pipeline has them, with fewer passes."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # spaCy imports it where it can, 400 MB, and uses none of it
    for name in ("spacy", "trafilatura"):  # before the process that extracts is forked from this one
        importlib.import_module(name)
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import create_hash_func
    from datatrove.utils.logging import logger

    logger.remove()
    at, tokenizer = str(work / "datatrove"), str(work.parent / "hf" / "tokenizer.json")

    def run(name: str, pipeline: list[Any], tasks: int = 1) -> None:
        LocalPipelineExecutor(pipeline, tasks, workers=1, logging_dir=f"{at}/logs/{name}").run()

    def execute() -> None:
        signatures = MinhashDedupSignature(f"{at}/signatures")
        digest = create_hash_func(signatures.config.hash_config, bytes)
        signatures._hash_func = lambda text: digest(text.encode())
        rules = [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter()]
        read = JsonlReader(str(work / "pages"))
        run("filter", [read, Trafilatura(), *rules, JsonlWriter(f"{at}/filtered"), signatures])
        run("buckets", [MinhashDedupBuckets(f"{at}/signatures", f"{at}/pairs")], MinhashConfig().num_buckets)
        run("clusters", [MinhashDedupCluster(f"{at}/pairs", f"{at}/listed")])
        writer = MegatronDocumentTokenizer(
            f"{at}/tokens", tokenizer_name_or_path=tokenizer, eos_token="<|end_of_text|>"
        )
        run("tokens", [JsonlReader(f"{at}/filtered"), MinhashDedupFilter(f"{at}/listed"), writer])

    return execute


def measured(execute: Callable[[], None]) -> dict[str, float]:
    """Seconds of the processor in this process and those that it started, of the clock, and its peak of memory."""
    before, begun = sum(os.times()[:4]), time.monotonic()
    execute()
    status = Path("/proc/self/status").read_text(encoding="ascii")  # getrusage counts the parent's before exec as well
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
    return {"cpu_s": sum(os.times()[:4]) - before, "wall_s": time.monotonic() - begun, "peak_bytes": peak}


def run_side(side: str, work: Path, timeout_s: float) -> dict[str, float]:
    """One of the two, in a new process with one thread."""
    command = [sys.executable, "-m", "benchmarks.curate_pipeline", "--side", side, str(work)]
    threads = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(work / f"{side}.log", "w+", encoding="utf-8") as log:  # datatrove tells of every page that takes too long
        done = subprocess.run(
            command, env=os.environ | threads, stdout=-1, stderr=log, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            log.seek(0)
            raise config.RunError(f"{side} failed: {log.read()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- what came out ---


@dataclass(frozen=True)
class Deduplicated:
    """Texts by name that came to MinHash, the names of those that it dropped, and the tokens in the end."""

    came: dict[str, str]
    dropped: set[str]
    tokens: int


def outcome(side: str, work: Path) -> Deduplicated:
    """Of a side that has run."""
    from llama31.curate.passage.shards import ShardReader

    tokens = sum(path.stat().st_size for path in (work / side).rglob("tokens/**/*.bin")) // 4
    if side == "ours":
        came, kept = (
            {one.id: one.text for one in ShardReader(sorted((work / "ours" / stage / "documents").iterdir())).run(None)}
            for stage in ("filter", "deduplicate")
        )
        return Deduplicated(came, came.keys() - kept.keys(), tokens)
    with gzip.open(work / "datatrove/filtered/00000.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    listed = (work / "datatrove/listed/000000.remove").read_bytes()
    dropped = {rows[place]["id"] for (place,) in struct.iter_unpack("<I", listed)}
    return Deduplicated({row["id"]: row["text"] for row in rows}, dropped, tokens)


def recall(found: Deduplicated, kinds: dict[str, str]) -> dict[str, tuple[int, int]]:
    """Of each kind: copies of which one of both went, and copies that came together with their pages."""
    result = dict.fromkeys(KINDS, (0, 0))
    for copy, kind in kinds.items():
        both = {copy, copy.removesuffix("-copy")}
        if both <= found.came.keys():
            result[kind] = (result[kind][0] + bool(both & found.dropped), result[kind][1] + 1)
    return result


def precision(found: Deduplicated) -> float:
    """Of what went, the share that has another document with a similarity of SAME at least among all that came."""
    shingles = {name: shingled(text) for name, text in found.came.items()}
    places: dict[str, list[str]] = defaultdict(list)
    for name, own in shingles.items():
        for shingle in own:
            places[shingle].append(name)
    return sum(has_same(name, shingles, places) for name in found.dropped) / max(1, len(found.dropped))


def shingled(text: str) -> set[str]:
    """Runs of five words."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))}


def has_same(name: str, shingles: dict[str, set[str]], places: dict[str, list[str]]) -> bool:
    """Whether a document has another one like it, by exact counting."""
    common = Counter(other for shingle in shingles[name] for other in places[shingle])
    sizes = len(shingles[name])
    return any(
        count >= SAME * (sizes + len(shingles[other]) - count) for other, count in common.items() if other != name
    )


# --- the table ---


def row(side: str, speed: float, cost: dict[str, dict[str, float]], found: Deduplicated, kinds: dict[str, str]) -> str:
    """A side's figures in Markdown."""
    counted = recall(found, kinds)
    hits, all_ = (sum(one[i] for one in counted.values()) for i in (0, 1))
    by_kind = ", ".join(f"{kind} {hit}/{of}" for kind, (hit, of) in counted.items())
    cells = [
        f"{speed:.1f}",
        f"{cost['all']['cpu_s']:.1f} s, of a tenth {cost['few']['cpu_s']:.1f} s",
        f"{cost['all']['peak_bytes'] / 1e6:.0f} MB",
        f"{len(found.came)}, {len(found.came) - len(found.dropped)}",
        f"{found.tokens / 1e6:.2f}M",
        f"{hits / max(1, all_):.1%} ({by_kind})",
        f"{precision(found):.1%}",
    ]
    return "| " + " | ".join([side, *cells]) + " |"


def table(folders: list[str], tokenizer: str | None = None, timeout_s: float = 600) -> str:
    """Both sides, in Markdown. Raises ValueError where there are no pages, or what the peer needs is not installed."""
    if lacking := [name for name in ("datatrove", "spacy", "trafilatura") if find_spec(name) is None]:
        raise ValueError(f"parts=[curate]: {', '.join(lacking)} not installed; pip install them, elsewhere perhaps")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        pages, kinds = write_pages(folders, work)
        if not kinds:
            raise ValueError(f"pages={folders}: no HTML there; give folders of it")
        prepare(tokenizer_file(tokenizer), work)
        costs = {side: {part: run_side(side, work / part, timeout_s) for part in ("few", "all")} for side in SIDES}
        rates = {side: rate(pages, cost) for side, cost in costs.items()}
        rows = [row(side, rates[side], costs[side], outcome(side, work / "all"), kinds) for side in SIDES]
    heads = ["documents per core-second", "processor", "peak memory", "documents before and after MinHash", "tokens"]
    heads = [f"{pages} documents", *heads, "recall of copies", "precision"]
    ratio = f"ratio: {rates['ours'] / rates['datatrove']:.1f}"
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *rows, "", ratio])


def rate(pages: int, cost: dict[str, dict[str, float]]) -> float:
    """Documents per second of the processor, without what a run of few takes."""
    return (pages - -(-pages // FEW)) / (cost["all"]["cpu_s"] - cost["few"]["cpu_s"])


def prepare(path: str, work: Path) -> None:
    """The vocabulary in both forms."""
    from llama31.tokens import tokenizers

    (work / "tokenizer.model").write_bytes(Path(path).read_bytes())
    tokenizers.load(config.Tokenizer("tiktoken", path)).save_hf(work / "hf")


def main(argv: Iterable[str]) -> None:
    """The table, or one side of it."""
    first, *rest = argv
    if first == "--side":
        side, work = rest[0], Path(rest[1])
        print(json.dumps(measured({"ours": ours, "datatrove": datatrove}[side](work))))
    else:
        print(table([first, *rest]))


if __name__ == "__main__":
    main(sys.argv[1:])
