"""Lines of repeated content, and documents unlike their language: planted ones, and what brute force counts."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31 import config
from llama31.command import entry
from llama31.curate import spans, words
from llama31.curate.heuristics import token_counts
from llama31.curate.heuristics.coverage import RepeatedContentFilter, coverage, repeated_words
from llama31.curate.heuristics.divergence import Distribution, DivergenceFilter
from llama31.curate.heuristics.token_counts import BUCKETS, MergeTokenCounts, TokenCounts
from llama31.curate.running import blocks, stages
from llama31.curate.running.assignment import Assignment
from tests.curate import debian

# --- lines of repeated content ---

LOG = "\n".join(
    f"2024-03-{1 + i % 28:02} 10:{i % 60:02}:17,{i:03} ERROR worker-{i % 7} connection to 10.0.0.{i} failed after {i} s"
    for i in range(40)
)
PROSE = """The harbour was built when ships were small, and nobody thought that they would ever grow.
When they did, the town moved its cranes outside, and fishermen kept the old quays for themselves.
Today one finds both: boats that go out at night, and freighters that wait for the tide at noon."""


def test_a_log_of_unique_lines_leaves_its_first() -> None:
    assert len(set(LOG.split("\n"))) == 40
    document = Document(text=f"{PROSE}\n\n{LOG}\n\n{PROSE.replace('ships', 'vessels')[:80]}", id="")
    block = RepeatedContentFilter(max_removed=1)
    assert block.filter(document) is True
    assert document.text.count("ERROR") == 1 and document.text.startswith(PROSE)
    assert block.stats.stats["repeated lines"].total == 39
    alone = Document(text=LOG, id="")
    assert RepeatedContentFilter().filter(alone) == (False, "repeated_content")
    assert alone.metadata["repeated_content"] > 0.9 and alone.text == LOG
    kept = Document(text=LOG, id="")
    assert RepeatedContentFilter(fold_numbers=False).filter(kept) is True and kept.text == LOG


@pytest.mark.parametrize("text", ["", "\n", "a", PROSE, "\x00\ud800\n" * 3, "one two\n" * 2])
def test_what_repeats_nothing_stays(text: str) -> None:
    document = Document(text=text, id="")
    assert RepeatedContentFilter().filter(document) is True and document.text == text


def test_a_line_within_itself_and_technical_pages() -> None:
    line = "no such file or directory, try again " * 30
    document = Document(text=f"{PROSE}\n{line}", id="", metadata={"language": "en"})
    assert RepeatedContentFilter(max_removed=1).filter(document) is True and document.text == PROSE
    technical = Document(text=f"{PROSE}\n{line}", id="", metadata={"extraction": "technical"})
    assert RepeatedContentFilter().filter(technical) is True and line.strip() in technical.text
    with pytest.raises(ValueError, match="n=0: a run has one word at least; give a number"):
        RepeatedContentFilter(n=0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c1", "c2", "中", "\n", ". "]), max_size=60), st.integers(1, 4))
def test_coverage_is_that_of_brute_force(parts: list[str], n: int) -> None:
    text = " ".join(parts)
    split = ["0" if any(map(str.isdigit, word)) else word for word in words.split(text, "", symbols=True)]
    seen: set[tuple[str, ...]] = set()
    inside = [False] * len(split)
    for i in range(len(split) - n + 1):
        gram = tuple(split[i : i + n])
        if gram in seen:
            inside[i : i + n] = [True] * n
        seen.add(gram)
    found = spans.of(text, "")
    assert repeated_words(found, n, True).tolist() == inside
    lines = text.split("\n")
    counts = [len(words.split(line, "", symbols=True)) for line in lines]
    owners, ratios = coverage(lines, found, np.array(inside, np.bool_))
    assert owners.tolist() == [i for i, count in enumerate(counts) for _ in range(count)]
    lengths, at = [len(word) for word in words.split(text, "", symbols=True)], 0
    for i, count in enumerate(counts):
        whole = sum(lengths[at : at + count])
        part = sum(length for length, one in zip(lengths[at : at + count], inside[at : at + count]) if one)
        assert ratios[i] == pytest.approx(part / whole if whole else 0)
        at += count


# --- divergence ---


def counted(folder: Path, documents: list[Document], tasks: int) -> None:
    for rank in range(tasks):
        block = TokenCounts(str(folder))
        assert list(block.run(iter(documents[rank::tasks]), rank, tasks)) == documents[rank::tasks]
    list(MergeTokenCounts(str(folder), tasks).run())


def pages(package: str, below: str, language: str, size: int) -> list[Document]:
    texts: list[str] = []
    for path in sorted((debian.folder(package) / "usr/share/games/fortunes" / below).iterdir()):
        if path.is_file() and path.suffix not in (".dat", ".u8"):
            texts += path.read_bytes().decode("utf-8", "replace").split("\n%\n")
    return [
        Document(text="\n".join(texts[i : i + size]), id=f"{language}{i}", metadata={"language": language})
        for i in range(0, len(texts), size)
    ]


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    """English of all lengths, and a tenth as much Italian."""
    english = pages("fortunes", "", "en", 1)[::6] + pages("fortunes", "", "en", 15)
    return english + pages("fortunes-it", "it", "it", 15)[::8]


def outliers(corpus: list[Document]) -> dict[str, str]:
    """What a crawl holds that is no text."""
    draw = random.Random(0)
    english = [one.text for one in corpus if one.metadata["language"] == "en" and len(one.text) > 1500]
    letters = "abcdefghijklmnopqrstuvwxyz"
    return {
        "mojibake": english[0][:1500].encode("utf-16-le").decode("utf-16-be", "replace"),
        "keys": " ".join("".join(draw.choices(letters, k=9)) for _ in range(200)),
        "reversed": english[3][:1500][::-1],
        "rot13": english[4][:1500].translate(str.maketrans(letters, letters[13:] + letters[:13])),
        "one word": "buy " * 300,
    }


def test_planted_outliers_go_and_short_and_rare_ones_stay(corpus: list[Document], tmp_path: Path) -> None:
    planted = [Document(text=text, id=name, metadata={"language": "en"}) for name, text in outliers(corpus).items()]
    documents = corpus + planted
    counted(tmp_path, documents, 3)
    block = DivergenceFilter(str(tmp_path), min_tokens=20_000)
    gone = {document.id for document in documents if block.filter(document) is not True}
    assert {one.id for one in planted} <= gone
    assert len(gone) - len(planted) <= 0.005 * len(documents), len(gone)
    # Bare divergence cannot tell them: a tenth of all, the shortest, lie above every planted one but the keys.
    known = Distribution(token_counts.read(block.folder, token_counts.MERGED)["en"])
    by_length: dict[bool, list[float]] = {True: [], False: []}
    for document in corpus:
        found = token_counts.tokens(document.text, "en")
        if document.metadata["language"] == "en" and len(found):
            by_length[len(found) < 40].append(known.divergence(found, True))
    assert np.median(by_length[True]) > np.median(by_length[False]) + 1.5
    assert type(corpus[0].metadata["divergence"]) is float  # which JSON can hold
    excesses = [one.metadata["divergence"] for one in corpus if one.metadata["language"] == "it"]
    assert abs(np.median(excesses)) < 1.2


def test_few_tokens_make_no_verdict(corpus: list[Document], tmp_path: Path) -> None:
    counted(tmp_path, corpus[:50], 1)
    block = DivergenceFilter(str(tmp_path))
    for language in ("en", "de", ""):
        assert block.filter(Document(text="qwzx " * 99, id="", metadata={"language": language})) is True
    assert list(block.stats.stats) == ["too little of en", "too little of de", "too little of unknown"]


def test_shards_add_up_and_missing_ones_are_named(corpus: list[Document], tmp_path: Path) -> None:
    for tasks in (1, 4):
        counted(tmp_path / str(tasks), corpus[:200], tasks)
    one, four = ((tmp_path / name / "merged.npz").read_bytes() for name in ("1", "4"))
    assert one == four
    with pytest.raises(ValueError, match="has token counts of 4 tasks, not of 5: run those that are missing"):
        list(MergeTokenCounts(str(tmp_path / "4"), 5).run())


def brute_divergence(found: list[int], corpus: Counter[int], buckets: int) -> float:
    """The same by its words, out of counts without the document."""
    own = Counter(found)
    once = sum(1 for count in corpus.values() if count == 1)
    unseen = max(once, 1) / sum(corpus.values()) / (buckets - len(corpus))
    rest, total = corpus - own, sum(corpus.values()) - len(found)
    result = 0.0
    for token, count in own.items():
        share = rest[token] / total * (1 - unseen * (buckets - len(corpus))) if rest[token] else unseen
        result += count / len(found) * math.log(count / len(found) / share)
    return result


def brute_expectation(shares: list[float], n: int) -> float:
    """E[sum c / n log (c / n / q)] by the binomial's terms."""
    result = 0.0
    for q in shares:
        for c in range(1, n + 1):
            p = math.comb(n, c) * q**c * (1 - q) ** (n - c)
            result += p * c / n * math.log(c / n / q)
    return result


