"""What rules count of a text's words, in arrays: no word becomes a string of its own.

To split a text by an expression takes most of the time of any rule that counts words. Here the words of `words.split`
are found by comparing each character's class with its neighbours' (`kernels`), and kept as a length, the classes of
characters that they hold, and a hash. What holds Chinese, Japanese, Thai, Lao, Khmer, Burmese or Tibetan, from white
space to white space, is split by `words` itself, as are a few texts with joiners among punctuation.

A hash is the sum of each character's code point times BASE ** position, modulo 2^64, so that of words set one after the
other follows from theirs. Equal strings have equal hashes; different ones have, but by an accident of about 2^-64 or by
somebody's design.
"""

from __future__ import annotations

import functools
import re
import sys
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import regex
from datatrove.utils.text import PUNCTUATION_SET

from llama31.curate import kernels, words
from llama31.curate.kernels import (
    ALPHABETIC,
    DIGIT,
    JOIN,
    OTHER,
    POINT,
    SPACE,
    SPOKEN,
    WORD,
    Codes,
    Hashes,
    Ints,
    Kinds,
)

BASE = int(kernels.BASE)
LEAST_HARD = 0xAD  # the first character that words.HARD names
UNASSIGNED = 0x40000  # from here on nothing is a character but for TAGS
TAGS = (0xE0000, 0xE1000)
PIECE = 1 << 20  # characters that are looked at together


class Words(NamedTuple):
    """Words of a piece of text: characters, classes of those, hash, where in it they begin; each [words]."""

    lengths: Ints
    kinds: Kinds
    hashes: Hashes
    places: Ints


class Spans:
    """Words of a text, with symbols that stand alone (`words.split(text, language, symbols=True)`)."""

    def __init__(self, text: str, language: str) -> None:
        parts, before = [], 0
        for piece in pieces(text):
            found = measured(piece, language)
            parts.append(found._replace(places=found.places + before))
            before += len(piece)
        joined = [np.concatenate(part) for part in zip(*parts)] if len(parts) > 1 else parts[0]
        self.lengths, self.kinds, self.hashes, self.places = Words(*joined)

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def starts(self) -> Ints:
        """Where each word begins in the words set one after the other, and where the last ends, [words + 1]."""
        result = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self.lengths, out=result[1:])
        return result


@functools.lru_cache(2)
def of(text: str, language: str) -> Spans:
    """Spans of a text, kept for the next filter, which is given the same one."""
    return Spans(text, language)


def joined(text: str, language: str) -> bytes:
    """The words of `words.split`, one space between two, in UTF-8."""
    found, codes = Spans(text, language), _codes(text)
    table = _classes(True, _table_size(codes))
    result, sure = kernels.joined(codes, table, found.places, found.lengths)
    if sure and codes.dtype == np.uint8:
        return result.tobytes()
    plain = result.tobytes().decode("utf-32-le", "surrogatepass") if sure else " ".join(words.split(text, language))
    return plain.encode("utf-8", "surrogatepass")


def pieces(text: str, size: int = PIECE) -> list[str]:
    """A text cut at white space into pieces of about `size` characters, longer where there is none."""
    result, begin = [], 0
    while len(text) - begin > size:
        cut = words.SPACED.search(text, begin + size)
        if cut is None:
            break
        result.append(text[begin : cut.end()])
        begin = cut.end()
    return [*result, text[begin:]]


def hash_of(word: str) -> int:
    """The hash of one string."""
    result = 0
    for character in reversed(word):
        result = (result * BASE + ord(character)) % (1 << 64)
    return result


@functools.cache
def _classes(hard: bool, codes: int) -> Kinds:
    """Class of each code point, as one of the two expressions of `words` sees it, [codes]."""
    patterns = {WORD: words.LETTER if hard else r"\w", DIGIT: r"\d", JOIN: r"['\u2019\-]", POINT: "[.,:]"}
    patterns |= {kind: words.alike(one) if hard else one for kind, one in ((SPACE, words.SPACE), (OTHER, words.OTHER))}
    table = np.full(codes, SPOKEN, np.uint8)
    table[[code for code in map(ord, PUNCTUATION_SET) if code < codes]] = 0
    letters = min(codes, UNASSIGNED)
    table[:letters][np.fromiter(map(str.isalpha, map(chr, range(letters))), np.bool_, letters)] |= ALPHABETIC
    for kind, pattern in patterns.items():
        table[_table(pattern, hard, codes)] |= kind
    return table


