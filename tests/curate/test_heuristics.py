"""Gopher's and C4's rules against datatrove's own, given the same words; arrays of words against the words."""

# ruff: noqa: RUF001 - characters of all languages
from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import regex
from datatrove.data import Document
from datatrove.pipeline.filters import c4_filters, gopher_quality_filter, gopher_repetition_filter
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.text import PUNCTUATION_SET
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31.curate import kernels, spans, words
from llama31.curate.extraction import page
from llama31.curate.heuristics import c4, repetition
from llama31.curate.heuristics.c4 import LineFilter, LineLimits
from llama31.curate.heuristics.quality import QualityFilter, QualityLimits
from llama31.curate.heuristics.repetition import RepetitionFilter, RepetitionLimits
from tests.curate import debian
from tests.curate.test_words import CASES

LANGUAGES = ("en", "fr", "it", "th", "hi", "")
# What words, joints, symbols and scripts are made of, and what a table might forget.
CHARACTERS = "ab lL'’-.,:12²①_|#… \n\t\x00\x1c\u00ad\u200d\u0301é¶१हि。中あกาเ၁\ud800\U00020000\U000e0041１٣()"
TEXTS = st.text(st.sampled_from(CHARACTERS), max_size=40)


def test_hashes_are_the_same_for_ever() -> None:
    """Counts of tokens are kept on disks by them."""
    assert spans.Spans("of the", "en").hashes.tolist() == [111 + 102 * spans.BASE % 2**64, spans.hash_of("the")]


@pytest.mark.parametrize(("language", "text", "expected"), CASES)
def test_spans_are_the_words(language: str, text: str, expected: list[str]) -> None:
    compare_with_words(text, language)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.sampled_from(LANGUAGES))
def test_spans_are_the_words_of_any_text(text: str, language: str) -> None:
    compare_with_words(text, language)


def compare_with_words(text: str, language: str) -> None:
    split = words.split(text, language, symbols=True)
    found = spans.Spans(text, language)
    assert found.lengths.tolist() == [len(word) for word in split]
    assert found.hashes.tolist() == [spans.hash_of(word) for word in split]
    assert [text[at : at + length] for at, length in zip(found.places, found.lengths)] == split
    plain = " ".join(words.split(text, language))
    assert spans.joined(text, language) == plain.encode("utf-8", "surrogatepass")
    letters = [any(map(str.isalpha, word)) for word in split]
    spoken = [any(character not in PUNCTUATION_SET for character in word) for word in split]
    assert ((found.kinds & kernels.ALPHABETIC) != 0).tolist() == letters
    assert ((found.kinds & kernels.SPOKEN) != 0).tolist() == spoken
    for n in (1, 4):
        joined = ["".join(split[i : i + n]) for i in range(len(split) - n + 1)]
        sums, inverses = kernels.run_sums(found.hashes, found.lengths)
        runs = (sums[n:] - sums[:-n]) * inverses[: len(sums[n:])]
        assert runs.tolist() == [spans.hash_of(run) for run in joined]


def test_classes_of_all_characters() -> None:
    """Of planes without characters one stands for all."""
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert not any(map(str.isalpha, every[spans.UNASSIGNED :]))
    for pattern, hard in ((r"\w", False), (words.LETTER, True), (r"[^\w\s]", True), (words.HARD.pattern, False)):
        matches = (regex.compile(pattern, regex.V1) if hard else re.compile(pattern)).findall(every)
        table = spans._table(pattern, hard, len(every))
        assert np.flatnonzero(table).tolist() == list(map(ord, matches))


def test_both_expressions_see_alike_what_needs_none_of_them() -> None:
    """A word is the same whatever stands elsewhere in a text, and in each piece of a long one."""
    size = 1 << 17
    differing = spans._classes(True, size) != spans._classes(False, size)
    assert differing.any() and not (differing & (spans._scripts(size) == 0)).any()


