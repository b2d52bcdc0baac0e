"""What rules count of a text's words, in arrays: no word becomes a string of its own.

To split a text by an expression takes most of the time of any rule that counts words. Here the words of `words.split`
are found by comparing each character's class with its neighbours', and kept as a length, the classes of characters
that they hold, and a hash. Texts with Chinese, Japanese, Thai, Lao, Khmer, Burmese or Tibetan in them are split by
`words` itself, as are a few texts with joiners among punctuation; what follows is the same.

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

from llama31.curate import words

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Kinds = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.uint8] | npt.NDArray[np.uint32]

# Of a character: part of a word; a decimal digit; joins letters; joins digits; white space; neither word nor white
# space; a letter (`str.isalpha`); none of datatrove's punctuation.
WORD, DIGIT, JOIN, POINT, SPACE, OTHER, ALPHABETIC, SPOKEN = (np.uint8(1 << bit) for bit in range(8))
BASE = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, of Knuth's multiplicative hashing; any odd number does
BLOCK = 1 << 16  # powers that are kept
LEAST_HARD = 0xAD  # the first character that words.HARD names
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

    @cached_property
    def sums(self) -> tuple[Hashes, Hashes]:
        """Hash of all words before each, [words + 1], and BASE ** -position of each, [words + 1]."""
        sums = np.zeros(len(self) + 1, np.uint64)
        np.cumsum(self.hashes * power(self.starts[:-1], BASE), out=sums[1:])
        return sums, power(self.starts, INVERSE)

    def runs(self, n: int) -> Hashes:
        """Hash of each run of n words, set one after the other without a space, [words - n + 1, or 0]."""
        count = max(0, len(self) - n + 1)
        sums, inverses = self.sums
        result: Hashes = (sums[n:] - sums[:count]) * inverses[:count] if count else sums[:0]
        return result

    def longest(self, n: int) -> int:
        """Characters of the longest run of n words; 0 where there is none."""
        return int((self.starts[n:] - self.starts[:-n]).max()) if len(self) >= n else 0


@functools.lru_cache(2)
def of(text: str, language: str) -> Spans:
    """Spans of a text, kept for the next filter, which is given the same one."""
    return Spans(text, language)


def with_digits(text: str, found: Spans) -> npt.NDArray[np.bool_]:
    """Which words have a decimal digit in them, [words]."""
    result = np.zeros(len(found), np.bool_)
    at = np.flatnonzero(_kinds(_codes(text), False) & DIGIT)  # each is part of a word
    result[np.searchsorted(found.places, at, "right") - 1] = True
    return result


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


INVERSE = pow(BASE, -1, 1 << 64)


@functools.cache
def _powers(base: int) -> Hashes:
    """A base to the 0, 1, ... BLOCK - 1, modulo 2^64."""
    result = np.full(BLOCK, base, np.uint64)
    result[0] = 1
    return np.cumprod(result, dtype=np.uint64)


def power(exponents: Ints, base: int) -> Hashes:
    """A base to exponents that ascend, modulo 2^64."""
    if not len(exponents) or exponents[-1] < BLOCK:
        return _powers(base)[exponents]
    blocks = np.full(int(exponents[-1]) // BLOCK + 1, pow(base, BLOCK, 1 << 64), np.uint64)
    blocks[0] = 1
    return _powers(base)[exponents % BLOCK] * np.cumprod(blocks, dtype=np.uint64)[exponents // BLOCK]


@functools.cache
def _classes(hard: bool, codes: int) -> Kinds:
    """Class of each code point, as one of the two expressions of `words` sees it, [codes]."""
    patterns = {WORD: words.LETTER if hard else r"\w", DIGIT: r"\d", JOIN: r"['\u2019\-]", POINT: "[.,:]"}
    patterns |= {SPACE: r"\s", OTHER: r"[^\w\s]"}
    table = np.full(codes, SPOKEN, np.uint8)
    table[[code for code in map(ord, PUNCTUATION_SET) if code < codes]] = 0
    table[np.fromiter(map(str.isalpha, map(chr, range(codes))), np.bool_, codes)] |= ALPHABETIC
    for kind, pattern in patterns.items():
        table[_table(pattern, hard, codes)] |= kind
    return table


@functools.cache
def _table(pattern: str, hard: bool, codes: int) -> npt.NDArray[np.bool_]:
    """Which code points an expression for one character matches, [codes]."""
    table = np.zeros(codes, np.bool_)
    compiled = regex.compile(f"{pattern}+", regex.V1) if hard else re.compile(f"{pattern}+")
    for match in compiled.finditer("".join(map(chr, range(codes)))):
        table[match.start() : match.end()] = True
    return table


@functools.cache
def _ascii_classes() -> bytes:
    return _classes(False, 128).tobytes() + bytes(128)


def _codes(text: str) -> Codes:
    """Code points of a text, [characters]."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _table_size(codes: Codes) -> int:
    """How far a table need reach: the first two planes hold all scripts but rare Chinese characters."""
    return 1 << 17 if codes.max() < 1 << 17 else sys.maxunicode + 1


