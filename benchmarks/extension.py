"""A small model learns to look things up, and is extended to 16 times its context in stages that their gates end.

Everything is done by the commands that a user types, in processes of their own: pack, pretrain, evaluate, and three
runs of the recipe `long_context` that hand on weights, optimizer and gates. The text says keys and values among filler
(`haystack`, kind tokens). The control is the same model before it has found out whose value is whose: it goes through
the same first stage, and the gates have to stay shut.

The lesson: 2 layers find out in a minute where few letters make the text (10 keys), rows are short, and every fact is
said several times, so that most of what can be predicted has to be looked up.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from llama31 import config
from llama31.evaluate import haystack
from llama31.runs import plots
from llama31.tokens import tokenizers

PROCESSES = 2
LETTERS = [chr(ord("!") + i) for i in range(31)]  # a mark, ten keys, ten values, ten of filler
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>")
BATCH = 8192
LEARN_STEPS, EXAM_STEPS = 1500, 100  # at most, and between two examinations
STAGE_STEPS, STAGE_EXAM_STEPS = 600, 20


@dataclass(frozen=True)
class Text:
    """Documents of one length: how many, facts in each (from, to), shares of filler, and the layout of their stage."""

    length: int
    documents: int
    facts: tuple[int, int]
    filler: tuple[float, ...]
    cp: int = 1


SHORT = Text(64, 20_000, (2, 6), (0.0, 0.3, 0.6))
STAGES = (
    Text(128, 4_000, (2, 8), (0.3, 0.8)),
    Text(512, 2_000, (4, 10), (0.6, 0.95), cp=2),
    Text(1024, 1_500, (4, 10), (0.8, 0.97), cp=2),
)
ASKED = [32, 64, 128, 256, 384, 512, 640, 768, 896, 1024]  # lengths of the heat maps
NEEDLE = {"kind": "tokens", "inserted": 4, "asked": 4}
TASK = ["path={top}/lookup.jsonl", "delimiter="]

FILES = {
    "data/short.yaml": "folder: {top}/packed\neos: false\npacking: whole\nsources:\n{short}",
    "data/long.yaml": "folder: {top}/packed\neos: false\npacking: whole\nheldout_fraction: 0\nsources:\n{long}",
    "data/facts.yaml": "folder: {top}/packed\neos: false\npacking: whole\nsources:\n{short}{undrawn}",
    "tokenizer/letters.yaml": "kind: huggingface\npath: {top}/letters\n",
    "model/lookup.yaml": (
        "name: lookup\nlayers: 2\nhidden_size: 64\nffn_hidden_size: 64\nheads: 2\nkv_heads: 2\nvocab_size: 40\n"
        "init_std: 0.1\n"
    ),
}


# --- what it is about ---


def write(top: Path) -> None:
    """Alphabet, texts, the task of the short context, and the YAML files."""
    (top / "letters").mkdir()
    (top / "letters" / "tokenizer.json").write_text(json.dumps(letters()), encoding="utf-8")
    tokenizer = tokenizers.load(config.Tokenizer(kind="huggingface", path=str(top / "letters")))
    dealt = haystack.printable(tokenizer)
    for text in (SHORT, *STAGES):
        random = np.random.default_rng(text.length)
        lines = (json.dumps({"text": document(text, dealt, random)}) for _ in range(text.documents))
        (top / f"len{text.length}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (top / "lookup.jsonl").write_text("\n".join(map(json.dumps, questions(dealt))), encoding="utf-8")
    entry = "  len{n}: {{input: {top}/len{n}.jsonl, weight: {weight}}}\n"
    short = entry.format(n=SHORT.length, top=top, weight=1)
    long, undrawn = ("".join(entry.format(n=text.length, top=top, weight=w) for text in STAGES) for w in (1, 0))
    for name, content in FILES.items():
        (top / "my" / name).parent.mkdir(parents=True, exist_ok=True)
        (top / "my" / name).write_text(
            content.format(top=top, short=short, long=long, undrawn=undrawn), encoding="utf-8"
        )


def letters() -> dict[str, Any]:
    """A tokenizer.json of single characters."""
    first = len(LETTERS)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": first + i, "content": name, "special": True, **flags} for i, name in enumerate(SPECIAL)]
    model = {"type": "BPE", "vocab": {letter: i for i, letter in enumerate(LETTERS)}, "merges": []}
    return {"version": "1.0", "added_tokens": added, "decoder": {"type": "Fuse"}, "model": model}


def document(text: Text, dealt: haystack.Alphabet, random: np.random.Generator) -> str:
    """One document, which with its first token is as long as a row."""
    share, length = float(random.choice(text.filler)), text.length - 1
    most = min(text.facts[1], int(length * (1 - share)) // 3)
    facts = int(random.integers(text.facts[0], most + 1))
    return "".join(LETTERS[i] for i in haystack.token_document(dealt, length, facts, random, share))


def questions(dealt: haystack.Alphabet) -> list[dict[str, Any]]:
    """A multiple-choice task of the short context: whose value, out of all."""
    asked = config.Needle(kind="tokens", inserted=4, asked=1, trials=6, seed=7)
    values = [LETTERS[i] for i in dealt.values]
    return [
        {
            "query": "".join(LETTERS[i] for i in prompt.tokens),
            "choices": values,
            "gold": values.index(LETTERS[int(prompt.answer[0])]),
        }
        for prompt in haystack.token_prompts(asked, dealt, [40, 48, 56])
    ]


# --- what is done ---


@dataclass(frozen=True)
class ExtensionStage:
    """A run that its gates watched: what it was, what they say (gates.json), CPU seconds, and why it failed."""

    name: str
    length: int
    layout: str
    gates: Mapping[str, Any]
    cpu_s: float
    failure: str = ""

    @property
    def examinations(self) -> list[dict[str, Any]]:
        return list(self.gates["examinations"])


class ExtensionWork:
    """The commands, in one folder."""

    def __init__(self, top: Path, timeout_s: float) -> None:
        self.top, self._timeout_s = top, timeout_s
        self._own = ["--config-dir", str(top / "my"), "tokenizer=letters"]

    def pack(self) -> None:
        """Short text with a held-out split, long text without: the short-context loss is that of short text."""
        for data in ("short", "long"):
            timing.command(self._timeout_s, "recipes.pack", *self._own, f"data={data}", "data.workers=1")

    def train(self, name: str, text: Text, keys: list[str], fails: bool = False) -> ExtensionStage:
        """Train until the gates open. RuntimeError where the command fails, or does not though it has to."""
        began_s = spent_s()
        rows = BATCH // text.length * text.cp // PROCESSES
        given = [
            f"name={name}",
            f"folder={self.top}/{name}",
            "model=lookup",
            "precision=fp32",
            *self._own,
            *self._gates(text),
        ]
        given += [f"parallel.cp={text.cp}", f"parallel.micro_batch={rows}", f"schedule.batch_tokens={BATCH}"]
        given += [f"schedule.sequence_length={text.length}", "validation.tokens=16384", "preflight.enabled=false"]
        launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}", "-m", "recipes.pretrain"]
        failure = ""
        try:
            timing.command(self._timeout_s, *launch, *given, "log.progress=false", *keys)
        except RuntimeError as error:
            if not fails or "the gates are shut" not in str(error):
                raise
            failure = str(error).split("the gates are shut: ")[1].split(". The newest")[0]
        if fails and not failure:
            raise RuntimeError(f"{name}: the gates have opened for a model that has not learned")
        gates = json.loads((self.top / name / "gates.json").read_text(encoding="utf-8"))
        layout = f"CP {text.cp}" if text.cp > 1 else f"DP {PROCESSES}"
        return ExtensionStage(name, text.length, layout, gates, spent_s() - began_s, failure)

    def _gates(self, text: Text) -> list[str]:
        lengths = [text.length // 4, text.length // 2, text.length] if text is not SHORT else [32, 64]
        needle = {**NEEDLE, "lengths": lengths, "trials": 4}
        return [f"gates.needle.{key}={value}" for key, value in needle.items()]

    def learn(self) -> ExtensionStage:
        """From nothing, until every needle is found in rows of the short text."""
        keys = ["data=short", f"schedule.total_tokens={LEARN_STEPS * BATCH}", "schedule.peak_lr=4e-3"]
        keys += ["schedule.final_lr=4e-4", f"schedule.warmup_tokens={50 * BATCH}", "checkpoint.keep_last=null"]
        every = EXAM_STEPS * BATCH
        return self.train("learned", SHORT, [*keys, f"gates.every_tokens={every}", f"checkpoint.every_tokens={every}"])

    def extend(
        self, name: str, text: Text, source: str, baseline: str, steps: int, fails: bool = False
    ) -> ExtensionStage:
        """One run of `long_context`."""
        keys = ["--config-name", "long_context", "data=facts", f"init_from={source}", f"gates.baseline={baseline}"]
        keys += ["data.length_buckets=[]", f"data.sources.len{text.length}.weight=3", "schedule.peak_lr=1e-3"]
        keys += ["schedule.decay=constant", f"schedule.total_tokens={steps * BATCH}"]
        keys += [f"gates.every_tokens={STAGE_EXAM_STEPS * BATCH}", f"gates.short_length={SHORT.length}"]
        keys += ["gates.short_tokens=16384", *(f"gates.tasks.lookup.{key.format(top=self.top)}" for key in TASK)]
        return self.train(name, text, keys, fails)

    def before(self, checkpoint: str, name: str) -> str:
        """The file of the scores before an extension."""
        output = f"{self.top}/{name}.json"
        given = ["data=short", f"sequence_length={SHORT.length}", "tokens=16384", f"output={output}"]
        given += [f"tasks.lookup.{key.format(top=self.top)}" for key in TASK]
        self._evaluate(checkpoint, given)
        return output

    def needles(self, checkpoint: str, name: str) -> dict[str, Any]:
        """Recall over depth and length, up to the longest of all."""
        output = f"{self.top}/{name}.json"
        needle = {**NEEDLE, "lengths": ASKED, "trials": 4, "decode": "false"}
        given = [f"needle.{key}={value}" for key, value in needle.items()]
        self._evaluate(checkpoint, [*given, f"sequence_length={ASKED[-1]}", f"output={output}"])
        result: dict[str, Any] = json.loads(Path(output).read_text(encoding="utf-8"))["needle"]
        return result

    def _evaluate(self, checkpoint: str, given: list[str]) -> None:
        own = [*self._own, "precision=fp32", "parallel.micro_batch=8", f"checkpoint={checkpoint}"]
        timing.command(self._timeout_s, "recipes.evaluate", *own, *given)


def spent_s() -> float:
    """CPU seconds of this process and of all that it started and that has ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def tables(run: config.Benchmark) -> list[str]:
    """Learn, extend, control; draw the heat maps where `run.heat_map` says. RuntimeError where a gate does not open."""
    with tempfile.TemporaryDirectory() as folder:
        top, began, began_s = Path(folder), time.perf_counter(), spent_s()
        work = ExtensionWork(top, run.timeout_s)
        write(top)
        work.pack()
        stages = [work.learn()]
        learned = f"{top}/learned"
        half = f"{learned}/checkpoints/step-{EXAM_STEPS:08d}"
        stages.append(
            work.extend("control", STAGES[0], half, work.before(half, "half"), 2 * STAGE_EXAM_STEPS, fails=True)
        )
        maps = {"before": work.needles(learned, "needles-before")}
        source, baseline = learned, work.before(learned, "before")
        for number, text in enumerate(STAGES, start=1):
            stages.append(work.extend(f"stage-{number}", text, source, baseline, STAGE_STEPS))
            source, baseline = f"{top}/stage-{number}", f"{top}/stage-{number}/gates.json"
        maps["after"] = work.needles(source, "needles-after")
        wall_s, cpu_s = time.perf_counter() - began, spent_s() - began_s
    if run.heat_map is not None:
        path = Path(run.heat_map)
        plots.draw_recall(path, maps["after"])
        plots.draw_recall(path.with_name(f"{path.stem}_before{path.suffix}"), maps["before"])
    return [
        stages_table(stages),
        recall_table(maps),
        f"All of it took {cpu_s:,.0f} CPU-seconds, {wall_s:,.0f} s of time.",
    ]


