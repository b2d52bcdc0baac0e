"""The pipeline of a task: which blocks, with which keys, in which order."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any, cast

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from llama31 import config
from llama31.curate.duplicates.buckets import MinhashBuckets
from llama31.curate.duplicates.clusters import ClusterEdges, ClusterLeaves, ClusterRound, Clusters, ClusterSurvivors
from llama31.curate.duplicates.lines import LineDuplicates, LineSignatures, RemoveLines
from llama31.curate.duplicates.preference import Keep
from llama31.curate.duplicates.removal import DropListed
from llama31.curate.duplicates.signatures import MinhashSignatures
from llama31.curate.duplicates.urls import UrlDuplicates, UrlSignatures
from llama31.curate.extraction.page import PageExtractor
from llama31.curate.heuristics.c4 import LineFilter, LineLimits
from llama31.curate.heuristics.coverage import RepeatedContentFilter
from llama31.curate.heuristics.divergence import DivergenceFilter
from llama31.curate.heuristics.quality import QualityFilter, QualityLimits
from llama31.curate.heuristics.repetition import RepetitionFilter, RepetitionLimits
from llama31.curate.heuristics.token_counts import MergeTokenCounts, TokenCounts
from llama31.curate.mixing.classes import ClassAssigner
from llama31.curate.mixing.knowledge import Downsampler
from llama31.curate.packing.tokenized import PackedSources, TokenShards, Vocabulary
from llama31.curate.passage.shards import ShardReader, ShardWriter
from llama31.curate.reading.documents import CountingReader
from llama31.curate.running import folder
from llama31.curate.running.assignment import Assignment
from llama31.curate.running.shares import ClassCounter, Shares, kept_classes
from llama31.curate.safety.adult import AdultWordsFilter
from llama31.curate.safety.domains import DomainFilter
from llama31.curate.safety.personal import PersonalDataFilter
from llama31.curate.scoring.encoder import EncoderFilter
from llama31.curate.scoring.knowledge import KnowledgeLabeller
from llama31.curate.scoring.language import LanguageFilter
from llama31.curate.scoring.quality import FastTextFilter
from llama31.curate.scoring.ranking import RankFilter, ScoreCounter

MERGED_BYTES = 1 << 29  # of sorted files in hand; what is found in them takes as much again
SHORTENING: tuple[type[BaseFilter], ...] = (RepeatedContentFilter, LineFilter, RemoveLines)  # take lines out of texts
RECORDS = ("text_key", "id_key", "url_key", "date_key", "language_key")
SIGNATURES = ("ngram", "buckets", "hashes_per_bucket", "seed", "keep")  # keys of MinHash


def build(given: Assignment) -> list[PipelineStep]:
    """The blocks of a task. Raises ValueError for keys that one of them refuses."""
    return BUILDERS[re.sub(r"_\d+$", "", given.stage.name)](given)


def extract(given: Assignment) -> list[PipelineStep]:
    """Pages of this task's files, as text, and what their URLs are."""
    run = given.run
    mine = folder.share(given.folder, given.rank)["files"]
    readers = [Files(reader(run, name), found, run.sources[name]) for name, found in mine.items()]
    blocks: list[PipelineStep] = [*readers]
    crawled = any(source.format == "warc" for source in run.sources.values())
    known, words = (crawled if one is None else one for one in (run.domains.bundled, run.domains.bundled_words))
    if run.domains.lists or known or words:
        blocks.append(DomainFilter(run.domains.lists, known, words))
    blocks.append(PageExtractor(run.extraction.remove_markdown, run.extraction.technical_marks))
    if run.language.model:
        wanted = run.language.languages or None
        blocks.append(LanguageFilter(run.language.model, run.language.threshold, languages=wanted))
    if run.extraction.count_tokens:
        blocks.append(TokenCounts(str(given.out / "token_counts")))
    blocks.append(ShardWriter(given.documents))
    return [*blocks, UrlSignatures(str(given.out / "urls"), cast(Keep, run.urls.keep))] if run.urls.enabled else blocks


