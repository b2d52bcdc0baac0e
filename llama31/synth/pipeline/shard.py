"""Many programs at once: each item of a shard in a thread, as many as keep the servers busy."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from llama31 import config
from llama31.sampling.servers import Refused
from llama31.synth.pipeline import journal
from llama31.synth.pipeline.chat_models import ChatModel
from llama31.synth.pipeline.draw import Dropped, ItemDraw, Workshop
from llama31.synth.pipeline.items import SynthesisItem, digest
from llama31.synth.pipeline.journal import Appended, Steps
from llama31.synth.pipeline.prompt_files import PromptFiles

DIALOGS, PREFERENCES = "dialogs", "preferences"  # kinds of records: files of their names, .jsonl
MOST_REFUSED, JUDGED = 0.5, 20  # share of refused items, out of at least so many, that ends a shard
EXCERPT = 500  # characters of a dropped item, and of an answer that could not be read, that its result shows
AHEAD = 4  # items at work for each request that servers take at once: while some are checked, others are asked

Records = Mapping[str, Sequence[Mapping[str, Any]]]


class Capability(Protocol):
    """What is made of an item, and the prompts that it sends.

    `make` returns records by kind (`dialogs`, `preferences`, or a kind of its own), and raises Dropped. A record is
    what training reads: {"messages": [...]} of a dialog; id and provenance are added.
    """

    @property
    def name(self) -> str: ...

    @property
    def prompts(self) -> Sequence[str]: ...

    def make(self, item: SynthesisItem, draw: ItemDraw) -> Records: ...


@dataclass(frozen=True)
class Refusal:
    """An item that a server would not answer: no result, so that the next start asks again."""

    item: SynthesisItem
    reason: str


@dataclass(frozen=True)
class ItemShard:
    """One of `count` shards: the items whose index it is, modulo `count`."""

    folder: Path  # of the whole synthesis
    number: int
    count: int

    @property
    def path(self) -> Path:
        """Where its journal stands."""
        return self.folder / "shards" / f"{self.number:05d}"

    def items(self, items: Iterable[SynthesisItem]) -> Iterator[SynthesisItem]:
        """Its own of all."""
        return (item for item in items if item.index % self.count == self.number)


@contextmanager
def workshop(
    path: Path, models: Mapping[str, ChatModel], prompts: PromptFiles, sampling: config.SynthesisSampling,
    requests: int, checks: int | None = None,
) -> Iterator[Workshop]:  # fmt: skip
    """What items share: models, prompts, the journal of steps, and the cores (`checks`; None: all of them)."""
    cores = threading.Semaphore(checks or len(os.sched_getaffinity(0)))
    with Appended(path / journal.STEPS) as steps, ThreadPoolExecutor(max(1, requests)) as several:
        yield Workshop(models, prompts, sampling, steps, cores, several)


def run(
    shard: ItemShard,
    capability: Capability,
    items: Iterable[SynthesisItem],
    shared: Workshop,
    at_once: int,
    progress: Callable[[Counter[str]], None] = lambda outcome: None,
    drained: Callable[[], None] = lambda: None,
) -> Counter[str]:
    """Make what is missing of a shard; returns how many items were kept, dropped, refused, or done before.

    `progress` is called after each item, `drained` once no item is left to begin. Says why the last was refused.

    Raises RunError where no server answers any more and where more than half of many items are refused, ValueError
    (key `input`) for an item that says something else than when its result was made, and whatever a program raises
    that is no Dropped; what is done by then stays done.
    """
    finished = journal.done(shard.path)
    before = journal.unfinished(shard.path, finished)
    outcome: Counter[str] = Counter()
    missing = (item for item in shard.items(items) if not _known(item, finished, outcome))
    last: Refusal | None = None
    with Appended(shard.path / journal.RESULTS) as results:
        made = _each(
            missing, lambda item: _make(capability, item, shared, before.get(item.id, {})), at_once, shared, drained
        )
        for result in made:
            if isinstance(result, Refusal):
                last = result
                outcome["refused"] += 1
                _enough(outcome, result, shard)
            else:
                results.add(result)
                outcome["kept" if result["dropped"] is None else "dropped"] += 1
            progress(outcome)
    if last is not None:
        refused = f"{outcome['refused']} items were refused, the last ({last.item.place}) since: {last.reason}"
        print(f"{shard.path}: {refused}", flush=True)
    return outcome


def run_with_bar(
    shard: ItemShard,
    capability: Capability,
    items: Iterable[SynthesisItem],
    shared: Workshop,
    at_once: int,
    title: str,
    total: int,
    drained: Callable[[], None] = lambda: None,
) -> Counter[str]:
    """`run` of `total` items of a shard, and how far it is."""
    with tqdm(total=total, desc=title, unit="item") as bar:

        def progress(outcome: Counter[str]) -> None:
            bar.set_postfix(kept=outcome["kept"], dropped=outcome["dropped"], refresh=False)
            bar.update(sum(outcome[name] for name in ("before", "kept", "dropped", "refused")) - bar.n)

        return run(shard, capability, items, shared, at_once, progress, drained)


def _known(item: SynthesisItem, finished: Mapping[str, str | None], outcome: Counter[str]) -> bool:
    if item.id not in finished:
        return False
    if finished[item.id] not in (None, digest(item.record)):
        raise ValueError(
            f"input: {item.place}: {item.id} says something else than when its result was made; give it another id, "
            "or give another folder or name"
        )
    outcome["before"] += 1
    return True


def _make(capability: Capability, item: SynthesisItem, shared: Workshop, before: Steps) -> dict[str, Any] | Refusal:
    """An item's line of results.jsonl."""
    draw, records, dropped = ItemDraw(item, shared, before), dict[str, Any](), None
    try:
        records = {kind: list(made) for kind, made in capability.make(item, draw).items() if made}
    except Dropped as error:
        dropped = str(error)
    except Refused as error:
        return Refusal(item, str(error))
    if dropped is None and not records:
        dropped = "nothing was kept"
    origin = {
        "task": capability.name,
        "item": item.id,
        "prompts": shared.prompts.fingerprints(sorted(draw.sent)),
        "models": {role: sorted(names) for role, names in sorted(draw.by.items())},
    }
    counts = {name: count for name, count in sorted(draw.counts.items()) if count}
    result = {"item": item.id, "index": item.index, "said": digest(item.record), "dropped": dropped}
    result |= {"records": records, "counts": counts}
    shown = {"excerpt": item.text[:EXCERPT], **({"unread": draw.unread[:EXCERPT]} if draw.unread else {})}
    return {**result, "provenance": origin, **(shown if dropped is not None else {})}


def _enough(outcome: Counter[str], last: Refusal, shard: ItemShard) -> None:
    answered = outcome["kept"] + outcome["dropped"]
    if outcome["refused"] + answered >= JUDGED and outcome["refused"] > MOST_REFUSED * (outcome["refused"] + answered):
        raise config.RunError(
            f"{outcome['refused']} of {outcome['refused'] + answered} items were refused, the last ({last.item.place}) "
            f"since: {last.reason}. What is done stays in {shard.path}; the same command asks again"
        )


def _each[T](
    items: Iterator[SynthesisItem],
    make: Callable[[SynthesisItem], T],
    at_once: int,
    shared: Workshop,
    drained: Callable[[], None],
) -> Iterator[T]:
    """Results as they come in, of at most `at_once` items at a time; after an error no item is begun."""
    executor, under_way, more, ended = ThreadPoolExecutor(at_once), set[Future[T]](), True, False
    try:
        while more or under_way:
            while more and len(under_way) < at_once:
                item = next(items, None)
                more = item is not None
                if item is not None:
                    under_way.add(executor.submit(make, item))
                else:
                    drained()
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
        ended = True
    finally:
        if not ended:
            for model in shared.models.values():
                model.close()
        executor.shutdown(cancel_futures=True)
