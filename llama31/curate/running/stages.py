"""The stages of curation in their order, as plain data that a run in processes and arrays of Slurm are made from.

A stage works in tasks, each of which reads what is named here and leaves files of its own. A barrier stands between
two stages where `needs` says so: all tasks of the first are done before one of the second begins.
"""

from __future__ import annotations

from dataclasses import dataclass

from llama31 import config

GATHERED = 64  # shards of the corpus for each task of a stage that all others wait for
TOGETHER = 512  # of one that holds a little of each document: of 20,000 each 10M, where 26M have room in 8 GB
# What decides the signatures and what goes with them; more memory or other tasks for the clusters change neither.
SIGNED = tuple(
    f"minhash.{name}" for name in ("enabled", "ngram", "buckets", "hashes_per_bucket", "seed", "keep", "score")
)

LISTING = ("minhash_survivors", "minhash_clusters")


@dataclass(frozen=True)
class CurationStage:
    """One stage.

    Args:
        name: its folder, and the builder in `blocks`.
        what: what it does, in words.
        tasks: how many tasks; those that pass documents on have one per shard of the corpus.
        memory_gb: the most that a task takes, in 10^9 bytes.
        reads: the stage whose documents it reads, shard by shard; "" for the sources themselves.
        needs: folders, `STAGE/FOLDER`, of which it reads the files of all tasks; `shared` where each of its tasks reads
            those of every so many-th task alone.
        keys: sections of the config, or keys of them, that decide what it leaves.
        dealt: of another number of tasks another one leaves a file of the same name.
    """

    name: str
    what: str
    tasks: int
    memory_gb: float
    reads: str | None = None
    needs: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    shared: bool = False
    dealt: bool = False

    @property
    def depends(self) -> tuple[str, ...]:
        """The stages before which it cannot begin."""
        before = [self.reads] if self.reads else []
        return tuple(dict.fromkeys([*before, *(name.partition("/")[0] for name in self.needs)]))


