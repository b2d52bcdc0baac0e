"""The mixture: shares against brute force, epochs, what is possible instead, and the YAML through Hydra."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31 import config
from llama31.command import entry
from llama31.curate.mixing import advice, classes, knowledge, mixture, sources, water_filling, written
from llama31.curate.mixing.sources import CountedSource
from llama31.curate.outcome import sources as outcome
from llama31.curate.outcome import summary
from llama31.curate.running.shares import WARNING, Shares, kept_classes
from llama31.data.mixture import parts

NUMBERS = st.floats(0.01, 100)
WORLD = [
    CountedSource("general-en", "general", "en", 6_000),
    CountedSource("general-unknown", "general", "unknown", 2_000),
    CountedSource("mathematics-en", "mathematics", "en", 4_000),
    CountedSource("code-en", "code", "en", 1_000),
    CountedSource("general-de", "multilingual", "de", 800),
    CountedSource("general-hi", "multilingual", "hi", 100),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.one_of(st.just(0.0), NUMBERS), st.one_of(st.just(0.0), NUMBERS)), min_size=1, max_size=6))
def test_filling_is_what_bisection_for_the_level_finds(pairs: list[tuple[float, float]]) -> None:
    weights, caps = ({str(i): pair[place] for i, pair in enumerate(pairs)} for place in (0, 1))
    total = 50.0
    low, high = 0.0, 1e5
    for _ in range(200):
        level = (low + high) / 2
        reached = sum(min(level * weights[name], caps[name]) for name in weights)
        low, high = (level, high) if reached < total else (low, level)
    found = water_filling.fill(weights, caps, total)
    expected = {name: min(high * weights[name], caps[name]) for name in weights}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_reports_shares_are_met(tmp_path: Path) -> None:
    mixed = mixture.mix(WORLD, 10_000)
    by_part = Counter[str]()
    for one in mixed.sources:
        by_part[one.source.part] += one.weight  # type: ignore[assignment]
        assert one.epochs == pytest.approx(one.weight * 10_000 / one.source.tokens)
    assert by_part == pytest.approx({"general": 0.5, "mathematics": 0.25, "code": 0.17, "multilingual": 0.08})
    assert sum(sources.SHARES.values()) == pytest.approx(1)
    weights = {one.source.name: one.weight for one in mixed.sources}
    assert weights["general-en"] == pytest.approx(3 * weights["general-unknown"])
    assert weights["general-de"] == pytest.approx(8**0.3 * weights["general-hi"])
    assert not mixed.repeated and advice.warnings(mixed) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=5), st.sampled_from([0.5, 1.0, 2.0, 1 / 0.3, 1e9]))
def test_temperature_is_a_power(counts: list[int], temperature: float) -> None:
    tokens = {str(i): float(count) for i, count in enumerate(counts)}
    found = mixture.by_temperature(tokens, temperature) if any(counts) else dict.fromkeys(tokens, 0.0)
    powers = [float(count) ** (1 / temperature) if count else 0.0 for count in counts]
    expected = [power / (sum(powers) or 1) for power in powers]
    assert [*found.values()] == pytest.approx(expected)


def test_languages_take_shares_that_are_given() -> None:
    mixed = mixture.mix(WORLD, 1000, language_shares={"hi": 3, "de": 1})
    weights = {one.source.name: one.weight for one in mixed.sources}
    assert weights["general-hi"] == pytest.approx(0.06) and weights["general-de"] == pytest.approx(0.02)
    only = mixture.mix(WORLD, 1000, {"multilingual": 1}, language_shares={"hi": 1})
    assert [one.weight for one in only.sources] == [0, 0, 0, 0, 0, 1]
    with pytest.raises(ValueError, match=r"language_shares\.th: there are no tokens"):
        mixture.mix(WORLD, 1000, language_shares={"hi": 1, "th": 1})


def test_what_is_read_too_often_is_told_with_what_is_possible() -> None:
    mixed = mixture.mix(WORLD, 40_000)
    assert [one.source.name for one in mixed.repeated] == ["code-en", "general-hi"]
    lines = advice.warnings(mixed)
    assert lines[0].startswith("code-en: 1k tokens are read 6.8 times for 17.0% of the mixture; beyond 4 epochs")
    assert "Muennighoff" in lines[0] and len(lines) == 3
    found = advice.possible(mixed)
    assert found.reached == pytest.approx(1) and f"{found.train_tokens / 1e3:.3g}k tokens" in lines[2]
    longest = mixture.mix(WORLD, found.train_tokens)
    assert not longest.repeated and mixture.mix(WORLD, found.train_tokens * 1.001).repeated
    for one in mixed.sources:
        assert found.weights[one.source.name] * 40_000 <= 4 * one.source.tokens * (1 + 1e-9)
    by_part = found.parts(mixed)
    assert by_part["code"] == pytest.approx(0.1) and by_part["multilingual"] == pytest.approx(
        4 * 900 / 40_000, abs=0.02
    )
    assert by_part["general"] / by_part["mathematics"] == pytest.approx(2)  # the others' proportions stay
    # What Hindi cannot give, German does, before another part has to.
    assert found.weights["general-hi"] == pytest.approx(0.01) and found.weights["general-de"] > 0.07


def test_more_than_there_is_cannot_be_had() -> None:
    mixed = mixture.mix(WORLD, 1_000_000)
    found, everything = advice.possible(mixed), sum(one.tokens for one in WORLD)
    assert found.reached == pytest.approx(4 * everything / 1_000_000)
    assert f"read 4 times, is {found.reached:.1%} of it" in advice.warnings(mixed)[-1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=5, max_size=8), st.sampled_from([0.2, 0.25, 0.4, 0.7, 1.0]))
def test_classes_keep_as_much_as_their_share_allows(counts: list[int], largest: float) -> None:
    """Against the fixed point of the whole, by iteration from above."""
    tokens = {str(i): float(count) for i, count in enumerate(counts)}
    there = sum(count > 0 for count in counts)
    if there and there * largest < 1 - 1e-9:
        with pytest.raises(ValueError, match=f"largest_share={largest}: {there} classes"):
            knowledge.kept_parts(tokens, largest)
        return
    whole = sum(counts) * 1.0
    for _ in range(20_000):
        whole, before = sum(min(count, largest * whole) for count in counts), whole
        if before - whole <= 1e-13 * before:
            break
    found = knowledge.kept_parts(tokens, largest)
    left = {name: found[name] * tokens[name] for name in tokens}
    assert sum(left.values()) == pytest.approx(whole, rel=1e-6, abs=1e-6)
    assert all(one <= largest * sum(left.values()) * (1 + 1e-9) for one in left.values())
    assert all(0 <= part <= 1 for part in found.values())


def test_single_classes_have_shares_of_their_own() -> None:
    found = knowledge.kept_parts({"arts": 600, "science": 100, "other": 100}, 1.0, {"arts": 0.5})
    assert found == pytest.approx({"arts": 1 / 3, "science": 1, "other": 1})
    assert knowledge.kept_parts({"arts": 600, "science": 100}, 1.0, {"arts": 0.0}) == {"arts": 0.0, "science": 1.0}
    with pytest.raises(ValueError, match="arts: share=2"):
        knowledge.kept_parts({"arts": 1}, 1.0, {"arts": 2.0})


def document(number: int, **metadata: Any) -> Document:
    return Document("text", f"d{number}", metadata=metadata)


def test_too_few_classes_for_a_share_lose_nothing(tmp_path: Path) -> None:
    counted = tmp_path / "classes/00000.json"
    counted.parent.mkdir()
    counted.write_text(json.dumps({"a": 900, "b": 90, "c": 10}))
    for number, (largest, single, kept) in enumerate(
        [
            (0.2, {}, {"a": 1.0, "b": 1.0, "c": 1.0}),
            (0.2, {"a": 0.5}, {"a": 100 / 900, "b": 1.0, "c": 1.0}),
            (0.5, {}, {"a": 100 / 900, "b": 1.0, "c": 1.0}),
        ]
    ):
        asked = config.KnowledgeClasses("model", largest, single)
        block = Shares([counted], tmp_path / str(number), config.BestOfLanguage(), asked)
        assert [*block.run(None)] == [] and kept_classes(tmp_path / str(number)) == pytest.approx(kept)
        few = [name for name in block.stats.stats if "3 classes are too few for it" in name]
        assert len(few) == (number < 2)
        for name in few:
            assert name.startswith(f"{WARNING}knowledge.largest_share=0.2: ")
            assert name.endswith(f"give {(0.34, 0.25)[number]} or more")
    counted.write_text(json.dumps({"a": 900, "b": 0}))  # of texts without characters
    asked = config.KnowledgeClasses("model", 0.2, {"a": 0.5})
    with pytest.raises(ValueError, match="1 classes with at most so much each are less than the whole"):
        [*Shares([counted], tmp_path / "none", config.BestOfLanguage(), asked).run(None)]


def test_a_share_of_a_language_that_there_is_not_is_told(tmp_path: Path) -> None:
    counted = tmp_path / "scores/00000.json"
    counted.parent.mkdir()
    counted.write_text(json.dumps({"tasks": 1, "unit": "documents", "counts": {"en": {"5000": 4}}}))
    best = config.BestOfLanguage(score="cited", share=0.5, shares={"en": 0.25, "dk": 0.1})
    block = Shares([counted], tmp_path / "out", best, config.KnowledgeClasses())
    assert [*block.run(None)] == []
    told = {f"{WARNING}best.shares.dk: no document is in this language"}
    assert told == {name for name in block.stats.stats if name.startswith(WARNING)}
    stage = {"blocks": [{"counts": dict.fromkeys([*told, "others"], 1)}]}
    assert summary.warnings({"stages": [stage, stage, {"blocks": []}]}) == [*told]


def test_a_part_of_a_class_is_kept_the_same_on_any_number_of_tasks() -> None:
    given = [document(i, knowledge=("arts", "science")[i % 2]) for i in range(4000)]
    block = knowledge.Downsampler({"arts": 0.25})
    alone = [one.id for one in block.run(iter(given))]
    shared = [one.id for rank in range(3) for one in knowledge.Downsampler({"arts": 0.25}).run(iter(given[rank::3]))]
    assert sorted(alone) == sorted(shared) and 400 < len(alone) - 2000 < 600
    assert int(block.stats.stats["dropped_more arts than its share"].total) == 4000 - len(alone)
    with pytest.raises(ValueError, match=r"kept\.arts=2"):
        knowledge.Downsampler({"arts": 2})


def test_documents_are_of_the_class_that_scores_best() -> None:
    scores = [(0.9, 0.8), (0.6, 0.7), (0.4, 0.1), (0.4, 0.65), (None, 0.9), (0.9, None)]
    given = [document(i, quality_code=code, quality_mathematics=other) for i, (code, other) in enumerate(scores)]
    given += [document(9), document(10, **{"class": "code", "quality_mathematics": 1.0})]
    block = classes.ClassAssigner(thresholds={"mathematics": 0.7})
    found = [one.metadata["class"] for one in block.run(iter(given))]
    assert found == ["code", "mathematics", "general", "general", "mathematics", "code", "general", "code"]
    assert int(block.stats.stats["class code"].total) == 3
    with pytest.raises(ValueError, match=r"thresholds\.law"):
        classes.ClassAssigner(thresholds={"law": 0.5})


def packed(folder: Path, **tokens: int) -> Path:
    for name, count in tokens.items():
        place = folder / name.replace("_", "-")
        place.mkdir(parents=True)
        (place / "packed.json").write_text(json.dumps({"train": {"tokens": count}}))
    return folder


def test_sources_are_found_by_their_folders(tmp_path: Path) -> None:
    folder = packed(tmp_path, general_en=9, general_de=5, general_unknown=4, code_de=3, mathematics_en_01=2)
    found = {one.name: (one.part, one.language, one.tokens) for one in sources.of_folder(folder)}
    assert found == {
        "general-en": ("general", "en", 9),
        "general-de": ("multilingual", "de", 5),
        "general-unknown": ("general", "unknown", 4),
        "code-de": ("code", "de", 3),
        "mathematics-en-01": ("mathematics", "en", 2),
    }
    (tmp_path / "general-en/packed.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        sources.of_folder(folder)
    with pytest.raises(ValueError, match="no packed source"):
        sources.of_folder(tmp_path / "nothing")


def test_keys_of_the_mixture_give_shares_to_languages(tmp_path: Path) -> None:
    folder = packed(tmp_path / "tokens", general_en=60, general_de=5, general_hi=4, code_en=30).parent
    mixed, said = outcome.mixed(folder, config.MixtureShares(language_shares={"hi": 3, "de": 1}))
    weights = {one.source.name: one.weight for one in mixed.sources}
    assert weights["general-hi"] == pytest.approx(0.06 / 0.75) and weights["general-de"] == pytest.approx(0.02 / 0.75)
    assert said == ["mixture.mathematics=0.25: there is no text of it; the other parts share it"]
    told = outcome.described(mixed, config.MixtureShares(most_epochs=0.5), said)
    assert told["keys"]["most_epochs"] == 0.5 and told["sources"]["general-hi"]["weight"] == weights["general-hi"]
    few, _ = outcome.mixed(folder, config.MixtureShares(), ["general-en", "code-en"])
    assert [one.source.name for one in few.sources] == ["code-en", "general-en"]
    for shares, wrong in (({"th": 1.0}, "language_shares.th: there are no tokens"), ({"de": 0.0}, "language_shares={")):
        with pytest.raises(ValueError, match=f"^mixture.{wrong}"):
            outcome.mixed(folder, config.MixtureShares(language_shares=shares))


def test_the_yaml_goes_through_hydra_and_back(tmp_path: Path) -> None:
    given = [*WORLD, CountedSource("code-de", "code", "de", 0), CountedSource("poems", "poems", "en", 5, "/a b/${x}")]
    mixed = mixture.mix(given, 40_000, {**sources.SHARES, "poems": 0.001})
    path = written.write(mixed, tmp_path / "data/mine.yaml", "corpus/${tokens}: it's")
    run = entry.compose(
        config.Pretrain, "pretrain", ["data=mine", "model=8b", "schedule=demo", "tokenizer=demo", "name=x"], tmp_path
    )
    assert run.data.folder == "corpus/${tokens}: it's" and run.data.sources["poems"].packed == "/a b/${x}"
    weights = {name: source.weight / 100 for name, source in run.data.sources.items()}
    assert weights == pytest.approx({one.source.name: one.weight for one in mixed.sources if one.weight}, rel=1e-5)
    assert "code-de" not in weights and "# Not read: code-de" in path.read_text()
    assert "# Warning: code-en: 1k tokens are read 6.8 times" in path.read_text()
    rows = parts([*weights.values()])
    assert [row / sum(rows) for row in rows] == pytest.approx([*weights.values()], abs=2e-5)
    table = written.table(mixed).splitlines()
    assert (
        len(table) == 1 + len(given) + len(mixed.repeated) + 1
        and "possible: " in table[1]
        and table[-1].startswith("warning: possible")
    )
    assert "possible" not in written.table(mixture.mix(WORLD, 1000))
    with pytest.raises(ValueError, match=r"'a\.b' cannot stand in data\.sources"):
        written.text(mixture.mix([CountedSource("a.b", "general", "en", 5)], 10, {"general": 1}), "x", "x")


def test_numbers_that_cannot_be_are_refused() -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("shares.poems: there are no tokens of it", {"shares": {"poems": 1}}),
        ("train_tokens=0", {"train_tokens": 0}),
        ("temperature=-1", {"temperature": -1}),
        ("most_epochs=nan", {"most_epochs": float("nan")}),
        ("shares=.*give numbers", {"shares": {"general": 0}}),
        ("sources: general-en stands there twice", {"sources": [*WORLD, WORLD[0]]}),
    ]
    for said, changed in cases:
        with pytest.raises(ValueError, match=said):
            mixture.mix(**{"sources": WORLD, "train_tokens": 1000, **changed})


def test_random_mixtures_are_whole() -> None:
    chance = random.Random(4)
    for _ in range(100):
        given = [
            CountedSource(f"{part}-{i}", part, f"l{i}", chance.randint(1, 10**9))
            for part in sources.SHARES
            for i in range(3)
        ]
        mixed = mixture.mix(given, chance.randint(1, 10**10), most_epochs=chance.choice([0.5, 4.0]))
        found = advice.possible(mixed)
        assert sum(one.weight for one in mixed.sources) == pytest.approx(1) and found.reached <= 1 + 1e-9
        assert bool(mixed.repeated) == (found.train_tokens < mixed.train_tokens * (1 - 1e-9))
        if not mixed.repeated:
            assert found.weights == pytest.approx({one.source.name: one.weight for one in mixed.sources})
