"""From a command line and `conf/` to a checked config: the owner of Hydra.

Hydra composes and nothing else. Its own checks stop at the first problem, name neither value nor remedy, and have
holes (`+typo=1` adds a key, `~key` removes one). So every override is forced into a schema-free composition, and the
plain result is then filled key by key into a fresh schema, where all problems are collected.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import re
import signal
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from llama31.command import incomplete, synthesizing, usage, validate
from llama31.command.written import Further, escaped, extend, to_yaml, unescaped
from llama31.config import MISSING, ConfigError, Issue
from llama31.runs.node import once_a_node

CONF = Path(__file__).resolve().parents[2] / "conf"


def load[T](
    schema: type[T],
    config_name: str,
    argv: Sequence[str] | None = None,
    world_size: Callable[[T], int] | None = None,
) -> T:
    """Compose, check and return the config of one recipe: the only door from Hydra. Torch is not imported.

    `schema` is the recipe's dataclass, `config_name` its root file in `conf/`, `argv` the arguments (default: those
    of the process): Hydra overrides (`model=8b parallel.tp=2`), `--config-name`, `--config-dir`, `--help`, `--cfg`.
    `world_size` says for how many processes the layout is judged (default: those of torchrun, or one).
    Raises SystemExit: status 0 after `--help` and `--cfg`, 2 after printing all problems of the config at once.
    """
    options, overrides = _parsed(schema, config_name, argv)
    leader = os.environ.get("RANK", "0") == "0"  # the same config, so the same verdict, on every rank
    composed = functools.partial(read, schema, config_name, argv, world_size)
    try:
        folders = _folders(options.config_dir)
        if options.help:
            _show(usage.help_text(schema, folders) + "\n")
        if options.cfg:
            _show(to_yaml(compose(schema, options.config_name, overrides, options.config_dir)))
        run, warnings = once_a_node(f"{schema.__name__}{sys.argv if argv is None else argv}", composed)
    except ConfigError as error:
        refuse(usage.program(schema), error, leader)
    for warning in warnings if leader else []:
        print(f"warning: {warning}", file=sys.stderr)
    return run


def read[T](
    schema: type[T],
    config_name: str,
    argv: Sequence[str] | None,
    world_size: Callable[[T], int] | None = None,
    further: Further | None = None,
) -> tuple[T, list[str]]:
    """The same, and its warnings, without a word. Raises ConfigError with all problems at once.

    `further` is told the keys that YAML and arguments give, null and missing ones apart, and returns values of others.
    """
    options, overrides = _parsed(schema, config_name, argv)
    folders = _folders(options.config_dir)
    return _checked(*_gather(schema, options.config_name, overrides, folders, further), world_size)


def _show(text: str) -> NoReturn:
    """Print and end, also where the reader has closed the pipe, as `| head` does."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print(text, end="", flush=True)
    raise SystemExit(0)


