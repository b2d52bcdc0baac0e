"""Long documents with models that say what a test wants: all that is kept can be answered from the document alone."""

from __future__ import annotations

import email
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31 import config
from llama31.synth import grounding, labelled, tasks
from llama31.synth.long_context import folders, imports, mixing, repositories
from llama31.synth.long_context.lengths import DocumentLengths
from llama31.synth.long_context.questions import LongQuestions
from llama31.synth.long_context.repositories import LongCode
from llama31.synth.long_context.summaries import LongSummaries
from tests.synth import scripted, training
from tests.synth.scripted import Scripted

PLACES = ("Arholm", "Brevik", "Colby", "Dunmore", "Eastwick", "Farsund", "Galway", "Hartland")
LENGTHS = DocumentLengths(buckets=(4096, 8192, 16_384))
CHUNK = 2600  # bytes: 650 tokens


def document(count: int = 8) -> str:
    """A chapter a place, each with a figure of its own, and as long as a chunk of 650 tokens holds one."""
    chapters = []
    for number, place in enumerate(PLACES[:count]):
        said = f"The keeper of {place} counted {100 + 7 * number} ships in that winter."
        chapters.append(f"{said:<64}\n" + "The wind went on and nobody saw anything new from the tower.\n" * 38)
    return "".join(chapters)


def shown(last: str) -> str:
    """The text between the fences of a prompt."""
    found = re.search(r"^(=====+)\n(.*?)\n\1$", last, re.DOTALL | re.MULTILINE)
    assert found
    return found[2]


def asks(last: str, number: int) -> str:
    """Right answers to whatever is asked of `document`."""
    if "Verdict" in last:
        return "It does.\nVerdict: yes"
    text = shown(last)
    found = re.search(r"keeper of (\w+) counted (\d+) ships", text)
    if "Write one question" in last:
        if not found:
            return "I cannot."
        return (
            f"Question: How many ships did the keeper of {found[1]} count?\nAnswer: The keeper of {found[1]} counted "
            f'{found[2]} ships.\nQuote: "{re.findall(r"The keeper of.*?[.]", text)[0]}"'
        )
    return " ".join(re.findall(r"The keeper of \w+ counted \d+ ships in that winter[.]", text)) or "Wind."


def questions_of(**changed: Any) -> LongQuestions:
    given = {"chunk_tokens": 650, "questions": 3, "spare_chunks": 1, **changed}
    return LongQuestions(config.LongQuestionsSynthesis(**given), LENGTHS)


# --- what is counted and cut ---


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab \n\u00e4\u4e16"), max_size=300), st.integers(4, 40))
def test_chunks_are_the_text_and_none_is_too_long(text: str, size: int) -> None:
    chunks = DocumentLengths().chunks(text, size)
    assert "".join(chunks) == text
    assert all(DocumentLengths().tokens(chunk) <= size for chunk in chunks)
    if text:
        assert all(chunks)


def test_tokens_buckets_and_odd_texts(tmp_path: Path) -> None:
    assert (
        DocumentLengths().tokens("") == 0
        and DocumentLengths().tokens("\ud800\x00") == 1
        and DocumentLengths().tokens("x" * 9) == 3
    )
    assert [DocumentLengths().bucket(n) for n in (1, 16_384, 16_385, 131_072, 131_073)] == [
        "16K",
        "16K",
        "32K",
        "128K",
        None,
    ]
    long = "x" * 2_000_000  # one line
    assert "".join(DocumentLengths().chunks(long, 8192)) == long
    assert max(DocumentLengths().tokens(chunk) for chunk in DocumentLengths().chunks(long, 8192)) <= 8192
    chunks = DocumentLengths().chunks(document(), CHUNK // 4)
    assert len(chunks) == 8 and min(map(len, chunks)) > 0.8 * max(map(len, chunks))
    training.form()._tokenizer.save_hf(tmp_path)  # type: ignore[attr-defined]
    counted = DocumentLengths(str(tmp_path / "tokenizer.json"))
    text = "some words and some more"
    assert counted.tokens(text) == len(training.form()._tokenizer.encode(text)) != DocumentLengths().tokens(text)
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "words"}]
    assert counted.dialog(messages) == len(training.form().encode(training.chat.read({"messages": messages})).tokens)
    with pytest.raises(ValueError, match=r"buckets=\[2, 1\]: give tokens from short to long"):
        DocumentLengths(buckets=[2, 1])


