"""Bodies of HTTP: from the bytes that a server sent to text, within a limit, or the reason why not."""

from __future__ import annotations

import codecs
import re
import zlib

import brotli
import cchardet
import zstandard

from llama31.curate.reading import alphabets

PIECE = 1 << 20
META = re.compile(
    rb"<meta[^>]{0,300}?charset\s*=\s*[\"']?\s*([\w:.-]{2,40})|<\?xml[^>]{0,100}encoding=[\"']([\w.-]{2,40})", re.I
)
# What browsers read under these names (WHATWG's encoding standard).
READ_AS = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252", "gb2312": "gb18030"}
READ_AS |= {"gbk": "gb18030", "shift_jis": "cp932", "shift-jis": "cp932", "euc-kr": "cp949", "iso-8859-9": "cp1254"}
READ_AS |= {"tis-620": "cp874", "iso-8859-11": "cp874", "big5": "big5hkscs", "windows-31j": "cp932"}
DETECTED = {"KOI8-R": "koi8-u"}  # the same letters, and those of Ukrainian for some of the lines of boxes
LATIN = ("cp1252", "iso8859-15", "cp1254", "latin-1")
ONE_BYTE = re.compile(r"latin-1|cp125\d|cp866|cp874|koi8-.|iso8859-\d+|mac-.*|tis-620")
OTHER_SCRIPTS = re.compile(r"1251|koi8|866|8859-5|1253|8859-7|1255|8859-8|1256|8859-6|874|tis|gb|big5|jis|euc|932|949")
# What languages are written in where it is no Unicode (WHATWG's defaults by locale), and what is for the same script.
WRITTEN_IN = {
    "cp1252": "af ca da de en es eu fi fr ga gl id is it ms nb nl nn no pt sq sv",
    "cp1250": "bs cs hr hu pl ro sk sl",
    "cp1251": "be bg mk ru sr uk",
    "cp1253": "el",
    "cp1254": "tr",
    "cp1255": "he",
    "cp1256": "ar fa ur",
    "cp1257": "et lt lv",
    "cp1258": "vi",
    "cp874": "th",
    "cp932": "ja",
    "cp949": "ko",
    "gb18030": "zh",
}
CHARSETS = {language: charset for charset, languages in WRITTEN_IN.items() for language in languages.split()}
AKIN = {"cp1252": ("iso8859-15",), "cp1250": ("iso8859-2", "iso8859-16"), "cp1253": ("iso8859-7",)}
AKIN |= {"cp1251": ("koi8-u", "iso8859-5", "cp866", "mac-cyrillic"), "cp1255": ("iso8859-8",)}
AKIN |= {"cp1256": ("iso8859-6",), "cp1257": ("iso8859-13", "iso8859-4"), "cp932": ("euc_jp",)}
AKIN |= {"gb18030": ("big5hkscs",)}
LANG = re.compile(rb"<(?:html|body)[^>]{0,500}?\s(?:xml:)?lang\s*=\s*[\"']?([A-Za-z]{2})\b", re.I)
RUN = re.compile(rb"[\x80-\xff]+")
CONTROLS = re.compile(rb"[\x80-\x9f]")  # in ISO 8859; in what Windows has instead quotation marks and dashes
BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
SAMPLE = 1 << 16
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
MOST_CONTROLS = 0.02  # of a text's characters; of compressed bytes a tenth
WIDE = 10  # of so many bytes at least one is zero where ASCII, marks of HTML at the least, takes two bytes
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}


class Unreadable(Exception):
    """Why something cannot be read, as a kind to count under, and details of this one."""

    def __init__(self, kind: str, details: str = "") -> None:
        super().__init__(f"{kind}: {details}" if details else kind)
        self.kind, self.details = kind, details


def decoded(body: bytes, encodings: str, limit: int) -> bytes:
    """A body without its Content-Encodings, `gzip, br` the last of them first; at most `limit` bytes, else Unreadable.

    Crawlers store bodies decoded and leave the header: one that does not begin as its encoding does comes as it is.
    What begins as gzip or zstd and does not say so is taken out of it as well.
    """
    for name in reversed([name.strip().lower() for name in encodings.split(",") if name.strip()]):
        if name in ("identity", "none", "utf-8", "8bit", "binary"):
            continue
        if name not in DECODERS:
            raise Unreadable("content encoding", name)
        body = DECODERS[name](body, limit)
    packed = compression(body)
    return DECODERS[packed](body, limit) if packed in ("gzip", "zstd") else body


def _bounded(length: int, limit: int) -> None:
    if length > limit:
        raise Unreadable("too long", f"more than {limit} bytes")


def _gzip(body: bytes, limit: int) -> bytes:
    return _zlib(body, limit, 31) if body[:2] == b"\x1f\x8b" else body


