"""Loops over characters, words and lines, compiled by numba: what has no form in arrays that is as fast or as short.

numba compiles a function at its first call and keeps the result beside this file, or in the user's cache where it may
not write here, so that the next process takes it from there (`Kept`). It compiles anew where this file is another, and
would not see a change elsewhere: so all of them, and the numbers that they use, stand in this module.

Arrays are of one dimension. Hashes are taken modulo 2^64; equal ones of different things are an accident of about
2^-63, or somebody's design.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import string
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.core import caching

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]
Kinds = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.uint8] | npt.NDArray[np.uint32]

# Of a character: part of a word; a decimal digit; joins letters; joins digits; white space; neither word nor white
# space; a letter (`str.isalpha`); none of datatrove's punctuation.
WORD, DIGIT, JOIN, POINT, SPACE, OTHER, ALPHABETIC, SPOKEN = (np.uint8(1 << bit) for bit in range(8))
BASE = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, of Knuth's multiplicative hashing; any odd number does
INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))
MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)  # odd; apart from BASE, so that a pair is no longer word
PRIME, PRIME_BITS = np.uint64((1 << 61) - 1), np.uint64(61)
ONE, ZERO, BITS = np.uint64(1), np.uint64(0), np.uint64(64)

LINE_FEED = np.uint8(10)
# What a byte of a line counts as: of ASCII letters and digits alone, small ones for capitals, 0 for each digit.
SAME = np.arange(256, dtype=np.uint8)
SAME[:128] = 0
for letter in string.ascii_letters:
    SAME[ord(letter)] = ord(letter.lower())
SAME[[*string.digits.encode()]] = ord("0")
FACTORS = np.where(SAME > 0, BASE, ONE)


class KeptFiles(caching.IndexDataCacheFile):
    """numba's files of one function, of which each says what it holds: what is not as it should be is not there.

    numba writes its index first, and numbers the files by it. Two processes that begin at once may give one number to
    two functions; where the disk is full or a process ends, the index tells of a file of the code before. Such a file
    would be run for another one.
    """

    def save(self, key: Any, data: Any) -> None:
        """Keep what was compiled for arguments and a processor."""
        content = self._dump(data)
        super().save(key, (self._source_stamp, key, hashlib.sha256(content).digest(), content))

    def load(self, key: Any) -> Any:
        """What was kept, or None."""
        try:
            stamp, of, digest, content = super().load(key) or (None, None, None, b"")
        except Exception:  # noqa: BLE001 - what was cut off or is not ours has errors of any kind
            return None
        whole = (stamp, of, digest) == (self._source_stamp, key, hashlib.sha256(content).digest())
        return pickle.loads(content) if whole else None

    def _load_index(self) -> dict[Any, str]:
        try:
            return dict(super()._load_index())
        except Exception:  # noqa: BLE001 - as above; the next one to keep something writes it anew
            return {}


class Kept(caching.FunctionCache):
    """What was compiled of a function; where nothing can be written, each process compiles for itself."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__(function)
        locator = self._impl.locator
        self._cache_file = KeptFiles(self._cache_path, self._impl.filename_base, locator.get_source_stamp())

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled, where that can be done."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


def compiled[F: Callable[..., object]](function: F) -> F:
    """A function that numba compiles; again in each process where no folder can keep it."""
    result = numba.njit(function)
    with contextlib.suppress(RuntimeError):  # "no locator available"
        result._cache = Kept(function)
    return result


@compiled
def highest(codes: Codes, table: Kinds, least: int) -> np.uint8:
    """The highest class in a table of the code points from `least` on; 0 without any."""
    result = np.uint8(0)
    for code in codes:
        if code >= least:
            result = max(result, table[code])
    return result


@compiled
def set_apart(codes: Codes, scripts: Kinds, table: Kinds) -> tuple[Codes, Ints]:
    """Code points with spaces for each stretch between white space that has one of class 2; where those begin and end.

    The first and the last character are white space. Stretches are [stretches, 2].
    """
    result, borders, found = codes.copy(), np.empty(len(codes) + 1, np.int64), 0
    begin, apart = 0, False
    for i in range(len(codes)):
        apart = apart or scripts[codes[i]] == 2
        if table[codes[i]] & SPACE:
            if apart:
                borders[found], borders[found + 1] = begin, i
                result[begin:i] = 32
                found += 2
            begin, apart = i + 1, False
    return result, borders[:found].copy().reshape(-1, 2)


