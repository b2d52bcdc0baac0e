"""Each rule drops what it is for and lets the rest pass; each verifiable instruction tells right from wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.sampling import filters, refusals, verifiers
from llama31.sampling.filters import Candidate

PLAIN = "The river runs past the old mill and into the sea."
LOOP = "and so on it goes " * 12


def candidate(text: str, k: int = 0, finish: str = "stop", tokens: int | None = None, prompt: str = "p") -> Candidate:
    return Candidate(prompt, k, text, finish, tokens, {})


@pytest.mark.parametrize(
    ("text", "changes", "finish", "reason"),
    [
        (PLAIN, {}, "stop", None),
        (PLAIN, {}, "length", "unfinished"),
        (PLAIN, {"finished": False}, "length", None),
        (" \n", {}, "stop", "empty"),
        ("Yes.", {"min_tokens": 2}, "stop", "too short"),
        (PLAIN, {"max_tokens": 5}, "stop", "too long"),
        (f"{PLAIN}<|eot_id|>", {}, "stop", "garbage"),
        ("Broken \ufffd bytes in it.", {}, "stop", "garbage"),
        ("A bell \x07 rings.", {}, "stop", "garbage"),
        (LOOP, {}, "stop", "repeats itself"),
        (LOOP, {"repeated_share": 1.0}, "stop", None),
        ("Good \U0001f600 day \U0001f600 to \U0001f389 you \U0001f680", {}, "stop", "emoji"),
        (f"{PLAIN} \U0001f600", {}, "stop", None),
        ("5 \u20ac \u2265 4 \u20ac, and \u2211 x is \u221e.", {}, "stop", None),  # mathematics is no emoji
        ("Wow!! What a day!!! I love it!", {}, "stop", "exclamation marks"),
        ("Well done!", {}, "stop", None),
        ("\u0939\u092e \u0928\u0926\u0940 \u0915\u0947", {}, "stop", "another script"),
        ("\u0939\u092e \u0928\u0926\u0940", {"same_script": False}, "stop", None),
        ("42", {}, "stop", None),
    ],
)  # fmt: skip
def test_rules_of_one_answer(text: str, changes: dict[str, Any], finish: str, reason: str | None) -> None:
    result = filters.why_not(candidate(text, finish=finish), "Tell me about the river", (), config.Filters(**changes))
    assert result == reason


def test_checks_of_the_prompt_decide() -> None:
    wanted = [("max_words", 3)]
    assert filters.why_not(candidate(PLAIN), "?", wanted, config.Filters()) == "format"
    assert filters.why_not(candidate("Past the mill."), "?", wanted, config.Filters()) is None
    assert filters.why_not(candidate(PLAIN), "?", wanted, config.Filters(format=False)) is None


def selected(texts: dict[str, list[str]], scores: dict[tuple[str, int], float | None], **changes: Any) -> Any:
    given = {p: [candidate(text, k, prompt=p) for k, text in enumerate(result)] for p, result in texts.items()}
    asked = dict.fromkeys(texts, "Tell me about the river")
    return filters.select(given, scores, asked, {}, config.Filters(**changes))


def test_ranks_follow_the_reward_whatever_the_order() -> None:
    texts = {"p": ["Bad.", "Best of all.", "Good one.", "best  OF all.", "Unread."]}
    scores = {("p", 0): -1.0, ("p", 1): 2.0, ("p", 2): 1.0, ("p", 3): 9.0, ("p", 4): None}
    result = selected(texts, scores)
    assert [one.k for one, _ in result.best[0].answers] == [1, 2, 0]
    assert result.dropped == {"duplicate": 1, "no reward": 1}
    flipped = filters.select(
        {"p": [candidate(text, k) for k, text in reversed(list(enumerate(texts["p"])))]}, scores, {"p": "x"}, {},
        config.Filters(),
    )  # fmt: skip
    assert [one.k for one, _ in flipped.best[0].answers] == [1, 2, 0]


def test_a_dropped_answer_makes_no_duplicates() -> None:
    given = {"p": [candidate("Best of all.", 0, "length"), candidate("Best of all.", 1), candidate("Best of all.", 2)]}
    scores: dict[tuple[str, int], float | None] = {("p", 0): 1.0, ("p", 1): None, ("p", 2): 1.0}
    result = filters.select(given, scores, {"p": "Tell me"}, {}, config.Filters())
    assert [one.k for one, _ in result.best[0].answers] == [2]
    assert result.dropped == {"unfinished": 1, "no reward": 1}


JAPANESE, RUSSIAN = "犬がいる。", "Это кот."


@pytest.mark.parametrize(
    ("asked", "answer", "passes"),
    [
        ("Translate 'There is a dog' into Japanese.", JAPANESE, True),
        ("Übersetze ins Japanische: Da ist ein Hund", JAPANESE, True),
        ("Traduis en russe : c'est un chat", RUSSIAN, True),
        ("What does 猫 mean? Explain it to a child of that country.", JAPANESE, True),
        ("Tell me about the river", JAPANESE, False),
        ("What is the capital of Japan? And of Thailand?", JAPANESE, False),
        ("Translate 'There is a dog' into Japanese.", RUSSIAN, False),
        ("यह नदी है। इसका अंग्रेज़ी में अनुवाद करो", "This is a river.", True),
        ("यह नदी कहाँ है, और वह समुद्र से कितनी दूर है? AI", "This is a river.", False),
        ("यह नदी है। इसका कोड लिखो", "यह कोड है:\n```python\nprint('this is the river')\n```", True),
        ("1 + 1 =", JAPANESE, True),
    ],
)
def test_an_answer_is_written_as_its_prompt_asks_for(asked: str, answer: str, passes: bool) -> None:
    assert (filters.why_not(candidate(answer), asked, (), config.Filters()) is None) == passes
    assert filters.why_not(candidate(answer), asked, (), config.Filters(same_script=False)) is None


def test_apologies_are_balanced_and_the_best_share_is_kept() -> None:
    texts = {str(i): ["I'm sorry, no." if i < 4 else f"Answer number {i} stands here."] for i in range(10)}
    scores: dict[tuple[str, int], float | None] = {(str(i), 0): float(i) for i in range(10)}
    result = selected(texts, scores, apologies_share=0.25)
    assert sorted(one.prompt for one in result.best) == ["2", "3", "4", "5", "6", "7", "8", "9"]
    assert result.dropped == {"prompts that only apologise": 2}
    assert {one.prompt for one in selected(texts, scores, keep_share=0.3).best} == {"7", "8", "9"}
    assert len(selected(texts, scores, apologies_share=1.0).best) == 10


def test_a_prompt_may_end_without_an_answer() -> None:
    result = selected({"p": [""]}, {("p", 0): 1.0})
    assert result.best == [] and result.dropped == {"empty": 1, "prompts without an answer": 1}


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        ("min_words", 3, "one two-fold three's", "one two"),
        ("max_words", 2, "one two", "one two three"),
        ("max_words", 2, "one", ""),
        ("sentences", 2, "It rains. Does it?", "It rains, does it?"),
        ("paragraphs", 2, "one\n\ntwo", "one\ntwo"),
        ("bullets", 2, "- one\n* two", "- one\n-two"),
        ("bullets", 2, "1. one\n2) two", "one\ntwo"),
        ("min_sentences", 2, "It rains. It pours. Go.", "It rains."),
        ("max_sentences", 2, "It rains.", "It rains. It pours. Go."),
        ("min_paragraphs", 2, "one\n\ntwo\n\nthree", "one"),
        ("max_paragraphs", 2, "one", "one\n\ntwo\n\nthree"),
        ("min_bullets", 2, "- one\n- two\n- three", "- one"),
        ("max_bullets", 2, "none at all", "- one\n- two\n- three"),
        ("highlights", 2, "*one* and **two words**", "2 * 3 * 4 and *one*"),
        ("min_highlights", 1, "**one**", "one"),
        ("max_highlights", 1, "*one*", "*one* *two*"),
        ("placeholders", 1, "Dear [name]", "Dear []"),
        ("min_placeholders", 2, "[name], [address]", "[name]"),
        ("max_placeholders", 1, "[name]", "[name], [address]"),
        ("capitals", 2, "NASA and ESA agree", "NASA agrees"),
        ("min_capitals", 1, "NASA", "Nasa"),
        ("max_capitals", 1, "NASA", ""),
        ("json", True, '```json\n{"a": [1]}\n```', "{a: 1}"),
        ("json", True, '{"a": 1}', "42"),
        ("uppercase", True, "ALL OF IT, 3!", "ALL of it"),
        ("lowercase", True, "all of it", "All of it"),
        ("uppercase", True, "ABC", "123"),
        ("keyword", "mill", "The Mill stands", "The miller stands"),
        ("forbidden", "mill", "The miller stands", "A mill"),
        ("starts_with", "Dear", " Dear you", "My dear"),
        ("ends_with", "The end.", "So be it. The end.\n", "The end. Or not"),
        ("no_comma", True, "one and two", "one, two"),
        ("quoted", True, '"so he said"', 'so he "said"'),
        ("title", True, "<<A title>>\ntext", "<A title>"),
        ("matches", r"\d+ \w+", "12 apples\n", "twelve apples"),
    ],
)
def test_instructions_are_verified(kind: str, value: Any, good: str, bad: str) -> None:
    wanted = verifiers.read([{"kind": kind, "value": value}])
    assert verifiers.broken(good, wanted) == [] and verifiers.broken(bad, wanted) == [kind]


def test_every_kind_is_tested_and_empty_answers_obey_nothing() -> None:
    tested = {mark[0] for mark in test_instructions_are_verified.pytestmark[0].args[1]}  # type: ignore[attr-defined]
    assert tested == set(verifiers.KINDS)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "It is 3.5 km away."),
        (2, "Dr. Smith came. He left."),
        (1, "Fruit, e.g. apples, is good"),
        (2, "We sell tea, coffee etc. Come in."),
        (1, "We sell tea, coffee etc. in a shop."),
        (1, "J. R. R. Tolkien wrote it"),
        (2, "So do I. He left."),
        (2, "Solve for x. Then add."),
        (3, "Is it? No. He left."),
        (1, "It is No. 5 of them."),
        (1, "Well ... maybe."),
        (1, "Well\u2026 maybe."),
        (2, "Well... Maybe."),
        (1, "\u201cWhy?\u201d he asked."),
        (2, "He asked \u201cWhy?\u201d Nobody knew."),
        (2, "1. Buy milk.\n2. Go home."),
        (2, "That was in 1999. He left."),
        (2, "it rains. does it?"),
        (2, "Really?! Yes!"),
        (3, "犬がいる。猫もいる\uff01本当\uff1f"),
        (2, "यह नदी है। वह पहाड़ है।"),
        (1, "no mark at all"),
        (0, " ... "),
    ],
)  # fmt: skip
def test_sentences_end_where_they_end(count: int, text: str) -> None:
    assert len(verifiers.sentences(text)) == count, verifiers.sentences(text)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I can't help with that.", True),
        ("I\u2019m sorry, but I cannot assist.", True),
        ("Sorry, I am not able to do so.", True),
        ("As an AI, I have limits.", True),
        ("", True),
        ("I can't.", False),
        ("I'm sorry, but I can't.", True),
        ("I won't be able to help you with this.", True),
        ("I must respectfully decline.", True),
        ("I'm going to have to decline.", True),
        ("I cannot overstate the importance of sleep.", False),
        ("That's not something I can do.", True),
        ("I'm sorry to hear about your loss. Here are some words that may help.", False),
        ("I can't recommend this book enough!", False),
        ("I cannot give you enough praise for this.", False),
        ("I can't help but smile at this.", False),
        ("I can't wait to help you plan your trip!", False),
        ("I am sorry for the confusion. Paris is the capital.", False),
        ("As an AI engineer you should know statistics.", False),
        ('The guard said "I can\'t help you with that" and left.', False),
        ("Dabei kann ich dir leider nicht helfen.", True),
        ("Es tut mir leid, aber ich kann diese Anfrage nicht erfüllen.", True),
        ("Ich kann dazu keine Anleitung geben.", True),
        ("Es tut mir leid, das zu hören. Hier sind einige Ideen.", False),
        ("Ich lehne mich zurück und lese.", False),
        ("Ich kann das Buch nicht genug empfehlen!", False),
        ("Je suis désolé, mais je ne peux pas vous aider.", True),
        ("Je ne suis pas en mesure de fournir ces informations.", True),
        ("Je suis désolé pour votre perte. Voici quelques mots.", False),
        ("Je ne peux pas assez recommander ce livre.", False),
        ("Mi dispiace, ma non posso aiutarti con questa richiesta.", True),
        ("Non sono in grado di fornire queste informazioni.", True),
        ("Mi dispiace per la tua perdita. Ecco alcune parole.", False),
        ("Non posso che consigliare questo libro.", False),
        ("Desculpe, mas não posso ajudar com isso.", True),
        ("Não consigo fornecer essas informações.", True),
        ("Lamento a sua perda. Aqui estão algumas palavras.", False),
        ("Como ia dizendo, o rio não é longo.", False),
        ("Como uma IA, não tenho acesso a isso.", True),
        ("Não posso deixar de recomendar este livro.", False),
        ("Lo siento, pero no puedo ayudarte con eso.", True),
        ("No me es posible proporcionar esa información.", True),
        ("Siento mucho tu pérdida. Aquí tienes algunas ideas.", False),
        ("No puedo dejar de recomendar este libro.", False),
        ("मुझे खेद है, लेकिन मैं इसमें आपकी मदद नहीं कर सकता।", True),
        ("क्षमा करें, मैं यह जानकारी नहीं दे सकती।", True),
        ("आपके नुकसान के बारे में सुनकर मुझे दुख हुआ। यहाँ कुछ सुझाव हैं।", False),
        ("मैं आपकी मदद कर सकता हूँ। पहले पानी उबालें।", False),
        ("ขออภัย ฉันไม่สามารถช่วยเรื่องนี้ได้", True),
        ("ผมไม่สามารถให้ข้อมูลนี้ได้ครับ", True),
        ("ขอแสดงความเสียใจกับการสูญเสียของคุณ นี่คือคำแนะนำบางประการ", False),
        ("ฉันสามารถช่วยคุณได้ เริ่มจากต้มน้ำก่อน", False),
        ("To kill a Python process, use its number.", False),
        ("Cannot is one word in English.", False),
        ("He said sorry and went. " * 12 + "I can't say more.", False),
    ],
)
def test_refusals_are_recognised(text: str, refused: bool) -> None:
    assert verifiers.refuses(text) == refused


def test_patterns_of_refusals_are_given_by_hand_or_by_file(tmp_path: Path) -> None:
    (tmp_path / "openings.txt").write_text("^nope\n\n^nee,\n", encoding="utf-8")
    result = refusals.read([refusals.OURS, f"file:{tmp_path}/openings.txt", "^computer says no"])
    for text in ("Nope.", "Nee, dat doe ik niet", "Computer says no.", "I can't help with that."):
        assert verifiers.refuses(text, result)
    assert not verifiers.refuses("Nope.") and not verifiers.refuses(
        "I can't help with that.", result[len(refusals.PATTERNS) :]
    )
    with pytest.raises(ValueError, match=r"refusals=\(: no regular expression"):
        refusals.read(["("])
    with pytest.raises(ValueError, match="refusals=file:nothing: cannot be read"):
        refusals.read(["file:nothing"])
