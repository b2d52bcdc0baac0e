"""Haystacks: as long as they say, needles where they say, and questions about what was hidden."""

from __future__ import annotations

import re

import numpy as np
import pytest

from llama31 import config
from llama31.config import Needle
from llama31.evaluate import haystack
from llama31.evaluate.haystack import Alphabet, NeedlePrompt
from llama31.tokens import tokenizers
from llama31.tokens.tokenizers import Tokenizer

LETTERS = haystack.alphabet(range(10, 41))
TEXT = "A sentence of some words stands here. Another one follows it, a little longer than the first! And so on? "


def facts_of(prompt: NeedlePrompt, letters: Alphabet) -> list[tuple[int, int, int]]:
    """(place, key, value) of every fact before the question."""
    tokens = prompt.tokens.tolist()
    places = [i for i, token in enumerate(tokens[:-2]) if token == letters.mark]
    return [(place, tokens[place + 1], tokens[place + 2]) for place in places]


def test_ids_have_one_role_each() -> None:
    dealt = [LETTERS.mark, *LETTERS.keys, *LETTERS.values, *LETTERS.filler]
    assert sorted(dealt) == list(range(10, 41)) and LETTERS.keys.size == LETTERS.values.size == 10
    with pytest.raises(ValueError, match="an alphabet of 3 ids: give at least 4"):
        haystack.alphabet([1, 2, 3])


@pytest.mark.parametrize(("inserted", "asked"), [(1, 1), (4, 2)])
def test_token_prompts(inserted: int, asked: int) -> None:
    needle = Needle(kind="tokens", depths=[0.0, 0.3, 1.0], inserted=inserted, asked=asked, trials=2)
    prompts = haystack.token_prompts(needle, LETTERS, [40, 64], bos=3)
    assert len(prompts) == 2 * 3 * 2 * asked
    for index, prompt in enumerate(prompts):
        assert prompt.tokens.size + prompt.answer.size == prompt.length and prompt.tokens[0] == 3
        facts = facts_of(prompt, LETTERS)
        assert len(facts) == inserted == len({key for _, key, _ in facts})
        mark, key = prompt.tokens[-2:].tolist()
        assert mark == LETTERS.mark and prompt.answer.tolist() == [value for _, k, value in facts if k == key]
        if index % asked == 0:  # the needle that stands at the depth of the cell
            room = prompt.length - 1 - 3 * inserted - 3
            before = sum(place < next(p for p, k, _ in facts if k == key) for place, _, _ in facts)
            place = next(place for place, k, _ in facts if k == key)
            assert place == 1 + round(prompt.depth * room) + 3 * before
    again = haystack.token_prompts(needle, LETTERS, [40, 64], bos=3)
    assert all(np.array_equal(one.tokens, other.tokens) for one, other in zip(prompts, again, strict=True))
    trials = prompts[0], prompts[asked]
    assert not np.array_equal(trials[0].tokens, trials[1].tokens)


@pytest.mark.parametrize(("length", "facts", "filler", "count"), [(60, 4, 0.5, 10), (25, 8, 0.0, 8), (400, 5, 0.9, 13)])
def test_documents_to_learn_from(length: int, facts: int, filler: float, count: int) -> None:
    random = np.random.default_rng(0)
    seen = []
    for _ in range(5):
        document = haystack.token_document(LETTERS, length, facts, random, filler).tolist()
        places = [i for i, token in enumerate(document) if token == LETTERS.mark]
        pairs = [(document[i + 1], document[i + 2]) for i in places]
        assert len(document) == length and len(pairs) == count
        assert len({key for key, _ in pairs}) == len(set(pairs)) == facts, "a key has one value"
        seen.append(places)
    assert seen[0] != seen[1] or not filler
    for wrong in (9, 0):
        with pytest.raises(ValueError, match=f"facts={wrong}: 25 tokens, a share 0 of them filler, hold 8"):
            haystack.token_document(LETTERS, 25, wrong, random, 0.0)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizers.train_bpe([TEXT * 20], 560, tmp_path_factory.mktemp("words"))


