"""A step-wise reward model that checks additions, and what it finds: best of K and a tree search beside a random score.

    python -m benchmarks.step_rewards FOLDER [train | judge]

2+3+1+3+2 is answered in steps, 2+3=5, then 5+1=6 and so on, by a policy that gets each sum right with a chance of 0.65
and goes on from what it said. A step is right where its total is. A small model learns to solve, then the labels by
`recipes.reward objective=steps`, is exported and served over HTTP, and chooses among solutions to questions that it has
not seen.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import small_rounds
from benchmarks.serving import JsonAnswers, served
from llama31 import config
from llama31.dialogs import stepwise
from llama31.synth.mathematics import reward_servers
from llama31.synth.mathematics.scoring import RewardedSteps
from llama31.synth.mathematics.search import StepTreeSearch
from llama31.synth.pipeline.chat_models import Drawn, ServedModel

ROOT = Path(__file__).resolve().parent.parent
RIGHT, ADDENDS, LARGEST = 0.65, 4, 3
VOCABULARY = 536
QUESTIONS, ANSWERS = 60, 8  # that are judged, and the K of best of K


@dataclass(frozen=True)
class AdditionScale:
    """How much of everything."""

    texts: int = 8000
    solutions: int = 12000
    layers: int = 3
    hidden_size: int = 128
    sft_tokens: int = 800_000
    reward_tokens: int = 1_600_000


@dataclass(frozen=True)
class Sum:
    """Numbers to be added, one after the other."""

    numbers: tuple[int, ...]

    @property
    def question(self) -> str:
        """What is asked."""
        return "+".join(map(str, self.numbers))

    def total(self, step: int) -> int:
        """What is right after so many steps."""
        return sum(self.numbers[: step + 1])

    def next_step(self, steps: Sequence[str], chance: random.Random, right: float = RIGHT) -> str:
        """What the policy says next: it goes on from its own last total, and ends with the answer."""
        before = self.said(steps[-1]) if steps else self.numbers[0]
        total = before + self.numbers[len(steps) + 1]
        if chance.random() >= right:
            total += chance.choice([one for one in range(-3, 4) if one and total + one > 0])
        last = f" \\boxed{{{total}}}" if len(steps) + 1 == ADDENDS else ""
        return f"{before}+{self.numbers[len(steps) + 1]}={total}{last}"

    def solution(self, chance: random.Random, right: float = RIGHT) -> list[str]:
        """All steps of the policy."""
        steps: list[str] = []
        while len(steps) < ADDENDS:
            steps.append(self.next_step(steps, chance, right))
        return steps

    def labels(self, steps: Sequence[str]) -> list[int]:
        """Whether the total of each step is right."""
        return [int(self.said(step) == self.total(place)) for place, step in enumerate(steps, 1)]

    @staticmethod
    def said(step: str) -> int:
        """The total that a step comes to."""
        return int(step.split("=")[1].split()[0])


def write_task(folder: Path, scale: AdditionScale, seed: int = 0) -> list[Sum]:
    """Texts with right solutions, steps with labels, the model's config; returns questions that none of them has."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    every = [Sum(numbers) for numbers in itertools.product(range(1, LARGEST + 1), repeat=ADDENDS + 1)]
    held = chance.sample(every, QUESTIONS)
    others = [one for one in every if one not in held]

    texts, dialogs, steps = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
    for _ in range(scale.texts):
        one = chance.choice(others)
        answer = one.solution(chance, 1.0)
        texts.append({"text": f"user\n\n{one.question}assistant\n\n{stepwise.numbered(answer)}"})
        dialogs.append({"messages": list(stepwise.asked(one.question, answer))})
    for _ in range(scale.solutions):
        one = chance.choice(others)
        solution = one.solution(chance)
        steps.append({"question": one.question, "steps": solution, "labels": one.labels(solution)})
    for name, records in (("texts", texts), ("dialogs", dialogs), ("steps", steps)):
        small_rounds.write_lines(folder / f"{name}.jsonl", records)
    small_rounds.write_config(folder, scale.layers, scale.hidden_size, VOCABULARY)
    return held


def commands(folder: Path, scale: AdditionScale) -> list[tuple[str, list[str]]]:
    """(recipe, arguments) from the texts to the exported reward model."""
    own = ["--config-dir", str(folder / "conf")]
    common = ["model=mini", "model.rope_factor=0", "tokenizer=mini", "precision=fp32", "preflight.enabled=false"]
    common += ["log.progress=false", "parallel.micro_batch=4"]

    def stage(name: str, tokens: int, peak_lr: float, *more: str) -> tuple[str, list[str]]:
        kind = {"base": "pretrain", "seed": "sft"}.get(name, name)
        schedule = small_rounds.schedule(tokens, peak_lr, 256, 1024, warmup_batches=20)
        return kind, [*own, *common, *schedule, f"name={name}", f"folder={folder / name}", *more]

    text = [f"data.folder={folder / 'packed'}", f"data.sources.texts.input={folder / 'texts.jsonl'}"]
    learned = [f"data.folder={folder / 'encoded'}", "data.heldout_fraction=0.1", "validation.tokens=32768"]
    dialogs, steps = (f"data.sources.a.input={folder / name}.jsonl" for name in ("dialogs", "steps"))
    last = ["objective=steps", steps, f"init_from={folder / 'seed'}"]
    exported = [f"hf={folder / 'hf'}", f"checkpoint={folder / 'reward'}", "dtype=fp32", "overwrite=true"]
    return [
        ("pack", [*own, "tokenizer=mini", *text, "data.workers=1"]),
        stage("base", 16_384, 2e-3, *text),
        stage("seed", scale.sft_tokens, 2e-3, *learned, dialogs, f"init_from={folder / 'base'}"),
        stage("reward", scale.reward_tokens, 1.5e-3, *learned, *last),
        ("convert", ["direction=to_hf", *exported]),
    ]


