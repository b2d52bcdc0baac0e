"""One page for each URL and language, the newest, whatever the number of tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.io import get_datafolder
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31.curate.duplicates import merging, shards
from llama31.curate.duplicates.preference import Keep, preference
from llama31.curate.duplicates.removal import DropListed
from llama31.curate.duplicates.urls import UrlDuplicates, UrlSignatures, normalise
from tests.curate.stages import alone, bytes_of, dealt, document, over


def run(
    documents: list[Document], folder: Path, tasks: int, finders: int = 1, memory: int = 1 << 20, keep: Keep = "newest"
) -> tuple[list[Document], dict[str, int]]:
    signatures, listed = str(folder / "signatures"), str(folder / "listed")
    passed, counts = over(lambda: UrlSignatures(signatures, keep), dealt(documents, tasks))
    assert len(passed) == len(documents)
    counts |= alone(lambda: UrlDuplicates(signatures, listed, memory), finders)
    kept, dropped = over(lambda: DropListed(signatures, listed, "url"), dealt(documents, tasks))
    return kept, counts | {"dropped": dropped.get("dropped_url", 0)}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("HTTP://Example.ORG:80", "http://example.org/"),
        ("https://example.org:443/a#part", "https://example.org/a"),
        ("https://example.org:8443/a", "https://example.org:8443/a"),
        ("http://example.org:443/", "http://example.org:443/"),
        ("http://example.org:/a", "http://example.org/a"),
        ("https://example.org/#!/page", "https://example.org/#!/page"),
        ("https://Me:Pass@Example.org/A", "https://Me:Pass@example.org/A"),
        ("https://example.org/%7euser/%c3%a9?q=%41%2f", "https://example.org/~user/%C3%A9?q=A%2F"),
        ("https://example.org/a/./b/../c/..", "https://example.org/a/"),
        ("https://example.org/../a//b/", "https://example.org/a//b/"),
        ("https://example.org/a?b=../c/./d", "https://example.org/a?b=../c/./d"),
        ("https://example.org/a?", "https://example.org/a?"),
        ("http://[2001:DB8::1]:80/", "http://[2001:db8::1]/"),
        ("http://[broken/", "http://[broken/"),
        ("  doi:10.1000/182 ", "doi:10.1000/182"),
        ("/usr/share/doc/A.html", "/usr/share/doc/A.html"),
    ],
)
def test_equivalent_urls_are_equal_and_no_others(url: str, expected: str) -> None:
    assert normalise(url) == expected
    assert normalise(expected) == expected


@given(st.lists(st.sampled_from([*"abA/.:?#@[]!~ é", "%2f", "%41", "/../", "/./"]), max_size=12))
def test_normalising_twice_is_normalising_once(rest: list[str]) -> None:
    once = normalise("HTTP://H/" + "".join(rest))
    assert normalise(once) == once


def test_newest_stays_within_a_language(tmp_path: Path) -> None:
    documents = [
        document("old", "1", url="http://a.org/x", date="2023-01-01T00:00:00Z", language="en"),
        document("new", "2", url="HTTP://A.org:80/x#top", date="2024-06-01T12:00:00+02:00", language="en"),
        document("undated", "3", url="http://a.org/x", date="", language="en"),
        document("german", "4", url="http://a.org/x", date="2020-01-01T00:00:00Z", language="de"),
        document("other", "5", url="http://a.org/y", language="en"),
        document("no url", "6", url="", language="en"),
        document("no url", "7", language="en"),
    ]
    kept, counts = run(documents, tmp_path, 2)
    assert sorted(one.id for one in kept) == ["2", "4", "5", "6", "7"]
    assert counts["no url"] == 2 and counts["no date"] == 2 and counts["dropped"] == 2 and counts["urls"] == 3


def test_preferences() -> None:
    scored = [document("", "", score=s) for s in (float("-inf"), -2.5, -0.0, 1e-300, 0.7, 3, float("inf"))]
    numbers = [preference(one, "best", "score") for one in scored]
    assert numbers == sorted(set(numbers)) and max(numbers) < 1 << 64
    assert preference(document("", "", score=0.0), "best", "score") == numbers[2]
    for score in (None, float("nan"), "0.9", True):
        assert preference(document("", "", score=score), "best", "score") == 0 < numbers[0]
    dates = ["", "0001-01-01T00:00:00Z", "2023-12-31T23:59:59Z", "2024-01-01T00:00:00Z"]
    numbers = [preference(document("", "", date=date), "newest", "score") for date in dates]
    assert numbers == sorted(set(numbers)) and numbers[0] == 0
    assert preference(document("four", ""), "longest", "score") == 4
    with pytest.raises(ValueError, match="keep='oldest' is none of newest, longest, best"):
        UrlSignatures("/tmp", "oldest")  # type: ignore[arg-type]


def brute_force(documents: list[Document]) -> set[str]:
    best: dict[tuple[str, str], Document] = {}
    for one in documents:
        url = one.metadata["url"]
        key = (one.metadata["language"], normalise(url) if url else one.id)
        if key not in best or order(one) > order(best[key]):
            best[key] = one
    return {one.id for one in best.values()}


def order(one: Document) -> tuple[str, int]:
    return one.metadata["date"], -shards.identity(one)


PAGE = st.tuples(
    st.sampled_from(["", "http://a.org/", "http://A.org", "http://b.org/%41", "http://b.org/A"]),
    st.sampled_from(["", "2023-01-01T00:00:00Z", "2023-01-01T00:00:01Z", "2024-01-01T00:00:00Z"]),
    st.sampled_from(["en", "de"]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(PAGE, max_size=40), st.integers(1, 5), st.integers(1, 3), st.sampled_from([1, 1 << 20]))
def test_as_by_brute_force_on_any_number_of_tasks(
    tmp_path_factory: pytest.TempPathFactory, pages: list[tuple[str, str, str]], tasks: int, finders: int, memory: int
) -> None:
    documents = [
        document("text", str(number), url=url, date=date, language=language)
        for number, (url, date, language) in enumerate(pages)
    ]
    kept, counts = run(documents, tmp_path_factory.mktemp("urls"), tasks, finders, memory)
    assert {one.id for one in kept} == brute_force(documents)
    assert counts["listed"] == counts["dropped"] == len(documents) - len(kept)


def test_many_copies_of_a_url_in_chunks_smaller_than_they(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "LEAST", 3)
    documents = [
        document("", str(number), url=f"http://a.org/{number % 7 % 3}", date=f"20{number % 83 + 10}-01-01T00:00:00Z")
        for number in range(500)
    ]
    kept, counts = run(documents, tmp_path, 3, memory=1)
    assert counts["urls"] == len(kept) == 3
    assert {one.metadata["date"][:4] for one in kept} == {"2092"}


def test_merge_reads_each_record_once_in_order_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "LEAST", 5)
    folder, dtype = get_datafolder(str(tmp_path)), np.dtype([("key", "<u8"), ("file", "<u4")])
    generator = np.random.default_rng(0)
    everything = []
    for file, (count, bits) in enumerate([(0, 64), (1000, 64), (300, 3), (7, 64), (500, 60)]):
        records = np.zeros(count, dtype)
        records["key"] = np.sort(generator.integers(0, 1 << bits, count, dtype=np.uint64, endpoint=False))
        records["file"] = file
        shards.write(folder, f"{file}.x", records)
        everything.append(records["key"])
    for parts in (1, 4):
        chunks = [
            chunk
            for part in range(parts)
            for chunk in merging.merge(folder, [f"{i}.x" for i in range(5)], dtype, 1, part, parts)
        ]
        assert len(chunks) > 50
        keys = np.concatenate([records["key"] for _, records in chunks])
        assert np.array_equal(keys, np.sort(np.concatenate(everything)))
        assert all(np.array_equal(places, records["file"]) for places, records in chunks)


def test_what_is_no_run_of_the_same_input_is_refused(tmp_path: Path) -> None:
    documents = [document("text", str(n), url=f"http://a.org/{n // 2}") for n in range(8)]
    run(documents, tmp_path, 2)
    signatures, listed = str(tmp_path / "signatures"), str(tmp_path / "listed")

    def drop(shown: list[Document], tasks: int) -> None:
        over(lambda: DropListed(signatures, listed, "url"), dealt(shown, tasks))

    with pytest.raises(ValueError, match="tasks=4, but .* was written by 2; run this stage with tasks=2"):
        drop(documents, 4)
    for other in (documents[:-1], documents[::-1], [*documents, documents[0]]):
        with pytest.raises(ValueError, match="task [01] of 2 read . documents, which are not the 4"):
            drop(other, 2)
    drop(documents, 2)
    (tmp_path / "listed/00000-of-00001.removed").rename(tmp_path / "listed/00000-of-00002.removed")
    with pytest.raises(ValueError, match="has no 00001-of-00002.removed: the stage before has not ended"):
        drop(documents, 2)
    (tmp_path / "listed/00000-of-00001.removed").write_bytes(b"")
    with pytest.raises(ValueError, match=r"files of runs with \[1, 2\] tasks; empty it"):
        drop(documents, 2)


def test_what_breaks_off_leaves_nothing_and_a_second_run_the_same_bytes(tmp_path: Path) -> None:
    documents = [document("text", str(n), url=f"http://a.org/{n // 3}") for n in range(30)]
    run(documents, tmp_path / "whole", 3, 2)

    def broken(shown: list[Document]) -> list[Document]:
        yield from shown[:5]
        raise KeyboardInterrupt

    signatures = str(tmp_path / "broken/signatures")
    with pytest.raises(KeyboardInterrupt):
        list(UrlSignatures(signatures).run(broken(documents), 0, 3))
    assert not bytes_of(tmp_path / "broken")
    (tmp_path / "broken/signatures/partial").mkdir(parents=True)
    (tmp_path / "broken/signatures/partial/00000-of-00003.urls").write_bytes(b"half a record")
    run(documents, tmp_path / "broken", 3, 2)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "broken") != {}


def test_a_file_appears_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    folder = get_datafolder(str(tmp_path))
    shards.write(folder, "sub/one", np.arange(3))
    with pytest.raises(KeyboardInterrupt), shards.whole(folder, "sub/one") as file:
        file.write(b"half")
        file.flush()
        assert (tmp_path / "sub/one").read_bytes() == np.arange(3).tobytes()
        raise KeyboardInterrupt
    assert (tmp_path / "sub/one").read_bytes() == np.arange(3).tobytes()


def test_odd_documents(tmp_path: Path) -> None:
    urls = ["http://a.org/\ud800", "http://a.org/\0", None, 7, "http://" + "x" * 100_000, "\u2603", "http://a:b:c/"]
    documents = [document("\udfff\0", "\ud800", url=url, date=7.5e300, language="\ud800") for url in urls]
    kept, counts = run(documents, tmp_path, 2)
    assert len(kept) == 7 and counts["no url"] == 2
