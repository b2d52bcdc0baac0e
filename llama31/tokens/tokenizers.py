"""Text to token ids, and the files of a tokenizer.

Three kinds: Meta's `tokenizer.model`, a Hugging Face `tokenizer.json`, or a BPE trained here. Text never yields special
ids: a page that contains a literal `<|end_of_text|>` is encoded as plain text, whatever the kind.

The lesson of this file: a byte-level BPE is a ranked list of byte strings. Where a `tokenizer.json` says exactly that
(released Llama 3.1 files do, and so do ours), it is run by tiktoken, several times faster than `tokenizers`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llama31 import config
from llama31.runs import files
from llama31.tokens import chat, template

# The split of Llama 3 (llama-models, llama3/tokenizer.py).
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, EOS, EOT, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
# Names as in the released Llama 3.1 files; llama-models renames two reserved ones (step_id, image) at the same ids.
_NAMED = [
    BOS, EOS, "<|reserved_special_token_0|>", "<|reserved_special_token_1|>", PAD, "<|reserved_special_token_2|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", EOT, "<|python_tag|>",
]  # fmt: skip
SPECIAL_TOKENS = _NAMED + [f"<|reserved_special_token_{i}|>" for i in range(3, 256 - len(_NAMED) + 3)]

# Meta's limits: tiktoken panics on longer text and crawls on longer runs without a change of white space.
_CHUNK_CHARS, _RUN_CHARS = 400_000, 25_000
_LONG_RUN = re.compile(rf"(?<!\S)\S{{{_RUN_CHARS + 1},}}|(?<!\s)\s{{{_RUN_CHARS + 1},}}")

_HF_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class Tokenizer(Protocol):
    """What the rest of the code knows of a tokenizer.

    `vocab_size` counts ids, special ones included, but not a pad token that was added behind all others: no row of
    data holds it, so a model needs no row for it, and sampling never gives it. `fingerprint` is equal for equal
    vocabularies, whatever the file format they came from.
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    eot_id: int
    pad_id: int
    fingerprint: str
    special: dict[str, int]  # names to ids

    def encode(self, text: str) -> list[int]:
        """Ids of `text`: no special ids, no BOS, no EOS."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special ones spelled out; bytes that are no UTF-8 become U+FFFD."""

    def save_hf(self, folder: str | Path) -> None:
        """Write the files that `transformers.AutoTokenizer` reads into `folder`."""


def load(settings: config.Tokenizer) -> Tokenizer:
    """The tokenizer that `settings` names.

    Raises ValueError (keys `tokenizer.kind`, `tokenizer.path`) where it is missing or cannot be read.
    """
    if settings.kind not in ("tiktoken", "huggingface", "bpe"):
        raise ValueError(f"tokenizer.kind={settings.kind}: choose tiktoken, huggingface or bpe")
    path = tokenizer_file(settings)
    if not path.is_file():
        remedy = "train it first with recipes.pack" if settings.kind == "bpe" else "give the file or its folder"
        raise ValueError(f"tokenizer.path={settings.path}: there is no {path}; {remedy}")
    if settings.kind == "tiktoken":
        ranks = _read_ranks(path)
        return ByteLevelTokenizer(ranks, {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)})
    return _load_json(path)


def tokenizer_file(settings: config.Tokenizer) -> Path:
    """The file that `settings.path` means: itself, or the one of this kind inside the folder."""
    path = Path(settings.path)
    name = "tokenizer.model" if settings.kind == "tiktoken" else "tokenizer.json"
    return path if path.is_file() else path / name


