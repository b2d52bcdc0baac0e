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
def _ascii_classes(hard: bool) -> bytes:
    return _classes(hard, 128).tobytes() + bytes(128)


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
        return np.frombuffer(codes.tobytes().translate(_ascii_classes(hard)), np.uint8)
    table, others = _classes(hard, _table_size(codes)), codes >= 128
    if 8 * np.count_nonzero(others) > len(codes):
        return table[codes]
    # Mostly few are not ASCII's, whose classes are found faster.
    kinds = np.frombuffer(bytearray(codes.astype(np.uint8).tobytes().translate(_ascii_classes(hard))), np.uint8)
    kinds[others] = table[codes[others]]
    return kinds


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
    edges, joined = found
    if language in words.ELISIONS:
        joins = np.flatnonzero(joined) + 1
        edges = _elided(text, edges, joins[codes[joins] != ord("-")], _elision(language, hard))
    return _summed(codes, kinds, edges)


def _bounds(kinds: Kinds, hard: bool) -> tuple[Ints, Kinds] | None:
    """By turns the characters before a word and those that end one, and which characters, from the second on, join.

    None where only `words` can say. Classes are compared all over the text: to look them up in a few places takes
    longer.
    """
    inside = kinds & WORD
    joined = kinds[:-2] & kinds[2:]
    joined &= kinds[1:-1] >> 2  # JOIN and POINT stand two bits above WORD and DIGIT
    joined &= WORD | DIGIT
    inside[1:-1] |= joined != 0
    edges = inside[1:] ^ inside[:-1]
    # A symbol after white space; SPACE is the bit below OTHER.
    before = np.flatnonzero(((kinds[1:] >> 1) & kinds[:-1] & SPACE) != 0)
    last = before + 1
    longer = np.flatnonzero((kinds[last + 1] & OTHER) != 0)
    if len(longer):
        ends = np.flatnonzero((kinds[:-1] & ~kinds[1:] & OTHER) != 0)
        last[longer] = ends[np.searchsorted(ends, last[longer])]
    alone = (kinds[last + 1] & SPACE) != 0
    before, last = before[alone], last[alone]
    if hard and len(before):
        both = np.flatnonzero(inside & (kinds >> 5))  # joiners, which are part of a word and punctuation
        if (both <= np.append(0, last)[np.searchsorted(before, both)]).any():
            return None
    edges[before] = edges[last] = 1
    return np.flatnonzero(edges != 0), joined


@functools.cache
def _elision(language: str, hard: bool) -> re.Pattern[str]:
    pattern = words.ELISIONS[language]
    return regex.compile(pattern, regex.V1) if hard else re.compile(pattern)


def _elided(text: str, edges: Ints, joins: Ints, elision: re.Pattern[str]) -> Ints:
    """The edges of words with those that an apostrophe cuts off set apart."""
    starts = edges[::2] + 1
    candidates = np.unique(starts[np.searchsorted(starts, joins, "right") - 1])
    cuts = [match.end() - 1 for at in candidates.tolist() if (match := elision.match(text, at))]
    return np.sort(np.concatenate([edges, np.repeat(np.array(cuts, np.int64), 2)]), kind="stable")


def _by_strings(text: str, language: str) -> Words:
    """The same of words that an expression of `words` finds."""
    pattern = words.pattern(language if language in words.ELISIONS else "", True, True)
    found = [(match.start(), match[0]) for match in pattern.finditer(text)]
    lengths = np.fromiter((len(word) for _, word in found), np.int64, len(found))
    ends = np.cumsum(lengths)
    codes = _codes(f" {''.join(word for _, word in found)} ")
    result = _summed(codes, _kinds(codes, False), np.stack([ends - lengths, ends], 1).ravel())
    return result._replace(places=np.fromiter((at for at, _ in found), np.int64, len(found)) - 1)


def _summed(codes: Codes, kinds: Kinds, edges: Ints) -> Words:
    """Lengths, classes and hashes of words, by the characters before each and those that end it by turns."""
    before, last = edges[::2], edges[1::2]
    if not len(before):
        return Words(np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(0, np.uint64), before)
    powers, step, factor = _powers(BASE), pow(BASE, BLOCK, 1 << 64), 1
    sums = np.empty(len(codes), np.uint64)
    for begin in range(0, len(codes), BLOCK):
        part = sums[begin : begin + BLOCK]
        np.multiply(codes[begin : begin + BLOCK], powers[: len(part)], out=part)
        if factor != 1:
            part *= np.uint64(factor)
        factor = factor * step % (1 << 64)
    np.cumsum(sums, out=sums)
    bounds = sums[edges]  # the character before the first is a border's
    starts = before + 1
    hashes = (bounds[1::2] - bounds[::2]) * power(starts, INVERSE)
    found = kinds[starts]
    # Words that begin with a letter are known already.
    rest = np.flatnonzero((found & ALPHABETIC) == 0)
    if len(rest):
        pairs = np.stack([starts[rest], last[rest] + 1], 1).ravel()
        found[rest] = np.bitwise_or.reduceat(kinds, pairs)[::2]
    return Words(last - before, found, hashes, before)
