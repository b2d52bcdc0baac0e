"""Archives and files to documents: every form that is named, read, and everything else counted by its kind."""

from __future__ import annotations

import codecs
import datetime
import gzip
import io
import json
import os
import random
import re
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import brotli
import pyarrow
import pytest
import zstandard
from datatrove.data import Document
from pyarrow import parquet

from llama31.curate.reading import bodies
from llama31.curate.reading.documents import CountingReader, iso, plain
from llama31.curate.reading.files import DatasetReader, FolderReader, LinesReader, ParquetReader
from llama31.curate.reading.warc import ArchiveReader
from tests.curate import debian

PAGE = b"<html lang=en-GB><body><p>" + b"Some words of a page. " * 40 + b"</p></body></html>"


def record(i: int, body: bytes, headers: bytes = b"", status: bytes = b"200 OK", kind: bytes = b"response") -> bytes:
    block = b"HTTP/1.1 %s\r\nContent-Type: text/html\r\n%s\r\n%s" % (status, headers, body)
    head = b"WARC/1.0\r\nWARC-Type: %s\r\nWARC-Record-ID: <urn:uuid:%d>\r\nWARC-Target-URI: http://e.org/%d\r\n" % (
        kind,
        i,
        i,
    )
    head += b"WARC-Date: 2024-01-02T03:04:05Z\r\nContent-Type: application/http; msgtype=response\r\n"
    return head + b"Content-Length: %d\r\n\r\n%s\r\n\r\n" % (len(block), block)


def read(reader: CountingReader) -> tuple[list[Document], dict[str, float]]:
    documents = list(reader.run())
    for document in documents:
        json.dumps(document.metadata, allow_nan=False)
    counts = {name: stat.total for name, stat in reader.stats.stats.items() if name.startswith("left out")}
    return documents, {name.removeprefix("left out: "): count for name, count in counts.items()}


def archive(
    folder: Path, content: bytes, name: str = "a.warc.gz", **keys: int
) -> tuple[list[Document], dict[str, float]]:
    (folder / name).write_bytes(content)
    return read(ArchiveReader(str(folder), "crawl", **keys))  # type: ignore[arg-type]


