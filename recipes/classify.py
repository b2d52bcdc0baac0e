"""Models that judge documents, for recipes.curate: labels from a chat model, an encoder or fastText trained on them.

Example: python -m recipes.classify task=label documents=sample.jsonl output=labels 'server.urls=[http://n1:8000/v1]'
Example: python -m recipes.classify task=encoder labels=labels base=/models/distilroberta output=models/general
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llama31 import config
from recipes import start

if TYPE_CHECKING:
    from llama31.curate.fast_text.model import FastTextSettings
    from llama31.curate.scoring.criteria import Criteria


def main(run: config.Classify) -> None:
    """Do what `run.task` says, and print what the record says of it."""
    does = {"label": label, "encoder": encoder, "knowledge": knowledge, "cited": cited, "language": language}
    print(json.dumps(does[run.task](run), indent=1, ensure_ascii=False))


def label(run: config.Classify) -> dict[str, Any]:
    """Ask a chat model about documents; what was asked before is not asked again."""
    from llama31.curate.scoring import labels

    documents = read(run, run.documents, run.limit)
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

    positives, negatives = read(run, run.documents), read(run, run.others)
    return quality.train(positives, negatives, run.output, run.fast_text.share, settings=fast_text(run))


def language(run: config.Classify) -> dict[str, Any]:
    """Train a fastText model of languages; its settings are those of lid.176, smaller."""
    from llama31.curate.scoring import language

    texts = [(str(one.metadata.get("language") or ""), one.text) for one in read(run, run.documents)]
    if not all(name for name, _ in texts):
        raise ValueError(f"documents={run.documents}: a record has no language; give each the field `language`")
    return language.train(texts, run.output)


def read(run: config.Classify, path: str, limit: int | None = None) -> Sequence[Any]:
    """Documents of JSON lines; what was left out is told."""
    from llama31.curate.scoring import quality

    documents, left_out = quality.read(path, run.text_key, limit)
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
    from dataclasses import replace

    from llama31.curate.scoring.criteria import ALL

    return replace(ALL[name], answers=dict(classes)) if classes else ALL[name]


def fast_text(run: config.Classify) -> FastTextSettings:
    """Settings of the model."""
    from llama31.curate.fast_text.model import FastTextSettings

    return FastTextSettings(**{name: value for name, value in asdict(run.fast_text).items() if name != "share"})


if __name__ == "__main__":
    start(main, config.Classify, "classify")
