"""What all readers share: documents with url, date, source and language, and a count of everything else, by kind."""

from __future__ import annotations

import datetime
import email.utils
import math
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import zstandard
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolderLike
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.utils.logging import logger

from llama31.curate.codes import language_of
from llama31.curate.reading.bodies import Unreadable

LIMIT_BYTES = 20_000_000
BROKEN = (OSError, EOFError, ValueError, zlib.error, zstandard.ZstdError)
LANGUAGE = re.compile(r"<(?:html|body)[^>]{0,500}?\s(?:xml:)?lang\s*=\s*[\"']?([A-Za-z]{2,3})\b", re.IGNORECASE)


class CountingReader(BaseDiskReader):
    """A reader of datatrove's that names and counts what it does not yield, and never fails for a file.

    Statistics: `left out: KIND` for what holds no page that can be read, with one example of each kind in the log.

    Args:
        data_folder: where the files lie; any path that fsspec knows.
        source: metadata's `source` of every document.
        language: metadata's `language` where a document does not say it, ISO 639-1; "" for unknown.
        limit_bytes: the longest document, decoded; longer ones are counted and left out. 20 MB, ours.
        glob_pattern: which files, `**/*.warc.gz`; without `**/` only those of the folder itself.
        limit: how many documents a task reads; -1 for all.
        paths_file: a file with a path per line, instead of all that lies there.
    """

    glob = "**/*"

    def __init__(
        self,
        data_folder: DataFolderLike,
        source: str,
        language: str = "",
        limit_bytes: int = LIMIT_BYTES,
        glob_pattern: str | None = None,
        limit: int = -1,
        paths_file: str | None = None,
    ) -> None:
        if limit_bytes < 1:
            raise ValueError(f"limit_bytes={limit_bytes} would leave out every document; give a positive number")
        super().__init__(data_folder, paths_file, limit, glob_pattern=glob_pattern or self.glob)
        self.source, self.language, self.limit_bytes = source, language, limit_bytes
        self._named: set[str] = set()
        self.files_read = 0
        self.place: Callable[[], int] = int  # where in the file at hand it is, in bytes of it; 0 where that is unknown

    def left_out(self, reason: Unreadable, where: str) -> None:
        """Count one that is not yielded; the first of each kind is logged."""
        self.stat_update(f"left out: {reason.kind}")
        if reason.kind not in self._named:
            self._named.add(reason.kind)
            logger.warning(f"{where} is left out, as others may be: {reason}")

    def read_file(self, filepath: str) -> DocumentsPipeline:
        """The documents of a file; where it breaks off, it is counted and what follows in it is lost."""
        try:
            yield from self.documents(filepath)
        except Unreadable as reason:
            self.left_out(reason, filepath)
        except self.broken() as error:
            self.left_out(Unreadable("broken file", f"{type(error).__name__}: {error}"), filepath)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of libraries in Rust, as fastwarc's, and no Exception
                raise
            self.left_out(Unreadable("broken file", f"{type(error).__name__}: {error}"), filepath)
        self.files_read, self.place = self.files_read + 1, int

    def broken(self) -> tuple[type[Exception], ...]:
        """What is raised where a file cannot be read on."""
        return BROKEN

    def documents(self, filepath: str) -> Iterator[Document]:
        """The documents of a file."""
        raise NotImplementedError

    def document(self, text: str, id_: str, url: str, date: Any, where: str, **others: Any) -> Document | None:
        """A document with its metadata; None, counted, where it has no text."""
        if not text.strip():
            self.left_out(Unreadable("empty"), where)
            return None
        language = others.pop("language", "") or self.language
        when = iso(date)
        if not when and date not in (None, ""):
            self.stat_update("dates that are none")
        metadata = {"url": url, "date": when, "source": self.source, "language": language}
        return Document(text=plain(text), id=plain(id_), metadata=plain(metadata | others))


def declared_language(html: str) -> str:
    """What a page says of its language in its first tag or its body's, `en` of `en-GB`, or ""."""
    match = LANGUAGE.search(html[:5000])
    return language_code(match[1].lower()) if match else ""


def language_code(said: Any) -> str:
    """ISO 639-1 of what a record says of its language, `en` of `en-US`, `eng`, `eng_Latn`; "" where it is no text."""
    name = said.strip() if isinstance(said, str) else ""
    if match := re.fullmatch(r"([A-Za-z]{2,3})[-_](?:[A-Za-z]{2}|\d{3})", name):
        name = match[1].lower()
    return language_of(name)[0]


def iso(date: Any) -> str:
    """A date as `2024-01-02T03:04:05Z`: of ISO 8601, of HTTP, of seconds since 1970; "" where it is none."""
    try:
        if isinstance(date, str):
            text = date.strip()
            if re.fullmatch(r"\d{14}", text):
                when = datetime.datetime.strptime(text, "%Y%m%d%H%M%S")
            elif text[:4].isdigit():
                when = datetime.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
            else:
                when = email.utils.parsedate_to_datetime(text)
        elif isinstance(date, int | float) and not isinstance(date, bool):
            when = datetime.datetime.fromtimestamp(date, datetime.UTC)
        elif isinstance(date, datetime.datetime):
            when = date
        elif isinstance(date, datetime.date):
            when = datetime.datetime(date.year, date.month, date.day)
        else:
            return ""
        when = when.replace(tzinfo=datetime.UTC) if when.tzinfo is None else when.astimezone(datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    return when.replace(microsecond=0).isoformat().replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """A value that JSON can hold: NaN and infinities as null, sets sorted, bytes as text, dates by ISO 8601."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):  # halves of surrogate pairs, which JSON can escape and UTF-8 cannot hold
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, int):  # beyond 64 bits orjson, which datatrove writes with, refuses them
        return value if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(inner) for inner in value), key=orjson.dumps)
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return iso(value) or str(value)
