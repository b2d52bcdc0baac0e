"""Pages of known domains, told by lists of hosts and URLs; nothing is fetched.

A list may be a file or a folder, in any of these forms, line by line:

- plain: a host, a registered domain or a URL, with or without its scheme;
- a `hosts` file: an address of one's own machine, and hosts behind it;
- a folder with a folder for each category, which holds `domains`, `urls` or both, as squidGuard reads them and the
  University of Toulouse publishes its lists (https://dsi.ut-capitole.fr/blacklists/).

A host that is listed is so with all hosts below it; a URL that is listed with all whose path goes on behind it.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import ahocorasick
import numpy as np
import numpy.typing as npt
import xxhash
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.filters.url_filter import normalize, normalizer
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils._import_utils import ASSETS_PATH
from datatrove.utils.logging import logger

Verdict = bool | tuple[bool, str]
CHUNK = 1 << 22
PLAIN = b"abcdefghijklmnopqrstuvwxyz0123456789.-_\r\n"  # all that most lists have in them: hosts alone
SCHEME = re.compile(r"[a-z][a-z0-9+.\-]*://")
HOST = re.compile(r"[^/?#\\]*")
NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_\-]*[a-z0-9_])?\.)+[a-z0-9_\-]+")
BORDER = re.compile(r"[/?&#]")
MOST_PREFIXES = 64  # of one URL


class DomainFilter(BaseFilter):
    """Drops documents whose metadata `url` stands on a list; reasons `domain: LIST`, `url: LIST`, of words see below.

    Statistics: beside them `no url`, of documents that say none and stay, and, per list, `entries` and `unreadable`
    lines.

    Args:
        lists: files and folders by name. Of a folder of categories each is a list NAME/CATEGORY.
        bundled: datatrove's own list too, 4.6 million domains and URLs, most of adult pages; LIST is `datatrove`. A
            process reads it once, in some seconds, and keeps 90 MB of it.
        bundled_words: datatrove's three lists of words in URLs (English): one of the first (`hard_blacklisted`), two of
            the second (`soft_blacklisted`), a part of a word of the third (`blacklisted_subword`). Capitals are no
            others, as they are for datatrove.
        exclusion_writer: where what is dropped is written.
    """

    name = "Domains"

    def __init__(
        self,
        lists: Mapping[str, str] | None = None,
        bundled: bool = False,
        bundled_words: bool = False,
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        self.lists, self.bundled = dict(lists or {}), bundled
        for name, path in self.lists.items():
            if not Path(path).exists():
                raise ValueError(f"lists[{name!r}]={path}: no such file or folder; give a block list, or leave it out")
        self._words = UrlWords() if bundled_words else None
        self._known: BlockList | None = None

    def filter(self, document: Document) -> Verdict:
        """True, or False and the reason."""
        url = document.metadata.get("url")
        if not url or not isinstance(url, str):
            self.stat_update("no url")
            return True
        reason = self._loaded().reason(url) or (self._words.reason(url) if self._words else "")
        return (False, reason) if reason else True

    def _loaded(self) -> BlockList:
        # At the first document: a pipeline that is handed to other processes shall not carry the lists.
        if self._known is None:
            self._known = BlockList()
            for name, path in self.lists.items():
                for category, file in files(name, Path(path)):
                    with open(file, "rb") as lines:
                        self._read(category, lines)
            if self.bundled:
                entries, counts = _bundled()
                self._known.include("datatrove", entries)
                self._tell("datatrove", counts)
            self._known.sort()
        return self._known

    def _read(self, category: str, lines: IO[bytes]) -> None:
        assert self._known is not None
        self._tell(category, self._known.read(category, lines))

    def _tell(self, category: str, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            self.stat_update(f"{name}: {category}", value=count)
        if not counts["entries"]:
            logger.warning(f"list {category} has no host or URL that can be read")


@functools.cache
def _bundled() -> tuple[npt.NDArray[np.uint64], Counter[str]]:
    """Hashes of datatrove's own list, and their counts: read once in a process, which has many tasks."""
    known, counts = BlockList(), Counter[str]()
    with tarfile.open(Path(ASSETS_PATH) / "url_filterblacklistsv0_3_0.tar.gz") as archive:
        for member in ("domains", "urls"):
            content = archive.extractfile(member)
            assert content is not None
            counts += known.read("", content)
    known.sort()
    return known.entries, counts


def files(name: str, path: Path) -> Iterator[tuple[str, Path]]:
    """Files of a list, and what each is called."""
    if path.is_file():
        yield name, path
        return
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        folder = file.parent.relative_to(path).as_posix()
        if file.name in ("domains", "urls"):
            yield (name if folder == "." else f"{name}/{folder}"), file
        elif folder == ".":
            yield f"{name}/{file.stem}", file


