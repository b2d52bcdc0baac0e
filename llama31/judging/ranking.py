"""What was drawn, ranked by a reward model: scored once, and the best answers become dialogs and pairs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.runs import files
from llama31.sampling import answers, drawing, filters
from llama31.sampling.drawing import Policy
from llama31.sampling.filters import Candidate, Selection
from llama31.sampling.prompts import Prompt
from llama31.tokens import chat

Scores = Mapping[tuple[str, int], float | None]  # by prompt and k
Scorer = Callable[[Sequence[tuple[Prompt, chat.Message]]], Sequence[float | None]]


def candidates(
    folder: Path, known: Mapping[str, str | None], count: float = math.inf
) -> tuple[dict[str, list[Candidate]], int]:
    """The first `count` answers that were drawn for each of the prompts `known`, and how many more were refused.

    `known` as in `sampling.current`.
    """
    by_prompt: dict[str, dict[int, Candidate]] = {prompt: {} for prompt in known}
    refused = 0
    for line in drawing.current(known, drawing.read_lines(folder / drawing.CANDIDATES)):
        if line["k"] < count and "refused" in line:
            refused += 1
        elif line["k"] < count:
            one = Candidate(line["prompt"], line["k"], line["text"], line["finish"], line.get("tokens"), line)
            by_prompt[one.prompt].setdefault(one.k, one)
    return {prompt: list(by_k.values()) for prompt, by_k in by_prompt.items()}, refused


def judged(line: Mapping[str, Any]) -> str:
    """What tells whether a score is that of a line of candidates.jsonl: a hash of prompt and answer."""
    content = (line.get("asked"), answers.message(line))
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def rewards(
    scored: Sequence[Mapping[str, Any]], model: str, by_prompt: Mapping[str, Sequence[Candidate]], limit: int
) -> Scores:
    """Rewards by (prompt, k) that the model with this fingerprint gave to the answers that were found.

    `scored`: the lines of scores.jsonl. None: it could not judge the answer, which was too long for `limit` tokens or
    more, or gave no number.
    """
    lines = {(one.prompt, one.k): judged(one.record) for several in by_prompt.values() for one in several}
    scores: dict[tuple[str, int], float | None] = {}
    for line in scored:
        key, reward = (line["prompt"], line["k"]), line["reward"]
        if line["model"] != model or key not in lines or line.get("judged", lines[key]) != lines[key]:
            continue
        if reward is None and line.get("limit", 0) < limit:
            continue  # it may be read now
        scores[key] = reward if reward is not None and math.isfinite(reward) else None
    return scores


def foreign(
    by_prompt: Mapping[str, Sequence[Candidate]], prompts: Sequence[Prompt],
    matches: Callable[[str, str, str | None], bool],
) -> frozenset[tuple[str, int]]:  # fmt: skip
    """Answers, as (prompt, k), in another language than was asked for.

    matches(prompt, answer, language): `language` is what the prompt's record says.
    """
    known = {prompt.id: (prompt.asked, str(prompt.record.get("language") or "") or None) for prompt in prompts}
    return frozenset(
        (one.prompt, one.k)
        for several in by_prompt.values()
        for one in several
        if not matches(known[one.prompt][0], one.text, known[one.prompt][1])
    )


def unscored(
    by_prompt: Mapping[str, Sequence[Candidate]], known: Scores, left_out: Collection[tuple[str, int]] = ()
) -> list[Candidate]:
    """Answers that still need a reward; those that are left out need none."""
    every = (one for several in by_prompt.values() for one in several)
    return [one for one in every if (one.prompt, one.k) not in known and (one.prompt, one.k) not in left_out]


def score(
    folder: Path, prompts: Sequence[Prompt], todo: Sequence[Candidate], model: Policy, scorer: Scorer, limit: int,
    chunk: int = 256, writes: bool = True,
) -> Scores:  # fmt: skip
    """Rewards of the answers `todo`, by (prompt, k), asked of `scorer` and kept chunk by chunk.

    `limit`: tokens beyond which `scorer` gives None. A reward that is no number is None too, at whatever limit. Where
    several processes score together, all call this with the same arguments and one `writes`.
    """
    by_id, scores = {prompt.id: prompt for prompt in prompts}, dict[tuple[str, int], float | None]()
    with drawing.Ledger(folder / drawing.SCORES) if writes else contextlib.nullcontext() as ledger:
        for begin in range(0, len(todo), chunk):
            part, lines = todo[begin : begin + chunk], []
            given = scorer([(by_id[one.prompt], chat.message(answers.message(one.record))) for one in part])
            for one, reward in zip(part, given, strict=True):
                known = reward if reward is not None and math.isfinite(reward) else None
                scores[one.prompt, one.k] = known
                line = {"prompt": one.prompt, "k": one.k, "reward": known, "judged": judged(one.record)}
                if reward is None:
                    line["limit"] = limit
                elif known is None:
                    line |= {"limit": sys.maxsize, "said": str(reward)}
                lines.append({**line, "model": model.fingerprint, "name": model.name})
            if ledger:
                ledger.append(lines)
    return scores


def publish(
    folder: Path, prompts: Sequence[Prompt], by_prompt: Mapping[str, Sequence[Candidate]],
    known: Scores, model: Policy, wanted: config.Filters, pairing: config.Pairs, further: Mapping[str, Any],
    foreign: Collection[tuple[str, int]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Write best.jsonl, pairs.jsonl and summary.json, and return the summary. `foreign` as of the function."""
    by_id, servers = {prompt.id: prompt for prompt in prompts}, drawing.Register(folder).known
    asked = {prompt.id: prompt.asked for prompt in prompts}
    checks = {prompt.id: prompt.checks for prompt in prompts}
    kept = filters.select(by_prompt, known, asked, checks, wanted, foreign)
    best = [_dialog(by_id[one.prompt], *one.answers[0], model, servers) for one in kept.best]
    pairs = [pair for one in kept.best if (pair := _pair(by_id[one.prompt], one, model, pairing, servers))]
    for name, records in ((drawing.BEST, best), (drawing.PAIRS, pairs)):
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        files.write_whole(folder / name, text)
    summary = {**further, **_summary(kept, by_prompt, known), "pairs": len(pairs)}
    summary["reward_model"] = asdict(model)
    path = folder / drawing.SUMMARY
    before = json.loads(path.read_text(encoding="utf-8"))["ranked_by"] if path.is_file() else []
    summary["ranked_by"] = [*(name for name in before if name != model.name), model.name]
    files.write_whole(folder / drawing.SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return summary


def _provenance(one: Candidate, reward: float, model: Policy, servers: Mapping[str, Any]) -> dict[str, Any]:
    record = {key: value for key, value in one.record.items() if key not in ("prompt", "text", "message")}
    if isinstance(name := record.get("server"), str):
        record["server"] = servers.get(name, name)  # the record stands alone
    return {**record, "reward": reward, "reward_model": asdict(model)}


def _dialog(prompt: Prompt, one: Candidate, reward: float, model: Policy, servers: Mapping[str, Any]) -> dict[str, Any]:
    messages = [*prompt.record["messages"], answers.message(one.record)]
    return {
        **prompt.record,
        "id": prompt.id,
        "messages": messages,
        "provenance": _provenance(one, reward, model, servers),
    }


def _pair(
    prompt: Prompt, ranked: filters.RankedAnswer, model: Policy, wanted: config.Pairs, servers: Mapping[str, Any]
) -> dict[str, Any] | None:
    (best, high), (worst, low) = ranked.answers[0], ranked.answers[-1]
    if len(ranked.answers) < 2 or high - low < wanted.margin:
        return None
    strength = "significantly_better" if high - low >= wanted.strong else "better"
    provenance = {
        "chosen": _provenance(best, high, model, servers),
        "rejected": _provenance(worst, low, model, servers),
    }
    said = {"chosen": _said(best), "rejected": _said(worst), "strength": strength}
    return {**prompt.record, "id": prompt.id, **said, "provenance": provenance}


def _said(one: Candidate) -> Any:
    """As preferences have it: the text alone where that is all."""
    return one.record.get("message") or one.text.strip()


def _summary(kept: Selection, by_prompt: Mapping[str, Sequence[Candidate]], known: Scores) -> dict[str, Any]:
    given: defaultdict[str, list[float]] = defaultdict(list)
    for prompt, several in by_prompt.items():
        given[prompt] += [r for one in several if (r := known.get((prompt, one.k))) is not None]
    means = {prompt: sum(values) / len(values) for prompt, values in given.items() if values}
    best = {one.prompt: one.answers[0][1] for one in kept.best}
    return {
        "prompts": len(by_prompt),
        "answers": sum(map(len, by_prompt.values())),
        "without a reward": sum(reward is None for reward in known.values()),
        "kept": len(best),
        "dropped": dict(kept.dropped),
        "reward_mean": sum(means.values()) / len(means) if means else None,
        "reward_best": sum(best.values()) / len(best) if best else None,
        "rewards": {"mean of K": sorted(means.values()), "best of K": sorted(best.values())},
    }