def url_duplicates(given: Assignment) -> list[PipelineStep]:
    """Which documents another one with their URL replaces."""
    return [UrlDuplicates(str(given.folder / "extract/urls"), str(given.out / "listed"), MERGED_BYTES)]


def token_counts(given: Assignment) -> list[PipelineStep]:
    """Tokens of each language in the whole corpus."""
    counted = given.folder / "extract/token_counts"
    return [MergeTokenCounts(str(counted), len(given.inputs), str(given.out / "merged"))]


def filter(given: Assignment) -> list[PipelineStep]:
    """What duplicates and rules leave."""
    blocks: list[PipelineStep] = [_shard(given)]
    if given.run.urls.enabled:
        blocks.append(
            DropListed(str(given.folder / "extract/urls"), str(given.folder / "url_duplicates/listed"), "same URL")
        )
    blocks += _rules(given)
    minhash, cited = given.run.minhash, given.run.cited
    if minhash.enabled and minhash.score == "cited":  # asked again of what is left, whose lines may be fewer
        blocks.append(FastTextFilter(cited.model, key="quality_cited"))
    blocks.append(ShardWriter(given.documents))
    if minhash.enabled:
        settings = {name: getattr(minhash, name) for name in SIGNATURES}
        score = "quality_cited" if minhash.score == "cited" else minhash.score
        blocks.append(MinhashSignatures(str(given.out / "minhash"), **settings, score_key=score))
    return blocks


def minhash_buckets(given: Assignment) -> list[PipelineStep]:
    """Pairs of documents that agree in a bucket."""
    return [MinhashBuckets(str(given.folder / "filter/minhash"), str(given.out / "pairs"), MERGED_BYTES)]


def minhash_clusters(given: Assignment) -> list[PipelineStep]:
    """Which documents go."""
    pairs = str(given.folder / given.stage.needs[0])
    return [Clusters(_signed(given), pairs, str(given.out / "listed"), _memory(given))]


def minhash_edges(given: Assignment) -> list[PipelineStep]:
    """Pairs as edges for the tasks of the rounds."""
    pairs = str(given.folder / given.stage.needs[0])
    return [ClusterEdges(_signed(given), pairs, str(given.out / "edges"), given.stage.tasks, _memory(given))]


def minhash_round(given: Assignment) -> list[PipelineStep]:
    """Edges of the next round."""
    return [ClusterRound(str(given.folder / given.stage.needs[0]), str(given.out / "edges"), _memory(given))]


def minhash_leaves(given: Assignment) -> list[PipelineStep]:
    """Which documents are tied to one alone."""
    edges = str(given.folder / given.stage.needs[0])
    return [ClusterLeaves(_signed(given), edges, str(given.out / "leaves"), _memory(given))]


def minhash_survivors(given: Assignment) -> list[PipelineStep]:
    """Which documents of whole clusters go, and the edges of the others."""
    leaves, listed, rest = given.folder / given.stage.needs[0], given.out / "listed", given.out / "rest"
    return [ClusterSurvivors(_signed(given), str(leaves), str(listed), str(rest), _memory(given))]


def _signed(given: Assignment) -> str:
    return str(given.folder / "filter/minhash")


def _memory(given: Assignment) -> int:
    return int(given.run.minhash.memory_gb * 1e9)


def deduplicate(given: Assignment) -> list[PipelineStep]:
    """Documents that are no near duplicates, and a number for each of their lines."""
    blocks: list[PipelineStep] = [_shard(given)]
    signed = _signed(given)
    if given.run.minhash.enabled:
        listed = [str(given.folder / name) for name in given.stage.needs]
        blocks.append(DropListed(signed, listed, "near duplicate"))
    blocks.append(ShardWriter(given.documents))
    if given.run.lines.enabled:
        # Somewhat more documents than come to this stage, which makes buckets somewhat smaller.
        counted = signed if given.run.minhash.enabled else None
        lines = given.run.lines
        blocks.append(LineSignatures(str(given.out / "lines"), counted, lines.documents, lines.limit))
    return blocks


