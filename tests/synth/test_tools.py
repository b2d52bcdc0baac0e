"""Tools: what they answer, what a model may write, and that results in a dialog are those of tools alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.sandbox.isolation import Sandbox
from llama31.sandbox.limits import SandboxLimits
from llama31.synth import tasks
from llama31.synth.tools import building, steps
from llama31.synth.tools.interface import ChatTool
from llama31.synth.tools.multi import ToolMulti
from llama31.synth.tools.single import ToolSingle
from llama31.synth.tools.stand_ins import algebra, search
from llama31.synth.tools.stand_ins.algebra import AlgebraAnswers
from llama31.synth.tools.stand_ins.interpreter import CodeInterpreter
from llama31.synth.tools.stand_ins.search import LocalSearch, Passage
from llama31.synth.tools.steps import ToolStep
from llama31.synth.tools.trajectories import Trajectories
from tests.sandbox import bwrap
from tests.sandbox.plain import Plain
from tests.synth import scripted, training
from tests.synth.scripted import Scripted

PAGES = [
    Passage("Arholm", "https://a.example/arholm", "The lighthouse of Arholm was opened in 1874 by Ida Berg."),
    Passage("Brevik", "https://a.example/brevik", "The lighthouse of Brevik was opened in 1905."),
    Passage("Bread", "https://a.example/bread", "Bread is made of flour, water and salt, and of time."),
]


@pytest.fixture
def tools() -> dict[str, ChatTool]:
    made: list[ChatTool] = [CodeInterpreter(Plain()), LocalSearch(PAGES, 2)]
    return {tool.name: tool for tool in made}


# --- what a model writes ---

CODE = "Thought: count\nTool: code_interpreter\nInput:\n```python\nprint(1)\n# Answer: 2\nTool = 3\n```"


def test_steps_that_can_be_read() -> None:
    assert steps.read(CODE, ["code_interpreter"]) == ToolStep(
        "count", "code_interpreter", "print(1)\n# Answer: 2\nTool = 3"
    )
    query = steps.read('Tool: brave_search\nInput: "light of Arholm"', ["brave_search"])
    assert query == ToolStep(tool="brave_search", given="light of Arholm")
    assert steps.read("Thought: known\nAnswer: It is so.\nAnd more.", []) == ToolStep(
        "known", answer="It is so.\nAnd more."
    )


@pytest.mark.parametrize(
    "said",
    [
        "Tool: brave_search\nInput: a\nResult: 1874",
        "Tool: brave_search\nInput: a\nObservation: b\nAnswer: 1874",
        "Answer: It is 3.\nResult: 3",
        f"{CODE}\nOutput: 1",
        f"{CODE}\n1",
        f"{CODE}\n{CODE}",
        "Tool: code_interpreter\nInput: 1",
        "Tool: wolfram_alpha\nInput: 1",
        'Tool: brave_search\nInput: a "b" c',
        "Tool: brave_search",
        "Answer:",
        "",
        "It is 3.",
        "Tool: brave_search\nInput: a\nAnswer: b",
        "Tool: brave_search\nInput: a\nb",
        "Tool: code_interpreter\nInput:\n```python\n\n```",
    ],
)
def test_steps_that_are_refused(said: str) -> None:
    with pytest.raises(ValueError, match="."):
        steps.read(said, ["brave_search", "code_interpreter"])


# --- what tools answer ---


def test_search_ranks_as_the_formula_says() -> None:
    texts = ["a b c", "a a a b", "c", "d " * 50 + "a"]
    index = LocalSearch([Passage("", str(n), text) for n, text in enumerate(texts)], 4)
    counts, mean = [text.split() for text in texts], sum(len(text.split()) for text in texts) / 4

    def score(place: int, query: str) -> float:
        total = 0.0
        for word in query.split():
            having = sum(word in one for one in counts)
            times = counts[place].count(word)
            length = 1.2 * (0.25 + 0.75 * len(counts[place]) / mean)
            total += math.log(1 + (4 - having + 0.5) / (having + 0.5)) * times * 2.2 / (times + length)
        return total

    for query in ("a", "a b", "c d", "b c a d"):
        expected = sorted((n for n in range(4) if score(n, query)), key=lambda n: (-score(n, query), n))
        assert index.ranked(query) == expected
        assert index.scores(query) == pytest.approx({n: score(n, query) for n in expected})
    nothing = index.call("nowhere", [], {})
    assert nothing.failed and json.loads(nothing.text)["top_k"] == []
    assert LocalSearch([], 1).ranked("a") == []
    assert LocalSearch(PAGES, 1).fingerprint != LocalSearch(PAGES[::-1], 1).fingerprint


def test_pages_become_passages(tmp_path: Path) -> None:
    text = "\n\n".join(f"Paragraph {n} " + "words " * 100 for n in range(5))
    found = list(search.split({"title": "T", "url": "u", "text": text}))
    assert [one.text.count("Paragraph") for one in found] == [1, 1, 1, 1, 1] and "\n\n".join(one.text for one in found)
    assert list(search.split({"text": " \n\n "})) == []
    (tmp_path / "pages.jsonl").write_text(json.dumps({"title": "T", "url": "u", "text": "one word"}) + "\n")
    assert search.read(str(tmp_path / "pages.jsonl"), 3).ranked("word") == [0]
    for wrong, match in (('{"title": "x"}\n', "text is no text"), ("", "no page in it")):
        (tmp_path / "pages.jsonl").write_text(wrong)
        with pytest.raises(ValueError, match=match):
            search.read(str(tmp_path / "pages.jsonl"), 3)


@pytest.mark.parametrize(
    "query, result",
    [
        ("solve x^2 - 5x + 6 = 0", "x = 2, x = 3"),
        ("solve 2y + 1 = 4 for y", "y = 3/2 (about 1.500000000)"),
        ("What is the derivative of x^3 with respect to x?", "3*x**2"),
        ("integrate x^2 from 0 to 3", "9"),
        ("integrate cos(x)", "sin(x) + C"),
        ("limit sin(x)/x as x -> 0", "1"),
        ("factor x^4 - 1", "(x - 1)*(x + 1)*(x**2 + 1)"),
        ("expand (a+b)^2", "a**2 + 2*a*b + b**2"),
        ("2^10 / 3", "1024/3 (about 341.3333333)"),
        ("solve x^2 = -1", "no real solution"),
        ("simplify (x^2-1)/(x-1)", "x + 1"),
    ],
)
def test_algebra(query: str, result: str) -> None:
    said = algebra.answered(query)
    assert not said.failed and said.text == f"{query}\n= {result}"


@pytest.mark.parametrize(
    "query",
    [
        "",
        "weather in Arholm",
        "__import__('os').system('true')",
        "solve x^2",
        "9^9^9^9",
        "x" * 501,
        "1/0 +",
        "\0",
        "5!!!!!!",
    ],
)
def test_algebra_refuses_what_it_does_not_know(query: str) -> None:
    assert algebra.answered(query).failed


def test_algebra_runs_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert AlgebraAnswers().call("factor x^2 - 1", [], {}).text.endswith("= (x - 1)*(x + 1)")
    monkeypatch.setattr(algebra, "BYTES", 2**24)  # in which Python does not begin
    assert AlgebraAnswers().call("factor x^2 - 1", [], {}).failed


def test_the_interpreter_in_the_sandbox() -> None:
    limits = SandboxLimits(wall_seconds=30, cpu_seconds=2)
    tool = CodeInterpreter(Sandbox(limits, program=bwrap.program()), bwrap.PYTHON)
    files = {"a.csv": b"x\n1\n2\n"}
    first = "import csv\nrows = list(csv.DictReader(open('a.csv')))\nprint('loud')"
    assert tool.call(first, [], files).text == "loud"
    second = tool.call("sum(int(row['x']) for row in rows)", [first], files)
    assert (second.text, second.failed) == ("3", False)
    failed = tool.call("print('before')\n1 / 0", ["raise SystemExit(3)"], {})
    assert (
        failed.failed
        and failed.text.startswith("before")
        and failed.text.endswith("ZeroDivisionError: division by zero")
    )
    assert ".session.py" not in failed.text
    assert tool.call("x = 1", [], {}).failed  # says nothing
    assert "stopped: cpu" in tool.call("while True: pass", [], {}).text
    assert tool.call("a = (", [], {}).failed and tool.call("print('\\ud800')", [], {}).failed


# --- dialogs ---


def calls(tool: str, given: str) -> str:
    block = f"\n```python\n{given}\n```" if tool == "code_interpreter" else f" {given}"
    return f"Thought: It is needed.\nTool: {tool}\nInput:{block}"


def turns(plan: Mapping[str, Sequence[Sequence[str]]], judged: Callable[[str], str] = lambda last: "yes") -> Scripted:
    """A model that writes the name of an item as its request, and at each step what the plan has for it, in turn."""

    def says(last: str, number: int) -> str:
        name = next(name for name in plan if name in last)
        if "Verdict: first" in last:
            return f"Verdict: {judged(last)}"
        if "Verdict" in last:
            return f"Verdict: {'no' if 'Answer to judge' in last and 'wrongly' in last else 'yes'}"
        if "Write a message that a user" in last:
            return f"The request {name} of a user?"
        step = last.count("\nResult:\n")
        return plan[name][step][number % len(plan[name][step])]

    return Scripted(says)


def single(tools: dict[str, ChatTool], **changed: Any) -> ToolSingle:
    settings = config.ToolSingleSynthesis(**{"unused": 0.0, **changed})
    return ToolSingle(settings, Trajectories(tools, settings.candidates, settings.reasoning))


SEARCH = calls("brave_search", "when was the lighthouse of Arholm opened")
RIGHT = "Thought: It says so.\nAnswer: It was opened in 1874."


def test_one_call_and_its_answer(tmp_path: Path, tools: dict[str, ChatTool]) -> None:
    plan = {
        "alpha": [[SEARCH], [RIGHT]],
        "beta": [[SEARCH], [RIGHT.replace("1874", "1999")]],  # a figure that nothing says
        "gamma": [[calls("brave_search", "zzz")], [RIGHT]],  # finds nothing
        "delta": [[SEARCH, RIGHT], [RIGHT]],  # answers without the call, once
        "epsilon": [[SEARCH], ["It was 1874.\nResult: 1874"]],  # never what can be read
        "zeta": [[SEARCH], [SEARCH]],  # calls again
        "kappa": [[SEARCH], ["Answer: wrongly 1874"]],  # judged wrong
        "theta": [[f"{SEARCH}\nResult: opened in 1874", SEARCH], [RIGHT]],  # looks like a result
    }  # fmt: skip
    given = scripted.items(*({"id": name, "text": name} for name in plan), {"text": " "})
    results = scripted.run(tmp_path / "out", single({"brave_search": tools["brave_search"]}), given, turns(plan))
    assert {name: result["dropped"] for name, result in results.items() if result["dropped"]} == {
        "beta": "nothing but an answer with a figure that nothing says", "gamma": "nothing but a call that fails",
        "epsilon": "unparsed tools/step", "zeta": "nothing but a call that is not needed",
        "kappa": "answer judged wrong", "8": "empty",
    }  # fmt: skip
    found = tools["brave_search"].call("when was the lighthouse of Arholm opened", [], {}).text
    for name in ("alpha", "delta", "theta"):
        (record,) = results[name]["records"]["dialogs"]
        assert [one["role"] for one in record["messages"]] == ["user", "assistant", "ipython", "assistant"]
        assert record["messages"][2]["content"] == found and record["builtin_tools"] == ["brave_search"]
        assert training.learned(record) == [
            'brave_search.call(query="when was the lighthouse of Arholm opened")<|eom_id|>',
            "It was opened in 1874.<|eot_id|>",
        ]
    assert "preferences" not in results["alpha"]["records"]
    (pair,) = results["delta"]["records"]["preferences"]
    assert pair["chosen"]["tool_calls"] and pair["rejected"] == {
        "role": "assistant",
        "content": "It was opened in 1874.",
    }
    assert pair["messages"] == [{"role": "user", "content": "The request delta of a user?"}]
    assert not isinstance(training.compared(pair), str)
    assert results["theta"]["counts"]["unparsed tools/step"] == 1


def test_easy_messages_need_no_tool(tmp_path: Path, tools: dict[str, ChatTool]) -> None:
    plan = {"alpha": [["Answer: Hello 7.", SEARCH]], "beta": [[SEARCH]]}
    given = scripted.items(*({"id": name, "text": name} for name in plan))
    results = scripted.run(tmp_path / "out", single(tools, unused=1.0), given, turns(plan))
    assert results["beta"]["dropped"] == "nothing but a call that is not needed"
    (record,) = results["alpha"]["records"]["dialogs"]
    assert training.learned(record) == ["Hello 7.<|eot_id|>"] and "code_interpreter" in record["builtin_tools"]
    (pair,) = results["alpha"]["records"]["preferences"]
    assert pair["rejected"]["tool_calls"] and pair["strength"] == "significantly_better"


LATER = calls("brave_search", "lighthouse of Brevik")
BETWEEN = calls("code_interpreter", "print(1905 - 1874)")
FALSE = calls("code_interpreter", "print(1905 - unknown)")
THIRTY = "Answer: There are 31 years between 1874 and 1905."


@pytest.mark.parametrize("judged", ["first", "shorter"])
def test_several_calls_one_after_the_other(tmp_path: Path, tools: dict[str, ChatTool], judged: str) -> None:
    """A judge that always says `first` has no opinion; one that says which is shorter has."""

    def verdict(last: str) -> str:
        one, other = (last.split(f"{name} message:\n=====\n")[1].split("\n=====")[0] for name in ("First", "Second"))
        return "first" if judged == "first" or len(one) < len(other) else "second"

    plan = {
        "alpha": [[SEARCH], [LATER], [BETWEEN], [THIRTY]],
        "beta": [[SEARCH], [THIRTY], []],  # too early
        "gamma": [[SEARCH], [SEARCH]],  # the same again
        "delta": [[SEARCH], [FALSE], [LATER], [BETWEEN], [THIRTY]],  # mended
        "epsilon": [[SEARCH, calls("brave_search", "Arholm opened")], [LATER], [BETWEEN], [THIRTY]],
        "zeta": [[FALSE], [FALSE + "\n"], [BETWEEN], [THIRTY]],
    }  # fmt: skip
    given = scripted.items(*({"id": name, "text": name} for name in plan))
    settings = config.ToolMultiSynthesis(most_calls=4)
    capability = ToolMulti(settings, Trajectories(tools, settings.candidates))
    results = scripted.run(tmp_path / "out", capability, given, turns(plan, verdict))
    dropped = {name: result["dropped"] for name, result in results.items() if result["dropped"]}
    assert dropped == {
        "beta": "nothing but an answer before the calls that it needs",
        "gamma": "nothing but a call that was made before",
        "zeta": "nothing but a call that was made before",
    }  # fmt: skip
    (record,) = results["alpha"]["records"]["dialogs"]
    assert [one["role"] for one in record["messages"]][1:] == ["assistant", "ipython"] * 3 + ["assistant"]
    learned = training.learned(record)
    assert learned[2] == "<|python_tag|>print(1905 - 1874)<|eom_id|>" and len(learned) == 4
    (mended,) = results["delta"]["records"]["dialogs"]
    assert [one.get("weight") for one in mended["messages"] if "tool_calls" in one] == [None, 0, None, None]
    assert "NameError" in mended["messages"][4]["content"] and len(training.learned(mended)) == 4
    pairs = results["epsilon"]["records"].get("preferences", [])
    assert len(pairs) == (0 if judged == "first" else 1)
    for pair in pairs:
        assert pair["chosen"] == steps.read(calls("brave_search", "Arholm opened"), ["brave_search"]).message()
        assert pair["strength"] == "better" and not isinstance(training.compared(pair), str)
    for result in results.values():
        for record in result["records"].get("dialogs", []):
            said = "".join(training.learned(record))
            results_of_tools = [one["content"] for one in record["messages"] if one["role"] == "ipython"]
            assert not any(one in said for one in results_of_tools if len(one) > 10)
        for pair in result["records"].get("preferences", []):
            assert pair["chosen"]["role"] == pair["rejected"]["role"] == "assistant"


def test_a_thought_stands_before_code_where_it_is_asked_for(tmp_path: Path, tools: dict[str, ChatTool]) -> None:
    plan = {"alpha": [[BETWEEN], ["Answer: 31 years."]]}
    only = {"code_interpreter": tools["code_interpreter"]}
    given = scripted.items({"id": "alpha", "text": "alpha"})
    results = scripted.run(tmp_path / "out", single(only, reasoning=True, candidates=1), given, turns(plan))
    (record,) = results["alpha"]["records"]["dialogs"]
    assert training.learned(record)[0] == "It is needed.<|python_tag|>print(1905 - 1874)<|eom_id|>"


def test_capabilities_are_built_of_their_keys(tmp_path: Path) -> None:
    (tmp_path / "pages.jsonl").write_text('{"text": "a page"}\n')
    given = config.ToolMultiSynthesis(index=str(tmp_path / "pages.jsonl"))
    services = building.ServiceAccess(config.ToolServices(), tmp_path)
    made: Any = building.build("tool_multi", given, Plain, services)
    assert set(made.steps.tools) == {"brave_search", "wolfram_alpha", "code_interpreter"} and made.steps.candidates == 2
    run = config.Synthesize(task="tool_files", name="x", input=str(tmp_path), folder=str(tmp_path / "out"))
    run.programs.bubblewrap = bwrap.program()
    files: Any = tasks.build(run)
    assert set(files.steps.tools) == {"code_interpreter"} and [one.id for one in tasks.read(run)] == ["pages.jsonl"]
    run.task = "function_calls"
    calling: Any = tasks.build(run)
    assert calling.name == "function_calls" and calling.sandbox.program == bwrap.program()
    assert tasks.opened(run, calling).provenance.keys() == {"sampling"}
    off = config.ToolSingleSynthesis(algebra=False, interpreter=False)
    with pytest.raises(ValueError, match="no tool is switched on; give tool_single.index=FILES"):
        building.build("tool_single", off, Plain, services)