def train(folder: Path, scale: AdditionScale) -> None:
    """All that is learned, a process for each command."""
    write_task(folder, scale)
    for name, arguments in commands(folder, scale):
        subprocess.run([sys.executable, "-m", f"recipes.{name}", *arguments], cwd=ROOT, check=True, timeout=1800)


# --- served ---


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of an exported reward model: transformers, behind the API of vLLM that is asked."""
    import torch
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    model = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    alone = threading.Lock()  # of torch and of a fast tokenizer

    class Handler(JsonAnswers):
        def do_GET(self) -> None:
            self.send({"data": [{"id": folder.name}]})

        def do_POST(self) -> None:
            asked = self.read()
            with alone, torch.no_grad():
                ids = tokenizer.apply_chat_template(
                    asked["messages"], add_generation_prompt=False, return_tensors="pt", return_dict=False
                )
                score = model(ids).logits[0, 0].sigmoid().item()
            one = {"index": 0, "label": "LABEL_0", "probs": [score], "num_classes": 1}
            self.send({"object": "list", "data": [one], "usage": {"prompt_tokens": ids.shape[1]}})

    with served(Handler) as address:
        yield address


# --- what it finds ---


@dataclass
class AdditionDraw:
    """As much of a draw as a search needs: next steps of the policy, and the served reward model."""

    one: Sum
    chance: random.Random
    reward: ServedModel | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def several(self, prompt: str, count: int, *, steps: str, **fields: Any) -> list[str]:
        """Next steps."""
        before = stepwise.split(steps)
        return [self.one.next_step(before, self.chance) for _ in range(count)]

    def answer(self, messages: Sequence[Any], **fields: Any) -> dict[str, str]:
        """What the reward model says."""
        assert self.reward is not None, "a random score asks nobody"
        return {"text": self.reward.reply(messages, Drawn(0.0, 1.0, 1, 0))[0].text}


@dataclass(frozen=True)
class RandomSteps:
    """A score that knows nothing."""

    chance: random.Random

    def score(self, draw: Any, question: str, steps: Sequence[str]) -> float:
        """Any."""
        return self.chance.random()


def found(held: Sequence[Sum], reward: ServedModel, seed: int = 1) -> dict[str, float]:
    """Shares of the questions whose chosen solution comes to the right answer; all choose from equal draws."""
    result: defaultdict[str, float] = defaultdict(float)
    scorer, random_score = RewardedSteps(), RandomSteps(random.Random(seed))
    for number, one in enumerate(held):
        chance = random.Random(seed * 1000 + number)
        drawn = [one.solution(chance) for _ in range(ANSWERS)]
        draw: Any = AdditionDraw(one, chance, reward)
        lowest = [scorer.lowest(draw, one.question, steps) for steps in drawn]
        right = [one.labels(steps)[-1] for steps in drawn]
        result["any policy answer"] += sum(right) / ANSWERS
        result["best of K by lowest step"] += right[lowest.index(max(lowest))]
        result["one of the K is right"] += max(right)
        for name, guide in (("search by reward", scorer), ("search by chance", random_score)):
            tree = StepTreeSearch(guide, simulations=8, width=3, depth=ADDENDS, exploration=0.7)
            given: Any = AdditionDraw(one, random.Random(seed * 1000 + number), reward)
            reached = tree.run(given, one.question)
            result[name] += bool(reached) and reached[0][0].answer == str(one.total(ADDENDS))
    return {name: count / len(held) for name, count in result.items()}


if __name__ == "__main__":
    where, what = Path(sys.argv[1]), sys.argv[2:]
    if what != ["judge"]:
        train(where, AdditionScale())
    if what != ["train"]:
        judged = json.loads((where / "reward" / "calibration.json").read_text(encoding="utf-8"))
        for name in ("wrong steps", "right steps", "all"):
            print(f"held-out accuracy, {name}: {judged[name]['accuracy']:.1%} of {judged[name]['pairs']:,}")
        with serving(where / "hf") as url:
            reward = ServedModel(config.Server([url]), "reward", reward_servers.connect)
            for name, share in found(write_task(where, AdditionScale()), reward).items():
                print(f"{name}: {share:.1%}")
