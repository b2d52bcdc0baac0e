"""What a round has gained: win rate by the reward model, instructions obeyed, refusals, held-out accuracy.

All of it is read from files that `recipes.sample` and the trainers have written; nothing here needs torch. Differences
of rewards mean something between answers to one prompt alone, so wins are counted, and rewards of two models are put
side by side for the same prompts alone (`distribution`).
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.evaluate import confidence
from llama31.evaluate.confidence import ScoreInterval
from llama31.judging import distribution, ranking
from llama31.runs import files, metrics
from llama31.sampling import drawing, prompts, refusals, verifiers
from llama31.sampling.filters import Candidate

Patterns = Sequence[re.Pattern[str]]
NAME, PAGE = "judge.json", "judge.html"


@dataclass(frozen=True)
class Answered:
    """A prompt's record and the answers that a model gave, none where it failed, with their rewards by one model."""

    record: Mapping[str, Any]
    texts: Sequence[str]
    rewards: Sequence[float | None]
    finishes: Sequence[str]

    @property
    def known(self) -> list[float]:
        """The rewards that there are."""
        return [reward for reward in self.rewards if reward is not None]


def answered(folder: Path, model: str | None = None, reward: str | None = None) -> tuple[dict[str, Answered], str]:
    """What stands in a folder of `recipes.sample`, by prompt, and the reward model that judged it.

    `model`: fingerprint of the reward model whose scores are wanted; `reward`: its run folder, if not; None: the last
    that scored there. Raises ValueError where its scores or the prompts are missing.
    """
    scores = drawing.read_lines(folder / drawing.SCORES)
    if not scores:
        raise ValueError(f"{folder}: there is no {drawing.SCORES}; rank its answers with recipes.sample reward=...")
    if model is None and reward is not None:
        mine = [line for line in scores if Path(line["name"]).resolve().is_relative_to(Path(reward).resolve())]
        if not mine:
            raise ValueError(f"reward={reward}: it has ranked nothing in {folder}; run recipes.sample part=rank there")
        model = mine[-1]["model"]
    wanted = str(scores[-1]["model"]) if model is None else model
    if not any(line["model"] == wanted for line in scores):
        raise ValueError(
            f"{folder}: nothing was ranked by the reward model {wanted}; run recipes.sample part=rank there"
        )
    records = {line["id"]: line for line in drawing.read_lines(folder / drawing.PROMPTS)}
    candidates, _ = ranking.candidates(folder, {prompt: record.get("asked") for prompt, record in records.items()})
    known = ranking.rewards(scores, wanted, candidates, limit=0)
    return {
        prompt: _answered(records[prompt], sorted(several, key=lambda one: one.k), known)
        for prompt, several in candidates.items()
    }, wanted


def _answered(record: Mapping[str, Any], several: Sequence[Candidate], known: ranking.Scores) -> Answered:
    rewards = [known.get((one.prompt, one.k)) for one in several]
    return Answered(record, [one.text.strip() for one in several], rewards, [one.finish for one in several])


def wins(mine: Mapping[str, Answered], others: Mapping[str, Answered], lose: bool = True) -> list[float]:
    """1 for each prompt whose answer is rewarded more than the other's, 0 for less, 1/2 for a tie.

    Of several answers each is compared with each, and their mean is one outcome: prompts are what varies. Where one
    side alone has an answer with a reward, the other loses, or the prompt is left out; where neither has, it is.
    """
    outcomes = []
    for prompt in mine.keys() & others.keys():
        ours, theirs = mine[prompt].known, others[prompt].known
        if ours and theirs:
            pairs = [0.5 if a == b else float(a > b) for a in ours for b in theirs]
            outcomes.append(sum(pairs) / len(pairs))
        elif lose and (ours or theirs):
            outcomes.append(float(bool(ours)))
    return outcomes


def obedience(answers: Mapping[str, Answered]) -> dict[str, ScoreInterval]:
    """Shares of answers that obey all checks of their prompt (prompts), and of checks obeyed, in all and by kind.

    Where there is no answer, nothing is obeyed.
    """
    whole: list[bool] = []
    by_kind: defaultdict[str, list[bool]] = defaultdict(list)
    for one in answers.values():
        wanted = verifiers.read(one.record.get("checks"))
        if wanted and not one.texts:
            whole.append(False)
            for kind, _ in wanted:
                by_kind[kind].append(False)
        for text in one.texts if wanted else ():
            broken = [bool(verifiers.broken(text, [check])) for check in wanted]
            whole.append(not any(broken))
            for (kind, _), wrong in zip(wanted, broken):
                by_kind[kind].append(not wrong)
    if not whole:
        return {}
    every = [good for outcomes in by_kind.values() for good in outcomes]
    scores = {"prompts": confidence.proportion(whole), "instructions": confidence.proportion(every)}
    return scores | {f"  {kind}": confidence.proportion(outcomes) for kind, outcomes in sorted(by_kind.items())}


def refused(answers: Mapping[str, Answered], patterns: Patterns = refusals.PATTERNS) -> dict[str, ScoreInterval]:
    """Share of answers that refuse, by what their prompt is: harmful, borderline or neither."""
    by_kind: defaultdict[str, list[bool]] = defaultdict(list)
    for one in answers.values():
        by_kind[one.record.get("safety") or "other"] += [verifiers.refuses(text, patterns) for text in one.texts]
    order = (*prompts.SAFETY, "other")
    return {kind: confidence.proportion(by_kind[kind]) for kind in order if by_kind[kind]}


