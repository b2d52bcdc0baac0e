"""Which charset of Latin letters a text is in: the one in which its letters are those of one language.

Where a page says nothing, or what its server says of every page, a detector's guess is all there is. cchardet 2.2 tells
Polish, Czech and Hungarian from the West, but takes Italian for UTF-8 or Nordic and short Spanish for Central European;
and servers declare ISO 8859-1 for all of them. Letters beyond ASCII tell: `ca³y` and `pøíklad` are in no language of
the West, and no Slavic one has the `ę` and `ç` that French makes in a charset of theirs.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

ALPHABETS = {
    ("cp1252", "iso8859-15"): (
        "äöüß", "äöåéü", "æøåéäö", "àâæçéèêëîïôœùûüÿ", "àèéìîòóùú", "áéíñóúüçª", "ãâáàçéêíóôõúüªº", "éëïóèöüáêíôú",
        "áéíóúýþæöð", "àéèíïóòúüç·", "êëéèôîïûöü", "çë", "áéíóú",
    ),
    ("cp1250", "iso8859-2"): ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "čćđšž", "ăâîşţ"),
    ("cp1254",): ("çğıöşüâîû",),
    ("cp1257", "iso8859-13"): ("ąčęėįšųūž", "āčēģīķļņšūž", "äöüõšž"),
}  # fmt: skip
# The ten commonest letters of a script, in whose charsets the bytes of others are other letters or capitals.
COMMONEST = {
    "cp1251": "оеаинтсрвл", "koi8-u": "оеаинтсрвл", "iso8859-5": "оеаинтсрвл", "cp866": "оеаинтсрвл",
    "cp1253": "αοιετσνηυρ", "cp1255": "יוהלאמרתשנ", "cp1256": "اليمنورتدب", "cp874": "านรอกเงมวย",
}  # fmt: skip
HALF = 0.45
LANGUAGES = {name: languages for names, languages in ALPHABETS.items() for name in names}
BETWEEN = frozenset(
    "\u2019\u2018\xb4`\xad\xa0\u2013\u2014-\xb7\u2026\u2022"
)  # what stands between two letters, and is none
NONE = frozenset(["\ufffd", *map(chr, range(0x80, 0xA0))])  # what text never holds: undefined, or controls of C1
TAG = re.compile(rb"<[^>]*>")
HIGH = re.compile(rb"(?<![A-Za-z\x80-\xff])([\x80-\xff])|([\x80-\xff])(?![A-Za-z\x80-\xff])|([\x80-\xff])")
LEAST = 0.95  # of the letters have to be of one language
FEWEST, CLEARLY = 2, 0.03  # letters that do not fit what is declared, and their share


def told(body: bytes, declared: str | None, likely: Sequence[str]) -> str | None:
    """The charset that a text's letters tell, a name of Python's, or None where they tell nothing or no other.

    `declared` is a charset of one byte a letter, or None where nothing is declared: then of charsets in which all fits
    alike the first of `likely` is taken.
    """
    at_edge, inside = Counter[int](), Counter[int]()
    for before, behind, within in HIGH.findall(TAG.sub(b" ", body)):
        (inside if within else at_edge)[(before or behind or within)[0]] += 1
    shares = {name: _share(name, at_edge, inside) for name in LANGUAGES}
    best, letters = max(shares.values()), at_edge.total() + inside.total()
    if not letters or best < LEAST or (declared and best - shares.get(declared, 0.0) < max(FEWEST / letters, CLEARLY)):
        return None
    alike = [name for name, share in shares.items() if share == best]
    return next((name for name in likely if name in alike), alike[0])


def of_script(body: bytes) -> str | None:
    """The charset of Cyrillic, Greek, Hebrew, Arabic or Thai in which half of a text are its commonest letters."""
    best, most = None, HALF
    for name, letters in COMMONEST.items():
        beyond = [one for one in body.decode(name, "replace") if one > "\x7f"]
        share = sum(one in letters for one in beyond) / max(1, len(beyond))
        if share > most:
            best, most = name, share
    return best


def _share(name: str, at_edge: Mapping[int, int], inside: Mapping[int, int]) -> float:
    """The largest share of letters beyond ASCII that one language has; 1 where there are none, 0 where text cannot be.

    Marks count where a letter would have to be, between two others.
    """
    letters = Counter[str]()
    for counts, marks in ((at_edge, False), (inside, True)):
        for byte, count in counts.items():
            letter = _table(name)[byte]
            if letter in NONE:
                return 0.0
            if letter.isalpha() or (marks and letter not in BETWEEN):
                letters[letter] += count
    every = letters.total()
    known = (sum(count for one, count in letters.items() if one.lower() in language) for language in LANGUAGES[name])
    return max(known) / every if every else 1.0


@functools.cache
def _table(name: str) -> str:
    """What each byte is; controls and what is none as itself."""
    return "".join(bytes([byte]).decode(name, "replace") for byte in range(256))
