"""One small round of post-training whose gains can be counted: answers have to keep a form that the reward prefers.

Prompts ask for some things of a kind ("Name 3 birds."); answers come in five forms, all of them right in content. A
model is pre-trained on such texts and taught dialogs in all forms alike: that is the policy of the first round.
Annotators prefer one form, bullets and a closing line, which no stage is told in words. Every stage then has something
of its own to improve on held-out prompts: the reward model's accuracy, the share of the wanted form among best answers,
among SFT's and among DPO's.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama31.judging import judge
from llama31.sampling import drawing, verifiers

ROOT = Path(__file__).resolve().parent.parent

KINDS = {
    "birds": ("heron", "finch", "robin", "crow", "swift", "raven", "stork", "wren"),
    "trees": ("oak", "birch", "maple", "pine", "cedar", "willow", "elm", "ash"),
    "colours": ("red", "green", "blue", "pink", "grey", "brown", "black", "white"),
    "tools": ("hammer", "saw", "drill", "file", "plane", "chisel", "wrench", "clamp"),
    "fruits": ("apple", "pear", "plum", "cherry", "fig", "melon", "grape", "lemon"),
    "rivers": ("Rhine", "Nile", "Volga", "Seine", "Loire", "Tagus", "Elbe", "Oder"),
}
ASKS = (
    "Name {n} {kind}.",
    "Give me {n} {kind}.",
    "I need {n} {kind}.",
    "Please list {n} {kind}.",
    "{n} {kind}, please.",
    "Tell me {n} {kind}.",
    "Write down {n} {kind}.",
    "I want {n} {kind}.",
)
CLOSING = "That is all."
FORMS: tuple[Callable[[Sequence[str], str], str], ...] = (
    lambda items, kind: "\n".join([*(f"- {item}" for item in items), CLOSING]),  # the one that is preferred
    lambda items, kind: ", ".join(items) + ".",
    lambda items, kind: f"Some {kind} are " + " and ".join(items) + ".",
    lambda items, kind: "\n".join(f"{place}. {item}" for place, item in enumerate(items, 1)),
    lambda items, kind: " / ".join(items),
)


@dataclass(frozen=True)
class TaskScale:
    """How much of everything."""

    texts: int = 2000
    dialogs: int = 3000
    preferences: int = 600
    prompts: int = 108
    judged: int = 36
    answers: int = 12
    rounds: int = 2
    layers: int = 2
    hidden_size: int = 96
    pretrain_tokens: int = 32_768
    seed_tokens: int = 196_608
    reward_tokens: int = 65_536
    sft_tokens: int = 40_960
    dpo_tokens: int = 65_536
    processes: int = 2


SMALL = TaskScale(
    texts=1200, dialogs=1500, preferences=400, prompts=96, judged=36, answers=8, rounds=1, layers=2, hidden_size=64,
    pretrain_tokens=16_384, seed_tokens=163_840, reward_tokens=49_152, sft_tokens=49_152, dpo_tokens=40_960,
    processes=1,
)  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """A prompt, and what it asks for."""

    text: str
    kind: str
    count: int

    def answer(self, form: int, chance: random.Random) -> str:
        """An answer that is right in content, in one of FORMS."""
        return FORMS[form](chance.sample(KINDS[self.kind], self.count), self.kind)

    def checks(self) -> list[dict[str, Any]]:
        """What the wanted form is, for the judge alone."""
        return [{"kind": "bullets", "value": self.count}, {"kind": "ends_with", "value": CLOSING}]


def asks() -> list[Ask]:
    """Every prompt that there is."""
    return [Ask(text.format(n=count, kind=kind), kind, count) for kind in KINDS for count in (2, 3, 4) for text in ASKS]


def write_task(folder: Path, scale: TaskScale, seed: int = 0) -> None:
    """Texts, dialogs, and for every round preferences and prompts; judge.jsonl holds prompts that none of them has."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    every = asks()
    chance.shuffle(every)
    held, known = every[: len(every) // 4], every[len(every) // 4 :]

    def user(one: Ask) -> dict[str, str]:
        return {"role": "user", "content": one.text}

    def dialog() -> dict[str, Any]:
        one = chance.choice(known)
        answer = one.answer(chance.randrange(len(FORMS)), chance)
        return {"messages": [user(one), {"role": "assistant", "content": answer}]}

    def preference() -> dict[str, Any]:
        one = chance.choice(known)
        other = one.answer(chance.randrange(1, len(FORMS)), chance)
        return {"messages": [user(one)], "chosen": one.answer(0, chance), "rejected": other, "strength": "better"}

    def prompt(number: int, one: Ask, **more: Any) -> dict[str, Any]:
        return {"id": f"{number}", "messages": [user(one)], **more}

    texts = (dialog()["messages"] for _ in range(scale.texts))
    write_lines(folder / "texts.jsonl", [{"text": "\n".join(message["content"] for message in one)} for one in texts])
    write_lines(folder / "dialogs.jsonl", [dialog() for _ in range(scale.dialogs)])
    for number in range(1, scale.rounds + 1):
        write_lines(folder / f"preferences-{number:02d}.jsonl", [preference() for _ in range(scale.preferences)])
        write_lines(
            folder / f"prompts-{number:02d}.jsonl", [prompt(i, one) for i, one in enumerate(known[: scale.prompts])]
        )
    judged = [prompt(i, one, checks=one.checks()) for i, one in enumerate(held[: scale.judged])]
    write_lines(folder / "judge.jsonl", judged)


def write_lines(path: Path, records: Sequence[Any]) -> None:
    """Records as JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


VOCABULARY = 640


def write_config(folder: Path, layers: int, width: int, vocabulary: int = VOCABULARY) -> None:
    """The model and the tokenizer as a --config-dir; `width` is the hidden size."""
    model = {"name": "mini", "layers": layers, "hidden_size": width, "ffn_hidden_size": 3 * width, "heads": 4}
    model |= {"kv_heads": 2, "vocab_size": vocabulary, "max_positions": 512}
    tokenizer = {"kind": "bpe", "path": str(folder / "tokenizer"), "vocab_size": vocabulary}
    for group, content in (("model", model), ("tokenizer", tokenizer)):
        (folder / "conf" / group).mkdir(parents=True, exist_ok=True)
        text = "".join(f"{key}: {value}\n" for key, value in content.items())
        (folder / "conf" / group / "mini.yaml").write_text(text, encoding="utf-8")


def schedule(tokens: int, peak_lr: float, length: int = 128, batch: int = 512, warmup_batches: int = 10) -> list[str]:
    """Overrides of one stage's training."""
    numbers = {"total_tokens": tokens, "batch_tokens": batch, "sequence_length": length, "peak_lr": peak_lr}
    numbers |= {"warmup_tokens": min(batch * warmup_batches, tokens // 4), "final_lr": peak_lr / 10}
    return [f"schedule.{key}={value}" for key, value in numbers.items()]


DRAWN = ["sampling.max_new_tokens=40", "sampling.batch=128", "precision=fp32", "parallel.micro_batch=16"]
JUDGED = ["sampling.answers=4", "sampling.temperature=1", "sampling.max_new_tokens=40"]
COMMON = [
    "model=mini",
    "model.rope_factor=0",
    "tokenizer=mini",
    "precision=fp32",
    "preflight.enabled=false",
    "log.progress=false",
]


def before(folder: Path, scale: TaskScale) -> list[tuple[str, list[str], int]]:
    """(recipe, arguments, processes) of what comes before the rounds: tokenizer, pre-training, the first policy."""
    own = ["--config-dir", str(folder / "conf")]
    base, seed = folder / "base", folder / "seed"
    text = [f"data.folder={folder / 'packed'}", f"data.sources.texts.input={folder / 'texts.jsonl'}"]
    micro = ["parallel.micro_batch=2"]
    pretrain = [*COMMON, *micro, *schedule(scale.pretrain_tokens, 5e-3), "name=base", f"folder={base}"]
    sft = [*COMMON, *micro, *schedule(scale.seed_tokens, 5e-3), "name=seed", f"folder={seed}", f"init_from={base}"]
    sft += [f"data.folder={folder / 'encoded'}", f"data.sources.dialogs.input={folder / 'dialogs.jsonl'}"]
    return [
        ("pack", [*own, "tokenizer=mini", *text, "data.workers=1"], 1),
        ("pretrain", [*own, *pretrain, *text], scale.processes),
        ("sft", [*own, *sft], scale.processes),
    ]


def after_sft(folder: Path, scale: TaskScale) -> list[str]:
    """Arguments of recipes.sample: answers of the first round after its SFT, asked as the judge asks."""
    policy = folder / "rounds" / "round-01" / "sft"
    paths = [f"folder={folder / 'after-sft'}", f"prompts={folder / 'judge.jsonl'}", f"policy={policy}", "part=draw"]
    return [*paths, *DRAWN, *JUDGED]


def post_train(folder: Path, scale: TaskScale) -> list[str]:
    """Arguments of recipes.post_train."""
    micro = ["parallel.micro_batch=2"]
    held = ["data.heldout_fraction=0.15", "validation.tokens=8192"]
    draw = [f"sampling.answers={scale.answers}", *DRAWN]
    sets = {
        "reward": [*COMMON, *micro, *held, *schedule(scale.reward_tokens, 1e-3, 256, 1024)],
        "sample": draw,
        "sft": [*COMMON, *micro, *schedule(scale.sft_tokens, 1e-3)],
        "dpo": [*COMMON, *micro, *held, *schedule(scale.dpo_tokens, 1e-4, 256, 1024)],
        "judge": JUDGED,
    }
    lists = [f"{stage}.set=[{','.join(json.dumps(text) for text in given)}]" for stage, given in sets.items()]
    lists += [f"{stage}.processes={scale.processes}" for stage in ("reward", "sft", "dpo", "sample")]
    rates = {"low": 5e-4, "high": 1e-3}
    lists += [f'sft.variants.{name}.set=["schedule.peak_lr={rate}"]' for name, rate in rates.items()]
    seed = folder / "seed"
    return [
        "name=rounds", f"folder={folder / 'rounds'}", f"rounds={scale.rounds}", f"config_dir={folder / 'conf'}",
        f"pretrained={seed}", f"preferences={folder}/preferences-{{round}}.jsonl",
        f"prompts={folder}/prompts-{{round}}.jsonl", f"judge_prompts={folder / 'judge.jsonl'}", *lists,
    ]  # fmt: skip


# --- what it gained ---


def wanted(texts: Sequence[tuple[str, str]]) -> float:
    """Share of (prompt's text, answer) in the form that is preferred."""
    known = {one.text: verifiers.read(one.checks()) for one in asks()}
    return sum(not verifiers.broken(answer, known[text]) for text, answer in texts) / max(1, len(texts))


def drawn(folder: Path) -> list[tuple[str, str]]:
    """(prompt's text, answer) of all that was drawn in a folder of recipes.sample."""
    prompts = {line["id"]: line["messages"][-1]["content"] for line in drawing.read_lines(folder / drawing.PROMPTS)}
    lines = drawing.read_lines(folder / drawing.CANDIDATES)
    return [(prompts[line["prompt"]], line["text"].strip()) for line in lines if "text" in line]


def best(folder: Path) -> list[tuple[str, str]]:
    """(prompt's text, answer) of the answers that were kept."""
    lines = drawing.read_lines(folder / drawing.BEST)
    return [(line["messages"][-2]["content"], line["messages"][-1]["content"]) for line in lines]


def gains(folder: Path, number: int = 1) -> dict[str, float]:
    """Held-out scores by stage of one round, in order. `folder` is that of the task."""
    rounds = folder / "rounds"
    here, earlier = rounds / f"round-{number:02d}", rounds / f"round-{number - 1:02d}"
    judgement = json.loads((here / "judge" / judge.NAME).read_text(encoding="utf-8"))
    previous = earlier / ("answers" if number == 1 else "best-answers")
    calibration = json.loads((here / "reward" / "calibration.json").read_text(encoding="utf-8"))
    between = {"judge: wanted form, after SFT": wanted(drawn(folder / "after-sft"))} if number == 1 else {}
    return {
        "reward model: held-out accuracy": calibration["all"]["accuracy"],
        "sampling: wanted form, all answers": wanted(drawn(here / "sample")),
        "sampling: wanted form, best answers": wanted(best(here / "sample")),
        "judge: wanted form, policy before": wanted(drawn(previous)),
        **between,
        "judge: wanted form, after DPO": wanted(drawn(here / "answers")),
        "judge: win rate against before": judgement["win_rate"]["score"],
    }


# --- as a benchmark ---


def measure(timeout_s: float, scale: TaskScale | None = None, folder: Path | None = None) -> dict[str, str]:
    """Figures of one small round by name, for `timing.figures_table`; in a temporary folder, unless one is given.

    `timeout_s` holds for each command and each round. Raises RuntimeError with the end of the log of one that fails.
    """
    scale = scale or TaskScale()
    with contextlib.ExitStack() as stack:
        here = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_task(here, scale)
        write_config(here, scale.layers, scale.hidden_size)
        todo = [*before(here, scale), ("post_train", post_train(here, scale), 1), ("sample", after_sft(here, scale), 1)]
        seconds = {}
        for place, (recipe, arguments, processes) in enumerate(todo):
            begin = time.monotonic()
            limit_s = timeout_s * (scale.rounds if recipe == "post_train" else 1)
            _run(recipe, arguments, processes, limit_s, here / f"{place}-{recipe}.log")
            seconds[f"{recipe} {place}"] = time.monotonic() - begin
        log = (here / "3-post_train.log").read_text(encoding="utf-8", errors="replace")
        stages = re.findall(r"^# (round-\S+): done in ([\d.]+) s$", log, re.MULTILINE)
        figures = {
            f"round {number}, {name}": f"{value:.1%}"
            for number in range(1, scale.rounds + 1)
            for name, value in gains(here, number).items()
        }
        figures |= {f"{name}: seconds": taken for name, taken in stages}
        return figures | {"all of it: seconds": f"{sum(seconds.values()):.0f}"}


def _run(recipe: str, arguments: Sequence[str], processes: int, timeout_s: float, log: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = [
        sys.executable,
        "-W",
        "ignore",
        *(launcher if processes > 1 else []),
        "-m",
        f"recipes.{recipe}",
        *arguments,
    ]
    with log.open("w") as said:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            words, check=False, stdout=said, stderr=said, timeout=timeout_s, env=environment, cwd=ROOT
        )
    if done.returncode:
        raise RuntimeError(f"recipes.{recipe} failed:\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}")
