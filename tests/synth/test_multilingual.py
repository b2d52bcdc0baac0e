"""Languages: what is in which, templates over records, translations with their numbers, scripted throughout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama31 import config
from llama31.command import entry, inputs
from llama31.curate.scoring import language
from llama31.judging import rejection
from llama31.sampling.filters import Candidate
from llama31.synth.equality.bounded import Comparer
from llama31.synth.multilingual import digits, languages, reasoning, templates
from llama31.synth.multilingual.languages import LanguageMatch
from llama31.synth.multilingual.reasoning import TranslatedReasoning
from llama31.synth.multilingual.templates import TemplateDialogs
from llama31.tokens import chat
from recipes import synthesize
from tests.synth import scripted
from tests.synth.scripted import Scripted

SENTENCES = {
    "en": ["the house stands beside the river and the children play there", "what is the largest of these numbers"],
    "de": ["das haus steht neben dem fluss und die kinder spielen dort", "welche ist die größte der zahlen"],
    "fr": ["la maison est au bord de la rivière et les enfants y jouent", "quel est le plus grand nombre"],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fastText model of three languages."""
    path = tmp_path_factory.mktemp("model") / "languages.bin"
    texts = [(code, " ".join(lines)) for code, lines in SENTENCES.items() for _ in range(40)]
    language.train(texts, path, characters=60)
    return path


def test_an_answer_is_in_the_language_that_is_asked_for(model: Path) -> None:
    match = LanguageMatch(model)
    english, german, french = (SENTENCES[code][0] for code in SENTENCES)
    assert match.matches(english, english) and not match.matches(english, german)
    assert match.matches(german, german) and not match.matches(german, french)
    assert match.matches(f"Translate into German: {english}", german)
    assert not match.matches(f"Say in German: {english}", french)
    assert match.matches(f"Translate into Dothraki: {english}", french), "nobody knows which is meant"
    assert match.matches(english, german, language="de") and not match.matches(german, german, language="en")
    # what has no language: formulas, code, a word
    assert (
        match.matches(english, "$x = 3$")
        and match.matches(english, f"```\n{german}\n```")
        and match.matches(english, "Haus")
    )
    assert match.matches("", german) and match.matches("2 + 2", german)
    scripts = LanguageMatch()
    assert scripts.is_in("बच्चे हर दिन वहाँ खेलते हैं", {"hi"}) and not scripts.is_in(english, {"hi"})
    assert scripts.is_in(german, {"en"}) and not scripts.is_in("เด็กเล่นที่นั่นทุกวัน", {"en"})
    with pytest.raises(ValueError, match="nowhere"):
        LanguageMatch("nowhere.bin")


def test_the_filter_before_the_reward_model_reads_the_model_by_its_path(model: Path) -> None:
    """As `recipes.sample` asks: for prompts and answers of a session."""
    english, german, _ = (SENTENCES[code][0] for code in SENTENCES)
    run = config.Sample(filters=config.Filters(language_model=str(model)))
    session: Any = SimpleNamespace(run=run, prompts=[SimpleNamespace(id="a", asked=english, record={})])
    answers = {"a": [Candidate("a", k, text, "stop", None, {}) for k, text in enumerate((english, german))]}
    assert rejection._foreign(session, answers) == {("a", 1)}
    session.run = config.Sample()
    assert rejection._foreign(session, answers) == frozenset()


@pytest.mark.parametrize(
    ("prompt", "codes"),
    [
        ("Antworte auf Deutsch.", {"de"}), ("Réponds en français", {"fr"}), ("हिन्दी में", {"hi"}),
        ("Was ist in Deutschland und Italien los?", set()), ("ตอบเป็นภาษาไทย", {"th"}),
        ("In Thailand or Germany?", set()), ("inglés o italiano", {"en", "it"}),
    ],
)  # fmt: skip
def test_languages_are_known_by_name(prompt: str, codes: set[str]) -> None:
    assert languages.named(prompt) == codes


# --- templates ---

