"""When a stage of long context may end: short-context scores are back, and every needle is found (report, 3.4.2).

What is measured is measured on the live model, through the training's own pipeline, on any layout. What it means is a
pure function of two examinations, the one before the extension and the newest: `closed`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.data.batches import HeldoutText
from llama31.engine.pipeline import Forward
from llama31.evaluate import choices, needle, perplexity
from llama31.parallel.collectives import on_first_rank
from llama31.runs import files
from llama31.tokens.tokenizers import Tokenizer

FILE = "gates.json"  # of the run folder: the baseline, and every examination since
Scores = dict[str, Any]


def closed(scores: Mapping[str, Any], baseline: Mapping[str, Any], recall: float = 1.0) -> list[str]:
    """Why the gates are shut; nothing where they are open.

    `scores` and `baseline` are `Examiner.examine`'s. A score has recovered when it is not below the baseline by more
    than the half width of the baseline's 95 % interval; a loss likewise, the other way round.
    """
    reasons = []
    for name, before in baseline.get("tasks", {}).items():
        now = scores["tasks"][name]["score"]
        if now < before["score"] - before["ci95"]:
            reasons.append(f"{name} is at {now:.4f}, before it was {before['score']:.4f} +-{before['ci95']:.4f}")
    if "short" in baseline:
        before, now = baseline["short"], scores["short"]["loss"]
        if not now <= before["loss"] + (before["loss_ci95"] or 0.0):
            was = f"{before['loss']:.4f} +-{before['loss_ci95'] or 0.0:.4f}"
            reasons.append(f"the short-context loss is {now:.4f}, before it was {was}")
    for length, share in zip(scores.get("needle", {}).get("lengths", []), scores.get("needle", {}).get("found", [])):
        if share < recall:
            reasons.append(f"{share:.2%} of the needles are found in {length} tokens")
    return reasons


class Examiner:
    """Asks the live model. Raises ValueError for tasks, needles and lengths that cannot be asked."""

    def __init__(
        self, gates: config.Gates, data: config.Data, tokenizer: Tokenizer, length: int, micro_batch: int
    ) -> None:
        """`length`: tokens per row of this stage, up to which needles are hidden."""
        self._measure, self._size = gates.measure, micro_batch
        self._tasks = {name: choices.prepare(name, task, tokenizer, length) for name, task in gates.tasks.items()}
        self._short = None
        if gates.short_length is not None:
            self._short = HeldoutText(data, gates.short_length, gates.short_tokens)
        self._needle, self._words, self._prompts = replace(gates.needle, decode=False), tokenizer, []
        if gates.needle.kind != "none":
            self._prompts = needle.prompts_of(gates.needle, data, "heldout", tokenizer, length, length)

    def examine(self, forward: Forward) -> Scores:
        """Scores of the live model, equal on all ranks and ready for JSON. Collective."""
        scores: Scores = {}
        if self._tasks:
            judged = {name: choices.judge(forward, task, self._size) for name, task in self._tasks.items()}
            scores["tasks"] = {name: choices.summary(one)[self._measure] for name, one in judged.items()}
        if self._short is not None:
            scores["short"] = perplexity.perplexity(perplexity.token_losses(forward, self._short, self._size))["total"]
        if self._prompts:
            table = needle.evaluate(forward, self._needle, self._prompts, self._words, self._size)
            scores["needle"] = table | {"found": [one["score"] for one in table["by_length"]]}
        return scores


class GateState:
    """The gates of one run: its baseline, and what every examination found, kept in its folder."""

    def __init__(self, settings: config.Gates, run_folder: str | Path, examiner: Examiner | None) -> None:
        self._settings, self._examiner = settings, examiner
        self._path = Path(run_folder) / FILE
        self.every_tokens = settings.every_tokens  # between two examinations; None: there are none
        self._record: dict[str, Any] = {"baseline": None, "examinations": []}
        self.open = False
        self.reasons: list[str] = []  # why they were shut, when last asked

    def begin(self, forward: Forward, step: int) -> None:
        """Know the baseline: a file's, this folder's where the run goes on, or the model's as it is now. Collective."""
        if self._examiner is None:
            return
        known = on_first_rank(self._known)
        if known is not None:
            self._record = known
            self._record["examinations"] = [one for one in known["examinations"] if one["step"] <= step]
        if self._record["baseline"] is None:
            self._record["baseline"] = self._examiner.examine(forward)
        last = self._record["examinations"][-1:]
        self.open = bool(last) and last[0]["step"] == step and not last[0]["shut"]
        self._write()

    def _known(self) -> dict[str, Any] | None:
        if self._path.exists():
            return _read(self._path)
        if self._settings.baseline is None:
            return None
        return {"baseline": _baseline(Path(self._settings.baseline), self._settings), "examinations": []}

    def examine(self, forward: Forward, step: int, tokens: int) -> tuple[Scores, list[str]]:
        """What the model scores now, and why the gates are shut; nothing where they are open. Collective."""
        assert self._examiner is not None
        scores = self._examiner.examine(forward)
        reasons = closed(scores, self._record["baseline"], self._settings.recall)
        self._record["examinations"].append({"step": step, "tokens": tokens, "scores": scores, "shut": reasons})
        self.reasons, self.open = reasons, not reasons
        self._write()
        return scores, reasons

    def _write(self) -> None:
        text = json.dumps(self._record, indent=1)
        on_first_rank(lambda: files.write_whole(self._path, text))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be used ({error}); restore it, or give gates.baseline=") from error
    return content


def _baseline(path: Path, gates: config.Gates) -> Scores:
    """The scores before the extension: those of a run's gates.json, or what `recipes.evaluate` wrote to `output`.

    ValueError (key gates.baseline) where it lacks what is asked now.
    """
    content = _read(path)
    if "baseline" in content:
        baseline = content["baseline"]
    else:
        baseline = {"tasks": {name: task[gates.measure] for name, task in content.get("tasks", {}).items()}}
        baseline |= {"short": content["total"]} if gates.short_length is not None and content.get("total") else {}
    missing = [f"task {name}" for name in gates.tasks if name not in baseline.get("tasks", {})]
    missing += ["the short-context loss"] if gates.short_length is not None and "short" not in baseline else []
    if missing:
        raise ValueError(f"gates.baseline={path}: it lacks {', '.join(missing)}; evaluate the model before with them")
    return {**baseline, "tasks": {name: baseline["tasks"][name] for name in gates.tasks}}
