"""Folders of HTML, and records with text: JSON lines, Parquet, and datasets that `save_to_disk` has written."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import urllib.parse
from collections.abc import Iterator
from typing import Any

import orjson
from datatrove.data import Document
from datatrove.io import DataFolderLike
from fsspec.compression import compr

from llama31.curate.reading import bodies
from llama31.curate.reading.bodies import Unreadable
from llama31.curate.reading.documents import LIMIT_BYTES, CountingReader, declared_language, language_code
from llama31.tokens.compressed import ZstdFrames

ROWS = 64  # of a Parquet file at a time
PIECE = 1 << 12  # bytes of a compressed file at a time, which expand to 128 MB at most
PACKED = {b"PK\3\4": "zip", b"\x04\x22\x4d\x18": "lz4", b"7z\xbc\xaf": "7z"}
# Which bytes of a file are zero that begins with a character of ASCII.
ZEROS: dict[tuple[bool, ...], str] = {
    (False, True, True, True): "utf-32-le", (True, True, True, False): "utf-32-be",
    (False, True): "utf-16-le", (True, False): "utf-16-be",
}  # fmt: skip
WINDOW = 1 << 31  # bytes that a frame of zstd may refer back to


class FolderReader(CountingReader):
    """Files of HTML: `date` is when a file was last changed, `url` its path below the folder, behind `base_url`.

    Other arguments as those of CountingReader. Links are not followed out of the folder by anything but the system.
    """

    name = "HTML files"
    glob = "**/*.htm*"

    def __init__(self, data_folder: DataFolderLike, source: str, base_url: str = "", **others: Any) -> None:
        super().__init__(data_folder, source, **others)
        self.base_url = base_url

    def documents(self, filepath: str) -> Iterator[Document]:
        """The page of a file, if it has one."""
        with self.track_time():
            with self.data_folder.open(filepath, "rb", compression=None) as file:
                body = file.read(self.limit_bytes + 1)
            if len(body) > self.limit_bytes:
                raise Unreadable("too long", f"more than {self.limit_bytes} bytes")
            if (packed := bodies.compression(body)) in ("gzip", "zstd"):
                body = bodies.decoded(body, packed, self.limit_bytes)
            elif packed:
                raise Unreadable("no page: " + packed)
            text, charset = bodies.text(body)
            bodies.refuse_others(body, text)
            if charset == "replaced":
                self.stat_update("pages with characters that could not be read")
            url = self.base_url.rstrip("/") + "/" + urllib.parse.quote(filepath) if self.base_url else filepath
            others = {"language": declared_language(text), "charset": charset, "format": "html"}
            page = self.document(text, f"{self.source}/{filepath}", url, self._changed(filepath), filepath, **others)
        if page is not None:
            yield page

    def _changed(self, filepath: str) -> Any:
        try:
            return self.data_folder.modified(filepath)
        except NotImplementedError:  # of file systems that keep no times
            return None


class RecordsReader(CountingReader):
    """What readers of records share: which of their columns mean what. All others are kept in metadata, as JSON can.

    Args:
        text_key, id_key, url_key, date_key, language_key: columns; those but `text_key` may be missing.
        format: "text", or "html" where the texts are pages that have yet to be extracted.
    Others as those of CountingReader.
    """

    def __init__(
        self,
        data_folder: DataFolderLike,
        source: str,
        text_key: str = "text",
        id_key: str = "id",
        url_key: str = "url",
        date_key: str = "date",
        language_key: str = "language",
        format: str = "text",
        **others: Any,
    ) -> None:
        super().__init__(data_folder, source, **others)
        self.columns = {"text": text_key, "id_": id_key, "url": url_key, "date": date_key, "language": language_key}
        self.format = format

    def record(self, row: Any, where: str) -> Document | None:
        """A row as a document; None, counted, where it has no text."""
        if not isinstance(row, dict):
            self.left_out(Unreadable("no record", f"a {type(row).__name__}"), where)
            return None
        taken: dict[str, Any] = {key: row.pop(column, None) for key, column in self.columns.items()}
        nested = row.pop("metadata", None)
        row = (nested if isinstance(nested, dict) else {} if nested is None else {"metadata": nested}) | row
        for key in ("url", "date", "language"):  # as datatrove writes them
            taken[key] = row.pop(self.columns[key], None) if taken[key] is None else taken[key]
        if isinstance(taken["text"], bytes):
            taken["text"] = bodies.text(taken["text"])[0]
        if not isinstance(taken["text"], str):
            kind = "without text" if taken["text"] is None else "text that is none"
            self.left_out(Unreadable(kind, f"columns {sorted(map(str, row))}; text_key={self.columns['text']}"), where)
            return None
        if len(taken["text"]) > self.limit_bytes:
            self.left_out(Unreadable("too long", f"more than {self.limit_bytes} characters"), where)
            return None
        id_, url = (str(taken[key]) if taken[key] is not None else "" for key in ("id_", "url"))
        language = language_code(taken["language"])
        if not language and self.format == "html":
            language = declared_language(taken["text"])
        others = {key: value for key, value in row.items() if key not in ("source", "text", "id_", "where", "self")}
        if row.get("format") not in (None, "text", "html"):  # a column of theirs
            others["given_format"] = row["format"]
        others |= {"format": self.format, "language": language}
        return self.document(taken["text"], id_ or f"{self.source}/{where}", url, taken["date"], where, **others)


class LinesReader(RecordsReader):
    """JSON lines, compressed or not. Lines with NaN are read, those that are no JSON or too long counted.

    UTF-16 and UTF-32 are read as well, and such files counted.
    """

    name = "JSON lines, counted"
    glob = "**/*.jsonl*"

    def documents(self, filepath: str) -> Iterator[Document]:
        """The documents of a file."""
        with (
            self.data_folder.open(filepath, "rb", compression=None) as raw,
            _expanded(raw) as file,
        ):
            self.place = raw.tell
            buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)
            if wide := _wide(buffered.peek(4)[:4]):
                self.stat_update(f"files in {wide[:6].upper()}")
                buffered = io.BufferedReader(_Recoded(buffered, wide))  # type: ignore[type-var]
            for number, line in enumerate(_lines(buffered, 2 * self.limit_bytes + LIMIT_BYTES)):
                line = line.removeprefix(codecs.BOM_UTF8) if line and not number else line
                where = f"{filepath}:{number + 1}"
                with self.track_time():
                    document = self._line(line, where)
                if document is not None:
                    yield document

    def _line(self, line: bytes | None, where: str) -> Document | None:
        if line is None:
            self.left_out(Unreadable("too long", "a line"), where)
            return None
        if not line.strip():
            return None
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            try:  # NaN, which orjson refuses, and bytes that are not UTF-8
                row = json.loads(bodies.text(line)[0])
                self.stat_update("lines that are not strict JSON")
            except (ValueError, RecursionError) as error:
                self.left_out(Unreadable("no JSON", str(error)), where)
                return None
        return self.record(row, where)


def _expanded(raw: Any) -> Any:
    """What a file holds, compressed or not; what lies below it can be asked where it is."""
    head = raw.read(8)
    kind = bodies.compression(head)
    if other := next((name for mark, name in PACKED.items() if head.startswith(mark)), None):
        raise Unreadable(f"packed by {other}", "unpack it; what gzip, zstd, bz2 and xz compress is read")
    raw.seek(0)
    if kind == "zstd":
        return contextlib.nullcontext(io.BufferedReader(ZstdFrames(raw, PIECE, WINDOW), 1 << 20))
    return compr[kind](raw, mode="r") if kind else contextlib.nullcontext(raw)


def _wide(head: bytes) -> str | None:
    """In which Unicode of two or four bytes a file is, by its mark or the zeros of its first character."""
    marks = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"}
    for mark, name in {**marks, codecs.BOM_UTF16_BE: "utf-16"}.items():
        if head.startswith(mark):
            return name
    zeros = tuple(byte == 0 for byte in head)
    return ZEROS.get(zeros) or ZEROS.get(zeros[:2]) if any(head) else None


class _Recoded(io.RawIOBase):
    """A file of another Unicode, as UTF-8; what is none becomes the sign for it."""

    def __init__(self, file: Any, charset: str) -> None:
        self._file, self._decoder, self._rest = file, codecs.getincrementaldecoder(charset)("replace"), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = self._file.read1(PIECE)
            self._rest = self._decoder.decode(piece, not piece).encode("utf-8", "replace")
            if not piece:
                break
        taken = min(len(buffer), len(self._rest))
        buffer[:taken], self._rest = self._rest[:taken], self._rest[taken:]
        return taken


def _lines(buffered: io.BufferedReader, limit: int) -> Iterator[bytes | None]:
    """Lines of a file, None for one that is longer than the limit, of which no more than that is held."""
    while line := buffered.readline(limit):
        if len(line) < limit or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = buffered.readline(limit)
        yield None


class ArrowReader(RecordsReader):
    """What readers share that need pyarrow, which takes 28 MB: it is imported where there are such files."""

    def broken(self) -> tuple[type[Exception], ...]:
        """What is raised where a file cannot be read on."""
        import pyarrow

        return *super().broken(), pyarrow.ArrowException


class ParquetReader(ArrowReader):
    """Parquet files, some rows at a time. datatrove's skips rows without text with one warning, and counts none."""

    name = "Parquet, counted"
    glob = "**/*.parquet"

    def documents(self, filepath: str) -> Iterator[Document]:
        """The documents of a file."""
        from pyarrow import parquet

        with self.data_folder.open(filepath, "rb") as file, parquet.ParquetFile(file, pre_buffer=False) as rows:
            _has(rows.schema_arrow, self.columns["text"])
            self.place = file.tell
            for number, batch in enumerate(rows.iter_batches(batch_size=ROWS)):
                yield from _documents(self, batch, f"{filepath}, rows {number * ROWS} on")