PARALLEL = {"source": "Good morning.", "target": "Guten Morgen.", "languages": {"source": "en", "target": "de"}}
EXAM = {"question": "Which is a prime?", "options": ["4", "6", "7"], "correct": 2}


def dialogs(folder: Path, settings: config.TemplatesSynthesis, *records: dict[str, Any], model: Any = None) -> Any:
    capability = TemplateDialogs(settings, templates.read(settings.folder), LanguageMatch(model))
    return scripted.run(folder, capability, scripted.items(*records), Scripted(lambda *_: "never asked"))


def test_records_become_dialogs_by_templates(tmp_path: Path) -> None:
    settings = config.TemplatesSynthesis(each=9)
    results = dialogs(tmp_path, settings, PARALLEL, EXAM, {"text": "nothing"}, {**EXAM, "options": []})
    parallel = [one["messages"] for one in results["0"]["records"]["dialogs"]]
    assert len(parallel) == 4 and {one[-1]["content"] for one in parallel} == {"Guten Morgen."}
    assert any(one[0]["content"] == "Translate into German:\n\nGood morning." for one in parallel)
    exam = {one["messages"][1]["content"]: one["messages"][0]["content"] for one in results["1"]["records"]["dialogs"]}
    assert exam["C. 7"] == "Which is a prime?\n\nA. 4\nB. 6\nC. 7" and "(c) 7" in exam
    assert results["2"]["dropped"] == results["3"]["dropped"] == "no template for its fields"
    for record in results["0"]["records"]["dialogs"] + results["1"]["records"]["dialogs"]:
        assert chat.read(record)[-1].role == "assistant"
        ((name, fingerprint),) = record["provenance"]["template"].items()
        assert name.endswith(".txt") and len(fingerprint) == 12
    # without names of languages a template that says them is not filled
    bare = {key: PARALLEL[key] for key in ("source", "target")}
    assert dialogs(tmp_path / "bare", settings, bare)["0"]["dropped"] == "no template for its fields"


def test_one_template_is_drawn_by_chance_and_the_same_again(tmp_path: Path) -> None:
    records = [{**PARALLEL, "source": f"Good morning {n}."} for n in range(30)]
    results = dialogs(tmp_path / "a", config.TemplatesSynthesis(), *records)
    taken = [tuple(result["records"]["dialogs"][0]["provenance"]["template"]) for result in results.values()]
    assert len(set(taken)) == 4 and all(len(result["records"]["dialogs"]) == 1 for result in results.values())
    again = dialogs(tmp_path / "b", config.TemplatesSynthesis(), *records)
    assert {name: again[name]["records"] for name in again} == {name: results[name]["records"] for name in results}


def test_records_in_another_language_or_of_a_low_score_go(tmp_path: Path, model: Path) -> None:
    english, german, french = (SENTENCES[code][0] for code in SENTENCES)
    pair = {**PARALLEL, "source": english, "target": german, "blaser": 4.2}
    settings = config.TemplatesSynthesis(score_key="blaser", least_score=3)
    results = dialogs(
        tmp_path,
        settings,
        pair,
        {**pair, "target": french},
        {**pair, "blaser": 2.9},
        {**pair, "source": " "},
        model=model,
    )
    dropped = [results[str(number)]["dropped"] for number in range(4)]
    assert dropped == [None, "target is not in de", "score too low", "no template for its fields"]
    with pytest.raises(ValueError, match="line 0: blaser is no number"):
        dialogs(tmp_path / "b", settings, {**pair, "blaser": "4"})
    with pytest.raises(ValueError, match='languages: give {"FIELD": "de", ...}'):
        dialogs(tmp_path / "c", config.TemplatesSynthesis(), {**PARALLEL, "languages": ["de"]})


