"""Mathematics with models that are right, wrong, right after feedback, or never: what is kept, exactly."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.dialogs import preferences, stepwise
from llama31.sampling.answers import Answer
from llama31.sandbox.isolation import Sandbox
from llama31.sandbox.limits import SandboxLimits
from llama31.synth.equality.bounded import Comparer
from llama31.synth.mathematics import corrections, scoring
from llama31.synth.mathematics.questions import MathematicsQuestions
from llama31.synth.mathematics.search import StepTreeSearch
from llama31.synth.mathematics.solving import Mathematics
from llama31.synth.pipeline import journal
from llama31.tokens import chat
from tests.sampling.scripted import Bytes
from tests.sandbox import bwrap
from tests.sandbox.plain import Plain
from tests.synth import scripted
from tests.synth.scripted import Scripted

QUESTION = "What is 3 + 4 + 5?"
RIGHT = "Step 1: 3 + 4 = 7.\n\nStep 2: 7 + 5 = 12. The answer is \\boxed{12}."
OTHER = "Step 1: Add 4 + 5 = 9 first.\n\nStep 2: 9 + 3 = 12, so \\boxed{\\frac{24}{2}}."
WRONG = "Step 1: 3 + 4 = 7.\n\nStep 2: 7 + 5 = 13.\n\nStep 3: So it is \\boxed{13}."
SILENT = "I think that it is twelve. Verdict: correct"
MARKS = {
    "solve": "step by step.\n", "verify": "Check a solution", "next": "Write the next step alone",
    "continue": "Continue it to its end", "score": "how likely it is", "mend": "comes to a wrong answer",
    "program": "by running Python", "output": "Output:", "question": "Write one problem",
    "complete": "can be worked on",
}  # fmt: skip
PLAIN = config.MathematicsSynthesis(answers=4, corrections=0, search=config.StepSearch(below=0))

Said = Callable[[str, int], str | Answer]


def kind_of(last: str) -> str:
    return next(kind for kind, mark in MARKS.items() if mark in last)


def speaker(**says: Sequence[str] | Said) -> Scripted:
    """A model that answers each kind of prompt from a list, the last of it for ever, or by a function."""

    def answer(last: str, number: int) -> str | Answer:
        given = says[kind_of(last)]
        return given(last, number) if callable(given) else given[min(number, len(given) - 1)]

    return Scripted(answer)


@pytest.fixture(scope="module")
def comparer() -> Iterator[Comparer]:
    with Comparer(processes=1) as one:
        yield one


def made(
    folder: Path, comparer: Comparer, model: Any, settings: config.MathematicsSynthesis = PLAIN, runner: Any = None,
    reward: Any = None, **record: Any,
) -> dict[str, Any]:  # fmt: skip
    """What became of one question."""
    capability = Mathematics(settings, config.QuestionsSynthesis(), comparer, runner)
    given = scripted.items({"question": QUESTION, **record})
    return scripted.run(folder, capability, given, model, requests=1, reward=reward)["0"]


def said(result: Mapping[str, Any]) -> list[str]:
    return [record["messages"][-1]["content"] for record in result["records"].get("dialogs", [])]


def test_right_solutions_are_kept_by_the_given_answer(tmp_path: Path, comparer: Comparer) -> None:
    model = speaker(solve=[WRONG, RIGHT, SILENT, OTHER], verify=["All of it holds.\nVerdict: correct"])
    result = made(tmp_path, comparer, model, answer="$12$")
    assert said(result) == [RIGHT, OTHER]
    assert result["records"]["dialogs"][0] == {
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": RIGHT}],
        "answer": "$12$", "origin": "drawn",
    }  # fmt: skip
    (pair,) = result["records"]["preferences"]
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (RIGHT, WRONG)
    counts = {"questions solved": 1, "right solutions": 2, "solutions": 4, "solutions without an answer": 1}
    assert result["counts"] == counts
    assert set(result["records"]) == {"dialogs", "preferences"}


def test_without_an_answer_the_majority_counts(tmp_path: Path, comparer: Comparer) -> None:
    verify = ["Verdict: correct"]
    result = made(tmp_path / "a", comparer, speaker(solve=[WRONG, RIGHT, OTHER, RIGHT], verify=verify))
    assert said(result) == [RIGHT, OTHER] and result["counts"]["right solutions repeated"] == 1
    result = made(tmp_path / "b", comparer, speaker(solve=[WRONG, RIGHT, SILENT, SILENT], verify=verify))
    assert result["dropped"] == "no majority"
    result = made(tmp_path / "c", comparer, speaker(solve=[SILENT], verify=verify))
    assert result["dropped"] == "no majority"


def test_the_model_judges_its_own_solutions(tmp_path: Path, comparer: Comparer) -> None:
    def verify(last: str, number: int) -> str:
        if "first" in last:  # OTHER
            return "I cannot say."
        return "Verdict: incorrect" if number == 0 else "Verdict: correct"

    model = speaker(solve=[RIGHT, OTHER, RIGHT + " ", RIGHT.replace("12", "12.0")], verify=verify)
    result = made(tmp_path, comparer, model, answer="12")
    assert said(result) == [RIGHT.replace("12", "12.0")] or said(result) == []
    assert result["counts"]["unparsed mathematics/verify"] == 2
    assert result["counts"]["right solutions not verified"] == 3
    twice = replace(PLAIN, verifications=2)
    verdicts = ["Verdict: correct", "Verdict: incorrect"]
    result = made(tmp_path / "b", comparer, speaker(solve=[RIGHT], verify=verdicts), twice, answer="12")
    assert result["dropped"] == "not verified"
    unchecked = replace(PLAIN, verifications=0, answers=1)
    assert said(made(tmp_path / "c", comparer, speaker(solve=[RIGHT]), unchecked, answer="12")) == [RIGHT]


@pytest.mark.parametrize(
    "text", [WRONG, SILENT, "", "\\boxed{12}, no: \\boxed{14}", "\N{REPLACEMENT CHARACTER}", "The answer is 1\0002."]
)
def test_who_is_never_right_gives_nothing(tmp_path: Path, comparer: Comparer, text: str) -> None:
    result = made(tmp_path, comparer, speaker(solve=[text], verify=["Verdict: correct"]), answer="12")
    assert result["dropped"] == "no right solution" and not result["records"]


# --- steps ---


def onward(last: str, number: int) -> str:
    """Continuations of what `continue` shows: once 13 stands there nothing comes out right any more."""
    shown = last.split("Steps so far:")[1] if "Steps so far:" in last else ""
    if "13" in shown:
        return "Step 3: So it is \\boxed{13}."
    return ["Step 2: 7 + 5 = 12, and that is all.\n\nStep 3: \\boxed{12}", "Step 2: Hence \\boxed{11}"][number % 2]


LABELLED = replace(PLAIN, labelled=2, rollouts=4, answers=2)


def test_steps_are_labelled_by_what_comes_of_them(tmp_path: Path, comparer: Comparer) -> None:
    model = speaker(solve=[WRONG, RIGHT], verify=["Verdict: correct"], **{"continue": onward})
    result = made(tmp_path, comparer, model, LABELLED, answer="12")
    wrong, right = result["records"]["steps"]
    assert wrong["steps"] == ["Step 1: 3 + 4 = 7.", "Step 2: 7 + 5 = 13.", "Step 3: So it is \\boxed{13}."]
    assert wrong["labels"] == [0.5, 0.0, 0.0] and right["labels"] == [0.5, 1.0]
    assert result["counts"]["continuations"] == 12
    (pair,) = result["records"]["step_preferences"]
    assert pair["chosen"] == "Step 1: 3 + 4 = 7.\n\nStep 2: 7 + 5 = 12, and that is all." and pair["step"] == 2
    assert pair["rejected"] == "Step 1: 3 + 4 = 7.\n\nStep 2: 7 + 5 = 13."
    example = preferences.encode(pair, chat.Format(Bytes()), similarity=0.95)
    assert not isinstance(example, str), "recipes.reward learns from it"


def test_a_right_step_is_no_wrong_one(tmp_path: Path, comparer: Comparer) -> None:
    """Of a solution that is right no step is the worse one, though none of four continuations found on."""
    long = RIGHT.replace("The answer", "\n\nStep 3: The answer")
    model = speaker(solve=[OTHER, long], verify=["Verdict: correct"], **{"continue": ["Step 2: \\boxed{1}"]})
    result = made(tmp_path, comparer, model, LABELLED, answer="12")
    assert [one["labels"] for one in result["records"]["steps"]] == [[0.0, 1.0], [0.0, 0.0, 1.0]]
    assert "step_preferences" not in result["records"] and result["counts"]["continuations"] == 12


# --- corrections ---


def mend(place: int, rest: str) -> str:
    return f"First wrong step: {place}\nReason: 7 + 5 is 12.\nCorrected:\n{rest}"


MENDED = "Step 2: 7 + 5 = 12.\n\nStep 3: \\boxed{12}"


def test_a_wrong_solution_is_mended(tmp_path: Path, comparer: Comparer) -> None:
    settings = replace(PLAIN, corrections=1, answers=1)
    model = speaker(solve=[WRONG], mend=["It is all fine.", mend(2, MENDED)])
    result = made(tmp_path, comparer, model, settings, answer="12")
    (dialog,) = result["records"]["corrections"]
    assert dialog["messages"][-1]["content"] == (
        "Step 2 is wrong: 7 + 5 is 12.\n\nStep 1: 3 + 4 = 7.\n\nStep 2: 7 + 5 = 12.\n\nStep 3: \\boxed{12}"
    )
    assert dialog["messages"][1]["content"] == WRONG and dialog["wrong_step"] == 2
    assert [one.learned for one in chat.read(dialog) if one.role == "assistant"] == [False, True]
    for rest, reason in ((MENDED.replace("12", "14"), "corrections that stay wrong"), ("Step 2: Well.", None)):
        model = speaker(solve=[WRONG], mend=[mend(2, rest)])
        result = made(tmp_path / rest[-3:], comparer, model, settings, answer="12")
        assert result["dropped"] == "no right solution"
        assert result["counts"].get(reason or "corrections that stay wrong") == 1


def test_who_names_a_later_step_has_not_found_the_wrong_one(tmp_path: Path, comparer: Comparer) -> None:
    settings = replace(LABELLED, corrections=1, answers=1)
    model = speaker(solve=[WRONG], mend=[mend(3, "Step 3: \\boxed{12}")], **{"continue": onward})
    result = made(tmp_path, comparer, model, settings, answer="12")
    assert "corrections" not in result["records"]
    assert result["counts"]["corrections that name a later step"] == 1


def test_parts_of_a_correction_are_read_strictly() -> None:
    parse = corrections.parser(3)
    assert parse("**First wrong step:** 2\n\n**Reason:** so.\n\n**Corrected:**\nStep 2: x") == (1, "so.", "Step 2: x")
    for text in ("", mend(4, "x"), mend(0, "x"), mend(2, ""), "First wrong step: two\nReason: a\nCorrected: b"):
        with pytest.raises(ValueError):
            parse(text)


# --- search ---


def path(last: str, number: int) -> str:
    """Next steps: only 7 + 5 behind 3 + 4 is right, and the first that is offered is not."""
    if "Steps so far:" not in last:
        return ["Step 1: 3 + 4 = 8.", "Step 1: 3 + 4 = 7.", "3 + 4 = 7."][number % 3]
    if "= 7." in last.split("Steps so far:")[1]:
        return ["Step 2: 7 + 5 = 13, \\boxed{13}", "Step 2: 7 + 5 = 12, \\boxed{12}", ""][number % 3]
    return "Step 2: 8 + 5 = 13, \\boxed{13}"


def score(last: str, number: int) -> str:
    return f"Fine.\nScore: {1 if '= 8' in last or '13' in last else 9}"


SEARCHED = replace(PLAIN, answers=2, search=config.StepSearch(simulations=4, width=3))


def test_hard_questions_are_searched(tmp_path: Path, comparer: Comparer) -> None:
    model = speaker(solve=[WRONG], verify=["Verdict: correct"], score=score, next=path)
    result = made(tmp_path, comparer, model, SEARCHED, answer="12")
    assert said(result) == ["Step 1: 3 + 4 = 7.\n\nStep 2: 7 + 5 = 12, \\boxed{12}"]
    assert result["records"]["dialogs"][0]["origin"] == "search"
    assert result["counts"]["questions solved by search"] == 1
    asked = [one[-1]["content"] for one in model.asked if kind_of(one[-1]["content"]) == "next"]
    shown = [text.split("Steps so far:")[-1] for text in asked]
    # the question, then the better branch, then the only one that is left
    assert ["= 7." in text for text in shown[3:6]] == [True] * 3 and len(asked) == 9
    assert result["counts"]["steps without text"] == 1


def test_without_an_answer_a_search_agrees_by_its_reward(tmp_path: Path, comparer: Comparer) -> None:
    model = speaker(solve=[WRONG, RIGHT], verify=["Verdict: correct"], score=score, next=path)
    result = made(tmp_path, comparer, model, SEARCHED)
    # 12 has 0.9 of the reward, 13 twice 0.1; the solution that was drawn and comes to 12 is right then
    assert said(result) == [RIGHT, "Step 1: 3 + 4 = 7.\n\nStep 2: 7 + 5 = 12, \\boxed{12}"]
    assert result["records"]["preferences"][0]["rejected"][0]["content"] == WRONG
    nobody = speaker(solve=[WRONG, RIGHT], score=["Score: 0"], next=path)
    assert made(tmp_path / "b", comparer, nobody, SEARCHED)["dropped"] == "no majority"


def test_continuations_guide_a_search_too(tmp_path: Path, comparer: Comparer) -> None:
    settings = replace(SEARCHED, search=config.StepSearch(simulations=4, scorer="rollouts", rollouts=2))
    model = speaker(solve=[WRONG], verify=["Verdict: correct"], next=path, **{"continue": onward})
    assert said(made(tmp_path, comparer, model, settings, answer="12"))[0].endswith("\\boxed{12}")
    assert (
        made(tmp_path / "b", comparer, speaker(solve=[WRONG, RIGHT], next=path), settings)["dropped"] == "no majority"
    )


def rewarded(last: str, number: int) -> str:
    """What a step-wise reward model thinks: little of solutions that come to 13, or begin with a wrong sum."""
    return "0.0625" if "13" in last or "4 + 5 = 8" in last else "0.75"


def test_a_reward_model_guides_a_search(tmp_path: Path, comparer: Comparer) -> None:
    """It reads what it was trained on, as messages, and its scores decide what a search finds without an answer."""
    settings = replace(SEARCHED, search=config.StepSearch(simulations=4, width=3, scorer="reward"))
    model, reward = speaker(solve=[WRONG, RIGHT], verify=["Verdict: correct"], next=path), Scripted(rewarded, "steps")
    result = made(tmp_path, comparer, model, settings, reward=reward)
    assert said(result) == [RIGHT, "Step 1: 3 + 4 = 7.\n\nStep 2: 7 + 5 = 12, \\boxed{12}"]
    assert result["provenance"]["models"]["reward"] == ["steps"]
    record = {"question": QUESTION, "steps": ["3 + 4 = 7.", "7 + 5 = 12, \\boxed{12}"], "labels": [1, 1]}
    form = chat.Format(Bytes())
    learned = stepwise.encode(record, form)
    assert not isinstance(learned, str)
    (whole,) = [one for one in reward.asked if one[-1]["content"] == stepwise.numbered(record["steps"])]
    read = form.encode(chat.read({"messages": list(whole)})).tokens
    assert read.tolist() == learned.sequences[-1][0].tolist(), "the tokens that training saw"
    assert all(drawn.temperature == 0 for drawn in reward.drawn)


def test_right_solutions_with_a_wrong_step_are_left_out(tmp_path: Path, comparer: Comparer) -> None:
    lucky = "Step 1: 4 + 5 = 8.\n\nStep 2: 8 + 3 = 12, so \\boxed{12}."
    model, reward = speaker(solve=[lucky, RIGHT], verify=["Verdict: correct"]), Scripted(rewarded)
    result = made(tmp_path, comparer, model, replace(PLAIN, answers=2, least_step=0.5), reward=reward, answer="12")
    assert said(result) == [RIGHT] and result["counts"]["right solutions with a wrong step"] == 1
    assert len(reward.asked) == 4, "of each of the two its two steps"


@dataclass(frozen=True)
class Constant:
    value: float = 0.5

    def score(self, draw: Any, question: str, steps: Sequence[str]) -> float:
        return self.value


class Endless:
    """As much of a draw as a search needs, of a model that never comes to an end."""

    def __init__(self, says: Callable[[int], str]) -> None:
        self.counts, self.asked, self.says = Counter[str](), 0, says

    def several(self, prompt: str, count: int, **fields: Any) -> list[str]:
        self.asked += count
        return [self.says(self.asked - count + i) for i in range(count)]


def test_a_search_ends() -> None:
    draw: Any = Endless(lambda number: f"Step 1: thought {number}")
    tree = StepTreeSearch(Constant(), simulations=5, width=2, depth=3, exploration=1.0)
    assert tree.run(draw, "?") == [] and draw.asked == 10
    # branches end at their depth: 2 + 4 + 8 nodes are all there are, and 7 expansions reach them
    draw = Endless(lambda number: f"Step 1: thought {number}")
    assert replace(tree, simulations=100).run(draw, "?") == [] and draw.asked == 14
    draw = Endless(lambda number: "")
    assert tree.run(draw, "?") == [] and draw.asked == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("Score: 7", 0.7), ("**Score:** 10", 1.0), ("Score: 1\nScore: 0", 0.0), ("so\n_Score_ = 2.5/10", 0.25)],
)
def test_scores_are_read(text: str, value: float) -> None:
    assert scoring.read_score(text) == value
    for wrong in ("Score: 11", "7", "Score: high", "Score: -3", "Score: .5", "Score: 1,5"):
        with pytest.raises(ValueError):
            scoring.read_score(wrong)


# --- Python ---


def test_text_and_python_in_turns(tmp_path: Path, comparer: Comparer) -> None:
    begins = [
        "First 3 + 4.\n\n```python\nx = 3 + 4\nprint(x)\n```\nIt prints 99.",
        "```python\nprint(12)\nraise ValueError\n```",
        "```python\npass\n```",
        "I see at once: \\boxed{13}",
    ]

    def output(last: str, number: int) -> str:
        return "Then 5.\n```python\nprint(x + 5)\n```" if "\n7\n" in last else "So it is \\boxed{12}."

    settings = replace(PLAIN, python=config.PythonSolutions(enabled=True))
    model = speaker(program=begins, output=output, verify=["Verdict: correct"])
    result = made(tmp_path, comparer, model, settings, Plain(), answer="12")
    (dialog,) = result["records"]["dialogs"]
    messages = chat.read(dialog)
    assert [one.role for one in messages] == [
        "system", "user", "assistant", "ipython", "assistant", "ipython", "assistant",
    ]  # fmt: skip
    assert [one.content for one in messages if one.role == "ipython"] == ["7", "12"]
    assert messages[2].code and messages[2].content == "First 3 + 4." and messages[2].awaits
    assert (
        result["counts"]["programs that end by error"] == result["counts"]["programs that end by printing nothing"] == 1
    )
    (pair,) = result["records"]["preferences"]
    assert not isinstance(preferences.encode(pair, chat.Format(Bytes()), 0.95), str)
    verified = next(one[-1]["content"] for one in model.asked if kind_of(one[-1]["content"]) == "verify")
    assert "99" not in verified and "print(x + 5)" in verified
    endless = speaker(program=["```python\nprint(1)\n```"], output=["```python\nprint(2)\n```"])
    result = made(tmp_path / "b", comparer, endless, replace(settings, answers=1), Plain(), answer="12")
    assert result["counts"]["solutions with Python that do not end"] == 1 and result["counts"]["programs run"] == 5


def test_the_sandbox_runs_it(tmp_path: Path, comparer: Comparer) -> None:
    """What a model wrote runs nowhere else; a program that waits for ever ends, and so does its solution."""
    sandbox = Sandbox(SandboxLimits(wall_seconds=2.0), program=bwrap.program())
    begins = ["```python\nx = 3 + 4\nprint(x)\n```", "```python\nwhile True: pass\n```"]
    output = ["```python\nprint(x + 5)\n```", "So it is \\boxed{12}."]
    settings = replace(PLAIN, answers=2, python=config.PythonSolutions(enabled=True))
    model = speaker(
        program=begins, output=lambda last, _: output["\n12\n" in last], verify=["Verdict: correct"]
    )  # fmt: skip
    result = made(tmp_path, comparer, model, settings, sandbox, answer="12")
    (dialog,) = result["records"]["dialogs"]
    assert [one["content"] for one in dialog["messages"] if one["role"] == "ipython"] == ["7", "12"]
    assert result["counts"]["programs that end by timeout"] == 1 and result["counts"]["programs run"] == 3


# --- questions ---


def test_questions_of_a_text(tmp_path: Path) -> None:
    asked = ["What is 1 + 1?", "what is  1 + 1?", "Is it?", "What is 2 + 2?", "NONE."]

    def say(last: str, number: int) -> str:
        if kind_of(last) == "complete":
            return f"Verdict: {'no' if 'Is it' in last else 'yes'}"
        return asked[said.pop(0)]

    said = list(range(5))
    capability = MathematicsQuestions(config.QuestionsSynthesis(per_text=6))
    result = scripted.run(tmp_path, capability, scripted.items({"text": "Sums."}), Scripted(say))["0"]
    assert result["records"] == {"questions": [{"question": "What is 1 + 1?"}, {"question": "What is 2 + 2?"}]}
    assert result["counts"] == {"nothing more to ask": 1, "questions incomplete": 1, "questions repeated": 1}
    none = scripted.run(tmp_path / "b", capability, scripted.items({"text": "A poem."}), Scripted(lambda *_: "NONE"))
    assert none["0"]["dropped"] == "no question"


def test_a_text_is_asked_about_and_answered(tmp_path: Path, comparer: Comparer) -> None:
    model = speaker(
        question=lambda last, number: "What is 1?" if QUESTION in last else QUESTION,
        complete=["Verdict: yes"], verify=["Verdict: correct"],
        solve=lambda last, number: RIGHT if "3 + 4" in last else SILENT,
    )  # fmt: skip
    capability = Mathematics(PLAIN, config.QuestionsSynthesis(per_text=2), comparer)
    given = scripted.items({"text": "Sums.", "answer": "of the text, not of the question"})
    result = scripted.run(tmp_path, capability, given, model)["0"]
    assert said(result) == [RIGHT] and result["records"]["dialogs"][0]["answer"] == "12"
    assert result["counts"]["questions: no majority"] == 1


# --- all of it ---


@dataclass
class Seeded:
    """Answers by the seed of a request, so that it does not matter what was asked before."""

    says: Mapping[str, Sequence[str]]
    asked: int = 0

    def reply(self, messages: Any, drawn: Any, tools: Any = ()) -> tuple[Answer, str]:
        self.asked += 1
        given = self.says[kind_of(messages[-1]["content"])]
        return Answer(given[drawn.seed % len(given)], "stop"), "seeded"

    def close(self) -> None:
        """Nothing waits."""


@pytest.mark.parametrize("scorer", ["policy", "reward"])
def test_killed_and_resumed_gives_the_same(scorer: str, tmp_path: Path, comparer: Comparer) -> None:
    search = config.StepSearch(below=1.1, simulations=2, scorer=scorer)
    settings = replace(LABELLED, answers=6, labelled=6, corrections=3, search=search, least_step=0.5)
    reward = Scripted(rewarded)
    says = {
        "solve": [WRONG, RIGHT, OTHER], "verify": ["Verdict: correct", "?"], "score": ["Score: 5", "Score: 8", "?"],
        "next": ["Step 1: 3 + 4 = 7.", "Step 2: 7 + 5 = 12, \\boxed{12}"], "mend": [mend(2, MENDED), mend(1, MENDED)],
        "continue": ["Step 2: \\boxed{12}", "Step 2: \\boxed{13}", SILENT],
    }  # fmt: skip
    whole = made(tmp_path / "whole", comparer, Seeded(says), settings, reward=reward, answer="12")
    every = len(reward.asked)
    assert whole["records"].keys() >= {"dialogs", "preferences", "steps"}
    lines = (tmp_path / "whole" / "shards" / "00000" / journal.STEPS).read_bytes().splitlines(keepends=True)
    shard = tmp_path / "cut" / "shards" / "00000"
    shard.mkdir(parents=True)
    half = len(lines) // 2
    (shard / journal.STEPS).write_bytes(b"".join(lines[:half]) + lines[half][:7])
    model = Seeded(says)
    assert made(tmp_path / "cut", comparer, model, settings, reward=reward, answer="12") == whole
    again = len(reward.asked) - every
    assert 0 < model.asked + again < len(lines) - half + 1 and every > 0


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Step 1: a\nStep 2: b", ["Step 1: a", "Step 2: b"]),
        ("Well.\n\n**Step 1**: a\nb\n\n**Step 2**: c", ["Well.\n\n**Step 1**: a\nb", "**Step 2**: c"]),
        ("one\n\ntwo\nthree", ["one", "two\nthree"]),
        ("one\ntwo", ["one", "two"]),
        ("  \n", []),
    ],
)
def test_steps_of_a_text(text: str, parts: list[str]) -> None:
    assert stepwise.split(text) == parts
    assert re.sub(r"\W", "", stepwise.joined(parts)) == re.sub(r"\W", "", text)