def test_spans_of_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the powers that are kept, and cut into pieces."""
    text = "\n".join(f"Line {i} of a log, l'homme | {'long' * (i % 90)}é" for i in range(1200))
    compare_with_words(text, "fr")
    monkeypatch.setattr(spans, "PIECE", 1000)
    monkeypatch.setattr(spans.pieces, "__defaults__", (1000,))
    assert len(spans.pieces(text)) > 100 and "".join(spans.pieces(text)) == text
    compare_with_words(text, "fr")


@cache
def texts() -> list[str]:
    """Pages of documentation with code, tables and lists, and short texts with verse and pictures of letters."""
    pages = [*debian.files("libreoffice-help-en-us", limit=60), *debian.files("python-sympy-doc", limit=12)]
    pages += debian.files("libreoffice-help-zh-cn", limit=12)
    result = [page.extract(path.read_bytes().decode("utf-8", "replace")).text for path in pages]
    for name in ("ascii-art", "songs-poems", "linux"):
        path = debian.folder("fortunes") / "usr/share/games/fortunes" / name
        result += path.read_text(encoding="utf-8").split("\n%\n")[:40]
    # Whole, halved, and what a careless crawler makes of it.
    broken = [text[:600].encode().decode("latin-1") for text in result[::5]]
    return [*result, *broken, *(f"{text[:300]}\n\n{text[:300]}\n{text[:200]}" for text in result[::3])]


@pytest.fixture
def same_words(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """datatrove's filters with our words instead of spaCy's."""

    def split(text: str, language: str) -> list[str]:
        return words.split(text, language, symbols=True)

    for module in (gopher_quality_filter, gopher_repetition_filter):
        monkeypatch.setattr(module, "split_into_words", split)
    monkeypatch.setattr(c4_filters, "split_into_sentences", words.sentences)
    yield


FILTERS: dict[str, tuple[BaseFilter, BaseFilter]] = {
    "quality": (QualityFilter(by_language={}), gopher_quality_filter.GopherQualityFilter(language="en")),
    "quality, other limits": (
        QualityFilter(QualityLimits(min_words=20, max_words=300, min_stop_words=1), {}),
        gopher_quality_filter.GopherQualityFilter(min_doc_words=20, max_doc_words=300, min_stop_words=1, language="en"),
    ),
    "quality without most limits": (
        QualityFilter(QualityLimits(min_words=1, min_mean_length=None, max_mean_length=None, min_stop_words=None), {}),
        gopher_quality_filter.GopherQualityFilter(1, 100000, None, None, min_stop_words=None, language="en"),
    ),
    "repetition": (RepetitionFilter(by_language={}), gopher_repetition_filter.GopherRepetitionFilter(language="en")),
    "repetition of n-grams": (
        RepetitionFilter(RepetitionLimits(None, None, None, None, ((1, 0.1), (3, 0.05)), ((2, 0.2), (7, 0.01))), {}),
        gopher_repetition_filter.GopherRepetitionFilter(
            None, None, None, None, ((1, 0.1), (3, 0.05)), ((2, 0.2), (7, 0.01)), language="en"
        ),
    ),
    "lines": (LineFilter(by_language={}), c4_filters.C4QualityFilter(language="en")),
    "lines, other rules": (
        LineFilter(LineLimits(None, 2, None, 30, javascript=False, curly_bracket=False), {}),
        c4_filters.C4QualityFilter(
            filter_no_terminal_punct=False,
            min_num_sentences=2,
            min_words_per_line=-1,
            max_word_length=30,
            filter_javascript=False,
            filter_curly_bracket=False,
            language="en",
        ),
    ),
}


def outcome(block: BaseFilter, text: str) -> tuple[Any, str]:
    document = Document(text=text, id="", metadata={"language": "en"})
    return block.filter(document), document.text


def lines_counted(block: BaseFilter) -> dict[str, int]:
    return {name: stat.total for name, stat in block.stats.stats.items() if name.startswith("line-")}


@pytest.mark.parametrize("name", FILTERS)
def test_verdicts_are_datatroves(name: str, same_words: None) -> None:
    ours, theirs = FILTERS[name]
    seen = set()
    for text in texts():
        expected = outcome(theirs, text)
        assert outcome(ours, text) == expected, text[:2000]
        seen.add(expected[0])
    assert len(seen) >= 2 + ("other rules" not in name), "nearly everything was kept: the limits test nothing"
    assert lines_counted(ours) == lines_counted(theirs)


FEW = st.sampled_from(["ab", "abc", "c", "d", "the", "of", "and", "12", "1", "2", "x-y", "|", "...", "…", "#", "•"])
MARKS = st.sampled_from(
    [*(" " for _ in range(6)), "\n", "\n\n", ". ", ".\n", "! ", "[1]", "{", "lorem ipsum", "javascript", "use cookies."]
)


@pytest.mark.parametrize("name", FILTERS)
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(FEW, MARKS), min_size=1, max_size=90), st.integers(1, 3))
def test_verdicts_are_datatroves_for_any_text(name: str, parts: list[tuple[str, str]], times: int) -> None:
    """Of few words, so that n-grams repeat, those among them that differ only in where words are cut."""
    text = "".join(word + mark for word, mark in parts) * times
    with pytest.MonkeyPatch.context() as patch:
        for module in (gopher_quality_filter, gopher_repetition_filter):
            patch.setattr(module, "split_into_words", lambda text, language: words.split(text, language, symbols=True))
        patch.setattr(c4_filters, "split_into_sentences", words.sentences)
        ours, theirs = FILTERS[name]
        assert outcome(ours, text) == outcome(theirs, text)


@settings(max_examples=200, deadline=None)
@given(st.text("a \n", min_size=1, max_size=30))
def test_lines_and_paragraphs_are_those_of_an_expression(text: str) -> None:
    assert repetition.lines(text) == re.split(r"\n+", text)
    if stripped := text.strip():
        assert repetition.paragraphs(stripped) == re.split(r"\n{2,}", stripped)


def test_small_letters_that_are_of_ascii() -> None:
    """Phrases are looked for in bytes whose other characters stay as they are."""
    found = [code for code in range(128, sys.maxunicode + 1) if any(low < "\x80" for low in chr(code).lower())]
    assert "".join(map(chr, found)) == c4.BECOMING_ASCII
    for text in ("coo\u212aie policy.", "The Coo\u212aIe Policy, é.", "\ud800 use cookies."):
        limits = LineLimits(min_sentences=0)
        assert c4.lines(text, "en", limits, Counter()) == (True, ""), text


@pytest.mark.parametrize("text", ["", " \n ", "\x00", "\ud800 \ud800", "#", "...", "-\n-\n-", "a" * 2_000_000])
def test_odd_texts_have_verdicts(text: str) -> None:
    for block in (QualityFilter(QualityLimits(min_words=None)), QualityFilter(), RepetitionFilter(), LineFilter()):
        for language in LANGUAGES:
            verdict = block.filter(Document(text=text, id="", metadata={"language": language}))
            assert verdict is True or (verdict[0] is False and verdict[1])


def test_a_text_too_long_is_found_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The words of a book and more of the same, with all that goes on. " * 400_000  # 26 MB
    looked_at: list[int] = []
    measured = spans.measured

    def counted(text: str, language: str) -> spans.Words:
        looked_at.append(len(text))
        return measured(text, language)

    monkeypatch.setattr(spans, "measured", counted)
    assert QualityFilter().filter(Document(text=text, id="")) == (False, "gopher_long_doc")
    assert sum(looked_at) < 3_000_000


# Article 1 of the Universal Declaration of Human Rights, and its preamble's beginning.
THAI = "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม และควรปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ"
HINDI = (
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। "
    "उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए।"
)


def test_rules_of_other_languages() -> None:
    """What English's rules would drop for its script or its words alone."""
    german = page.extract(debian.files("libreoffice-help-de", limit=40)[20].read_text(encoding="utf-8")).text
    chinese = page.extract(debian.files("libreoffice-help-zh-cn", limit=40)[20].read_text(encoding="utf-8")).text
    cases = {"de": german, "zh": chinese, "th": f"{THAI}\n\n{THAI[20:]}", "hi": f"{HINDI * 2}"}
    few = QualityLimits(min_words=20)
    for language, text in cases.items():
        document = Document(text=text, id="", metadata={"language": language})
        assert QualityFilter(few).filter(document) is True, language
        assert QualityFilter(few, by_language={}).filter(document) is not True, language
    hindi = Document(text="\n".join(HINDI.split("। ")).replace("\n", "।\n") * 3, id="", metadata={"language": "hi"})
    assert LineFilter(LineLimits(min_sentences=3)).filter(hindi) is True and hindi.text.count("।") == 6
    assert LineFilter(LineLimits(min_sentences=3), {}).filter(hindi) == (False, "too_few_sentences")
    thai = Document(text=f"{THAI}\nเมนู", id="", metadata={"language": "th"})
    assert LineFilter().filter(thai) == (False, "too_few_sentences")
    assert LineFilter(LineLimits(min_sentences=3)).filter(thai) is True and "เมนู" not in thai.text


