"""Pages of listed domains, and adult text by words that are counted, on Debian's offensive fortunes."""

from __future__ import annotations

import codecs
import io
import tarfile
from pathlib import Path

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters.url_filter import URLFilter
from tldextract import TLDExtract

from llama31.curate.safety import domains
from llama31.curate.safety.adult import AdultWordsFilter, Phrases
from llama31.curate.safety.domains import BlockList, DomainFilter, UrlWords
from tests.curate import debian


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in {
        "toulouse/adult/domains": "bad.example\nxn--mnchen-3ya.de\n",
        "toulouse/adult/urls": "pages.example.org/adult\n",
        "toulouse/phishing/domains": "# of the day\nphish.co.uk\n10.9.8.7\n",
        "toulouse/adult/usage": "black\n",
        "hosts": "127.0.0.1 localhost\n::1 ip6-localhost\n0.0.0.0 ads.example.net tracker.example.net # both\n",
        "plain.txt": "HTTPS://Shop.Example.com:443/Sale/\n\n*.wild.org\nmünchen-sex.de\ncom\n||x^\n",
        "many/first.txt": "first.org\n",
        "many/second.txt": "second.org\r\nfirst.org\r\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return tmp_path


CASES = {
    "http://bad.example/": "domain: toulouse/adult",
    "https://user@a.b.bad.example:8443/x?y": "domain: toulouse/adult",
    "//bad.example": "domain: toulouse/adult",
    "http://notbad.example/": "",
    "http://bad.example.com/": "",
    "http://München.de/": "domain: toulouse/adult",
    "http://pages.example.org/adult": "url: toulouse/adult",
    "http://www.pages.example.org/Adult/2?x": "url: toulouse/adult",
    "http://pages.example.org/adult?page=2": "url: toulouse/adult",
    "http://pages.example.org/adulthood": "",
    "http://pages.example.org/": "",
    "http://www.phish.co.uk.": "domain: toulouse/phishing",
    "http://co.uk/": "",
    "http://10.9.8.7/x": "domain: toulouse/phishing",
    "http://1.10.9.8.7/x": "",
    "http://tracker.example.net/": "domain: hosts",
    "http://localhost/": "",
    "http://shop.example.com/sale/today": "url: plain",
    "http://shop.example.com/": "",
    "http://sub.wild.org/": "domain: plain",
    "http://xn--mnchen-sex-9db.de/": "domain: plain",
    "http://first.org/": "domain: many/first",
    "http://second.org/": "domain: many/second",
    "http://[::1/": "",
    "http://\ud800.org/": "",
    "mailto:x": "",
    "x" * 100_000: "",
    "http://a.org/" + "a/" * 100_000: "",
}


def test_domains_and_urls(folder: Path) -> None:
    names = {"toulouse": "toulouse", "hosts": "hosts", "plain": "plain.txt", "many": "many"}
    block = DomainFilter({name: str(folder / path) for name, path in names.items()})
    for url, reason in CASES.items():
        verdict = block.filter(Document(text="", id="", metadata={"url": url}))
        assert verdict == ((False, reason) if reason else True), url[:80]
    for metadata in ({}, {"url": ""}, {"url": None}):
        assert block.filter(Document(text="", id="", metadata=metadata)) is True
    counts = {name: stat.total for name, stat in block.stats.stats.items()}
    assert counts["no url"] == 3 and counts["unreadable: plain"] == 2 and counts["entries: plain"] == 3
    assert counts["entries: hosts"] == 2 and counts["entries: toulouse/adult"] == 3
    assert "entries: toulouse/adult/usage" not in counts


def test_a_list_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"lists\['x'\]=/nowhere: no such file or folder; give a block list"):
        DomainFilter({"x": "/nowhere"})


def test_parts_of_a_file_are_read_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    content = "".join(f"host{i}.example.org\n" for i in range(500)) + "Last.example.org"
    monkeypatch.setattr(domains, "CHUNK", 333)
    block = BlockList()
    assert block.read("x", io.BytesIO(content.encode())) == {"entries": 501, "unreadable": 0}
    block.sort()
    assert all(block.reason(f"http://host{i}.example.org/") for i in range(500))
    assert block.reason("http://last.example.org") and not block.reason("http://host500.example.org/")


