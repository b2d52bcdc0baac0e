"""Safe and still helpful (report, section 5.4): violations and false refusals, harmful and borderline prompts.

A harmful prompt -> prompts that look like it and are harmless -> answers to all -> judged: does it violate? does it
refuse? -> of the harmful one an answer that does not violate is kept, of each borderline one an answer that helps; an
answer that fails is the rejected one of a pair. The report's two rates are the first counts of the summary. What cannot
be read loses the prompt that it is about, and no other of the item.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama31 import config
from llama31.sampling import verifiers
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import JUDGE, Dropped, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import DIALOGS, PREFERENCES, Records

VERDICT = parsing.choice(("yes", "no"))
BORDERLINE, HARMFUL = "borderline", "harmful"
# Share of safety data among all examples, by parameters of the model. The report says that smaller models need a larger
# one and gives no number; these are ours, in between by the logarithm of the size.
SHARES: Mapping[float, float] = {8e9: 0.10, 70e9: 0.07, 405e9: 0.05}


def share(parameters: float) -> float:
    """Share of safety data for a model of so many parameters. Raises ValueError below one parameter."""
    if parameters < 1:
        raise ValueError(f"parameters={parameters}: give the number of parameters of the model, such as 8e9")
    sizes = sorted(SHARES)
    size = math.log(min(max(parameters, sizes[0]), sizes[-1]))
    low, high = next(pair for pair in itertools.pairwise(sizes) if size <= math.log(pair[1]) + 1e-9)
    part = (size - math.log(low)) / (math.log(high) - math.log(low))
    return SHARES[low] + part * (SHARES[high] - SHARES[low])


def epochs(parameters: float, safe: int, others: int) -> float:
    """Passes over `safe` examples beside `others` for a model of so many parameters, as `data.sources.NAME.epochs`."""
    wanted = share(parameters)
    return wanted / (1 - wanted) * others / safe


@contextlib.contextmanager
def _losing(draw: ItemDraw, kind: str, lost: list[Dropped]) -> Iterator[None]:
    """What would drop the item loses one of its prompts, and is counted."""
    try:
        yield
    except Dropped as error:
        lost.append(error)
        draw.counts[f"{kind} prompts lost: {error}"] += 1


@dataclass(frozen=True)
class Safety:
    """See the module. Records of the input may say `safety: borderline`; they are harmful otherwise."""

    settings: config.SafetySynthesis
    name: str = "safety"
    prompts: Sequence[str] = tuple(f"safety/{name}" for name in ("borderline", "violates", "refuses"))

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """Dialogs and pairs of a prompt, and of those that look like it."""
        asked = item.text.strip()
        if not asked:
            draw.drop("empty")
        kind = str(item.record.get("safety") or HARMFUL)
        if kind not in (BORDERLINE, HARMFUL):
            raise ValueError(f"input: {item.place}: safety={kind}; give harmful or borderline, or leave it out")
        given, lost = [(asked, kind)], list[Dropped]()
        for _ in range(self.settings.borderline if kind == HARMFUL else 0):
            with _losing(draw, BORDERLINE, lost):
                given.append((draw.read("safety/borderline", parsing.question, prompt=asked), BORDERLINE))
        dialogs, pairs = list[dict[str, Any]](), list[dict[str, Any]]()
        for prompt, one in given:
            with _losing(draw, one, lost):
                dialog, pair = self._answered(draw, prompt, one)
                dialogs += [dialog] if dialog else []
                pairs += [pair] if pair else []
        if lost and not dialogs:
            raise lost[0]
        return {DIALOGS: dialogs, PREFERENCES: pairs}

    def _answered(self, draw: ItemDraw, prompt: str, kind: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The dialog of the first answer that is as wanted, and a pair with one that is not."""
        messages = [{"role": "user", "content": prompt}]
        good: list[str] = []
        bad: list[str] = []
        for _ in range(self.settings.answers):
            answer = draw.answer(messages)
            text = answer["text"].strip()
            if answer["finish"] != "stop" or not text:
                draw.counts["unfinished answers"] += 1
                continue
            (good if self._wanted(draw, prompt, kind, text) else bad).append(text)
        if not good:
            draw.counts[f"{kind} prompts without a good answer"] += 1
            return None, None
        record = {"messages": [*messages, {"role": "assistant", "content": good[0]}], "safety": kind}
        if not bad:
            return record, None
        pair = {"prompt": messages, "chosen": good[0], "rejected": bad[0], "strength": "significantly_better"}
        return record, pair

    def _wanted(self, draw: ItemDraw, prompt: str, kind: str, answer: str) -> bool:
        """Of what is harmful an answer that does not violate; of what is borderline one that does not refuse either."""
        violates = self._judged(draw, "safety/violates", prompt, answer)
        draw.counts[f"answers to {kind} prompts"] += 1
        draw.counts[f"violations, {kind}"] += violates
        if kind == HARMFUL or violates:
            return not violates
        refuses = verifiers.refuses(answer) or self._judged(draw, "safety/refuses", prompt, answer)
        draw.counts["false refusals"] += refuses
        return not refuses

    def _judged(self, draw: ItemDraw, question: str, prompt: str, answer: str) -> bool:
        return draw.read(question, VERDICT, model=JUDGE, temperature=0, prompt=prompt, answer=answer) == "yes"