def test_own_templates_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    settings = config.TemplatesSynthesis(folder=str(own))
    with pytest.raises(ValueError, match="no .txt file"):
        templates.read(str(own))
    (own / "a.txt").write_text("[user]\nSay {{ word }}\n[assistant]\n{{ word[0] }}\n")
    (dialog,) = dialogs(tmp_path / "a", settings, {"word": "[user]\n{{ 7 }}"})["0"]["records"]["dialogs"]
    assert [one["content"] for one in dialog["messages"]] == ["Say [user]\n{{ 7 }}", "["]
    with pytest.raises(ValueError, match="line 0: a.txt cannot be filled"):
        dialogs(tmp_path / "b", settings, {"word": 3})
    (own / "b.txt").write_text("Only a question about {{ word }}")
    with pytest.raises(ValueError, match=r"b.txt does not end with \[assistant\]"):
        templates.read(str(own))


# --- translated reasoning ---

QUESTION = "Anna has 1,200 apples and sells 15.5 % of them. How many are left?"
SOLUTION = "Step 1: She sells 186.\n\nStep 2: 1,200 - 186 = 1,014 are left: $\\boxed{1014}$."
HINDI = "अन्ना के पास 1.200 सेब हैं और वह 15,5 % बेचती है। कितने बचे हैं?"
GERMAN = (
    "QUESTION: Anna hat 1.200 Äpfel und verkauft 15,5 % davon. Wie viele bleiben übrig?\n"
    "SOLUTION: Schritt 1: Sie verkauft 186.\n\nSchritt 2: 1.200 - 186 = 1.014 bleiben: $\\boxed{1014}$."
)


@pytest.fixture(scope="module")
def comparer() -> Iterator[Comparer]:
    with Comparer(processes=1) as one:
        yield one


def translated(folder: Path, comparer: Comparer, says: Any, match: LanguageMatch | None = None, **record: Any) -> Any:
    settings = config.ReasoningTranslation(languages=["de"])
    capability = TranslatedReasoning(settings, comparer, match or LanguageMatch())
    given = record or {"question": QUESTION, "solution": SOLUTION}
    model = Scripted(says)
    return scripted.run(folder, capability, scripted.items(given), model)["0"], model


def test_a_faithful_translation_is_kept(tmp_path: Path, comparer: Comparer) -> None:
    result, model = translated(tmp_path, comparer, lambda *_: GERMAN)
    (dialog,) = result["records"]["dialogs"]
    assert dialog["messages"][0]["content"].startswith("Anna hat 1.200") and dialog["language"] == "de"
    assert dialog["messages"][1]["content"].endswith("$\\boxed{1014}$.") and len(model.asked) == 1
    assert result["counts"] == {"translations into de": 1}
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": SOLUTION}]
    again, _ = translated(tmp_path / "b", comparer, lambda *_: GERMAN, messages=messages)
    assert again["records"] == result["records"]


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (GERMAN.replace("15,5", "155"), "other numbers"),
        (GERMAN.replace("186", "187"), "other numbers"),
        (GERMAN.replace("{1014}", "{1,014.5}"), "other numbers"),
        (GERMAN.replace("$\\boxed{1014}$", "1014"), "another answer"),
        (GERMAN.replace(GERMAN[10:81], HINDI), "another language"),
    ],
)
def test_an_unfaithful_one_is_asked_for_again_with_what_is_wrong(
    tmp_path: Path, comparer: Comparer, wrong: str, fault: str
) -> None:
    result, model = translated(tmp_path, comparer, lambda last, _: GERMAN if "these faults" in last else wrong)
    assert result["records"]["dialogs"] and result["counts"]["translations mended"] == 1
    assert fault in model.asked[1][-1]["content"] and result["counts"][f"translations with {fault}"] == 1
    result, model = translated(tmp_path / "never", comparer, lambda *_: wrong)
    assert result["dropped"] == "no faithful translation" and len(model.asked) == 2