def line_duplicates(given: Assignment) -> list[PipelineStep]:
    """Lines that stand too often."""
    return [LineDuplicates(str(given.folder / "deduplicate/lines"), str(given.out / "often"), MERGED_BYTES)]


def lines(given: Assignment) -> list[PipelineStep]:
    """Documents without them."""
    signed, often = str(given.folder / "deduplicate/lines"), str(given.folder / "line_duplicates/often")
    return [_shard(given), RemoveLines(signed, often), ShardWriter(given.documents)]


def _rules(given: Assignment) -> list[PipelineStep]:
    """Heuristics, the cheapest and most general first; what changes the text comes after what counts words of all."""
    run, blocks = given.run, list[PipelineStep]()
    if run.repetition.enabled:
        repetition = ProseRepetition if run.repetition.prose_only else RepetitionFilter
        blocks.append(repetition(RepetitionLimits(**_limits(run.repetition))))
    if run.quality.enabled:
        quality = ProseQuality if run.quality.prose_only else QualityFilter
        blocks.append(quality(QualityLimits(**_limits(run.quality))))
    if run.divergence.enabled:
        divergence = ProseDivergence if run.divergence.prose_only else DivergenceFilter
        blocks.append(divergence(str(given.folder / "token_counts/merged"), **_limits(run.divergence)))
    if run.adult.lists:  # before lines go: words of adult pages stand in lists of links and tags
        blocks.append(AdultWordsFilter(run.adult.lists, run.adult.min_distinct, run.adult.min_per_1000_words))
    if run.repeated.enabled:
        blocks.append(RepeatedContentFilter(**_limits(run.repeated)))
    if run.c4.enabled:
        blocks.append(LineFilter(LineLimits(**_limits(run.c4))))
    return [*blocks, PersonalDataFilter()] if run.personal.enabled else blocks


def _limits(section: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(section).items() if name not in ("enabled", "prose_only")}


class _ProseAlone(BaseFilter):
    """Leaves documents alone that took the path of code and mathematics, and counts them as `technical`."""

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        """What the rule says, of prose."""
        if document.metadata.get("extraction") == "technical":
            self.stat_update("technical")
            return True
        return super().filter(document)  # type: ignore[safe-super]


class ProseRepetition(_ProseAlone, RepetitionFilter):
    """Rules on repetition for prose."""


class ProseQuality(_ProseAlone, QualityFilter):
    """Rules on quality for prose."""


class ProseDivergence(_ProseAlone, DivergenceFilter):
    """Divergence of prose: words of code are unlike those of any language."""


def reader(run: config.Curate, name: str) -> CountingReader:
    """The reader of a source."""
    source = run.sources[name]
    data_folder, _ = folder.place(source)
    others: dict[str, Any] = {"language": source.language, "limit_bytes": run.reading.limit_bytes}
    others["limit"] = -1 if run.reading.limit is None else run.reading.limit
    if source.format == "html":
        others["base_url"] = source.base_url
    elif source.format != "warc":
        others |= {key: getattr(source, key) for key in RECORDS} | {"format": source.content}
    return folder.READERS[source.format](data_folder, name, **others)


