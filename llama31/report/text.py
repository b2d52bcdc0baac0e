"""Numbers as people read them, and text that cannot become markup."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

PREFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
NONE = "\N{EM DASH}"
SHOWN = 300  # characters of one value in a table


def escape(value: object) -> str:
    """Text for HTML, in an element or a quoted attribute."""
    return html.escape(str(value), quote=True)


def short(value: object, length: int = SHOWN) -> str:
    """Text of at most `length` characters, its end left out with an ellipsis."""
    text = str(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def count(value: float | None, digits: int = 3) -> str:
    """A count with `digits` significant digits: 1234567 is 1.23M. None is a dash."""
    if value is None:
        return NONE
    for index, (scale, prefix) in enumerate(PREFIXES):
        scaled = abs(value) / scale
        # 999,999 is 1M and not 1000k: rounding may reach the next prefix
        if scaled >= 1 or (scaled and float(f"{scaled:.{digits}g}") >= 1):
            if index and float(f"{scaled:.{digits}g}") >= 1000:
                return count(math.copysign(PREFIXES[index - 1][0], value), digits)
            return f"{_significant(value / scale, digits)}{prefix}"
    return _significant(value, digits)


def _significant(value: float, digits: int) -> str:
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:.{digits}g}"


def whole(value: float | None) -> str:
    """A number to its last digit: 8,192."""
    return NONE if value is None else f"{value:,.0f}"


def fixed(value: float | None, places: int = 4) -> str:
    """A number such as a loss; tiny and huge ones in powers of ten."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:.{places}f}"


def percent(share: float | None, places: int = 1) -> str:
    """A share as a percentage. What is not all is never shown as 100%, and what is not nothing never as 0%."""
    if share is None:
        return NONE
    text, least = f"{share:.{places}%}", 10**-places / 100
    if 0 < share < least / 2:
        return f"<{least:.{places}%}"
    return f">{1 - least:.{places}%}" if 1 - least / 2 <= share < 1 else text


def duration(seconds: float | None) -> str:
    """Seconds as 0.4 s, 12.3 s, 4:05 min, 3:04:05 or 3 d 4:05:06."""
    if seconds is None:
        return NONE
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 59.95:
        return f"{1000 * seconds:.3g} ms" if 0 < seconds < 0.0995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d} min"


def moment(time_s: float | None) -> str:
    """A Unix time as date and time in UTC."""
    if time_s is None or not 0 <= time_s < 253402300800:  # the year 10000 ends what datetime holds
        return NONE
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M:%S}"


def facts(line: Mapping[str, Any], without: tuple[str, ...] = ()) -> str:
    """What a line says beyond `without`, as `name: value, name: value`."""
    return short(", ".join(f"{name}: {plain(value)}" for name, value in line.items() if name not in without))


def plain(value: Any) -> str:
    """A value of a JSON file as text: numbers short, the rest as they stand."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
