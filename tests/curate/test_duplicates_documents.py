"""MinHash: signatures beside datatrove's, and what is found beside true similarities, on real text."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig, create_hash_func
from datatrove.utils.text import simplify_text
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31.curate import words
from llama31.curate.duplicates import merging
from llama31.curate.duplicates.buckets import MinhashBuckets
from llama31.curate.duplicates.clusters import Clusters
from llama31.curate.duplicates.preference import Keep
from llama31.curate.duplicates.removal import DropListed
from llama31.curate.duplicates.signatures import MinhashSignatures, hashed, probability, simplify
from llama31.curate.extraction import page
from tests.curate import debian
from tests.curate.stages import alone, bytes_of, dealt, document, over

Pairs = set[tuple[str, str]]


@cache
def help_pages(language: str, count: int) -> tuple[str, ...]:
    texts = (
        page.extract(path.read_text("utf-8")).text for path in debian.files(f"libreoffice-help-{language}", limit=count)
    )
    return tuple(text for text in texts if len(text) > 200)


def english(count: int) -> list[Document]:
    return [document(text, f"help{n}", language="en") for n, text in enumerate(help_pages("en-us", count))]


def theirs(folder: str, tokenize: Any, config: MinhashConfig) -> MinhashDedupSignature:
    """datatrove's first stage with another tokenizer: its own asks for spaCy when it is made.

    And with bytes for its hash function: it gives text, which xxhash 4 refuses ("Strings must be encoded").
    """
    step = MinhashDedupSignature.__new__(MinhashDedupSignature)
    super(MinhashDedupSignature, step).__init__()
    step.output_folder = Clusters(folder, folder, folder).output_folder
    step.config, step.num_hashes, step._parameters = config, config.num_buckets * config.hashes_per_bucket, None
    digest = create_hash_func(config.hash_config, bytes)
    step._hash_func, step.skip_existing_sigs = lambda text: digest(text.encode()), False
    step.word_tokenizer = type("Tokenizer", (), {"word_tokenize": staticmethod(tokenize)})
    return step


@pytest.mark.parametrize(("precision", "buckets", "hashes", "ngram"), [(64, 14, 8, 5), (32, 3, 1, 2)])
def test_signatures_are_datatroves_given_the_same_words(
    tmp_path: Path, precision: int, buckets: int, hashes: int, ngram: int
) -> None:
    texts = [text for language in ("en-us", "de", "hi", "ja") for text in help_pages(language, 40)]
    documents = [document(text, str(n)) for n, text in enumerate(texts)]
    split = {simplify_text(text): words.split(simplify(text), "") for text in texts}
    config = MinhashConfig(ngram, buckets, hashes, seed=7, hash_config=HashConfig(precision=precision))
    theirs(str(tmp_path / "theirs"), split.__getitem__, config).run(iter(documents), 0, 1)
    over(lambda: MinhashSignatures(str(tmp_path / "ours"), ngram, buckets, hashes, 7, precision), [documents])
    ours = {name: content for name, content in bytes_of(tmp_path / "ours").items() if name.startswith("bucket_")}
    assert len(ours) == buckets and ours == bytes_of(tmp_path / "theirs")


def test_simplified_text_of_latin_letters_has_datatroves_words() -> None:
    text = "Ça coûte 1,50 € — déjà VU! ÅNGSTRÖM, Größe; 12. Привет, ёж."
    assert words.split(simplify(text), "") == [*simplify_text(text).replace("€", "").split()]
    assert simplify("हिन्दी ก็ที่") == "हिन्दी ก็ที่" != simplify_text("हिन्दी ก็ที่")
    assert simplify("e\u0301 é 한국") == "e e 한국"


def found(documents: list[Document], folder: Path, tasks: int = 1) -> Pairs:
    """Pairs of ids that share a bucket, as clusters join them."""
    signatures, pairs = str(folder / "signatures"), str(folder / "pairs")
    over(lambda: MinhashSignatures(signatures), dealt(documents, tasks))
    alone(lambda: MinhashBuckets(signatures, pairs, 1 << 16), 3)
    return joined(documents, folder / "pairs", tasks)


def joined(documents: list[Document], pairs: Path, tasks: int) -> Pairs:
    result = set()
    for file in pairs.glob("*.dups"):
        clusters: dict[tuple[int, int], set[tuple[int, int]]] = {}
        for a, b, c, d in np.fromfile(file, "<u4").reshape(-1, 4).tolist():
            one = clusters.setdefault((a, b), {(a, b)}) | clusters.setdefault((c, d), {(c, d)})
            clusters.update(dict.fromkeys(one, one))
        for members in clusters.values():
            ids = sorted(documents[place * tasks + rank].id for rank, place in members)
            result |= set(itertools.combinations(ids, 2))
    return result


def shingled(text: str) -> set[int]:
    """Hashes of the shingles of a text."""
    return set(hashed(" ".join(words.split(simplify(text), "en")).encode(), 5, 64).tolist())


def similarities(documents: list[Document]) -> dict[tuple[str, str], float]:
    """The Jaccard similarity of all pairs that have a shingle in common."""
    shingles = [shingled(one.text) for one in documents]
    result = {}
    for (one, a), (other, b) in itertools.combinations(zip(documents, shingles), 2):
        if common := len(a & b):
            first, second = sorted((one.id, other.id))
            result[first, second] = common / (len(a) + len(b) - common)
    return result


def planted(levels: list[float], each: int) -> list[Document]:
    """Real pages, and of each one with words replaced here and there until the similarity is that of a level."""
    generator, result = random.Random(3), []
    pages = [text for text in help_pages("en-us", 700) if 150 < len(text.split()) < 600]
    for number, text in enumerate(pages[: each * len(levels)]):
        level, split = levels[number % len(levels)], re.split(r"(\s+)", text)
        wanted = shingled(text)
        places = list(range(0, len(split), 2))
        generator.shuffle(places)
        for step, place in enumerate(places):
            split[place] = f"planted{generator.randrange(10**6)}".translate(str.maketrans("0123456789", "abcdefghij"))
            if step % (1 if level > 0.7 else 3):
                continue
            other = shingled("".join(split))
            if len(wanted & other) / len(wanted | other) <= level:
                break
        result += [document(text, f"{number}a", language="en"), document("".join(split), f"{number}b", language="en")]
    return result


def test_near_duplicates_are_found_as_often_as_theory_and_datatrove_have_it(tmp_path: Path) -> None:
    levels = [0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    documents = planted(levels, 24)
    short = [
        document(text, f"s{n}", language="en")
        for n, text in enumerate(["One two, three.", "one two three", "!!!", "!!!"])
    ]
    documents += short
    truth, ours = similarities(documents), found(documents, tmp_path / "ours", 2)
    truth[("s0", "s1")] = truth[("s2", "s3")] = 1.0
    config = MinhashConfig()
    step = theirs(str(tmp_path / "theirs/signatures"), str.split, config)
    step.run(iter(documents), 0, 1)
    for rank in range(config.num_buckets):
        buckets = MinhashDedupBuckets(
            str(tmp_path / "theirs/signatures"), str(tmp_path / "theirs/pairs"), config=config, lines_to_buffer=100
        )
        buckets.run(None, rank, config.num_buckets)
    beside = joined(documents, tmp_path / "theirs/pairs", 1)
    # Recall, by level and over all pairs, as the curve says, within three standard deviations.
    for low, high in [*itertools.pairwise([0.45, 0.55, 0.65, 0.72, 0.78, 0.83, 0.88, 0.93, 1.01]), (0.0, 1.01)]:
        chances = np.array([probability(s) for s in truth.values() if low <= s < high])
        hits = sum(pair in ours for pair, s in truth.items() if low <= s < high)
        assert abs(hits - chances.sum()) <= 3 * np.sqrt((chances * (1 - chances)).sum()) + 0.5, (
            low,
            hits,
            chances.sum(),
        )
    # Precision: what was found is similar; nothing was found that has no shingle in common.
    assert all(truth.get(pair, 0.0) > 0.4 for pair in ours)
    duplicates = {pair for pair, s in truth.items() if s >= 0.8}
    assert len(duplicates) > 60
    assert len(ours & duplicates) >= len(beside & duplicates) and {("s0", "s1"), ("s2", "s3")} <= ours - beside


def test_buckets_and_clusters_are_datatroves(tmp_path: Path) -> None:
    documents = planted([0.8, 0.95], 20) + english(60)
    ours = found(documents, tmp_path, 3)
    config = MinhashConfig()
    for rank in range(config.num_buckets):
        buckets = MinhashDedupBuckets(
            str(tmp_path / "signatures"), str(tmp_path / "theirs"), config=config, lines_to_buffer=100
        )
        buckets.run(None, rank, config.num_buckets)
    assert ours == joined(documents, tmp_path / "theirs", 3) and len(ours) > 20
    kept = []
    signatures = str(tmp_path / "signatures")
    for pairs in ("pairs", "theirs"):
        listed = str(tmp_path / f"listed {pairs}")
        alone(lambda pairs=pairs, listed=listed: Clusters(signatures, str(tmp_path / pairs), listed), 1)
        passed, _ = over(lambda listed=listed: DropListed(signatures, listed, "near duplicate"), dealt(documents, 3))
        kept.append(sorted(one.id for one in passed))
        MinhashDedupCluster(str(tmp_path / pairs), str(tmp_path / f"{pairs} clusters"), config).run(None, 0, 1)
    assert kept[0] == kept[1]
    # datatrove's own cluster stage, on either's pairs, removes as many.
    for pairs in ("pairs", "theirs"):
        removed = sum(file.stat().st_size for file in (tmp_path / f"{pairs} clusters").glob("*.remove")) // 4
        assert removed == len(documents) - len(kept[0]) > 20


def test_copies_that_fill_many_chunks_are_one_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "LEAST", 3)
    texts = help_pages("en-us", 40)[:2]
    documents = [document(texts[n % 7 == 0], str(n), language="en") for n in range(200)]
    kept, counts = dedup(documents, tmp_path, 3, memory=1)
    assert len(kept) == counts["clusters"] == 2 and counts["pairs"] == 14 * 198


def dedup(
    documents: list[Document], folder: Path, tasks: int, keep: Keep = "newest", memory: int = 1 << 20
) -> tuple[set[str], dict[str, int]]:
    signatures, pairs, listed = (str(folder / name) for name in ("signatures", "pairs", "listed"))
    _, counts = over(lambda: MinhashSignatures(signatures, keep=keep, score_key="quality"), dealt(documents, tasks))
    counts |= alone(lambda: MinhashBuckets(signatures, pairs, memory), 2)
    counts |= alone(lambda: Clusters(signatures, pairs, listed), 1)
    kept, dropped = over(lambda: DropListed(signatures, listed, "near duplicate"), dealt(documents, tasks))
    assert dropped.get("dropped_near duplicate", 0) == counts["listed"] == len(documents) - len(kept)
    return {one.id for one in kept}, counts


def test_which_stays_is_a_key(tmp_path: Path) -> None:
    text = help_pages("en-us", 40)[0]
    documents = [
        document(text, "old", date="2020-01-01T00:00:00Z", quality=0.9, language="en"),
        document(text, "new", date="2024-01-01T00:00:00Z", quality=0.1, language="en"),
        document(text + " More.", "long", quality=None, language="en"),
        document(text, "other language", language="de"),
        document(text, "no language"),
    ]
    others = {"other language", "no language"}
    for keep, stays in (("newest", "new"), ("longest", "long"), ("best", "old")):
        kept, counts = dedup(documents, tmp_path / keep, 2, keep)  # type: ignore[arg-type]
        assert kept == {stays} | others and counts["clusters"] == 1
        assert counts.get("no date", 0) + counts.get("no score", 0) == {"newest": 3, "best": 3}.get(keep, 0)


def test_short_and_empty_documents_are_deduplicated_too(tmp_path: Path) -> None:
    texts = ["", "", " \n", "?", "?", "? !", "a b c", "A, b: c!", "a b", "a b c d e", "a b c d e", "a b c d e f"]
    documents = [document(text, str(n), language="en") for n, text in enumerate(texts)]
    kept, counts = dedup(documents, tmp_path, 3)
    assert sorted(re.sub(r"\W", "", texts[int(n)].lower()) for n in kept) == [
        "",
        "",
        "",
        "ab",
        "abc",
        "abcde",
        "abcdef",
    ]
    assert counts["short"] == 9


def test_odd_documents_do_not_stop_it(tmp_path: Path) -> None:
    texts = [
        "\ud800 a\0b " * 4,
        "\ud800 a\0b " * 4,
        "\0",
        "ก" * 1000,
        "word " * 200_000,
        "x" * 1_000_000,
        "\u0301\u0301",
    ]
    documents = [document(text, str(n), language="th", date=["?"]) for n, text in enumerate(texts)]
    kept, _ = dedup(documents, tmp_path, 2)
    assert len(kept) == 6 and {"2", "3", "4", "5", "6"} < kept


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(alphabet="ab ", max_size=14), max_size=25), st.integers(1, 5))
def test_tasks_do_not_matter(tmp_path_factory: pytest.TempPathFactory, texts: list[str], tasks: int) -> None:
    documents = [document(text, str(n), language="en") for n, text in enumerate(texts)]
    one, _ = dedup(documents, tmp_path_factory.mktemp("one"), 1)
    assert dedup(documents, tmp_path_factory.mktemp("several"), tasks)[0] == one


def test_a_task_that_is_killed_and_run_again_leaves_the_same_bytes(tmp_path: Path) -> None:
    shards = dealt(english(40), 2)
    for folder in ("whole", "killed"):
        if folder == "killed" and (child := os.fork()) == 0:
            last = itertools.chain(shards[1][:10], iter(lambda: os.kill(os.getpid(), signal.SIGKILL), 0))
            list(MinhashSignatures(str(tmp_path / folder / "s")).run(last, 1, 2))
        elif folder == "killed":
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
            assert not bytes_of(tmp_path / folder) and (tmp_path / folder / "s/partial").is_dir()
            with pytest.raises(ValueError, match="the stage before has not ended"):
                alone(lambda: MinhashBuckets(str(tmp_path / "killed/s"), str(tmp_path / "killed/p")), 1)
        over(lambda folder=folder: MinhashSignatures(str(tmp_path / folder / "s")), shards)
        alone(lambda folder=folder: MinhashBuckets(*(str(tmp_path / folder / one) for one in "sp")), 2)
        alone(lambda folder=folder: Clusters(*(str(tmp_path / folder / one) for one in "spl")), 1)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "killed") != {}


def executors(folder: Path, tasks: int) -> LocalPipelineExecutor:
    signatures, pairs, listed = (str(folder / name) for name in ("signatures", "pairs", "listed"))

    def reader() -> JsonlReader:
        return JsonlReader(str(folder / "in"), add_file_path=False)

    stages = [
        (tasks, [reader(), MinhashSignatures(signatures)]),
        (2, [MinhashBuckets(signatures, pairs)]),
        (1, [Clusters(signatures, pairs, listed)]),
        (tasks, [reader(), DropListed(signatures, listed, "near duplicate"), JsonlWriter(str(folder / "out"))]),
    ]
    last = None
    for number, (count, steps) in enumerate(stages):
        last = LocalPipelineExecutor(steps, count, 1, str(folder / f"logs{number}"), depends=last)
    assert last is not None
    return last


def test_executors_run_the_stages_one_after_the_other(tmp_path: Path) -> None:
    copies = [document(one.text + " end", f"copy {one.id}", language="en") for one in english(10)]
    documents = english(30) + copies
    kept = []
    for tasks in (1, 4):
        writer = JsonlWriter(str(tmp_path / f"{tasks}/in"), "${shard}.jsonl.gz")
        with writer:
            for n, one in enumerate(documents):
                writer.write(one, shard=f"{n % 4:05d}")
        executors(tmp_path / str(tasks), tasks).run()
        read = JsonlReader(str(tmp_path / f"{tasks}/out"), add_file_path=False).run()
        kept.append(sorted((one.id, one.text) for one in read))
    assert kept[0] == kept[1] and len(documents) - len(kept[0]) >= len(copies) > 5
