"""The stages of curation in their order, as plain data that a run in processes and arrays of Slurm are made from.

A stage works in tasks, each of which reads what names it here and leaves files of its own. A barrier stands between
two stages where `needs` says so: all tasks of the first are done before one of the second begins.
"""

from __future__ import annotations

from dataclasses import dataclass

from llama31 import config


@dataclass(frozen=True)
class CurationStage:
    """One stage.

    Args:
        name: its folder, and the builder in `blocks`.
        what: what it does, in words.
        tasks: how many tasks; those that pass documents on have one per shard of the corpus.
        memory_gb: the most that a task takes, in 10^9 bytes.
        reads: the stage whose documents it reads, shard by shard; "" for the sources themselves.
        needs: stages that have to be done whole, whose files it reads.
        keys: sections of the config that decide what it leaves.
        passes_on: whether it leaves documents.
    """

    name: str
    what: str
    tasks: int
    memory_gb: float
    reads: str | None = None
    needs: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    passes_on: bool = False

    @property
    def depends(self) -> tuple[str, ...]:
        """The stages before which it cannot begin."""
        return tuple(dict.fromkeys([*([self.reads] if self.reads else []), *self.needs]))


def stages(run: config.Curate, tasks: int) -> list[CurationStage]:
    """The stages that the keys switch on, for a corpus of as many shards."""
    built = [
        CurationStage(
            "extract",
            "archives and files to text",
            tasks,
            1.5,
            reads="",
            keys=("sources", "reading", "extraction"),
            passes_on=True,
        )
    ]
    last = built[-1].name
    if run.tokens.enabled:
        built += _tokens(run, tasks, last)
    return built


def _tokens(run: config.Curate, tasks: int, last: str) -> list[CurationStage]:
    before: tuple[str, ...] = ()
    found = []
    if run.tokenizer.kind == "bpe":
        found.append(
            CurationStage("vocabulary", "a BPE, where there is none", 1, 4.0, needs=(last,), keys=("tokenizer",))
        )
        before = ("vocabulary",)
    keys = ("tokenizer", "tokens")
    found.append(CurationStage("tokenize", "text to tokens", tasks, 1.5, reads=last, needs=before, keys=keys))
    found.append(
        CurationStage(
            "tokens", "token files by class and language", run.tokens.parts, 1.5, needs=("tokenize",), keys=keys
        )
    )
    return found


def named(stages: list[CurationStage], name: str) -> CurationStage:
    """The stage of a name. Raises ValueError (key `stage`) where there is none."""
    for stage in stages:
        if stage.name == name:
            return stage
    raise ValueError(
        f"stage={name}: no such stage with these keys; give one of {', '.join(one.name for one in stages)}"
    )