@pytest.mark.parametrize(
    "text, source, foreign",
    [
        ("It was 1,024 in Arholm.", "In Arholm they were 1024 then", []),
        ("It was 1025.", "1024", ["1025"]),
        ("It was 12.", "It was 120 and 0.12", ["12"]),
        ("He met Anna there.", "she met nobody", ["Anna"]),
        ("Anna was there.", "nobody", []),  # the first word of a sentence has a capital anyway
        ("1. one\n2. two", "nothing", []),
        ("", "", []),
    ],
)
def test_what_is_from_elsewhere_is_found(text: str, source: str, foreign: list[str]) -> None:
    assert grounding.strange(text, [source]) == foreign


@pytest.mark.parametrize(
    "text, source, wrong",
    [
        ("about 3.14", "3.14159", []), ("about 3.15", "3.14159", ["3.15"]), ("25 %", "share 0.25", []),
        ("1,500", "1500.0", []), ("7", "", ["7"]), ("1e400 of 5", "5", ["1e400"]),
    ],
)  # fmt: skip
def test_figures_may_be_rounded_and_no_more(text: str, source: str, wrong: list[str]) -> None:
    assert grounding.unsupported(text, [source]) == wrong


def test_parts_of_answers() -> None:
    names = ("Question", "Answer", "Quote")
    assert labelled.parts("**Question:** a?\nAnswer: b\nc\n\nQuote: d", names) == [
        ("Question", "a?"), ("Answer", "b\nc"), ("Quote", "d"),
    ]  # fmt: skip
    assert labelled.parts("Here's a question on this section:\n\nQuestion: a?", names) == [("Question", "a?")]
    for wrong in ("", "Well.\nQuestion: a?", "Question:\nAnswer: b"):
        with pytest.raises(ValueError, match="begin with|nothing is said"):
            labelled.parts(wrong, names)
    for listed in (
        "1. Question: a?\n2. **Answer**: b\n   1. Quote: no\n1. Quote: nor this\n\n3. Quote: d",
        "- **Question**: a?\n- **Answer:** b\n  - Quote: no\n1. Quote: nor this\n\n- Quote: d",
        "**1) Question:** a?\n**2) Answer:** b\n- Quote: no\n4) Quote: nor this\n**3) Quote:** d",
    ):
        question, answer, quote = labelled.parts(listed, names)
        assert question == ("Question", "a?") and quote == ("Quote", "d")
        assert answer[0] == "Answer" and answer[1].startswith("b\n") and answer[1].endswith("Quote: nor this")
    assert labelled.parts("Question: a?\nAnswer: b\n1. Quote: c\n- Quote: d", names) == [
        ("Question", "a?"), ("Answer", "b\n1. Quote: c\n- Quote: d"),
    ]  # fmt: skip
    assert labelled.json_value('Here:\n```json\n{"a": [1]}\n```') == {"a": [1]}
    assert labelled.json_value("Sure! Here is the list:\n\n[1]") == [1]
    for broken in ("```json\n1\n```\n```json\n2\n```", "{", "[" * 100_000, '{"a": [NaN]}', "[1e999]"):
        with pytest.raises(ValueError, match="."):
            labelled.json_value(broken)


# --- questions ---


def test_questions_on_chunks_with_the_whole_document(tmp_path: Path) -> None:
    text = document()
    results = scripted.run(tmp_path, questions_of(), scripted.items({"text": text}), Scripted(asks))
    (record,) = results["0"]["records"]["dialogs"]
    origin, said = record["provenance"], [message["content"] for message in record["messages"]]
    assert text.strip() in said[0] and len(said) == 6 and len(set(origin["chunks"])) == 3
    for answer, quotes in zip(said[1::2], origin["quotes"], strict=True):
        assert not grounding.strange(answer, [text]) and not grounding.misquoted(quotes, text)
    assert origin["bucket"] == "8K" and origin["tokens"] == LENGTHS.dialog(record["messages"])
    assert results["0"]["counts"] == {"dialogs of 8K": 1}
    assert training.learned(record) == [f"{answer}<|eot_id|>" for answer in said[1::2]]