def train_bpe(texts: Iterable[str], vocab_size: int, folder: str | Path) -> ByteLevelTokenizer:
    """Train a byte-level BPE with Llama 3's split on `texts` and write it into `folder` in Hugging Face format.

    `vocab_size` includes the 256 special tokens. Raises ValueError (key `tokenizer.vocab_size`) where it leaves no
    room for merges or the texts are too few to fill it.
    """
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import models, trainers

    merged = vocab_size - len(SPECIAL_TOKENS)
    if merged < 256:
        raise ValueError(f"tokenizer.vocab_size={vocab_size}: 256 bytes and 256 special tokens need at least 512")
    trainer = trainers.BpeTrainer(
        vocab_size=merged, initial_alphabet=sorted(_BYTE_OF_CHAR), show_progress=sys.stderr.isatty()
    )
    trained = HFTokenizer(models.BPE())
    trained.pre_tokenizer = _pre_tokenizer()
    trained.train_from_iterator((_valid(text) for text in texts), trainer)
    ranks = {_bytes_of(token): rank for token, rank in trained.get_vocab(with_added_tokens=False).items()}
    if len(ranks) < merged:
        raise ValueError(
            f"tokenizer.vocab_size={vocab_size}: the text yields {len(ranks) + len(SPECIAL_TOKENS)} ids only; "
            "lower it, or give more text (data.sources, tokenizer.train_bytes)"
        )
    tokenizer = ByteLevelTokenizer(ranks, {name: merged + i for i, name in enumerate(SPECIAL_TOKENS)})
    tokenizer.save_hf(folder)
    return tokenizer


def save_meta(folder: Path, target: Path) -> bool:
    """Write `folder`'s tokenizer.json as Meta's tokenizer.model; False, and nothing, where that format cannot hold it.

    The format lists byte strings alone: Meta's code adds Llama 3's special tokens behind them, in their order.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = _load_json(path) if path.is_file() else None
    except ValueError:
        return False
    if not isinstance(tokenizer, ByteLevelTokenizer) or not tokenizer.is_metas:
        return False
    target.write_bytes(b"".join(b"%b %d\n" % (base64.b64encode(one), rank) for one, rank in tokenizer.ranks.items()))
    return True


class ByteLevelTokenizer:
    """Byte-level BPE with Llama 3's split, run by tiktoken; equal to Meta's `encode(bos=False, eos=False)`."""

    def __init__(self, ranks: dict[bytes, int], special: dict[str, int], names: dict[str, str] | None = None) -> None:
        """`ranks`: byte strings to ids, in order of merging; `special`: names to ids; `names`: see `_special_names`."""
        import tiktoken

        self.ranks, self.special = ranks, special
        self._model = tiktoken.Encoding("llama3", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens=special)
        self._names = names or _special_names({}, special)
        self.vocab_size = _counted({*ranks.values(), *special.values()}, special, self._names)
        self.bos_id, self.eos_id, self.eot_id, self.pad_id = (special[self._names[role]] for role in _ROLES)
        self.fingerprint = _fingerprint_ranks(ranks, special)
        self.is_metas = special == {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}

    def encode(self, text: str) -> list[int]:
        """Ids of `text`: no special ids, no BOS, no EOS."""
        if len(text) <= _RUN_CHARS:
            return self._model.encode_ordinary(text)
        return [id_ for piece in _pieces(text) for id_ in self._model.encode_ordinary(piece)]

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """The same as an array, without a list: a third faster. tiktoken's takes no lone surrogates."""
        pieces = [text] if len(text) <= _RUN_CHARS else _pieces(text)
        ids = [self._model.encode_to_numpy(_valid(one), disallowed_special=()) for one in pieces]
        return ids[0] if len(ids) == 1 else np.concatenate(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special ones spelled out; bytes that are no UTF-8 become U+FFFD."""
        return self._model.decode(ids)

    def save_hf(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and the chat template into `folder`.

        The template gives the tokens of dialogs that are trained on here; without those tokens there is none.
        """
        from tokenizers import AddedToken, decoders, models, processors
        from tokenizers import Tokenizer as HFTokenizer

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary = {_text_of(token): rank for token, rank in self.ranks.items()}
        written = HFTokenizer(models.BPE(vocabulary, _merges(self.ranks), ignore_merges=True))
        written.pre_tokenizer = _pre_tokenizer()
        written.decoder = decoders.ByteLevel()
        written.add_special_tokens(
            [AddedToken(name, normalized=False, special=True) for name in sorted(self.special, key=self.special.get)]  # type: ignore[arg-type]
        )
        bos = self._names["bos_token"]
        template = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, self.bos_id)]
        )
        written.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
        _write_hf_config(folder, self._names, _template(self))
        files.write_whole(folder / "tokenizer.json", written.to_str(pretty=True))  # last: by it training is known done