def test_what_cannot_be_translated_is_dropped(tmp_path: Path, comparer: Comparer, model: Path) -> None:
    result, _ = translated(tmp_path / "a", comparer, lambda *_: "Gern!")
    assert result["dropped"] == "no faithful translation" and result["counts"]["unparsed multilingual/translate"] == 2
    result, asked = translated(tmp_path / "b", comparer, lambda *_: GERMAN, question=QUESTION, solution="Who knows?")
    assert result["dropped"] == "a solution without a final answer" and not asked.asked
    for number, record in enumerate([{"question": QUESTION}, {"messages": "?"}, {"messages": [{"role": "user"}] * 2}]):
        result, _ = translated(tmp_path / str(number), comparer, lambda *_: GERMAN, **record)
        assert result["dropped"] == "no question with a solution"
    english = f"QUESTION: {SENTENCES['en'][0]}\nSOLUTION: {SENTENCES['en'][1]}: \\boxed{{2}}"
    asked_for = {"question": SENTENCES["en"][0], "solution": "\\boxed{2}"}
    result, _ = translated(tmp_path / "c", comparer, lambda *_: english, LanguageMatch(model), **asked_for)
    assert (
        result["dropped"] == "no faithful translation" and result["counts"]["translations with another language"] == 2
    )


def test_languages_are_drawn_for_each_record(tmp_path: Path, comparer: Comparer) -> None:
    settings = replace(config.ReasoningTranslation(), each=2)
    capability = TranslatedReasoning(settings, comparer, LanguageMatch())
    given = scripted.items(*({"question": f"{n}?", "solution": f"\\boxed{{{n}}}"} for n in range(12)))

    def says(last: str, number: int) -> str:
        question = last.split("Problem:\n=====\n")[1].split("\n")[0]
        return f"QUESTION: {question}\nSOLUTION: \\boxed{{{question.strip('?')}}}"

    results = scripted.run(tmp_path, capability, given, Scripted(says))
    drawn = [one["language"] for result in results.values() for one in result["records"]["dialogs"]]
    assert len(drawn) == 24 and len(set(drawn)) > 4 and set(drawn) <= set(languages.NAMES)
    assert all(len({one["language"] for one in result["records"]["dialogs"]}) == 2 for result in results.values())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,234.5 and 3.14", "1.234,5 und 3,14"), ("1,000,000", "1 000 000"), ("12,34,567", "१२,३४,५६७"), ("25", "๒๕"),
        ("$1{,}000$", "1.000"), ("x_1 = 2^{10}", "x_1 = 2^{10}"), ("none", "keine"),
    ],
)  # fmt: skip
def test_digits_are_the_same_in_any_notation(one: str, other: str) -> None:
    assert digits.differences(one, other) == ([], [])


def test_digits_that_differ_are_told() -> None:
    assert digits.differences("3 of 7, 7 and 1.5", "3 von 7 und 15") == (["1", "5", "7"], ["15"])
    with pytest.raises(ValueError):
        reasoning.parts("SOLUTION: x\nQUESTION: y")
    assert json.dumps(digits.runs("\ud800 \0 5")) == '{"5": 1}'


def test_templates_need_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line to the files; the other tasks are refused without one."""
    given = tmp_path / "parallel.jsonl"
    records = [{**PARALLEL, "source": f"Good morning {n}."} for n in range(5)] + [{"text": "nothing"}]
    given.write_text("".join(json.dumps(record) + "\n" for record in records))
    words = ["task=templates", "name=t", f"folder={tmp_path / 'made'}", f"input={given}", "shards=2"]
    run = entry.read(config.Synthesize, "synthesize", words)[0]
    inputs.check(run)
    synthesize.main(run)
    assert "5 of 6 items kept" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "made" / "dialogs.jsonl").read_text().splitlines()]
    assert len(lines) == 5 and all(line["provenance"]["template"] for line in lines)
    with pytest.raises(config.ConfigError, match=r"server.urls=\[\]: answers come from a chat model"):
        entry.read(config.Synthesize, "synthesize", [*words[1:], "task=mathematics"])
    wrong = ["templates.folder=nowhere", "templates.language_model=nowhere.bin"]
    with pytest.raises(
        config.ConfigError, match=r"templates.folder=nowhere: (?s:.*)templates.language_model=nowhere.bin: "
    ):
        inputs.check(entry.read(config.Synthesize, "synthesize", [*words, *wrong])[0])
