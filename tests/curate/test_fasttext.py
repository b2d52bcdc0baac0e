"""fastText: models that are whole, texts that are one line, languages, and scores of documents."""

from __future__ import annotations

import gzip
import itertools
import json
import pickle
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pytest
from datatrove.data import Document

from llama31.curate import codes
from llama31.curate.fast_text import model as fasttext_model
from llama31.curate.fast_text import whole
from llama31.curate.fast_text.model import FastText, FastTextSettings
from llama31.curate.running import ledger
from llama31.curate.scoring import language, quality
from tests.curate import debian, multilingual

QUICK = FastTextSettings(dimension=8, buckets=2000, epochs=20)
ODD = ["", " \n\n ", "a\0b", "\ud800 lone", "one\ntwo\r\n", "1 + 1 = 2", "\u2028\x85\u00a0", "</s>", "__label__en x"]


def document(text: str, **metadata: Any) -> Document:
    return Document(text=text, id="x", metadata=metadata)


def run(block: Any, documents: list[Document]) -> tuple[list[Document], dict[str, int]]:
    kept = [*block.run(iter(documents), 0, 1)]
    return kept, {name: int(stat.total) for name, stat in block.stats.stats.items()}


@pytest.fixture(scope="module")
def texts() -> list[tuple[str, str, str]]:
    return multilingual.texts(90)


@pytest.fixture(scope="module")
def model(texts: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every third page."""
    path = tmp_path_factory.mktemp("language") / "language.bin"
    language.train([(code, text) for code, name, text in texts if hash_of(name) == 0], path)
    return path


def hash_of(name: str) -> int:
    return sum(name.encode()) % 3


# --- languages ---


def test_seven_languages_are_told_apart_on_pages_that_were_not_trained_on(
    texts: list[tuple[str, str, str]], model: Path
) -> None:
    loaded, others = FastText(model), [one for one in texts if hash_of(one[1]) != 0]
    right = [language.identify(loaded, text)[0] == code for code, _, text in others]
    short = [language.identify(loaded, text[:120])[0] == code for code, _, text in others]
    assert len(others) > 150 and {code for code, _, _ in others} == multilingual.LANGUAGES.keys()
    assert np.mean(right) >= 0.97 and np.mean(short) >= 0.93


def test_the_block_sets_the_language_and_counts_by_it(texts: list[tuple[str, str, str]], model: Path) -> None:
    german = next(text for code, _, text in texts if code == "de")
    english = next(text for code, _, text in texts if code == "en")
    noise = "zxqj kwvb " * 50
    given = [document(german, language="en"), document(english, language="en"), document(noise, language="")]
    given += [document("1 2 3 --- 4"), document("")]
    block = language.LanguageFilter(str(model), threshold=0.9, thresholds={"en": 0.0}, languages=["de"])
    kept, counts = run(pickle.loads(pickle.dumps(block)), given)
    assert [(one.metadata["language"], one.metadata.get("declared_language")) for one in kept] == [("de", "en")]
    assert kept[0].metadata["language_probability"] > 0.9
    unsure = [name for name in counts if name.startswith("dropped_language") and name.endswith("below 0.9")]
    assert sum(counts[name] for name in unsure) + counts.get("dropped_language en is not wanted", 0) == 2
    assert counts["dropped_language unknown: no letters"] == 2 and counts["language de"] == 1
    assert counts["dropped_language en is not wanted"] >= 1 and counts["declared otherwise"] == 1


def test_everything_is_kept_and_labelled_without_a_threshold(model: Path) -> None:
    given = [document(text) for text in ODD] + [document("Das ist ein Text. " * 200_000)]
    kept, counts = run(language.LanguageFilter(str(model), threshold=0), given)
    lettered = [text for text in ODD if any(letter.isalpha() for letter in text)]
    assert len(kept) == len(lettered) + 1 and counts["dropped"] == len(ODD) - len(lettered)
    assert all(0 <= one.metadata["language_probability"] <= 1 for one in given)


def test_a_model_that_changes_is_read_anew(texts: list[tuple[str, str, str]], model: Path, tmp_path: Path) -> None:
    """datatrove's own block goes on with the copy of the first one."""
    path = tmp_path / "model.bin"
    german = next(text for code, _, text in texts if code == "de")
    results = []
    for renamed in ("de", "xx"):
        lines = [(renamed if code == "de" else code, text) for code, _, text in texts[:80] + texts[-20:]]
        lines += [(renamed, german)]
        language.train(lines, path)
        results.append(run(language.LanguageFilter(str(path), threshold=0), [document(german)])[0])
    assert [one.metadata["language"] for (one,) in results] == ["de", "xx"]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("__label__de", ("de", "")),
        ("de", ("de", "")),
        ("__label__deu", ("de", "")),
        ("__label__deu_Latn", ("de", "Latn")),
        ("hin_Deva", ("hi", "Deva")),
        ("arb_Arab", ("ar", "Arab")),
        ("cmn_Hani", ("zh", "Hani")),
        ("als_Latn", ("sq", "Latn")),
        ("__label__als", ("als", "")),  # Alemannic, in lid.176
        ("__label__ceb", ("ceb", "")),
        ("zh-Hant", ("zh", "Hant")),
        ("noise", ("noise", "")),
    ],
)
def test_labels_of_all_kinds_are_read(label: str, expected: tuple[str, str]) -> None:
    assert codes.language_of(label) == expected