def _parsed(schema: type, config_name: str, argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Options of the command line, and the rest of it."""
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, prog=usage.program(schema), usage=usage.synopsis(schema)
    )
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", action="store_true")
    parser.add_argument("--config-name", default=config_name)
    parser.add_argument("--config-dir")
    return parser.parse_known_args(argv)


def compose[T](
    schema: type[T], config_name: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> T:
    """Compose `config_name` with `overrides` into a `schema`, whose layout is not judged yet (`validate.validate`).

    Raises ConfigError for unknown, missing and mistyped keys and for values out of range, all at once.
    """
    run, issues = _gather(schema, config_name, overrides, _folders(config_dir))
    if run is None or issues:
        raise ConfigError(issues)
    return run


def _checked[T](run: T | None, issues: list[Issue], world_size: Callable[[T], int] | None) -> tuple[T, list[str]]:
    """The config and its warnings. Raises ConfigError with what was found before and what validation adds to it."""
    if run is None:
        raise ConfigError(issues)
    try:
        warnings = validate.validate(run, _processes(run, world_size))
    except ConfigError as error:
        refused = {issue.key for issue in issues}  # validation saw their defaults, which nobody gave
        if "prompts" in refused:
            refused.add("data.sources")  # required without prompts alone
        unchosen = tuple(f"{issue.key}." for issue in issues if issue.value is MISSING)  # groups, all of their keys
        new = [issue for issue in error.issues if issue.key not in refused and not issue.key.startswith(unchosen)]
        raise ConfigError([*issues, *new], error.hint) from None
    if issues:
        raise ConfigError(issues)
    return run, warnings


def _processes[T](run: T, world_size: Callable[[T], int] | None) -> int | None:
    """They follow from keys, of which some may be missing. None: as started."""
    return None if world_size is None else next(iter(incomplete.known(lambda: [world_size(run)])), None)


def _gather[T](
    schema: type[T],
    config_name: str,
    overrides: Sequence[str],
    folders: Sequence[Path],
    further: Further | None = None,
) -> tuple[T | None, list[Issue]]:
    """The config, or None where keys are missing, and all problems of its keys and values."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    checked, issues = _overrides(schema, overrides, folders)
    complete = not any(issue.key in usage.groups(schema, folders) for issue in issues)
    plain = _hydra(config_name, checked, folders)
    if further is not None:
        extend(plain, further)
    node = OmegaConf.structured(schema)
    texts: dict[str, list[str]] = {}
    _fill(node, schema, plain, "", issues, texts)
    filled = typing.cast(dict[str, Any], OmegaConf.to_container(node, resolve=False))
    wrong = validate.values(schema, filled)
    issues += wrong
    missing, refused = _missing(schema, filled, plain, folders), bool(wrong)
    if complete:  # after a wrong choice of a group, its keys are missing for that reason alone
        named = {issue.key for issue in issues}
        issues += [issue for issue in missing if issue.key not in named]
    if missing and refused:
        return None, issues  # what depends on a value that is out of range is not worked out
    try:
        run = incomplete.build(schema, node, _there) if missing else typing.cast(T, OmegaConf.to_object(node))
    except OmegaConfBaseException as error:
        return None, [*issues, _foreign(error)]
    for key, items in texts.items():
        *sections, name = key.split(".")
        with contextlib.suppress(incomplete.Unknown):
            setattr(functools.reduce(_inner, sections, run), name, items)
    return run, issues + incomplete.known(synthesizing.unread, run, overrides)


def _there(node: Any, name: str) -> Any:
    """A value, or the node of a section; Unknown where it is missing, or refers to what is."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        value = node[name]
        section = OmegaConf.is_dict(value) and dataclasses.is_dataclass(OmegaConf.get_type(value))
        return OmegaConf.to_object(value) if OmegaConf.is_config(value) and not section else value
    except OmegaConfBaseException:
        raise incomplete.Unknown from None


def _inner(section: Any, name: str) -> Any:
    """What `name` leads to: an entry of a dictionary, an attribute, or `name[3]`, one of an attribute's list."""
    if isinstance(section, dict):
        return section[name]
    name, _, index = name.removesuffix("]").partition("[")
    return getattr(section, name)[int(index)] if index else getattr(section, name)


def refuse(program: str, error: ConfigError, leader: bool = True) -> NoReturn:
    """End the command `program` with status 2, after all problems of its config were printed by the leader."""
    count = len(error.issues)
    lines = [f"{program}: {count} problem{'s' if count > 1 else ''} in the configuration"]
    lines += [f"  {issue}" for issue in error.issues]
    text = "\n".join([*lines, *([f"  {error.hint}"] if error.hint else []), "--help lists every key"])
    if leader:
        print(text, file=sys.stderr)
    raise SystemExit(2) from None


def _folders(config_dir: str | Path | None) -> list[Path]:
    if config_dir is None:
        return [CONF]
    if not Path(config_dir).is_dir():
        raise ConfigError([Issue("--config-dir", config_dir, "there is no such folder", "give one of YAML files")])
    return [CONF, Path(config_dir).resolve()]


# --- overrides of the command line ---


def _overrides(schema: type, overrides: Sequence[str], folders: Sequence[Path]) -> tuple[list[str], list[Issue]]:
    """Those that Hydra may see, rewritten so that it adds keys as needed, and the problems of the others."""
    groups = usage.groups(schema, folders)
    judged = [_override(schema, text, groups) for text in overrides]
    return [text for text in judged if isinstance(text, str)], [issue for issue in judged if isinstance(issue, Issue)]


def _override(schema: type, text: str, groups: Mapping[str, list[str]]) -> str | Issue:
    match = re.fullmatch(r"(\+\+|\+|~|)([A-Za-z_][^\s=]*)(?:=(.*))?", text, re.DOTALL)
    if match is None or (match[3] is None and match[1] != "~"):
        return Issue(text, MISSING, "not an override", "give KEY=VALUE, GROUP=CHOICE or an option of --help")
    sign, key, value = match.groups()
    known = usage.find(schema, key)
    if sign == "~":
        return Issue(text, MISSING, "no key can be removed", f"leave it out, or give {key}=... another value")
    if sign:
        remedy = f"give {key}={value}" if known or key in groups else usage.nearest(schema, key, groups)
        return Issue(text, MISSING, "no key can be added to the schema", remedy)
    if key in groups:
        return _choice(key, value, groups[key])
    if known is None and usage.is_section(schema, key):
        return Issue(key, value, "is a section with keys of its own", _of_section(key, groups))
    if known is None:
        return Issue(key, value, "no such key", usage.nearest(schema, key, groups))
    wrong = re.fullmatch(r"data\.sources\.(?![A-Za-z_][A-Za-z0-9_-]*\.)[^.]+\.\w+", key)
    if wrong:
        return Issue(key, value, "no name for a source", f"give {validate.SOURCE_NAME}, the first a letter or _")
    return _forced(key, value, known[0])


def _of_section(key: str, groups: Mapping[str, list[str]]) -> str:
    if key != "data.sources":
        return f"give {key}.KEY=VALUE"
    choices = f"choose data={'|'.join(groups['data'])}, or " if "data" in groups else ""
    return f"{choices}name sources one by one: data.sources.NAME.input=PATH"


def _choice(group: str, value: str, choices: list[str]) -> str | Issue:
    if value in choices:
        return f"{group}={value}"
    return Issue(group, value, "no such choice", usage.one_of(value, choices))


def _forced(key: str, value: str, hint: Any) -> str | Issue:
    """`++key=value`, which Hydra accepts for any key; text is quoted, so that it stands as it was typed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    text = str in (hint, *typing.get_args(hint)) and typing.get_origin(hint) not in (list, dict)
    if text and value[:1] not in ("'", '"') and value != "null":
        return f"++{key}={_quoted(value)}"
    given = value
    if hint == list[str]:
        value = escaped(value)
    try:
        parsed = OverridesParser.create().parse_override(f"++{key}={value}")
    except HydraException:
        return Issue(key, given, "cannot be read", f"give {_wanted(key, hint)}; mind quotes, brackets and the shell")
    # a comma is a sweep to Hydra, of which there is none here: the type check will name the value
    return f"++{key}={_quoted(value)}" if parsed.is_sweep_override() else f"++{key}={value}"


def _quoted(value: str) -> str:
    """A string of Hydra's grammar: a backslash is special before a quote and at the end alone."""
    escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ('\\"' if m[2] else ""), value)
    return f'"{escaped}"'


