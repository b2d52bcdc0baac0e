"""Documents to tokens: each task writes those of its shard by class and language, and few tasks put them together.

What comes out is what `llama31.tokens.pack` writes of the same documents in the same order: Megatron's `.bin/.idx`,
`packed.json` beside it, and a held-out split that depends on text and seed alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from llama31 import config
from llama31.curate.passage.meters import size
from llama31.curate.passage.shards import ShardReader
from llama31.tokens import pack, packed, tokenizers
from llama31.tokens.indexed import SUFFIXES, IndexedWriter, dtype_for
from llama31.tokens.packed import Packed, Split

BUFFER = 1 << 22  # tokens that wait in memory before they are written
DOCUMENTS = 1 << 16  # documents that are put together at once
TOKENS = 1 << 24  # tokens of them, at least one document's
ENDINGS = (".bin", ".lengths", ".keys")


def bucket(document: Document) -> str:
    """The packed source that a document belongs to: `CLASS-LANGUAGE`."""
    language = str(document.metadata.get("language") or "")
    known = language if language.isascii() and language.isalpha() and len(language) <= 3 else "unknown"
    return f"{document.metadata.get('class') or 'general'}-{known}"


@dataclass
class _Open:
    """The tokens of a bucket, of which the last wait in memory."""

    path: Path
    tokens: list[NDArray[Any]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    waiting: int = 0

    def flush(self) -> None:
        """Append what waits to the files."""
        arrays = (np.concatenate(self.tokens), np.array(self.lengths, "<i4"), np.array(self.keys, "<u8"))
        for ending, array in zip(ENDINGS, arrays):
            with open(f"{self.path}{ending}", "ab") as file:
                file.write(array.tobytes())
        self.tokens, self.lengths, self.keys, self.waiting = [], [], [], 0


class TokenShards(PipelineStep):
    """Documents to ids, by bucket: `FOLDER/BUCKET/RANK.bin` (ids end to end), `.lengths` (i32), `.keys` (u64).

    A key is `pack.heldout_key` of the text, which decides its split. Counts `tokens: BUCKET` and `bytes: BUCKET`.
    """

    type, name = "🔢 - TOKENIZER", "Tokens"

    def __init__(self, folder: Path, tokenizer: config.Tokenizer, settings: config.TokenFiles) -> None:
        super().__init__()
        self.folder, self.settings = folder, settings
        self.vocabulary = tokenizers.load(tokenizer)
        self.dtype = dtype_for(self.vocabulary.vocab_size)
        self.head = np.array([self.vocabulary.bos_id] if settings.bos else [], self.dtype)
        self.tail = np.array([self.vocabulary.eos_id] if settings.eos else [], self.dtype)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents, with `token_count` in their metadata."""
        opened: dict[str, _Open] = {}
        for document in data:
            name = bucket(document)
            if name not in opened:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
                opened[name] = _Open(self.folder / name / f"{rank:05d}")
            length = self._add(opened[name], document.text)
            document.metadata["token_count"] = length
            self.stat_update(f"tokens: {name}", value=length)
            self.stat_update(f"bytes: {name}", value=size(document.text))
            yield document
        for one in opened.values():
            if one.tokens:
                one.flush()

    def _add(self, target: _Open, text: str) -> int:
        if isinstance(self.vocabulary, tokenizers.ByteLevelTokenizer):
            ids: NDArray[Any] = self.vocabulary.encode_array(text)
        else:
            ids = np.array(self.vocabulary.encode(text), self.dtype)
        target.tokens += [self.head, ids.astype(self.dtype, copy=False), self.tail]
        length = len(self.head) + len(ids) + len(self.tail)
        target.lengths.append(length)
        target.keys.append(pack.heldout_key(text, self.settings.seed))
        target.waiting += length
        if target.waiting >= BUFFER:
            target.flush()
        return length


@dataclass(frozen=True)
class _Shard:
    """What one task left of a bucket."""

    prefix: Path

    def keys(self) -> NDArray[np.uint64]:
        """What decides the splits of its documents."""
        return np.fromfile(f"{self.prefix}.keys", "<u8")

    def pieces(self, dtype: np.dtype[Any]) -> Iterator[tuple[NDArray[Any], NDArray[np.int32], slice]]:
        """Tokens and lengths of some documents at a time, and which of them."""
        lengths = np.fromfile(f"{self.prefix}.lengths", "<i4")
        tokens = np.memmap(f"{self.prefix}.bin", dtype, "r")
        ends, first = np.cumsum(lengths, dtype=np.int64), 0
        while first < lengths.size:
            begin = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, begin + TOKENS, "right")))
            last = min(last, first + DOCUMENTS)
            yield tokens[begin : int(ends[last - 1])], lengths[first:last], slice(first, last)
            first = last