Z = zstandard.ZstdCompressor()
RECORDS = [record(i, PAGE) for i in range(4)]
FORMS = {
    "gzip members": b"".join(map(gzip.compress, RECORDS)),
    "one gzip member": gzip.compress(b"".join(RECORDS)),
    "zstd frames": b"".join(map(Z.compress, RECORDS)),
    "one zstd frame": Z.compress(b"".join(RECORDS)),
    "plain": b"".join(RECORDS),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_archive(form: str, tmp_path: Path) -> None:
    documents, left_out = archive(tmp_path, FORMS[form])
    assert [document.text for document in documents] == [PAGE.decode()] * 4 and not left_out
    meta = {"url": "http://e.org/3", "date": "2024-01-02T03:04:05Z", "source": "crawl", "language": "en"}
    assert documents[3].metadata.items() >= {**meta, "charset": "utf-8", "format": "html"}.items()


def frame_without_data(kind: int, content: bytes = b"abcd") -> bytes:
    return (0x184D2A50 + kind).to_bytes(4, "little") + len(content).to_bytes(4, "little") + content


def test_frames_of_zstd_that_hold_no_data_and_dictionaries(tmp_path: Path) -> None:
    """As pzstd begins each of its frames, and as archives of many small records have a dictionary."""
    samples: list[Any] = [record(i, PAGE + random.Random(i).randbytes(99).hex().encode()) for i in range(200)]
    dictionary = zstandard.train_dictionary(5000, samples)
    packed = map(zstandard.ZstdCompressor(dict_data=dictionary).compress, RECORDS)
    for content in (
        b"".join(frame_without_data(0) + Z.compress(one) for one in RECORDS),
        frame_without_data(13, dictionary.as_bytes()) + b"".join(packed),
    ):
        documents, left_out = archive(tmp_path, content, "a.warc.zst")
        assert [document.text for document in documents] == [PAGE.decode()] * 4 and not left_out
    (tmp_path / "a.jsonl.zst").write_bytes(frame_without_data(0) + Z.compress(b'{"text": "x"}'))
    (tmp_path / "a.html.zst").write_bytes(frame_without_data(0) + Z.compress(PAGE))
    assert [one.text for one in read(LinesReader(str(tmp_path), "a"))[0]] == ["x"]
    assert [one.text for one in read(FolderReader(str(tmp_path), "a"))[0]] == [PAGE.decode()]


def test_addresses_of_wget_and_languages_by_header_and_attribute(tmp_path: Path) -> None:
    """Wget writes `<http://...>`, which no block list would have; WET files say their languages in a header."""
    page = b"<html%s><body%s><p>x</p></body></html>"
    wet = record(0, b"x", kind=b"conversion").replace(
        b"WARC-Date", b"WARC-Identified-Content-Language: deu,eng\r\nWARC-Date"
    )
    records = [
        record(7, page % (b"", b"")).replace(b"http://e.org/7", b"<http://e.org/7>"),
        wet,
        record(0, page % (b"", b""), b"Content-Language: spa, en\r\n"),
        record(0, page % (b" xmlns='x' xml:lang='fr-CA'", b"")),
        record(0, page % (b"", b" lang=hi")),
    ]
    documents, left_out = archive(tmp_path, b"".join(records), "a.warc")
    assert documents[0].metadata["url"] == "http://e.org/7" and not left_out
    assert [one.metadata["language"] for one in documents] == ["", "de", "es", "fr", "hi"]


def test_archives_cut_short_and_broken(tmp_path: Path) -> None:
    members = [gzip.compress(one) for one in RECORDS]
    bulky = gzip.compress(
        b"".join(record(i, b"<p>" + random.Random(i).randbytes(999).hex().encode()) for i in range(4))
    )
    for content in (b"".join(RECORDS)[:-200], b"".join(members)[: -len(members[3]) // 2], bulky[:-200]):
        documents, left_out = archive(tmp_path, content)
        assert 0 < len(documents) < 4 and sum(left_out.values()) == 1 and {*left_out} <= {"cut", "broken file"}
    for cut in range(1, len(members[3]) - 20, 7):  # wherever it ends, the record that ends there is counted
        documents, left_out = archive(tmp_path, b"".join(members[:3]) + members[3][:cut])
        assert len(documents) == 3 and sum(left_out.values()) == 1, (cut, left_out)
    documents, left_out = archive(tmp_path, members[0] + b"zzzz" * 9 + members[1])
    assert len(documents) == 1 and left_out == {"broken file": 1}
    assert archive(tmp_path, b"no archive " * 99)[1] == {"broken file": 1}
    assert archive(tmp_path, b"")[1] == {"archive without records": 1}


def test_what_is_no_page_is_counted_by_kind(tmp_path: Path) -> None:
    image = record(0, b"\x89PNG").replace(b"Content-Type: text/html", b"Content-Type: image/png")
    cut = record(0, PAGE).replace(b"WARC-Date", b"WARC-Truncated: length\r\nWARC-Date")
    records = [record(0, PAGE, status=b"404 Not Found"), record(0, b""), record(0, PAGE, kind=b"request"), image, cut]
    # An archive is no page, and is not unpacked to say so.
    records.append(record(0, gzip.compress(PAGE)[:-9]).replace(b"Content-Type: text/html", b"Content-Type: image/tgz"))
    content = b"".join(map(gzip.compress, [*records, record(0, PAGE, b"Content-Encoding: compress\r\n"), RECORDS[1]]))
    documents, left_out = archive(tmp_path, content)
    kinds = ["status: 404", "empty", "record: request", "no page: image/png", "cut by the crawler", "content encoding"]
    assert len(documents) == 1 and left_out == dict.fromkeys([*kinds, "no page: image/tgz"], 1)


def raw_deflate(body: bytes) -> bytes:
    return zlib.compress(body)[2:-4]


def chunked(body: bytes) -> bytes:
    return (
        b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 99]), body[i : i + 99]) for i in range(0, len(body), 99))
        + b"0\r\n\r\n"
    )


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "br": brotli.compress, "gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "zstd": Z.compress,
    "identity": bytes,
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_content_encodings(name: str, tmp_path: Path) -> None:
    header = f"Content-Encoding: {name}\r\n".encode()
    sent = [ENCODERS[name](PAGE), PAGE]  # the second as crawlers store it, decoded, its header left
    content = b"".join(gzip.compress(record(i, body, header)) for i, body in enumerate(sent))
    content += gzip.compress(record(2, chunked(sent[0]), header + b"Transfer-Encoding: chunked\r\n"))
    documents, left_out = archive(tmp_path, content)
    assert [document.text for document in documents] == [PAGE.decode()] * 3 and not left_out
    if name != "identity":
        with pytest.raises(bodies.Unreadable, match="cut body|broken body"):
            bodies.decoded(sent[0][:-9], name, 10**6)
        with pytest.raises(bodies.Unreadable, match="too long"):
            bodies.decoded(sent[0], name, 100)