def stages(run: config.Curate, tasks: int) -> list[CurationStage]:
    """The stages that the keys switch on, for a corpus of as many shards."""
    few = -(-tasks // GATHERED)
    keys = ("sources", "reading", "domains", "extraction", "language", "urls")
    built = [CurationStage("extract", "archives and files to text, its language", tasks, 1.5, reads="", keys=keys)]
    listed: tuple[str, ...] = ()
    if run.urls.enabled:
        built.append(
            CurationStage("url_duplicates", "pages of one URL", few, 2.0, needs=("extract/urls",), keys=("urls",))
        )
        listed = ("url_duplicates/listed",)
    if run.divergence.enabled:
        counted = ("extract/token_counts",)
        built.append(
            CurationStage("token_counts", "tokens of each language", 1, 2.0, needs=counted, keys=("divergence",))
        )
        listed += ("token_counts/merged",)
    rules = ("urls", "repetition", "quality", "divergence", "repeated", "c4", "adult", "personal", *SIGNED)
    scored = ("cited.model",) if run.minhash.enabled and run.minhash.score == "cited" else ()
    what, memory = "same URL, heuristics, privacy", 2.0 if scored else 1.5
    built.append(CurationStage("filter", what, tasks, memory, reads="extract", needs=listed, keys=(*rules, *scored)))
    built += _duplicates(run, tasks)
    built += _scores(run, tasks, _last(built))
    last = _last(built)
    return [*built, *(_tokens(run, tasks, last) if run.tokens.enabled else [])]


def _last(built: list[CurationStage]) -> str:
    """The last stage that leaves documents."""
    return [stage.name for stage in built if stage.reads is not None][-1]


def _scores(run: config.Curate, tasks: int, last: str) -> list[CurationStage]:
    """Scores and classes where there is a model, and a second pass where something is to be chosen by all of them."""
    if not (run.cited.model or run.encoders or run.knowledge.model):
        return []
    asked = ("cited", "encoders", "class_threshold", "knowledge.model", "best.score")
    memory, keys = 4.0 if run.encoders or run.knowledge.model else 2.0, ("knowledge", "best")
    built = [CurationStage("score", "scores and classes", tasks, memory, reads=last, keys=asked)]
    if run.best.score or run.knowledge.model:
        counted = ("score/scores", "score/classes")
        built.append(CurationStage("ranking", "thresholds and shares of all", 1, 1.5, needs=counted, keys=keys))
        needs = ("ranking/shares",)
        built.append(
            CurationStage("select", "the best, fewer of a class", tasks, 1.5, reads="score", needs=needs, keys=keys)
        )
    return built


def _duplicates(run: config.Curate, tasks: int) -> list[CurationStage]:
    """Near duplicates, then lines: what is kept of the first is counted for the second."""
    built, last, few = [], "filter", -(-tasks // GATHERED)
    if run.minhash.enabled:
        several = min(run.minhash.buckets, tasks)
        signed = ("filter/minhash",)
        built.append(
            CurationStage(
                "minhash_buckets", "pairs of near duplicates", several, 2.0, needs=signed, keys=SIGNED, dealt=True
            )
        )
        built += _clusters(run, tasks)
    if run.minhash.enabled or run.lines.enabled:
        needs = tuple(f"{stage.name}/listed" for stage in built if stage.name in LISTING)
        keys: tuple[str, ...] = ("minhash.enabled", "lines")
        built.append(
            CurationStage("deduplicate", "without near duplicates", tasks, 2.0, reads=last, needs=needs, keys=keys)
        )
        last = "deduplicate"
    if run.lines.enabled:
        keys, signed = ("lines",), ("deduplicate/lines",)
        built.append(CurationStage("line_duplicates", "frequent lines", few, 2.0, needs=signed, keys=keys))
        needs = ("line_duplicates/often",)
        built.append(CurationStage("lines", "without frequent lines", tasks, 2.0, reads=last, needs=needs, keys=keys))
    return built


def _clusters(run: config.Curate, tasks: int) -> list[CurationStage]:
    """One task, or several in rounds and one for what they left: `duplicates/clusters.py`."""
    memory, signed, built = 1.25 * run.minhash.memory_gb, "filter/minhash", list[CurationStage]()
    several = min(tasks, run.minhash.cluster_tasks or -(-tasks // TOGETHER))
    pairs = "minhash_buckets/pairs"
    keys = ("minhash.cluster_tasks", "minhash.cluster_rounds")
    if several > 1:
        stage = CurationStage("minhash_edges", "pairs, dealt out", several, memory, needs=(pairs, signed), keys=keys)
        built, edges = [stage], "minhash_edges/edges"
        for number in range(1, run.minhash.cluster_rounds + 1):
            name = f"minhash_round_{number}"
            built.append(CurationStage(name, "what hangs together", several, memory, needs=(edges,), keys=keys))
            edges = f"{name}/edges"
        for name, what, before in (
            ("minhash_leaves", "whole clusters", edges),
            ("minhash_survivors", "one of each of them", "minhash_leaves/leaves"),
        ):
            built.append(CurationStage(name, what, several, memory, needs=(before, signed), keys=keys))
        pairs = "minhash_survivors/rest"
    return [*built, CurationStage("minhash_clusters", "one of each cluster", 1, memory, needs=(pairs, signed))]


def _tokens(run: config.Curate, tasks: int, last: str) -> list[CurationStage]:
    keys, built = ("tokenizer", "tokens"), []
    if run.tokenizer.kind == "bpe":
        needs = (f"{last}/documents",)
        built.append(CurationStage("vocabulary", "a BPE, if there is none", 1, 4.0, needs=needs, keys=("tokenizer",)))
    before = tuple(stage.name for stage in built)
    built.append(CurationStage("tokenize", "text to tokens", tasks, 1.5, reads=last, needs=before, keys=keys))
    built.append(
        CurationStage(
            "tokens",
            "token files by class and language",
            min(tasks, run.tokens.parts or -(-tasks // TOGETHER)),
            1.5,
            needs=("tokenize",),
            keys=keys,
            shared=True,
        )
    )
    return built


def named(stages: list[CurationStage], name: str) -> CurationStage:
    """The stage of a name. Raises ValueError (key `stage`) where there is none."""
    for stage in stages:
        if stage.name == name:
            return stage
    raise ValueError(
        f"stage={name}: no such stage with these keys; give one of {', '.join(one.name for one in stages)}"
    )