def test_codes_are_those_of_iso() -> None:
    """Debian's package of the standard: every language with two letters, by its three."""
    (path,) = debian.files("iso-codes", "iso_639-3.json")
    known = {one["alpha_3"]: one["alpha_2"] for one in json.loads(path.read_text())["639-3"] if "alpha_2" in one}
    ours = dict(codes.ISO_639_1)
    assert {key: value for key, value in ours.items() if known.get(key) != value} == {}
    assert set(known) - set(ours) == set()
    assert set(codes.OF_SCRIPTED.values()) <= set(known.values())


def test_pieces_hold_all_words_in_order() -> None:
    chance = random.Random(1)
    text = "".join(chance.choice(["w", "ord ", "\n", "ü ", "x" * 30]) for _ in range(500))
    cut = [*language.pieces(text, 20)]
    assert " ".join(cut).split() == text.split() and 20 < len(cut) <= len(text) / 20
    assert [*language.pieces("", 5)] == [*language.pieces(" \n", 5)] == [] and [*language.pieces("ab", 5)] == ["ab"]


# --- lines and models ---


def test_lines_hold_nothing_that_the_library_takes_for_its_own(tmp_path: Path) -> None:
    """A text that speaks of fastText's marks trains no label of its own, and is not over at one."""
    given = [("a", "red __label__z apple </s> pear"), ("b", "blue sky\nand sea </s> __label__a")] * 20
    path = tmp_path / "model.bin"
    described = fasttext_model.train(((label, fasttext_model.line(text)) for label, text in given), path, QUICK)
    loaded = FastText(path)
    assert loaded.labels == ("a", "b") and described["lines"] == {"a": 20, "b": 20}
    assert {"pear", "sea"} <= set(fasttext.load_model(str(path)).get_words())
    behind = [loaded.all(fasttext_model.line(f"</s> {said}"))["a"] for said in ("red apple pear", "blue sky sea")]
    assert behind[0] > 0.5 > behind[1]
    raw = [fasttext.load_model(str(path)).predict(f"</s> {said}") for said in ("red apple pear", "blue sky sea")]
    assert raw[0] == raw[1]  # the library's own reading


@pytest.mark.parametrize("by_words", [False, True])
@pytest.mark.parametrize("text", ODD)
def test_odd_texts_are_one_line(text: str, by_words: bool, model: Path) -> None:
    prepared = fasttext_model.line(text, by_words=by_words)
    label, probability = FastText(model).best(prepared)
    assert "\n" not in prepared and label in multilingual.LANGUAGES and 0 <= probability <= 1


def test_excerpts_are_spread_over_the_text() -> None:
    text = "".join(f"{i:05d}" for i in range(2000))
    pieces = fasttext_model.excerpt(text, 400).split("\n")
    assert [len(one) for one in pieces] == [100] * 4 and pieces[0] == text[:100] and pieces[-1] == text[-100:]
    places = [text.index(one) for one in pieces]
    assert max(abs(b - a - 3300) for a, b in itertools.pairwise(places)) <= 1
    assert fasttext_model.excerpt("short", 400) == "short" and fasttext_model.excerpt(text, 0) == text
    assert 0 < len(fasttext_model.excerpt(text, 2)) <= 7


def dirty() -> None:
    """Leave no-numbers in the memory that the process has freed."""
    junk = [np.full(1000 + 50 * i, np.nan, np.float32) for i in range(400)]
    del junk


