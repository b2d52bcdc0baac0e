"""Prompts that hide facts in a long context and ask for them at its end: the needle in a haystack. No torch.

Two kinds. Text: sentences about cities and their magic numbers between the sentences of any text, the usual form of the
test (the report, section 5.2.6, does not publish its own). Tokens: keys and values as token ids in random filler, for
models whose tokenizer is tiny, and as training data from which a small model learns to retrieve at all: `MARK key
value` somewhere, `MARK key` at the end. A single needle of that kind proves little: the only value in the filler gives
itself away, whatever its key. Insert several, and only looking up the key finds the right one.

The first needle asked for stands at the depth of the cell, the others follow it around the haystack at equal distances,
so that every cell of a table depth x length is a haystack of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llama31.config import Needle
from llama31.tokens.tokenizers import Tokenizer

Ids = NDArray[np.int64]

CITIES = (
    "Lisbon", "Oslo", "Nairobi", "Lima", "Hanoi", "Quito", "Tbilisi", "Vienna", "Cairo", "Dublin", "Manila", "Riga",
    "Santiago", "Warsaw", "Athens", "Bogota", "Havana", "Jakarta", "Kyoto", "Madrid", "Naples", "Prague", "Seoul",
    "Tunis", "Zagreb", "Accra", "Dakar", "Geneva", "Helsinki", "Montreal", "Porto", "Sydney",
)  # fmt: skip
BACK = 0.02  # share of the haystack that a needle may move back to stand after the end of a sentence
ALPHABET = 4  # least ids: a mark, a key, a value and a filler


@dataclass(frozen=True)
class NeedlePrompt:
    """One haystack with its question.

    tokens [n] end where the answer begins; answer [m] is what greedy decoding is to write; spans are the parts of the
    answer that were asked for, the rest only joins them. `values` are their texts, none for kind tokens.
    """

    length: int
    depth: float
    tokens: Ids
    answer: Ids
    spans: tuple[tuple[int, int], ...]
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Alphabet:
    """Ids of the token-level kind; no id has two roles."""

    mark: int
    keys: Ids
    values: Ids
    filler: Ids


def alphabet(ids: Sequence[int]) -> Alphabet:
    """Deal out ids: the first is the mark, then a third each for keys, values and filler. ValueError below 4 ids."""
    if len(ids) < ALPHABET or len(set(ids)) < len(ids):
        raise ValueError(f"an alphabet of {len(ids)} ids: give at least {ALPHABET}, all different")
    keys, values, filler = np.array_split(np.asarray(ids[1:], np.int64), 3)
    return Alphabet(int(ids[0]), keys, values, filler)


def printable(tokenizer: Tokenizer) -> Alphabet:
    """The alphabet of printable ASCII characters that are one token each. ValueError where they are too few."""
    single = dict.fromkeys(ids[0] for ids in (tokenizer.encode(chr(code)) for code in range(33, 127)) if len(ids) == 1)
    return alphabet(list(single))


def lengths(needle: Needle, usual: int, most: int) -> list[int]:
    """The lengths asked for, or ten equal steps up to `usual`. ValueError (key needle.lengths) beyond `most`."""
    given = needle.lengths or [round(usual * step / 10) for step in range(1, 11)]
    beyond = [length for length in given if length > most]
    if beyond:
        raise ValueError(
            f"needle.lengths={beyond}: longer than the {most} tokens that the model or sequence_length allows; give "
            "shorter ones"
        )
    return given


def token_prompts(
    needle: Needle, letters: Alphabet, steps: Sequence[int], bos: int | None = None
) -> list[NeedlePrompt]:
    """Kind tokens: of every length, depth and trial one prompt for each needle asked for.

    A prompt and its answer of one token are `length` tokens together. ValueError (key needle.*) for more needles than
    keys, and for lengths that do not hold them.
    """
    if needle.inserted > letters.keys.size:
        raise ValueError(
            f"needle.inserted={needle.inserted}: the alphabet has {letters.keys.size} keys; give at most that"
        )
    prompts = []
    head = [] if bos is None else [bos]
    for number, (length, depth, _) in enumerate(_cells(needle, steps)):
        random = np.random.default_rng([needle.seed, number])
        keys = random.choice(letters.keys, needle.inserted, replace=False)
        values = random.choice(letters.values, needle.inserted)
        facts = [np.array([letters.mark, key, value]) for key, value in zip(keys, values, strict=True)]
        room = _room(length, len(head) + 3 * needle.inserted + 3)
        hay = _hidden(random.choice(letters.filler, room), facts, _places(depth, needle.inserted, room))
        for key, value in zip(keys[: needle.asked], values[: needle.asked]):
            tokens = np.concatenate([head, hay, [letters.mark, key]]).astype(np.int64)
            prompts.append(NeedlePrompt(length, depth, tokens, np.array([value]), ((0, 1),)))
    return prompts


def token_document(letters: Alphabet, length: int, facts: int, random: np.random.Generator, filler: float = 0.5) -> Ids:
    """Training text of the kind tokens: `length` ids, of which a share `filler` is filler and the rest says `facts`.

    Each fact stands there at least once, all in any order and anywhere: where its mark and key come again, its value
    can be looked up. From such documents a model learns what `token_prompts` ask. ValueError for facts that do not fit.
    """
    count = int(length * (1 - filler)) // 3
    if not 0 < facts <= min(count, letters.keys.size):
        raise ValueError(
            f"facts={facts}: {length} tokens, a share {filler:g} of them filler, hold {count} and the alphabet has "
            f"{letters.keys.size} keys; give fewer"
        )
    keys = random.choice(letters.keys, facts, replace=False)
    values = random.choice(letters.values, facts)
    said = random.permutation(np.concatenate([np.arange(facts), random.integers(0, facts, count - facts)]))
    triples = list(np.stack([np.full(count, letters.mark), keys[said], values[said]], 1))
    room = length - 3 * count
    return _hidden(random.choice(letters.filler, room), triples, list(random.integers(0, room + 1, count)))


def text_prompts(needle: Needle, tokenizer: Tokenizer, hay: Ids, steps: Sequence[int]) -> list[NeedlePrompt]:
    """Kind text: of every length, depth and trial one prompt, which with its `answer_tokens` is at most `length` long.

    `hay` holds the ids of the text between which needles are hidden; trials take different parts of it where it is long
    enough. ValueError (keys needle.*) for lengths that do not hold needles and question, and for too short a haystack.
    """
    if needle.inserted > len(CITIES):
        raise ValueError(f"needle.inserted={needle.inserted}: there are {len(CITIES)} cities; give at most that")
    ends = _sentence_ends(hay, tokenizer)
    prompts = []
    for number, (length, depth, _) in enumerate(_cells(needle, steps)):
        random = np.random.default_rng([needle.seed, number])
        cities = [str(city) for city in random.choice(CITIES, needle.inserted, replace=False)]
        numbers = [str(n) for n in random.choice(np.arange(1_000_000, 10_000_000), needle.inserted, replace=False)]
        facts = [np.array(tokenizer.encode(f" The magic number of {c} is {n}.")) for c, n in zip(cities, numbers)]
        question = tokenizer.encode(_question(cities[: needle.asked]))
        answer, spans = _answer(tokenizer, numbers[: needle.asked])
        if answer.size > needle.answer_tokens:
            raise ValueError(
                f"needle.answer_tokens={needle.answer_tokens}: the answer has {answer.size}; give at least that"
            )
        room = _room(length, 1 + sum(fact.size for fact in facts) + len(question) + needle.answer_tokens)
        if room > hay.size:
            raise ValueError(
                f"needle.haystack: {hay.size} tokens of text, needle.lengths={length} needs {room}; give a longer "
                "text, or shorter lengths"
            )
        begin = int(random.integers(0, hay.size - room + 1))
        places = [_after_sentence(ends, begin, place, room) for place in _places(depth, needle.inserted, room)]
        hidden = _hidden(hay[begin : begin + room], facts, places)
        tokens = np.concatenate([[tokenizer.bos_id], hidden, question]).astype(np.int64)
        prompts.append(NeedlePrompt(length, depth, tokens, answer, spans, tuple(numbers[: needle.asked])))
    return prompts


def _cells(needle: Needle, steps: Sequence[int]) -> Iterator[tuple[int, float, int]]:
    return itertools.product(steps, needle.depths, range(needle.trials))


def _room(length: int, taken: int) -> int:
    """Tokens left for the haystack."""
    if length <= taken:
        raise ValueError(
            f"needle.lengths={length}: needles, question and answer alone take {taken} tokens; give longer ones"
        )
    return length - taken


def _places(depth: float, inserted: int, room: int) -> list[int]:
    """Where in the haystack each needle stands, the first at `depth`."""
    return [round((depth if j == 0 else (depth + j / inserted) % 1.0) * room) for j in range(inserted)]


def _hidden(hay: Ids, facts: Sequence[Ids], places: Sequence[int]) -> Ids:
    """The haystack with each fact inserted before the token at its place."""
    parts, at = [], 0
    for place, fact in sorted(zip(places, facts, strict=True), key=lambda pair: pair[0]):
        parts += [hay[at:place], fact]
        at = place
    return np.concatenate([*parts, hay[at:]])


def _sentence_ends(hay: Ids, tokenizer: Tokenizer) -> Ids:
    """Sorted indices of tokens that follow the end of a sentence or line."""
    ids = np.unique(hay)
    closing = [i for i in ids.tolist() if tokenizer.decode([i]).rstrip(" ").endswith((".", "!", "?", "\n"))]
    return np.flatnonzero(np.isin(hay, closing)) + 1


def _after_sentence(ends: Ids, begin: int, place: int, room: int) -> int:
    """The last end of a sentence up to `place`, if one is near; 0 and `room` are where they are asked to be."""
    index = int(np.searchsorted(ends, begin + place, side="right")) - 1
    if place in (0, room) or index < 0 or ends[index] - begin < place - BACK * room:
        return place
    return max(0, int(ends[index]) - begin)


def _question(cities: Sequence[str]) -> str:
    if len(cities) == 1:
        said = f"the magic number of {cities[0]}"
        return f"\n\nQuestion: What is {said}?\nAnswer: T{said[1:]} is"
    said = f"the magic numbers of {', '.join(cities[:-1])} and {cities[-1]}"
    return f"\n\nQuestion: What are {said}?\nAnswer: T{said[1:]} are"


def _answer(tokenizer: Tokenizer, numbers: Sequence[str]) -> tuple[Ids, tuple[tuple[int, int], ...]]:
    """Tokens of " 1, 2 and 3" and the spans of the numbers in them."""
    ids: list[int] = []
    spans = []
    for index, number in enumerate(numbers):
        if index:
            ids += tokenizer.encode(" and" if index == len(numbers) - 1 else ",")
        begin = len(ids)
        ids += tokenizer.encode(f" {number}")
        spans.append((begin, len(ids)))
    return np.array(ids, np.int64), tuple(spans)