def test_a_phrase_of_a_language_without_spaces_is_no_more_repeated_than_one_of_english() -> None:
    """ "Of Thailand" is five clusters in Thai, which English's rules would take for five words that repeat."""
    text = (
        "การศึกษาของประเทศไทย และการคมนาคมของประเทศไทย และการพาณิชย์ของประเทศไทย และการกีฬาของประเทศไทย ต่างก็สำคัญ "
        "ประเทศไทยเป็นรัฐชาติที่ตั้งอยู่ในภูมิภาคเอเชียตะวันออกเฉียงใต้ "
        "มีพรมแดนด้านตะวันออกติดกับประเทศลาวและกัมพูชา กรุงเทพมหานครเป็นเมืองหลวงและศูนย์กลางการปกครอง "
        "การศึกษา การคมนาคมขนส่ง การเงินการธนาคาร การพาณิชย์ และการสื่อสาร "
        "แม่น้ำเจ้าพระยาไหลผ่านเมืองและแบ่งออกเป็นสองฝั่ง คือฝั่งพระนครและฝั่งธนบุรี"
    )
    document = Document(text=text, id="", metadata={"language": "th"})
    assert RepetitionFilter().filter(document) is True
    for limits in ({}, {"th": {"separator": ""}}):
        assert RepetitionFilter(by_language=limits).filter(document) == (False, "duplicated_5_n_grams")


