"""Which code is taken out of an answer, and that nothing an answer holds breaks it."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies

from llama31.synth.code import blocks, comments
from llama31.synth.code.blocks import fenced
from llama31.synth.code.running.languages import LANGUAGES

PYTHON, BASH, JAVA = LANGUAGES["python"], LANGUAGES["bash"], LANGUAGES["java"]
SOLUTION = "def f():\n    return 1\n"
TESTS = "from solution import f\n\nassert f() == 1\nprint('ok f')\n"


@pytest.mark.parametrize(
    "answer",
    [
        f"Here:\n```python\n{SOLUTION}```\nDone.",
        f"```py\n{SOLUTION}```\nIt prints\n```\n{'9 ' * 500}\n```",  # output without a tag is longer
        f"```\n{SOLUTION}```",
        f"~~~~ Python title=x\n{SOLUTION}~~~~",
        f"```python\n{SOLUTION}",  # never closed
        "1. First\n\n   ```python\n   def f():\n       return 1\n   ```\n",
        f"```python\r\n{SOLUTION}```\r\n".replace("\n", "\r\n"),
        f"Run it:\n```bash\npython solution.py --with --very --long --options\n```\n```python\n{SOLUTION}```",
        f"A helper alone:\n```python\nx = 1\n```\nThe whole:\n```python\n{SOLUTION}```",
        f"```python\n{SOLUTION}```\nAnd tests, nobody asked for:\n```python\n{TESTS}```",
        f"````python\n{SOLUTION}````\n```output\nok f\nAll 7 tests passed. Return code 0.\n```",
        f"```solution.py\n{SOLUTION}```",
    ],
)
def test_the_solution_is_found(answer: str) -> None:
    assert blocks.solution(PYTHON)(answer)[1] == {"solution.py": SOLUTION}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "return code: 0\nstdout: ok f\nAll tests passed.",
        "def f():\n    return 1\n",
        "```\n\n```",
        "```output\nok f\n```",
        "```javascript\nlet f = 1\n```",
        "\0\ud800 ```",
    ],
)
def test_without_a_block_of_the_language_there_is_no_code(answer: str) -> None:
    with pytest.raises(ValueError, match="no fenced block of Python"):
        blocks.solution(PYTHON)(answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"```python\n# solution.py\n{SOLUTION}```", {"solution.py": f"# solution.py\n{SOLUTION}"}),
        (f"**tests.py**\n```python\n{SOLUTION}```", {"tests.py": SOLUTION}),
        (f"```python\n{TESTS}```", {"tests.py": TESTS}),
        (f"```python\n{TESTS}```\n```python\n{SOLUTION}```", {"tests.py": TESTS, "solution.py": SOLUTION}),
        # a piece of it is quoted before; one that is named counts before a longer one that is not
        (f"```python\nreturn 0\n```\nhas to be\n```python\n{SOLUTION}```", {"solution.py": SOLUTION}),
        (
            f"```python title=solution.py\n{SOLUTION}```\n```python\n{'x = 1\n' * 9}```",
            {"solution.py": SOLUTION},
        ),
    ],
)
def test_mended_files_are_told_apart(answer: str, expected: dict[str, str]) -> None:
    assert blocks.either(PYTHON)(answer) == (answer, expected)


def test_files_of_other_languages() -> None:
    java = "class Solution { }\n"
    answer = f"```java\n{java}```\n```java\nclass Tests {{ }}\n```"
    assert blocks.files(answer, JAVA) == {"Solution.java": java, "Tests.java": "class Tests { }\n"}
    assert blocks.files("```sh\nsource ./solution.sh\n```", BASH) == {"tests.sh": "source ./solution.sh\n"}
    tests = "[ 1 = 1 ] && echo 'test-passed: one'\necho all-tests-done\n"
    assert blocks.tests(BASH)(f"```sh\n{tests}```")[1] == {"tests.sh": tests}
    with pytest.raises(ValueError, match="no line with `test-passed:` and none with `all-tests-done`"):
        blocks.tests(BASH)("```sh\n[ 1 = 1 ] && echo 'ok one'\n```")
    with pytest.raises(ValueError, match="no solution.sh in the answer"):
        blocks.solution(BASH)("```sh\nsource ./solution.sh\n```")


def test_between_tags_the_last_counts() -> None:
    parse = blocks.tagged("problem")
    assert parse("I put it between <problem> and </problem>.\n<problem>\nAdd.\n</problem>") == "Add."
    for answer in ("no tags", "<problem> </problem>", "<problem>cut off"):
        with pytest.raises(ValueError, match="nothing between <problem>"):
            parse(answer)


@given(strategies.text(alphabet="`~ \n\r\0\ud800\u2028pyaxsolution.tes#"))
def test_any_answer_is_read(answer: str) -> None:
    assert all(block.text.strip() and block.whole in answer for block in blocks.blocks(answer))
    assert "```" not in blocks.prose(fenced(answer) if answer.strip() else "")


@given(strategies.text(alphabet="`~ab \n#=", min_size=1).filter(lambda text: text.strip()))
def test_a_fence_holds_whatever_is_in_it(text: str) -> None:
    (block,) = blocks.blocks(fenced(text, "python"))
    assert block.tag == "python" and block.text == text.strip("\n") + "\n"


PLAIN = 'import re\n\nclass A:\n    def f(self, a):\n        return "# no" + a\n'
DOCUMENTED = '''"""What it is for."""
import re  # words

class A:
    """Holds nothing."""

    def f(self, a):
        \'\'\'Puts "# no" before a.

        Twice # never.
        \'\'\'
        # as it was
        return "# no" + a
'''


def test_documenting_leaves_code_as_it_was() -> None:
    assert comments.same_code(PLAIN, DOCUMENTED, PYTHON)
    assert comments.split(DOCUMENTED, PYTHON).documentation.splitlines() == [
        "What it is for.", "words", "class A:", "Holds nothing.", "    def f(self, a):", 'Puts "# no" before a.',
        "Twice # never.", "as it was",
    ]  # fmt: skip
    for changed in (DOCUMENTED.replace("+ a", "+ b"), DOCUMENTED.replace('"# no" +', '"# yes" +'), PLAIN + "x\n"):
        assert not comments.same_code(PLAIN, changed, PYTHON)


@pytest.mark.parametrize(
    ("language", "plain", "documented"),
    [
        ("javascript", 'f("// no", `/* no */`);\n', '/** Calls. */\nf("// no", `/* no */`); // yes\n'),
        (
            "rust",
            "fn f<'a>(x: &'a str) -> char { '\"' }\n",
            "/// A \"\nfn f<'a>(x: &'a str) -> char { '\"' /* q */ }\n",
        ),
        ("sql", "SELECT '-- no''s';\n", "-- all\nSELECT '-- no''s'; /* yes */\n"),
        ("bash", "echo ${#a} '# no' $#\n", "# prints\necho ${#a} '# no' $# # yes\n"),
        ("php", "<?php\n#[Pure]\n$a = '# no';\n", "<?php\n/** b */\n#[Pure]\n$a = '# no'; # yes\n"),
        ("c", "int a = '\\'';\n#include <b>\n", "int a = '\\''; // '\n#include <b>\n"),
    ],
)
def test_comments_of_other_languages(language: str, plain: str, documented: str) -> None:
    assert comments.same_code(plain, documented, LANGUAGES[language])
    assert comments.split(plain, LANGUAGES[language]).documentation == ""
    assert comments.split(documented, LANGUAGES[language]).documentation != ""


@given(strategies.text(alphabet="\"'#/*-a\\\n `{:", max_size=60), strategies.sampled_from(sorted(LANGUAGES)))
def test_any_text_has_comments_and_code(text: str, language: str) -> None:
    parts = comments.split(text, LANGUAGES[language])
    assert comments.same_code(text, text + "\n\n", LANGUAGES[language])
    assert len(parts.code) <= len(text)
