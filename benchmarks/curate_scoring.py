"""Documents per second and core of the model-based scores, beside what one would use otherwise, on the same documents.

    python -m benchmarks.curate_scoring FOLDER...     folders of HTML, as Debian's documentation packages unpacked

fastText: this project's blocks beside datatrove's `FastTextClassifierFilter`, with the same models, trained here: which
folder a page is from. Encoder: a network of DistilRoBERTa's shape (82 million parameters, not trained, for speed alone)
in batches of like length, beside transformers' pipeline in the order of the documents. Both take turns in one process
with one thread, so that what else the machine does falls on both.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fasttext
from datatrove.data import Document
from datatrove.pipeline.filters.fasttext_filter import FastTextClassifierFilter

from llama31.curate.extraction import page
from llama31.curate.fast_text import model
from llama31.curate.scoring import language, quality
from llama31.curate.scoring.encoder import EncoderFilter

PAGES = 400  # evenly drawn from each folder
ENCODED = 20  # of all of them, for the encoder: two a second
ROUNDS = 3
VOCABULARY = 50_265


def documents(texts: Sequence[str]) -> list[Document]:
    """Documents anew, for blocks write into them."""
    return [Document(text, f"{i}") for i, text in enumerate(texts)]


def seconds(run: Callable[[list[Document]], Any], texts: Sequence[str]) -> float:
    """Processor's seconds of one pass."""
    given = documents(texts)
    begin = time.process_time()
    run(given)
    return time.process_time() - begin


def line(
    name: str, texts: Sequence[str], ours: Callable[..., Any], peer: Callable[..., Any], rounds: int = ROUNDS
) -> str:
    """A row: documents per second of both, the fastest of their turns, and the ratio."""
    runs = [(seconds(ours, texts), seconds(peer, texts)) for _ in range(rounds)]
    mine, other = (len(texts) / min(column) for column in zip(*runs))
    characters = sum(map(len, texts)) / len(texts)
    return f"{name:<24}{len(texts):>8}{characters:>12,.0f}{mine:>12,.1f}{other:>12,.1f}{mine / other:>8.2f}"


def through(block: Any) -> Callable[[list[Document]], Any]:
    """A pass through a block of datatrove's kind."""
    return lambda given: [*block.run(iter(given), 0, 1)]


def _theirs(path: Path) -> FastTextClassifierFilter:
    block = FastTextClassifierFilter(str(path), newline_replacement=" ")
    block._model = fasttext.load_model(str(path))  # which it would keep a copy of, for ever
    return block


def _network(folder: Path, texts: Sequence[str]) -> Path:
    """A folder of DistilRoBERTa's shape, with a tokenizer of these texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, RobertaConfig

    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special))
    words.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), special))
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    shape = RobertaConfig(
        vocab_size=VOCABULARY, num_hidden_layers=6, max_position_embeddings=514, type_vocab_size=1, num_labels=1
    )
    AutoModelForSequenceClassification.from_config(shape).save_pretrained(folder)
    return folder


def _pipeline(folder: Path) -> Callable[[list[Document]], Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    network = AutoModelForSequenceClassification.from_pretrained(folder)
    asked = pipeline(
        "text-classification", model=network, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu"
    )
    return lambda given: asked([one.text for one in given], batch_size=32, truncation=True, max_length=512)


def main(folders: list[str]) -> None:
    """Print a row for each score."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    labelled: list[tuple[str, str]] = []
    for folder in folders:
        files = sorted(path for path in Path(folder).rglob("*.htm*") if path.is_file())
        drawn = files[:: max(1, len(files) // PAGES)]
        found = (page.extract(path.read_bytes().decode("utf-8", "replace")).text for path in drawn)
        labelled += [(Path(folder).name.replace(" ", "-"), text) for text in found if text.strip()]
    texts = [text for _, text in labelled]
    print(f"{'':<24}{'texts':>8}{'characters':>12}{'ours/s':>12}{'peer/s':>12}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        language.train(labelled, work / "language.bin")
        model.train(
            ((label, model.line(text)) for label, text in labelled), work / "score.bin", model.FastTextSettings()
        )
        spotted = language.LanguageFilter(str(work / "language.bin"), threshold=0)
        print(line("language", texts, through(spotted), through(_theirs(work / "language.bin"))), flush=True)
        scored = quality.FastTextFilter(str(work / "score.bin"), label=labelled[0][0], characters=0)
        print(line("fastText score", texts, through(scored), through(_theirs(work / "score.bin"))), flush=True)
        some = texts[:: max(1, len(texts) // ENCODED)]
        folder_ = _network(work / "encoder", texts)
        scorer = EncoderFilter(str(folder_), max_tokens=512)
        print(line("encoder", some, through(scorer), _pipeline(folder_), rounds=2), flush=True)
        counts = {key: stat.total for key, stat in scorer.stats.stats.items() if key in ("tokens", "padding", "cut")}
        print("encoder, all turns: " + ", ".join(f"{value:,} {key}" for key, value in counts.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
