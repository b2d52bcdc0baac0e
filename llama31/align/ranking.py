"""What was drawn, ranked by a reward model: scored once, and the best answers become dialogs and pairs."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llama31 import config, files
from llama31.align import filters, sampling
from llama31.align.filters import Candidate, Selection
from llama31.align.prompts import Prompt
from llama31.align.sampling import Policy

Scorer = Callable[[Sequence[tuple[Prompt, str]]], Sequence[float | None]]


def candidates(folder: Path, prompts: Sequence[Prompt], answers: int) -> dict[str, list[Candidate]]:
    """Answers that were drawn for `prompts`, the first `answers` of each; refused ones are left out."""
    known = {prompt.id for prompt in prompts}
    found: dict[str, dict[int, Candidate]] = {prompt.id: {} for prompt in prompts}
    for line in sampling.read_lines(folder / sampling.CANDIDATES):
        if line["prompt"] in known and line["k"] < answers and "refused" not in line:
            one = Candidate(line["prompt"], line["k"], line["text"], line["finish"], line.get("tokens"), line)
            found[one.prompt].setdefault(one.k, one)
    return {prompt: list(by_k.values()) for prompt, by_k in found.items()}


def rewards(folder: Path, model: str) -> dict[tuple[str, int], float | None]:
    """Rewards by (prompt, k) that the model with this fingerprint gave; None where it could not read the answer."""
    lines = sampling.read_lines(folder / sampling.SCORES)
    return {(line["prompt"], line["k"]): line["reward"] for line in lines if line["model"] == model}


def score(
    folder: Path, prompts: Sequence[Prompt], found: Mapping[str, Sequence[Candidate]],
    known: Mapping[tuple[str, int], float | None], model: Policy, scorer: Scorer, chunk: int = 256, writes: bool = True,
) -> dict[tuple[str, int], float | None]:  # fmt: skip
    """The rewards of all answers; those that are not `known` are asked of `scorer`, and kept chunk by chunk.

    Where several processes score together, all call this with the same arguments and one `writes`.
    """
    by_id, scores = {prompt.id: prompt for prompt in prompts}, dict(known)
    todo = [one for answers in found.values() for one in answers if (one.prompt, one.k) not in known]
    with sampling.Ledger(folder / sampling.SCORES) if writes else contextlib.nullcontext() as ledger:
        for begin in range(0, len(todo), chunk):
            part = todo[begin : begin + chunk]
            given = scorer([(by_id[one.prompt], one.text.strip()) for one in part])
            keys = [(one.prompt, one.k) for one in part]
            scores.update(zip(keys, given, strict=True))
            told = {"model": model.fingerprint, "name": model.name}
            if ledger:
                ledger.append({"prompt": p, "k": k, "reward": r, **told} for (p, k), r in zip(keys, given))
    return scores


def publish(
    folder: Path, prompts: Sequence[Prompt], found: Mapping[str, Sequence[Candidate]],
    known: Mapping[tuple[str, int], float | None], model: Policy, run: config.Sample, further: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Write best.jsonl, pairs.jsonl and summary.json, and return the summary."""
    by_id = {prompt.id: prompt for prompt in prompts}
    asked = {prompt.id: prompt.asked for prompt in prompts}
    wanted = {prompt.id: prompt.checks for prompt in prompts}
    kept = filters.select(found, known, asked, wanted, run.filters)
    best = [_dialog(by_id[one.prompt], *one.answers[0], model) for one in kept.best]
    pairs = [pair for one in kept.best if (pair := _pair(by_id[one.prompt], one, model, run.pairs))]
    for name, records in ((sampling.BEST, best), (sampling.PAIRS, pairs)):
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        files.write_whole(folder / name, text)
    refused = sum("refused" in line for line in sampling.read_lines(folder / sampling.CANDIDATES))
    told = {**further, **_summary(kept, found, known), "refused": refused, "pairs": len(pairs)}
    told["reward_model"] = asdict(model)
    path = folder / sampling.SUMMARY
    before = json.loads(path.read_text(encoding="utf-8"))["ranked_by"] if path.is_file() else []
    told["ranked_by"] = [*(name for name in before if name != model.name), model.name]
    files.write_whole(folder / sampling.SUMMARY, json.dumps(told, indent=1) + "\n")
    return told


def _provenance(one: Candidate, reward: float, model: Policy) -> dict[str, Any]:
    told = {key: value for key, value in one.record.items() if key not in ("prompt", "text")}
    return {**told, "reward": reward, "reward_model": asdict(model)}


def _dialog(prompt: Prompt, one: Candidate, reward: float, model: Policy) -> dict[str, Any]:
    messages = [*prompt.record["messages"], {"role": "assistant", "content": one.text.strip()}]
    return {**prompt.record, "id": prompt.id, "messages": messages, "provenance": _provenance(one, reward, model)}


def _pair(prompt: Prompt, ranked: filters.Ranked, model: Policy, wanted: config.Pairs) -> dict[str, Any] | None:
    (best, high), (worst, low) = ranked.answers[0], ranked.answers[-1]
    if len(ranked.answers) < 2 or high - low < wanted.margin:
        return None
    strength = "significantly_better" if high - low >= wanted.strong else "better"
    told = {"chosen": _provenance(best, high, model), "rejected": _provenance(worst, low, model)}
    answers = {"chosen": best.text.strip(), "rejected": worst.text.strip(), "strength": strength}
    return {**prompt.record, "id": prompt.id, **answers, "provenance": told}


def _summary(
    kept: Selection, found: Mapping[str, Sequence[Candidate]], known: Mapping[tuple[str, int], float | None]
) -> dict[str, Any]:
    given: defaultdict[str, list[float]] = defaultdict(list)
    for prompt, answers in found.items():
        given[prompt] += [r for one in answers if (r := known.get((prompt, one.k))) is not None]
    means = {prompt: sum(values) / len(values) for prompt, values in given.items() if values}
    best = {one.prompt: one.answers[0][1] for one in kept.best}
    return {
        "prompts": len(found),
        "answers": sum(map(len, found.values())),
        "kept": len(best),
        "dropped": dict(kept.dropped),
        "reward_mean": sum(means.values()) / len(means) if means else None,
        "reward_best": sum(best.values()) / len(best) if best else None,
        "rewards": {"mean of K": sorted(means.values()), "best of K": sorted(best.values())},
    }
