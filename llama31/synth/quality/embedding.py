"""Embeddings of whole dialogs by an encoder, such as the report's RoBERTa: Hugging Face's folder, mean of all tokens.

A dialog that is longer than the encoder reads goes through in windows; the mean is over the tokens of all of them, so
nothing is cut. Embeddings are kept, in chunks, so that a killed command goes on and another selection makes few anew.

    <folder>/<key>/*.npz   ids and FP32 vectors [dialogs, d] of a chunk; the key is that of encoder and settings

torch and transformers are imported when an embedder is made.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31 import config
from llama31.curate.scoring import encoder
from llama31.runs import files

CHUNK = 4096
PIECE_CHARACTERS = 100_000  # of a very long text, tokenised at a time
FLOOR = 1e-12


class DialogEmbedder:
    """Embeddings of texts. Raises ValueError (key `deduplication.encoder`) where there is no encoder."""

    def __init__(self, settings: config.SemanticDeduplication, device: str = "") -> None:
        folder = settings.encoder or ""
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(
                f"deduplication.encoder={settings.encoder}: no config.json there; give a folder with an encoder of "
                "Hugging Face's"
            )
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if settings.threads > 1 else "false")
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.torch, self.batch_tokens = torch, settings.batch_tokens
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.device == "cpu":
            torch.set_num_threads(settings.threads)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=2**30)
        network = AutoModel.from_pretrained(folder, local_files_only=True)
        self.network = network.to(self.device).eval()
        self.begin, self.end = self._around()
        most = min(settings.max_tokens, encoder.positions(network.config))
        self.window = most - len(self.begin) - len(self.end)
        self.windows, self.tokens = 0, 0

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings [texts, d] of length 1. Counts windows and tokens. The last bits depend on the batch."""
        owners, windows = self._windows(texts)
        sums = np.zeros((len(texts), self.network.config.hidden_size))
        fast = self.torch.autocast("cuda", dtype=self.torch.bfloat16) if self.device == "cuda" else nullcontext()
        with self.torch.inference_mode(), fast:
            for batch in encoder.batches([len(one) for one in windows], self.batch_tokens):
                padded = self.tokenizer.pad({"input_ids": [windows[i] for i in batch]}, return_tensors="pt")
                states = self.network(**padded.to(self.device)).last_hidden_state.float()
                total = (states * padded["attention_mask"].unsqueeze(-1)).sum(1).double().cpu().numpy()
                np.add.at(sums, [owners[i] for i in batch], total)
        self.windows += len(windows)
        self.tokens += sum(map(len, windows))
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return np.asarray(sums / np.maximum(lengths, FLOOR), np.float32)

    def _windows(self, texts: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Token ids of all windows, marked as the encoder expects texts to be, and whose they are."""
        owners: list[int] = []
        windows: list[list[int]] = []
        for owner, text in enumerate(texts):
            ids = [i for piece in _pieces(encoder.readable(text)) for i in self._ids(piece)]
            for begin in range(0, max(len(ids), 1), self.window):
                owners.append(owner)
                windows.append([*self.begin, *ids[begin : begin + self.window], *self.end])
        return owners, windows

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind a text."""
        whole, inner = list(self.tokenizer("a")["input_ids"]), self._ids("a")
        at = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
        return whole[:at], whole[at + len(inner) :]


def _pieces(text: str) -> Iterator[str]:
    """A very long text in pieces that end behind white space, where there is some."""
    while len(text) > PIECE_CHARACTERS:
        cut = max(text.rfind(" ", 0, PIECE_CHARACTERS), text.rfind("\n", 0, PIECE_CHARACTERS)) + 1
        cut = cut or PIECE_CHARACTERS
        yield text[:cut]
        text = text[cut:]
    yield text


def embedded(
    folder: Path,
    dialogs: Iterable[tuple[str, str]],
    settings: config.SemanticDeduplication,
    progress: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float32]:
    """Embeddings [dialogs, d] of dialogs, given by id and text, in their order; those that the folder has are not made.

    `progress` takes how many are done.
    """
    place = folder / _key(settings)
    place.mkdir(parents=True, exist_ok=True)
    known = {one: path for path in sorted(place.glob("*.npz")) for one in np.load(path)["ids"].tolist()}
    model: DialogEmbedder | None = None
    order: list[str] = []
    for chunk in _missing(dialogs, known, order):
        progress(len(order) - len(chunk))
        model = model or DialogEmbedder(settings)
        _save(place, list(chunk), model.embed(list(chunk.values())))
        known |= dict.fromkeys(chunk, place / _name(list(chunk)))
    progress(len(order))
    return _together(order, known)


def _missing(
    dialogs: Iterable[tuple[str, str]], known: Mapping[str, Path], order: list[str]
) -> Iterator[dict[str, str]]:
    """Chunks of the dialogs that are not known, by id; `order` becomes the ids of all that were read so far."""
    chunk: dict[str, str] = {}
    for one, text in dialogs:
        order.append(one)
        if one not in known:
            chunk[one] = text
        if len(chunk) == CHUNK:
            yield chunk
            chunk = {}
    if chunk:
        yield chunk


def _together(order: Sequence[str], known: Mapping[str, Path]) -> NDArray[np.float32]:
    """The embeddings of these dialogs out of the files that have them."""
    places = {one: place for place, one in enumerate(order)}
    result = np.zeros((0, 1), np.float32)
    for path in sorted({known[one] for one in order}):
        with np.load(path) as kept:
            ids, vectors = kept["ids"].tolist(), kept["vectors"]
        rows = [(places[one], row) for row, one in enumerate(ids) if one in places]
        if not result.size:
            result = np.zeros((len(order), vectors.shape[1]), np.float32)
        result[[place for place, _ in rows]] = vectors[[row for _, row in rows]]
    return result


def _key(settings: config.SemanticDeduplication) -> str:
    """What embeddings depend on, beside the text."""
    return hashlib.sha256(f"{settings.encoder} {settings.max_tokens} {settings.batch_tokens}".encode()).hexdigest()[:16]


def _name(ids: Sequence[str]) -> str:
    return f"{hashlib.sha256(' '.join(ids).encode()).hexdigest()[:16]}.npz"


def _save(folder: Path, ids: Sequence[str], vectors: NDArray[Any]) -> None:
    with files.whole(folder / _name(ids)) as draft, draft.open("wb") as file:
        np.savez(file, ids=np.array(ids), vectors=vectors)
