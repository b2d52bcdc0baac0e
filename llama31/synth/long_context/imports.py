"""Which file of a repository imports which: Python by its parser, other languages by their statements' form.

Only what a statement names counts, and only where it can be one file of the repository alone. What a file imports in
other ways (importlib, a build system, classes of the same Java package) is none.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from posixpath import basename, dirname, join, normpath

from llama31.synth.long_context import rust_paths

Files = Mapping[str, str]  # path from the repository's root -> text

SCRIPTS = (".ts", ".tsx", ".js", ".jsx", ".mjs", ".cjs")
HEADERS = (".h", ".hh", ".hpp", ".hxx", ".c", ".cc", ".cpp", ".cxx")
_COMMENT_OR_STRING = re.compile(
    r"(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`", re.DOTALL
)
_FROM = re.compile(
    r"\b(?:import|export)\b[^;'\"`()]{0,4000}?\bfrom\s*(['\"])(?P<a>\.[^'\"\n]*)\1|\bimport\s*(['\"])(?P<b>\.[^'\"\n]*)\3"
    r"|\b(?:require|import)\s*\(\s*(['\"])(?P<c>\.[^'\"\n]*)\5\s*\)"
)
_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*[\"<]([^\">\n]+)[\">]", re.MULTILINE)
_JAVA = re.compile(r"^[ \t]*import\s+(static\s+)?(\w+(?:\.\w+)+)(\.\*)?\s*;", re.MULTILINE)


@dataclass(frozen=True)
class Import:
    """A statement of the file `importer`, at `line` (from 1), that names the file `target`, or `names` in it."""

    importer: str
    target: str
    line: int
    names: tuple[str, ...] = ()


def found(files: Files) -> tuple[list[Import], dict[str, str]]:
    """All imports of one of `files` by another, in order; and the files that could not be read, with the reason."""
    result: list[Import] = []
    unread: dict[str, str] = {}
    known, names = Python(files), Named(files)
    for path, text in sorted(files.items()):
        try:
            result += [one for one in _of(path, text, names, known) if one.target != path]
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # what ast.parse raises, NUL included
            unread[path] = f"not parsed: {type(error).__name__}"
    return result, unread


def language(path: str) -> str | None:
    """The language whose imports are known, by a file's suffix."""
    families = {".py": "python", ".java": "java", ".rs": "rust"}
    families |= dict.fromkeys(SCRIPTS, "typescript") | dict.fromkeys(HEADERS, "cpp")
    return families.get(path[path.rfind(".") :]) if "." in basename(path) else None


class Named(dict[str, str]):
    """Files by path, and the paths by the last part of their names."""

    def __init__(self, files: Files) -> None:
        super().__init__(files)
        self._paths: dict[str, list[str]] = {}
        for path in files:
            self._paths.setdefault(basename(path), []).append(path)

    def only(self, name: str) -> str | None:
        """The one file that a path ends with; None where there are several, or none."""
        found = [one for one in self._paths.get(basename(name), ()) if one == name or one.endswith(f"/{name}")]
        return found[0] if len(found) == 1 else None


def _of(path: str, text: str, files: Named, known: Python) -> Iterable[Import]:
    kind = language(path)
    if kind == "python":
        return known.imports(path, text)
    others: Mapping[str | None, Callable[[str, str, Named], Iterable[Import]]] = {
        "typescript": _scripts, "cpp": _includes, "java": _java, "rust": _rust,
    }  # fmt: skip
    return others[kind](path, text, files) if kind in others else ()


