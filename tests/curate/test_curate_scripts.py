"""Thai and Hindi from pages to token files, by rules of their own; and charsets of many scripts on real pages."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document

from llama31 import config
from llama31.curate import words
from llama31.curate.extraction.page import extract
from llama31.curate.heuristics.c4 import LineFilter
from llama31.curate.heuristics.quality import QualityFilter
from llama31.curate.heuristics.repetition import RepetitionFilter
from llama31.curate.passage.shards import ShardReader
from llama31.curate.reading import bodies
from llama31.tokens import tokenizers
from llama31.tokens.indexed import IndexedReader
from tests.curate import debian, langpack
from tests.curate.test_curate_archives import curated


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the report of a run over pages of both languages."""
    target = tmp_path_factory.mktemp("scripts")
    (target / "pages").mkdir()
    for language in langpack.SCRIPTS:
        for name, page in langpack.pages(language).items():
            (target / f"pages/{language}-{name.rpartition('/')[2]}.html").write_text(page, encoding="utf-8")
    further = ["sources.a.format=html", "tokens.enabled=true", "tokenizer.kind=bpe", f"tokenizer.path={target}/bpe"]
    return target, curated(target, *further, "tokenizer.vocab_size=600", "tokens.heldout_fraction=0")


def test_thai_and_hindi_become_token_files(made: tuple[Path, dict[str, Any]]) -> None:
    """What rules leave is tokens of the same text, character by character."""
    target, content = made
    last = [*ShardReader(sorted(target.glob("made/lines/documents/*"))).run(None)]
    counts = Counter(one.metadata["language"] for one in last)
    assert counts["th"] > 25 and counts["hi"] > 10
    tokenizer = tokenizers.load(config.Tokenizer(kind="bpe", path=f"{target}/bpe"))
    for language in langpack.SCRIPTS:
        reader = IndexedReader(target / f"made/tokens/general-{language}/train")
        texts = {tokenizer.decode(reader.document(i).tolist()) for i in range(len(reader))}
        wanted = {one.text for one in last if one.metadata["language"] == language}
        assert len(reader) == counts[language] == content["packed"][f"general-{language}"]["train"]["documents"]
        assert {re.sub(r"<\|[a-z_]+\|>", "", text) for text in texts} == wanted


def test_rules_of_their_own_keep_what_those_of_english_drop() -> None:
    for language in langpack.SCRIPTS:
        kept: Counter[str] = Counter()
        for name, page in langpack.pages(language).items():
            for rules in (language, "en"):
                document = Document(extract(page).text, name, metadata={"language": rules})
                blocks = (RepetitionFilter(), QualityFilter(), LineFilter())
                kept[rules] += all(block.filter(document) is True for block in blocks)
        assert kept[language] > 10 and kept["en"] == 0


def test_a_word_of_english_takes_three_clusters_of_thai() -> None:
    english = langpack.messages("en")
    for language, pieces in (("th", 3), ("hi", 1)):
        theirs = langpack.messages(language)
        both = [name for name, text in english.items() if len(text) > 40 and theirs.get(name, text) != text]
        own = sum(len(words.split(theirs[name], language)) for name in both)
        of_english = sum(len(words.split(english[name], "en")) for name in both)
        assert len(both) > 500 and 0.8 < own / of_english / pieces < 1.25
        assert words.PIECES.get(language, 1) == pieces


# Charsets that the web has pages of these languages in.
CHARSETS = {
    "ru": ("cp1251", "koi8-r", "iso8859-5"), "uk": ("cp1251", "koi8-u"), "el": ("cp1253", "iso8859-7"),
    "ko": ("euc_kr",), "ja": ("shift_jis", "euc_jp", "iso2022_jp"), "zh_CN": ("gbk",), "fa": ("cp1256",),
    "tr": ("cp1254",), "pl": ("cp1250", "iso8859-2"), "cs": ("cp1250", "iso8859-2"), "lt": ("cp1257",),
    "fr": ("cp1252",), "th": ("cp874",),
}  # fmt: skip


def real_pages(language: str, count: int) -> list[str]:
    """The longest pages of GNOME's help, without a word on their charset; of Thai what Firefox says."""
    if language == "th":
        return sorted(langpack.pages("th").values(), key=len)[-count:]
    folder = debian.folder("gnome-user-docs") / "usr/share/help" / language / "gnome-help"
    paths = sorted(folder.glob("*.page"), key=lambda path: path.stat().st_size)[-count:]
    bare = (re.sub(r"<\?xml.*?\?>", "", path.read_text(encoding="utf-8")) for path in paths)
    return [f"<html lang={language[:2]}><body>{page}</body></html>" for page in bare]


