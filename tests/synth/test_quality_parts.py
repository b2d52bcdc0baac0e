"""Parts of the filters against what they mean: plain n-grams, all pairs compared, verdicts counted by hand."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from llama31 import config
from llama31.sampling import filters
from llama31.synth.pipeline import parsing
from llama31.synth.quality import contamination, dialog_records, questions, selection, semantic
from llama31.synth.quality.contamination import Benchmarks

TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=30).map(" ".join)


def share(prompt: str, texts: list[str], n: int) -> float:
    """Share of a prompt's words within an n-gram that one of the texts has, as plainly as it can be said."""
    words = prompt.split()
    there = {tuple(text.split()[i : i + n]) for text in texts for i in range(len(text.split()) - n + 1)}
    covered = {i + k for i in range(len(words) - n + 1) if tuple(words[i : i + n]) in there for k in range(n)}
    return len(covered) / len(words) if words else 0.0


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.lists(TEXTS, max_size=4), st.integers(2, 5), st.floats(0.1, 1))
def test_shares_are_those_of_plain_ngrams(prompts: list[str], texts: list[str], n: int, threshold: float) -> None:
    benchmarks = Benchmarks(n)
    for number, prompt in enumerate(prompts):
        benchmarks.add(f"set{number % 2}", str(number), prompt, threshold)
    grams = benchmarks.grams(texts)
    expected = {number: plain for number, one in enumerate(prompts) if (plain := share(one, texts, n))}
    assert benchmarks.shares(grams) == pytest.approx(expected)
    bad = [number for number, plain in expected.items() if plain >= threshold - 1e-9]
    found = benchmarks.overlap([], grams)
    assert (found is not None) == bool(bad)
    if found is not None:
        assert found.share == pytest.approx(max(expected[number] for number in bad)) and int(found.place) in bad
    table = benchmarks.table(grams)
    assert {name: one["contaminated"] for name, one in table.items()} == {
        name: sum(number in bad for number in range(len(prompts)) if f"set{number % 2}" == name) for name in table
    }


def test_prompts_are_found_whatever_their_case_and_wherever_they_stand(tmp_path: Path) -> None:
    asked = "How many apples does Mary have, if she buys 1,000 and eats three of them before noon?"
    lines = [
        {"q": {"text": asked}, "choices": ["one", "two"]}, {"q": {"text": "Why?"}, "choices": []},
        {"q": {"text": "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 9}, "choices": ["\ud800"]},
    ]  # fmt: skip
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sets = {"apples": config.BenchmarkSet(str(tmp_path / "set.jsonl"), "{q.text} {choices}", 0.8)}
    known = contamination.read(8, sets)
    inside = f"Please help me. {asked.upper()} I have no idea."
    found = known.overlap([], known.grams(["no", inside]))
    assert found is not None and (found.benchmark, found.exact) == ("apples", False) and found.share == 17 / 19
    exact = known.overlap(["why"], known.grams(["why"]))
    assert exact is not None and exact.exact and exact.place.endswith("line 2")
    assert known.overlap(["why"], known.grams(["why"]), exact=False) is None
    assert known.overlap([], known.grams(["\N{CJK UNIFIED IDEOGRAPH-4E00}" * 20])) is not None
    assert known.overlap([], known.grams([" ".join(asked.split()[:9])])) is None  # 9 of 19 words
    assert known.table(known.grams([inside]))["apples"] == {"prompts": 3, "short": 1, "contaminated": 1}
    for prompt, said in (("{q.body}", "no field q.body, but text"), ("{q}", "q is dict")):
        with pytest.raises(ValueError, match=rf"decontamination.sets.x: .*line 1: prompt: .*{said}"):
            contamination.read(8, {"x": config.BenchmarkSet(str(tmp_path / "set.jsonl"), prompt)})
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"decontamination.sets.x.path=.*empty.jsonl: there is no record"):
        contamination.read(8, {"x": config.BenchmarkSet(str(tmp_path / "empty.jsonl"))})


# --- what says the same ---


def vectors(count: int, seed: int, width: int = 6) -> Any:
    drawn = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def plainly(given: Any, labels: Any, worths: Any, threshold: float) -> list[bool]:
    """All pairs, one after the other."""
    kept = [False] * len(given)
    for i in sorted(range(len(given)), key=lambda i: (-worths[i], i)):
        like = [float(given[i] @ given[j]) for j in range(len(given)) if kept[j] and labels[j] == labels[i]]
        kept[i] = max(like, default=-1.0) < threshold
    return kept


@pytest.mark.parametrize("block", [1, 3, 1000])
@pytest.mark.parametrize("threshold", [0.3, 0.8, 1.0])
def test_what_is_kept_is_what_all_pairs_say(monkeypatch: pytest.MonkeyPatch, block: int, threshold: float) -> None:
    monkeypatch.setattr(semantic, "BLOCK", block)
    given = np.repeat(vectors(40, 1), 2, axis=0) + 0.2 * vectors(80, 2)
    given = (given / np.linalg.norm(given, axis=1, keepdims=True)).astype(np.float32)
    worths = np.round(np.random.default_rng(3).random(80), 1)  # with ties
    for labels in (np.zeros(80, np.int64), np.arange(80) % 3, np.arange(80)):
        result = semantic.keep(given, labels, worths, threshold)
        assert result.kept.tolist() == plainly(given, labels, worths, threshold)
        for place in np.flatnonzero(~result.kept):
            like = result.like[place]
            assert result.kept[like] and labels[like] == labels[place] and worths[like] >= worths[place]
            assert result.cosine[place] == pytest.approx(float(given[place] @ given[like]), abs=1e-6)
    assert not semantic.keep(given[:0], np.zeros(0, np.int64), worths[:0], 0.9).kept.size


def test_equal_dialogs_are_kept_once_whatever_their_order() -> None:
    given = vectors(3, 1)[[0, 1, 0, 2, 0]]
    for worths in itertools.permutations((0.1, 0.2, 0.3, 0.4, 0.5)):
        kept = semantic.keep(given, np.zeros(5, np.int64), np.array(worths), 0.999).kept
        assert [place for place in (0, 2, 4) if kept[place]] == [max((0, 2, 4), key=lambda place: worths[place])]


def test_clusters_are_those_of_spherical_kmeans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "ROWS", 7)
    given, drawn = vectors(60, 5), np.random.default_rng(9).choice(60, 4, replace=False)
    centres = given[np.sort(drawn)]
    for _ in range(50):
        labels = (given @ centres.T).argmax(1)
        sums = np.stack([given[labels == k].sum(0) for k in range(4)])
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    assert (semantic.clusters(given, 4, 50, 9) == labels).all()
    assert len(set(semantic.clusters(given, 1000, 5, 0).tolist())) == 60  # no more than there are
    assert (semantic.clusters(np.repeat(given[:1], 5, 0), 2, 5, 0) == 0).all()  # one centre has nobody


