"""Published forms and checksums of numbers that name a person, an account or a card.

A function takes the characters of a number without separators and says whether it is one that could have been given
out. Sources stand with each; forms without a checksum (US SSN, UK NINO, Indian PAN) are told by their ranges alone.
"""

from __future__ import annotations

from collections.abc import Sequence

CONTROL = "TRWAGMYFPDXBNJZSQVHLCKE"  # Spain: letter by remainder of 23 (Real Decreto 1553/2005)
# Italy: values of characters at odd places (decreto ministeriale of 23 December 1976); digits count as A to J.
ODD = dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
    )
)
# Verhoeff 1969, "Error detecting decimal codes": one permutation, applied as often as a digit's place says.
PERMUTATION = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)
# Registry of IBANs (ISO 13616, SWIFT): characters by country.
IBAN_LENGTHS = {
    "NO": 15,
    "BE": 16,
    **dict.fromkeys(("DK", "FI", "FK", "FO", "GL", "NL", "SD"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "XK", "MN"), 20),
    **dict.fromkeys(("CH", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "CR", "DE", "GB", "GE", "IE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "TL", "SO", "OM"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("PT", "LY", "ST"), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("BI", "DJ", "FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "PL", "SV", "NI"), 28),
    **dict.fromkeys(("BR", "EG", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU", "YE"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
    "LC": 32,
    "RU": 33,
}


def _weighted(digits: str, weights: Sequence[int]) -> int:
    """The sum of the first digits, each times its weight."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights))


def luhn(digits: str) -> bool:
    """Luhn's check digit (ISO/IEC 7812-1, annex B)."""
    twice = sum(int(digit) * 2 - 9 * (int(digit) > 4) for digit in digits[-2::-2])
    return (twice + sum(map(int, digits[-1::-2]))) % 10 == 0


def card(digits: str) -> bool:
    """A payment card: length and first digits of a brand (ISO/IEC 7812-1), and Luhn."""
    head = int(digits[:4])
    brands = {
        13: digits[0] == "4",
        14: 3000 <= head <= 3059 or digits[:2] in ("36", "38", "39"),
        15: digits[:2] in ("34", "37"),
        16: digits[0] == "4"
        or 5100 <= head <= 5599
        or 2221 <= head <= 2720
        or head == 6011
        or 6440 <= head <= 6599
        or 3528 <= head <= 3589
        or digits[:2] == "62",
        19: digits[0] == "4" or digits[:2] == "62",
    }
    return brands.get(len(digits), False) and len(set(digits)) > 2 and luhn(digits)


def iban(characters: str) -> bool:
    """An IBAN: its country's length, and remainder 1 of 97 (ISO 13616, ISO/IEC 7064 MOD 97-10)."""
    if len(characters) != IBAN_LENGTHS.get(characters[:2]):
        return False
    return int("".join(str(int(one, 36)) for one in characters[4:] + characters[:4])) % 97 == 1


def us_ssn(digits: str) -> bool:
    """US social security number: ranges that the Social Security Administration gives out (no checksum)."""
    return digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


def uk_nino(characters: str) -> bool:
    """UK national insurance number: prefixes that HMRC gives out (NIM39110; no checksum)."""
    first, second = characters[0], characters[1]
    if first in "DFIQUV" or second in "DFIQUVO" or characters[:2] in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ"):
        return False
    return characters[-1] in "ABCD"


def german_tax_id(digits: str) -> bool:
    """Steuerliche Identifikationsnummer (section 139b AO): of its first ten digits one stands twice or three times, no
    other more than once, and not three times in a row; check digit by ISO/IEC 7064 MOD 11,10.
    """
    counts = sorted(digits[:10].count(digit) for digit in set(digits[:10]))
    if digits[0] == "0" or counts[-1] not in (2, 3) or (len(counts) > 1 and counts[-2] > 1):
        return False
    if any(digit * 3 in digits[:10] for digit in "0123456789"):
        return False
    product = 10
    for digit in digits[:10]:
        product = ((int(digit) + product - 1) % 10 + 1) * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def french_nir(characters: str) -> bool:
    """NIR of 15 characters (INSEE): sex, year, month, department (2A and 2B in Corsica), key 97 - number mod 97."""
    department = {"2A": "19", "2B": "18"}.get(characters[5:7], characters[5:7])
    body = characters[:5] + department + characters[7:13]
    if not body.isdigit() or not characters[13:].isdigit():
        return False
    month = int(characters[3:5])
    known = 1 <= month <= 12 or 20 <= month <= 42 or 50 <= month <= 99  # registered without a birth certificate
    return body[0] in "123478" and known and 97 - int(body) % 97 == int(characters[13:])


def codice_fiscale(characters: str) -> bool:
    """Italian codice fiscale of 16 characters: check letter by odd and even places; digits may be L to V instead."""
    if characters[8] not in "ABCDEHLMPRST":
        return False
    total = 0
    for i, one in enumerate(characters[:15]):
        letter = "ABCDEFGHIJ"[int(one)] if one.isdigit() else one
        total += ODD[letter] if i % 2 == 0 else ord(letter) - ord("A")
    return chr(ord("A") + total % 26) == characters[15]


def cpf(digits: str) -> bool:
    """Brazilian CPF of 11 digits: two check digits modulo 11 (Receita Federal)."""
    if len(set(digits)) == 1:
        return False
    for count in (9, 10):
        total = sum(int(digit) * (count + 1 - i) for i, digit in enumerate(digits[:count]))
        if total * 10 % 11 % 10 != int(digits[count]):
            return False
    return True


def nif(digits: str) -> bool:
    """Portuguese NIF of a natural person (first digit 1, 2, 3, or 45): check digit modulo 11."""
    total = sum(int(digit) * (9 - i) for i, digit in enumerate(digits[:8]))
    return (digits[0] in "123" or digits[:2] == "45") and (0 if total % 11 < 2 else 11 - total % 11) == int(digits[8])


def aadhaar(digits: str) -> bool:
    """Indian Aadhaar of 12 digits (UIDAI): first digit 2 to 9, check digit by Verhoeff."""
    check = 0
    for i, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(i % 8):
            value = PERMUTATION[value]
        check = _dihedral(check, value)
    return digits[0] not in "01" and len(set(digits)) > 2 and check == 0


def _dihedral(left: int, right: int) -> int:
    """The product in the dihedral group of order ten: 0 to 4 turn, 5 to 9 turn and reflect."""
    if left < 5:
        return (left + right) % 5 + 5 * (right >= 5)
    return (left - right) % 5 + 5 * (right < 5)


def pan(characters: str) -> bool:
    """Indian PAN of a person: fourth letter P (Income Tax Department; its last letter's rule is not published)."""
    return characters[3] == "P" and characters[5:9] != "0000"


def dni(characters: str) -> bool:
    """Spanish DNI, 8 digits and a letter, and NIE, X, Y or Z, 7 digits and a letter: remainder of 23."""
    number = int({"X": "0", "Y": "1", "Z": "2"}.get(characters[0], characters[0]) + characters[1:8])
    return number > 0 and CONTROL[number % 23] == characters[8]


def german_pension(characters: str) -> bool:
    """German pension number of 12 characters (VKVV, section 4): digit sums of weighted digits modulo 10, A as 01."""
    place = f"{ord(characters[8]) - ord('A') + 1:02}"
    digits = characters[:8] + place + characters[9:11]
    products = (int(digit) * weight for digit, weight in zip(digits, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1)))
    dated = 1 <= int(characters[2:4]) <= 81 and 1 <= int(characters[4:6]) <= 12  # days, or 50 more where they were used
    return dated and sum(product // 10 + product % 10 for product in products) % 10 == int(characters[11])


def austrian_svnr(digits: str) -> bool:
    """Austrian social insurance number of 10 digits: the fourth is the rest of the weighted others modulo 11."""
    total = _weighted(digits, (3, 7, 9, 0, 5, 8, 4, 2, 1, 6))
    return digits[0] != "0" and total % 11 == int(digits[3])


def swiss_ahv(digits: str) -> bool:
    """Swiss AHV number of 13 digits (756 for the country): check digit of an EAN."""
    total = sum(int(digit) * (3 if i % 2 else 1) for i, digit in enumerate(digits))
    return digits.startswith("756") and total % 10 == 0


def belgian_nrn(digits: str) -> bool:
    """Belgian national register number of 11 digits: 97 less the rest of the first nine, with a 2 before from 2000."""
    return any(97 - int(before + digits[:9]) % 97 == int(digits[9:]) for before in ("", "2"))


def curp(characters: str) -> bool:
    """Mexican CURP of 18 characters (RENAPO): check digit modulo 10 over digits and letters in their order."""
    order = "0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ"
    total = sum(order.index(one) * (18 - i) for i, one in enumerate(characters[:17]))
    return -total % 10 == int(characters[17])


def cuil(digits: str) -> bool:
    """Argentine CUIL of a person, 11 digits: check digit modulo 11 (ANSES)."""
    check = 11 - _weighted(digits, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return digits[:2] in ("20", "23", "24", "27") and {10: 9, 11: 0}.get(check, check) == int(digits[10])


def rut(characters: str) -> bool:
    """Chilean RUT of a person, below 50 million: check digit modulo 11, K for ten."""
    total = sum(int(digit) * (2 + i % 6) for i, digit in enumerate(reversed(characters[:-1])))
    return int(characters[:-1]) < 50_000_000 and "0123456789K0"[11 - total % 11] == characters[-1].upper()


def canadian_sin(digits: str) -> bool:
    """Canadian social insurance number of 9 digits, first 1 to 7 or 9: Luhn."""
    return digits[0] not in "08" and len(set(digits)) > 2 and luhn(digits)


def australian_tfn(digits: str) -> bool:
    """Australian tax file number of 9 digits: weighted sum divisible by 11."""
    return _weighted(digits, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def thai_id(digits: str) -> bool:
    """Thai national identification number of 13 digits: first digit 1 to 8, check digit modulo 11."""
    total = sum(int(digit) * (13 - i) for i, digit in enumerate(digits[:12]))
    return digits[0] in "12345678" and (11 - total % 11) % 10 == int(digits[12])