HEADERS = {  # of a page in gzip and then in brotli, and of one in gzip alone
    b"Content-Encoding: gzip\r\nContent-Encoding: br\r\n": True,
    b"Content-Encoding: gzip,\r\n\tbr\r\n": True,
    b"Content-Encoding: br\r\n": True,  # the gzip within is not declared
    b"content-encoding: GZIP\r\nTransfer-Encoding: br, Chunked\r\n": True,
    b"Transfer-Encoding: gzip, chunked\r\n": False,
    b"": False,
}


@pytest.mark.parametrize("headers", HEADERS)
def test_encodings_in_several_headers_or_in_none(headers: bytes, tmp_path: Path) -> None:
    """In an archive of zstd, in letters of Russian declared as those of the West: no bytes come as text."""
    page = RUSSIAN.encode("koi8-r")
    body = brotli.compress(gzip.compress(page)) if HEADERS[headers] else gzip.compress(page)
    sent = record(0, chunked(body) if b"hunked" in headers else body, headers)
    sent = sent.replace(b"text/html", b"text/html; charset=ISO-8859-1")
    length = b"Content-Length: %d" % (len(sent) - sent.index(b"HTTP/1.1") - 4)
    sent = re.sub(rb"Content-Length: \d+", length, sent, count=1)
    documents, left_out = archive(tmp_path, Z.compress(sent), "a.warc.zst")
    assert [document.text for document in documents] == [RUSSIAN] and not left_out


def test_encodings_one_in_another_and_bare_deflate() -> None:
    assert bodies.decoded(brotli.compress(gzip.compress(PAGE)), "gzip, br", 10**6) == PAGE
    assert bodies.decoded(raw_deflate(PAGE), "deflate", 10**6) == PAGE
    assert bodies.decoded(gzip.compress(PAGE) * 2, "gzip", 10**6) == PAGE * 2


RUSSIAN = (
    "<p>Всё смешалось в доме Облонских. Жена узнала, что муж был в связи некогда бывшею в их доме француженкою.</p>" * 3
)
META = b"<meta charset=windows-1251>"
CASES = [
    ("ä €".encode(), "iso-8859-1", "ä €", "utf-8"),
    ("<p>naïve “quotes”</p>".encode("cp1252"), "iso-8859-1", "<p>naïve “quotes”</p>", "declared"),
    (META + RUSSIAN.encode("cp1251"), None, META.decode() + RUSSIAN, "meta"),
    (META + RUSSIAN.encode("cp1251"), "latin-1", META.decode() + RUSSIAN, "meta"),
    (RUSSIAN.encode("cp1251"), None, RUSSIAN, "detected"),
    (RUSSIAN.encode("koi8-r"), "nonsense", RUSSIAN, "detected"),
    (RUSSIAN.encode("utf-16"), None, RUSSIAN, "declared"),
    ("<p>ab</p>".encode("utf-16-le"), None, "<p>ab</p>", "detected"),
    ("日本語".encode("iso2022_jp"), "iso-2022-jp", "日本語", "declared"),
    (b"\xef\xbb\xbfa\xff", None, "a\ufffd", "declared"),
    (b"", None, "", "utf-8"),
    ('<a title="café">ab</a>'.encode("cp1252"), "iso-8859-1", '<a title="café">ab</a>', "declared"),  # in marks alone
    (("a " * 40_000 + "café").encode("cp1252"), "iso-8859-1", "a " * 40_000 + "café", "declared"),  # behind the sample
]  # fmt: skip


