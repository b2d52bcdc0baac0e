"""Whether the models that a curation is given answer what they will be asked: looked at before anything runs.

A model of another kind would be refused, or asked for nonsense, after hours of extraction. Neither fastText nor torch
is loaded: labels stand in the head of a model's file, classes in its folder's JSON.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from llama31.config import BestOfLanguage, CitedScore, EncoderScore, Issue, KnowledgeClasses, LanguageIdentification
from llama31.curate import codes
from llama31.curate.fast_text import whole
from llama31.runs import files

GOOD = "cited"  # the label of pages that are like those that Wikipedia cites
SCORER = "scorer.json"
TRAIN = "make one by python -m recipes.classify task="
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def issues(
    language: LanguageIdentification,
    cited: CitedScore,
    knowledge: KnowledgeClasses,
    encoders: Mapping[str, EncoderScore],
    best: BestOfLanguage,
) -> Iterator[Issue]:
    """What is wrong with the models of a curation. Those that are not there are left to others."""
    yield from _languages(language, best)
    yield from _cited(cited.model)
    yield from _knowledge(knowledge)
    for name, one in encoders.items():
        if (Path(one.model) / "config.json").is_file():
            yield from _scorer(f"encoders.{name}", Path(one.model), one.label)


def _labels(key: str, path: str) -> tuple[tuple[str, ...] | None, list[Issue]]:
    """Labels of a fastText model and what is wrong with its file; None where none is given, or none is there."""
    if not path or not Path(path).exists():
        return None, []
    try:
        return whole.check(Path(path)), []
    except whole.Broken as error:
        return None, [Issue(key, path, error.reason, error.remedy)]


def _languages(given: LanguageIdentification, best: BestOfLanguage) -> Iterator[Issue]:
    key, path = "language.model", given.model
    labels, broken = _labels(key, path)
    yield from broken
    if labels is None:
        return
    if not any(map(codes.LABEL.fullmatch, labels)):
        yield Issue(key, path, f"it knows {_some(labels)}, and no language", f"give lid.176.bin, or {TRAIN}language")
        return
    known = {codes.language_of(label)[0] for label in labels}
    wanted: dict[str, Collection[str]] = {"language.languages": given.languages, "best.shares": best.shares}
    for which, names in wanted.items():
        for name in names:
            if name not in known:
                yield Issue(which, name, f"{path} knows no such language", f"give some of {_some(known)}")


def _cited(path: str) -> Iterator[Issue]:
    labels, broken = _labels("cited.model", path)
    yield from broken
    if labels is not None and GOOD not in labels:
        yield Issue("cited.model", path, f"it knows {_some(labels)}, and no {GOOD}", f"{TRAIN}cited")


def _knowledge(given: KnowledgeClasses) -> Iterator[Issue]:
    key, path = "knowledge.model", given.model
    if path and Path(path).is_dir():
        yield from _encoder_of_classes(given, key, Path(path))
        return
    labels, broken = _labels(key, path)
    yield from broken
    if labels is None:
        return
    use = _json(whole.record_path(path)).get("use", "knowledge")
    if use != "knowledge" or len(labels) < 2:
        yield Issue(key, path, f"it knows {_some(labels)}, and no classes of knowledge", f"{TRAIN}knowledge")
    else:
        yield from _shares(given, [label.replace("_", " ") for label in labels])


def _encoder_of_classes(given: KnowledgeClasses, key: str, folder: Path) -> Iterator[Issue]:
    if not (folder / "config.json").is_file():
        return
    unfit, classes = [*_unfit(key, folder)], _classes(folder)
    if not unfit and len(classes) < 2:
        remedy = f"{TRAIN}encoder, on labels of criteria=knowledge"
        unfit = [Issue(key, str(folder), "it gives a score, and no classes of knowledge", remedy)]
    yield from unfit or _shares(given, classes)


def _shares(given: KnowledgeClasses, classes: Collection[str]) -> Iterator[Issue]:
    for name in given.largest_shares:
        if name not in {*classes, "other"}:  # of which are texts without words
            reason = f"{given.model} knows no such class"
            yield Issue("knowledge.largest_shares", name, reason, f"give some of {_some(classes)}")


def _scorer(key: str, folder: Path, label: str | None) -> Iterator[Issue]:
    unfit = [*_unfit(f"{key}.model", folder)]
    yield from unfit
    if unfit:
        return
    classes = _classes(folder)
    if len(classes) < 2 and label is not None:
        yield Issue(f"{key}.label", label, f"{folder} has one output, and no classes", "leave it out")
    elif len(classes) > 1 and label not in classes:
        reason = "which of its classes is scored?" if label is None else f"{folder} has no such class"
        yield Issue(f"{key}.label", label, reason, f"give one of {_some(classes)}")


def _unfit(key: str, folder: Path) -> Iterator[Issue]:
    """What keeps an encoder from being asked: no weights, or none of a classifier."""
    remedy = f"{TRAIN}encoder base={folder} labels=..."
    trained = _json(folder / "config.json").get("architectures") or []
    if not any(any(folder.glob(name)) for name in WEIGHTS):
        yield Issue(key, str(folder), "there are no weights in it", remedy)
    elif trained and not any(str(name).endswith("ForSequenceClassification") for name in trained):
        yield Issue(key, str(folder), f"it was not trained to classify ({', '.join(map(str, trained))})", remedy)


def _classes(folder: Path) -> list[str]:
    """Names of an encoder's classes; one where it has one output."""
    described, settings = _json(folder / SCORER), _json(folder / "config.json")
    names: Mapping[str, Any] = settings.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # transformers' own default
    return described.get("classes") or [str(names[place]) for place in sorted(names, key=int)]


def _json(path: Path) -> Mapping[str, Any]:
    return files.read_object(path) or {}


def _some(names: Collection[str], most: int = 12) -> str:
    """Names in a line, the first of many."""
    ordered = sorted(names)
    return ", ".join(ordered[:most] or ["no labels"]) + (", ..." if len(ordered) > most else "")