# --- what is told ---


def stages_table(stages: list[ExtensionStage]) -> str:
    """A row per run: how its gates stood when first asked, and in the end."""
    lines = [
        "| run | row | layout | steps "
        "| needles found, when first asked | at last | short task before, after | gates | CPU-s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for stage in stages:
        first, last = stage.examinations[0], stage.examinations[-1]
        shares = [_share(one["scores"]["needle"]) for one in (first, last)]
        tasks = [
            scores["tasks"]["lookup"]["score"]
            for scores in (stage.gates["baseline"], last["scores"])
            if "tasks" in scores
        ]
        short = ", ".join(f"{score:.1%}" for score in tasks)
        gates = "shut" if last["shut"] else "open"
        cells = [
            stage.name,
            str(stage.length),
            stage.layout,
            str(last["step"]),
            *shares,
            short,
            gates,
            f"{stage.cpu_s:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"{stage.name}: {stage.failure}." for stage in stages if stage.failure)]
    return "\n".join(lines).rstrip()


def _share(needle: Mapping[str, Any]) -> str:
    return ", ".join(f"{n:,}: {share:.0%}" for n, share in zip(needle["lengths"], needle["found"], strict=True))


def recall_table(maps: Mapping[str, Mapping[str, Any]]) -> str:
    """Recall by length, a row per heat map."""
    lengths = next(iter(maps.values()))["lengths"]
    lines = [f"| needles found | {' | '.join(f'{n:,}' for n in lengths)} |", "|---" * (len(lengths) + 1) + "|"]
    for name, recall in maps.items():
        cells = " | ".join(f"{one['score']:.1%}" for one in recall["by_length"])
        lines.append(f"| {name} the three stages | {cells} |")
    return "\n".join(lines)
