"""What the pages say is there: commands compose, keys and choices, targets, files, links and pictures exist."""

from __future__ import annotations

import functools
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama31 import config
from llama31.command import entry, usage, validate
from llama31.slurm import chains, jobs
from recipes import benchmark
from tests import pages
from tests.conftest import ROOT

SCHEMAS: dict[str, type] = {
    path.stem: getattr(config, "".join(word.capitalize() for word in path.stem.split("_")))
    for path in sorted(ROOT.glob("recipes/[a-z]*.py"))
}
GROUPS = usage.groups(config.Pretrain, [entry.CONF])
SECTIONS = {name.split(".")[0] for schema in SCHEMAS.values() for name, _, _ in usage.keys(schema) if "." in name}
ELSEWHERE = {"torch", "device", *jobs.SHORT}  # torch==2.14.1 and device="cuda"; short names of recipes.submit
FILE = re.compile(r"\.(py|json|jsonl|yaml|md|html|model)$")


def processes(words: list[str]) -> int:
    return int(words[words.index("--nproc-per-node") + 1]) if "--nproc-per-node" in words else 1


def problems(words: list[str], complete: bool) -> list[str]:
    """What is wrong with the arguments of a command that runs a recipe; what is left out counts in `complete` ones."""
    at = next(i for i, word in enumerate(words) if word.startswith("recipes."))
    name, arguments = words[at].removeprefix("recipes."), [word for word in words[at + 1 :] if word != "..."]
    if name not in SCHEMAS:
        return [f"there is no recipes/{name}.py"]
    if name == "submit":
        return submission(arguments)
    arguments = benchmark.expanded(arguments) if name == "benchmark" else arguments
    options, overrides = entry._parsed(SCHEMAS[name], name, arguments)
    try:
        run = entry.compose(SCHEMAS[name], options.config_name, overrides, options.config_dir)
        validate.validate(run, processes(words) if complete else None)
    except config.ConfigError as error:
        return [str(issue) for issue in error.issues if complete or issue.value is not config.MISSING]
    return []


def submission(arguments: list[str]) -> list[str]:
    """Of a job: whether its own keys are known, the recipe is, and each of the others is one of that recipe's."""
    own, others = jobs.split(arguments)
    if any(text.startswith("chain=") for text in own):
        options, overrides = entry._parsed(config.Submit, "submit", own)
        run = entry.compose(config.Submit, options.config_name, overrides, options.config_dir)
        return [str(issue) for issue in chains.stages(run.chain, others)[2]]
    wrong = [text for text in own if usage.find(config.Submit, text.partition("=")[0]) is None]
    named = [text.partition("=")[2] for text in own if text.startswith("submit.recipe=")]
    wrong += [name for name in named if name not in jobs.SCHEMAS]
    return wrong + [text for name in named for text in others if not known(text.partition("=")[0], jobs.SCHEMAS[name])]


@functools.cache
def known(key: str, *schemas: type) -> bool:
    """Whether one of the schemas has the key, or the section `key.*`, or there is such a group."""
    name = key.removesuffix(".*")
    return name in GROUPS or any(usage.find(one, name) or usage.is_section(one, name) for one in schemas)


def shell(line: str) -> Iterator[list[str]]:
    """The words of each command of a line."""
    for part in re.split(r"&&|;|\|", line):
        yield shlex.split(part, comments=True)


def test_readme_is_short() -> None:
    assert len(pages.text("README.md").split()) <= 1500


def test_every_page_with_commands_is_run() -> None:
    assert set(pages.ORDER) == {page for page in pages.ALL if pages.blocks(page, "sh")} | {"docs/data.md"}


@pytest.mark.parametrize("page", pages.ALL)
def test_blocks_are_of_a_kind_that_is_tested(page: str) -> None:
    opened = re.findall(r"^```(.*)$", pages.text(page), re.MULTILINE)[::2]
    assert set(opened) <= {"sh", "console", "yaml", "text"}
    assert all(line.startswith(("$ ", "  ")) for block in pages.blocks(page, "console") for line in block.splitlines())


