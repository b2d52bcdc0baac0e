"""Units by name: a factor, and the powers of the base units. Other nouns behind a number count as base units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

DEGREE, PERCENT, DOLLAR = "degree", "percent", "dollar"


@dataclass(frozen=True)
class Unit:
    """What one of it is: `factor` (times pi where `angle`) of the base unit to that power; "" has no dimension."""

    factor: Fraction
    base: str = ""
    power: int = 1
    angle: bool = False


def _table() -> dict[str, Unit]:
    found: dict[str, Unit] = {}

    def add(names: str, factor: str | int | Fraction, base: str = "", power: int = 1) -> None:
        found.update({name: Unit(Fraction(factor), base, power) for name in names.split()})

    for prefix, full, scale in (
        ("k", "kilo", "1000"),
        ("", "", "1"),
        ("c", "centi", "1/100"),
        ("m", "milli", "1/1000"),
    ):
        add(f"{prefix}m {full}meter {full}metre", scale, "meter")
        add(f"{prefix}g {full}gram", scale, "gram")
        add(f"{prefix}l {prefix}L {full}liter {full}litre", Fraction(scale) / 1000, "meter", 3)
    add("inch in", "127/5000", "meter")
    add("foot feet ft", "381/1250", "meter")
    add("yard yd", "1143/1250", "meter")
    add("mile mi", "201168/125", "meter")
    add("ton tonne", 1_000_000, "gram")
    add("pound lb", "45359237/100000", "gram")
    add("s sec second", 1, "second")
    add("min minute", 60, "second")
    add("h hr hour", 3600, "second")
    add("day", 86_400, "second")
    add("week", 604_800, "second")
    add("ms", "1/1000", "second")
    add("dollar usd", 1, DOLLAR)
    add("cent", "1/100", DOLLAR)
    add("euro eur", 1, "euro")
    add("gbp", 1, "gbp")
    add("unit", 1)
    add("percent", "1/100")
    found |= {name: Unit(Fraction(1, 180), angle=True) for name in ("degree", "deg")}
    found |= {name: Unit(Fraction(1)) for name in ("radian", "rad")}
    return found


TABLE: Mapping[str, Unit] = _table()
SHORT = frozenset(name for name in TABLE if len(name) == 1)  # m, s, g: variables, unless they stand in \text{}
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}  # before a unit
QUOTIENTS = {"mph": ("mile", "hour"), "kmh": ("km", "hour"), "kph": ("km", "hour")}
RAISED = {"squared": 2, "cubed": 3}  # behind it


def named(word: str) -> str:
    """The name by which a word is known: of a plural the singular."""
    for name in (word, word.lower(), word.lower().removesuffix("s"), word.lower().removesuffix("es")):
        if name in TABLE:
            return name
    lower = word.lower()
    return lower.removesuffix("s") if len(lower) > 3 else lower


def known(word: str) -> bool:
    """Whether the table has it."""
    return named(word) in TABLE


def unit(name: str) -> Unit:
    """The unit of a name that `named` gave; one that the table lacks is a base unit."""
    return TABLE.get(name) or Unit(Fraction(1), name)
