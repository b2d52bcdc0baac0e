"""Models that judge documents, for recipes.curate: labels from a chat model, an encoder or fastText trained on them.

Example: python -m recipes.classify task=label documents=sample.jsonl output=labels 'server.urls=[http://n1:8000/v1]'
Example: python -m recipes.classify task=encoder labels=labels base=/models/distilroberta output=models/general
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from llama31 import config
from recipes import start

if TYPE_CHECKING:
    from llama31.curate.fast_text.model import FastTextSettings
    from llama31.curate.scoring.criteria import Criteria

# Who takes what is written.
FOR = {
    "label": "for task=encoder labels=..., or task=knowledge labels=...",
    "encoder": "for recipes.curate: encoders.NAME.model=..., of classes also knowledge.model=...",
    "knowledge": "for recipes.curate: knowledge.model=...",
    "cited": "for recipes.curate: cited.model=...",
    "language": "for recipes.curate: language.model=...",
}


def main(run: config.Classify) -> None:
    """Do what `run.task` says, and print what the record says of it."""
    does = {"label": label, "encoder": encoder, "knowledge": knowledge, "cited": cited, "language": language}
    print(json.dumps(does[run.task](run), indent=1, ensure_ascii=False))
    print(f"{run.output}: {FOR[run.task]}", file=sys.stderr)


def label(run: config.Classify) -> dict[str, Any]:
    """Ask a chat model about documents; what was asked before is not asked again."""
    from llama31.curate.scoring import labels

    documents = read(run, "documents", run.limit)
    with shown("labels") as progress:
        question = criteria(run.criteria, run.classes)
        return labels.collect(run.output, documents, question, run.server, run.characters, progress=progress)


def encoder(run: config.Classify) -> dict[str, Any]:
    """Train an encoder on grades, or on classes where those were asked for."""
    from llama31.curate.scoring import labels, training
    from llama31.curate.scoring.criteria import Criteria

    examples, asked = labels.read(run.labels)
    wanted, settings = Criteria(**asked["criteria"]), training.EncoderSettings(**asdict(run.encoder))
    classes, target = ((), wanted.target) if wanted.passing else (list(wanted.answers), None)
    with shown("steps") as progress:
        return training.train(examples, run.output, run.base, classes, target, settings, progress, **asked)


def knowledge(run: config.Classify) -> dict[str, Any]:
    """Train a fastText model of classes on labels."""
    from llama31.curate.scoring import knowledge, labels

    return knowledge.train(labels.read(run.labels)[0], run.output, run.fast_text.share, fast_text(run))


def cited(run: config.Classify) -> dict[str, Any]:
    """Train a fastText model that tells documents from others."""
    from llama31.curate.scoring import quality

    positives, negatives = read(run, "documents"), read(run, "others")
    return quality.train(positives, negatives, run.output, run.fast_text.share, settings=fast_text(run))


def language(run: config.Classify) -> dict[str, Any]:
    """Train a fastText model of languages; its settings are those of lid.176, smaller, where none are given."""
    from llama31.curate.scoring import language

    texts = [(str(one.metadata.get("language") or ""), one.text) for one in read(run, "documents")]
    if without := sum(not name for name, _ in texts):
        raise ValueError(
            f"documents={run.documents}: {without:,} of {len(texts):,} records have no language; give each the field "
            "`language`"
        )
    return language.train(texts, run.output, settings=fast_text(run, language.SETTINGS), share=run.fast_text.share)


def read(run: config.Classify, key: str, limit: int | None = None) -> Sequence[Any]:
    """Documents of the JSON lines that a key names; what was left out is told."""
    from llama31.curate.scoring import quality

    path = getattr(run, key)
    documents, left_out = quality.read(path, run.text_key, limit, key)
    for kind, count in left_out.items():
        print(f"{path}: {kind}: {count:,}", file=sys.stderr, flush=True)
    return documents


@contextlib.contextmanager
def shown(what: str) -> Iterator[Callable[[int, int], None]]:
    """Whom to tell (done, all): a bar on a terminal, else a line every 15 seconds."""
    from tqdm import tqdm

    with tqdm(total=0, desc=what, mininterval=0.1 if sys.stderr.isatty() else 15) as bar:

        def progress(done: int, every: int) -> None:
            bar.total = every
            bar.update(done - bar.n)

        yield progress


def criteria(name: str, classes: Mapping[str, str]) -> Criteria:
    """What is asked; of knowledge also with other classes."""
    from llama31.curate.scoring.criteria import ALL

    return replace(ALL[name], answers=dict(classes)) if classes else ALL[name]


def fast_text(run: config.Classify, usual: FastTextSettings | None = None) -> FastTextSettings:
    """Settings of the model: the usual ones of its kind, where none are given."""
    from llama31.curate.fast_text.model import FastTextSettings

    given = {name: value for name, value in asdict(run.fast_text).items() if name != "share" and value is not None}
    return replace(usual or FastTextSettings(), **given)


if __name__ == "__main__":
    start(main, config.Classify, "classify")