# --- verdicts ---


def test_the_top_quartile_with_ties_and_unknown_ones() -> None:
    nan = math.nan
    best, least = selection.top(np.array([1.0, 5, nan, 3, 5, 2, -math.inf, 4, 0]), 0.25)
    assert best.tolist() == [False, True, False, False, True, False, False, False, False] and least == 5
    assert selection.top(np.array([1.0, 2, 3, 4]), 0.25)[0].tolist() == [False, False, False, True]
    assert selection.top(np.array([1.0, 2, 3, 4, 5]), 0.25)[0].sum() == 2  # a quarter of five is not one
    assert selection.top(np.array([7.0] * 4), 0.25)[0].all() and selection.top(np.array([2.0, 1]), 1)[0].all()
    assert selection.top(np.array([nan]), 0.5) == (np.array([False]), None)
    assert selection.ranks(np.array([10.0, 20, 20, nan])).tolist()[:3] == pytest.approx([1 / 6, 2 / 3, 2 / 3])


def test_worth_is_quality_times_difficulty_and_the_unknown_is_in_the_middle() -> None:
    nan = math.nan
    worths = selection.worth(
        [np.array([1.0, 0.5, nan]), np.array([0.5, nan, nan])], [np.array([0.4, 1.0, nan]), np.array([nan] * 3)]
    )
    assert worths.tolist() == pytest.approx([0.75 * 0.4, 0.5, 0.25])


def test_disagreement_is_counted_and_kappa_is_scikit_learns() -> None:
    drawn = np.random.default_rng(2)
    reward, judged = drawn.random(200), np.where(drawn.random(200) < 0.2, np.nan, drawn.integers(0, 4, 200) / 3)
    reward[:10] = np.nan
    best, all_points = selection.top(reward, 0.25)[0], judged == 1
    found = selection.disagreement(reward, best, judged, all_points)
    both = np.isfinite(reward) & np.isfinite(judged)
    assert found["both"] == both.sum() and sum(sum(row.values()) for row in found["counts"].values()) == 200
    assert found["kappa"] == pytest.approx(cohen_kappa_score(best[both], all_points[both]))
    assert found["counts"]["best"]["best"] == (best & all_points).sum()
    assert found["counts"]["unknown"]["not best"] == (~np.isfinite(reward) & (judged < 1)).sum()
    nothing = selection.disagreement(np.full(3, np.nan), np.zeros(3, bool), np.ones(3), np.ones(3, bool))
    assert nothing["kappa"] is None and nothing["counts"]["unknown"]["best"] == 3