class Files(PipelineStep):
    """A reader at work on the files of a task, and the class of its source, where that is of one class.

    `files`: of each its bytes and when it was changed (`folder.share`).
    """

    type = "📖 - READER"

    def __init__(self, inner: CountingReader, files: dict[str, list[Any]], source: config.PageSource) -> None:
        self.inner, self.files, self.source, self.stats = inner, files, source, inner.stats
        self.name = f"{inner.name}, {inner.source}"

    @property
    def read_bytes(self) -> int:
        """Bytes of the files that were read so far, as they lie there."""
        whole = itertools.islice(self.files.values(), self.inner.files_read)
        return sum(int(size) for size, _ in whole) + self.inner.place()

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """What came before, and the pages."""
        if data:
            yield from data
        for document in self.inner.read_files_shard(list(self.files)):
            given = document.metadata.pop("class", None)
            ours = given in config.PAGE_KINDS  # as an earlier run left it; others are columns of theirs
            document.metadata |= {"given_class": given} if given is not None and not ours else {}
            if self.source.kind or ours:
                document.metadata["class"] = self.source.kind or given
            yield document


def score(given: Assignment) -> list[PipelineStep]:
    """Scores and classes of documents, and how many have which."""
    run, blocks = given.run, list[PipelineStep]([_shard(given)])
    if run.cited.model:
        blocks.append(FastTextFilter(run.cited.model, key="quality_cited", threshold=run.cited.threshold))
    for name, one in run.encoders.items():
        only = {"extraction": one.only} if one.only else None
        blocks.append(EncoderFilter(one.model, f"quality_{name}", one.label, one.threshold, only=only))
    classes: dict[str, str] = {name: f"quality_{name}" for name in ("code", "mathematics") if name in run.encoders}
    if classes:
        blocks.append(ClassAssigner(classes, dict.fromkeys(classes, run.class_threshold)))
    if run.knowledge.model:
        blocks.append(KnowledgeLabeller(run.knowledge.model))
    blocks.append(ShardWriter(given.documents))
    if run.best.score:
        blocks.append(ScoreCounter(str(given.out / "scores"), f"quality_{run.best.score}"))
    return [*blocks, ClassCounter(given.out / "classes")] if run.knowledge.model else blocks


def ranking(given: Assignment) -> list[PipelineStep]:
    """Thresholds of scores and parts of classes, out of the counts of all tasks."""
    return [Shares(given.files("score"), given.out / "shares", given.run.best, given.run.knowledge)]


def select(given: Assignment) -> list[PipelineStep]:
    """The best of each language, and fewer of the classes that there is too much of."""
    run, shares, blocks = given.run, given.folder / "ranking/shares", list[PipelineStep]([_shard(given)])
    if run.best.score:
        blocks.append(RankFilter(str(shares), f"quality_{run.best.score}"))
    if run.knowledge.model:
        blocks.append(Downsampler(kept_classes(shares)))
    return [*blocks, ShardWriter(given.documents)]


def vocabulary(given: Assignment) -> list[PipelineStep]:
    """The tokenizer, if it is to be trained here."""
    return [Vocabulary(given.shards(given.stage.needs[0].partition("/")[0]), given.run.tokenizer, given.out)]


def tokenize(given: Assignment) -> list[PipelineStep]:
    """Tokens of this task's documents."""
    return [_shard(given), TokenShards(given.out, given.run.tokenizer, given.run.tokens)]


def tokens(given: Assignment) -> list[PipelineStep]:
    """Token files of this task's share of all tasks'."""
    suffix = f"-{given.rank:02d}" if given.stage.tasks > 1 else ""
    return [PackedSources(given.files("tokenize"), given.out, given.run.tokenizer, given.run.tokens, suffix)]


def _shard(given: Assignment) -> ShardReader:
    return ShardReader(given.shards(str(given.stage.reads)))


BUILDERS: dict[str, Callable[[Assignment], list[PipelineStep]]] = {
    builder.__name__: builder
    for builder in (
        extract,
        url_duplicates,
        token_counts,
        filter,
        minhash_buckets,
        minhash_edges,
        minhash_round,
        minhash_leaves,
        minhash_survivors,
        minhash_clusters,
        deduplicate,
        line_duplicates,
        lines,
        score,
        ranking,
        select,
        vocabulary,
        tokenize,
        tokens,
    )
}