@pytest.mark.parametrize(("body", "declared", "wanted", "how"), CASES)
def test_charsets(body: bytes, declared: str | None, wanted: str, how: str) -> None:
    assert bodies.text(body, declared) == (wanted, how)


def test_what_expands_a_thousandfold_never_stands_in_memory(tmp_path: Path) -> None:
    """100 MB as a body of 100 KB, and a page of 50 MB: counted, and the next is read."""
    huge = b"<p>" + b"word " * 10_000_000
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        file.write(record(1, huge))
    bomb = gzip.compress(b"\0" * 100_000_000, 1)
    content = (
        gzip.compress(record(0, bomb, b"Content-Encoding: gzip\r\n")) + packed.getvalue() + gzip.compress(RECORDS[2])
    )
    del huge
    tracemalloc.start()
    documents, left_out = archive(tmp_path, content, limit_bytes=2_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(documents) == 1 and left_out == {"too long": 2} and peak < 30_000_000


def test_documents_of_50_mb_are_counted_and_the_next_is_read(tmp_path: Path) -> None:
    """As records and as files, by the default limit of 20 MB; docs/curation.md says what longer ones take."""
    long = "word " * 10_000_000
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": long}) + "\n" + json.dumps({"text": "short"}) + "\n")
    (tmp_path / "a.html").write_text(f"<p>{long}</p>")
    (tmp_path / "b.html").write_bytes(PAGE)
    for reader in (LinesReader(str(tmp_path), "a", glob_pattern="*.jsonl"), FolderReader(str(tmp_path), "b")):
        documents, left_out = read(reader)
        assert len(documents) == 1 and left_out == {"too long": 1}


def test_folders_of_html(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a b.html").write_bytes(PAGE)
    (tmp_path / "empty.htm").write_bytes(b"")
    os.utime(tmp_path / "sub/a b.html", (0, 86400))
    documents, left_out = read(FolderReader(str(tmp_path), "mine", base_url="https://e.org/docs"))
    assert [one.metadata["url"] for one in documents] == ["https://e.org/docs/sub/a%20b.html"]
    assert documents[0].metadata["date"] == "1970-01-02T00:00:00Z" and documents[0].id == "mine/sub/a b.html"
    assert left_out == {"empty": 1}


def test_a_real_folder_is_read_whole_on_one_task_and_on_three() -> None:
    folder = debian.folder("libreoffice-help-de") / "usr"
    everything, left_out = read(FolderReader(str(folder), "help", limit=-1, glob_pattern="**/swriter/guide/*.html"))
    assert len(everything) > 100 and not left_out
    assert {document.metadata["language"] for document in everything} == {"de"}
    shares = [
        FolderReader(str(folder), "help", glob_pattern="**/swriter/guide/*.html").run(None, i, 3) for i in range(3)
    ]
    assert sorted(document.id for share in shares for document in share) == sorted(
        document.id for document in everything
    )


ROWS = [
    {"text": "one", "id": "a", "url": "http://e.org", "date": "2024-05-06", "language": "de", "score": 0.5},
    {"text": "two", "id": "b", "url": None, "date": None, "language": None, "score": float("nan")},
    {"text": None, "id": "c", "url": None, "date": None, "language": None, "score": None},
    {"text": "", "id": "d", "url": None, "date": None, "language": None, "score": None},
]


def check_rows(documents: list[Document], left_out: dict[str, float]) -> None:
    assert [(one.text, one.id) for one in documents] == [("one", "a"), ("two", "b")]
    assert documents[0].metadata.items() >= {"date": "2024-05-06T00:00:00Z", "language": "de", "score": 0.5}.items()
    assert documents[1].metadata.items() >= {"url": "", "date": "", "language": "", "score": None}.items()
    assert left_out == {"without text": 1, "empty": 1}


def test_parquet_and_datasets_on_disk(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    parquet.write_table(table, tmp_path / "a.parquet")
    check_rows(*read(ParquetReader(str(tmp_path), "rows")))
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + b"x" * 50)
    parquet.write_table(table.rename_columns(["content", *table.column_names[1:]]), tmp_path / "c.parquet")
    assert read(ParquetReader(str(tmp_path), "rows"))[1] == {
        "without text": 1,
        "empty": 1,
        "broken file": 1,
        "no such column": 1,
    }
    with pyarrow.ipc.new_stream(tmp_path / "data-00000-of-00001.arrow", table.schema) as file:
        file.write_table(table)
    check_rows(*read(DatasetReader(str(tmp_path), "rows")))
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "other.arrow"}]}))
    assert read(DatasetReader(str(tmp_path), "rows"))[1] == {"no part of the dataset": 1}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, Z.compress])