def _zlib(body: bytes, limit: int, bits: int) -> bytes:
    result = b""
    while body:
        stream = zlib.decompressobj(bits)
        try:
            result += stream.decompress(body, limit + 1 - len(result))
        except zlib.error as error:
            if result:
                return result  # bytes behind the last member
            raise Unreadable("broken body", str(error)) from error
        _bounded(len(result), limit)
        if not stream.eof:
            raise Unreadable("cut body", "its compressed end is missing")
        body = stream.unused_data
    return result


def _deflate(body: bytes, limit: int) -> bytes:
    if _looks_like_text(body):
        return body
    # With the header of zlib, as the standard has it, or without, as some servers do.
    headed = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return _zlib(body, limit, 15 if headed else -15)


def _brotli(body: bytes, limit: int) -> bytes:
    stream, result = brotli.Decompressor(), b""
    try:
        result = stream.process(body, output_buffer_limit=PIECE)
        while not stream.is_finished() and len(result) <= limit:
            more = stream.process(b"", output_buffer_limit=PIECE)
            if not more and stream.can_accept_more_data():
                break
            result += more
    except brotli.error as error:
        if _looks_like_text(body):
            return body
        raise Unreadable("broken body", str(error)) from error
    _bounded(len(result), limit)
    if not stream.is_finished():
        if _looks_like_text(body):
            return body
        raise Unreadable("cut body", "its compressed end is missing")
    return result


def _zstd(body: bytes, limit: int) -> bytes:
    if compression(body) != "zstd":
        return body
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(body, read_across_frames=True)
        _bounded(len(reader.read(limit + 1)), limit)
        result = b""
        while body:  # once more, within the limit now: only this way does it say whether its end is there
            frame = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
            result += frame.decompress(body)
            if not frame.eof:
                raise Unreadable("cut body", "its compressed end is missing")
            body = frame.unused_data
    except zstandard.ZstdError as error:
        raise Unreadable("broken body", str(error)) from error
    return result


DECODERS = {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "br": _brotli, "brotli": _brotli, "zstd": _zstd}


def compression(head: bytes) -> str | None:
    """What a file is compressed with by its first bytes, whatever its name says: gzip, zstd, bz2, xz; None: not."""
    if skippable(head):
        return "zstd"
    return next((name for mark, name in COMPRESSED.items() if head.startswith(mark)), None)


def skippable(head: bytes) -> int:
    """Bytes of the frame of zstd that begins here and holds no data (RFC 8878, 3.1.2), with its head; 0: none does."""
    if len(head) < 8 or head[1:4] != b"\x2a\x4d\x18" or not 0x50 <= head[0] <= 0x5F:
        return 0
    return 8 + int.from_bytes(head[4:8], "little")


def refuse_others(body: bytes, text: str) -> None:
    """Raise Unreadable for what is no text, whatever its name or its header says."""
    if body.startswith(b"%PDF-"):
        raise Unreadable("no page: pdf")
    if len(CONTROL.findall(text, 0, SAMPLE)) > MOST_CONTROLS * min(len(text), SAMPLE) + 1:
        raise Unreadable("no page: binary", "many of its bytes are no characters")


def _looks_like_text(body: bytes) -> bool:
    return body.lstrip()[:1] == b"<" and b"\0" not in body[:SAMPLE]


