"""Rates of deduplication per core: signatures beside datatrove's own stage, lines, and the stages that merge files.

    python -m benchmarks.curate_duplicates FOLDER...     folders of HTML, as Debian's documentation packages unpacked

Pages become text first, which is not timed. Then each stage runs whole, as a task does, with its files, in one process:
ours, datatrove's with a tokenizer of one regular expression, and datatrove's as it comes, where spaCy is installed. All
seconds are of the processor. datatrove 0.10.1 hands text to xxHash, which from 4 on takes bytes alone; here it gets
bytes.

The stages that merge are measured on files of random numbers: a million documents of one bucket, a tenth of them with
another one's signature, and their pairs.
"""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.io import get_datafolder
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupSignature
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.logging import logger
from datatrove.utils.word_tokenizers import WordTokenizer

from llama31.curate.duplicates import shards
from llama31.curate.duplicates.buckets import MinhashBuckets
from llama31.curate.duplicates.clusters import Clusters
from llama31.curate.duplicates.lines import LineDuplicates, LineSignatures, RemoveLines
from llama31.curate.duplicates.removal import DropListed
from llama31.curate.duplicates.signatures import PREFERENCE, PREFERENCES, MinhashSignatures, record
from llama31.curate.duplicates.urls import UrlDuplicates, UrlSignatures
from llama31.curate.extraction import page
from llama31.curate.reading.documents import declared_language

PAGES = 1200  # evenly drawn from each folder
BY_SPACY = 60  # pages of them for spaCy, which is slow
MERGED = 1_000_000


class PatternTokenizer(WordTokenizer):
    """Runs of letters and digits, as fast as Python can."""

    def word_tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