@compiled
def word_edges(codes: Codes, table: Kinds) -> tuple[Kinds, Ints, bool]:
    """Classes of characters [characters], and by turns the character before each word and the one that ends it.

    The first and the last character are white space. Words are runs of WORD, joined by one character that joins, and
    runs of OTHER between white space. False where one of those holds a character that is both: only `words` can say.
    """
    count = len(codes)
    kinds = np.empty(count, np.uint8)
    for i in range(count):
        kinds[i] = table[codes[i]]
    edges, found, sure = np.empty(count, np.int64), 0, True
    inside, i = False, 1
    while i < count:
        kind = kinds[i]
        if kind & OTHER and kinds[i - 1] & SPACE:
            last, both = i, kind & WORD
            while kinds[last + 1] & OTHER:
                last += 1
                both |= kinds[last] & WORD
            if kinds[last + 1] & SPACE:
                sure = sure and not both
                edges[found], edges[found + 1] = i - 1, last
                found, i = found + 2, last + 1
                continue
        # JOIN and POINT stand two bits above WORD and DIGIT.
        here = bool(kind & WORD)
        if not here and kind & (JOIN | POINT):
            here = (kinds[i - 1] & kinds[i + 1] & (kind >> 2) & (WORD | DIGIT)) != 0
        if here != inside:
            edges[found] = i - 1
            found, inside = found + 1, here
        i += 1
    return kinds, edges[:found].copy(), sure


@compiled
def measured(codes: Codes, kinds: Kinds, edges: Ints) -> tuple[Ints, Kinds, Hashes]:
    """Of each word between two edges the length, the classes of its characters, and the hash, each [words].

    A hash is the sum of each code point times BASE ** position.
    """
    count = len(edges) // 2
    lengths, found, hashes = np.empty(count, np.int64), np.empty(count, np.uint8), np.empty(count, np.uint64)
    for word in range(count):
        before, last = edges[2 * word], edges[2 * word + 1]
        kind, value = np.uint8(0), ZERO
        for i in range(last, before, -1):
            value = value * BASE + np.uint64(codes[i])
            kind |= kinds[i]
        lengths[word], found[word], hashes[word] = last - before, kind, value
    return lengths, found, hashes


@compiled
def joined(codes: Codes, table: Kinds, places: Ints, lengths: Ints) -> tuple[Codes, bool]:
    """Words but those that are symbols, one space between two; their code points.

    False where a symbol holds a character that is both: only `words` can say.
    """
    result, size, sure = np.empty(lengths.sum() + len(lengths), codes.dtype), 0, True
    for word in range(len(places)):
        begin, end = places[word], places[word] + lengths[word]
        if table[codes[begin]] & (WORD | OTHER) != OTHER:
            for i in range(begin, end):
                result[size] = codes[i]
                size += 1
            result[size] = 32
            size += 1
        else:
            for i in range(begin, end):
                sure = sure and not table[codes[i]] & WORD
    return result[: max(size - 1, 0)].copy(), sure


@compiled
def _power(base: np.uint64, exponent: int) -> np.uint64:
    result = ONE
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


@compiled
def _table(count: int) -> tuple[Hashes, np.uint64]:
    """An empty set for so many hashes, and how far to shift one to find its place."""
    bits = 3
    while 1 << bits < 2 * count:
        bits += 1
    return np.zeros(1 << bits, np.uint64), BITS - np.uint64(bits)


@compiled
def _mixed(value: np.uint64) -> np.uint64:
    """A hash whose upper bits depend on all of it, and that is not 0, an empty place."""
    return value * MULTIPLIER | ONE


@compiled
def _added(table: Hashes, shift: np.uint64, value: np.uint64) -> bool:
    """Put a hash into a set; whether it was not there."""
    value = _mixed(value)
    place = np.int64(value >> shift)
    while table[place] != ZERO:
        if table[place] == value:
            return False
        place = (place + 1) & (len(table) - 1)
    table[place] = value
    return True


@compiled
def grams(hashes: Hashes, n: int) -> Hashes:
    """Hashes of n-grams, the same where each word is, [words - n + 1, or 0]."""
    result = np.empty(max(0, len(hashes) - n + 1), np.uint64)
    for at in range(len(result)):
        value = ZERO
        for word in range(at, at + n):
            value = value * MULTIPLIER + hashes[word]
        result[at] = value
    return result


@compiled
def most_frequent(hashes: Hashes, n: int) -> tuple[int, int]:
    """Where the most frequent n-gram begins, the first of several, and how often it stands; (0, 0) without any."""
    values = grams(hashes, n)
    (table, shift), times = _table(len(values)), np.zeros(len(values), np.int64)
    firsts = np.zeros(len(table), np.int64)
    for at, value in enumerate(values):
        value = _mixed(value)
        place = np.int64(value >> shift)
        while table[place] != ZERO and table[place] != value:
            place = (place + 1) & (len(table) - 1)
        if table[place] == ZERO:
            table[place], firsts[place] = value, at
        times[firsts[place]] += 1
    first = 0
    for at in range(len(times)):
        if times[at] > times[first]:
            first = at
    return first, times[first] if len(times) else 0


