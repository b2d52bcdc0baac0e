"""What has become of each record, and what is written of all of them: the records, summary.json and its samples."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama31 import config
from llama31.runs import files
from llama31.synth.quality import dialog_records, selection
from llama31.synth.quality.asking import DECONTAMINATION, READING, RULES, Answers, Programs, Why
from llama31.synth.quality.contamination import Grams
from llama31.synth.quality.dialog_records import DialogRecord
from llama31.synth.quality.selection import Bools, Floats

KEPT, DROPPED = "kept.jsonl", "dropped.jsonl"
TOPIC, QUALITY, DEDUPLICATION, APOLOGIES = "topic", "quality", "deduplication", "apologies"
STEPS = (READING, RULES, DECONTAMINATION, TOPIC, QUALITY, DEDUPLICATION, APOLOGIES)
SAMPLE_CHARACTERS = 2000
BINS = 40


@dataclass
class Looked:
    """What is known of one record: why it is dropped (None: not yet), and what is added to it."""

    id: str
    why: Why | None
    grams: Grams
    reward: float = math.nan
    sorry: bool = False
    added: dict[str, Any] = field(default_factory=dict)


@dataclass
class Filtered:
    """All records as they are looked at, in the order of the input, and what the steps have said of them together."""

    rows: list[Looked] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)

    def left(self) -> list[int]:
        """Places of the records that no step has dropped."""
        return [place for place, one in enumerate(self.rows) if one.why is None]

    def numbers(self, places: list[int], name: str) -> Floats:
        """A number that is added to these records, or its length where it is a list; NaN where there is none."""
        values = (self.rows[place].added.get(name) for place in places)
        return np.array([_number(value) for value in values], np.float64)


def _number(value: Any) -> float:
    return math.nan if value is None else float(len(value) if isinstance(value, list) else value)


def write(state: Filtered, run: config.FilterData) -> dict[str, list[dict[str, Any]]]:
    """kept.jsonl and dropped.jsonl; returns the samples of the page, by what became of them."""
    samples: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    target = {True: Path(run.folder) / KEPT, False: Path(run.folder) / DROPPED}
    target[True].parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        drafts = {kept: stack.enter_context(files.whole(path)) for kept, path in target.items()}
        opened = {kept: stack.enter_context(path.open("w", encoding="utf-8")) for kept, path in drafts.items()}
        for one in dialog_records.read(run.input, run.added_key, run.limit):
            row = state.rows[one.index]
            if row.id != one.id:
                raise config.RunError(f"{one.place} has changed while it was read; begin again")
            added = {"id": row.id, **row.added, "apologises": row.sorry}
            if row.why is not None:
                added |= {"dropped": row.why[0], "reason": row.why[1]}
            opened[row.why is None].write(dialog_records.line({**one.record, run.added_key: added}))
            _sample(samples, one, row, added, run.samples)
    return dict(samples)


def _sample(
    samples: defaultdict[str, list[dict[str, Any]]], one: DialogRecord, row: Looked, added: dict[str, Any], most: int
) -> None:
    """Keep a record for the page, of each reason the ones with the lowest hashes: the same whatever their order."""
    kinds = ["kept" if row.why is None else f"{row.why[0]}: {row.why[1]}"]
    if "best_by_reward" in added and "best_by_judge" in added and added["best_by_reward"] != added["best_by_judge"]:
        kinds.append(f"best by {'reward' if added['best_by_reward'] else 'judge'} alone")
    for kind in kinds:
        there = samples[kind]
        if len(there) < most or (there and row.id < there[-1]["id"]):
            text, cut = one.shown(SAMPLE_CHARACTERS)
            there.append({"id": row.id, "place": one.place, "text": text, "cut": cut, "added": added})
            there.sort(key=lambda found: found["id"])
            del there[most:]


def summary(state: Filtered, run: config.FilterData, programs: Programs, answers: Answers) -> dict[str, Any]:
    """The numbers of the page."""
    dropped: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in state.rows:
        if one.why is not None:
            dropped[one.why[0]][one.why[1]] += 1
    left, steps = len(state.rows), []
    for step in STEPS:
        gone = dropped[step]
        steps.append({"step": step, "in": left, "left": left - gone.total(), "reasons": dict(gone.most_common())})
        left -= gone.total()
    asked = [one.id for one in state.rows if one.why is None or one.why[0] not in (READING, RULES, DECONTAMINATION)]
    plain = asdict(run)
    keys = ("rules", "decontamination", "topic", "intentions", "difficulty", "quality", "deduplication", "apologies")
    return {
        "name": run.name,
        "input": run.input,
        "records": len(state.rows),
        "kept": left,
        "steps": steps,
        "questions": _questions(asked, answers),
        "topics": _topics(state),
        "contamination": _contamination(state, programs) if run.decontamination.enabled else {},
        "histograms": _histograms(state),
        "apologising": sum(one.sorry for one in state.rows if one.why is None),
        **state.told,
        "prompts": dict(sorted(answers.prompts.items())),
        "models": sorted(answers.models),
        "keys": {name: plain[name] for name in (*keys, "sampling", "longest_characters", "limit", "added_key")},
    }


def _questions(asked: list[str], answers: Answers) -> dict[str, dict[str, Any]]:
    """Of each question: dialogs to ask about, answers, those without one that parses, those not asked yet, counts."""
    wanted = set(asked)
    result = {}
    for name, known in answers.asked.items():
        said = len(wanted & known)
        counts = dict(sorted((reason, count) for reason, count in answers.counts[name].items() if count))
        failed = sum(1 for item in wanted & known if name not in answers.of.get(item, {}))
        result[name] = {"asked": len(wanted), "answered": said - failed, "unread": failed, "counts": counts}
        result[name]["missing"] = len(wanted) - said
    return result


def _topics(state: Filtered) -> dict[str, dict[str, list[int]]]:
    """Coarse and fine topics: dialogs that were labelled, and those that are kept."""
    result: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for one in state.rows:
        if "topic" in one.added:
            counts = result[one.added["topic"]][one.added["fine_topic"]]
            counts[0] += 1
            counts[1] += one.why is None
    return {coarse: dict(fine) for coarse, fine in sorted(result.items())}


def _contamination(state: Filtered, programs: Programs) -> dict[str, dict[str, Any]]:
    """What n-grams of all records, and of those that are kept, contaminate of each benchmark, as the report counts."""
    before = programs.benchmarks.table(_union([one.grams for one in state.rows]))
    after = programs.benchmarks.table(_union([one.grams for one in state.rows if one.why is None]))
    return {name: {**found, "contaminated_by_kept": after[name]["contaminated"]} for name, found in before.items()}


def _union(grams: list[Grams]) -> Grams:
    return np.unique(np.concatenate(grams)) if grams else np.zeros(0, np.int64)


def _histograms(state: Filtered) -> dict[str, Any]:
    """Of rewards, points, difficulty and intentions: all that are known, and those that are kept."""
    kept = np.array([one.why is None for one in state.rows], np.bool_)
    every = [*range(len(state.rows))]
    measures: dict[str, Floats] = {
        "reward": np.array([one.reward for one in state.rows], np.float64),
        "difficulty": state.numbers(every, "difficulty"),
        "intentions": state.numbers(every, "intentions"),
        "points": np.array([selection.judged_share(one.added) for one in state.rows], np.float64),
    }
    return {name: _pair(values, kept) for name, values in measures.items() if np.isfinite(values).any()}


def _pair(values: Floats, kept: Bools) -> dict[str, Any]:
    both = {"all": values[np.isfinite(values)], "kept": values[np.isfinite(values) & kept]}
    distinct = np.unique(both["all"])
    if len(distinct) <= BINS:
        counts = {name: [int((some == one).sum()) for one in distinct] for name, some in both.items()}
        return {"values": distinct.tolist(), **counts}
    edges = np.histogram_bin_edges(both["all"], BINS)
    return {"edges": edges.tolist(), **{name: np.histogram(some, edges)[0].tolist() for name, some in both.items()}}


def histogram(values: NDArray[Any]) -> dict[str, Any]:
    """Cosines in bins up to 1."""
    edges = np.linspace(min(0.0, float(np.min(values, initial=0.0))), 1.0, BINS + 1)
    return {"edges": edges.tolist(), "all": np.histogram(np.minimum(values, 1.0), edges)[0].tolist()}
