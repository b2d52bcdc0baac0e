"""How numbers that tell of a person are written: the forms that `personal` looks for.

Each has its published checksum or ranges (`numbers`). Digits alone are version numbers, hashes, tables and times far
more often than anybody's number. So what is written in its customary groups is taken as it stands; what is not, only
behind a word that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from llama31.curate.safety import numbers

BEFORE, AFTER = r"(?<![\w.,/=#%&@$€£\-])(?<![0-9]:)", r"(?![\w%+]|[.,/\-:][0-9])"


@dataclass(frozen=True)
class Form:
    """One way to write something.

    Args:
        name: what is counted.
        kind: its placeholder.
        pattern: how it is written.
        valid: whether the characters without separators are one that is given out.
        near: words one of which has to stand before it; None where it speaks for itself.
    """

    name: str
    kind: str
    pattern: re.Pattern[str]
    valid: Callable[[str], bool]
    near: re.Pattern[str] | None = None

    @property
    def capitals(self) -> bool:
        """Whether it begins with capitals, and may have fewer than seven digits together."""
        return self.name in ("iban", "uk_nino", "codice_fiscale", "indian_pan", "spanish_nie", "mexican_curp")

    def end(self, text: str, match: re.Match[str]) -> int:
        """Where what was matched ends; of an IBAN, behind which a word may stand, by its country's length."""
        if self.name != "iban":
            return match.end()
        at, wanted = match.start(), numbers.IBAN_LENGTHS.get(match[0][:2], 0)
        while wanted and at < match.end():
            wanted -= text[at] != " "
            at += 1
        return at


def _form(
    name: str, kind: str, pattern: str, valid: Callable[[str], bool], near: str | None = None, before: str = BEFORE
) -> Form:
    words = re.compile(rf"(?:{near})", re.IGNORECASE) if near else None
    return Form(name, kind, re.compile(f"{before}(?:{pattern}){AFTER}"), valid, words)


def _international(characters: str) -> bool:
    """A number of E.164's length, 15 digits with the country's code; of fewer than 9 few countries give any out."""
    return 9 <= len(characters) <= 15 and len(set(characters)) > 2


def _north_american(characters: str) -> bool:
    """Area code and exchange of the North American Numbering Plan."""
    digits = characters[-10:]
    return digits[1:3] != "11" and digits[4:6] != "11" and len(set(digits)) > 2


def fictional(characters: str) -> bool:
    """Phones set apart for drama: 555-0100 to 555-0199 (NANPA), Ofcom's of London, of mobiles and of no area."""
    if characters[-7:-2] == "55501" and len(characters) in (10, 11):
        return True
    british = characters.removeprefix("44").removeprefix("0")
    return british.startswith(("1632960", "7700900", "2079460")) and len(british) == 10


def _local(characters: str) -> bool:
    return 7 <= len(characters) <= 13 and len(set(characters)) > 2