def test_json_lines(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    end = {bytes: "", gzip.compress: ".gz"}.get(pack, ".zst")
    lines = [
        *map(json.dumps, ROWS),
        "no json",
        "[1]",
        '{"text": 5}',
        '{"text": "' + "x" * 200 + '"}',
        "",
        r'{"text": "\ud800!"}',
    ]
    path = tmp_path / f"a.jsonl{end}"
    path.write_bytes(pack("\n".join(lines).encode()))
    documents, left_out = read(LinesReader(str(tmp_path), "rows", limit_bytes=100))
    assert documents.pop().text == "?!" and left_out.pop("no JSON") == left_out.pop("no record") == 1
    assert left_out.pop("text that is none") == left_out.pop("too long") == 1
    check_rows(documents, left_out)
    if pack is gzip.compress:
        path.write_bytes(path.read_bytes()[:-20])
        assert read(LinesReader(str(tmp_path), "rows"))[1]["broken file"] == 1


def test_lines_are_read_by_what_they_are_and_not_by_their_name(tmp_path: Path) -> None:
    """A mark of UTF-8 before the first line, Latin letters, gzip without its name; bytes for text in Parquet."""
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in ("Größe", "Maß"))
    for name, data in {
        "a": codecs.BOM_UTF8 + lines.encode(), "b": lines.encode("latin-1"), "c": gzip.compress(lines.encode()),
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_bytes(data)
        documents, left_out = read(LinesReader(str(tmp_path / name), "rows"))
        assert [one.text for one in documents] == ["Größe", "Maß"] and not left_out
    parquet.write_table(pyarrow.table({"text": ["Größe".encode(), b"Ma\xdf"]}), tmp_path / "a.parquet")
    assert [one.text for one in read(ParquetReader(str(tmp_path), "rows"))[0]] == ["Größe", "Maß"]


def test_a_file_of_zstd_that_is_cut_is_counted(tmp_path: Path) -> None:
    """zstandard's own reader ends there as at the end of a whole one: half of a file would be gone without a word."""
    chance = random.Random(1)
    data = Z.compress(b"".join(json.dumps({"text": chance.randbytes(200).hex()}).encode() + b"\n" for _ in range(3000)))
    (tmp_path / "a.jsonl.zst").write_bytes(data[: len(data) // 2])
    documents, left_out = read(LinesReader(str(tmp_path), "rows"))
    assert 0 < len(documents) < 3000 and left_out == {"broken file": 1}


@pytest.mark.parametrize("charset", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-32-le"])
def test_lines_in_other_unicodes(charset: str, tmp_path: Path) -> None:
    """Their ends are not where a byte is \\n; also a character that has one, and a file that is compressed."""
    texts = ["Größe", "\u0a0a\u200a 字 🙂", "z" * 5000]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(lines.encode(charset)))
    reader = LinesReader(str(tmp_path), "rows")
    documents, left_out = read(reader)
    assert [one.text for one in documents] == texts and not left_out
    assert reader.stats.stats[f"files in {charset[:6].upper()}"].total == 1


def test_packed_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    for name, head in {"a": b"PK\3\4", "b": b"\x04\x22\x4d\x18", "c": b"7z\xbc\xaf"}.items():
        (tmp_path / f"{name}.jsonl").write_bytes(head + bytes(range(256)))
    left_out = read(LinesReader(str(tmp_path), "rows"))[1]
    assert left_out == {"packed by zip": 1, "packed by lz4": 1, "packed by 7z": 1}


def test_bytes_that_are_no_text_are_no_page(tmp_path: Path) -> None:
    """Images and programs under names and headers of pages."""
    noise = random.Random(1).randbytes(3000)
    for name, head in {"a": b"\x89PNG\r\n\x1a\n", "b": b"GIF89a", "c": b"PK\3\4", "d": b"\x7fELF", "e": b""}.items():
        (tmp_path / f"{name}.html").write_bytes(head + noise)
    assert read(FolderReader(str(tmp_path), "a"))[1] == {"no page: binary": 5}
    sent = [record(0, noise), record(1, b"%PDF-1.5 x"), record(2, b"<p>a\x0c b \x00\x1b</p>")]
    (tmp_path / "crawl").mkdir()
    documents, left_out = archive(tmp_path / "crawl", b"".join(sent), "a.warc")
    assert len(documents) == 1 and left_out == {"no page: binary": 1, "no page: pdf": 1}


def test_pages_are_read_by_what_they_are(tmp_path: Path) -> None:
    """Compressed ones that are called so, UTF-32, a zero that strayed into a page; no document of what is none."""
    page = "<html><body><p>Größe</p></body></html>"
    files = {"a.html.gz": gzip.compress(page.encode()), "b.html": page.encode("utf-32"), "c.html": b"%PDF-1.5 x"}
    files |= {"d.html.zst": Z.compress(page.encode()), "e.html": page.replace("Gr", "\0Gr").encode()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    documents, left_out = read(FolderReader(str(tmp_path), "mine"))
    assert [one.text.replace("\0", "") for one in documents] == [page] * 4 and left_out == {"no page: pdf": 1}


def test_values_that_json_cannot_hold_and_dates() -> None:
    value = {"a": {3, 1}, "b": b"x\xff", "c": [float("inf")], "d": datetime.date(2024, 1, 2), "e": 2**70}
    assert plain(value) == {"a": [1, 3], "b": "x\ufffd", "c": [None], "d": "2024-01-02T00:00:00Z", "e": str(2**70)}
    for date in ("2024-01-02T04:04:05+01:00", "Tue, 02 Jan 2024 03:04:05 GMT", "20240102030405", 1704164645):
        assert iso(date) == "2024-01-02T03:04:05Z"
    assert iso("yesterday") == iso(None) == iso(10**30) == ""


def test_what_panics_is_counted_and_what_ends_the_process_ends_it(tmp_path: Path) -> None:
    """Errors of Rust derive from BaseException, as interrupts do."""
    (tmp_path / "a.jsonl").write_text("{}")
    for name in ("PanicException", "KeyboardInterrupt"):

        class Panicking(LinesReader):
            error = type(name, (BaseException,), {})

            def documents(self, filepath: str) -> Iterator[Document]:
                raise self.error("no")
                yield

        if name == "PanicException":
            assert read(Panicking(str(tmp_path), "rows")) == ([], {"broken file": 1})
        else:
            with pytest.raises(Panicking.error):
                read(Panicking(str(tmp_path), "rows"))


@pytest.mark.parametrize(
    ("said", "code"),
    {
        "en": "en", "eng": "en", "eng_Latn": "en", "en-US": "en", "pt_BR": "pt", "deu": "de", "ceb": "ceb",
        "English": "English", None: "", 3: "",
    }.items(),
)  # fmt: skip
def test_languages_of_records_by_the_code_that_rules_have(said: Any, code: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "language": said}))
    assert read(LinesReader(str(tmp_path), "rows"))[0][0].metadata["language"] == code


def test_a_limit_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="limit_bytes=0"):
        LinesReader(str(tmp_path), "rows", limit_bytes=0)