def joined(body: bytes) -> bytes:
    """The chunks of `Transfer-Encoding: chunked` without their sizes; a body that has none comes as it is."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.find(b"\r\n", at, at + 1000)
        size = body[at:end].split(b";")[0].strip() if end >= 0 else b""
        if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", size):
            if at == 0:
                return body
            raise Unreadable("cut body", "its last chunk is missing")
        length = int(size, 16)
        if length == 0:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + length])
        if len(parts[-1]) < length:
            raise Unreadable("cut body", "a chunk is shorter than it says")
        at = end + 2 + length + 2


def text(body: bytes, declared: str | None = None) -> tuple[str, str]:
    """A body's text, and how its charset was known: utf-8, declared, meta, detected, or replaced.

    Bytes that are valid UTF-8 are read so, whatever is declared, and so are those of which most are, but for a
    character that was cut: any of Latin's charsets would read them without an error, and make two wrong letters of
    each right one. Then what HTTP declares, what the page does; where the two differ the detector decides between them.
    Where nothing is declared, or Latin letters, as servers do for everything, the detector is heard if it is sure of
    another script, or if letters beyond ASCII stand three and more together, as they do in no language of Latin
    letters; and so is the language that the page says to be in. Before all of it, where Latin letters are those of one
    language in one charset, and clearly not in what is declared, that is it (`alphabets`). `replaced`: some characters
    could not be read.
    """
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),  # which begins as that of UTF-16 does
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if body.startswith(mark):
            return body.decode(name, "replace"), "declared"
    names = [name for name in (_codec(declared), _codec(_meta(body))) if name]
    if (said := next((name for name in names if name.startswith(("iso2022", "hz", "utf-16"))), None)) and (
        b"\x1b" in body or b"~{" in body or b"\0" in body[:SAMPLE]
    ):
        return body.decode(said, "replace"), "declared"
    if b"\x1b$B" in body[:SAMPLE]:  # Japanese in ISO-2022-JP is ASCII throughout, and so valid UTF-8
        return body.decode("iso2022_jp", "replace"), "detected"
    big, little = body[:SAMPLE:2].count(0), body[1:SAMPLE:2].count(0)
    if WIDE * max(big, little) > min(SAMPLE, len(body)):  # a zero that strayed into other text is none of UTF-16
        return body.decode("utf-16-be" if big > little else "utf-16-le", "replace"), "detected"
    try:
        return body.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        if _mostly_utf8(body, error.start, "utf-8" in names):
            return body.decode("utf-8", "replace"), "replaced"
        return _of_other(body, names, bool(_codec(declared)))


def _mostly_utf8(body: bytes, at: int, declared: bool) -> bool:
    """Whether most characters beyond ASCII around the first that is wrong are UTF-8: four of five, or half if declared.

    Few bytes of other charsets happen to be: of Chinese in GBK a tenth, of Latin letters hardly any.
    """
    around = body[max(0, at - SAMPLE) : at + SAMPLE].decode("utf-8", "replace")
    wrong = max(1, around.count("\ufffd"))
    right = sum(len(run) for run in BEYOND_ASCII.findall(around)) - wrong
    return right > 0 and right >= wrong * (1 if declared else 4)


def _of_other(body: bytes, names: list[str], by_http: bool) -> tuple[str, str]:
    found = cchardet.detect(body[:SAMPLE])
    detected, sure = DETECTED.get(found["encoding"], _codec(found["encoding"])), (found["confidence"] or 0) >= 0.9
    how = {name: "declared" if by_http and i == 0 else "meta" for i, name in reversed([*enumerate(names)])}
    names = [name for name in names if name != "utf-8"]  # which it is not
    letters = _by_letters(body[:SAMPLE], names, detected)
    if latin := not names or names[0] in LATIN:
        detected, sure = _judged(body[:SAMPLE], detected, sure)
    order = [*([letters] if letters else []), *names]
    if not letters and detected and (detected in names[1:] or (latin and sure)):
        order.insert(0, detected)
    if latin and detected and OTHER_SCRIPTS.search(detected) and not _decodes(body[:SAMPLE], detected):
        script = alphabets.of_script(body[:SAMPLE])  # what a detector was sure of, and is not
        order = [*([script] if script else []), *order]
    for name in [*order, *([detected] if detected else [])]:
        try:
            return body.decode(name), how.get(name, "detected")
        except UnicodeDecodeError:
            continue
    names = [name for name in order if name != "utf-8"]
    return body.decode(names[0] if names else detected or "utf-8", "replace"), "replaced"


def _decodes(body: bytes, charset: str) -> bool:
    try:
        codecs.getincrementaldecoder(charset)().decode(body)  # whose last character may be cut
    except UnicodeDecodeError:
        return False
    return True


def _by_letters(body: bytes, names: list[str], detected: str | None) -> str | None:
    """What the letters of one language say against what is declared, or where nothing is; None of other scripts."""
    if (names and not ONE_BYTE.fullmatch(names[0])) or _together(body):
        return None
    likely = [name for name in (_written(body), "cp1252", detected) if name]
    return alphabets.told(body, names[0] if names else None, likely)


def _together(body: bytes) -> bool:
    """Whether most bytes beyond ASCII stand three and more together, as they do in no language of Latin letters."""
    runs = [len(run) for run in RUN.findall(alphabets.TAG.sub(b" ", body))]
    return 2 * sum(length for length in runs if length >= 3) > sum(runs)


def _judged(body: bytes, detected: str | None, sure: bool) -> tuple[str | None, bool]:
    """What was detected, or the charset of the language that a page says to be in; whether Latin letters give way."""
    together = _together(body)
    written = _written(body)
    if written and together == (OTHER_SCRIPTS.search(written) is not None):
        akin = detected in AKIN.get(written, ()) and not ("iso8859" in str(detected) and CONTROLS.search(body))
        return (detected if akin else written), written != "cp1252"
    other = detected is not None and OTHER_SCRIPTS.search(detected) is not None
    return detected, other and (sure or together)


def _written(body: bytes) -> str | None:
    """The charset of the language that a page says to be in."""
    said = LANG.search(body)
    return CHARSETS.get(said[1].decode().lower()) if said else None


def _meta(body: bytes) -> str | None:
    match = META.search(body[:4096])
    return (match[1] or match[2]).decode("ascii") if match else None


def _codec(name: str | None) -> str | None:
    """Python's name of a charset, or None where it has none."""
    label = (name or "").strip().strip("\"'").lower()
    try:
        return codecs.lookup(READ_AS.get(label, label)).name if label else None
    except (LookupError, ValueError):
        return None