@pytest.mark.parametrize("page", pages.ALL)
def test_commands_that_are_not_run_compose(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages.write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    issues = {}
    for line in pages.console(page):
        for words in shell(line):
            if any(re.fullmatch(r"recipes\.\w+", word) for word in words):
                issues[line] = problems(words, complete=True)
    for code in pages.inline(page):
        if re.match(r"(.*-m )?recipes\.[a-z_]+( |$)", code):
            issues[code] = problems(shlex.split(code), complete=False)
    assert not {line: wrong for line, wrong in issues.items() if wrong}


@pytest.mark.parametrize("page", pages.ALL)
def test_keys_and_choices_exist(page: str) -> None:
    wrong = []
    for code in pages.inline(page):
        for word in code.replace("'", "").split():
            given = re.match(r"([a-z_]+(?:\.[A-Za-z_*]+)*)(?:=([\w-]*)|$)", word)
            if given is None or given[1] in ELSEWHERE or word.startswith("stages.") or FILE.search(word):
                continue
            key, value = given.groups()
            said = value is not None or ("." in key and key.split(".")[0] in SECTIONS)
            if said and not known(key, *SCHEMAS.values()):
                wrong.append(word)
            if key in GROUPS and value and value.islower() and value not in {*GROUPS[key], "mine", "small"}:
                wrong.append(word)
    assert not wrong


@pytest.mark.parametrize("page", pages.ALL)
def test_targets_modules_and_paths_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", pages.text("Makefile"), re.MULTILINE))
    wrong = []
    for code in [*pages.inline(page), *pages.console(page)]:
        if (made := re.match(r"make ([a-z-]+)", code)) and made[1] not in targets:
            wrong.append(code)
        module = re.search(r"-m ((?:tests|recipes)[.\w]*)", code)
        if (
            module
            and module[1] != "recipes.NAME"
            and not any((ROOT / f"{module[1].replace('.', '/')}{end}").exists() for end in (".py", "/"))
        ):
            wrong.append(code)
        path = re.match(r"(?:llama31|recipes|tests|slurm|conf|docs|findings|benchmarks)/[\w/.-]*", code)
        if path and not (ROOT / path[0]).exists():
            wrong.append(code)
    assert not wrong


@pytest.mark.parametrize("page", pages.ALL)
def test_links_lead_somewhere(page: str) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", pages.prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in pages.anchors(file.resolve().relative_to(ROOT).as_posix())):
            wrong.append(target)
    assert not wrong


def test_every_page_can_be_reached() -> None:
    linked = {Path(target).name for target in re.findall(r"\]\(([^)\s#]+)", pages.text("README.md"))}
    assert {path.name for path in ROOT.glob("docs/*.md")} <= linked


def test_table_of_packages_is_true() -> None:
    rows = pages.text("docs/architecture.md").split("| package | |\n")[1].split("\n\n")[0].splitlines()[1:]
    table = {row.split("`")[1].rstrip("/"): set(re.findall(r"`([a-z_]+)`", row.split("|")[2])) for row in rows}
    assert table.keys() == {path.parent.name for path in (ROOT / "llama31").glob("*/__init__.py")}
    for package, modules in table.items():
        files = list((ROOT / "llama31" / package).rglob("*.py"))
        assert modules <= {path.stem for path in files} | {path.parent.name for path in files}, package


def test_ten_rows_of_the_readme_stand_beside_the_whole_table() -> None:
    rows = pages.text("README.md").split("| what | CPU | GPU |\n")[1].split("\n\n")[0].splitlines()[1:]
    assert len(rows) == 10 and len(pages.text("docs/verified.md").split("\n| ")) > 40


def test_every_recipe_stands_in_the_readme_and_in_the_picture() -> None:
    drawn = set(re.findall(r'class="code[^"]*">([^<]+)<', pages.text("docs/way.svg")))
    names = {name for code in drawn for name in code.split() if name not in ("·", "--config-name")}
    assert names <= {path.stem for path in (ROOT / "conf").glob("*.yaml")}
    assert SCHEMAS.keys() - {"benchmark"} <= names and SCHEMAS.keys() <= set(pages.inline("README.md"))


def test_pictures_are_what_the_script_draws() -> None:
    drawn = runpy.run_path(str(ROOT / "docs/pictures.py"))["pictures"]()
    assert drawn.keys() == {path.name for path in ROOT.glob("docs/*.svg")}
    for name, svg in drawn.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == svg, f"{name}: run python docs/pictures.py"
