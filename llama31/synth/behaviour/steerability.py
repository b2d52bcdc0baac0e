"""System prompts that are obeyed (report, section 4.3.7): a persona by a model, rules of form by a program.

user's prompt -> a system prompt: who the assistant is, and rules that a program can check -> answers -> checked by the
program, and by a judge for the persona -> the first that obeys all is a dialog; against one that breaks a rule, a pair.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llama31 import config
from llama31.sampling import verifiers
from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import JUDGE, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import DIALOGS, PREFERENCES, Records

Rule = tuple[str, Any, str]  # kind and value of llama31.sampling.verifiers, and how the system prompt says it
# Length, format and tone are what the report's annotators wrote rules on; these rules are ours.
RULES: Sequence[Callable[[random.Random], Rule]] = (
    lambda draw: ("max_words", n := draw.choice((40, 60, 80, 120)), f"Never use more than {n} words."),
    lambda draw: ("min_words", n := draw.choice((60, 100, 150)), f"Write at least {n} words."),
    lambda draw: ("max_sentences", n := draw.choice((2, 3, 5)), f"Answer in at most {n} sentences."),
    lambda draw: ("paragraphs", n := draw.choice((2, 3)), f"Write exactly {n} paragraphs, with a blank line between."),
    lambda draw: ("bullets", n := draw.choice((3, 4, 5)), f"Give a list of exactly {n} points, each on a line with -."),
    lambda draw: ("no_comma", True, "Use no commas."),
    lambda draw: ("lowercase", True, "Write in small letters alone."),
    lambda draw: ("json", True, "Answer with one JSON object and nothing else."),
    lambda draw: ("ends_with", end := draw.choice(("That is all.", "Ask me more.")), f'End with the words "{end}"'),
    lambda draw: ("quoted", True, "Put double quotation marks around your whole answer."),
)
# Rules that no answer can obey together, by kind; what says JSON obeys nothing else.
APART: Sequence[frozenset[str]] = (
    frozenset({"max_words", "min_words", "max_sentences", "paragraphs", "bullets"}),
    frozenset({"quoted", "ends_with", "bullets"}),
    frozenset({"lowercase", "ends_with"}),
)


@dataclass(frozen=True)
class Steerability:
    """See the module."""

    settings: config.SteerabilitySynthesis
    name: str = "steerability"
    prompts: Sequence[str] = ("steerability/persona", "steerability/keeps")

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """A dialog whose answer obeys, and pairs with what does not."""
        asked = item.text.strip()
        if not asked:
            draw.drop("empty")
        rules = drawn(draw.random, self.settings.rules)
        persona = draw.read("steerability/persona", parsing.said, prompt=asked)
        system = "\n".join([persona, *(text for _, _, text in rules)])
        checks = [(kind, value) for kind, value, _ in rules]
        messages = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
        good, bad = [], []
        for _ in range(self.settings.answers):
            answer = draw.answer(messages)
            text = answer["text"].strip()
            broken = verifiers.broken(text, checks)
            draw.counts["answers"] += 1
            draw.counts.update(f"breaks {kind}" for kind in broken)
            if answer["finish"] == "stop" and not broken and self._keeps(draw, system, asked, text):
                good.append(text)
            elif broken and text:
                bad.append(text)
        if not good:
            draw.drop("no answer obeys")
        record = {"checks": [{"kind": kind, "value": value} for kind, value in checks]}
        said = {"role": "assistant", "content": good[0]}
        better = {"prompt": messages, "chosen": good[0], "strength": "significantly_better"}
        pairs = [{**better, "rejected": one} for one in bad[:1]]
        return {DIALOGS: [{"messages": [*messages, said], **record}], PREFERENCES: pairs}

    def _keeps(self, draw: ItemDraw, system: str, asked: str, answer: str) -> bool:
        parse = parsing.choice(("yes", "no"))
        fields: dict[str, Any] = {"system": system, "prompt": asked, "answer": answer}
        kept = draw.read("steerability/keeps", parse, model=JUDGE, temperature=0, **fields) == "yes"
        draw.counts["out of persona"] += not kept
        return kept


def drawn(chance: random.Random, count: int) -> list[Rule]:
    """`count` rules that an answer can obey together."""
    rules: list[Rule] = []
    for one in chance.sample(RULES, len(RULES)):
        kind, value, text = one(chance)
        kinds = {known for known, _, _ in rules}
        clashes = any(kind in group and kinds & group for group in APART) or (kinds and "json" in {kind, *kinds})
        if not clashes and len(rules) < count:
            rules.append((kind, value, text))
    return rules