# --- composition ---


def _hydra(config_name: str, overrides: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    """What Hydra makes of the YAML files and overrides, as plain dictionaries with interpolations left alone."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    name = config_name.removesuffix(".yaml")
    home = next((folder for folder in reversed(folders) if (folder / f"{name}.yaml").is_file()), None)
    if home is None:
        roots = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        raise ConfigError([Issue("--config-name", name, "there is no such file", f"give one of {', '.join(roots)}")])
    # Hydra takes ++KEY=VALUE for a group wherever a folder is called KEY, as conf/prompts is, and refuses it
    apart = [text for text in overrides if _is_folder(text, folders)]
    # Hydra looks for a root file in its first folder alone
    further = [f'hydra.searchpath=["file://{folder}"]' for folder in folders if folder != home]
    try:
        with initialize_config_dir(str(home), version_base="1.3"):
            composed = hydra_compose(name, [*(text for text in overrides if text not in apart), *further])
        for override in OverridesParser.create().parse_overrides(apart):
            OmegaConf.update(composed, override.key_or_group, override.value(), force_add=True)
        return typing.cast(dict[str, Any], OmegaConf.to_container(composed, resolve=False))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError([_foreign(error)]) from error


def _is_folder(override: str, folders: Sequence[Path]) -> bool:
    """Whether `++KEY=VALUE` sets a key that a folder of YAML files is called like."""
    key = override.removeprefix("++").partition("=")[0]
    return override.startswith("++") and any((folder / key).is_dir() for folder in folders)


def _foreign(error: Exception) -> Issue:
    """A problem that Hydra or OmegaConf found in a file, in its own words."""
    where, text = getattr(error, "full_key", None) or "conf", " ".join(str(error).split())
    absent = re.match(r"Could not override '(\w+)'\. No match in the defaults list", text)
    if absent:
        reason = "the root file has no place for this group"
        return Issue(absent[1], MISSING, reason, f"add `- {absent[1]}: null` to its list of defaults")
    return Issue(where, MISSING, text, "correct the YAML file or the override that it names")


# --- from plain dictionaries into the schema ---


def _fill(
    node: Any,
    schema: type,
    plain: Mapping[str, Any],
    path: str,
    issues: list[Issue],
    texts: dict[str, list[str]],
) -> None:
    """Write every value of `plain` into `node`, an instance of `schema`, and collect what does not fit.

    Lists of text are data, in which OmegaConf would see interpolations and missing values: they go to `texts`, by key.
    """
    from omegaconf import OmegaConf

    hints = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for name, value in plain.items():
        key, hint = f"{path}{name}", hints.get(str(name))
        if hint == list[str] and isinstance(value, str) and fields[name].metadata.get("choices"):
            value = [value]
        if hint is None:
            issues += [
                Issue(leaf, item, "no such key", _meant(schema, path, leaf)) for leaf, item in usage.leaves(key, value)
            ]
        elif dataclasses.is_dataclass(hint):
            _section(node[name], typing.cast(type, hint), value, key, issues, texts)
        elif usage.is_table(hint) and isinstance(value, dict):
            for entry, item in zip(map(str, value), value.values(), strict=True):
                node[name][entry] = _fresh(typing.get_args(hint)[1])
                _section(node[name][entry], typing.get_args(hint)[1], item, f"{key}.{entry}", issues, texts)
        elif typing.get_origin(hint) is list and dataclasses.is_dataclass(typing.get_args(hint)[0]):
            _list(node, name, typing.get_args(hint)[0], value, key, issues, texts)
        elif _assign(node, name, hint, value, key, issues) and hint == list[str]:
            items = typing.cast(list[str], OmegaConf.to_container(node[name], resolve=False))
            texts[key] = [unescaped(item) for item in items]
            issues += validate.values(schema, {name: texts[key]}, path)
            node[name] = []


def _section(node: Any, schema: type, value: Any, key: str, issues: list[Issue], texts: dict[str, list[str]]) -> None:
    if isinstance(value, dict):
        _fill(node, schema, value, f"{key}.", issues, texts)
    elif value is not None:  # an empty section of a YAML file reads as null
        issues.append(Issue(key, value, "is a section with keys of its own", f"give {key}.KEY=VALUE"))


def _list(
    node: Any, name: str, schema: type, value: Any, key: str, issues: list[Issue], texts: dict[str, list[str]]
) -> None:
    if not isinstance(value, list):
        names = ", ".join(f"{field.name}: ..." for field in dataclasses.fields(schema))
        issues.append(Issue(key, value, "wrong type", f"give a list, [{{{names}}}, ...]"))
        return
    items = [_fresh(schema) for _ in value]
    for index, (item, given) in enumerate(zip(items, value, strict=True)):
        _section(item, schema, given, f"{key}[{index}]", issues, texts)
    node[name] = items


def _assign(node: Any, name: str, hint: Any, value: Any, key: str, issues: list[Issue]) -> bool:
    """Whether the value fits and was written."""
    from omegaconf.errors import OmegaConfBaseException

    kinds = typing.get_args(hint) or (hint,)
    if int in kinds and isinstance(value, float) and value.is_integer():
        value = int(value)  # 4e6 tokens are a whole number
    try:
        if any(isinstance(item, bool) for item in (value, *_entries(value))) and bool not in kinds:
            raise ValueError("OmegaConf would take true for 1.0 and for 'True'")
        node[name] = value
    except (OmegaConfBaseException, ValueError, OverflowError):
        issues.append(Issue(key, value, "wrong type", f"give {_wanted(key, hint)}"))
        return False
    return True


def _entries(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


def _wanted(key: str, hint: Any) -> str:
    return f"a list of quoted texts, '{key}=[\"...\"]'" if hint == list[str] else usage.kind(hint)


def _fresh(schema: type) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.structured(schema)


def _missing(schema: type, filled: Mapping[str, Any], plain: Mapping[str, Any], folders: Sequence[Path]) -> list[Issue]:
    """Keys that were to be given; those of a group that was not chosen, of which `plain` has none, in one line."""
    groups = usage.groups(schema, folders)
    required = {key for key, _, field in usage.keys(schema) if field.default == MISSING}
    issues = []
    for name, value in filled.items():
        keys = [key for key, item in usage.leaves(name, value) if item == MISSING]
        unchosen = not plain.get(name) or {key for key in required if key.startswith(f"{name}.")} <= set(keys)
        if keys and name in groups and unchosen:
            reason = f"not chosen, and required for {', '.join(keys)}"
            issues.append(Issue(name, MISSING, reason, f"give {name}={'|'.join(groups[name])}"))
        else:
            issues += [_required(schema, key) for key in keys]
    return issues


def _required(schema: type, key: str) -> Issue:
    known = usage.find(schema, key)
    meaning = f" ({known[1].metadata['help']})" if known else ""
    return Issue(key, MISSING, f"is required{meaning}", f"give {key}=...")


def _meant(schema: type, path: str, key: str) -> str:
    """Advice for a wrong key of a YAML file, which stands in the part of the whole schema that `path` leads to."""
    meant = usage.nearest(schema, key.removeprefix(path), {})
    return meant.replace("did you mean ", f"did you mean {path}")