def texts(folder: str) -> list[Document]:
    """Documents of a folder's pages."""
    files = sorted(path for path in Path(folder).rglob("*.htm*") if path.is_file() and not path.is_symlink())
    result = []
    for path in files[:: max(1, len(files) // PAGES)]:
        html = path.read_bytes().decode("utf-8", "replace")
        metadata = {"language": declared_language(html)[:2] or "en", "url": path.as_uri(), "date": ""}
        if text := page.extract(html).text:
            result.append(Document(text=text, id=str(path), metadata=metadata))
    return result


def seconds(run: Callable[[], Any]) -> float:
    """Of the processor, for a step and all that it lets through."""
    start = time.process_time()
    if (result := run()) is not None:
        for _ in result:
            pass
    return time.process_time() - start


def theirs(folder: str, tokenizer: Any) -> MinhashDedupSignature:
    """datatrove's first stage."""
    step = MinhashDedupSignature(folder, MinhashConfig(), tokenizer)
    digest = create_hash_func(step.config.hash_config, bytes)
    step._hash_func = lambda text: digest(text.encode())
    return step


def rate(step: Any, amount: float, documents: list[Document]) -> float:
    """An amount per second of a step."""
    shown = iter(copy.deepcopy(documents))
    return amount / seconds(lambda: step.run(shown, 0, 1))


def signed(documents: list[Document], folder: str) -> dict[str, float]:
    """Documents per second that are signed."""
    count, few = len(documents), documents[:: max(1, len(documents) // BY_SPACY)]
    found = {"documents": float(count), "kB": megabytes(documents) / count * 1e3}
    found["ours"] = rate(MinhashSignatures(f"{folder}/ours"), count, documents)
    found["regex"] = rate(theirs(f"{folder}/regex", PatternTokenizer()), count, documents)
    if importlib.util.find_spec("spacy"):
        step = theirs(f"{folder}/spacy", {"de": "deu"}.get(documents[0].metadata["language"], "eng"))
        step.word_tokenizer.word_tokenize("Loaded before it is timed.")
        found["spaCy"] = rate(step, len(few), few)
    return found


def megabytes(documents: list[Document]) -> float:
    """Of text, in UTF-8."""
    return sum(len(one.text.encode()) for one in documents) / 1e6


def read(documents: list[Document], folder: str) -> dict[str, float]:
    """Megabytes per second of the other stages that read documents."""
    size, lines, often = megabytes(documents), f"{folder}/lines", f"{folder}/often"
    found = {"URLs": rate(UrlSignatures(f"{folder}/urls"), size, documents)}
    found["lines"] = rate(LineSignatures(lines), size, documents)
    LineDuplicates(lines, often).run(None, 0, 1)
    found["lines removed"] = rate(RemoveLines(lines, often), size, documents)
    UrlDuplicates(f"{folder}/urls", f"{folder}/same").run(None, 0, 1)
    found["documents dropped"] = rate(DropListed(f"{folder}/urls", f"{folder}/same", "url"), size, documents)
    return found


def merging(folder: str) -> dict[str, float]:
    """Millions of records per second where sorted files are merged, and of pairs where clusters are found."""
    generator, signatures = np.random.default_rng(0), get_datafolder(f"{folder}/signatures")
    for rank in range(4):
        records = np.zeros(MERGED // 4, record(8, 64))
        records["hashes"] = generator.integers(0, 1 << 61, (len(records), 8), np.uint64)
        records["hashes"][::10] = np.arange(len(records[::10]), dtype=np.uint64)[:, None]
        records["document"] = np.arange(len(records))
        order = np.lexsort([records["hashes"][:, column] for column in range(7, -1, -1)])
        shards.write(signatures, f"bucket_000/{rank:05d}.minhash.sig", records[order])
        shards.write(signatures, shards.name_of(rank, 4, PREFERENCES), np.zeros(len(records), PREFERENCE))
        shards.SeenDocuments().save(signatures, rank, 4, buckets=1, hashes_per_bucket=8, precision=64)
    path, pairs = f"{folder}/signatures", f"{folder}/pairs"
    ours = seconds(lambda: MinhashBuckets(path, pairs).run(None, 0, 1))
    config = MinhashConfig(num_buckets=1)
    beside = seconds(lambda: MinhashDedupBuckets(path, f"{folder}/beside", None, config).run(None, 0, 1))
    count = Path(pairs, "00000_00.dups").stat().st_size / 16
    clusters = seconds(lambda: Clusters(path, pairs, f"{folder}/listed").run(None, 0, 1))
    keys = np.sort(generator.integers(0, 1 << 63, 4 * MERGED, np.uint64))
    shards.write(signatures, shards.name_of(0, 1, ".keys"), keys)
    lines = get_datafolder(f"{folder}/keys")
    shards.write(lines, shards.name_of(0, 1, ".keys"), keys)
    shards.SeenDocuments().save(lines, 0, 1, limit=6)
    often = seconds(lambda: LineDuplicates(f"{folder}/keys", f"{folder}/often").run(None, 0, 1))
    return {
        "signatures merged, ours": MERGED / ours / 1e6,
        "signatures merged, datatrove's": MERGED / beside / 1e6,
        "pairs clustered": count / clusters / 1e6,
        "lines counted": len(keys) / often / 1e6,
    }


def main(folders: list[str]) -> None:
    """Print a row for each folder, and the rates of the other stages."""
    logger.remove()
    lines = ("A line.\n", "A \u2013 line.\n", "Han: \u0939\u093f\U00020000.\n")
    few = [Document(text=9 * line, id=line, metadata={"language": "en"}) for line in lines]
    with tempfile.TemporaryDirectory() as place:  # functions are compiled
        rate(MinhashSignatures(f"{place}/signatures"), len(few), few)
        read(few, place)
    names = ("documents", "kB", "ours", "regex", "spaCy")
    print(f"{'signatures':<28}" + "".join(f"{name:>10}" for name in names))
    print(f"{'':<28}" + "".join(f"{unit:>10}" for unit in ("", "each", *["docs/s"] * 3)))
    everything = []
    for folder in folders:
        documents = texts(folder)
        with tempfile.TemporaryDirectory() as place:
            found = signed(documents, place)
        row = "".join(f"{found.get(name, float('nan')):>10.1f}" for name in names)
        print(f"{Path(folder).name:<28}{row}", flush=True)
        everything += documents
    with tempfile.TemporaryDirectory() as place:
        for name, per_second in read(everything, f"{place}/read").items():
            print(f"{name:<40}{per_second:>8.1f} MB/s", flush=True)
        for name, per_second in merging(f"{place}/merged").items():
            print(f"{name:<40}{per_second:>8.2f} M/s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
