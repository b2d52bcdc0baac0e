"""Files as people attach them -> the text that a prompt shows. Each kind by a library, which is read when it is needed.

.txt .md .py .csv .tsv .json .jsonl as they are; .html by resiliparse, .xml by lxml, .pdf by pypdf, .docx by
python-docx, .pptx by python-pptx, .xlsx by openpyxl: optional packages (requirements-files.txt).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

TABLES = (".csv", ".tsv", ".json", ".jsonl")  # that Python without packages reads: questions need its interpreter
PLAIN = (".txt", ".md", ".py", *TABLES)
PACKAGES = {".pdf": "pypdf", ".docx": "python-docx", ".pptx": "python-pptx", ".xlsx": "openpyxl"}


class UnreadableFile(ValueError):
    """A file that gives no text; the message is a reason that can be counted."""


@dataclass(frozen=True)
class AttachedFile:
    """A file's name, its bytes, and what it says."""

    name: str
    content: bytes
    text: str

    @property
    def kind(self) -> str:
        """Its suffix, in small letters."""
        return suffix(self.name)

    @property
    def is_table(self) -> bool:
        """Whether questions on it are answered by working on it."""
        return self.kind in TABLES


def suffix(name: str) -> str:
    """The suffix of a name in small letters."""
    return PurePath(name).suffix.casefold()


def read(name: str, content: bytes) -> AttachedFile:
    """A file with its text. Raises UnreadableFile, and ImportError where the package of its kind is missing."""
    kind = suffix(name)
    if kind not in READERS:
        raise UnreadableFile(f"file of no kind that is read: {kind or 'no suffix'}")
    try:
        text = READERS[kind](content)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableFile(f"{kind} that cannot be read: {type(error).__name__}") from error
    text = re.sub(r"\n{3,}", "\n\n", text.replace("\0", "")).strip()
    if not text:
        raise UnreadableFile(f"{kind} without text")
    return AttachedFile(name, content, text)


def missing(kinds: list[str]) -> list[str]:
    """Packages that are not here, of those that read these kinds."""
    import importlib.util

    modules = {".pdf": "pypdf", ".docx": "docx", ".pptx": "pptx", ".xlsx": "openpyxl"}
    return [PACKAGES[kind] for kind in kinds if kind in modules and importlib.util.find_spec(modules[kind]) is None]


def _plain(content: bytes) -> str:
    return content.decode("utf-8-sig", "replace")


def _html(content: bytes) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return str(extract_plain_text(_plain(content), main_content=False, alt_texts=False, links=False))


def _xml(content: bytes) -> str:
    """The file as it is, once it was parsed: its tags say what the values are. Entities stay as they are written."""
    from lxml import etree

    etree.fromstring(content, etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False))
    return _plain(content)


def _pdf(content: bytes) -> str:
    import pypdf

    return "\n\n".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(content)).pages)


def _docx(content: bytes) -> str:
    import docx
    from docx.table import Table

    parts = docx.Document(io.BytesIO(content)).iter_inner_content()
    return "\n".join(_rows(_cells(part)) if isinstance(part, Table) else part.text for part in parts)


def _cells(table: object) -> Iterator[list[str]]:
    for row in table.rows:  # type: ignore[attr-defined]
        yield [cell.text for cell in row.cells]


def _pptx(content: bytes) -> str:
    import pptx

    slides = []
    for number, slide in enumerate(pptx.Presentation(io.BytesIO(content)).slides, start=1):
        texts = [shape.text_frame.text for shape in slide.shapes if shape.has_text_frame]
        texts += [_rows(_cells(shape.table)) for shape in slide.shapes if shape.has_table]
        slides.append("\n".join([f"Slide {number}", *texts]))
    return "\n\n".join(slides)


def _xlsx(content: bytes) -> str:
    import openpyxl

    book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
    sheets = []
    for sheet in book.worksheets:
        rows = ([("" if value is None else str(value)) for value in row] for row in sheet.iter_rows(values_only=True))
        sheets.append(f"Sheet {sheet.title}\n{_rows(rows)}")
    return "\n\n".join(sheets)


def _rows(rows: Iterator[list[str]]) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue()


READERS: dict[str, Callable[[bytes], str]] = {
    **dict.fromkeys(PLAIN, _plain), ".html": _html, ".htm": _html, ".xml": _xml, ".pdf": _pdf, ".docx": _docx,
    ".pptx": _pptx, ".xlsx": _xlsx,
}  # fmt: skip
