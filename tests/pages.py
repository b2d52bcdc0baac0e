"""The pages that people read, and what tests take out of them: blocks of commands and files, inline code, links."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import ROOT

# In this order their commands go on from each other, in one folder.
ORDER = (
    "README.md",
    "docs/data.md",
    "docs/training.md",
    "docs/evaluation.md",
    "docs/long_context.md",
    "docs/post_training.md",
    "docs/conversion.md",
    "docs/slurm.md",
    "docs/scaling.md",
)
ALL = (
    "README.md",
    "CONTRIBUTING.md",
    "findings/README.md",
    *(f"docs/{x.name}" for x in sorted(ROOT.glob("docs/*.md"))),
)


def text(page: str) -> str:
    """A page, by its path from the root."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language: `sh` for commands that are run, `console` for those that cannot be run here."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(page), re.DOTALL | re.MULTILINE)


def console(page: str) -> list[str]:
    """The commands of the `console` blocks, continued lines joined."""
    joined = [block.replace("\\\n", " ") for block in blocks(page, "console")]
    return [line.removeprefix("$ ") for block in joined for line in block.splitlines() if line.startswith("$ ")]


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.DOTALL | re.MULTILINE)


def inline(page: str) -> list[str]:
    """What stands between single backticks outside of fenced blocks, broken lines joined."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def anchors(page: str) -> set[str]:
    """Names of a page's headings in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def write_files(folder: Path) -> None:
    """The YAML files that the pages show, each under the path that its first line names."""
    for page in ORDER:
        for content in blocks(page, "yaml"):
            path = folder / content.split("\n")[0].removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
