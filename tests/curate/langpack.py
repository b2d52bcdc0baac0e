"""Thai and Hindi that people wrote, and the English of it: what Firefox says, the messages of a file as a page."""

from __future__ import annotations

import html
import re
import zipfile

from tests.curate import debian

PACKAGES = {"en": "en-gb", "th": "th", "hi": "hi-in"}
SCRIPTS = {"th": "[\u0e00-\u0e7f]", "hi": "[\u0900-\u097f]"}
NAMED = re.compile(r"(?:(-?[A-Za-z][\w-]*) *|\s+(\.[\w-]+) *)=(.*)")
SHORTEST, LEAST = 40, 600  # characters of a message, and of a page


def messages(language: str) -> dict[tuple[str, str], str]:
    """Texts without their marks, by file of Fluent and name."""
    (pack,) = debian.files(f"firefox-esr-l10n-{PACKAGES[language]}", "*.xpi")
    found: dict[tuple[str, str], str] = {}
    with zipfile.ZipFile(pack) as archive:
        for path in sorted(archive.namelist()):
            if path.endswith(".ftl"):
                name, key = path.partition("localization/")[2].partition("/")[2], ("", "")
                for line in archive.read(path).decode().split("\n"):
                    if match := NAMED.match(line):
                        key = (name, match[1] or key[1].partition(".")[0] + match[2])
                        found[key] = match[3]
                    elif line.startswith(" ") and key in found:
                        found[key] += line
    return {key: _bare(text) for key, text in found.items()}


def _bare(text: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", "", re.sub(r"\{[^{}]*\}", "Firefox", text)).split())


def pages(language: str) -> dict[str, str]:
    """Pages, HTML, by file: a paragraph for each message that is a sentence or more, in the language's script."""
    texts: dict[str, list[str]] = {}
    for (name, _), text in messages(language).items():
        if len(text) >= SHORTEST and len(re.findall(SCRIPTS[language], text)) > len(text) / 3:
            texts.setdefault(name, []).append(text)
    return {name: _page(language, every) for name, every in texts.items() if sum(map(len, every)) >= LEAST}


def _page(language: str, texts: list[str]) -> str:
    paragraphs = "".join(f"<p>{html.escape(one)}</p>" for one in dict.fromkeys(texts))
    return f"<html lang={language}><body><main>{paragraphs}</main></body></html>"
