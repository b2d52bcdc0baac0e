"""All filters of `recipes.filter_data` in their order, each with an `enabled` of its own (report, section 4.2.3).

    reading           what the chat format cannot say, has no answer, or says what a record before it said
    rules             emoji, exclamation marks
    decontamination   prompts of benchmarks, exactly or by n-grams
    topic             labelled; what is of another topic than `topic.only`
    quality           what is best neither by reward nor by judge; intentions and difficulty are labelled beside it
    deduplication     what says nearly the same as a kept one of greater worth
    apologies         the apologising ones of least worth beyond their share: last, so that it is that of the result

    <folder>/kept.jsonl, dropped.jsonl   the records with `quality` added; of dropped ones it says step and reason
    <folder>/summary.json, report.html   the same in numbers, and as a page
    <folder>/judged, embedded            what was answered and embedded, kept for the next command

Held in memory is a few hundred bytes of each record, and the embeddings of those that come so far.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llama31 import config
from llama31.runs import files
from llama31.sampling import filters
from llama31.synth.pipeline import folder
from llama31.synth.quality import asking, dialog_records, outcome, page, selection, semantic
from llama31.synth.quality.asking import Answers, Programs
from llama31.synth.quality.dialog_records import DialogRecord
from llama31.synth.quality.outcome import APOLOGIES, DEDUPLICATION, QUALITY, TOPIC, Filtered, Looked
from llama31.synth.quality.selection import Floats

SUMMARY, EMBEDDED = "summary.json", "embedded"


def select(run: config.FilterData, programs: Programs) -> dict[str, Any]:
    """Filter by what is known, write all files, and return what summary.json says.

    Raises ValueError as `check_rewards`, reading and embedding do.
    """
    check_rewards(run)
    with folder.gathering(Path(run.folder), asdict(run), _selected_of(run)):
        answers = asking.read(run)
        state = look(run, programs, answers)
        _topic(state, run.topic)
        worths = _quality(state, run)
        if run.deduplication.enabled:
            _deduplicate(state, run, worths)
        if run.apologies.enabled:
            _apologies(state, run.apologies, worths)
        samples = outcome.write(state, run)
        summary = outcome.summary(state, run, programs, answers) | {"samples": samples}
        files.write_whole(Path(run.folder) / SUMMARY, json.dumps(summary, indent=1) + "\n")
        page.write(Path(run.folder), summary)
        return summary


def is_selected(run: config.FilterData) -> bool:
    """Whether `select` would write what is there already."""
    return folder.is_gathered(Path(run.folder), asdict(run), _selected_of(run))


def _selected_of(run: config.FilterData) -> list[str]:
    """The files that the selection reads beside the answers."""
    return [run.input, *(one.path for one in run.decontamination.sets.values() if run.decontamination.enabled)]


def look(run: config.FilterData, programs: Programs, answers: Answers) -> Filtered:
    """Every record by the programs, with its reward and what the judge has answered about it."""
    state = Filtered()
    for one in dialog_records.read(run.input, run.added_key, run.limit):
        why, grams, added = programs.look(one)
        sorry = any(filters.apologises(text) for text in one.answers())
        row = Looked(one.id, why, grams, _reward(one, run.quality.reward), sorry, added)
        if why is None:
            row.added |= answers.of.get(one.id, {})
        state.rows.append(row)
    return state


def check_rewards(run: config.FilterData) -> None:
    """Raise ValueError where no record has a reward and rewards are asked for: before the judge is asked."""
    asked = run.quality.reward
    read = dialog_records.read(run.input, run.added_key, run.limit) if asked.enabled else iter(())
    if asked.enabled and not any(math.isfinite(_reward(one, asked)) for one in read):
        raise ValueError(
            f"quality.reward.reward_key={asked.reward_key}: no record of {run.input} has a reward there; "
            "run recipes.score first, name the field, or give quality.reward.enabled=false"
        )


def _reward(one: DialogRecord, asked: config.RewardQuality) -> float:
    """The reward of a dialog, as recipes.score writes it or, in its provenance, recipes.sample; NaN without one."""
    value = one.record.get(asked.reward_key) if asked.enabled else None
    origin = one.record.get("provenance")
    if value is None and asked.enabled and isinstance(origin, dict):
        value = origin.get(asked.reward_key)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number and value is not None else math.nan


def _topic(state: Filtered, asked: config.TopicLabels) -> None:
    for place in state.left() if asked.enabled and asked.only else ():
        row = state.rows[place]
        if (topic := row.added.get("topic")) not in asked.only:
            row.why = (TOPIC, "unknown topic" if topic is None else f"about {topic}")


def _quality(state: Filtered, run: config.FilterData) -> Floats:
    """Drop what is best by nobody; returns the worth of all records (NaN: of those that were dropped before)."""
    places = state.left()
    rewards = np.array([state.rows[place].reward for place in places], np.float64)
    judged = np.array([selection.judged_share(state.rows[place].added) for place in places], np.float64)
    by_reward, least = selection.top(rewards, run.quality.reward.share)
    by_judge = judged == 1.0
    state.told["disagreement"] = selection.disagreement(rewards, by_reward, judged, by_judge)
    state.told["least_reward"] = least
    ranks = selection.ranks(rewards)
    hard = [selection.ranks(state.numbers(places, "intentions")), state.numbers(places, "difficulty") / 3]
    worths = np.full(len(state.rows), np.nan)
    worths[places] = selection.worth([ranks, judged], hard)
    wanted = run.quality.reward.enabled or run.quality.judge.enabled
    for number, place in enumerate(places):
        row = state.rows[place]
        if math.isfinite(row.reward):
            row.added |= {"reward_rank": round(float(ranks[number]), 4), "best_by_reward": bool(by_reward[number])}
        if "points" in row.added:
            row.added["best_by_judge"] = bool(by_judge[number])
        row.added["worth"] = round(float(worths[place]), 4)
        if wanted and not (by_reward[number] or by_judge[number]):
            row.why = (QUALITY, _not_best(row))
    return worths


def _not_best(row: Looked) -> str:
    said = [who for who, key in (("reward", "best_by_reward"), ("judge", "best_by_judge")) if key in row.added]
    return f"not best by {' or '.join(said)}" if said else "neither reward nor judgement"


def _deduplicate(state: Filtered, run: config.FilterData, worths: Floats) -> None:
    """Drop what says nearly the same as a kept one."""
    from tqdm import tqdm

    from llama31.synth.quality import embedding

    asked, places = run.deduplication, state.left()
    with tqdm(total=len(places), desc="embeddings", unit="dialog", disable=None) as bar:
        vectors = embedding.embedded(
            Path(run.folder) / EMBEDDED, _texts(run, places), asked, lambda done: _tell(bar, done)
        )
    if not places:
        return
    count = asked.clusters or max(1, round(len(places) / semantic.PER_CLUSTER))
    labels = semantic.clusters(vectors, count, asked.iterations, asked.seed)
    result = semantic.keep(vectors, labels, worths[places], asked.threshold)
    state.told["clusters"] = len(np.unique(labels))
    state.told["cosines"] = outcome.histogram(result.cosine[result.like >= 0])
    for number, place in enumerate(places):
        row = state.rows[place]
        row.added["cluster"] = int(labels[number])
        if result.like[number] >= 0:
            row.added["nearest"] = state.rows[places[result.like[number]]].id
            row.added["cosine"] = round(float(result.cosine[number]), 4)
        if not result.kept[number]:
            row.why = (DEDUPLICATION, "says the same as a kept one")


def _tell(bar: Any, done: int) -> None:
    bar.update(done - bar.n)


def _texts(run: config.FilterData, places: list[int]) -> Iterator[tuple[str, str]]:
    wanted = set(places)
    read = dialog_records.read(run.input, run.added_key, run.limit)
    return ((one.id, one.text()) for one in read if one.index in wanted)


def _apologies(state: Filtered, asked: config.ApologyBalance, worths: Floats) -> None:
    places = state.left()
    sorry = np.array([state.rows[place].sorry for place in places], np.bool_)
    for number in selection.too_many_apologies(sorry, worths[places], asked.share):
        state.rows[places[number]].why = (APOLOGIES, "more apologies than their share")
