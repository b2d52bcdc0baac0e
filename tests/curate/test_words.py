"""Words of eight languages and more: marks that `re` cuts at, scripts without spaces, what joins and what does not."""

# ruff: noqa: RUF001 - punctuation of all languages
from __future__ import annotations

import unicodedata

import pytest

from llama31.curate import words

CASES = [
    (
        "en",
        "Don't re-use the e-mail: 'quoted' (well-known).",
        ["Don't", "re-use", "the", "e-mail", "quoted", "well-known"],
    ),
    ("en", "1,000.50 at 12:30, v1.2.3; 3. foo_bar", ["1,000.50", "at", "12:30", "v1.2.3", "3", "foo_bar"]),
    ("en", "- a -- b | c -", ["a", "b", "c"]),
    (
        "en",
        "naïve cafe\u0301 co\u00adoperate 日本語です ok",
        ["naïve", "cafe\u0301", "co\u00adoperate", *"日本語です", "ok"],
    ),
    ("de", "»Größe« der E-Mail-Adresse", ["Größe", "der", "E-Mail-Adresse"]),
    (
        "fr",
        "L'homme qu'il a vu aujourd’hui, jusqu’à l’été",
        ["L'", "homme", "qu'", "il", "a", "vu", "aujourd’hui", "jusqu’", "à", "l’", "été"],
    ),
    ("it", "dell'amico un po' d’acqua", ["dell'", "amico", "un", "po", "d’", "acqua"]),
    ("en", "dell'amico", ["dell'amico"]),
    ("es", "¿Qué pasó? ¡Así!", ["Qué", "pasó", "Así"]),
    ("pt", "disse-me que não", ["disse-me", "que", "não"]),
    ("hi", "हिन्दी में परीक्षण है। क्‍या?", ["हिन्दी", "में", "परीक्षण", "है", "क्‍या"]),
    ("th", "ภาษาไทย ที่เรียน ๑๒๓ คน", ["ภา", "ษา", "ไท", "ย", "ที่", "เรี", "ย", "น", "๑๒๓", "ค", "น"]),
    ("zh", "我有3本书, iPhone15", [*"我有", "3", *"本书", "iPhone15"]),
    ("ja", "データの行", [*"データの行"]),
    ("my", "မြန်မာ", ["မြ", "န်", "မာ"]),
    ("km", "ខ្មែរ", ["ខ្មែ", "រ"]),
    ("ru", "Что-то ещё", ["Что-то", "ещё"]),
    ("vi", "Việt Nam", ["Việt", "Nam"]),
    ("ar", "مُحَمَّد كتب", ["مُحَمَّد", "كتب"]),
    ("ko", "한국어 문장", ["한국어", "문장"]),
    ("en", "½ cup, x² and ②", ["½", "cup", "x²", "and", "②"]),
    ("fr", "l'½ et l’②", ["l'", "½", "et", "l’", "②"]),
    ("lo", "\u0e83ກ", ["ກ"]),
    ("xx", "", []),
    ("en", " \n\t--- \u200b", []),
]


@pytest.mark.parametrize(("language", "text", "expected"), CASES)
def test_words(language: str, text: str, expected: list[str]) -> None:
    assert words.split(text, language) == expected


@pytest.mark.parametrize(("language", "text", "expected"), CASES)
def test_the_fast_expression_and_the_full_one_agree(language: str, text: str, expected: list[str]) -> None:
    """A text is given to `re` or to `regex` by its characters: one of the others elsewhere in it changes no word."""
    assert words.split(text + " ।", language) == expected
    assert words.split(text + " ं", language)[: len(expected)] == expected
    assert "".join(expected) in "".join(text.split()) or all(word in text for word in expected)


def test_symbols_that_stand_alone_are_words_on_demand() -> None:
    text = "| a | -- 'b' ... है | #"
    assert words.split(text, "en", symbols=True) == ["|", "a", "|", "--", "b", "...", "है", "|", "#"]
    assert words.split(text[:13], "en", symbols=True) == ["|", "a", "|", "--", "b"]
    for other in ("", " है"):  # separators are white space for `re` alone
        assert words.split(f"|\x1c#{other}", "en", symbols=True)[:2] == ["|", "#"]


def test_marks_cut_no_word_in_any_script() -> None:
    """Decomposed and composed forms of a text have as many words."""
    text = "Việt Große été ñandú ångström क़लम ਪੰਜਾਬੀ தமிழ் తెలుగు עִבְרִית ประเทศ"
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert len(words.split(composed, "en")) == len(words.split(decomposed, "en"))
    assert words.split("ਪੰਜਾਬੀ தமிழ் తెలుగు עִבְרִית", "en") == ["ਪੰਜਾਬੀ", "தமிழ்", "తెలుగు", "עִבְרִית"]


@pytest.mark.parametrize(
    ("language", "text", "count"),
    [
        ("en", "One. Two! Three? Four", 4),
        ("en", "As J. Smith said, e.g. here, it is 3.14. So?!", 2),
        ("en", 'He said: "Go." Then he went...\nAnd more', 3),
        ("hi", "यह है। वह है। क्या?", 3),
        ("zh", "我来了。你呢？“好！”", 3),
        ("th", "ผมไป ตลาด\nแล้ว", 3),
        ("en", "", 0),
        ("en", "\n\n", 0),
    ],
)
def test_sentences(language: str, text: str, count: int) -> None:
    found = words.sentences(text, language)
    assert len(found) == count and all(sentence.strip() == sentence for sentence in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_long_texts_without_a_border_are_linear() -> None:
    """A megabyte of one kind of character: one word, or none, and no expression that tries every cut."""
    for character, count in (("a", 1), ("#", 0), (".", 0), ("’", 0), ("ก", 1_000_000), ("ि", 1)):
        assert len(words.split(character * 1_000_000, "fr")) == count
        assert len(words.sentences(character * 1_000_000, "fr")) == 1