class HuggingFaceTokenizer:
    """Any `tokenizer.json`, run by `tokenizers`, with the matching of special tokens in text switched off."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as HFTokenizer

        self._path = path
        self._model = HFTokenizer.from_file(str(path))
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True  # the name misleads: text is encoded "as if no token were special"
        content = json.loads(path.read_text(encoding="utf-8"))
        self.special = special = {
            token["content"]: token["id"] for token in content["added_tokens"] if token["special"]
        }
        self._names = _special_names(_read_hf_config(path.parent), special, path)
        self.bos_id, self.eos_id, self.eot_id, self.pad_id = (special[self._names[role]] for role in _ROLES)
        ids = set(self._model.get_vocab(with_added_tokens=True).values())
        self.vocab_size = _counted(ids, special, self._names)
        decisive = {key: content.get(key) for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
        self.fingerprint = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`: no special ids, no BOS, no EOS."""
        return self._model.encode(_valid(text), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special ones spelled out."""
        return self._model.decode(ids, skip_special_tokens=False)

    def save_hf(self, folder: str | Path) -> None:
        """Copy the Hugging Face files into `folder`; a missing tokenizer_config.json is written.

        So is a chat template where there is none, if it gives the tokens of dialogs that are trained on here.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in _HF_FILES:
            source = self._path if name == "tokenizer.json" else self._path.parent / name
            if source.is_file():
                shutil.copyfile(source, folder / name)
        settings, template = _read_hf_config(folder), _template(self)
        if settings.get("chat_template") or (self._path.parent / "chat_template.jinja").is_file():
            template = None
        if not settings or template:
            _write_hf_config(folder, self._names, template, settings)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _pieces(text: str) -> Iterator[str]:
    """Cut `text` where Meta's tokenizer cuts it: every 400,000 characters, and runs of (no) white space at 25,000."""
    for start in range(0, len(text), _CHUNK_CHARS):
        chunk, begin = text[start : start + _CHUNK_CHARS], 0
        for run in _LONG_RUN.finditer(chunk):
            for cut in range(run.start() + _RUN_CHARS, run.end(), _RUN_CHARS):
                yield chunk[begin:cut]
                begin = cut
        yield chunk[begin:]


def _valid(text: str) -> str:
    """`text` with lone surrogates (JSON may hold them) replaced as tiktoken replaces them."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 characters stand for themselves, the rest for 256, 257, ..."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_alphabet()
_CHAR_OF_BYTE = {byte: char for char, byte in _BYTE_OF_CHAR.items()}


def _bytes_of(token: str) -> bytes:
    return bytes(_BYTE_OF_CHAR[char] for char in token)


def _text_of(token: bytes) -> str:
    return "".join(_CHAR_OF_BYTE[byte] for byte in token)


def _merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """Every split of every token into two others, by rank of the token: what tiktoken may merge, as merges of HF."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = [(ranks[left], ranks[right], left, right) for left, right in splits if left in ranks and right in ranks]
        merges += [(_text_of(left), _text_of(right)) for _, _, left, right in sorted(known)]
    return merges


def _pre_tokenizer() -> Any:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _fingerprint_ranks(ranks: dict[bytes, int], special: dict[str, int]) -> str:
    digest = hashlib.sha256(SPLIT.encode())
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        digest.update(rank.to_bytes(4, "little") + len(token).to_bytes(4, "little") + token)
    digest.update(json.dumps(special, sort_keys=True).encode())
    return digest.hexdigest()


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Meta's tokenizer.model: one base64 byte string and its rank per line."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        pairs = [line.split() for line in lines if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error, OSError) as error:
        raise ValueError(f"tokenizer.path={path}: not a tokenizer.model of Llama 3 ({error}); fetch it anew") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
        raise ValueError(f"tokenizer.path={path}: {len(ranks)} ranks with gaps or too few; fetch it again")
    return ranks


def _load_json(path: Path) -> Tokenizer:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ranks = _ranks_of_json(content)
        if ranks is None:
            return HuggingFaceTokenizer(path)
        special = {token["content"]: token["id"] for token in content["added_tokens"]}
    except (KeyError, TypeError, OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"tokenizer.path={path}: not a tokenizer.json ({error!r}); fetch it again") from error
    return ByteLevelTokenizer(ranks, special, _special_names(_read_hf_config(path.parent), special, path))


def _ranks_of_json(content: dict[str, Any]) -> dict[bytes, int] | None:
    """The ranked byte strings of a tokenizer.json, or None where tiktoken would not compute what `tokenizers` does."""
    model, added = content["model"], content["added_tokens"]
    steps = (content.get("pre_tokenizer") or {}).get("pretokenizers", [])
    split = [step.get("pattern", {}).get("Regex") for step in steps]
    plain = not any(model.get(key) for key in ("dropout", "byte_fallback", "continuing_subword_prefix"))
    if (
        model.get("type") != "BPE"
        or not model.get("ignore_merges")
        or not plain
        or content.get("normalizer")
        or split != [SPLIT, None]
        or steps[1]["type"] != "ByteLevel"
        or steps[1]["add_prefix_space"]
        or steps[1]["use_regex"]
        or not all(token["special"] for token in added)
        or not all(char in _BYTE_OF_CHAR for token in model["vocab"] for char in token)
    ):
        return None
    ranks = {_bytes_of(token): rank for token, rank in model["vocab"].items()}
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    contiguous = sorted(ranks.values()) == list(range(len(ranks)))
    return ranks if contiguous and merges == _merges(ranks) else None


# --- special tokens and the files of transformers ---------------------------------------------------------------------

_ROLES = {"bos_token": BOS, "eos_token": EOS, "eot_token": EOT, "pad_token": PAD}


def _special_names(settings: dict[str, Any], special: dict[str, int], path: Path | None = None) -> dict[str, str]:
    """Roles to names of special tokens: as `settings` (tokenizer_config.json), else Llama 3's; EOT and PAD may be EOS.

    Raises ValueError where there is no BOS or no EOS.
    """
    names: dict[str, str] = {}
    for role, usual in _ROLES.items():
        given = settings.get(role)  # a string, or a dictionary as transformers 4 writes it
        fallback = names.get("eos_token") if role in ("eot_token", "pad_token") else None
        name = given["content"] if isinstance(given, dict) else given
        if role == "eos_token" and name == EOT:  # of Instruct releases: the end of a turn, and not of a document
            name = None if EOS in special else name
        candidates = [name, usual, fallback]
        known = [name for name in candidates if name in special]
        if not known:
            raise ValueError(f"tokenizer.path={path}: no {role}; name one in its tokenizer_config.json")
        names[role] = str(known[0])
    return names


def _counted(ids: set[int], special: dict[str, int], names: dict[str, str]) -> int:
    """Ids up to the highest; a pad token at the very end that is nothing else does not count."""
    last = max(ids)
    roles = [role for role, name in names.items() if special[name] == last]
    return max(ids - {last}) + 1 if roles == ["pad_token"] else last + 1


def _read_hf_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_template(folder: Path) -> bool:
    """Give a folder's tokenizer the chat template of what is trained on here, in place of its author's.

    Returns False where it has none then, since a template's text would be other tokens than `chat.Format` gives.
    """
    tokenizer, settings = _load_json(folder / "tokenizer.json"), _read_hf_config(folder)
    written, template = _read_hf_config(folder), _template(tokenizer)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    written.pop("chat_template", None)
    if template is not None:
        written["chat_template"] = template
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if written != settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return template is not None


def _template(tokenizer: Tokenizer) -> str | None:
    """The chat template, or None where dialogs cannot be encoded, or where a template's text would be other tokens.

    `chat.Format` encodes headers and contents apart; other splits than Llama's may cut the line feeds between anew.
    """
    headed = [*tokenizer.encode("\n\n")]
    alike = all(tokenizer.encode(f"\n\n{first}") == [*headed, *tokenizer.encode(first)] for first in "x1é日-{<")
    return template.of(tokenizer.special) if alike and all(name in tokenizer.special for name in chat.TOKENS) else None


def _write_hf_config(
    folder: Path, names: dict[str, str], template: str | None = None, kept: dict[str, Any] | None = None
) -> None:
    """The template stands in both places: transformers reads the file first, older versions the key alone.

    `kept` are settings that go before ours.
    """
    special = {role: name for role, name in names.items() if role != "eot_token"}
    settings = {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",  # known to transformers 4 and 5
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    settings |= {key: value for key, value in (kept or {}).items() if value is not None}
    if template is not None:
        settings["chat_template"] = template
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if not (kept and (folder / "special_tokens_map.json").is_file()):
        (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