def test_no_number_of_a_model_stays_unset(tmp_path: Path) -> None:
    """Eleven threads fill a matrix whose size ten does not divide; what memory held before is in none of it."""
    lines = [("a", f"one two {i}") for i in range(60)] + [("b", f"three four {i}") for i in range(60)]
    barely = FastTextSettings(dimension=7, buckets=1001, epochs=1, learning_rate=1e-12)
    for number in range(4):
        dirty()
        fasttext_model.train(lines, tmp_path / f"{number}.bin", barely)
        matrix = fasttext.load_model(str(tmp_path / f"{number}.bin")).get_input_matrix()
        assert matrix.size % 10 and np.isfinite(matrix).all() and (matrix != 0).all() and abs(matrix).max() <= 1 / 7
    with pytest.raises(ValueError, match="threads=10: .* give 11"):
        FastTextSettings(threads=10)


def test_lines_are_shuffled_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fastText trains in the order of its file, and would forget the first label over the last."""
    orders, trained = [], fasttext_model._trained

    def spied(name: str, settings: FastTextSettings) -> Any:
        orders.append(Path(name).read_text().splitlines())
        return trained(name, settings)

    monkeypatch.setattr(fasttext_model, "_trained", spied)
    lines = [(label, f"{label} {i}") for label in "ab" for i in range(50)]
    for seed, given in ((0, lines), (0, lines[::-1]), (1, lines)):
        fasttext_model.train(given, tmp_path / "m.bin", replace(QUICK, seed=seed))
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])
    first = [line.split()[0] for line in orders[0][:50]]
    assert 10 < first.count("__label__a") < 40


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels: a; give texts of at least two"):
        fasttext_model.train([("a", "x"), ("a", "y"), ("b", "")], tmp_path / "m", QUICK)
    with pytest.raises(ValueError, match="'a b': a label is one word"):
        fasttext_model.train([("a b", "x")], tmp_path / "m", QUICK)
    assert not [*tmp_path.iterdir()]


def test_half_a_model_is_no_model(model: Path, tmp_path: Path) -> None:
    """The library loads most of these, and dies of some."""
    complete, cut = model.read_bytes(), tmp_path / "cut.bin"
    whole.check(model)
    for size in (0, 3, 8, 10, 60, 90, 200, 5000, len(complete) // 2, len(complete) - 1):
        cut.write_bytes(complete[:size])
        with pytest.raises(ValueError, match=r"model=.*cut\.bin: "):
            FastText(cut)
    cut.write_bytes(complete + b"x")
    with pytest.raises(ValueError, match="its head says"):
        FastText(cut)
    cut.write_bytes(b"no model at all " * 100)
    with pytest.raises(ValueError, match="it is no model of fastText"):
        FastText(cut)
    with pytest.raises(ValueError, match="no such file"):
        FastText(tmp_path / "none.bin")


@pytest.mark.parametrize("settings", [{}, {"qnorm": True}, {"qnorm": True, "qout": True, "cutoff": 300}])
def test_quantised_models_are_whole_too(settings: dict[str, Any], tmp_path: Path) -> None:
    lines = [(f"l{i % 300}", f"{i % 300} {i} {i % 7}") for i in range(900)]  # quantised are 256 rows or more
    fasttext_model.train(lines, tmp_path / "m.bin", QUICK)
    small = fasttext.load_model(str(tmp_path / "m.bin"))
    small.quantize(**settings)
    small.save_model(str(tmp_path / "m.ftz"))
    whole.check(tmp_path / "m.ftz")
    data = (tmp_path / "m.ftz").read_bytes()
    (tmp_path / "m.ftz").write_bytes(data[:-1])
    with pytest.raises(ValueError, match="its head says"):
        whole.check(tmp_path / "m.ftz")


def test_a_record_belongs_to_its_model(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    shutil.copy(model, path)
    assert fasttext_model.record(path) == {}
    alone = ledger.content(path)
    shutil.copy(whole.record_path(model), whole.record_path(path))
    assert [*alone, *ledger.content(path)[1:]] == ledger.content(path) != alone  # a curation asks for both
    assert fasttext_model.record(path)["use"] == "language"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="the record of another file"):
        fasttext_model.record(path)


# --- quality ---


@pytest.fixture(scope="module")
def heaps(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Pages on spreadsheets and on text documents, as JSON lines, plain and compressed."""
    folder = tmp_path_factory.mktemp("heaps")
    english = multilingual.english(900)
    for part, path, opened in (("scalc", "good-1.jsonl.gz", gzip.open), ("swriter", "bad.jsonl", open)):
        lines = [json.dumps({"text": text, "id": name}) for name, text in english.items() if f"/{part}/" in name]
        with opened(folder / path, "wt") as file:
            file.write("\n".join([*lines, '{"text": ""}', "{broken", lines[0]]) + "\n")
    return str(folder / "good-*.jsonl.gz"), str(folder / "bad.jsonl")