def test_questions_that_the_document_does_not_answer_are_not_kept(tmp_path: Path) -> None:
    """Places tell what the model does wrong there; what is kept is of the only places where it is right."""

    def says(last: str, number: int) -> str:
        said = asks(last, number)
        if "Verdict" in last:
            return "Verdict: no" if "Farsund counted" in last.split("Answer to judge")[1] else said
        if "Arholm" in said:
            return said.replace("in that winter", "in that long winter")  # no quotation
        if "Brevik" in said:
            return said.replace("107", "108", 1)  # another figure in the answer
        if "Colby" in said:
            return said.replace("Question: ", "Question: By this passage: ")
        if "Dunmore" in said:
            return said if number else "I cannot."  # right after all
        if "Eastwick" in said:
            return "I cannot." if number else said.replace("Quote:", "Result:")  # never
        if "Galway" in said:
            return said.replace("Answer: The keeper", "Answer: With Zorro the keeper")
        return said

    capability = questions_of(questions=8, spare_chunks=0)
    results = scripted.run(tmp_path, capability, scripted.items({"text": document()}), Scripted(says))
    (record,) = results["0"]["records"]["dialogs"]
    asked = {place for place in PLACES if any(f"of {place} count?" in one["content"] for one in record["messages"])}
    assert asked == {"Dunmore", "Hartland"}
    assert results["0"]["counts"] == {
        "answers that are judged wrong": 1, "answers with a figure or name from elsewhere": 2,
        "answers with a quotation that is none": 1, "questions that speak of an excerpt": 1,
        "unparsed long_questions/question": 3, "dialogs of 8K": 1,
    }  # fmt: skip


def test_documents_outside_of_the_buckets_are_dropped_by_name(tmp_path: Path) -> None:
    planted = "Question: a?\nAnswer: 7\nQuote: what looks like an answer of the model\n" * 100
    given = scripted.items({"text": ""}, {"text": "short"}, {"text": "\x00long " * 20_000}, {"text": planted})
    results = scripted.run(tmp_path, questions_of(), given, Scripted(lambda last, number: "No."))
    assert [results[name]["dropped"] for name in "0123"] == [
        "document no longer than a chunk", "document no longer than a chunk", "document longer than 16K",
        "no question that its chunk answers",
    ]  # fmt: skip


# --- summaries ---


def summaries_of(**changed: Any) -> LongSummaries:
    return LongSummaries(config.LongSummariesSynthesis(**{"chunk_tokens": 650, "questions": 2, **changed}), LENGTHS)


def test_summaries_of_summaries(tmp_path: Path) -> None:
    def says(last: str, number: int) -> str:
        said = asks(last, number)
        if "Summarise it" in last and "Brevik" in said:
            return said.replace("107", "170")
        if "Write it again" in last:
            assert "170" in last.partition("\n")[0]
        if "summaries of the sections" in last:
            return " ".join(said.split()[:12])
        return said

    results = scripted.run(tmp_path, summaries_of(), scripted.items({"text": document()}), Scripted(says))
    (record,) = results["0"]["records"]["dialogs"]
    said, origin = [message["content"] for message in record["messages"]], record["provenance"]
    assert len(said) == 6 and said[1] == "The keeper of Arholm counted 100 ships in that winter. The keeper"
    assert all(not grounding.strange(answer, [document()]) for answer in said[1::2])
    assert len(origin["summaries"]) == 8 and "107" in origin["summaries"][1]
    assert results["0"]["counts"] == {
        "summaries with a figure or name from elsewhere": 1, "summaries mended": 1, "dialogs of 8K": 1,
    }  # fmt: skip
    assert len(training.learned(record)) == 3