def test_divergence_and_its_expectation_are_those_of_brute_force() -> None:
    draw = np.random.default_rng(0)
    counts = np.zeros(BUCKETS, np.int64)
    counts[:40] = draw.integers(1, 400, 40)
    counts[40:60] = 1
    known = Distribution(counts)
    corpus = Counter({i: int(count) for i, count in enumerate(counts) if count})
    for length in (1, 7, 90):
        found = draw.integers(0, 60, length)
        assert known.divergence(found, True) == pytest.approx(brute_divergence(found.tolist(), corpus, BUCKETS))
    # A corpus of few tokens and no others, so that every share can be summed over.
    few = np.zeros(BUCKETS, np.int64)
    few[:30] = draw.integers(2, 90, 30)
    whole = Distribution(few)
    shares = [float(count / few.sum()) for count in few[:30]]
    for n in (1, 2, 10, 100):
        assert whole.exactly_expected(n) == pytest.approx(brute_expectation(shares, n), rel=0.02, abs=0.01), n


def test_expectation_is_that_of_draws() -> None:
    """Of texts drawn from counts like those of words, many of which no text of this length has."""
    counts = np.zeros(BUCKETS, np.int64)
    counts[: BUCKETS - 5000] = np.maximum(1, 300_000 / np.arange(1, BUCKETS - 4999)).astype(np.int64)
    known = Distribution(counts)
    shares = np.exp(known._log_shares(counts, known.total))
    draw = np.random.default_rng(1)
    for n in (5, 50, 500, 5000):
        drawn = [known.divergence(draw.choice(BUCKETS, n, p=shares / shares.sum()), False) for _ in range(40)]
        error = 4 * np.std(drawn) / math.sqrt(len(drawn))
        assert abs(known.expected(n) - np.mean(drawn)) < error + 0.02, n
        assert np.std(drawn) < 1.5 * known.deviation(n)


def test_rules_of_prose_leave_pages_of_code_alone_unless_asked(corpus: list[Document], tmp_path: Path) -> None:
    """Of the words of no language, in two lines that repeat: each rule alone would drop it."""
    counted(tmp_path / "token_counts/merged", corpus, 1)
    text = "\n".join([" ".join(f"zq{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(400))] * 2)
    for prose_only in ("true", "false"):
        keys = [f"{name}.prose_only={prose_only}" for name in ("repetition", "quality", "divergence")]
        keys += ["name=x", f"folder={tmp_path}", "divergence.min_tokens=20000"]
        run = entry.compose(config.Curate, "curate", keys)
        (stage,) = (one for one in stages.stages(run, 1) if one.name == "filter")
        rules = [one for one in blocks.build(Assignment(run, stage, 0, tmp_path, [])) if isinstance(one, BaseFilter)][
            1:4
        ]
        assert [rule.name for rule in rules] == ["Gopher repetition", "Gopher quality", "Divergence"]
        for rule in rules:
            verdicts = {}
            for path in ("technical", ""):
                document = Document(text=text, id="", metadata={"language": "en", "extraction": path})
                verdicts[path] = rule.filter(document) is True
            assert verdicts == {"technical": prose_only == "true", "": False}, rule.name
