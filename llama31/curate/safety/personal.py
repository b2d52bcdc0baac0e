"""What tells of a person in a text, replaced by what it was: e-mail and IP addresses, phones, cards, accounts, numbers.

A text is searched for a few cheap signs (an `@`, seven digits with no more than two marks between them, capitals before
digits, four numbers with points between); only around them the forms themselves are tried (`forms`).
"""

from __future__ import annotations

import bisect
import functools
import ipaddress
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from tldextract import TLDExtract

from llama31.curate import spans
from llama31.curate.safety import forms

Verdict = bool | tuple[bool, str]
PLACEHOLDERS = {kind: f"<{kind}>" for kind in ("email", "ip", "phone", "card", "iban", "id")}

# Signs, cheap to search for: no look behind, which would be tried at every character.
RUN = re.compile(r"[0-9](?:[ \u00a0.()/\-\u2011]{0,2}[0-9]){6,}")
POINTS = re.compile(
    r"\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]"
)  # begins with one character, which is searched for ten times faster
QUAD = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")
CAPITALS = re.compile(
    r"[A-Z]{2}(?: ?[0-9]{2} ?[0-9A-Z]{2}|[A-Z]{3}[0-9]{4}[A-Z]|"
    rf"[A-Z]{{4}}[{forms.LETTERS}]{{2}}[A-Z][{forms.LETTERS}]{{2}})|[XYZ][ \-]?[0-9]{{7}}"
)
DATE = re.compile(r"(?:19|20)[0-9]{2}([\-./ ]?)[01][0-9]\1[0-3][0-9](?: +[0-9]{1,2})?")
COLON = re.compile(":[0-9A-Fa-f:]{3}")
COLONS = re.compile(r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{3,34}")
AROUND = 30  # characters at each side of a sign in which a form may lie
ROW = 60  # a run of digits that is longer is a row of a table
NEAR = 40  # characters before a number in which its name may stand
# Digits of Hindi and Thai, each for the one that it is.
DIGITS = {ord(first) + i: str(i) for first in "\u0966\u0e50" for i in range(10)}
OTHER_DIGITS = re.compile("[\u0966-\u096f\u0e50-\u0e59]")

# Letters of Latin beyond ASCII as well, and no others: those of Chinese and Thai may be words around an address.
LETTERS = "A-Za-z0-9\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
DOMAIN = re.compile(rf"@((?:[{LETTERS}][{LETTERS}\-]{{0,62}}\.)+([A-Za-z]{{2,24}}))(?![{LETTERS}_@\-])")
LOCAL = re.compile(rf"[{LETTERS}._%+'\-]{{1,64}}\Z")
RESERVED = re.compile(r"(?:^|\.)(?:example\.(?:com|org|net|edu)|example|test|invalid|localhost|local)$", re.IGNORECASE)
VERSION = re.compile(
    r"(?:\b(?:v|ver|vers|versions?|release|rel|build|rev|revision|firmware|kernel|patch|since|oid|section|chapter)|§)"
    r"[\s.:=#\"'(]{0,3}$",
    re.IGNORECASE,
)
ADDRESS = re.compile(
    r"\bip(?:v4)?\b|ad+r+es+|dirección|indirizzo|endereço|\bhost|\bserver|gateway|proxy|\bdns\b|router|://|@$",
    re.IGNORECASE,
)


class PersonalDataFilter(BaseFilter):
    """Replaces personal data in texts, and may drop documents that hold much of it.

    Statistics: by name what was replaced (`email`, `ipv4`, `phone`, `iban`, `german_tax_id`, ...), `left: NAME` what
    was seen and belongs to nobody, and `documents with personal data`. Adds metadata `personal_data`, counts by name,
    to those.

    Left are, unless `keep_reserved` is False: e-mail addresses at example.com, .org, .net and in the top-level domains
    test, example, invalid, localhost and local (RFC 2606, 6761, 6762); IP addresses that are not global (private,
    loopback, documentation: IANA's registries); phones that are set apart for fiction (555-01xx, Ofcom's for drama).

    Args:
        placeholders: text instead of each kind (email, ip, phone, card, iban, id); a kind that is not named is left.
            The form is ours; the report says nothing of it.
        keep_reserved: leave what belongs to nobody.
        max_per_1000_words: drop documents with more than this, reason `personal_data`; None keeps them. The report
            removes domains "known to contain high amounts of personally identifiable information", without a figure.
        exclusion_writer: where what is dropped is written.
    """

    name = "Personal data"

    def __init__(
        self,
        placeholders: Mapping[str, str] | None = None,
        keep_reserved: bool = True,
        max_per_1000_words: float | None = None,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        self.placeholders = dict(PLACEHOLDERS if placeholders is None else placeholders)
        for kind in self.placeholders:
            if kind not in PLACEHOLDERS:
                raise ValueError(f"placeholders has {kind!r}; leave it out, or take one of {', '.join(PLACEHOLDERS)}")
        self.keep_reserved, self.max_per_1000_words = keep_reserved, max_per_1000_words

    def filter(self, document: Document) -> Verdict:
        """True, with the text in which personal data are replaced, or False and the reason."""
        found, left = find(document.text, tuple(self.placeholders), self.keep_reserved)
        for name, count in left.items():
            self.stat_update(f"left: {name}", value=count)
        if not found:
            return True
        counts = Counter(one.name for one in found)
        for name, count in counts.items():
            self.stat_update(name, value=count)
        self.stat_update("documents with personal data")
        document.metadata["personal_data"] = dict(counts)
        if self.max_per_1000_words is not None:
            language = document.metadata.get("language") or ""
            if 1000 * len(found) > self.max_per_1000_words * len(spans.of(document.text, language)):
                return False, "personal_data"
        document.text = replaced(document.text, found, self.placeholders)
        return True


@dataclass(frozen=True, order=True)
class Found:
    """Where something stands, what it is, and its placeholder's kind."""

    start: int
    end: int
    name: str
    kind: str


def replaced(text: str, found: Sequence[Found], placeholders: Mapping[str, str]) -> str:
    """The text with placeholders in place of what was found."""
    parts, end = [], 0
    for one in found:
        parts += [text[end : one.start], placeholders[one.kind]]
        end = one.end
    return "".join([*parts, text[end:]])


def find(text: str, kinds: Sequence[str], keep_reserved: bool = True) -> tuple[list[Found], Counter[str]]:
    """What a text holds of these kinds, in order and apart from each other, and how much was left, by name."""
    if OTHER_DIGITS.search(text):
        text = text.translate(DIGITS)
    found: list[Found] = []
    left: Counter[str] = Counter()
    for one, reserved in _candidates(text, kinds, left):
        if reserved and keep_reserved:
            left[one.name] += 1
            continue
        at = bisect.bisect(found, one)
        before = at > 0 and found[at - 1].end > one.start
        if not before and (at == len(found) or found[at].start >= one.end):
            found.insert(at, one)
    return found, left


def _candidates(text: str, kinds: Sequence[str], left: Counter[str]) -> Iterator[tuple[Found, bool]]:
    """What is found, and whether it belongs to nobody; of what could be two things, the one that says more first."""
    if "email" in kinds and "@" in text:
        yield from _emails(text)
    if "ip" in kinds:
        yield from _addresses(text)
    digits = []
    for match in RUN.finditer(text):
        if match.end() - match.start() > ROW:
            left["rows of digits"] += 1
        elif not DATE.fullmatch(match[0]):
            digits.append(match.span())
    of_digits, of_capitals = _regions(digits), _regions([match.span() for match in CAPITALS.finditer(text)])
    for form in forms.FORMS if of_digits or of_capitals else ():
        if form.kind in kinds:
            for begin, end in of_capitals if form.capitals else of_digits:
                yield from _numbers(text, form, begin, end)


def _regions(signs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What lies around signs, in one piece where they touch."""
    result: list[tuple[int, int]] = []
    for begin, end in signs:
        begin, end = max(0, begin - AROUND), end + AROUND
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((begin, end))
    return result


def _numbers(text: str, form: forms.Form, begin: int, end: int) -> Iterator[tuple[Found, bool]]:
    for match in form.pattern.finditer(text, begin, end):
        start, stop = match.start(), form.end(text, match)
        characters = "".join(filter(str.isalnum, text[start:stop]))
        named = form.near is None or form.near.search(text, max(0, start - NEAR), start)
        if named and form.valid(characters):
            yield Found(start, stop, form.name, form.kind), form.kind == "phone" and forms.fictional(characters)


@functools.cache
def _top_level() -> frozenset[str]:
    """Top-level domains of the public suffix list that tldextract brings along; nothing is fetched."""
    extract = TLDExtract(suffix_list_urls=(), cache_dir=None)
    return frozenset(rule.rpartition(".")[2] for rule in extract.tlds) | {
        "test",
        "example",
        "invalid",
        "localhost",
        "local",
    }


def _emails(text: str) -> Iterator[tuple[Found, bool]]:
    """Addresses of Latin letters whose top-level domain there is (`icon@2x.png` is none)."""
    for match in DOMAIN.finditer(text):
        if match[2].lower() not in _top_level():
            continue
        start = match.start()
        local = LOCAL.search(text, max(0, start - 64), start)
        name = local[0].lstrip("._%+'-") if local else ""
        if name and name[-1] != ".":
            found = Found(start - len(name), match.end(), "email", "email")
            yield found, name == "git" or RESERVED.search(match[1]) is not None


def _addresses(text: str) -> Iterator[tuple[Found, bool]]:
    for match in QUAD.finditer(text) if POINTS.search(text) else ():
        start, end = match.span()
        if not _is_version(text, start, end):
            address = _parsed(match[0])
            if address is not None:
                yield Found(start, end, "ipv4", "ip"), not address.is_global or address.is_multicast
    for match in COLONS.finditer(text) if COLON.search(text) else ():
        start, end = match.span()
        end -= text[start:end].endswith(":") and not text[start:end].endswith("::")
        beside = text[max(0, start - 1) : start] + text[end : end + 1]
        address = None if re.search(r"[\w:]", beside) else _parsed(text[start:end])
        if address is not None:
            yield Found(start, end, "ipv6", "ip"), not address.is_global or address.is_multicast


def _is_version(text: str, start: int, end: int) -> bool:
    """Whether four numbers with points between are rather a version, a section or an object identifier.

    Beside letters, points and hyphens they are, and behind a word that says so. Alone they are an address where a word
    or a URL says so, or where a number has three digits: versions seldom have, and of 40 addresses one has none.
    """
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    if re.search(r"[\w.\-+~]$|\w/$", before) or re.match(r"[\w\-+~]|\.\w", after):
        return True
    near = text[max(0, start - 30) : start].rpartition("\n")[2]
    if VERSION.search(near):
        return True
    return not re.search("[0-9]{3}", text[start:end]) and not ADDRESS.search(near)


def _parsed(characters: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(characters)
    except ValueError:
        return None