PHONE = r"\btel(?:\b|efon|[eé]fono|efone|emóvel)|\btél|phone|\bfax|mobile|handy|mobil\b|portable|cellulare|celular"
PHONE += r"|\bcell[.:]|\btelf\b|\btlf|\btfno|whatsapp|móvil|फ़?ोन|मोबाइल|दूरभाष|โทร|มือถือ|แฟกซ์"
INTERNATIONAL = r"\+(?![0-9]+(?:\.[0-9]+){3})[1-9][0-9]{0,2}(?:[ .\-/\u00a0\u2011]?\(?[0-9]{1,12}\)?){1,6}"
INTERNATIONAL += r"(?:(?<=[0-9]{2})|(?<=[0-9]-[0-9]))"  # with -0 at its end whoever answers
NORTH_AMERICAN = r"(?:1[ .\-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.\-])[2-9][0-9]{2}[.\-][0-9]{4}"
# Not amid pairs of hexadecimal digits, nor a date.
FRENCH = r"(?<![0-9a-fA-F]{2} )0[1-9](?:([ .])[0-9]{2})(?:\1[0-9]{2}){3}(?! {1,2}[0-9a-fA-F]{2}\b)"
LOCAL = r"(?!(?:19|20)[0-9]{2}-[0-9]{2}-[0-9]{2}(?![0-9]))\(?[0-9](?:[ .\-/()]{0,2}[0-9]){6,12}"
CALL = rf"(?:{PHONE})\w*[^\n0-9]{{0,12}}$"
LETTERS = "0-9LMNPQRSTUV"
FORMS: tuple[Form, ...] = (
    _form("card", "card", r"[0-9]{4}([ \-]?)[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?", numbers.card),
    _form("card", "card", r"3[0-9]{3}([ \-]?)[0-9]{6}\1[0-9]{4,5}", numbers.card),
    _form("iban", "iban", r"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?", numbers.iban),
    _form("us_ssn", "id", r"[0-9]{3}-[0-9]{2}-[0-9]{4}", numbers.us_ssn),
    _form("us_ssn", "id", r"[0-9]{3}( ?)[0-9]{2}\1[0-9]{4}", numbers.us_ssn, r"\bSSN\b|social security"),
    _form("uk_nino", "id", r"[A-Z]{2} [0-9]{2} [0-9]{2} [0-9]{2} [A-D]", numbers.uk_nino),
    _form("uk_nino", "id", r"[A-Z]{2} ?[0-9]{6} ?[A-D]", numbers.uk_nino, r"national insurance|\bNINO\b|\bNI n"),
    _form("german_tax_id", "id", r"[0-9]{2} [0-9]{3} [0-9]{3} [0-9]{3}", numbers.german_tax_id),
    _form(
        "german_tax_id", "id", r"[0-9]{11}", numbers.german_tax_id, r"steuer|id-?nr|identifikationsn|\btax\b|\bTIN\b"
    ),
    _form("french_nir", "id", r"[1-478](?: [0-9]{2}){2} [0-9][0-9AB](?: [0-9]{3}){2} [0-9]{2}", numbers.french_nir),
    _form(
        "french_nir", "id", r"[1-478][0-9]{5}[0-9AB][0-9]{8}", numbers.french_nir, r"sécu|\bNIR\b|\bINSEE\b|\bsocial"
    ),
    _form(
        "codice_fiscale",
        "id",
        rf"[A-Z]{{6}}[{LETTERS}]{{2}}[A-Z][{LETTERS}]{{2}}[A-Z][{LETTERS}]{{3}}[A-Z]",
        numbers.codice_fiscale,
    ),
    _form("brazilian_cpf", "id", r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", numbers.cpf),
    _form("brazilian_cpf", "id", r"[0-9]{9}-?[0-9]{2}", numbers.cpf, r"\bCPF\b"),
    _form("portuguese_nif", "id", r"[0-9]{3}( ?)[0-9]{3}\1[0-9]{3}", numbers.nif, r"\bNIF\b|contribuinte|fiscal"),
    _form("indian_aadhaar", "id", r"[0-9]{4}([ \-]?)[0-9]{4}\1[0-9]{4}", numbers.aadhaar, r"aadhaa?r|UIDAI|आधार"),
    _form("indian_pan", "id", r"[A-Z]{5}[0-9]{4}[A-Z]", numbers.pan),
    _form("spanish_dni", "id", r"[0-9]{2}\.?[0-9]{3}\.?[0-9]{3}-[A-Z]|[0-9]{8}[A-KM-Z]", numbers.dni),
    _form("spanish_dni", "id", r"[0-9]{2}\.?[0-9]{3}\.?[0-9]{3}[ \-]?[A-Z]", numbers.dni, r"\bDNI\b|\bNIF\b|identidad"),
    _form("spanish_nie", "id", r"[XYZ][ \-]?[0-9]{7}[ \-]?[A-Z]", numbers.dni),
    _form(
        "german_pension",
        "id",
        r"[0-9]{2}( ?)[0-9]{6}\1[A-Z]\1[0-9]{3}",
        numbers.german_pension,
        r"versicherung|\bRVNR|\bSV-?N|rente",
    ),
    _form("austrian_svnr", "id", r"[0-9]{4} ?[0-9]{6}", numbers.austrian_svnr, r"versicherung|\bSV-?N"),
    _form("swiss_ahv", "id", r"756\.[0-9]{4}\.[0-9]{4}\.[0-9]{2}", numbers.swiss_ahv),
    _form("swiss_ahv", "id", r"756[0-9]{10}", numbers.swiss_ahv, r"\bA[HV][VS]\b|versicher|assuran|assicura"),
    _form("belgian_nrn", "id", r"[0-9]{2}\.[01][0-9]\.[0-3][0-9]-[0-9]{3}\.[0-9]{2}", numbers.belgian_nrn),
    _form("mexican_curp", "id", r"[A-Z]{4}[0-9]{2}[01][0-9][0-3][0-9][HMX][A-Z]{5}[A-Z0-9][0-9]", numbers.curp),
    _form("argentine_cuil", "id", r"2[0347]-[0-9]{8}-[0-9]", numbers.cuil),
    _form("chilean_rut", "id", r"[0-9]{1,2}\.[0-9]{3}\.[0-9]{3}-[0-9Kk]", numbers.rut),
    _form("chilean_rut", "id", r"[0-9]{7,8}-[0-9Kk]", numbers.rut, r"\bRU[TN]\b"),
    _form(
        "canadian_sin",
        "id",
        r"[0-9]{3}([ \-]?)[0-9]{3}\1[0-9]{3}",
        numbers.canadian_sin,
        r"social insurance|assurance sociale|(?-i:\bSIN\b|\bNAS\b)",
    ),
    _form("australian_tfn", "id", r"[0-9]{3}( ?)[0-9]{3}\1[0-9]{3}", numbers.australian_tfn, r"tax file|(?-i:\bTFN\b)"),
    _form("thai_id", "id", r"[0-9]([ \-])[0-9]{4}\1[0-9]{5}\1[0-9]{2}\1[0-9]", numbers.thai_id),
    _form("thai_id", "id", r"[0-9]{13}", numbers.thai_id, r"ประชาชน|\bID\b|\bidentification"),
    _form("phone", "phone", INTERNATIONAL, _international, before=r"(?<![\w+~.\-])"),
    _form("phone", "phone", NORTH_AMERICAN, _north_american),
    _form("phone", "phone", FRENCH, _local),
    _form("phone", "phone", r"\([1-9]{2}\) ?9?[0-9]{4}-[0-9]{4}|0[689][0-9]-[0-9]{3}-[0-9]{4}", _local),
    _form("phone", "phone", r"0(?:20 [0-9]{4} [0-9]{4}|1[0-9]{3} [0-9]{6}|7[0-9]{3} [0-9]{6})", _local),
    _form("phone", "phone", LOCAL, _local, CALL, before=r"(?<![\w.,#~+\-])"),
)
