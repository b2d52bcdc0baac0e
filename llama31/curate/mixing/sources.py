"""What there is to be mixed: token files by class and language, with their tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from llama31.runs import files

# Report, section 3.1.2: shares of the final mix, in tokens.
SHARES: Mapping[str, float] = {"general": 0.50, "mathematics": 0.25, "code": 0.17, "multilingual": 0.08}
MULTILINGUAL = "multilingual"
MAIN_LANGUAGES = ("en",)
UNKNOWN = "unknown"  # of documents whose language nobody knows


@dataclass(frozen=True)
class CountedSource:
    """One packed source: its name in YAML, the part of the mixture it belongs to, language, tokens, and its folder.

    `packed` is "" for `<data.folder>/<name>`.
    """

    name: str
    part: str
    language: str
    tokens: int
    packed: str = ""


def part_of(kind: str, language: str, main_languages: Collection[str] = MAIN_LANGUAGES) -> str:
    """The part of the mixture that a class in a language belongs to.

    Code and mathematics are that in any language; what is general is multilingual in any but the main ones, which are
    the report's English. What is in no known language stays general.
    """
    foreign = kind == "general" and language not in (*main_languages, UNKNOWN, "")
    return MULTILINGUAL if foreign else kind


def of_folder(folder: str | Path, main_languages: Collection[str] = MAIN_LANGUAGES) -> list[CountedSource]:
    """The packed sources in a folder, each in `CLASS-LANGUAGE`, perhaps with a number behind it, by name.

    Tokens are those of their training split. Raises ValueError where there is none.
    """
    found = []
    for path in sorted(Path(folder).glob("*/packed.json")):
        content = files.read_object(path)
        if content is None:
            raise ValueError(f"folder={folder}: {path} cannot be read; pack it again")
        kind, _, rest = path.parent.name.partition("-")
        language = rest.partition("-")[0]
        part = part_of(kind, language, main_languages)
        found.append(CountedSource(path.parent.name, part, language, int(content["train"]["tokens"])))
    if not found:
        raise ValueError(
            f"folder={folder}: no packed source in it, CLASS-LANGUAGE/packed.json; give that of the tokens"
        )
    return found
