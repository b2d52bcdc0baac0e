"""Scores by an encoder, such as the report's DistilRoBERTa: Hugging Face's folder, asked in batches of like length.

`training` writes such folders, with `scorer.json`, by which its outputs become probabilities. A folder from elsewhere
does too: without `scorer.json` its logits are taken as they are. The first `max_tokens` tokens of a document are read,
as many as it was trained on. torch and transformers are imported when the first document comes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.typeshelper import StatHints
from numpy.typing import NDArray

from llama31.curate.scoring import calibration
from llama31.curate.scoring.kinds import SCORER

MAX_TOKENS = 512
BATCH_TOKENS = 16_384
LEAST_FILLED = 0.8
WINDOW_CHARACTERS = 50_000_000
CHARACTERS_PER_TOKEN = 16  # beyond so many the rest of a text is not even tokenised


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Places of texts with these lengths, the longest first, in batches that hold `budget` tokens with their padding.

    A text that is longer alone has a batch of its own, and one of less than `LEAST_FILLED` of a batch's longest begins
    the next, so that few tokens are padding where documents are few as well. Each place stands in one batch.
    """
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    result: list[list[int]] = []
    for place in order:
        longest = lengths[result[-1][0]] if result else 0
        if result and (len(result[-1]) + 1) * longest <= budget and lengths[place] >= LEAST_FILLED * longest:
            result[-1].append(place)
        else:
            result.append([place])
    return result


def windows(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Runs of at most `size` documents, and of some 50 million characters, of one file (`file_path` of its readers).

    What is computed together depends on the file alone, not on how files are shared among tasks: the last bits of a
    score depend on the batch, and a rerun on other tasks has to give the same bytes.
    """
    window: list[Document] = []
    characters = 0
    for document in documents:
        full = len(window) == size or characters >= WINDOW_CHARACTERS
        if window and (full or window[0].metadata.get("file_path") != document.metadata.get("file_path")):
            yield window
            window, characters = [], 0
        window.append(document)
        characters += len(document.text)
    if window:
        yield window


class Encoder:
    """A classifier of texts by its folder.

    Raises ValueError (key `model`) where there is none, or one without a classifier: its scores would be drawn by lot.

    Args:
        folder: Hugging Face's: config.json, weights, tokenizer; and scorer.json where `training` wrote it.
        max_tokens: the longest text, in tokens; the model's own limit where that is lower. None: as scorer.json says
            that it was trained, for of longer texts its scores are no probabilities; 512 where nothing says so.
        batch_tokens: tokens of a batch, padding included.
        threads: torch's, on a CPU: one, for datatrove runs a task per core.
        device: "" for the GPU where there is one.
    """

    def __init__(
        self,
        folder: str | Path,
        max_tokens: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        threads: int = 1,
        device: str = "",
    ) -> None:
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"model={folder}: no config.json there; give a folder with an encoder of Hugging Face's")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if threads > 1 else "false")
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.torch, self.batch_tokens = torch, batch_tokens
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.device == "cpu":
            torch.set_num_threads(threads)
        # of what is longer transformers would warn, though it is cut here
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=2**30)
        network, absent = loaded(AutoModelForSequenceClassification, folder)
        if absent:
            raise ValueError(
                f"model={folder}: it has no weights for {', '.join(absent)}, so its scores would be drawn by lot; "
                "train one from it: python -m recipes.classify task=encoder base=..."
            )
        self.network = network.to(self.device).eval()
        path = Path(folder) / SCORER
        self.described: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        trained = self.described.get("settings", {}).get("max_tokens", MAX_TOKENS)
        self.max_tokens = min(trained if max_tokens is None else max_tokens, positions(network.config))
        names = [name for _, name in sorted(network.config.id2label.items())]
        self.classes: list[str] = self.described.get("classes") or names
        self.padded, self.tokens, self.cut = 0, 0, 0

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Outputs [texts, outputs] of the network. Counts tokens, those of padding, and texts that were cut."""
        kept = [prepared(text, self.max_tokens) for text in texts]
        encoded = self.tokenizer(kept, truncation=False, add_special_tokens=True)["input_ids"]
        ids = [self._cut(one) for one in encoded]
        self.cut += sum(len(a) > len(b) or len(text) > len(c) for a, b, text, c in zip(encoded, ids, texts, kept))
        result = np.zeros((len(texts), self.network.config.num_labels))
        fast = self.torch.autocast("cuda", dtype=self.torch.bfloat16) if self.device == "cuda" else nullcontext()
        with self.torch.inference_mode(), fast:
            for batch in batches([len(one) for one in ids], self.batch_tokens):
                padded = self.tokenizer.pad({"input_ids": [ids[place] for place in batch]}, return_tensors="pt")
                result[batch] = self.network(**padded.to(self.device)).logits.double().cpu().numpy()
                self.tokens += sum(len(ids[place]) for place in batch)
                self.padded += padded["input_ids"].numel()
        return result

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Probabilities [texts]: of being good, for a model with one output."""
        if self.network.config.num_labels != 1:
            raise ValueError(f"model: it knows classes ({', '.join(self.classes)}); ask for one of them by label")
        slope, intercept = self.described.get("scale", (1.0, 0.0))
        return calibration.sigmoid(slope * self.logits(texts)[:, 0] + intercept)

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Probabilities [texts, classes], for a model with an output per class."""
        return softmax(self.logits(texts) / self.described.get("temperature", 1.0))

    def all(self, texts: Sequence[str], languages: Sequence[str]) -> list[dict[str, float]]:
        """Probabilities of all classes, by name."""
        return [dict(zip(self.classes, map(float, row))) for row in self.probabilities(texts)]

    def _cut(self, ids: list[int]) -> list[int]:
        """At most `max_tokens`, the last of them, which marks the end, kept."""
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]