def _kinds(codes: Codes, hard: bool) -> Kinds:
    """Classes of a text's characters, [characters]."""
    if codes.dtype == np.uint8:
        return np.frombuffer(codes.tobytes().translate(_ascii_classes()), np.uint8)
    return _classes(hard, _table_size(codes))[codes]


def measured(text: str, language: str) -> Words:
    """Words of a text that is looked at in one go."""
    text = f" {text} "  # a border for the first and the last character
    codes = _codes(text)
    hard = False
    if codes.dtype != np.uint8:
        high, size = codes[codes >= LEAST_HARD], _table_size(codes)
        hard = bool(_table(words.HARD.pattern, False, size)[high].any())
        if hard and _table(f"[{words.BY_CHARACTER}{words.BY_CLUSTER}]", True, size)[high].any():
            return _by_strings(text, language)
    kinds = _kinds(codes, hard)
    found = _bounds(kinds, hard)
    if found is None:
        return _by_strings(text, language)
    starts, ends, joins = found
    if language in words.ELISIONS:
        starts, ends = _elided(text, starts, ends, joins[codes[joins] != ord("-")], _elision(language, hard))
    return _summed(codes, kinds, starts, ends)


def _bounds(kinds: Kinds, hard: bool) -> tuple[Ints, Ints, Ints] | None:
    """Where words begin and end, and the characters that join within them; None where only `words` can say."""
    inside = kinds & WORD
    at = np.flatnonzero((kinds & (JOIN | POINT)) != 0)
    both = kinds[at - 1] & kinds[at + 1]
    joins = at[(both & np.where(kinds[at] & JOIN, WORD, DIGIT)) != 0]
    inside[joins] = 1
    # A symbol after white space; SPACE is the bit below OTHER.
    first = np.flatnonzero(((kinds[1:] >> 1) & kinds[:-1] & SPACE) != 0) + 1
    last = first + 1
    longer = np.flatnonzero(kinds[last] & OTHER)
    if len(longer):
        ends = np.flatnonzero((kinds & OTHER) == 0)
        last[longer] = ends[np.searchsorted(ends, last[longer])]
    alone = (kinds[last] & SPACE) != 0
    first, last = first[alone], last[alone]
    lengths = last - first
    at = first
    if len(longer):
        at = np.arange(lengths.sum()) + np.repeat(first - np.cumsum(lengths) + lengths, lengths)
    if hard and inside[at].any():
        return None  # joiners, which are part of a word and punctuation both
    inside[at] = 1
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    return edges[::2], edges[1::2], joins


@functools.cache
def _elision(language: str, hard: bool) -> re.Pattern[str]:
    pattern = words.ELISIONS[language]
    return regex.compile(pattern, regex.V1) if hard else re.compile(pattern)


def _elided(text: str, starts: Ints, ends: Ints, joins: Ints, elision: re.Pattern[str]) -> tuple[Ints, Ints]:
    """Words with those that an apostrophe cuts off set apart."""
    candidates = np.unique(starts[np.searchsorted(starts, joins, "right") - 1])
    cuts = [match.end() for at in candidates.tolist() if (match := elision.match(text, at))]
    return np.sort(np.concatenate([starts, cuts])).astype(np.int64), np.sort(np.concatenate([ends, cuts])).astype(
        np.int64
    )


def _by_strings(text: str, language: str) -> Words:
    """The same of words that an expression of `words` finds."""
    pattern = words.pattern(language if language in words.ELISIONS else "", True, True)
    found = [(match.start(), match[0]) for match in pattern.finditer(text)]
    lengths = np.fromiter((len(word) for _, word in found), np.int64, len(found))
    ends = np.cumsum(lengths)
    codes = _codes(f" {''.join(word for _, word in found)} ")
    result = _summed(codes, _kinds(codes, False), ends - lengths + 1, ends + 1)
    return result._replace(places=np.fromiter((at for at, _ in found), np.int64, len(found)) - 1)


def _summed(codes: Codes, kinds: Kinds, starts: Ints, ends: Ints) -> Words:
    """Lengths, classes and hashes of words by where they stand."""
    if not len(starts):
        return Words(np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(0, np.uint64), starts)
    powers, step, factor = _powers(BASE), pow(BASE, BLOCK, 1 << 64), 1
    sums = np.empty(len(codes), np.uint64)
    for begin in range(0, len(codes), BLOCK):
        part = codes[begin : begin + BLOCK].astype(np.uint64)
        part *= powers[: len(part)]
        if factor != 1:
            part *= np.uint64(factor)
        sums[begin : begin + BLOCK] = part
        factor = factor * step % (1 << 64)
    np.cumsum(sums, out=sums)
    hashes = sums[ends - 1] - sums[starts - 1]  # the character before the first is a border's
    hashes *= power(starts, INVERSE)
    found = kinds[starts]
    # Words that begin with a letter are known already.
    rest = np.flatnonzero((found & ALPHABETIC) == 0)
    if len(rest):
        pairs = np.stack([starts[rest], ends[rest]], 1).ravel()
        found[rest] = np.bitwise_or.reduceat(kinds, pairs)[::2]
    return Words(ends - starts, found, hashes, starts - 1)