class Python:
    """The modules of a repository by their names: from the package's root, from the repository's, from src or lib."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._named: dict[str, str | None] = {}
        for path in files:
            if path.endswith(".py"):
                for name in set(self._names(path)):
                    self._named[name] = path if self._named.get(name, path) == path else None

    def _names(self, path: str) -> Iterator[str]:
        parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
        yield ".".join(parts)
        if parts[0] in ("src", "lib") and len(parts) > 1:
            yield ".".join(parts[1:])
        folder, inside = dirname(path), [parts[-1]] if not path.endswith("/__init__.py") else []
        while f"{folder}/__init__.py" in self._files:
            inside.insert(0, basename(folder))
            folder = dirname(folder)
        if inside:
            yield ".".join(inside)

    def imports(self, path: str, text: str) -> Iterator[Import]:
        """The imports of a file. Raises SyntaxError or ValueError where it cannot be parsed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strings with odd escapes
            tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if target := self._absolute(path, alias.name):
                        yield Import(path, target, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                yield from self._from(path, node)

    def _from(self, path: str, node: ast.ImportFrom) -> Iterator[Import]:
        names: dict[str, list[str]] = {}
        for alias in node.names:
            inner = self._resolve(path, node, f"{node.module}.{alias.name}" if node.module else alias.name)
            outer = inner or self._resolve(path, node, node.module or "")
            if outer:
                names.setdefault(outer, []).extend([] if inner or alias.name == "*" else [alias.name])
        for target, taken in names.items():
            yield Import(path, target, node.lineno, tuple(taken))

    def _resolve(self, path: str, node: ast.ImportFrom, name: str) -> str | None:
        if not node.level:
            return self._absolute(path, name)
        folder = dirname(path)
        for _ in range(node.level - 1):
            if not folder:
                return None
            folder = dirname(folder)
        return self._at(join(folder, *name.split(".")) if name else folder)

    def _absolute(self, path: str, name: str) -> str | None:
        """A module by its name; beside a script, which stands in no package, before all others."""
        folder = dirname(path)
        beside = self._at(join(folder, *name.split("."))) if join(folder, "__init__.py") not in self._files else None
        return beside or self._named.get(name)

    def _at(self, place: str) -> str | None:
        return next((one for one in (f"{place}.py", join(place, "__init__.py")) if one in self._files), None)


def uncommented(text: str) -> str:
    """C-like source with blanks in the place of its comments: lines and strings stay where they are."""
    return _COMMENT_OR_STRING.sub(
        lambda match: re.sub(r"[^\n]", " ", match[0]) if match["comment"] is not None else match[0], text
    )


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _scripts(path: str, text: str, files: Named) -> Iterator[Import]:
    text = uncommented(text)
    strings = {place for one in _COMMENT_OR_STRING.finditer(text) for place in range(one.start() + 1, one.end())}
    for match in _FROM.finditer(text):
        if match.start() in strings:
            continue
        if target := _script(normpath(join(dirname(path), match["a"] or match["b"] or match["c"])), files):
            yield Import(path, target, _line(text, match.start()))


def _script(place: str, files: Files) -> str | None:
    """The file that a relative import means: itself, with a suffix (TypeScript writes .js for .ts), or an index."""
    bare = re.sub(r"\.(?:[cm]?js|jsx)$", "", place)
    places = [place, *(base + suffix for base in (place, bare) for suffix in SCRIPTS)]
    return next((one for one in (*places, *(f"{place}/index{suffix}" for suffix in SCRIPTS)) if one in files), None)


def _includes(path: str, text: str, files: Named) -> Iterator[Import]:
    text = uncommented(text)
    for match in _INCLUDE.finditer(text):
        if target := _included(path, match[1].strip(), files):
            yield Import(path, target, _line(text, match.start()))


def _included(path: str, name: str, files: Named) -> str | None:
    """Beside the file, from the root or `include`; elsewhere only where it is the one file whose path ends so."""
    for place in (normpath(join(dirname(path), name)), normpath(name), normpath(join("include", name))):
        if place in files:
            return place
    return files.only(name)


def _java(path: str, text: str, files: Named) -> Iterator[Import]:
    text = uncommented(text)
    for match in _JAVA.finditer(text):
        parts = match[2].split(".")
        if match[1] and not match[3]:
            parts = parts[:-1]  # import static a.b.C.member
        name = "/".join(parts) + ".java"
        if target := files.only(name):
            yield Import(path, target, _line(text, match.start()))


def wildcards(files: Files) -> set[str]:
    """Java files that some file may import by `import a.b.*;`: who uses them, no statement says."""
    folders = {
        match[2].replace(".", "/")
        for path, text in files.items()
        if path.endswith(".java")
        for match in _JAVA.finditer(uncommented(text))
        if match[3] and not match[1]
    }
    return {path for path in files if any(f"/{dirname(path)}".endswith(f"/{folder}") for folder in folders)}


def _rust(path: str, text: str, files: Named) -> Iterator[Import]:
    text = uncommented(text)
    for place, target in rust_paths.used(path, text, files):
        yield Import(path, target, _line(text, place))
