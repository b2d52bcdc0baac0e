"""A config of which keys are missing: what does not depend on them is judged all the same, so all is said at once."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Iterable
from typing import Any


class Unknown(AttributeError):
    """A key was read that is missing: what depends on it cannot be judged yet."""


class Incomplete:
    """What such configs are, and their sections, beside the dataclass of the schema; a missing key raises Unknown."""


def build[T](schema: type[T], node: Any, read: Callable[[Any, str], Any]) -> T:
    """An instance of `schema` with what is there in `node`.

    `read(node, key)` gives a value, or a section's node, and raises Unknown where it is missing.
    """
    hints = typing.get_type_hints(schema)
    there: dict[str, Any] = {}
    missing: dict[str, Any] = {}
    for name in (field.name for field in dataclasses.fields(typing.cast(Any, schema))):
        try:
            value = read(node, name)
        except Unknown:
            missing[name] = property(_unknown)
            continue
        section = dataclasses.is_dataclass(hints[name])
        there[name] = build(typing.cast(type, hints[name]), value, read) if section else value
    run: T = object.__new__(type(schema.__name__, (schema, Incomplete), missing))
    run.__dict__.update(there)
    return run


def _unknown(_: Any) -> Any:
    raise Unknown


def known[T](check: Callable[..., Iterable[T]], *arguments: Any) -> list[T]:
    """What a check finds before it reads a missing key."""
    results: list[T] = []
    with contextlib.suppress(Unknown):
        results.extend(check(*arguments))  # what a generator gave before stays
    return results
