"""What the keys of `recipes.curate` must satisfy together, and whether its files are there.

Nothing of curation is imported but the list of its stages and what looks at models from outside, so that a wrong key
is refused at once.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from llama31.config import Classify, Curate, Issue, KnowledgeClasses, LanguageIdentification, PageSource
from llama31.curate.running import stages
from llama31.curate.scoring import kinds
from llama31.runs import files

REPORT = "report"  # no stage of its own: it puts together what the others recorded
NAME = "letters, digits, _ and -"
LINES, LABELS = "JSON lines: a file or a glob", "the output of task=label"
FAST_TEXT = ("fast_text",)
# Further keys of each task.
TAKEN: dict[str, tuple[str, ...]] = {
    "label": ("text_key", "criteria", "classes", "characters", "limit", "server"),
    "encoder": ("encoder",),
    "knowledge": FAST_TEXT,
    "cited": ("text_key", *FAST_TEXT),
    "language": ("text_key", *FAST_TEXT),
}
NEEDED = {
    "label": {"documents": LINES},
    "encoder": {"labels": LABELS, "base": "the folder of a model such as DistilRoBERTa"},
    "knowledge": {"labels": LABELS},
    "cited": {"documents": LINES, "others": LINES},
    "language": {"documents": LINES},
}


def problems(run: Curate) -> list[Issue]:
    """All that is wrong with the keys."""
    return [*_sources(run), *_rules(run), *_scores(run), *_tokens(run), *_stage(run)]


def classifier_problems(run: Classify) -> list[Issue]:
    """All that is wrong with the keys of `recipes.classify`."""
    issues = [
        Issue(name, "", f"task={run.task} needs it", f"give {what}")
        for name, what in NEEDED.get(run.task, {}).items()
        if not getattr(run, name)
    ]
    if run.task == "label" and not run.server.urls:
        remedy = "give the address of one: 'server.urls=[http://node1:8000/v1]'"
        issues.append(Issue("server.urls", "[]", "labels come from a chat model behind a server", remedy))
    issues += _folder_of(run) if run.task in ("label", "encoder") else []
    if run.classes and run.criteria != "knowledge":
        issues.append(Issue("classes", ", ".join(run.classes), "grades have none", "give criteria=knowledge too"))
    elif len(run.classes) == 1:
        issues.append(Issue("classes", ", ".join(run.classes), "one class tells nothing apart", "give two or more"))
    return [*issues, *_not_taken(run)]


def _not_taken(run: Classify) -> Iterator[Issue]:
    """Keys that are given and that another task takes."""
    taken, usual = {"task", "output", *NEEDED[run.task], *TAKEN[run.task]}, Classify(run.task, run.output)
    for field in dataclasses.fields(run):
        if field.name not in taken and getattr(run, field.name) != getattr(usual, field.name):
            tasks = " and ".join(f"task={name}" for name in NEEDED if field.name in (*NEEDED[name], *TAKEN[name]))
            value = getattr(run, field.name)
            shown = "..." if dataclasses.is_dataclass(value) else value
            yield Issue(field.name, shown, f"task={run.task} does not take it", f"leave it out; {tasks} does")


def _folder_of(run: Classify) -> list[Issue]:
    """The folder that is written: of labels one that is there goes on, an encoder is never written over."""
    path = Path(run.output)
    if run.task == "encoder" and path.exists():
        return [Issue("output", run.output, "it is there already", "take it away, or give another folder")]
    if not run.output.strip() or (path.exists() and not path.is_dir()):
        return [Issue("output", run.output, "is no folder", "give one")]
    there = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return [Issue("output", run.output, f"{there} cannot be written", "give another folder")]
    return []


def classifier_missing(run: Classify) -> list[Issue]:
    """What it reads and is not there."""
    issues = [
        Issue(name, pattern, "there is no such file", "give JSON lines: a file or a glob, compressed or not")
        for name in NEEDED[run.task].keys() & {"documents", "others"}
        if "://" not in (pattern := getattr(run, name))
        and not any(map(os.path.isfile, glob.iglob(pattern, recursive=True)))
    ]
    issues += _labels(run)
    if run.task == "encoder" and run.base and not (Path(run.base) / "config.json").is_file():
        issues.append(Issue("base", run.base, "there is no config.json in it", "give the folder of a model"))
    return issues


def _labels(run: Classify) -> Iterator[Issue]:
    """A folder without labels, or with grades where there should be classes."""
    if not run.labels:
        return
    written = Path(run.labels) / "labels.jsonl"
    if not written.is_file() or not written.stat().st_size:
        remedy = "make them by task=label, and give its output"
        yield Issue("labels", run.labels, "there are no labels in it", remedy)
        return
    asked = (files.read_object(written.with_name("criteria.json")) or {}).get("criteria", {})
    if run.task == "knowledge" and asked.get("passing") is not None:
        reason = f"they are grades of criteria={asked.get('name')}, and no classes"
        yield Issue("labels", run.labels, reason, "give those of criteria=knowledge, or task=encoder")


def _sources(run: Curate) -> Iterator[Issue]:
    if not run.sources:
        remedy = "name one: sources.NAME.input=FOLDER sources.NAME.format=warc"
        yield Issue("sources", "{}", "there are no pages", remedy)
    for name, source in run.sources.items():
        if not re.fullmatch("[A-Za-z0-9_-]+", name):
            yield Issue("sources", name, "no name for a source", f"give {NAME} alone")
        yield from _source(f"sources.{name}", source)


def _source(key: str, source: PageSource) -> Iterator[Issue]:
    if not source.input:
        yield Issue(f"{key}.input", "", "nothing to read", "give a folder or a file")
    if source.language and not re.fullmatch("[a-z]{2,3}", source.language):
        yield Issue(f"{key}.language", source.language, "no ISO 639-1 code", "give one such as en, or leave it out")
    records = source.format not in ("warc", "html")
    if source.content == "html" and not records:
        reason = f"format={source.format} holds pages anyway"
        yield Issue(f"{key}.content", source.content, reason, "leave it out")
    if source.base_url and source.format != "html":
        reason = f"of format={source.format} every page has its own URL"
        yield Issue(f"{key}.base_url", source.base_url, reason, "leave it out, or give format=html")


def _rules(run: Curate) -> Iterator[Issue]:
    if run.divergence.enabled and not run.extraction.count_tokens:
        remedy = "give extraction.count_tokens=true, or divergence.enabled=false"
        yield Issue("divergence.enabled", True, "no tokens are counted that documents could be compared with", remedy)
    if run.language.languages and not run.language.model:
        remedy = "give language.model=FILE, or leave it out"
        yield Issue("language.languages", run.language.languages, "nobody says which language a text is in", remedy)
    if run.language.threshold != LanguageIdentification.threshold and not run.language.model:
        remedy = "give language.model=FILE, or leave it out"
        yield Issue("language.threshold", run.language.threshold, "nobody says how sure a language is", remedy)


def _best_copies(run: Curate) -> Iterator[Issue]:
    """By which score the best of near duplicates is chosen."""
    keep, score = run.minhash.keep, run.minhash.score
    if (keep == "best") != bool(score):
        reason = f"keep={keep} goes by none" if score else "best by which score?"
        remedy = "give minhash.keep=best too" if score else "give cited, or the field of records that holds a number"
        yield Issue("minhash.score", score, reason, remedy)
    if score == "cited" and not run.cited.model:
        yield Issue("minhash.score", score, "nobody gives that score", "give cited.model=FILE too")
    if score in run.encoders:
        reason = "encoders are asked about what near duplicates leave"
        yield Issue("minhash.score", score, reason, "give cited, or the field of records that holds a number")


def _scores(run: Curate) -> Iterator[Issue]:
    yield from _best_copies(run)
    for name, one in run.encoders.items():
        if not re.fullmatch("[A-Za-z0-9_]+", name):
            yield Issue("encoders", name, "no name for a score", "give letters, digits and _ alone")
        if not one.model:
            yield Issue(f"encoders.{name}.model", "", "there is nothing to score by", "give the folder of an encoder")
    asked = [*(["cited"] if run.cited.model else []), *run.encoders]
    if run.best.score and run.best.score not in asked:
        known = f"give one of {', '.join(asked)}" if asked else "give cited.model=FILE or an encoder, or leave it out"
        yield Issue("best.score", run.best.score, "nobody gives that score", known)
    given = {"share": run.best.share < 1, "shares": bool(run.best.shares)}
    for name in (name for name, is_given in given.items() if is_given and not run.best.score):
        yield Issue(f"best.{name}", getattr(run.best, name), "best by which score?", "give best.score too")
    if (scorer := run.encoders.get(run.best.score)) and scorer.only:
        reason = f"encoders.{run.best.score} gives it to {scorer.only} pages alone, and all others would go"
        yield Issue("best.score", run.best.score, reason, f"leave encoders.{run.best.score}.only out, or another score")
    yield from _unasked(run)


def _unasked(run: Curate) -> Iterator[Issue]:
    """Limits of scores that nobody gives."""
    if run.cited.threshold is not None and not run.cited.model:
        yield Issue("cited.threshold", run.cited.threshold, "nobody gives that score", "give cited.model=FILE too")
    given = {"largest_share": KnowledgeClasses.largest_share, "largest_shares": {}}
    for name in (name for name, usual in given.items() if getattr(run.knowledge, name) != usual):
        if not run.knowledge.model:
            reason, remedy = "nobody says what a text is about", "give knowledge.model=FILE too"
            yield Issue(f"knowledge.{name}", getattr(run.knowledge, name), reason, remedy)
    if run.class_threshold != Curate.class_threshold and not {"code", "mathematics"} & run.encoders.keys():
        remedy = "give encoders.code.model=FOLDER or encoders.mathematics.model=FOLDER"
        yield Issue("class_threshold", run.class_threshold, "no score gives a class", remedy)


def _tokens(run: Curate) -> Iterator[Issue]:
    if not run.tokens.enabled:
        return
    if not run.tokenizer.path:
        remedy = "give tokenizer=llama3 tokenizer.path=FILE, or tokens.enabled=false to end with documents"
        yield Issue("tokenizer.path", "", "there is nothing to make tokens with", remedy)
    if not (run.tokens.bos or run.tokens.eos):
        yield Issue("tokens.eos", False, "nothing would stand between two documents", "give tokens.eos=true")


def _stage(run: Curate) -> Iterator[Issue]:
    if run.task is not None and run.stage is None:
        yield Issue("task", run.task, "a task is one of a stage", "give stage=NAME too, or leave it out")
    if run.stride is not None and run.task is None:
        yield Issue("stride", run.stride, "there is no task to count from", "give task=N too, or leave it out")
    if run.submit and run.stage is not None:
        yield Issue("stage", run.stage, "all stages are submitted", "leave it out, or give submit=false")
    if run.stage in (None, REPORT):
        return
    known = {stage.name: stage for stage in stages.stages(run, run.tasks or 1_000_000)}
    if run.stage not in known:
        yield Issue("stage", run.stage, "no such stage with these keys", f"give one of {', '.join([*known, REPORT])}")
    elif run.task is not None and run.task >= known[run.stage].tasks:
        reason = f"{run.stage} has {known[run.stage].tasks} tasks"
        yield Issue("task", run.task, reason, f"give at most {known[run.stage].tasks - 1}")


def missing(run: Curate) -> list[Issue]:
    """Sources, models and lists that are not there, and models of another kind.

    Sources and lists of other file systems are seen when they are opened. Tasks of an array look at no model again.
    """
    given = {f"sources.{name}.input": source.input for name, source in run.sources.items()}
    given |= {f"{name}.model": getattr(run, name).model for name in ("language", "cited", "knowledge")}
    for section in ("domains", "adult"):
        given |= {f"{section}.lists.{name}": path for name, path in getattr(run, section).lists.items()}
    remedy = "give a folder or a file that is there"
    issues = [
        Issue(key, path, "there is no such folder or file", remedy)
        for key, path in given.items()
        if path and ("://" not in path or key.endswith(".model")) and not Path(path).exists()
    ]
    folders = {f"encoders.{name}.model": Path(one.model) for name, one in run.encoders.items()}
    if run.knowledge.model and Path(run.knowledge.model).is_dir():  # a file is one of fastText
        folders["knowledge.model"] = Path(run.knowledge.model)
    issues += [
        Issue(key, path, "there is no config.json in it", "give the folder of an encoder")
        for key, path in folders.items()
        if not (path / "config.json").is_file()
    ]
    if run.task is None:
        issues += kinds.issues(run.language, run.cited, run.knowledge, run.encoders, run.best)
    return issues