@functools.cache
def _table(pattern: str, hard: bool, codes: int) -> npt.NDArray[np.bool_]:
    """Which code points an expression for one character matches, [codes]."""
    compiled = regex.compile(f"{pattern}+", regex.V1) if hard else re.compile(f"{pattern}+")
    # Where Unicode has assigned nothing, or left it to private use, all are alike, and to look at each takes seconds.
    table = np.full(codes, compiled.match(chr(UNASSIGNED)) is not None)
    for begin, end in ((0, min(codes, UNASSIGNED)), *([TAGS] if codes > UNASSIGNED else [])):
        table[begin:end] = False
        for match in compiled.finditer("".join(map(chr, range(begin, end)))):
            table[begin + match.start() : begin + match.end()] = True
    return table


@functools.cache
def _scripts(codes: int) -> Kinds:
    """1 for code points that `re` cannot tell to be part of a word, of which 2 for scripts without spaces, [codes]."""
    spaceless = _table(f"[{words.BY_CHARACTER}{words.BY_CLUSTER}]", True, codes)
    return _table(words.HARD.pattern, False, codes) * (np.uint8(1) + spaceless)


def _codes(text: str) -> Codes:
    """Code points of a text, [characters]."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _table_size(codes: Codes) -> int:
    """How far a table need reach: ASCII, two planes with all scripts but rare Chinese characters, or all of them."""
    if codes.dtype == np.uint8:
        return 128
    return 1 << 17 if codes.max() < 1 << 17 else sys.maxunicode + 1


def measured(text: str, language: str) -> Words:
    """Words of a text that is looked at in one go."""
    text = f" {text} "  # a border for the first and the last character
    codes = _codes(text)
    size = _table_size(codes)
    script = kernels.highest(codes, _scripts(size), LEAST_HARD) if size > 128 else 0
    classes, apart = _classes(script > 0, size), np.zeros((0, 2), np.int64)
    if script > 1:
        codes, apart = kernels.set_apart(codes, _scripts(size), classes)
    kinds, edges, sure = kernels.word_edges(codes, classes)
    if not sure:
        return _by_strings(text, language)
    if language in words.ELISIONS:
        edges = _elided(text, kinds, edges, _elision(language, script > 0))
    found = Words(*kernels.measured(codes, kinds, edges), edges[::2])
    return _with_stretches(found, text, apart, language) if len(apart) else found


def _with_stretches(found: Words, text: str, apart: Ints, language: str) -> Words:
    """Words of a text, and those of stretches between white space that were set apart; in their order."""
    begins, ends = apart[:, 0], apart[:, 1]
    others = _by_strings(" " + " ".join(text[begin:end] for begin, end in apart.tolist()), language)
    offsets = np.cumsum(np.append(0, ends - begins + 1))[:-1]
    shifts = begins - 1 - offsets
    others = others._replace(places=others.places + shifts[np.searchsorted(offsets, others.places, "right") - 1])
    order = np.argsort(np.concatenate([found.places, others.places]), kind="stable")
    return Words(*(np.concatenate([field, other])[order] for field, other in zip(found, others)))


@functools.cache
def _elision(language: str, hard: bool) -> re.Pattern[str]:
    pattern = words.ELISIONS[language]
    return regex.compile(words.alike(pattern), regex.V1) if hard else re.compile(pattern)


def _elided(text: str, kinds: Kinds, edges: Ints, elision: re.Pattern[str]) -> Ints:
    """The edges of words with those that an apostrophe cuts off set apart."""
    joined = np.flatnonzero((kinds[1:-1] & JOIN) & ((kinds[:-2] & kinds[2:] & WORD) << 2)) + 1
    starts = edges[::2] + 1
    candidates = np.unique(starts[np.searchsorted(starts, joined, "right") - 1])
    cuts = [match.end() - 1 for at in candidates.tolist() if (match := elision.match(text, at))]
    return np.sort(np.concatenate([edges, np.repeat(np.array(cuts, np.int64), 2)]), kind="stable")


def _by_strings(text: str, language: str) -> Words:
    """The same of words that an expression of `words` finds."""
    pattern = words.pattern(language if language in words.ELISIONS else "", True, True)
    borders = (at for match in pattern.finditer(text) for at in match.span())
    edges, codes = np.fromiter(borders, np.int64) - 1, _codes(text)
    kinds = _classes(False, _table_size(codes))[codes]
    return Words(*kernels.measured(codes, kinds, edges), edges[::2])