def lengths(answers: Mapping[str, Answered]) -> dict[str, float | int]:
    """How long answers are: reward models like long ones, so a win rate is read beside it.

    Median and mean of their words, the share that no end token ended, and prompts without an answer that has a reward.
    """
    words = [len(verifiers.words(text)) for one in answers.values() for text in one.texts]
    finishes = [finish for one in answers.values() for finish in one.finishes]
    return {
        "words, median": statistics.median(words) if words else 0,
        "words, mean": statistics.fmean(words) if words else 0.0,
        "unfinished": statistics.fmean(finish != "stop" for finish in finishes) if finishes else 0.0,
        "unanswered": sum(not one.known for one in answers.values()),
    }


def heldout(folder: Path) -> dict[str, float]:
    """The newest held-out figures of a training run: loss and, of pairs, accuracy; none where it has not validated."""
    lines = [line for line in metrics.read(folder) if line["kind"] == "validation"]
    known = lines[-1] if lines else {}
    figures = {
        name: float(value)
        for name, value in known.items()
        if isinstance(value, int | float) and name not in ("step", "tokens", "time_s", "validation_s", "attempt")
    }
    calibration = folder / "calibration.json"  # of reward models
    if calibration.is_file():
        pairs = json.loads(calibration.read_text(encoding="utf-8")).get("all", {})
        figures |= {name: pairs[name] for name in ("accuracy", "accuracy_ci95", "calibration_error") if name in pairs}
    return figures


def judge(run: config.Judge) -> dict[str, Any]:
    """All figures of a round, ready for JSON. Raises ValueError where files are missing or do not fit."""
    mine, model = answered(Path(run.answers), reward=run.reward)
    judgement: dict[str, Any] = {
        "title": run.title or Path(run.folder).name,
        "reward_model": model,
        "prompts": len(mine),
    }
    patterns = refusals.read(run.refusals)
    judgement["answers"] = _account(mine, patterns)
    if run.previous is not None:
        others, _ = answered(Path(run.previous), model)
        outcomes = wins(mine, others, run.unanswered == "lose")
        if not outcomes:
            raise ValueError(
                f"previous={run.previous}: no prompt was answered and ranked both there and in {run.answers}"
            )
        judgement["win_rate"] = confidence.proportion(outcomes).json()
        judgement["unanswered"] = run.unanswered
        judgement["rewards"] = distribution.compare(
            [(mine[prompt].known, others[prompt].known) for prompt in sorted(mine.keys() & others.keys())]
        )
        judgement["previous"] = _account(others, patterns)
        judgement["examples"] = _examples(mine, others, run.examples)
    judgement["heldout"] = {Path(folder).name: heldout(Path(folder)) for folder in run.runs}
    return judgement


def better(judgement: Mapping[str, Any]) -> bool:
    """Whether the model is to be preferred to the one before: it wins at least half of the time."""
    return "win_rate" not in judgement or judgement["win_rate"]["score"] >= 0.5


def _account(answers: Mapping[str, Answered], patterns: Patterns) -> dict[str, Any]:
    return {
        "obeyed": _json(obedience(answers)),
        "refused": _json(refused(answers, patterns)),
        "lengths": lengths(answers),
    }


def _json(scores: Mapping[str, ScoreInterval]) -> dict[str, dict[str, float | int]]:
    return {name: score.json() for name, score in scores.items()}


def _examples(mine: Mapping[str, Answered], others: Mapping[str, Answered], count: int) -> list[dict[str, Any]]:
    """The first answers to prompts: half of those most gained on, half of those most lost on."""

    def gain(prompt: str) -> float | None:
        first = [one.rewards[0] if one.rewards else None for one in (mine[prompt], others[prompt])]
        return None if None in first else float(first[0] or 0) - float(first[1] or 0)

    gains = {prompt: gained for prompt in mine if prompt in others and (gained := gain(prompt)) is not None}
    ordered = sorted(gains, key=lambda prompt: gains[prompt])
    chosen = ordered if len(ordered) <= count else [*ordered[: count // 2], *ordered[len(ordered) - (count + 1) // 2 :]]
    return [
        {
            "prompt": mine[prompt].record["messages"][-1].get("content"),
            "answer": mine[prompt].texts[0],
            "reward": mine[prompt].rewards[0],
            "previous": others[prompt].texts[0],
            "previous_reward": others[prompt].rewards[0],
        }
        for prompt in reversed(chosen)
    ]


def _lead(link: Path, target: Path) -> None:
    """A symbolic link that leads to `target` from now on, wherever both are moved together."""
    if link.is_dir() and not link.is_symlink():
        raise ValueError(
            f"candidate: {link} is a folder, and the link to the best model has to stand there; move it away"
        )
    with files.whole(link) as draft:
        draft.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))


def write(run: config.Judge) -> tuple[dict[str, Any], Path]:
    """Judge, write judge.html and then judge.json into the folder, and return the figures and the page.

    Where the config names the model, the link `best` beside the folder leads to it, or to the one before if
    it loses; `best-answers` leads to its answers.
    """
    from llama31.report import rounds  # the page alone needs it

    judgement = judge(run)
    folder = Path(run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    earlier = [json.loads(Path(path).read_text(encoding="utf-8")) for path in run.earlier if Path(path).is_file()]
    files.write_whole(folder / PAGE, rounds.html(judgement, earlier))
    if run.candidate is not None:
        judgement["best"] = run.candidate if better(judgement) else run.incumbent or run.candidate
        kept = run.answers if judgement["best"] == run.candidate else str(run.previous)
        _lead(folder.parent / "best", Path(judgement["best"]))
        _lead(folder.parent / "best-answers", Path(kept))
    files.write_whole(folder / NAME, json.dumps(judgement, indent=1, ensure_ascii=False) + "\n")
    return judgement, folder / PAGE
