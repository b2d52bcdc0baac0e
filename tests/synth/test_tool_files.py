"""Attached files of each kind, and functions mined from code with calls that keep to their definitions."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from llama31 import config
from llama31.synth.tools import definitions, files, function_calls
from llama31.synth.tools.files import ToolFiles
from llama31.synth.tools.function_calls import FunctionCall, FunctionCalls
from llama31.synth.tools.stand_ins import documents
from llama31.synth.tools.stand_ins.interpreter import CodeInterpreter
from llama31.synth.tools.trajectories import Trajectories
from tests.sandbox.plain import Plain
from tests.synth import scripted, training
from tests.synth.scripted import Scripted
from tests.synth.test_tools import calls

# --- files ---

PLAIN = {
    "a.txt": b"The mill was built in 1812.", "b.csv": "\ufeffplace,ships\nArholm,5\n".encode(),
    "c.tsv": b"x\ty\n1\t2\n",
    "d.json": b'{"a": [1, 2]}', "e.jsonl": b'{"a": 1}\n{"a": 2}\n', "f.py": b"def f():\n    return 1\n",
    "g.html": b"<html><body><h1>Title</h1><script>x()</script><p>Some text.</p></body></html>",
    "h.xml": b"<?xml version='1.0'?><root><ship name='Ida'/></root>",
}  # fmt: skip
SAID = {
    "a.txt": "1812",
    "b.csv": "place,ships\nArholm,5",
    "f.py": "return 1",
    "g.html": "Some text.",
    "h.xml": "name='Ida'",
}


def office(folder: Path) -> None:
    """Files of the four kinds that packages read, made by the same packages; the PDF by hand."""
    docx, pptx = pytest.importorskip("docx"), pytest.importorskip("pptx")
    openpyxl = pytest.importorskip("openpyxl")
    pytest.importorskip("pypdf")
    document = docx.Document()
    document.add_paragraph("The keeper wrote a letter.")
    document.add_table(rows=1, cols=2).rows[0].cells[1].text = "42"
    document.add_paragraph("The end.")
    document.save(folder / "i.docx")
    slides = pptx.Presentation()
    slides.slides.add_slide(slides.slide_layouts[0]).shapes.title.text = "Ships of the year"
    slides.save(folder / "j.pptx")
    book = openpyxl.Workbook()
    book.active.append(["place", "ships"])
    book.active.append(["Arholm", 5])
    book.save(folder / "k.xlsx")
    (folder / "l.pdf").write_bytes(pdf("The lamp was lit."))


def pdf(text: str) -> bytes:
    """A page that says so, by the specification (ISO 32000-1, annex H)."""
    stream = f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources "
        b"<< /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]  # fmt: skip
    body, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, start=1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(body)
    return body + b"xref\n0 6\n0000000000 65535 f \n" + table + trailer


def test_plain_files_are_read() -> None:
    read = {name: documents.read(name, content).text for name, content in PLAIN.items()}
    assert all(part in read[name] for name, part in SAID.items())
    assert "x()" not in read["g.html"]
    assert [name for name in PLAIN if documents.read(name, b"x, 1" if name[0] < "g" else PLAIN[name]).is_table] == [
        "b.csv", "c.tsv", "d.json", "e.jsonl",
    ]  # fmt: skip


def test_office_files_are_read(tmp_path: Path) -> None:
    office(tmp_path)
    read = {path.name: documents.read(path.name, path.read_bytes()).text for path in tmp_path.iterdir()}
    assert read["i.docx"].splitlines() == ["The keeper wrote a letter.", ",42", "", "The end."]
    assert read["j.pptx"].startswith("Slide 1\nShips of the year")
    assert read["k.xlsx"] == "Sheet Sheet\nplace,ships\nArholm,5" and read["l.pdf"] == "The lamp was lit."


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.exe", b"MZ", "file of no kind that is read: .exe"),
        ("a", b"x", "no suffix"),
        ("a.txt", b" \0", ".txt without text"),
        ("a.xml", b"<a", ".xml that cannot be read: XMLSyntaxError"),
        ("a.HTML", b"", ".html without text"),
        ("a.xml", b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>', ".xml that cannot be read"),
    ],
)
def test_files_that_give_nothing_say_why(name: str, content: bytes, reason: str) -> None:
    with pytest.raises(documents.UnreadableFile, match=reason):
        documents.read(name, content)


@pytest.mark.parametrize("kind", [".pdf", ".docx", ".pptx", ".xlsx"])
def test_broken_office_files_are_told(kind: str) -> None:
    pytest.importorskip({".pdf": "pypdf", ".docx": "docx", ".pptx": "pptx", ".xlsx": "openpyxl"}[kind])
    with pytest.raises(documents.UnreadableFile, match=rf"{kind} (that cannot be read|without text)"):
        documents.read(f"a{kind}", b"PK\x03\x04 nothing")


def test_questions_on_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    rows = "".join(f"place{n},{n}\n" for n in range(30))
    (folder / "ships.csv").write_text(f"place,ships\n{rows}")
    (folder / "deep" / "letter.txt").write_text("The mill was built in 1812.")
    (folder / "long.txt").write_text("word " * 30)
    (folder / "bad.xml").write_text("<a")
    (folder / "picture.png").write_bytes(b"x")
    total = "import csv\nprint(sum(int(row['ships']) for row in csv.DictReader(open('ships.csv'))))"

    def says(last: str, number: int) -> str:
        if "Verdict" in last:
            return "Verdict: yes"
        if "attaches the file" in last:
            return "What is the sum?" if "ships.csv" in last else "When?"
        if "ships.csv" not in last:
            return "Answer: In 1812."
        return "Answer: 435 ships." if "Result:\n435" in last else calls("code_interpreter", total)

    steps = Trajectories({"code_interpreter": CodeInterpreter(Plain())})
    capability = ToolFiles(config.ToolFilesSynthesis(characters=100, preview_lines=3), steps)
    given = list(files.read(str(folder)))
    assert [one.id for one in given] == ["bad.xml", "deep/letter.txt", "long.txt", "ships.csv"]
    results = scripted.run(tmp_path / "out", capability, given, Scripted(says))
    assert results["bad.xml"]["dropped"] == ".xml that cannot be read: XMLSyntaxError"
    assert results["long.txt"]["dropped"] == "text of more than 100 characters"
    (record,) = results["ships.csv"]["records"]["dialogs"]
    first = record["messages"][0]["content"]
    assert (
        "place1,1\n=====" in first and "place2" not in first and first.startswith("Attached file: ships.csv (its first")
    )
    assert record["messages"][2]["content"] == "435" and record["builtin_tools"] == ["code_interpreter"]
    assert training.learned(record) == [f"<|python_tag|>{total}<|eom_id|>", "435 ships.<|eot_id|>"]
    (record,) = results["deep/letter.txt"]["records"]["dialogs"]
    assert training.learned(record) == ["In 1812.<|eot_id|>"] and "1812" in record["messages"][0]["content"]
    with pytest.raises(ValueError, match="no file in it of .txt"):
        list(files.read(str(folder / "picture.png")))
    with pytest.raises(ValueError, match=r"is named letter\.txt as well; rename one"):
        (tmp_path / "letter.txt").write_text("Another.")
        list(files.read(f"{folder}/deep,{tmp_path}/letter.txt"))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(ValueError, match="pip install openpyxl"):
        list(files.read(str(tmp_path)))


# --- functions ---

SOURCE = '''
"""Ships and lengths."""
from typing import Literal, Optional
import decimal

print("loud")

def to_miles(km: float, digits: int = 2) -> float:
    """Convert kilometres to miles.

    Args:
        km: the length in kilometres
        digits (int): decimals of the result
    """
    return round(km * 0.621371, digits)

def total(values: list[float], unit: Literal["km", "mi"] = "km", note: Optional[str] = None) -> float:
    """Add lengths up.

    :param values: the lengths
    """
    print("adding")
    return sum(values)

def exact(x: int):
    """Give what JSON has not."""
    return decimal.Decimal(x)

def _hidden(x: int):
    """Private."""

def bare(x: int):
    return x

def odd(x: decimal.Decimal):
    """Of no known type."""

async def later(x: int):
    """Asynchronous."""

def many(*values: int):
    """Takes any arguments."""

def guessed(name="x", times=3, *, loud: "bool | None" = False, rest):
    """Has defaults, and one argument without a type."""
'''


def test_definitions_of_functions() -> None:
    found, left = definitions.mined(SOURCE)
    assert [one.name for one in found] == ["to_miles", "total", "exact"]
    assert found[0].tool == {
        "type": "function",
        "function": {
            "name": "to_miles", "description": "Convert kilometres to miles.",
            "parameters": {
                "type": "object", "required": ["km"],
                "properties": {
                    "km": {"type": "number", "description": "the length in kilometres"},
                    "digits": {"type": "integer", "description": "decimals of the result"},
                },
            },
        },
    }  # fmt: skip
    assert found[1].parameters["properties"] == {
        "values": {"type": "array", "items": {"type": "number"}, "description": "the lengths"},
        "unit": {"type": "string", "enum": ["km", "mi"]}, "note": {"type": "string"},
    }  # fmt: skip
    assert left == {
        "private functions": 1, "functions without docstring": 1, "functions with an argument of no known type": 2,
        "asynchronous functions": 1, "functions that are decorated or take any arguments": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match="code that does not parse"):
        definitions.mined("def (")


@pytest.mark.parametrize(
    "name, arguments, wrong",
    [
        ("to_miles", {"km": 1}, []),
        ("to_miles", {"km": 1.5, "digits": 0}, []),
        ("total", {"values": [1, 2.5], "unit": "mi"}, []),
        ("to_miles", {}, ["km is missing"]),
        ("to_miles", {"km": "1"}, ["km is no number"]),
        ("to_miles", {"km": True}, ["km is no number"]),
        ("to_miles", {"km": 1, "m": 2}, ["no argument m"]),
        ("to_miles", {"km": 1, "digits": 1.5}, ["digits is no integer"]),
        ("total", {"values": [1, "2"]}, ["values is no array"]),
        ("total", {"values": [], "unit": "ft"}, ["unit is no string that is allowed"]),
        ("other", {}, ["no function other"]),
        ("total", {"values": None}, ["values is no array"]),
    ],
)
def test_calls_are_checked_against_definitions(name: str, arguments: dict[str, Any], wrong: list[str]) -> None:
    said = definitions.problems(name, arguments, definitions.mined(SOURCE)[0])
    assert len(said) == len(wrong) and all(part in one for part, one in zip(wrong, said, strict=True))


def test_calls_of_an_answer() -> None:
    nested = '[{"name": "to_miles", "arguments": {"km": {"name": "total", "arguments": {"values": [1, 2]}}}}]'
    (call,) = function_calls.read(f"```json\n{nested}\n```")
    assert call.inner() == [FunctionCall("total", {"values": [1, 2]})] and function_calls.shape([call]) == "nested"
    known = definitions.mined(SOURCE)[0]
    assert function_calls.faults(call, known) == []
    (wrong,) = function_calls.read(nested.replace('"values"', '"value"').replace('"km"', '"length"'))
    assert function_calls.faults(wrong, known) == [
        "total: values is missing", "total: there is no argument value", "to_miles: km is missing",
        "to_miles: there is no argument length",
    ]  # fmt: skip
    for broken in ("", "{}", "[]", "[1]", '[{"name": "a"}]', '[{"name": 1, "arguments": {}}]', "[" * 99_999):
        with pytest.raises(ValueError, match="."):
            function_calls.read(broken)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


SIMPLE = [call("to_miles", km=10)]
PARALLEL = [call("to_miles", km=10), call("total", values=[1, 2])]
NESTED = [call("to_miles", km=call("total", values=[4, 6]))]
BROKEN = [call("to_miles", kilometres=10)]


def test_functions_are_called_and_run(tmp_path: Path) -> None:
    """Texts say what the model writes; the kind of a request is drawn by item, and what fits it is right."""
    right = {"simple": SIMPLE, "parallel": PARALLEL, "nested": NESTED}

    def says(last: str, number: int) -> str:
        kind = (
            "nested" if "result of another call" in last else "simple" if "one call" in last.casefold() else "parallel"
        )
        if "Verdict" in last:
            return "Verdict: no" if "wrongly" in last else "Verdict: yes"
        if "Write a message of a user" in last:
            return "For 10 km, or 4 and 6, or 1 and 2?"
        if "Write the calls" in last:
            if "# fixed" in last:
                return json.dumps(SIMPLE)
            made = [right[kind], BROKEN][number % 2] if "# broken" not in last else BROKEN
            return json.dumps(made)
        return "It is 6.21 miles." if "6.21" in last else "It is 3." if "# wrong" in last else "It is nothing."

    def source(name: str) -> str:
        return SOURCE.replace("Ships", f"{name} ships")

    broken = SOURCE.replace("Add lengths up.", "Add lengths up # broken.").replace("Convert", "Convert # broken")
    failing = SOURCE.replace("return round", "raise ValueError\n    return round").replace("return sum", "return 1 / 0")
    texts = {f"right{n}": source(f"{n}") for n in range(9)} | {
        "broken": broken,
        "failing": failing,
        "none": "x = 1",
        "bad": "def (",
    }
    texts |= {f"fixed{n}": SOURCE.replace("Convert", f"Convert # fixed {n}") for n in range(6)}
    only = {name: text.replace("def exact", "def _exact") for name, text in texts.items()}
    capability = FunctionCalls(config.FunctionCallsSynthesis(), Plain())
    given = scripted.items(*({"id": name, "text": text} for name, text in only.items()))
    results = scripted.run(tmp_path / "out", capability, given, Scripted(says))
    fixed = [results.pop(f"fixed{n}") for n in range(6)]  # one call, whatever was asked for
    for result in fixed:
        assert (result["dropped"] is None) == ("requests for simple calls" in result["counts"])
    assert 0 < sum(result["dropped"] is None for result in fixed) < 6
    dropped = {name: result["dropped"] for name, result in results.items() if result["dropped"]}
    assert dropped == {
        "broken": "no calls that keep to the definitions", "failing": "call that cannot be run",
        "none": "no function that JSON can call", "bad": "code that does not parse",
    }  # fmt: skip
    kinds = set()
    for name in (f"right{n}" for n in range(9)):
        (record,) = results[name]["records"]["dialogs"]
        made = [one["tool_calls"][0]["function"] for one in record["messages"] if "tool_calls" in one]
        said = [one["content"] for one in record["messages"] if one["role"] == "ipython"]
        kind = {1: "simple", 2: "nested" if made[0]["name"] == "total" else "parallel"}[len(made)]
        kinds.add(kind)
        assert results[name]["counts"][f"requests for {kind} calls"] == 1
        assert said == {"simple": ["6.21"], "parallel": ["6.21", "3"], "nested": ["10", "6.21"]}[kind]
        assert made[-1]["arguments"] == {"km": 10} or kind == "parallel"
        assert {tool["function"]["name"] for tool in record["tools"]} == {"to_miles", "total"}
        learned = training.learned(record)
        assert len(learned) == len(made) + 1 and learned[-1] == "It is 6.21 miles.<|eot_id|>"
        assert json.loads(learned[0].removesuffix("<|eot_id|>"))["parameters"] == made[0]["arguments"]
        (pair,) = results[name]["records"]["preferences"]
        assert pair["rejected"]["tool_calls"][0]["function"]["arguments"] == {"kilometres": 10}
        assert not isinstance(training.compared(pair), str)
    assert kinds == {"simple", "parallel", "nested"}
    assert ast.parse(function_calls.MODULE)