class DatasetReader(ArrowReader):
    """Datasets on disk, as Hugging Face's `save_to_disk` writes them: their Arrow files, without importing datasets."""

    name = "Datasets on disk"
    glob = "**/*.arrow"

    def documents(self, filepath: str) -> Iterator[Document]:
        """The documents of an Arrow file that the dataset's state names; others beside it are caches of it."""
        import pyarrow

        folder, _, name = filepath.rpartition("/")
        state_path = f"{folder}/state.json" if folder else "state.json"
        if self.data_folder.exists(state_path):
            with self.data_folder.open(state_path, "rb") as file:
                state = orjson.loads(file.read())
            if name not in {one.get("filename") for one in state.get("_data_files", [])}:
                raise Unreadable("no part of the dataset", f"state.json beside it does not name {name}")
            if state.get("_indices_files"):
                raise Unreadable("dataset by indices", "save it after flatten_indices()")
        with self.data_folder.open(filepath, "rb") as file, pyarrow.ipc.open_stream(file) as batches:
            _has(batches.schema, self.columns["text"])
            self.place = file.tell
            for number, batch in enumerate(batches):
                yield from _documents(self, batch, f"{filepath}, batch {number}")


def _has(schema: Any, column: str) -> None:
    if column not in schema.names:
        raise Unreadable("no such column", f"text_key={column}; there are {', '.join(schema.names)}")


def _documents(reader: RecordsReader, batch: Any, where: str) -> Iterator[Document]:
    for i in range(batch.num_rows):  # one at a time: a batch of lists would stand in memory twice
        with reader.track_time():
            row = {name: batch.column(j)[i].as_py() for j, name in enumerate(batch.schema.names)}
            document = reader.record(row, f"{where}, {i}")
        if document is not None:
            yield document