@pytest.mark.parametrize(("inserted", "asked"), [(1, 1), (4, 2), (3, 3)])
def test_text_prompts(words: Tokenizer, inserted: int, asked: int) -> None:
    hay = np.array(words.encode(TEXT * 100), np.int64)
    needle = Needle(kind="text", depths=[0.0, 0.5, 1.0], inserted=inserted, asked=asked, trials=2)
    prompts = haystack.text_prompts(needle, words, hay, [500, 900])
    assert len(prompts) == 12
    for prompt in prompts:
        text = words.decode(prompt.tokens.tolist())
        record = dict(re.findall(r" The magic number of (\w+) is (\d{7})\.", text))
        assert len(record) == inserted and prompt.tokens.size + needle.answer_tokens == prompt.length
        body, question = text.split("\n\nQuestion: ")
        cities = [city for city in record if city in question.split("?")[0]]
        assert sorted(record[city] for city in cities) == sorted(prompt.values) and len(prompt.values) == asked
        assert re.fullmatch(
            r"What (is|are) the magic numbers? .*\?\nAnswer: The magic numbers? of .* (is|are)", question
        )
        spans = [words.decode(prompt.answer[begin:end].tolist()) for begin, end in prompt.spans]
        assert spans == [f" {value}" for value in prompt.values]
        begin = body.index(f"is {prompt.values[0]}")
        assert abs(begin / len(body) - prompt.depth) < 0.35
        sentence = body[: body.index(" The magic number of")]
        if prompt.depth == 0.5 and inserted == 1:  # between two sentences
            assert sentence.rstrip().endswith((".", "!", "?"))


def test_lengths_and_texts_that_do_not_fit(words: Tokenizer) -> None:
    hay = np.array(words.encode(TEXT * 20), np.int64)
    assert haystack.lengths(Needle(), 1000, 1000) == list(range(100, 1001, 100))
    with pytest.raises(ValueError, match=r"needle.lengths=\[300\]: longer than the 200 tokens that the model"):
        haystack.lengths(Needle(lengths=[100, 300]), 100, 200)
    with pytest.raises(ValueError, match=r"needle.haystack: \d+ tokens of text, needle.lengths=9000 needs"):
        haystack.text_prompts(Needle(kind="text"), words, hay, [9000])
    with pytest.raises(ValueError, match="needle.lengths=60: needles, question and answer alone take"):
        haystack.text_prompts(Needle(kind="text"), words, hay, [60])
    with pytest.raises(ValueError, match="needle.answer_tokens=8: the answer has"):
        haystack.text_prompts(Needle(kind="text", inserted=4, asked=4, answer_tokens=8), words, hay, [500])
    with pytest.raises(ValueError, match="needle.inserted=40: there are 32 cities"):
        haystack.text_prompts(Needle(kind="text", inserted=40), words, hay, [500])
    with pytest.raises(ValueError, match="needle.inserted=11: the alphabet has 10 keys"):
        haystack.token_prompts(Needle(kind="tokens", inserted=11), LETTERS, [500])


def test_letters_of_a_tokenizer(words: Tokenizer) -> None:
    letters = haystack.printable(words)
    dealt = [letters.mark, *letters.keys.tolist(), *letters.values.tolist(), *letters.filler.tolist()]
    assert len(dealt) == 94 and words.decode(dealt) == "".join(map(chr, range(33, 127)))


def test_bounds_of_the_config() -> None:
    from llama31.command.validate import validate

    run = config.Evaluate(checkpoint="x", needle=Needle(kind="text", depths=[1.5], lengths=[0], asked=2))
    run.data, run.tokenizer = config.Data(folder=""), config.Tokenizer(kind="huggingface", path="")
    run.parallel = config.Parallel(cp=2)
    with pytest.raises(config.ConfigError) as caught:
        validate(run, 2)
    keys = [issue.key for issue in caught.value.issues]
    assert keys == ["needle.asked", "needle.depths", "needle.lengths", "needle.haystack", "parallel.cp"]
    assert caught.value.issues[-1].remedy == "give parallel.cp=1, or needle.decode=false"
    run.needle = Needle(kind="tokens", decode=False)
    assert validate(run, 2) == []