def trained(heaps: tuple[str, str], path: Path) -> dict[str, Any]:
    positives, negatives = (quality.read(one)[0] for one in heaps)
    return quality.train(positives, negatives, path, share=0.3)


def test_a_score_tells_two_heaps_apart_and_repeats_itself(heaps: tuple[str, str], tmp_path: Path) -> None:
    """Two trainings of the same: the same lines, held-out pages and verdicts, though not the same bits."""
    records = [trained(heaps, tmp_path / f"{name}.bin") for name in "ab"]
    assert records[0]["lines_sha256"] == records[1]["lines_sha256"] and records[0]["held_out"]["documents"] > 30
    assert all(one["held_out"]["auc"] > 0.95 and one["held_out"]["accuracy"] > 0.85 for one in records)
    assert records[0]["counts"] == {
        "left out: cited that stood there before": 1,
        "left out: other that stood there before": 1,
    }
    given = [one for heap in heaps for one in quality.read(heap)[0]]
    scores = [
        np.array([one.metadata["quality_cited"] for one in run(quality.FastTextFilter(str(path)), given)[0]])
        for path in (tmp_path / "a.bin", tmp_path / "b.bin")
    ]
    assert np.mean((scores[0] >= 0.5) == (scores[1] >= 0.5)) > 0.97 and np.corrcoef(*scores)[0, 1] > 0.95
    assert (tmp_path / "a.bin.png").read_bytes()[1:4] == b"PNG"


def test_what_is_read_is_counted(heaps: tuple[str, str]) -> None:
    documents, left_out = quality.read(heaps[0])
    assert left_out == {"left out: empty": 1, "left out: no JSON": 1} and len(documents) > 30
    with pytest.raises(ValueError, match=r"path=.*nothing.jsonl"):
        quality.read(str(Path(heaps[1]).with_name("nothing.jsonl")))


def test_scores_filter_where_they_are_asked_to(heaps: tuple[str, str], tmp_path: Path) -> None:
    trained(heaps, tmp_path / "m.bin")

    def given() -> Iterator[Document]:
        yield document("spreadsheet cell formula function sum range", language="en")
        yield from (document("paragraph style header footnote chapter", language=one) for one in ("de", "en", "fr"))
        yield from (document(text) for text in ODD)

    block = quality.FastTextFilter(str(tmp_path / "m.bin"), threshold=0.5, thresholds={"de": 0.9, "fr": 0.0})
    kept, counts = run(block, [*given()])
    assert [one.metadata["language"] for one in kept if "language" in one.metadata] == ["en", "fr"]
    assert counts["dropped_quality_cited of de below 0.9"] == 1 and counts["dropped_quality_cited below 0.5"] >= 4
    kept, counts = run(quality.FastTextFilter(str(tmp_path / "m.bin")), [*given()])
    assert len(kept) == 4 + len(ODD) and "dropped" not in counts
    assert kept[4].metadata["quality_cited"] == 0 and all(0 <= one.metadata["quality_cited"] <= 1 for one in kept)
    with pytest.raises(ValueError, match="label=good: .* knows cited, other"):
        run(quality.FastTextFilter(str(tmp_path / "m.bin"), label="good"), [*given()])


def test_training_without_one_of_the_heaps_is_refused(heaps: tuple[str, str], tmp_path: Path) -> None:
    some = quality.read(heaps[0])[0]
    with pytest.raises(ValueError, match="other: no document left to train on"):
        quality.train(some, [], tmp_path / "m.bin")
    with pytest.raises(ValueError, match="no document left to judge by"):
        quality.train(some, [document("something else")], tmp_path / "m.bin", share=1e-9)


def test_about_the_wanted_share_is_held_out_and_always_the_same() -> None:
    names = [f"text {i}" for i in range(5000)]
    chosen = [name for name in names if quality.held_out(name, 0.2, 1)]
    assert chosen == [name for name in names if quality.held_out(name, 0.2, 1)] and 900 < len(chosen) < 1100
    assert set(chosen) <= {name for name in names if quality.held_out(name, 0.3, 1)}
    assert set(chosen) != {name for name in names if quality.held_out(name, 0.2, 2)}