class BlockList:
    """Hosts and URLs as hashes: of 4.6 million a set of strings would take half a gigabyte in each process."""

    def __init__(self) -> None:
        self._categories: list[str] = []
        self._parts: list[tuple[npt.NDArray[np.uint64], int]] = []
        self._hashes = np.zeros(0, np.uint64)
        self._owners = np.zeros(0, np.uint32)

    @property
    def entries(self) -> npt.NDArray[np.uint64]:
        """Hashes of all that was read, once each, in their order."""
        return self._hashes

    def include(self, category: str, entries: npt.NDArray[np.uint64]) -> None:
        """Take in what another list has read."""
        self._parts.append((entries, self._owner(category)))

    def _owner(self, category: str) -> int:
        if category not in self._categories:
            self._categories.append(category)
        return self._categories.index(category)

    def read(self, category: str, lines: IO[bytes]) -> Counter[str]:
        """Take the entries of a file in; counts of `entries` and of lines that are `unreadable`."""
        owner = self._owner(category)
        counts: Counter[str] = Counter()
        rest = b""
        while chunk := lines.read(CHUNK):
            chunk = rest + chunk
            cut = chunk.rfind(b"\n") + 1
            rest = chunk[cut:]
            self._take(chunk[:cut], owner, counts)
        self._take(rest, owner, counts)
        return counts

    def _take(self, chunk: bytes, owner: int, counts: Counter[str]) -> None:
        if not chunk.translate(None, PLAIN):
            lines = chunk.split()
            entries = [line for line in lines if b"." in line]
            counts["unreadable"] += len(lines) - len(entries)
        else:
            entries = []
            for line in chunk.decode("utf-8", "replace").splitlines():
                found = entry(line)
                counts["unreadable"] += found is None
                entries += [one.encode("utf-8", "replace") for one in found or ()]
        counts["entries"] += len(entries)
        self._parts.append((np.array([xxhash.xxh3_64_intdigest(one) for one in entries], np.uint64), owner))

    def sort(self) -> None:
        """Make ready what was read; of lists that have the same entry the first owns it."""
        hashes = np.concatenate([part for part, _ in self._parts] or [self._hashes])
        owners = np.concatenate([np.full(len(part), owner, np.uint32) for part, owner in self._parts] or [self._owners])
        self._parts = []
        self._hashes, first = np.unique(hashes, return_index=True)
        self._owners = owners[first]

    def reason(self, url: str) -> str:
        """`domain: LIST` or `url: LIST` of the first list that has a URL; "" of none has."""
        split = parts(url)
        if split is None or not len(self._hashes):
            return ""
        host, path = split
        domains = list(suffixes(host))
        urls = [bare + prefix for bare in {host: 0, host.removeprefix("www."): 0} for prefix in prefixes(path)]
        wanted = [xxhash.xxh3_64_intdigest(one.encode("utf-8", "replace")) for one in domains + urls]
        at = np.searchsorted(self._hashes, np.array(wanted, np.uint64))
        at[at == len(self._hashes)] = 0
        found = np.flatnonzero(self._hashes[at] == np.array(wanted, np.uint64))
        if not len(found):
            return ""
        kind = "domain" if found[0] < len(domains) else "url"
        return f"{kind}: {self._categories[self._owners[at[found[0]]]]}"


def entry(line: str) -> list[str] | None:
    """Hosts, and URLs without their schemes, of a line; [] of an empty one or a comment, None where it is neither."""
    text = line.split("#", 1)[0].strip() if not line.lstrip().startswith("!") else ""
    if not text:
        return []
    first, *others = text.split()
    if others:  # of a hosts file; names without a point are those of one's own machine
        if not _is_address(first):
            return None
        found = [_host(other) for other in others if "." in other and not _is_address(other)]
        return None if None in found else [one for one in found if one is not None]
    split = parts(first)
    if split is None:
        return None
    host, path = split
    return [host + path.rstrip("/?&#")] if path.rstrip("/?&#") else [host]


def parts(url: str) -> tuple[str, str] | None:
    """Host and what follows it, in small letters; None where there is no host with a point in it."""
    text = url.strip().lower()
    scheme = SCHEME.match(text)
    text = text[scheme.end() :] if scheme else text.removeprefix("//")
    authority = HOST.match(text)
    assert authority is not None
    host = _host(authority[0].rpartition("@")[2])
    return None if host is None else (host, text[authority.end() :])


def _host(text: str) -> str | None:
    """A host without its port, in ASCII (IDNA); None where it is none, or a name without a point."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
        return text if _is_address(text) else None
    text = text.partition(":")[0].removeprefix("*.").strip(".").lower()
    if not text.isascii():
        try:
            text = text.encode("idna").decode("ascii")
        except UnicodeError:
            return None
    return text if NAME.fullmatch(text) or _is_address(text) else None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def suffixes(host: str) -> Iterator[str]:
    """A host and those above it, but for the top-level domain; an address alone."""
    yield host
    if ":" in host or host.replace(".", "").isdigit():
        return
    labels = host.split(".")
    for i in range(1, len(labels) - 1):
        yield ".".join(labels[i:])


def prefixes(path: str) -> Iterable[str]:
    """A path up to each border in it, and whole."""
    ends = [match.start() for match in BORDER.finditer(path)][1:MOST_PREFIXES]
    return dict.fromkeys(path[:end].rstrip("/?&#") for end in [*ends, len(path)])


class UrlWords:
    """datatrove's rules on words in URLs, without its look at the registered domain: there tldextract asks the net."""

    def __init__(self) -> None:
        assets = Path(ASSETS_PATH)

        def listed(name: str) -> set[str]:
            lines = (assets / name).read_text(encoding="utf-8").splitlines()
            return {normalize(line) for line in lines if line and line[0] != "#"}

        self._hard, self._soft = listed("banned_words.txt"), listed("soft_banned_words.txt")
        self._subwords = ahocorasick.Automaton(ahocorasick.STORE_LENGTH)
        for word in listed("banned_subwords.txt"):
            self._subwords.add_word(word)
        self._subwords.make_automaton()

    def reason(self, url: str) -> str:
        """datatrove's reason, or ""."""
        url = url.lower()
        words = set(normalizer.split(url))
        if not words.isdisjoint(self._hard):
            return "hard_blacklisted"
        if len(words & self._soft) >= 2:
            return "soft_blacklisted"
        return "blacklisted_subword" if next(self._subwords.iter(normalize(url)), None) else ""