@compiled
def run_sums(hashes: Hashes, lengths: Ints) -> tuple[Hashes, Hashes]:
    """Hash of all words before each, set one after the other, and BASE ** -characters of them, each [words + 1]."""
    sums, inverses = np.empty(len(hashes) + 1, np.uint64), np.empty(len(hashes) + 1, np.uint64)
    total, power, inverse = ZERO, ONE, ONE
    for word in range(len(hashes)):
        sums[word], inverses[word] = total, inverse
        total += hashes[word] * power
        power *= _power(BASE, lengths[word])
        inverse *= _power(INVERSE, lengths[word])
    sums[-1], inverses[-1] = total, inverse
    return sums, inverses


@compiled
def first_repeated(hashes: Hashes, lengths: Ints, starts: Ints, ns: Ints, length: int, shares: Floats) -> int:
    """The place of the first n whose runs that stood before have a larger share of a text's characters; -1 without.

    Each character counts once: behind a run that stood before the next one begins. Rae et al. 2021 say no more than
    that overlapping runs are not counted twice; this is datatrove's count, in which a run that was passed over has not
    stood.
    """
    sums, inverses = run_sums(hashes, lengths)
    for row, n in enumerate(ns):
        count, repeated, at = len(sums) - n, 0, 0
        table, shift = _table(max(count, 0))
        while at < count:
            if _added(table, shift, (sums[at + n] - sums[at]) * inverses[at]):
                at += 1
            else:
                repeated += starts[at + n] - starts[at]
                if repeated / length > shares[row]:
                    return row
                at += n
    return -1


@compiled
def repeated_words(hashes: Hashes, n: int) -> Flags:
    """Which words lie in an n-gram that stood before, [words]."""
    values, result, end = grams(hashes, n), np.zeros(len(hashes), np.bool_), 0
    table, shift = _table(len(values))
    for at in range(len(hashes)):
        if at < len(values) and not _added(table, shift, values[at]):
            end = at + n
        result[at] = at < end
    return result


@compiled
def smallest(shingles: Hashes, a: Hashes, b: Hashes, bits: np.uint64) -> Hashes:
    """The smallest (a x + b mod 2^64) mod p over the shingles, of the lower bits alone, [functions]; p is 2^61 - 1.

    x mod p is (x & p) + (x >> 61), but for the values p to p + 7, which come up once in 2^58.
    """
    result = np.full(len(a), ~ZERO, np.uint64)
    for shingle in shingles:
        for i in range(len(a)):
            value = shingle * a[i] + b[i]
            result[i] = min(result[i], ((value & PRIME) + (value >> PRIME_BITS)) & bits)
    return result


@compiled
def line_hashes(data: Kinds, lines: int) -> tuple[Hashes, Flags]:
    """Of each line of a text in UTF-8 that ends in a line feed a hash of what counts, and whether anything does."""
    hashes, counting = np.empty(lines, np.uint64), np.empty(lines, np.bool_)
    line, value, power = 0, ZERO, ONE
    for byte in data:
        value += np.uint64(SAME[byte]) * power
        power *= FACTORS[byte]  # to ask whether it counts takes three times as long
        if byte == LINE_FEED:
            hashes[line], counting[line] = value + np.uint64(LINE_FEED) * power, power != ONE
            line, value, power = line + 1, ZERO, ONE
    return hashes, counting


@compiled
def _blank(data: Kinds, at: int, end: int) -> bool:
    """Whether a part of a text in UTF-8 is white space, as `str.isspace` has it, or nothing."""
    while at < end:
        byte = data[at]
        if byte == 32 or 9 <= byte <= 13 or 28 <= byte <= 31:
            at += 1
        elif byte == 0xC2 and (data[at + 1] == 0x85 or data[at + 1] == 0xA0):
            at += 2
        elif 0xE1 <= byte <= 0xE3:
            code = (np.int64(byte) & 15) << 12 | (np.int64(data[at + 1]) & 63) << 6 | np.int64(data[at + 2]) & 63
            if not (0x2000 <= code <= 0x200A or code in (0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)):
                return False
            at += 3
        else:
            return False
    return True


@compiled
def without(data: Kinds, gone: Flags) -> Kinds:
    """A text in UTF-8 without some of its lines, of which `gone` says which, [lines].

    Blank lines behind them become one where none stands before, and none at the text's beginning and end.
    """
    kept, size, last = np.empty(len(data) + 1, np.uint8), 0, 0  # last: where the last line that is kept begins
    at, after, room = 0, False, False  # room: for a blank line, behind one that is kept and is not blank
    for out in gone:
        begin, to = at, size
        while at < len(data) and data[at] != LINE_FEED:
            kept[to] = data[at]
            at, to = at + 1, to + 1
        kept[to] = LINE_FEED
        if out and not after:
            room = size > 0 and not _blank(kept, last, size - 1)
        after = out or (after and _blank(data, begin, at))
        if not out and (room or not after):
            last, size, room = size, to + 1, False
        at += 1
    while after and size and _blank(kept, last, size - 1):
        size, last = last, last - 1
        while last > 0 and kept[last - 1] != LINE_FEED:
            last -= 1
    return kept[: max(size - 1, 0)].copy()
