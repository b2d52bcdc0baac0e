"""Personal data in prose of eight languages: found, replaced and counted; and what only looks like it."""

from __future__ import annotations

import gzip
import itertools
import random
import string
from collections import Counter
from collections.abc import Callable

import pytest
from datatrove.data import Document
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31.curate.safety import numbers, personal
from tests.curate import debian

KINDS = tuple(personal.PLACEHOLDERS)


def replaced(text: str) -> tuple[str, dict[str, int]]:
    found, _ = personal.find(text, KINDS)
    return personal.replaced(text, found, personal.PLACEHOLDERS), dict(Counter(one.name for one in found))


# Examples that authorities publish or that are in common use as such, and what is wrong by one character.
PUBLISHED: list[tuple[Callable[[str], bool], str, str]] = [
    (numbers.luhn, "79927398713", "79927398710"),
    (numbers.card, "4539148803436467", "4539148803436468"),
    (numbers.card, "378282246310005", "378282246310006"),
    (numbers.iban, "GB82WEST12345698765432", "GB82WEST12345698765431"),
    (numbers.iban, "DE89370400440532013000", "DE8937040044053201300"),
    (numbers.us_ssn, "219099999", "666099999"),
    (numbers.uk_nino, "AB123456C", "QQ123456C"),
    (numbers.german_tax_id, "86095742719", "86095742718"),
    (numbers.german_tax_id, "65929970489", "65929970488"),
    (numbers.french_nir, "269054958815780", "269054958815781"),
    (numbers.codice_fiscale, "RSSMRA85T10A562S", "RSSMRA85T10A562T"),
    (numbers.cpf, "11144477735", "11144477734"),
    (numbers.nif, "123456789", "123456788"),
    (numbers.pan, "ABCPE1234F", "ABCDE1234F"),
    (numbers.dni, "12345678Z", "12345678A"),
    (numbers.dni, "X1234567L", "Y1234567L"),
    (numbers.aadhaar, "2363", "2364"),
    (numbers.german_pension, "15070649C103", "15070649C108"),
    (numbers.austrian_svnr, "1237010180", "1238010180"),
    (numbers.swiss_ahv, "7569217076985", "7569217076984"),
    (numbers.belgian_nrn, "85073003328", "85073003329"),
    (numbers.curp, "HEGG560427MVZRRL04", "HEGG560427MVZRRL05"),
    (numbers.cuil, "20123456786", "30123456781"),
    (numbers.rut, "125319092", "12531909K"),
    (numbers.canadian_sin, "123456782", "046454286"),
    (numbers.australian_tfn, "123456782", "123456783"),
]


@pytest.mark.parametrize(("check", "right", "wrong"), PUBLISHED)
def test_checksums(check: Callable[[str], bool], right: str, wrong: str) -> None:
    assert check(right) and not check(wrong)


def test_a_checksum_leaves_one_of_ten() -> None:
    """Of numbers made at random, one in ten or fewer passes; so digits alone are not taken for anybody's."""
    draw = random.Random(0)
    for check, length, most in (
        (numbers.luhn, 16, 0.11),
        (numbers.german_tax_id, 11, 0.02),
        (numbers.cpf, 11, 0.02),
        (numbers.aadhaar, 12, 0.11),
        (numbers.thai_id, 13, 0.11),
        (numbers.nif, 9, 0.06),
    ):
        passed = sum(check("".join(draw.choices(string.digits, k=length))) for _ in range(3000)) / 3000
        assert 0 < passed <= most, check


def made(check: Callable[[str], bool], body: str) -> str:
    """A number whose last digits make it right."""
    return next(body + end for end in (f"{i:02}" for i in range(100)) if check(body + end))


