"""Text in seven languages with known labels: LibreOffice's help, without the paragraphs that nobody has translated."""

from __future__ import annotations

from pathlib import Path

from llama31.curate.extraction import page
from tests.curate import debian

LANGUAGES = {"en": "en-us", "de": "de", "fr": "fr", "it": "it", "pt": "pt", "hi": "hi", "es": "es"}
SHORTEST = 300  # characters: of Hindi's pages most are English, and little remains


def texts(limit: int) -> list[tuple[str, str, str]]:
    """(language, path within the help, text) of the same `limit` pages in every language that has them translated."""
    pages, result = _pages(limit), []
    originals = {name: _text(path) for name, path in pages.items()}
    for language, package in LANGUAGES.items():
        for name, original in originals.items():
            text = original
            if language != "en":
                path = pages[name].as_posix().replace("libreoffice-help-en-us", f"libreoffice-help-{package}")
                place = Path(path.replace("/help/en-US/", f"/help/{package}/"))
                debian.folder(f"libreoffice-help-{package}")
                if not place.is_file():
                    continue
                known = set(original.splitlines())
                text = "\n".join(line for line in _text(place).splitlines() if line not in known)
            if len(text) >= SHORTEST:
                result.append((language, name, text))
    return result


def english(limit: int) -> dict[str, str]:
    """The English pages alone, by their path within the help."""
    return {name: text for name, path in _pages(limit).items() if len(text := _text(path)) >= SHORTEST}


def _pages(limit: int) -> dict[str, Path]:
    return {_inner(path): path for path in debian.files("libreoffice-help-en-us", limit=limit)}


def _inner(path: Path) -> str:
    return path.as_posix().partition("/help/en-US/")[2]


def _text(path: Path) -> str:
    return page.extract(path.read_bytes().decode("utf-8", "replace")).text
