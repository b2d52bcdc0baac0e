"""The judge's questions about the dialogs that pass the rules, by shards; what was answered before is not asked again.

<folder>/judged/<question>/synthesis.json     what the answers depend on (`synth.pipeline.folder`)
<folder>/judged/<question>/shards/00000/...   a journal as that of any synthesis
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama31 import config
from llama31.sampling import filters
from llama31.sampling.drawing import each_line
from llama31.synth.pipeline import folder, gather, journal, shard
from llama31.synth.pipeline.chat_models import ChatModel, ServedModel
from llama31.synth.pipeline.draw import JUDGE
from llama31.synth.pipeline.folder import BegunSynthesis
from llama31.synth.pipeline.prompt_files import PromptFiles
from llama31.synth.pipeline.shard import Capability, ItemShard
from llama31.synth.quality import contamination, dialog_records, questions
from llama31.synth.quality.contamination import Benchmarks, Grams
from llama31.synth.quality.dialog_records import DialogRecord
from llama31.synth.quality.questions import ANSWER, DialogItem

JUDGED = "judged"
READING, RULES, DECONTAMINATION = "reading", "rules", "decontamination"
Why = tuple[str, str]  # the step that drops a dialog, and its reason


@dataclass
class Programs:
    """The steps that need no judge and no other dialog: what the format can say, the rules, the benchmarks."""

    rules: config.RuleCleaning
    decontamination: config.Decontamination
    benchmarks: Benchmarks = field(init=False)

    def __post_init__(self) -> None:
        asked = self.decontamination
        self.benchmarks = contamination.read(asked.ngram, asked.sets if asked.enabled else {})

    def look(self, dialog: DialogRecord) -> tuple[Why | None, Grams, dict[str, Any]]:
        """Why it is dropped (None: it passes), its n-grams of benchmarks, and what is added to its record."""
        grams = self.benchmarks.grams([one.text() for one in dialog.messages])
        if dialog.unfit is not None:
            return (READING, dialog.unfit), grams, {}
        for text in dialog.answers() if self.rules.enabled else ():
            sign = filters.overdone(text, self.rules.emoji_per_word, self.rules.exclamations_per_sentence)
            if sign is not None:
                return (RULES, sign), grams, {}
        found = self.benchmarks.overlap(dialog.prompts(), grams, self.decontamination.exact)
        if found is None:
            return None, grams, {}
        reason = f"{found.benchmark}, {'a prompt of it' if found.exact else 'by n-grams'}"
        return (DECONTAMINATION, reason), grams, {"contamination": asdict(found)}


def names(run: config.FilterData) -> list[str]:
    """The questions that are asked, in their order: who judges code has to know the topic."""
    chosen = {
        "topic": run.topic.enabled,
        "intentions": run.intentions.enabled,
        "difficulty": run.difficulty.enabled,
        "points": run.quality.judge.enabled,
    }
    return [name for name, enabled in chosen.items() if enabled]


def served(run: config.FilterData) -> bool:
    """Whether any of them needs a server."""
    return any(name != "topic" or run.topic.model is None for name in names(run))


def question(run: config.FilterData, name: str, topics: Mapping[str, str]) -> Capability:
    """A question by its name; `topics` are those of the dialogs that will be asked about, where they are known."""
    longest = run.longest_characters
    if name == "topic":
        if run.topic.model is not None:
            return questions.TopicModel(classifier(run.topic.model))
        return questions.TopicQuestion(longest, run.topic.classes)
    if name == "points":
        return questions.PointsQuestion(longest, topics)
    return questions.IntentionsQuestion(longest) if name == "intentions" else questions.DifficultyQuestion(longest)


def classifier(path: str) -> Callable[[str], tuple[str, float]]:
    """The likeliest class of a text and its probability, by a fastText model or the folder of an encoder."""
    from llama31.curate.scoring import encoder, knowledge

    model = encoder.Encoder(path) if Path(path).is_dir() else knowledge.FastTextClasses(path)

    def classify(text: str) -> tuple[str, float]:
        (classes,) = model.all([text], [""])
        likeliest = max(classes.items(), key=lambda one: (one[1], one[0]), default=(questions.OTHER, 0.0))
        return likeliest[0], round(likeliest[1], 4)

    return classify


def begun(run: config.FilterData, name: str, asked: Capability) -> BegunSynthesis:
    """The folder of a question. Raises ValueError where it was begun with other keys, which are named."""
    plain = asdict(run)
    settings: dict[str, Any] = {"question": name, "shards": run.shards, "judge": run.judge.model}
    settings["sampling"], settings["longest_characters"] = plain["sampling"], run.longest_characters
    if name == "topic":
        settings["topic"] = {one: plain["topic"][one] for one in ("model", "classes")}
    return folder.opened(Path(run.folder) / JUDGED / name, settings, {}, run.prompts, asked.prompts)


def ask(run: config.FilterData, programs: Programs, numbers: Iterable[int], model: ChatModel | None = None) -> None:
    """Ask what is missing of these shards. `model` is the judge; None: the servers of the config, where any is needed.

    Raises RunError and ValueError as `synth.pipeline.shard.run` and the servers' probe do.
    """
    if not names(run):
        return
    judge = model if model is not None or not served(run) else ServedModel(run.judge, "judge")
    room = judge.room if isinstance(judge, ServedModel) else run.judge.concurrency
    for number in numbers:
        items = [*_items(run, programs, number)]
        for name in names(run):
            _shard(run, name, _part(run, name, number), items, judge, room)


def _part(run: config.FilterData, name: str, number: int) -> ItemShard:
    """A shard of a question."""
    return ItemShard(Path(run.folder) / JUDGED / name, number, run.shards)


def unfinished(run: config.FilterData, programs: Programs) -> list[int]:
    """Shards with a question that has no result. Raises ValueError where any was asked with other keys."""
    asked, missing = names(run), set[int]()
    for name in asked:
        _same_keys(run, name)
    done = [[journal.done(_part(run, name, number).path) for name in asked] for number in range(run.shards)]
    for one in dialog_records.read(run.input, run.added_key, run.limit) if asked else ():
        number = one.index % run.shards
        answered = number in missing or all(one.id in found for found in done[number])
        if not answered and programs.look(one)[0] is None:
            missing.add(number)
        if len(missing) == run.shards:
            break
    return sorted(missing)


def _items(run: config.FilterData, programs: Programs, number: int) -> Iterator[DialogItem]:
    """What a shard asks about: its own of the dialogs that pass the programs."""
    for one in dialog_records.read(run.input, run.added_key, run.limit):
        if one.index % run.shards == number and programs.look(one)[0] is None:
            yield DialogItem(one.id, one.index, one.record, "", one.place, dialog=one)


def _shard(
    run: config.FilterData, name: str, one: ItemShard, items: list[DialogItem], judge: ChatModel | None, room: int
) -> None:
    topics = _topics(_part(run, "topic", one.number)) if name == "points" and run.topic.enabled else {}
    asked = question(run, name, topics)
    begun(run, name, asked)
    models: dict[str, ChatModel] = {} if judge is None else {JUDGE: judge}
    at_once, title = run.items_at_once or shard.AHEAD * room, f"{name}, shard {one.number}"
    with shard.workshop(one.path, models, PromptFiles(run.prompts), run.sampling, 1) as shared:
        outcome = shard.run_with_bar(one, asked, items, shared, at_once, title, len(items))
    told = ", ".join(f"{outcome[kind]} {word}" for kind, word in TOLD.items() if outcome[kind])
    print(f"{title}: {told or 'nothing to ask'}", flush=True)


TOLD = {
    "kept": "answered",
    "dropped": "without an answer that can be read",
    "before": "answered before",
    "refused": "refused: the same command asks again",
}


def _topics(one: ItemShard) -> dict[str, str]:
    return {line["item"]: found["topic"] for line in each_line(one.path / journal.RESULTS) if (found := _answer(line))}


def _answer(line: Mapping[str, Any]) -> dict[str, Any] | None:
    return next((dict(one) for one in line["records"].get(ANSWER, ())), None)


@dataclass
class Answers:
    """What was answered: by dialog, of all questions together; who answered what, and what was counted."""

    of: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: dict[str, set[str]] = field(default_factory=dict)  # dialogs with a result, by question
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    models: set[str] = field(default_factory=set)


def read(run: config.FilterData) -> Answers:
    """The answers to all questions of the config. Raises ValueError where they were asked with other keys."""
    result = Answers()
    for name in names(run):
        _same_keys(run, name)
        asked, counts = result.asked.setdefault(name, set()), result.counts.setdefault(name, Counter())
        for line in gather.results(Path(run.folder) / JUDGED / name):
            asked.add(line["item"])
            counts.update(line["counts"])
            result.prompts |= line["provenance"]["prompts"]
            result.models.update(line["provenance"]["models"].get(JUDGE, ()))
            if (answer := _answer(line)) is not None:
                result.of.setdefault(line["item"], {}).update(answer)
    return result


def _same_keys(run: config.FilterData, name: str) -> None:
    """Raises ValueError where a question was begun with other keys; it is not begun here."""
    if (Path(run.folder) / JUDGED / name / folder.SETTINGS).is_file():
        begun(run, name, question(run, name, {}) if name != "topic" or not run.topic.model else _silent())


def _silent() -> Capability:
    """A topic model's stand-in where nothing is classified: what was classified is read."""
    return questions.TopicModel(lambda text: (questions.OTHER, 0.0))