THAI = made(numbers.thai_id, "11017002307")
AADHAAR = made(numbers.aadhaar, "2345678901")
PROSE = [
    ("Write to jane.doe+news@mail.wikimedia.org.uk, or call (212) 736-5000.", ["email", "phone"]),
    ("Her social security number is 219-09-9998; the card 4539 1488 0343 6467 expires 12/26.", ["us_ssn", "card"]),
    ("National Insurance number AB123456C, in groups AB 12 34 56 C.", ["uk_nino", "uk_nino"]),
    ("Bitte überweisen Sie auf DE89 3704 0044 0532 0130 00 BIC COBADEFF.", ["iban"]),
    ("Meine Steuer-ID lautet 86095742719, Telefon: 030/901820.", ["german_tax_id", "phone"]),
    ("Sécurité sociale : 2 69 05 49 588 157 80, appelez le 01 42 34 56 78.", ["french_nir", "phone"]),
    ("Il codice fiscale RSSMRA85T10A562S di Mario, tel. 06 69821234", ["codice_fiscale", "phone"]),
    (
        "O CPF dela é 111.444.777-35, celular (11) 98765-4321; NIF: 123 456 789.",
        ["brazilian_cpf", "phone", "portuguese_nif"],
    ),
    (
        f"मेरा आधार नंबर {AADHAAR[:4]} {AADHAAR[4:8]} {AADHAAR[8:]} है, पैन ABCPE1234F, फोन: ९८७६५ ४३२१०।",
        ["indian_aadhaar", "indian_pan", "phone"],
    ),
    ("Mi DNI es 12345678Z, mi NIE X-1234567-L y mi móvil 612 345 678.", ["spanish_dni", "spanish_nie", "phone"]),
    (f"เลขประจำตัวประชาชน {THAI} โทร 081-234-5678", ["thai_id", "phone"]),
    (f"บัตร {THAI[0]}-{THAI[1:5]}-{THAI[5:10]}-{THAI[10:12]}-{THAI[12]} นะครับ", ["thai_id"]),
    (
        "Anrufe an +49 30 901820 oder +1 650-253-0000 kommen von 193.99.144.80 und 2a00:1450:4001:80b::200e.",
        ["phone", "phone", "ipv4", "ipv6"],
    ),
    ("E-mail : prénom.nom@orange.fr, jürgen@müller.de; Tel.: +49 (0)30 901820-0", ["email", "email", "phone"]),
    ("Italiano cell. 333 1234567; Tlf. 912 345 678, WhatsApp 11 91234-5678.", ["phone", "phone", "phone"]),
    ("SSN: 219099998, and the other one's social security number 219 09 9998", ["us_ssn", "us_ssn"]),
    ("Versicherungsnummer 15 070649 C 103; österreichische SV-Nr. 1237 010180", ["german_pension", "austrian_svnr"]),
    ("AHV-Nr. 756.9217.0769.85, au registre national 85.07.30-033.28", ["swiss_ahv", "belgian_nrn"]),
    (
        "CURP HEGG560427MVZRRL04; CUIL 20-12345678-6, RUT 12.531.909-2",
        ["mexican_curp", "argentine_cuil", "chilean_rut"],
    ),
    ("Social insurance number 123 456 782 of Canada and of others", ["canadian_sin"]),
    ("Her tax file number is 123 456 782.", ["australian_tfn"]),
    ("请联系zhang.wei@qq.com谢谢", ["email"]),
    ("ping 8.8.8.8: nothing; the server 8.8.4.4 and http://1.1.1.1/dns", ["ipv4", "ipv4"]),
]


@pytest.mark.parametrize(("text", "names"), PROSE)
def test_prose(text: str, names: list[str]) -> None:
    found, _ = personal.find(text, KINDS)
    assert [one.name for one in found] == names
    changed = personal.replaced(text, found, personal.PLACEHOLDERS)
    kinds = [personal.PLACEHOLDERS[one.kind] for one in found]
    assert [part for part in kinds if part in changed] == kinds and not personal.find(changed, KINDS)[0]
    # All that stands between is as it was.
    rest = text
    for one in reversed(found):
        rest = rest[: one.start] + "\0" + rest[one.end :]
    for kind in kinds:
        changed = changed.replace(kind, "\0", 1)
    assert changed == rest