def loaded(kind: Any, folder: str | Path, **settings: Any) -> tuple[Any, list[str]]:
    """A network by its folder, and the names of weights that are not in it, or of another shape, sorted.

    transformers says so in a table on the console, draws them by lot and goes on; here whoever asks decides.
    """
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        network, said = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **settings)
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
    return network, sorted({*said["missing_keys"], *(name for name, *_ in said["mismatched_keys"])})


def prepared(text: str, max_tokens: int) -> str:
    """As much of a text as can be read."""
    return readable(text[: CHARACTERS_PER_TOKEN * max_tokens])


def readable(text: str) -> str:
    """A text without halves of surrogate pairs and zero bytes."""
    text = text.replace("\0", " ")
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def positions(settings: Any) -> int:
    """How many tokens a network reads; RoBERTa's begin to count behind the number of its padding."""
    most = int(getattr(settings, "max_position_embeddings", 0) or MAX_TOKENS)
    return most - settings.pad_token_id - 1 if "roberta" in settings.model_type else most


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


class EncoderFilter(BaseFilter):
    """Writes an encoder's score to metadata, and drops what is below a threshold if there is one.

    Three of them stand in a pipeline for general text, code and mathematics, each with a model and a key of its own.
    Documents without text get 0. Counts `KEY below 0.5` of what is dropped, `not asked about` of what passes without a
    score, `cut` of texts that are longer than was read, `tokens` and, of these, `padding`.

    Args:
        model: folder of the encoder.
        key: metadata's name of the score.
        label: the class whose probability it is, of a model with several outputs; None: of a model with one.
        threshold: least score; None: keep all. `calibration.threshold` finds the one that keeps a share.
        thresholds: others for single languages.
        only: metadata that a document has to have to be asked about, {"extraction": "technical"}; others pass.
        window: documents that are sorted by length together.
        max_tokens, batch_tokens, threads, device: as in `Encoder`.
        exclusion_writer: takes what is dropped.
    """

    name = "Encoder score"

    def __init__(
        self,
        model: str,
        key: str = "quality",
        label: str | None = None,
        threshold: float | None = None,
        thresholds: Mapping[str, float] | None = None,
        only: Mapping[str, str] | None = None,
        window: int = 2048,
        max_tokens: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        threads: int = 1,
        device: str = "",
        exclusion_writer: DiskWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        if window < 1 or batch_tokens < 1:
            raise ValueError(f"window={window}, batch_tokens={batch_tokens}: give positive numbers")
        self.name = f"{type(self).name}: {key}"  # several stand in a pipeline
        self.model, self.key, self.label, self.window = model, key, label, window
        self.threshold, self.thresholds, self.only = threshold, dict(thresholds or {}), dict(only or {})
        self.settings = {"max_tokens": max_tokens, "batch_tokens": batch_tokens, "threads": threads, "device": device}
        self._loaded: Encoder | None = None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document with a score is kept, or why not."""
        language = doc.metadata.get("language", "")
        own = language in self.thresholds
        least = self.thresholds[language] if own else self.threshold
        if least is None or self.key not in doc.metadata or doc.metadata[self.key] >= least:
            return True
        return False, f"{self.key}{f' of {language}' if own else ''} below {least:g}"

    def score(self, documents: Sequence[Document]) -> None:
        """Write the scores of documents that are asked about."""
        if self._loaded is None:
            self._loaded = Encoder(self.model, **self.settings)  # type: ignore[arg-type]
        encoder = self._loaded
        asked = [one for one in documents if all(one.metadata.get(key) == value for key, value in self.only.items())]
        if len(asked) < len(documents):
            self.stat_update("not asked about", value=len(documents) - len(asked))
        texts = [one for one in asked if one.text.strip()]
        before = encoder.tokens, encoder.padded, encoder.cut
        if texts:
            scores = self._scores(encoder, [one.text for one in texts])
            known = {id(one): float(score) for one, score in zip(texts, scores)}
            for one in asked:
                one.metadata[self.key] = round(known.get(id(one), 0.0), 4)
        else:
            for one in asked:
                one.metadata[self.key] = 0.0
        tokens, padded, cut = encoder.tokens - before[0], encoder.padded - before[1], encoder.cut - before[2]
        self.stat_update("tokens", value=tokens, unit="window")
        self.stat_update("padding", value=padded - tokens, unit="window")
        self.stat_update("cut", value=cut, unit="window")

    def _scores(self, encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float64]:
        if self.label is None:
            return encoder.scores(texts)
        if self.label not in encoder.classes:
            raise ValueError(f"label={self.label}: the model knows {', '.join(encoder.classes)}; give one of them")
        return encoder.probabilities(texts)[:, encoder.classes.index(self.label)]

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """The documents that are kept, in their order, with their scores."""
        with self.exclusion_writer if self.exclusion_writer else nullcontext() as writer:
            for window in windows(data, self.window):
                with self.track_time("window"):
                    self.score(window)
                for document in window:
                    self.stat_update(StatHints.total)
                    kept, reason = get_filter_result(self.filter(document))
                    if kept:
                        self.stat_update(StatHints.forwarded)
                        self.update_doc_stats(document)
                        yield document
                        continue
                    self.stat_update(StatHints.dropped, f"dropped_{reason}")
                    if writer is not None:
                        document.metadata["filter_reason"] = reason
                        writer.write(document, rank)
