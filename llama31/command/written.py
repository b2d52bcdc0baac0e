"""A config as YAML, what is added to one before it is checked, and text for OmegaConf, which reads ${ in it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from llama31.command import usage
from llama31.config import MISSING

Further = Callable[[set[str]], Mapping[str, str]]  # from the keys that are given to values of others


def to_yaml(run: Any) -> str:
    """The config as YAML, every key written out."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(_written(dataclasses.asdict(run))), resolve=True)


def _written(value: Any, listed: bool = False) -> Any:
    """`value` with the texts of its lists escaped twice: for the resolving here, and for who composes the YAML."""
    if isinstance(value, dict):
        return {name: _written(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_written(item, listed=True) for item in value]
    return escaped(escaped(value)) if listed and isinstance(value, str) else value


def escaped(text: str) -> str:
    """As data for OmegaConf, to which ${ begins an interpolation unless a backslash precedes it."""
    return re.sub(r"(\\*)\$\{", lambda m: 2 * m[1] + r"\${", text)


def unescaped(text: str) -> str:
    """What `escaped` was given; an interpolation that nobody escaped stays as it is."""
    return re.sub(r"(\\*)\$\{", lambda m: m[1][: len(m[1]) // 2] + "${", text)


def extend(plain: dict[str, Any], further: Further) -> None:
    """Add what `further` has for the keys that `plain` does not give; null and a missing value are not given."""
    leaves = [leaf for name, value in plain.items() for leaf in usage.leaves(name, value)]
    given = {key for key, item in leaves if item is not None and item != MISSING}
    for key, value in further(given).items():
        *sections, name = key.split(".")
        section = plain
        for part in sections:
            section[part] = section.get(part) or {}  # an empty section of a YAML file reads as null
            section = section[part]
        section[name] = value