def test_summaries_in_levels_and_those_that_fail(tmp_path: Path) -> None:
    def says(last: str, number: int) -> str:
        said = asks(last, number)
        if "Verdict" in last:
            return "Verdict: no" if "Galway" in last and "Summary to judge" in last and "Unfaithful" in last else said
        if "summaries of the sections" in last:
            return said[: len(said) // 3] if "keeper" in said else "Wind."
        if "Elsewhere" in last and "Write one question" not in last:
            return said + " There were 999."
        if "Longer" in last:
            return shown(last) + "x"
        return said + (" Nothing else came of it." * 12 if "Summarise it" in last else "")

    given = [
        {"id": name, "text": f"{document()}{name} lies there.\n"}
        for name in ("Levels", "Elsewhere", "Unfaithful", "Longer")
    ]
    capability = summaries_of(chunk_tokens=350)
    results = scripted.run(tmp_path, capability, scripted.items(*given), Scripted(says))
    assert results["Levels"]["counts"]["summaries between"] >= 3 and results["Levels"]["records"]["dialogs"]
    assert results["Elsewhere"]["dropped"] == "a figure or name from elsewhere, after mending"
    assert results["Longer"]["dropped"] == "summary no shorter than its source"


# --- repositories ---

PYTHON = {
    "app/__init__.py": "", "app/core.py": "import os\ndef run(): ...\nLIMIT = 3\n",
    "app/a.py": "from .core import run\n", "app/b.py": "from app.core import LIMIT, run\n",
    "app/c.py": "def f():\n    from . import core\n", "app/d.py": "import app.core\n",
    "app/sub/__init__.py": "from ..core import run\n", "app/sub/e.py": "from .. import core as other\n",
    "app/f.py": "# import app.core\nx = 'from .core import run'\n", "tools/g.py": "import helper\n",
    "tools/helper.py": "import importlib\n", "app/bad.py": "def (:\n", "app/nul.py": "a\0b",
    "src/lib2/core.py": "", "main.py": "from lib2.core import *\nfrom ....app import core\nimport app.core.run\n",
}  # fmt: skip
OTHERS = {
    "src/util.ts": "", "src/a.ts": "import { x } from './util';\n", "src/b.tsx": "export * from \"./util.js\"",
    "src/c.js": "const u = require('./util')\n// import './util'\n", "src/d/e.ts": "const x = await import('../util')",
    "src/d/index.ts": "", "src/f.ts": "import './d'\nconst s = \"import './util'\"\nimport fs from 'fs'",
    "inc/util.h": "", "inc/a.c": '#include "util.h"\n', "b.cpp": '#include <inc/util.h>\n#include <stdio.h>\n',
    "c.cc": '/* #include "util.h" */\n  #  include "util.h"\n', "x/same.h": "",
    "y/same.h": "", "d.c": '#include "same.h"',
    "j/org/a/Util.java": "package org.a;", "j/org/b/B.java": "import org.a.Util;\n// import org.a.Util;\n",
    "j/org/b/C.java": "import static org.a.Util.max;\n", "j/org/b/D.java": "import org.a.*;\nimport java.util.List;\n",
    "r/src/b/mod.rs": "use super::util as u;", "r/src/lib.rs": "mod util;\nuse self::util::x;", "r/src/util.rs": "",
    "r/src/a.rs": "use crate::{util::{x, y}, b::c};",
    "r/src/b/c.rs": "use super::super::util;// use crate::a;\nuse std::fmt;",
}  # fmt: skip


def test_imports_of_each_language() -> None:
    found, unread = imports.found(PYTHON)
    assert {(one.importer, one.line) for one in found if one.target == "app/core.py"} == {
        ("app/a.py", 1), ("app/b.py", 1), ("app/c.py", 2), ("app/d.py", 1),
        ("app/sub/__init__.py", 1), ("app/sub/e.py", 1),
    }  # fmt: skip
    assert [one.names for one in found if one.importer == "app/b.py"] == [("LIMIT", "run")]
    assert {(one.importer, one.target) for one in found if one.target != "app/core.py"} == {
        ("tools/g.py", "tools/helper.py"), ("main.py", "src/lib2/core.py"),
    }  # fmt: skip
    assert unread == {"app/bad.py": "not parsed: SyntaxError", "app/nul.py": "not parsed: SyntaxError"}
    found, unread = imports.found(OTHERS)
    by = {(one.importer, one.target) for one in found}
    assert {a for a, b in by if b == "src/util.ts"} == {"src/a.ts", "src/b.tsx", "src/c.js", "src/d/e.ts"}
    assert {a for a, b in by if b == "src/d/index.ts"} == {"src/f.ts"}
    assert {a for a, b in by if b == "inc/util.h"} == {"inc/a.c", "b.cpp", "c.cc"}
    assert {a for a, b in by if b == "j/org/a/Util.java"} == {"j/org/b/B.java", "j/org/b/C.java"}
    assert {a for a, b in by if b == "r/src/util.rs"} == {
        "r/src/lib.rs",
        "r/src/a.rs",
        "r/src/b/mod.rs",
        "r/src/b/c.rs",
    }
    assert {a for a, b in by if b == "r/src/b/c.rs"} == {"r/src/a.rs"}
    assert not [b for _, b in by if "same" in b] and not unread
    assert imports.wildcards(OTHERS) == {"j/org/a/Util.java"}


def test_imports_of_odd_texts_end() -> None:
    odd = {
        "a.ts": "import " * 3000,
        "b.rs": "use crate::{" * 3000,
        "c.java": "import " * 3000,
        "d.c": "#include " * 3000,
    }
    found, unread = imports.found({**odd, "e.py": "\ud800", "f.py": "(" * 5000, "g.js": "`${" * 5000, "h": ""})
    assert not found and set(unread) <= {"e.py", "f.py", "b.rs"}


def repository(**files: str) -> dict[str, str]:
    """Seven files that import `core`, one that does not, and a long one."""
    code = '"""What all share."""\n' + "".join(f"def f{n}(x):\n    return x + {n}\n\n\n" for n in range(20))
    made = {f"pkg/m{n}.py": f"from pkg.core import f{n}\n\nprint(f{n}(1))\n" for n in range(7)}
    return {"pkg/core.py": code, **made, "pkg/long.py": "x = 1\n" * 3000, "README.md": "A package.\n", **files}


def code_of(**changed: Any) -> LongCode:
    return LongCode(config.LongCodeSynthesis(**{"chunk_tokens": 800, **changed}), LENGTHS)


def test_who_imports_a_missing_file_and_what_is_in_it(tmp_path: Path) -> None:
    copied = repository(**{"pkg/copy.py": repository()["pkg/core.py"]})
    taken = {name: text.replace("import f", "import g") for name, text in repository().items()}
    few = {name: text for name, text in repository().items() if name not in ("pkg/m0.py", "pkg/m1.py", "pkg/m2.py")}
    given = {
        "right": repository(), "hidden": repository(), "copied": copied, "undefined": taken, "few": few,
        "short": {n: t for n, t in repository().items() if n != "pkg/long.py"}, "nothing": {}, "odd": {"a.py": "\0"},
    }  # fmt: skip

    def judge(last: str, number: int) -> str:
        assert "def f19" in last and "from pkg.core import f3" in last
        return "Verdict: yes" if number == 0 else "Verdict: no"

    items = scripted.items(*({"id": name, "files": files} for name, files in given.items()))
    results = scripted.run(tmp_path, code_of(), items, Scripted(judge), at_once=1)
    dropped = {name: result["dropped"] for name, result in results.items() if result["dropped"]}
    none = "no file that 5 others import"
    assert dropped == {
        "copied": none, "undefined": none, "few": none, "odd": none, "short": "repository no longer than a chunk",
        "nothing": "no repository: a record needs files, by path",
    }  # fmt: skip
    (record,) = results["right"]["records"]["dialogs"]
    said = [message["content"] for message in record["messages"]]
    assert "def f19" not in said[0] and all(f"=== pkg/m{n}.py\n" in said[0] for n in range(7))
    listed = "\n".join(f"- `pkg/m{n}.py`: `from pkg.core import f{n}`" for n in range(7))
    assert said[1] == f"7 files import `pkg/core.py`:\n\n{listed}"
    assert said[3] == f"```py\n{repository()['pkg/core.py'].rstrip()}\n```"
    assert record["provenance"]["missing"] == "pkg/core.py"
    assert len(results["hidden"]["records"]["dialogs"][0]["messages"]) == 2
    assert results["hidden"]["counts"]["files that the rest does not tell"] == 1
    assert len(training.learned(record)) == 2


def test_a_real_package_from_its_folder(tmp_path: Path) -> None:
    """Python's own `email`; who imports a module is compared with what the words of its lines say."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "email").symlink_to(Path(email.__file__).parent)
    (item,) = folders.read(str(tmp_path / "in"), "text")
    files = {f"email/{name}": text for name, text in item.record["files"].items()}
    found, unread = imports.found(files)
    assert not unread and len(files) > 15
    for module in ("errors", "utils", "charset", "message", "_policybase"):
        said = re.compile(
            rf"^\s*(?:from email import (?:.*\b){module}\b|from email\.{module} import|import email\.{module}\b)"
        )
        plain = {
            path
            for path, text in files.items()
            if path.endswith(".py") and any(said.match(line) for line in text.splitlines())
        }
        assert {one.importer for one in found if one.target == f"email/{module}.py"} == plain - {f"email/{module}.py"}
    capability = LongCode(config.LongCodeSynthesis(most_tokens=20_000), DocumentLengths())
    candidates = capability.candidates(files, found)
    assert "email/errors.py" in candidates
    result = scripted.run(
        tmp_path / "out", capability, scripted.items({"files": files}), Scripted(lambda last, number: "Verdict: yes")
    )["0"]
    (record,) = result["records"]["dialogs"]
    first, answer = (record["messages"][n]["content"] for n in (0, 1))
    missing = record["provenance"]["missing"]
    assert files[missing].strip() not in first
    for path, statements in re.findall(r"^- `(.*?)`: (.*)$", answer, re.MULTILINE):
        body = first.split(f"=== {path}\n")[1].split("\n\n=== ")[0]
        assert all(line in body for line in re.findall(r"`(.*?)`", statements))


def test_a_repository_that_fills_no_bucket_is_cut_around_its_importers(tmp_path: Path) -> None:
    many = repository(**{f"other/n{n}.py": "y = 2\n" * 2000 for n in range(12)})
    result = scripted.run(
        tmp_path, code_of(), scripted.items({"files": many}), Scripted(lambda last, number: "Verdict: yes")
    )["0"]
    (record,) = result["records"]["dialogs"]
    assert record["provenance"]["tokens"] <= 16_384 and result["counts"]["files without room"] > 5
    assert all(f"=== pkg/m{n}.py\n" in record["messages"][0]["content"] for n in range(7))


def test_fences_are_longer_than_those_inside() -> None:
    assert repositories.fenced("a\n````\nb\n", "x/y.md") == "`````md\na\n````\nb\n`````"


def test_folders_leave_out_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "r" / ".git").mkdir(parents=True)
    (tmp_path / "r" / ".git" / "x.py").write_text("hidden")
    (tmp_path / "r" / "a.py").write_bytes(b"x = '\xff'\n")
    (tmp_path / "r" / "b.py").write_bytes(b"\0")
    (tmp_path / "r" / "c.png").write_bytes(b"x")
    assert folders.files(tmp_path / "r") == {"a.py": "x = '\N{REPLACEMENT CHARACTER}'\n"}
    with pytest.raises(ValueError, match="no repository in it; give JSON lines"):
        list(folders.read(str(tmp_path / "r"), "text"))
    with pytest.raises(ValueError, match="is named r as well; rename one"):
        (tmp_path / "other" / "r").mkdir(parents=True)
        list(folders.read(f"{tmp_path},{tmp_path}/other", "text"))


# --- beside short dialogs ---


def test_a_thousandth_of_all_examples(tmp_path: Path) -> None:
    assert mixing.epochs(10, 9990, 0.001) == pytest.approx(1.0)
    for long, short, share in ((3, 50_000, 0.001), (7, 100, 0.2)):
        read = mixing.epochs(long, short, share) * long
        assert read / (read + short) == pytest.approx(share)
    for wrong in ((0, 1, 0.1), (1, 0, 0.1), (1, 1, 1.0)):
        with pytest.raises(ValueError, match=r"none of them to mix|share=1.0: give a share"):
            mixing.epochs(*wrong)
    lines = [{"messages": [], "provenance": {"bucket": bucket}} for bucket in ("16K", "128K", "16K")]
    (tmp_path / "dialogs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "short.jsonl").write_text('{"messages": []}\n' * 999)
    assert mixing.write(tmp_path, None, 0.001).startswith("2 of 16K, 1 of 128K; name the short dialogs")
    said = mixing.write(tmp_path, str(tmp_path / "short.jsonl"), 0.001)
    assert "0.10% of all examples beside 999 short ones is 0.3333 epochs of each" in said
    assert len((tmp_path / "buckets" / "16K.jsonl").read_text().splitlines()) == 2
    assert "long_128K: {input: " in (tmp_path / "sources.yaml").read_text()
    assert "more than 4 readings" in mixing.write(tmp_path, str(tmp_path / "short.jsonl"), 0.1)
    with pytest.raises(ValueError, match=r"short=.*: no such files"):
        mixing.write(tmp_path, str(tmp_path / "gone.jsonl"), 0.001)


def test_tasks_are_built_with_their_keys(tmp_path: Path) -> None:
    for task in ("long_questions", "long_summaries", "long_code"):
        run = config.Synthesize(task=task, name="x", input=str(tmp_path), folder=str(tmp_path / task))
        getattr(run, task).chunk_tokens = 123
        capability: Any = tasks.build(run)
        assert capability.name == task and capability.settings.chunk_tokens == 123
        getattr(run, task).short = None
        begun = tasks.opened(run, capability)
        getattr(run, task).short = "later.jsonl"  # says nothing of what is made
        assert tasks.opened(run, capability).path == begun.path