def test_a_stop_word_is_asked_for_where_a_language_has_a_list() -> None:
    hindi = Document(text="किसान वर्षा सर्दी गेहूँ " * 30, id="", metadata={"language": "hi"})
    assert QualityFilter().filter(hindi) == (False, "gopher_enough_stop_words")
    assert QualityFilter(by_language={"hi": {"min_stop_words": None}}).filter(hindi) is True
    text = "kaksi sanaa tai enemmän " * 30
    assert QualityFilter().filter(Document(text=text, id="", metadata={"language": "fi"})) is True
    reason = (False, "gopher_enough_stop_words")
    assert QualityFilter().filter(Document(text=text, id="", metadata={"language": "en"})) == reason


def test_technical_pages_keep_their_lines() -> None:
    code = "def f(x):\n    return {x}\n"
    for technical, expected in (("technical", True), ("general", (False, "too_few_sentences"))):
        document = Document(text=code, id="", metadata={"language": "en", "extraction": technical})
        assert LineFilter().filter(document) == expected and document.text == code
    assert LineFilter(keep_technical=False).filter(
        Document(text=code, id="", metadata={"language": "en", "extraction": "technical"})
    ) == (False, "too_few_sentences")


def test_a_limit_that_is_none_is_named() -> None:
    for block in (QualityFilter, RepetitionFilter, LineFilter):
        with pytest.raises(ValueError, match=r"by_language\['de'\] has 'words', which no limit is; .* one of \w+"):
            block(by_language={"de": {"words": 3}})