@pytest.mark.parametrize("language", CHARSETS)
def test_charsets_that_are_declared_wrong_or_not_at_all(language: str) -> None:
    """By HTTP, in the page, nowhere, or as the Latin letters that many servers declare for everything."""
    for charset in CHARSETS[language]:
        for page in real_pages(language, 4):
            body = page.encode(charset, "ignore")
            wanted = body.decode(charset)
            for declared, before in ((charset, b""), (None, b"<meta charset=%s>" % charset.encode()), (None, b"")):
                assert bodies.text(before + body, declared)[0] == before.decode() + wanted, (charset, declared, before)
            for declared in ("iso-8859-1", "utf-8"):
                assert bodies.text(body, declared)[0] == wanted, (charset, declared)


def test_letters_of_another_script_need_no_language() -> None:
    """A page that says it is English, as templates do, or nothing."""
    for charset, page in (("cp1251", real_pages("ru", 1)[0]), ("cp874", real_pages("th", 1)[0])):
        for lang in ("", " lang=en"):
            body = re.sub("<html[^>]*>", f"<html{lang}>", page).encode(charset, "ignore")
            assert bodies.text(body, "iso-8859-1") == (body.decode(charset), "detected")


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xe2\x80"])
def test_a_character_that_is_cut_leaves_the_others_of_utf8(bad: bytes) -> None:
    page = debian.files("libreoffice-help-de", limit=40)[7].read_bytes()
    for declared in (None, "utf-8", "iso-8859-1"):
        text, how = bodies.text(page[:3000] + bad + b" " + page[3000:], declared)
        assert how == "replaced" and text.replace("\ufffd ", "") == page.decode()


CENTRAL, WEST = ("cp1250", "iso8859-2"), ("cp1252", "iso8859-15")


@pytest.mark.parametrize("language", ["pl", "cs", "hu", "de", "fr", "it", "es"])
def test_latin_letters_tell_their_charset_where_no_language_does(language: str) -> None:
    """Pages that say to be English, as templates do, or nothing; declared as another part of Europe, or not at all."""
    charsets = CENTRAL if language in ("pl", "cs", "hu") else WEST
    for charset, page in ((charset, page) for charset in charsets for page in real_pages(language, 4)):
        for lang in ("", " lang=en"):
            body = re.sub("<html[^>]*>", f"<html{lang}>", page).encode(charset, "ignore")
            for declared in (None, "iso-8859-1", *(CENTRAL if charsets == CENTRAL else ())):
                assert bodies.text(body, declared)[0] == body.decode(charset), (charset, lang, declared)


# Of which cchardet 2.2 is sure that it is BIG5.
CLICKS = "Для этого понадобится колориметр или спектрометр."


@pytest.mark.parametrize(
    ("text", "charset", "declared"),
    [
        ("Příliš žluťoučký kůň úpěl ďábelské ódy.", "cp1250", "iso-8859-1"),
        ("Zażółć gęślą jaźń, a potem świeć.", "cp1250", "iso-8859-2"),
        ("Zażółć gęślą jaźń, a potem świeć.", "iso8859-2", "windows-1250"),
        ("Pijamalı hasta yağız şoföre çabucak güvendi.", "cp1254", "iso-8859-1"),  # noqa: RUF001
        ("È così: perché no? La città è più bella.", "cp1252", None),
        ("Año: el niño soñó.", "cp1252", None),
        ("Dès Noël, où un zéphyr haï me vêt de glaçons.", "cp1252", "windows-1250"),
        ("“Quotes” – dashes… and 5 m³, ±2 °C, © 2020, ½.", "cp1252", "iso-8859-1"),  # noqa: RUF001
        ("Søren, Peña and Müller, a naïve façade", "cp1252", "iso-8859-1"),
        ("Съешь же ещё этих мягких французских булок", "cp1251", None),
        (CLICKS, "cp1251", None),
        (CLICKS, "cp1251", "iso-8859-1"),
    ],
)
def test_a_sentence_is_read_by_its_letters(text: str, charset: str, declared: str | None) -> None:
    assert bodies.text(text.encode(charset), declared)[0] == text
