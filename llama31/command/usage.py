"""The schema as a reader sees it: its keys, the groups of `conf/`, the key that a typo meant, and `--help`."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama31.config import MISSING

SUMMARY = """KEY=VALUE sets one key, GROUP=CHOICE takes the values of conf/GROUP/CHOICE.yaml. Quote lists and blanks for
the shell: 'prompts=["Once upon a time"]'. Several processes: torchrun --nproc-per-node N -m recipes...."""
OPTIONS = """options:
  --config-name NAME  another root file of conf/ than the recipe's own
  --config-dir DIR    a folder of your own YAML files, laid out like conf/ and searched after it
  --cfg               print the whole config, every key written out, and exit
  --help, -h          print this and exit"""


def program(schema: type) -> str:
    """The command that `schema` holds the keys of: `python -m recipes.pretrain` for Pretrain."""
    return "python -m recipes." + re.sub(r"(?<!^)(?=[A-Z])", "_", schema.__name__).lower()


def synopsis(schema: type) -> str:
    """One line: how the command is called."""
    return f"{program(schema)} [--config-name NAME] [--config-dir DIR] [--cfg] [--help] [GROUP=CHOICE] [KEY=VALUE] ..."


def help_text(schema: type, folders: Sequence[Path]) -> str:
    """What `--help` prints: the command, the groups with their choices, and every key."""
    purpose = (schema.__doc__ or "").strip().split("\n")[0].rsplit("`: ", 1)[-1]
    lines = [f"usage: {synopsis(schema)}", "", purpose, "", SUMMARY, "", OPTIONS, ""]
    listed = groups(schema, folders)
    if listed:
        lines += ["groups:", *(f"  {name + '=':<12}{' | '.join(choices)}" for name, choices in listed.items()), ""]
    return "\n".join([*lines, "keys (type, default):", *_key_lines(schema)])


def _key_lines(schema: type) -> Iterator[str]:
    """Each key; before the first of a section what its class says it is."""
    hints, section = typing.get_type_hints(schema), ""
    for name, hint, field in keys(schema):
        if section != (section := name.partition(".")[0] if "." in name else "") and dataclasses.is_dataclass(
            hints.get(section)
        ):
            yield f"  {section}: {(hints[section].__doc__ or '').strip().partition(chr(10))[0]}"
        choices = field.metadata.get("choices") or ()
        kinds = "|".join(choices) if choices else kind(hint)
        yield f"  {name}  ({kinds}; {_default(field)})"
        yield f"      {field.metadata.get('help', '')}"


def _default(field: dataclasses.Field[Any]) -> str:
    factory = field.default_factory
    value = field.default if factory is dataclasses.MISSING else factory()
    if value == MISSING:
        return "required"
    return {"None": "null", "True": "true", "False": "false", "": "empty"}.get(str(value), str(value))


def groups(schema: type, folders: Sequence[Path]) -> dict[str, list[str]]:
    """Choices by group. A group is a folder of YAML files that bears the name of a section of the schema."""
    hints = typing.get_type_hints(schema)
    sections = [field.name for field in dataclasses.fields(schema) if dataclasses.is_dataclass(hints[field.name])]
    files = {name: [file for folder in folders for file in (folder / name).glob("*.yaml")] for name in sections}
    return {name: sorted({file.stem for file in paths}) for name, paths in files.items() if paths}


def keys(schema: type, parts: Sequence[str] = (), path: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """All keys with type and field. An entry of a dictionary is called as `parts`, a key, calls it, or else NAME."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint, name = hints[field.name], f"{path}{field.name}"
        if dataclasses.is_dataclass(hint):
            yield from keys(typing.cast(type, hint), parts, f"{name}.")
        elif is_table(hint):
            depth = name.count(".") + 1
            entry = parts[depth] if depth < len(parts) and parts[depth] else "NAME"
            yield from keys(typing.get_args(hint)[1], parts, f"{name}.{entry}.")
        else:
            yield name, hint, field


def is_table(hint: Any) -> bool:
    """Whether a type is a dictionary of sections, which have keys of their own."""
    return typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1])


def find(schema: type, key: str) -> tuple[Any, dataclasses.Field[Any]] | None:
    """Type and field of a key, None if the schema has none. A section is no key."""
    known = ((hint, field) for name, hint, field in keys(schema, key.split(".")) if name == key)
    return next(known, None)


def is_section(schema: type, key: str) -> bool:
    """Whether there are keys below `key`, which is none itself."""
    return any(name.startswith(f"{key}.") for name, _, _ in keys(schema, key.split(".")))


def nearest(schema: type, key: str, groups: Mapping[str, Sequence[str]]) -> str:
    """What the writer of a wrong key may have meant, as the end of a sentence."""
    parts = key.split(".")
    tails: dict[str, str] = {}
    for name, _, _ in keys(schema, parts):
        tails.setdefault(name.rsplit(".", 1)[-1], name)
    known = [name for name, _, _ in keys(schema, parts)]
    options = [
        *([tails[parts[-1]]] if parts[-1] in tails else []),
        *difflib.get_close_matches(key, [*known, *groups], n=1, cutoff=0.7),
        *(tails[name] for name in difflib.get_close_matches(parts[-1], list(tails), n=1, cutoff=0.75)),
    ]
    # among several, the one that looks most like the whole key: paralel.tokens means no other section's tokens
    best = max(options, key=lambda name: difflib.SequenceMatcher(None, key, name).ratio(), default=None)
    return f"did you mean {best}?" if best else "give one that --help lists"


def one_of(value: str, choices: Sequence[str]) -> str:
    """The choices, and which of them the writer of a wrong one may have meant, as the end of a sentence."""
    near = difflib.get_close_matches(value, choices, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    return f"{guess}give one of {', '.join(choices)}"


def kind(hint: Any) -> str:
    """A type in plain words."""
    origin = typing.get_origin(hint)
    if origin in (list, dict):
        return "a list" if origin is list else "a dictionary"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return " or ".join(names.get(part, str(part)) for part in (typing.get_args(hint) or (hint,)))


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values below `key` with their keys; a list's elements are `key[0]`, `key[1]`, ..."""
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        items = [(f"{key}.{name}", item) for name, item in value.items()]
    elif isinstance(value, list):
        items = [(f"{key}[{index}]", item) for index, item in enumerate(value)]
    if not items:
        yield key, value
    for name, item in items:
        yield from leaves(name, item)
