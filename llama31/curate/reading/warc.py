"""Archives of the web: WARC in gzip members, one gzip member, zstd, lz4 or plain, by fastwarc.

datatrove 0.10.1 reads with warcio 1.8.1: a body in brotli raises AttributeError, which ends the task, one in x-gzip or
zstd is left out without a word, the last page of an archive cut short comes as if it were whole, and a file that is no
archive ends the task. Here records come from fastwarc as they are, and bodies are decoded within the limit: a page that
would expand beyond it never stands in memory.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from typing import Any

from datatrove.data import Document
from fastwarc.warc import ArchiveIterator

from llama31.curate.reading import bodies
from llama31.curate.reading.bodies import Unreadable
from llama31.curate.reading.documents import CountingReader, declared_language, language_code

PAGES = ("text/html", "application/xhtml+xml")
HEADER_BYTES = 1 << 16
DICTIONARY = b"\x5d"  # begins the frame of zstd in which an archive has one (IIPC, "Use of Zstandard in WARC")


class ArchiveReader(CountingReader):
    """Pages of WARC files; see CountingReader for the arguments.

    Yields responses with status 200 and resources that are HTML, `format` "html", and conversions (WET files), which
    are text already, `format` "text"; `charset` says how it was known (`bodies.text`). Other records are counted by
    type, responses by status or media type; what an archive or a crawler has cut short is left out, as `cut`.
    """

    name = "WARC, counted"

    def documents(self, filepath: str) -> Iterator[Document]:
        """The pages of one archive."""
        with self.data_folder.open(filepath, "rb") as file:
            stream, records, cut = _stream(file), 0, False
            self.place = file.tell
            for record in ArchiveIterator(stream, parse_http=False, auto_decode="none", max_header_len=HEADER_BYTES):
                where = f"{filepath}, record {records}"
                records, cut = records + 1, False
                with self.track_time():
                    try:
                        document = self._document(record, where)
                    except Unreadable as reason:
                        self.left_out(reason, where)
                        cut = reason.kind in ("cut", "record: unknown")  # it ends in its body or in its head
                        continue
                if document is not None:
                    yield document
            if (error := getattr(stream, "error", None)) and not cut:
                raise Unreadable("broken file", f"{type(error).__name__}: {error}")
            if not records:
                raise Unreadable("archive without records")

    def _document(self, record: Any, where: str) -> Document | None:
        kind = str(record.record_type)
        if kind not in ("response", "resource", "conversion"):
            raise Unreadable(f"record: {kind}")
        if truncated := record.headers.get("WARC-Truncated"):
            raise Unreadable("cut by the crawler", truncated)
        block = record.reader.read(self.limit_bytes + 1)
        if len(block) > self.limit_bytes:
            raise Unreadable("too long", f"more than {self.limit_bytes} bytes")
        if not block or len(block) < record.content_length:
            raise Unreadable("cut", f"{len(block)} of {record.content_length} bytes")
        media = record.headers.get("Content-Type") or ""
        headers: dict[str, str] = {}
        if kind == "response":
            headers, block = _http(block)
            media = headers.get("content-type", "")
            self._page(kind, media)
            sent = [one.strip().lower() for one in headers.get("transfer-encoding", "").split(",")]
            if "chunked" in sent:
                block = bodies.joined(block)
            encodings = [headers.get("content-encoding", ""), *(one for one in sent if one != "chunked")]
            block = bodies.decoded(block, ",".join(encodings), self.limit_bytes)
        self._page(kind, media, block)
        text, charset = bodies.text(block, _charset(media))
        bodies.refuse_others(block, text)
        if charset == "replaced":
            self.stat_update("pages with characters that could not be read")
        said = record.headers.get("WARC-Identified-Content-Language") or headers.get("content-language", "")
        language = declared_language(text) or _language(said)
        return self.document(
            text,
            record.record_id or where,
            (record.headers.get("WARC-Target-URI") or "").strip("<> "),  # Wget writes them, as WARC 1.0 had it
            record.headers.get("WARC-Date"),
            where,
            language=language,
            charset=charset,
            format="text" if kind == "conversion" else "html",
        )

    def _page(self, kind: str, media: str, body: bytes = b"<") -> None:
        """Raise Unreadable for what is no page: before archives and others are unpacked, and with the body after it."""
        name = media.split(";")[0].strip().lower()
        if kind == "conversion" or name in PAGES:
            return
        if name in ("", "application/octet-stream", "unknown/unknown") and body.lstrip()[:1] == b"<":
            return
        raise Unreadable("no page: " + (name or "without a media type")[:60])


class _Members:
    """What gzip members hold, up to where they break off; at an error fastwarc would lose all that it has read.

    fastwarc itself says nothing of a member that ends in its first bytes.
    """

    def __init__(self, file: Any) -> None:
        self._file = gzip.GzipFile(fileobj=file)
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, some unless there are no more; `error` then says whether that is the end."""
        try:
            return self._file.read1(size)
        except (EOFError, OSError, zlib.error) as error:
            self.error = error
            return b""

    def tell(self) -> int:
        """How many bytes have been read; fastwarc panics without."""
        return self._file.tell()


def _stream(file: Any) -> Any:
    """What fastwarc can read; of zstd from the first frame that holds data or a dictionary."""
    head, start = file.read(8), 0
    while head[:1] != DICTIONARY and (length := bodies.skippable(head)):
        start += length
        file.seek(start)
        head = file.read(8)
    file.seek(start)
    return _Members(file) if head[:2] == b"\x1f\x8b" else file


def _language(said: str) -> str:
    """The first of `deu,eng` or `de-AT, en` by ISO 639-1, or ""."""
    name = said.split(",")[0].strip().replace("_", "-").partition("-")[0].lower()
    return language_code(name) if re.fullmatch(r"[a-z]{2,3}", name) else ""


def _http(block: bytes) -> tuple[dict[str, str], bytes]:
    """Headers, by names in lower case, and body of a response; Unreadable where its status is not 200."""
    head, apart, body = block.partition(b"\r\n\r\n")
    if not apart:
        head, apart, body = block.partition(b"\n\n")
    lines = head.decode("latin-1").splitlines()
    status = lines[0].split() if lines else []
    if len(status) < 2 or not status[0].startswith("HTTP/"):
        raise Unreadable("no HTTP")
    if status[1] != "200":
        raise Unreadable("status: " + status[1][:3])
    headers: dict[str, str] = {}
    name = ""
    for line in lines[1:]:
        if line[:1] in (" ", "\t") and name:  # goes on from the line before
            headers[name] = f"{headers[name]} {line.strip()}".strip()
            continue
        first, _, value = line.partition(":")
        name = first.strip().lower()
        before = f"{headers[name]}, " if name in headers and name.endswith("-encoding") else ""
        headers[name] = before + value.strip()
    return headers, body


def _charset(media: str) -> str | None:
    _, apart, rest = media.lower().partition("charset=")
    return rest.split(";")[0].strip(" \"'") if apart else None
