"""Lines that stand more than six times in a bucket go, all of them, and no others; on any number of tasks."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
import string
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datatrove.data import Document
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31.curate import kernels
from llama31.curate.duplicates import merging, shards
from llama31.curate.duplicates.lines import (
    CountDocuments,
    LineDuplicates,
    LineKeys,
    LineSignatures,
    RemoveLines,
    capped,
)
from llama31.curate.extraction import page
from tests.curate import debian
from tests.curate.stages import alone, bytes_of, dealt, document, over


def run(
    shown: list[Document],
    folder: Path,
    tasks: int = 1,
    finders: int = 1,
    least: int = 0,
    memory: int = 1 << 20,
    **keys: Any,
) -> tuple[dict[str, str], dict[str, int]]:
    """The texts that stay, by id, and the counts of all stages."""
    signatures, lines = str(folder / "signatures"), str(folder / "lines")
    passed, counts = over(lambda: LineSignatures(signatures, memory_bytes=memory, **keys), dealt(shown, tasks))
    assert sorted(one.id for one in passed) == sorted(one.id for one in shown)
    counts |= alone(lambda: LineDuplicates(signatures, lines, memory), finders)
    kept, removed = over(lambda: RemoveLines(signatures, lines, least), dealt(shown, tasks))
    return {one.id: one.text for one in kept}, counts | removed


def one_line_each(line: str, times: int, language: str = "en", first: int = 0) -> list[Document]:
    return [
        document(f"Page {string.ascii_letters[n]}\n{line}", f"{language}{first + n}", language=language)
        for n in range(times)
    ]


@pytest.mark.parametrize(("times", "stays"), [(6, True), (7, False), (20, False)])
@pytest.mark.parametrize("tasks", [1, 4])
def test_six_stay_and_seven_go(tmp_path: Path, times: int, stays: bool, tasks: int) -> None:
    kept, counts = run(one_line_each("Accept all cookies", times), tmp_path, tasks, 2)
    assert len(kept) == times and counts.get("removed lines", 0) == (0 if stays else times)
    assert all(("cookies" in text) == stays and text.startswith("Page ") for text in kept.values())


def test_languages_are_apart_and_a_documents_own_repetitions_count(tmp_path: Path) -> None:
    documents = (
        one_line_each("OK", 4) + one_line_each("OK", 4, "de") + [document("\n".join(["chorus"] * 7 + ["end"]), "song")]
    )
    kept, counts = run(documents, tmp_path, 2)
    assert counts["removed lines"] == 7 and kept["song"] == "end" and all("OK" in kept[f"en{n}"] for n in range(4))


SMALL = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def hashed(lines: list[bytes]) -> tuple[list[int], list[bool]]:
    data = np.frombuffer(b"".join(line + b"\n" for line in lines), np.uint8)
    hashes, counting = kernels.line_hashes(data, len(lines))
    return hashes.tolist(), counting.tolist()


def bare(line: str) -> str:
    """What counts of a line, by an expression."""
    return re.sub(r"[^\w\u0080-\U0010ffff]|_", "", re.sub(r"[0-9]", "0", line).translate(SMALL))


def test_what_is_the_same_line() -> None:
    lines = ['  Page 12 of 99: "Menü"!\r', "NEXT >>\t", "---", "Über हिन्दी।\x0b", ""]
    expected = ["page00of00menü", "next", "", "Überहिन्दी।", ""]
    assert [bare(line) for line in lines] == expected
    assert hashed([line.encode() for line in lines]) == hashed([line.encode() for line in expected])
    assert hashed([line.encode() for line in lines])[1] == [True, True, False, True, False]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\n"), max_size=4), min_size=2, max_size=8))
def test_lines_are_the_same_where_what_counts_is(lines: list[str]) -> None:
    hashes, counting = hashed([shards.encoded(line) for line in lines])
    assert len(set(zip(map(bare, lines), hashes))) == len(set(map(bare, lines))) == len(set(hashes))
    assert counting == [bool(bare(line)) for line in lines]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([b"", b"a", b"b", b"ab", b"ba", b"aa", "é".encode(), b"long" * 20_000]), max_size=12))
def test_hashes_tell_lines_apart_wherever_they_stand(lines: list[bytes]) -> None:
    hashes, counting = hashed(lines)
    assert counting == [bool(line) for line in lines]
    assert len(set(zip(lines, hashes))) == len(set(lines)) == len(set(hashes))


def test_hashes_of_all_short_lines_differ() -> None:
    lines = [
        bytes(letters)
        for length in range(4)
        for letters in itertools.product(b"abcdefghijklmnopqrstuvwxyz0", repeat=length)
    ]
    assert len(lines) == 20440 and len(set(hashed(lines)[0])) == len(lines)


def test_lines_without_letters_stay_and_technical_pages_are_left_alone(tmp_path: Path) -> None:
    code = [document("return x\n}\n\n", f"code{n}", language="en", extraction="technical") for n in range(9)]
    prose = [document("return x\n}\n\nlast " + string.ascii_letters[n], f"prose{n}", language="en") for n in range(9)]
    kept, counts = run(code + prose, tmp_path / "default", 2)
    assert all(kept[f"code{n}"] == "return x\n}\n\n" for n in range(9)) and counts["exempt"] == 9
    assert all(kept[f"prose{n}"] == "}\n\nlast " + string.ascii_letters[n] for n in range(9))
    kept, counts = run(code + prose, tmp_path / "none", 2, exempt=())
    assert counts["removed lines"] == 18 and counts["exempt"] == 0
    # Six in prose and more in code: those of code do not count.
    assert run(code + prose[:6], tmp_path / "six", 2)[1].get("removed lines", 0) == 0


def test_documents_of_which_too_little_is_left_go_and_are_counted(tmp_path: Path) -> None:
    menus = [document("Home\nAbout us\n", f"menu{n}", language="en") for n in range(7)]
    short = [document("Home\n" + "x" * (98 + n), f"short{n}", language="en") for n in range(4)]
    documents = [*menus, *short, document("tiny", "tiny", language="en")]
    kept, counts = run(documents, tmp_path, 2, least=100)
    assert counts["dropped_only frequent lines"] == 7 and counts["dropped_too short without frequent lines"] == 2
    assert kept == {"short2": "x" * 100, "short3": "x" * 101, "tiny": "tiny"}
    assert counts["shortened"] == counts["removed lines"] == 2 and counts["removed characters"] == 10


def cut(text: str, gone: list[bool]) -> str:
    kept = kernels.without(np.frombuffer(shards.encoded(text), np.uint8), np.array(gone))
    return kept.tobytes().decode("utf-8", "surrogatepass")


def test_blank_lines_around_what_went_become_one() -> None:
    def without_x(text: str) -> str:
        return cut(text, [line == "x" for line in text.split("\n")])

    assert without_x("x\n\na\n\nx\n\nx\n\nb\n\n\nc\n\nx\n") == "a\n\nb\n\n\nc"
    assert without_x("a\nx\nb") == "a\nb" and without_x("a\n\nx\nb") == without_x("a\nx\n\nb") == "a\n\nb"
    assert without_x("x\nx") == "" and without_x("a\n\n\n") == "a\n\n\n"


def without_lines(lines: list[str], gone: list[bool]) -> str:
    kept: list[str] = []
    after = False
    for line, out in zip(lines, gone):
        blank = not line or line.isspace()
        after = out or (after and blank)
        if not out and (not after or (kept and kept[-1] and not kept[-1].isspace())):
            kept.append(line)
    while after and kept and (not kept[-1] or kept[-1].isspace()):
        kept.pop()
    return "\n".join(kept)


BLANKS = "".join(map(chr, (9, 11, 28, 31, 32, 0x85, 0xA0, 0x1680, 0x2000, 0x200A, 0x2028, 0x205F, 0x3000)))
BESIDE = "".join(map(chr, (8, 27, 33, 0x84, 0xA1, 0x167F, 0x1FFF, 0x200B, 0x2027, 0x3001, 0x4E00, 0xD800, 0x1F600)))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.text(st.sampled_from(BLANKS + "a" + BESIDE), max_size=2), st.booleans()), min_size=1))
def test_lines_are_taken_out_as_with_strings(lines: list[tuple[str, bool]]) -> None:
    texts, gone = [line for line, _ in lines], [out for _, out in lines]
    assert cut("\n".join(texts), gone) == without_lines(texts, gone)


def test_a_long_blank_line_is_looked_at_once() -> None:
    """Not for each of the blank lines behind it, which takes minutes."""
    blank, many = " " * 3_000_000, "\n" * 300_000
    for before, last in (("a\nx\n", f"a\n{blank}\nb"), ("", f"{blank}\nb")):
        text = f"{before}{blank}{many}b" if before else f"{blank}\nx{many}b"
        gone = [line == "x" for line in text.split("\n")]
        assert cut(text, gone) == last


def test_blank_is_what_python_says() -> None:
    for code in (*range(0x3100), 0xD800, 0xFEFF, 0x1F600):
        data = np.frombuffer(shards.encoded(chr(code)), np.uint8)
        assert kernels._blank(data, 0, len(data)) == chr(code).isspace(), hex(code)


LINES = st.lists(st.sampled_from(["a", "A!", "b", "c d", "cd", "1", "2", "", "é", "É"]), min_size=1, max_size=6)


def brute_force(documents: list[Document], buckets: int) -> dict[str, list[str]]:
    """The lines that stay, blank ones apart."""

    def key(one: Document, line: str) -> tuple[str, int, str]:
        bucket = shards.identity(one) % buckets if one.metadata["language"] == "en" else 0
        return one.metadata["language"], bucket, bare(line)

    counts = Counter(key(one, line) for one in documents for line in one.text.split("\n"))
    return {
        one.id: [line for line in one.text.split("\n") if line and counts[key(one, line)] <= 6] for one in documents
    }


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(LINES, st.sampled_from(["en", "de"])), max_size=25),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([1, 500, 1 << 20]),
    st.integers(5, 40),
)
def test_as_by_brute_force_on_any_number_of_tasks(
    tmp_path_factory: pytest.TempPathFactory,
    pages: list[tuple[list[str], str]],
    tasks: int,
    finders: int,
    memory: int,
    size: int,
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    documents = [document("\n".join(lines), str(n), language=language) for n, (lines, language) in enumerate(pages)]
    german = sum(one.metadata["language"] == "de" for one in documents)
    size = max(size, german)  # one bucket for these
    over(lambda: CountDocuments(str(folder / "counts")), dealt(documents, 3))
    kept, _ = run(
        documents, folder, tasks, finders, memory=memory, counts_folder=str(folder / "counts"), documents=max(1, size)
    )
    expected = brute_force(documents, max(1, -(-(len(documents) - german) // max(1, size))))
    got = {id_: [line for line in text.split("\n") if line] for id_, text in kept.items()}
    was_empty = {one.id for one in documents if not one.text.strip()}
    assert got == {id_: lines for id_, lines in expected.items() if lines or id_ in was_empty}


def test_buckets_hold_about_as_many_documents_as_they_should(tmp_path: Path) -> None:
    documents = [document(f"{n:04}", str(n), language="en") for n in range(1000)]
    over(lambda: CountDocuments(str(tmp_path)), dealt(documents, 2))
    signatures = str(tmp_path / "signatures")
    over(lambda: LineSignatures(signatures, str(tmp_path), documents=300), [documents])
    then = shards.load_seen(LineDuplicates(signatures, signatures).signature_folder, 0, 1)
    assert then["buckets"] == {"en": 4}
    data = [one.text.encode() for one in documents]
    keys = LineKeys(then["buckets"], ()).of(documents, data, [shards.identity(one) for one in documents])[0]
    sizes = Counter(keys.tolist())  # of lines that are all 0000
    assert len(sizes) == 4 and all(abs(size - 250) < 50 for size in sizes.values())


def test_real_pages_lose_their_menus_on_one_task_and_on_four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = debian.files("libreoffice-help-en-us", limit=150)
    texts = (page.extract(path.read_text("utf-8")).text for path in paths)
    documents = [document(text, str(n), language="en") for n, text in enumerate(texts) if text]
    kept, counts = run(documents, tmp_path / "1", 1)
    monkeypatch.setattr(merging, "LEAST", 3)  # records at once: copies of a line come in several chunks
    assert run(documents, tmp_path / "4", 4, 3, memory=1)[0] == kept
    expected = brute_force(documents, 1)
    same = {id_: [line for line in text.split("\n") if bare(line)] for id_, text in kept.items()}
    wanted = {id_: [line for line in lines if bare(line)] for id_, lines in expected.items()}
    assert same == {id_: lines for id_, lines in wanted.items() if lines}
    assert counts["removed lines"] > 100 and counts["removed characters"] > 1000
    untouched = [one for one in documents if one.text == kept.get(one.id)]
    assert len(untouched) > 10


def test_capped_keys_keep_what_counts() -> None:
    keys = np.repeat(np.arange(5, dtype=np.uint64), [1, 7, 6, 20, 8])
    assert np.bincount(capped(keys, 7).astype(int)).tolist() == [1, 7, 6, 7, 7]
    assert len(capped(keys[:0], 7)) == 0


def test_many_sorted_files_hold_no_more_than_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "LEAST", 9)
    monkeypatch.setattr("llama31.curate.duplicates.lines.BATCH_DOCUMENTS", 5)
    documents = [document(f"a\nb{n % 3 * 'c'}\n{n}", str(n)) for n in range(400)]
    for memory in (1, 1 << 20):
        over(lambda memory=memory: LineSignatures(str(tmp_path / str(memory)), memory_bytes=memory), [documents])
    few, many = bytes_of(tmp_path / "1"), bytes_of(tmp_path / str(1 << 20))
    assert few == many and len(many["00000-of-00001.keys"]) == 8 * 7 * 7
    assert not list((tmp_path / "1/partial").iterdir())


def test_another_input_or_number_of_tasks_is_refused_and_values_are_checked(tmp_path: Path) -> None:
    documents = one_line_each("line", 8)
    run(documents, tmp_path, 2)
    signatures, lines = str(tmp_path / "signatures"), str(tmp_path / "lines")
    with pytest.raises(ValueError, match="run this stage with tasks=2"):
        over(lambda: RemoveLines(signatures, lines), dealt(documents, 3))
    with pytest.raises(ValueError, match="read . documents, which are not the 4"):
        over(lambda: RemoveLines(signatures, lines), dealt(documents[::-1], 2))
    with pytest.raises(ValueError, match="limit=0 would remove every line"):
        LineSignatures(signatures, limit=0)
    with pytest.raises(ValueError, match="documents=0 is no size of a bucket"):
        LineSignatures(signatures, documents=0)


def test_what_breaks_off_and_is_run_again_has_the_same_bytes(tmp_path: Path) -> None:
    documents = one_line_each("line", 20)
    run(documents, tmp_path / "whole", 2, 2, memory=1)
    step = LineSignatures(str(tmp_path / "broken/signatures"), memory_bytes=1)

    def broken() -> Any:
        yield from documents[:9]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(step.run(broken(), 0, 2))
    assert not bytes_of(tmp_path / "broken")
    run(documents, tmp_path / "broken", 2, 2, memory=1)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "broken") != {}


def test_odd_documents_and_none_at_all(tmp_path: Path) -> None:
    texts = ["", "\n\n", "\ud800\nx", "\0\n\0", "word " * 2_000_000, "l\n" * 300_000, "\r\n" * 9, "é" * 70_000]
    documents = [document(text, str(n), extraction=["odd"]) for n, text in enumerate(texts)]
    kept, counts = run(documents, tmp_path / "some", 3)
    assert sorted(kept) == ["0", "1", "2", "3", "4", "6", "7"] and counts["dropped_only frequent lines"] == 1
    assert run([], tmp_path / "none", 2, 2)[0] == {}


def test_steps_can_be_handed_to_other_processes(tmp_path: Path) -> None:
    for step in (
        LineSignatures(str(tmp_path)),
        LineDuplicates(str(tmp_path), str(tmp_path)),
        CountDocuments(str(tmp_path)),
    ):
        assert type(pickle.loads(pickle.dumps(step))) is type(step)
    removing = RemoveLines(str(tmp_path), str(tmp_path))
    assert type(pickle.loads(pickle.dumps(copy.deepcopy(removing)))) is RemoveLines