NOBODYS = [
    "Version 1.2.3.4, v2.6.32.45, Chrome/120.0.109.109, libc6-2.31.0.113-1, 1.3.6.1.4.1.311, kernel 5.10.200.104",
    "d41d8cd98f00b204e9800998ecf8427e 0x80000000 1700000000000000 9780306406157 3.14159265358979 12345678L",
    "2024-01-01 12:30:45.123456 20240101123045 1234567 12345678901 1,234,567,890 1999 2000 2001 2002 2003 2004",
    "icon@2x.png git@github.com:user/project.git @decorator.method user@host a @ b.com std::dead::beef 12:34:56:78",
    "00 01 02 03 04 05 06 07 08 09 0a  ISO 8859-1 (2001) 4539 1488 0343 6466 123-45-678 000-12-3456 UTF-16LE",
    "portable code\n\n2001-11-27  Somebody; the mobile version 2019-02-28; tel. numbers since 2004-04-23",
    "85.07.30-033.29 756.9217.0769.84 20-12345678-5 12.531.909-3 HEGG560427MVZRRL05 15 070649 C 103 123 456 782",
    "sin 123 456 782; +12 345 6-7; x = 12-3456789-0",
    "+192.168.2.100 ++1234567890 +12 3 ~+20191229111838 ABCDE12345 RSSMRA85T10A562T DE89 3704 0044 0532 0130 01",
]


@pytest.mark.parametrize("text", NOBODYS)
def test_what_only_looks_like_it(text: str) -> None:
    assert replaced(text) == (text, {})


def test_reserved_ones_are_left_and_counted() -> None:
    text = "a@example.com b@mail.example.org c@host.test 10.0.0.1 127.0.0.1 192.0.2.7 IP 224.0.0.1 2001:db8::1, "
    text += "call (212) 555-0123, +44 7700 900123, 020 7946 0123"
    block = personal.PersonalDataFilter()
    document = Document(text=text, id="")
    assert block.filter(document) is True and document.text == text and "personal_data" not in document.metadata
    counts = {name: stat.total for name, stat in block.stats.stats.items()}
    assert counts == {"left: email": 3, "left: ipv4": 4, "left: ipv6": 1, "left: phone": 3}
    everything = Document(text=text, id="")
    personal.PersonalDataFilter(keep_reserved=False).filter(everything)
    assert "@" not in everything.text and "555" not in everything.text and "10.0.0.1" not in everything.text


def test_placeholders_and_much_of_it() -> None:
    text = "Mail to jane@wikimedia.org or call +49 30 901820 for more words"
    document = Document(text=text, id="", metadata={"language": "en"})
    assert personal.PersonalDataFilter({"email": "[mail]"}).filter(document) is True
    assert document.text == "Mail to [mail] or call +49 30 901820 for more words"
    assert document.metadata["personal_data"] == {"email": 1}
    limited = personal.PersonalDataFilter(max_per_1000_words=100)
    assert limited.filter(Document(text=text, id="")) == (False, "personal_data")
    assert limited.filter(Document(text=text + " and more" * 20, id="")) is True
    with pytest.raises(ValueError, match=r"placeholders has 'mail'; .* email, ip"):
        personal.PersonalDataFilter({"mail": ""})


def test_text_full_of_numbers_has_hardly_any() -> None:
    """SymPy's and Python's documentation, without e-mail: three in a million characters are what they look like."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in debian.files("python-sympy-doc", limit=40)]
    for path in debian.files("python3.11", "changelog*.gz"):
        texts.append(gzip.decompress(path.read_bytes()).decode("utf-8", "replace"))
    counts: Counter[str] = Counter()
    for text in texts:
        counts += Counter(one.name for one in personal.find(text, KINDS)[0])
    assert sum(map(len, texts)) > 1_000_000
    assert sum(count for name, count in counts.items() if name != "email") <= 3


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("0123456789 -.+()@:/ABZaé\n\u0967\u0e51\ud800\x00"), max_size=60))
def test_any_text_has_parts_that_do_not_overlap(text: str) -> None:
    found, _ = personal.find(text, KINDS)
    assert all(one.start < one.end for one in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))


LONG = {
    "1" * 200_000: 0,
    "1 " * 200_000: 0,
    "A" * 200_000: 0,
    "a" * 200_000 + "@": 0,
    "a@" * 100_000: 0,
    "1.1.1." * 60_000: 0,
    "2001:" * 60_000: 0,
    "AB12 " * 60_000: 0,
    "@a." * 80_000: 0,
    "+1 (" * 80_000: 0,
    "tel " * 80_000: 0,
    "jane@wikimedia.org " * 10_000: 10_000,
}


@pytest.mark.parametrize("text", LONG, ids=lambda text: text[:9])
def test_long_texts_take_time_by_their_length(text: str) -> None:
    """Runs that an expression could try from each of their characters: minutes, if it took squares."""
    assert len(personal.find(text, KINDS)[0]) == LONG[text]
