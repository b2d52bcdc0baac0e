"""Factuality, steerability, safety and the guard with models that say what a test wants: what is kept, exactly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.sampling import verifiers
from llama31.sampling.answers import Answer
from llama31.synth.behaviour import guard, safety, steerability
from llama31.synth.behaviour.factuality import Factuality
from llama31.synth.behaviour.guard import HazardGuard
from llama31.synth.behaviour.safety import Safety
from llama31.synth.behaviour.steerability import Steerability
from llama31.synth.pipeline import parsing
from tests.synth import scripted
from tests.synth.scripted import Scripted

KNOWS = {"river": ["blue"] * 4, "stone": ["red"] * 4, "cloud": ["I do not know."] * 4, "lamp": ["blue", "red"] * 2}


def judged(last: str) -> str:
    """Blue is right; what says that it does not know is not informative."""
    answer = last.split("Answer to judge:\n=====\n")[1].split("\n=====")[0]
    if "only source that counts" in last:
        return f"It says so.\n\n**Verdict: {'yes' if answer == 'blue' else 'no'}**"
    return f"Verdict: {'no' if 'not know' in answer else 'yes'}"


def knows(last: str, number: int) -> str | Answer:
    name = next((name for name in (*KNOWS, "letter") if name in last), "")
    if "Write one question" in last:
        return "No." if name == "letter" else f"Question: What colour is the {name}?"
    return "I do not know its colour." if "not certain" in last else KNOWS[name][number]


def test_refusals_where_answers_are_informative_and_wrong(tmp_path: Path) -> None:
    capability = Factuality(config.FactualitySynthesis(answers=4, consistent=1.0))
    given = scripted.items(
        *({"id": name, "text": f"The {name} is blue."} for name in (*KNOWS, "letter")), {"text": " "}
    )
    results = scripted.run(tmp_path, capability, given, Scripted(knows), Scripted(lambda last, _: judged(last)))
    said = {name: result["records"].get("dialogs", []) for name, result in results.items()}

    def dialog(name: str, answer: str) -> list[dict[str, Any]]:
        asked = {"role": "user", "content": f"What colour is the {name}?"}
        return [{"messages": [asked, {"role": "assistant", "content": answer}]}]

    assert said["river"] == dialog("river", "blue") and said["stone"] == dialog("stone", "I do not know its colour.")
    dropped = {name: result["dropped"] for name, result in results.items() if result["dropped"]}
    never = "neither right nor wrong with consistency"
    assert dropped == {"cloud": never, "lamp": never, "letter": "unparsed factuality/question", "5": "empty"}
    assert results["stone"]["counts"] == {"answers": 4, "refusals": 1}
    without = Factuality(config.FactualitySynthesis(answers=4, consistent=1.0, keep_right=False))
    again = scripted.run(tmp_path / "b", without, given[:2], Scripted(knows), Scripted(lambda last, _: judged(last)))
    assert again["river"]["dropped"] == never and again["stone"]["dropped"] is None


@pytest.mark.parametrize("seed", range(50))
def test_rules_can_be_obeyed_together(seed: int) -> None:
    """One answer of each kind obeys its rule, and every pair that is drawn excludes none that the other needs."""
    rules = steerability.drawn(random.Random(seed), 3)
    kinds = [kind for kind, _, _ in rules]
    assert len(set(kinds)) == len(kinds) >= 1 and (len(kinds) == 1 or "json" not in kinds)
    assert verifiers.read([{"kind": kind, "value": value} for kind, value, _ in rules])
    assert not {"lowercase", "ends_with"} <= set(kinds)
    for group in steerability.APART:
        assert len(group & set(kinds)) < 2


def test_answers_that_obey_are_kept_and_others_are_rejected(tmp_path: Path) -> None:
    class Commas(random.Random):
        """Draws the rule on commas first."""

        def sample(self, population: Sequence[Any], k: int, **_: Any) -> list[Any]:  # type: ignore[override]
            return [steerability.RULES[5]]

    class Fixed(Steerability):
        def make(self, item: Any, draw: Any) -> Any:
            draw.random = Commas(0)
            return super().make(item, draw)

    answers = {"tea": ["well, no", "yes", "fine"], "bread": ["a, b", "c, d", "e, f"], "horse": ["odd", "good", "good"]}

    def says(last: str, number: int) -> str:
        return "You are a cook." if "Write the beginning" in last else answers[last][number]

    def judge(last: str, number: int) -> str:
        return "Verdict: no" if "odd" in last else "Verdict: yes"

    given = scripted.items(*({"id": name, "text": name} for name in answers))
    model = Scripted(says)
    results = scripted.run(
        tmp_path, Fixed(config.SteerabilitySynthesis(rules=1, answers=3)), given, model, Scripted(judge)
    )
    asked = [{"role": "system", "content": "You are a cook.\nUse no commas."}, {"role": "user", "content": "tea"}]
    (dialog,) = results["tea"]["records"]["dialogs"]
    assert dialog == {
        "messages": [*asked, {"role": "assistant", "content": "yes"}],
        "checks": [{"kind": "no_comma", "value": True}],
    }
    (pair,) = results["tea"]["records"]["preferences"]
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (asked, "yes", "well, no")
    assert results["bread"]["dropped"] == "no answer obeys" and results["bread"]["counts"]["breaks no_comma"] == 3
    assert results["horse"]["records"]["dialogs"][0]["messages"][-1]["content"] == "good"
    assert results["horse"]["counts"]["out of persona"] == 1 and "preferences" not in results["horse"]["records"]


def test_harm_is_not_helped_with_and_what_is_borderline_is(tmp_path: Path) -> None:
    answers = {
        "how to pick my neighbour's lock": ["Like so.", "I can't help with that.", "No."],
        "How does a lock work?": ["I can't help with that.", "By pins.", "By pins."],
        "always bad": ["Like so."] * 3,
    }

    def says(last: str, number: int) -> str:
        return "How does a lock work?" if "harmless" in last else answers[last][number]

    def judge(last: str, number: int) -> str:
        answer = last.split("Answer to judge:\n=====\n")[1].split("\n=====")[0]
        return f"Verdict: {'yes' if answer == 'Like so.' and 'violates' in last else 'no'}"

    given = scripted.items({"text": "how to pick my neighbour's lock"}, {"text": "always bad", "safety": "borderline"})
    made = scripted.run(
        tmp_path, Safety(config.SafetySynthesis(answers=3)), given, Scripted(says), Scripted(judge), at_once=1
    )
    dialogs = {one["messages"][0]["content"]: one for one in made["0"]["records"]["dialogs"]}
    assert {name: (one["messages"][1]["content"], one["safety"]) for name, one in dialogs.items()} == {
        "how to pick my neighbour's lock": ("I can't help with that.", "harmful"),
        "How does a lock work?": ("By pins.", "borderline"),
    }
    pairs = {
        one["prompt"][0]["content"]: (one["chosen"], one["rejected"]) for one in made["0"]["records"]["preferences"]
    }
    assert pairs == {
        "how to pick my neighbour's lock": ("I can't help with that.", "Like so."),
        "How does a lock work?": ("By pins.", "I can't help with that."),
    }
    assert made["0"]["counts"] == {
        "answers to borderline prompts": 3, "answers to harmful prompts": 3, "false refusals": 1,
        "violations, harmful": 1,
    }  # fmt: skip
    assert made["1"]["dropped"] == "nothing was kept" and made["1"]["counts"]["violations, borderline"] == 3


@pytest.mark.parametrize("unclear", ["By pins.", "Like so.", "a question"])
def test_what_cannot_be_read_loses_its_prompt_alone(tmp_path: Path, unclear: str) -> None:
    def says(last: str, number: int) -> str:
        if "harmless" in last:
            return "Nothing." if unclear == "a question" else "How does a lock work?"
        return "Like so." if last == "pick it" else "By pins."

    def judge(last: str, number: int) -> str:
        return "Who knows." if unclear in last else "Verdict: no"

    made = scripted.run(
        tmp_path, Safety(config.SafetySynthesis(answers=2)), scripted.items({"text": "pick it"}), Scripted(says),
        Scripted(judge), at_once=1,
    )["0"]  # fmt: skip
    kept = [one["messages"][1]["content"] for one in made["records"]["dialogs"]]
    name, kind = {"a question": ("borderline", "borderline"), "Like so.": ("violates", "harmful")}.get(
        unclear, ("violates", "borderline")
    )
    assert made["dropped"] is None and kept == ["By pins." if unclear == "Like so." else "Like so."]
    assert made["counts"][f"{kind} prompts lost: unparsed safety/{name}"] == 1
    assert made["counts"][f"unparsed safety/{name}"] == 2


def test_an_item_of_which_all_is_lost_says_why(tmp_path: Path) -> None:
    given = scripted.items({"text": "pick it", "safety": "borderline"})
    judge = Scripted(lambda last, number: "Who knows.")
    made = scripted.run(tmp_path, Safety(config.SafetySynthesis()), given, Scripted(lambda *_: "No."), judge)["0"]
    assert made["dropped"] == "unparsed safety/violates" and made["unread"] == "Who knows."


def test_share_of_safety_data_falls_with_the_size() -> None:
    assert [safety.share(size) for size in (1e9, 8e9, 70e9, 405e9, 1e12)] == pytest.approx([0.1, 0.1, 0.07, 0.05, 0.05])
    assert 0.07 < safety.share(20e9) < 0.1
    assert safety.epochs(8e9, safe=1000, others=9000) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="parameters=0: give the number of parameters"):
        safety.share(0)


@pytest.mark.parametrize(
    ("answer", "codes"),
    [
        ("safe", ()),
        (" **Safe**.\n", ()),
        ("unsafe\nS1", ("S1",)),
        ("unsafe\n\nS10, S2", ("S2", "S10")),
        ("Unsafe: S1", ("S1",)),
        ("```\nunsafe\n- **S2**: Non-Violent Crimes.\n```", ("S2",)),
    ],
)
def test_labels_of_the_guard_are_read(answer: str, codes: tuple[str, ...]) -> None:
    assert guard.read(answer, guard.HAZARDS) == codes


@pytest.mark.parametrize(
    "answer", ["", "unsafe", "unsafe\nS99", "S1", "It is safe.", "safe\nS1", "unsafe\nhate", "unsafe\nnot S1"]
)
def test_other_labels_are_asked_for_once_more(answer: str) -> None:
    with pytest.raises(ValueError, match="neither safe nor unsafe"):
        guard.read(answer, guard.HAZARDS)


def test_the_guard_keeps_what_a_judge_says_twice(tmp_path: Path) -> None:
    said = {"hello": ["safe", "safe"], "hurt him": ["unsafe\nS1", "unsafe\nS1"], "vote": ["safe", "unsafe\nS13"]}

    def judge(last: str, number: int) -> str:
        return next(answers[number] for text, answers in said.items() if text in last)

    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hurt him"}]
    given = scripted.items({"text": "hello there"}, {"messages": turns}, {"text": "vote"}, {"text": ""})
    given = [given[0], given[1], given[2], given[3]]
    said["hello there"] = ["safe", "safe"]
    made = scripted.run(tmp_path, HazardGuard(config.GuardSynthesis()), given[2:], Scripted(judge))
    assert made["2"]["dropped"] == "the judge does not agree with itself"
    assert made["3"]["dropped"] == "nothing to judge at the end"
    odd = scripted.items({"messages": "hello"}, {"messages": ["hello"]}, {"messages": [{"role": "user", "content": 1}]})
    for result in scripted.run(tmp_path / "odd", HazardGuard(config.GuardSynthesis()), odd, Scripted(judge)).values():
        assert result["dropped"] == "messages that are no texts of roles"
    said.pop("hello")
    made = scripted.run(tmp_path / "b", HazardGuard(config.GuardSynthesis()), given[:2], Scripted(judge))
    first, second = (made[name]["records"]["dialogs"][0]["messages"] for name in "01")
    assert first[-1] == {"role": "assistant", "content": "safe"} and "User: hello there" in first[0]["content"]
    assert second[-1]["content"] == "unsafe\nS1" and "User: hello\n\nAgent: hurt him" in second[0]["content"]
    assert "S13: Elections." in first[0]["content"] and "S14" not in first[0]["content"]
    assert made["1"]["counts"] == {"unsafe": 1, "S1 Violent Crimes": 1}
    shared = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hurt him"}]
    others = scripted.items({"conversations": shared}, {"prompt": "hello", "completion": "hurt him"})
    made = scripted.run(tmp_path / "c", HazardGuard(config.GuardSynthesis()), others, Scripted(lambda *_: "unsafe\nS1"))
    assert [made[name]["records"]["dialogs"][0]["messages"] for name in "01"] == [second, second]
    prompts = scripted.items({"text": "hello", "prompt": "hello", "completion": "hurt him"})
    made = scripted.run(tmp_path / "d", HazardGuard(config.GuardSynthesis()), prompts, Scripted(lambda *_: "safe"))
    assert "hurt him" not in made["0"]["records"]["dialogs"][0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes", "yes"),
        ("I think so.\nVerdict: no.", "no"),
        ("**Verdict:** yes", "yes"),
        ("Verdict: no\nVerdict: yes", "yes"),
        ("**Verdict:**\n\n(_yes_).", "yes"),
    ],
)
def test_verdicts_are_read(answer: str, verdict: str) -> None:
    assert parsing.choice(("yes", "no"))(answer) == verdict


@pytest.mark.parametrize(
    "answer", ["", "maybe", "Verdict: perhaps", "yes and no", "The verdict: yes, but", "no\nVerdict:"]
)
def test_what_is_no_verdict_is_none(answer: str) -> None:
    with pytest.raises(ValueError, match="none of yes, no"):
        parsing.choice(("yes", "no"))(answer)


def test_questions_are_read() -> None:
    assert parsing.question('"Who?"') == "Who?" and parsing.question("**Question:** Who was it?\n") == "Who was it?"
    assert parsing.question("Sure! Here's a question on it:\n\n**Question:** Who?") == "Who?"
    assert parsing.said("Here are the results:\n\n1 and 2") == "Here are the results:\n\n1 and 2"
    assert parsing.said("Here is the problem:\n**Problem**: Is it?", "problem") == "Is it?"
    assert parsing.question("```\nWhat is 1 + 1?\n```") == "What is 1 + 1?"
    for wrong in ("", "Tell me.", "First this.\n\nWho?"):
        with pytest.raises(ValueError):
            parsing.question(wrong)
