"""Which answers are the same: a table of pairs, laws, and what a model might write to hang or harm the comparison."""

from __future__ import annotations

import os
import signal
import string
import subprocess
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31.synth.equality import final, grammar, symbolic, tokens, verdict
from llama31.synth.equality.bounded import Comparer
from llama31.synth.equality.same import EqualityRules

HERE = EqualityRules(symbolic.equal, symbolic.equal_equations)

EQUAL = [
    ("1/2", "0.5"), (r"\frac12", "0.5"), (r"\dfrac{1}{2}", r"\tfrac{2}{4}"), ("½", "0.5"), (".5", "0.50"),
    ("50%", "0.5"), (r"50\%", "50"), ("50 percent", "50%"), ("1,000", "1000"), (r"1{,}000", "1000"),
    ("12 345", "12345"), (r"12\,345", "12345"), ("1,00,000", "100000"), ("3 1/2", "3.5"), (r"3\frac{1}{2}", "7/2"),
    (r"0.\overline{3}", "1/3"), (r"0.1\overline{6}", "1/6"), ("1.5e3", "1500"), (r"1.5\times10^3", "1500"),
    ("10^{100}", "1" + "0" * 100), ("2^{-1}", "1/2"), ("-2^2", "-4"), ("2^3^2", "512"), ("3:4", "3/4"),
    ("३", "3"), ("\N{MINUS SIGN}3", "-3"), (r"\boxed{7}", "7"), ("$7$", "7"), ("**7**.", "7"), (r"\(7\)", "7"),
    (r"\sqrt{8}", r"2\sqrt{2}"), ("√12", r"2\sqrt3"), (r"\sqrt{5+2\sqrt6}", r"\sqrt2+\sqrt3"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), (r"\sqrt[3]{27}", "3"), (r"\log_2 8", "3"), ("e^{i\\pi}", "-1"),
    (r"\binom{5}{2}", "10"), ("5!", "120"), (r"\lfloor 2.5 \rfloor", "2"), ("|-3|", "3"),
    ("0.30000000000000004", "0.3"), ("1.4142135623730951", r"\sqrt{2}"),
    ("x^2+2x+1", "(x+1)^2"), (r"\frac{x}{2}", "x/2"), ("x²", "x^2"), ("x^10", "x^{10}"), (r"|x-1|", "|1-x|"),
    (r"\sin^2 x+\cos^2 x", "1"), (r"\sin 2x", r"2\sin x\cos x"), (r"\ln(ab)", r"\ln a+\ln b"),
    (r"\sin^{-1}(x)", r"\arcsin x"), (r"\frac{1}{x}+\frac{1}{y}", r"\frac{x+y}{xy}"), ("x_1+x_2", "x_2 + x_{1}"),
    ("x=5", "5"), ("5 = x", "x=5"), ("y=2x+3", "2x+3"), ("f(x)=x+1", "x+1"), ("x+y=1", "2x+2y=2"),
    ("x=1 or x=2", "1, 2"), (r"x = \pm 2", "2,-2"), (r"1\pm\sqrt2", r"\{1+\sqrt2,1-\sqrt2\}"), ("1 and 2", "2,1"),
    ("{1,2,3}", r"\{3,2,1\}"), (r"\{1,1,2\}", r"\{1,2\}"), (r"\emptyset", r"\{\}"), ("x=5", r"\{5\}"),
    ("(1,2)", r"\left(1,\frac{4}{2}\right)"), (r"x \in [1,3]", "[1,3]"), ("x>3", r"(3,\infty)"), ("3<x", "x>3"),
    (r"1<x\le 3", "(1,3]"), (r"\{x | x > 3\}", r"(3,\infty)"),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&\frac{4}{2}\\3&4\end{bmatrix}"),
    ("[[1,2],[3,4]]", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    ("5 cm", "5"), (r"5\text{ cm}", "0.05 m"), ("50 cm^2", r"0.005 \text{ m}^2"), ("5 square cm", "5 cm squared"),
    ("2 hours", "120 minutes"), ("10 miles per hour", "10 mph"), ("$5", "5"), (r"\$5.00", "5 dollars"),
    ("90^\\circ", r"\frac{\pi}{2}"), ("90°", "90"), (r"\tan 45^\circ", "1"), ("5 apples", "5"), ("5 apples", "5 apple"),
    (r"\text{(A)}", "A"), ("(A)", "A"), ("Yes", "yes."), (r"\text{Even}", "even"), ("1011_2", "11"), ("1011_2", "1011"),
]  # fmt: skip
UNEQUAL = [
    ("1/3", "0.33"), ("1/3", "0.3333"), ("1", "2"), ("pi", "3.14"), ("3 1/2", "31/2"), ("1 2", "12"), ("50%", "5"),
    (r"\frac{1}{23}", r"\frac{12}{3}"), ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("(1,2)", "1,2"), ("{1,2}", "{1,2,3}"),
    ("x>3", r"x\ge3"), ("x>3", "x<3"), ("x>3", "y>3"), ("5 cm", "5 m"), ("5 apples", "5 oranges"), ("$5", "5 cents"),
    ("x", "y"), ("x=5", "y=5"), ("x^2", "x^3"), (r"\sqrt{x^2}", "x"), ("x+y=1", "x+y=2"), ("x=y", "x=2y"),
    (r"\infty", r"-\infty"), ("even", "odd"), ("A", "B"), ("yes", "no"), ("1011_2", "13"), ("", "1"), ("1", "True"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"), ("__import__('os').getpid()", "1"),
    ("1e400", "1e401"), ("10000000001", "10000000002"), ("0", "10^{-70}"),
]  # fmt: skip


@pytest.fixture(scope="module")
def comparer() -> Iterator[Comparer]:
    with Comparer(processes=1) as one:
        yield one


def test_a_table_of_pairs(comparer: Comparer) -> None:
    wrong = []
    for wanted, pairs in (("equal", EQUAL), ("unequal", UNEQUAL)):
        for one, other in pairs:
            said = {comparer.verdict(one, other), verdict.of(one, other, HERE), verdict.of(other, one, HERE)}
            wrong += [] if said == {wanted} else [(one, other, wanted, said)]
    assert not wrong


TEXTS = [text for pair in (*EQUAL, *UNEQUAL) for text in pair]
PIECES = st.sampled_from(
    [
        *TEXTS,
        "\\frac",
        "{",
        "}",
        "(",
        ")",
        ",",
        "x",
        "^",
        "_",
        "2",
        "9^9^9",
        "|",
        "\\text{",
        "!",
        "\ud800",
        "\0",
        "ßtr",
        "=",
    ]
)
JUNK = st.lists(PIECES, max_size=6).map("".join)


@settings(max_examples=150, deadline=None)
@given(JUNK, JUNK)
def test_whatever_is_written_is_the_same_as_itself_and_needs_no_order(one: str, other: str) -> None:
    """Sympy left out: structure, arithmetic and text alone, both ways round."""
    assert verdict.by_arithmetic(one, one) == "equal"
    assert verdict.by_arithmetic(one, other) == verdict.by_arithmetic(other, one)


def written(value: Fraction, form: int) -> str:
    """A number in one of several ways."""
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    whole, rest = divmod(top, bottom)
    forms = [f"{sign}{top}/{bottom}", f"{sign}\\frac{{{top}}}{{{bottom}}}", f"${sign}{top:,} \\div {bottom}$"]
    forms.append(f"{sign}{whole}\\frac{{{rest}}}{{{bottom}}}" if whole and rest else f"{sign}({top}/{bottom})")
    forms.append(f"\\boxed{{{value.numerator * 7} / {7 * bottom}}}")
    return forms[form]


NUMBERS = st.fractions(-3000, 3000, max_denominator=12)


@settings(max_examples=200, deadline=None)
@given(NUMBERS, NUMBERS, st.integers(0, 4), st.integers(0, 4))
def test_numbers_are_the_same_exactly_where_they_are(one: Fraction, other: Fraction, form: int, another: int) -> None:
    assert verdict.by_arithmetic(written(one, form), written(one, another)) == "equal"
    wanted = "equal" if one == other else "unequal"
    assert verdict.by_arithmetic(written(one, form), written(other, another)) == wanted


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_sets_have_no_order_and_tuples_have_one(values: list[Fraction]) -> None:
    turned = values[::-1]
    texts = [", ".join(written(value, place % 2) for place, value in enumerate(each)) for each in (values, turned)]
    assert verdict.by_arithmetic(f"\\{{{texts[0]}\\}}", f"{{{texts[1]}}}") == "equal"
    same = "equal" if values == turned else "unequal"
    assert verdict.by_arithmetic(f"({texts[0]})", f"({texts[1]})") == same


def test_what_would_take_for_ever_is_undecided_and_the_next_is_judged() -> None:
    rows = r"\\".join("&".join(string.ascii_letters[8 * i + j :][:1] or "q" for j in range(8)) for i in range(8))
    heavy = rf"\begin{{vmatrix}}{rows}\end{{vmatrix}}"
    with Comparer(processes=1, cpu_seconds=0.5) as comparer:
        assert comparer.verdict(r"\sqrt{8}", r"2\sqrt{2}") == "equal"
        process = comparer._free.get()
        comparer._free.put(process)
        assert comparer.verdict(heavy, "x") == "undecided"
        assert comparer.verdict(r"\sqrt{12}", r"2\sqrt{3}") == "equal"
        assert comparer._free.get() is process, "it ended the comparison by itself"
        assert isinstance(process, subprocess.Popen)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        comparer._free.put(process)
        assert comparer.verdict(r"\sqrt{18}", r"3\sqrt{2}") == "equal"
    assert process.poll() is not None


@pytest.mark.parametrize("text", ["9^9^9", "(10^{5000})^{5000}", "10^{99999}", "5000!", "x^{9^9}", "1e999999"])
def test_large_numbers_are_not_worked_out(text: str) -> None:
    assert verdict.of(text, "1", HERE) == "undecided"
    assert verdict.of(text, text, HERE) == "equal"


@pytest.mark.parametrize(
    "text", ["", "(" * 100, "((((" * 12 + "1" + "))))" * 12, "sin " * 240 + "x", "\\", "\\text{a", "1" * 3000, "f'(x)"]
)
def test_what_is_no_answer_is_unreadable(text: str) -> None:
    with pytest.raises(tokens.NotAnAnswer):
        grammar.read(text)


def test_long_texts_are_compared_as_they_are() -> None:
    long = "\\(" * 500_000 + "1" + "\\)" * 500_000
    assert verdict.by_arithmetic(long, f" {long}\n") == "equal"
    assert verdict.by_arithmetic(long, "1") == "unequal"


@pytest.mark.parametrize(
    ("solution", "wanted"),
    [
        (r"so \boxed{1} and then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\text{a \} b}}", r"\text{a \} b}"),
        ("It is 4.\n#### 1,234\n", "1,234"),
        ("First 3. The answer is 12. Good.", "12"),
        ("**Final answer:** $x = 3.5$.", "$x = 3.5$"),
    ],
)
def test_the_last_box_is_the_answer(solution: str, wanted: str) -> None:
    assert final.answer(solution) == wanted


@pytest.mark.parametrize("solution", ["", "It is 4.", r"\boxed{}", r"\boxed{3", "The answer is ."])
def test_a_solution_may_say_no_answer(solution: str) -> None:
    with pytest.raises(ValueError, match="no final answer"):
        final.answer(solution)
