"""What a judge is asked about a dialog: its topic, the user's intentions, its difficulty, and how good the answers are.

Each question is a capability of `synth.pipeline` of its own, so that one can be added later, and each gives one record
of the kind ANSWER. Prompts stand in conf/prompts/quality. The report prints none, nor how its judge's points are told:
here each of its criteria gives one point, three of general dialogs and two of code.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama31.synth.pipeline import parsing
from llama31.synth.pipeline.draw import JUDGE, ItemDraw
from llama31.synth.pipeline.items import SynthesisItem
from llama31.synth.pipeline.shard import Records
from llama31.synth.quality.dialog_records import DialogRecord

ANSWER = "answer"
OTHER = "other"
CODE = "code"  # the coarse topic whose dialogs are judged as code
FENCED = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
GENERAL_POINTS = {"accuracy": "accuracy", "instruction following": "instructions", "tone": "tone"}
CODE_POINTS = {"correct": "bugs", "intention": "intention"}
MOST_TAGS = 50  # beyond so many an answer has run away


def points(answer: str, names: Mapping[str, str]) -> dict[str, int]:
    """One point or none for each criterion."""
    return {key: parsing.whole_number(answer, name, 0, 1) for name, key in names.items()}


def tags(answer: str) -> list[str]:
    """The tags of an answer, each once, in order. Raises ValueError for none, or more than a dialog can have."""
    said = (re.split(r"\s+[-\u2013\u2014:]\s+|\s*[(:]", one, maxsplit=1)[0] for one in parsing.lines(answer, "tag"))
    plain = (" ".join(re.sub(r"[^\w+#.]+", " ", tag.casefold()).split()) for tag in said)
    result = list(dict.fromkeys(tag for tag in plain if tag))
    if not 1 <= len(result) <= MOST_TAGS:
        raise ValueError(f"{len(result)} tags")
    return result


def topic(answer: str, classes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The coarse and the fine topic. Raises ValueError for one that is not among the classes."""
    coarse, fine = (said[-1].casefold().rstrip(".") if (said := parsing.lines(answer, name)) else "" for name in PARTS)
    known = {one.casefold(): one for one in [*classes, OTHER]}
    if coarse not in known:
        raise ValueError(f"topic {coarse!r}")
    inner = {one.casefold(): one for one in [*classes.get(known[coarse], ()), OTHER]}
    if fine not in inner:
        raise ValueError(f"finer topic {fine!r}")
    return {"topic": known[coarse], "fine_topic": inner[fine]}


PARTS = ("Topic", "Finer")


@dataclass(frozen=True)
class DialogItem(SynthesisItem):
    """An item with the dialog that it is about."""

    dialog: DialogRecord | None = None


def dialog_of(item: SynthesisItem) -> DialogRecord:
    """The dialog of an item that `asking` has made."""
    assert isinstance(item, DialogItem) and item.dialog is not None
    return item.dialog


@dataclass
class Asked:
    """What all questions share: how much of a dialog is shown."""

    longest: int

    def shown(self, item: SynthesisItem, draw: ItemDraw) -> str:
        """The dialog for the judge; one that is shown in part is counted."""
        text, cut = dialog_of(item).shown(self.longest)
        draw.counts["shown in part"] += cut
        return text


@dataclass
class TopicQuestion(Asked):
    """Coarse and fine topic, of those that are given."""

    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    name: str = "topic"
    prompts: Sequence[str] = ("quality/topic",)

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """See `Capability`."""
        topics = "\n".join(f"- {coarse}: {'; '.join(fine)}" for coarse, fine in self.classes.items())
        said = draw.read(
            "quality/topic", lambda answer: topic(answer, self.classes), model=JUDGE, topics=topics,
            dialog=self.shown(item, draw),
        )  # fmt: skip
        return {ANSWER: [said]}


@dataclass
class TopicModel:
    """Topic by a classifier of texts (`curate.scoring`), whose classes are COARSE or COARSE/FINE. Asks nobody."""

    classify: Callable[[str], tuple[str, float]]
    name: str = "topic"
    prompts: Sequence[str] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock)  # tokenizers are of one thread at a time

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """See `Capability`."""
        text = dialog_of(item).text()

        def check() -> list[Any]:
            with self._lock:
                return list(self.classify(text))

        said, sure = draw.check("topic", check, item.id)
        coarse, _, fine = said.partition("/")
        return {ANSWER: [{"topic": coarse, "fine_topic": fine or OTHER, "topic_probability": sure}]}


@dataclass
class IntentionsQuestion(Asked):
    """Tags of what the user wants (Lu et al. 2023, "#InsTag"): the more, the harder."""

    name: str = "intentions"
    prompts: Sequence[str] = ("quality/intentions",)

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """See `Capability`."""
        said = draw.read("quality/intentions", tags, model=JUDGE, dialog=self.shown(item, draw))
        return {ANSWER: [{"intentions": said}]}


@dataclass
class DifficultyQuestion(Asked):
    """1 to 3."""

    name: str = "difficulty"
    prompts: Sequence[str] = ("quality/difficulty",)

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """See `Capability`."""
        said = draw.read(
            "quality/difficulty", lambda answer: parsing.whole_number(answer, "difficulty", 1, 3), model=JUDGE,
            dialog=self.shown(item, draw),
        )  # fmt: skip
        return {ANSWER: [{"difficulty": said}]}


@dataclass
class PointsQuestion(Asked):
    """Points for the answers: as code where the dialog's topic is code, or, without a topic, where code is fenced."""

    topics: Mapping[str, str] = field(default_factory=dict)  # coarse topic by item
    name: str = "points"
    prompts: Sequence[str] = ("quality/general", "quality/code")

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records:
        """See `Capability`."""
        dialog = dialog_of(item)
        known = self.topics.get(item.id)
        code = known == CODE if known is not None else any(FENCED.search(text) for text in dialog.answers())
        prompt, names = ("quality/code", CODE_POINTS) if code else ("quality/general", GENERAL_POINTS)
        said = draw.read(prompt, lambda answer: points(answer, names), model=JUDGE, dialog=self.shown(item, draw))
        return {ANSWER: [{"judged_as": CODE if code else "general", "points": said}]}
