"""What the source of a page holds, found once: most steps have nothing to do on most pages, and learn it from here.

Each search for what a page does not hold reads all of it; one pass from tag to tag takes the time of three or four.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

# The tags that some step asks for, and those of which one is in every page that writes its tags in upper case.
UPPER = ("<P", "</H", "</B", "</S")
BEGUN = re.compile(
    "<(?:pre|code|kbd|m(?:ath|jx-(?:container)?|(?:ml)?:)|t(?:[dht]|able)|ol|ul|s(?:u[bp]|amp)|article|P|/[HBS])"
)


class PageMarks(NamedTuple):
    """A page in lower case where its tags are in upper case (`upper`), as it stands where not.

    `tags` says how many tags begin with `<pre`, `<td` and the others of BEGUN: `<thead>` counts as `<th`.
    """

    lower: str
    upper: bool
    tags: Counter[str]


def of(html: str) -> PageMarks:
    """What a page holds."""
    tags = Counter(BEGUN.findall(html))
    if not any(tag in tags for tag in UPPER):
        return PageMarks(html, False, tags)
    lower = html.lower()
    return PageMarks(lower, True, Counter(BEGUN.findall(lower)))


def holds(text: str, mark: str) -> bool:
    """Whether a mark is in a text: its first character alone is searched for 30 times as fast, and often absent."""
    return mark[0] in text and mark in text