def test_apologies_of_least_worth_go() -> None:
    sorry, worths = np.array([True, False, True, False, True, False, False]), np.arange(7) / 7
    assert selection.too_many_apologies(sorry, worths, 0.2).tolist() == [2, 0]  # one beside four is a fifth
    assert selection.too_many_apologies(sorry, worths, 1.0).tolist() == []
    assert selection.too_many_apologies(sorry, worths, 0.0).tolist() == [4, 2, 0]
    assert filters.most_apologies(0.5, 10, 4) == 4 and filters.most_apologies(0.1, 10, 90) == 10


# --- answers ---


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It is easy.\nDifficulty: 1", 1),
        ("**Difficulty:** 3", 3),
        ("difficulty: 2 (some steps)", 2),
        ("Difficulty: 1\n...\n> Difficulty: **2**.", 2),
        ("Difficulty: 2/3", 2),
        ("Difficulty: 4", None),
        ("Difficulty: 2.5", None),
        ("Difficulty: 23", None),
        ("Difficulty: two", None),
        ("The difficulty is 2", None),
        ("", None),
    ],
)
def test_a_grade_is_read_strictly(answer: str, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(ValueError):
            parsing.whole_number(answer, "difficulty", 1, 3)
    else:
        assert parsing.whole_number(answer, "difficulty", 1, 3) == expected


def test_points_tags_and_topics_are_read_strictly() -> None:
    said = "Accuracy: it is right.\nTone: good.\n\n- Accuracy: 1\n- Instruction following: 0\n- **Tone**: 1"
    assert questions.points(said, questions.GENERAL_POINTS) == {"accuracy": 1, "instructions": 0, "tone": 1}
    with pytest.raises(ValueError, match="no line correct"):
        questions.points("Correct: 2\nIntention: 1", questions.CODE_POINTS)
    tags = "Tag: Unit Conversion - metres\n- Tag: `word limit`: 50\nTag: unit  conversion\n* tag: C++ (language)"
    tags += "\nTag: follow-up"
    assert questions.tags(tags) == ["unit conversion", "word limit", "c++", "follow up"]
    for bad in ("none", "Tag:", "\n".join(f"Tag: t{n}" for n in range(51))):
        with pytest.raises(ValueError, match="tags"):
            questions.tags(bad)
    classes = {"Code": ["Debugging"], "writing": []}
    assert questions.topic("Topic: code.\nFiner: debugging", classes) == {"topic": "Code", "fine_topic": "Debugging"}
    assert questions.topic("Topic: Writing\nFiner: other", classes)["fine_topic"] == "other"
    assert questions.topic("Topic: other\nFiner: other", classes)["topic"] == "other"
    for bad in ("Topic: cooking\nFiner: other", "Topic: writing\nFiner: debugging", "Topic: code", "code"):
        with pytest.raises(ValueError, match="topic"):
            questions.topic(bad, classes)


# --- records ---


def written(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return str(path)


def dialog(asked: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], **more}


def test_what_the_format_cannot_say_and_what_repeats_is_unfit(tmp_path: Path) -> None:
    picture = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}
    share_gpt = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    silent = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}
    given = written(
        tmp_path / "a.jsonl", dialog("a", "b"), dialog("a", "b"), picture, share_gpt, silent, dialog("a", "c")
    )
    read = list(dialog_records.read(given, "quality"))
    assert [one.unfit for one in read] == [
        None, "repeated", "with content that is no text", None, "without an answer", None,
    ]  # fmt: skip
    assert [one.index for one in read] == list(range(6)) and len({one.id for one in read}) == 5
    assert len(list(dialog_records.read(given, "quality", limit=2))) == 2
    with pytest.raises(ValueError, match=r"added_key=messages: .*line 1 has a field of that name"):
        list(dialog_records.read(given, "messages"))
    with pytest.raises(ValueError, match="input: .*line 1: messages"):
        list(dialog_records.read(written(tmp_path / "b.jsonl", {"text": "x"}), "quality"))
    with pytest.raises(ValueError, match="there is no record in it"):
        list(dialog_records.read(written(tmp_path / "c.jsonl"), "quality"))


def test_odd_texts_are_shown_and_written(tmp_path: Path) -> None:
    odd = dialog("half \ud800 and \0 zero", "x" * 5000)
    (one,) = dialog_records.read(written(tmp_path / "a.jsonl", odd), "quality")
    text, cut = one.shown(1000)
    assert cut and "characters are left out here" in text and text.startswith("[user]\nhalf ? and   zero")
    assert text.count("x") > 900 and len(text) < 1100
    text.encode()
    whole, cut = one.shown(10_000)
    assert not cut and whole.endswith("x" * 5000)
    assert json.loads(dialog_records.line(one.record)) == odd
    assert (
        dialog_records.line({"a": "\N{LATIN SMALL LETTER E WITH ACUTE}"})
        == '{"a": "\N{LATIN SMALL LETTER E WITH ACUTE}"}\n'
    )