def test_words_in_urls_are_datatroves() -> None:
    """Its filter without a list of domains and with a tldextract that asks nobody, on small letters."""
    assets = Path(domains.ASSETS_PATH)
    words = {
        key: (assets / f"{key}.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        for key in ("banned_words", "banned_subwords", "soft_banned_words")
    }
    theirs = URLFilter(use_integrated_lists=False, **words)
    theirs.tldextractor = TLDExtract(suffix_list_urls=(), cache_dir=None)
    ours = UrlWords()
    seen = set()
    listed = [line.strip().replace(" ", "-") for lines in words.values() for line in lines]
    for word in listed:
        for url in (
            f"http://e.org/{word}/anus.html",
            f"http://e.org/a{word}b",
            f"http://{word}.org/",
            "http://e.org/ass",
        ):
            verdict = theirs.filter(Document(text="", id="", metadata={"url": url}))
            reason = "" if verdict is True else verdict[1]
            assert ours.reason(url) == reason, url
            seen.add(reason)
    assert seen == {"", "hard_blacklisted", "soft_blacklisted", "blacklisted_subword"}
    assert ours.reason("http://e.org/" + listed[5].upper()) == ours.reason("http://e.org/" + listed[5]) != ""


# Enough of each language's vulgar words for its fortunes; a real list has hundreds.
LISTS = {
    "it": "cazzo\ncazzi\nfiga\nfica\nculo\nscopare\npompino\npene\nputtana\ntette\ntroia\nvagina\nsesso\norgasmo\n",
    "es": "puta\nputas\ncoño\npolla\nfollar\nculo\ntetas\ncojones\njoder\nmierda\nsexo\nbragas\ncornudo\npene\n",
    "th": "เย็ด\nหี\n",
    "hi": "लंड\nचूत\n",
    "en": "# comment\nass\nAss Hat\nshit\nblow  job\n",
    "*": "porn\n",
}


@pytest.fixture
def lists(tmp_path: Path) -> dict[str, str]:
    for language, words in LISTS.items():
        (tmp_path / f"{language}.txt").write_text(words, encoding="utf-8")
    return {language: str(tmp_path / f"{language}.txt") for language in LISTS}


def fortunes(package: str, below: str, size: int = 40) -> list[str]:
    """Forty fortunes together, a page as long as one of the web; the Spanish ones are in ROT13 against mishaps."""
    texts = []
    for path in sorted((debian.folder(package) / "usr/share/games/fortunes" / below).iterdir()):
        if path.is_file() and path.suffix not in (".dat", ".u8"):
            text = path.read_bytes().decode("utf-8", "replace")
            texts += (codecs.decode(text, "rot13") if package == "fortunes-es-off" else text).split("\n%\n")
    return ["\n".join(texts[i : i + size]) for i in range(0, len(texts), size)]


@pytest.mark.parametrize(
    ("language", "offensive", "plain"),
    [
        ("it", ("fortunes-it-off", "off/it"), ("fortunes-it", "it")),
        ("es", ("fortunes-es-off", "off/es/off"), ("fortunes-es", "es")),
    ],
)
def test_offensive_fortunes(
    language: str, offensive: tuple[str, str], plain: tuple[str, str], lists: dict[str, str]
) -> None:
    """Below the default, for these are jokes, not pages of adult sites: many of the one, few of the other."""
    block = AdultWordsFilter(lists, min_per_1000_words=2)
    shares = []
    for package, below in (offensive, plain):
        texts = fortunes(package, below)
        dropped = [
            block.filter(Document(text=text, id="", metadata={"language": language})) is not True for text in texts
        ]
        shares.append(sum(dropped) / len(dropped))
    assert shares[0] > 0.2 and shares[0] > 10 * shares[1], shares


def test_words_are_whole_and_the_longest_counts() -> None:
    phrases = Phrases(["ass", "Ass Hat", "blow job", "naïve", "ass hatter"])
    text = "Ass, class, ass-hat; ass\n hat assess BLOW\u00a0JOB ass hatch nai\u0308ve अass ass1 _ass"
    assert phrases.find(text, "en") == ["ass", "ass", "ass hat", "blow job", "ass", "naïve"]
    assert Phrases(["लंड", "चूत"]).find("लंड लंडन चूती चूत।", "hi") == ["लंड", "चूत"]
    assert Phrases(["หี"]).find("ดูหีนะ หี่", "th") == ["หี"]
    assert Phrases(["色情"]).find("免费色情电影", "zh") == Phrases(["色情"]).find("免费色情电影", "en") == ["色情"]
    for text in ("", "\x00", "\ud800", "a" * 1_000_000):
        assert phrases.find(text, "en") == []


def test_words_are_counted_by_document(lists: dict[str, str]) -> None:
    block = AdultWordsFilter(lists, min_distinct=2, min_per_1000_words=100)
    cases = [
        ("en", "Shit happens, and the ass brays in the field", (False, "adult_words")),
        ("en", "shit shit shit shit", True),  # one word, however often
        ("en", "shit and ass" + " and more" * 20, True),  # too few in a thousand
        ("fr", "porn", True),
        ("de", "ass", True),
    ]
    for language, text, verdict in cases:
        document = Document(text=text, id="", metadata={"language": language})
        assert block.filter(document) == verdict, text
    document = Document(text="shit ass x shit", id="", metadata={"language": "en"})
    block.filter(document)
    assert document.metadata["adult_words"] == {"total": 3, "distinct": 2, "per_1000_words": 750.0}
    assert block.stats.stats["documents with listed words"].total == 5
    without = AdultWordsFilter({"en": lists["en"]})
    assert without.filter(Document(text="x", id="", metadata={"language": "fr"})) is True
    assert without.stats.stats["no list: fr"].total == 1


def test_an_empty_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"lists: .*empty.txt has no word; write one a line, or leave the list out"):
        AdultWordsFilter({"en": str(tmp_path / "empty.txt")})


def test_datatroves_own_list_is_read_once_in_a_process() -> None:
    with tarfile.open(Path(domains.ASSETS_PATH) / "url_filterblacklistsv0_3_0.tar.gz") as archive:
        content = archive.extractfile("domains")
        assert content is not None
        listed = content.readline().decode().strip()
    for block in (DomainFilter(bundled=True), DomainFilter(bundled=True)):
        page = Document(text="x", id="1", metadata={"url": f"https://more.{listed}/a"})
        assert block.filter(page) == (False, "domain: datatrove")
        assert block.filter(Document(text="x", id="2", metadata={"url": "https://docs.python.org/3/"})) is True
        assert block.stats.stats["entries: datatrove"].total > 4_500_000
    assert domains._bundled.cache_info().misses == 1