class PackedSources(PipelineStep):
    """What all tasks left of a bucket, in the order of the tasks, to a packed source that pre-training reads.

    `suffix`: of its name, where it is one of several parts. Memory: 150 MB, and 60 bytes per document of a bucket.
    """

    type, name = "🔢 - TOKENIZER", "Token files"

    def __init__(
        self,
        files: Sequence[Path],
        folder: Path,
        tokenizer: config.Tokenizer,
        settings: config.TokenFiles,
        suffix: str = "",
    ) -> None:
        super().__init__()
        self.folder, self.tokenizer, self.settings, self.suffix = folder, tokenizer, settings, suffix
        self.buckets: dict[str, list[_Shard]] = {}
        for path in files:
            if path.suffix == ".bin":
                self.buckets.setdefault(path.parent.name, []).append(_Shard(path.with_suffix("")))

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """No documents. Counts tokens and documents of each split."""
        if data:
            yield from data
        vocabulary = tokenizers.load(self.tokenizer)
        for name, shards in sorted(self.buckets.items()):
            done = self._write(self.folder / f"{name}{self.suffix}", shards, vocabulary, name)
            for split in packed.SPLITS:
                self.stat_update(f"{split} tokens", value=done.split(split).tokens)
                self.stat_update(f"{split} documents", value=done.split(split).documents)

    def _write(self, folder: Path, shards: list[_Shard], vocabulary: tokenizers.Tokenizer, name: str) -> Packed:
        folder.mkdir(parents=True)
        dtype, held = dtype_for(vocabulary.vocab_size), self._heldout([shard.keys() for shard in shards])
        writers = {split: IndexedWriter(folder / split, dtype) for split in packed.SPLITS}
        for shard, mask in zip(shards, held):
            for tokens, lengths, part in shard.pieces(dtype):
                for split, chosen in (("train", ~mask[part]), ("heldout", mask[part])):
                    if chosen.all():
                        writers[split].add(tokens, lengths)
                    elif chosen.any():
                        writers[split].add(tokens[np.repeat(chosen, lengths)], lengths[chosen])
        splits = {split: Split(w.tokens, w.documents, w.close()) for split, w in writers.items()}
        for split, content in splits.items():
            for suffix in SUFFIXES if not content.documents else ():
                (folder / f"{split}{suffix}").unlink()
        return self._record(folder, splits, vocabulary, name, len(shards))

    def _heldout(self, keys: list[NDArray[np.uint64]]) -> list[NDArray[np.bool_]]:
        """Which documents are held out. One at least where there are two and some are asked for, and never all.

        Of several parts none has to have one: together they hold out what one part does.
        """
        threshold, every = self.settings.heldout_fraction * 2**64, np.concatenate(keys)
        mask = every < threshold if threshold else np.zeros(every.size, bool)
        if threshold and every.size > 1 and not mask.any() and not self.suffix:
            mask[every.argmin()] = True
        if mask.all():
            mask[every.argmax()] = False
        return np.split(mask, np.cumsum([one.size for one in keys])[:-1])

    def _record(
        self, folder: Path, splits: dict[str, Split], vocabulary: tokenizers.Tokenizer, name: str, shards: int
    ) -> Packed:
        settings = {key: getattr(self.settings, key) for key in ("bos", "eos", "heldout_fraction", "seed")}
        content = {split: one.sha256 for split, one in splits.items()}
        decisive = json.dumps([content, vocabulary.fingerprint, settings], sort_keys=True)
        done = Packed(
            packed.VERSION,
            hashlib.sha256(decisive.encode()).hexdigest(),
            self.tokenizer.kind,
            vocabulary.fingerprint,
            vocabulary.vocab_size,
            settings,
            {"format": "curated", "bucket": name, "shards": shards},
            splits["train"],
            splits["heldout"],
        )
        done.write(folder)
        return done


class Vocabulary(PipelineStep):
    """A BPE trained on the first pieces of every shard, evenly, where there is none at `tokenizer.path` yet.

    `beside`: its file, which the record of the task vouches for although it does not lie in the stage's folder.
    """

    type, name = "🔢 - TOKENIZER", "Vocabulary"

    def __init__(self, shards: Sequence[Path], tokenizer: config.Tokenizer, out: Path) -> None:
        super().__init__()
        self.shards, self.tokenizer, self.out = shards, tokenizer, out
        self.beside = (tokenizers.tokenizer_file(tokenizer),)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """No documents. What is left is the fingerprint of the tokenizer, so that its change is seen."""
        if data:
            yield from data
        if not tokenizers.tokenizer_file(self.tokenizer).is_file():
            if self.tokenizer.vocab_size is None:
                raise ValueError("tokenizer.vocab_size=null: say how many ids to train, 256 special tokens included")
            pieces = (piece for text in self._sample() for piece in pack.trainable(text))
            tokenizers.train_bpe(pieces, self.tokenizer.vocab_size, self.tokenizer.path)
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            vocabulary = tokenizers.load(self.tokenizer)
        except ValueError as error:
            raise ValueError(f"{error}, or take it away: it is trained anew where there is none") from error
        known = {"fingerprint": vocabulary.fingerprint, "vocab_size": vocabulary.vocab_size}
        (self.out / "tokenizer.json").write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")

    def _sample(self) -> Iterator[str]:
        share = max(1, self.tokenizer.train_bytes // max(1, len(self.shards)))
        for path in self.shards:
            left = share
            for document in ShardReader([path]).run(None):
                if xxhash.xxh64_intdigest(document.id.encode("utf-8", "replace")) % 4:
                    continue  # spread over the shard: what stands in its beginning is of one source
                text = document.text[:100_000]
                left -= len(text)
                yield text
                if left < 0:
                    break
