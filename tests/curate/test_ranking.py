"""The best of each language against a sorted list, on any number of tasks."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document

from llama31.curate.scoring import ranking


def corpus(count: int, scores: list[float], seed: int = 0) -> list[Document]:
    chance = random.Random(seed)
    return [
        Document(
            text="x" * chance.randint(1, 50),
            id=f"d{i}",
            metadata={"language": chance.choice(["de", "de", "hi", ""]), "quality": scores[i % len(scores)]},
        )
        for i in range(count)
    ]


def kept(
    folder: Path, given: list[Document], tasks: int, share: float, unit: str = "documents", **shares: float
) -> Any:
    for rank in range(tasks):
        passed = [*ranking.ScoreCounter(str(folder), "quality", unit).run(iter(given[rank::tasks]), rank, tasks)]
        assert passed == given[rank::tasks]
    ranking.merge(folder, share, shares)
    block = ranking.RankFilter(str(folder), "quality")
    ids = {one.id for rank in range(tasks) for one in block.run(iter(given[rank::tasks]), rank, tasks)}
    return ids, {name: int(stat.total) for name, stat in block.stats.stats.items()}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_the_best_of_each_language_are_those_of_a_sorted_list(share: float, tmp_path: Path) -> None:
    given = corpus(600, [place / 10_000 for place in random.Random(1).sample(range(10_001), 600)])
    ids, counts = kept(tmp_path, given, 3, share, hi=0.25)
    by_language: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for one in given:
        by_language[one.metadata["language"]].append((one.metadata["quality"], one.id))
    for language, ranked in by_language.items():
        wanted = (0.25 if language == "hi" else share) * len(ranked)
        best = [id_ for _, id_ in sorted(ranked, reverse=True)]
        found = {id_ for id_ in best if id_ in ids}
        # Where the share is no whole number, a coin of the next one decides.
        assert found in ({*best[: int(wanted + 1e-9)]}, {*best[: int(wanted + 1e-9) + 1]})
    assert counts.get("dropped", 0) == len(given) - len(ids)


def test_tasks_and_order_change_nothing(tmp_path: Path) -> None:
    given = corpus(500, [0.1, 0.1, 0.5, 0.5, 0.5, 0.9])
    results = [kept(tmp_path / str(tasks), given, tasks, 0.4)[0] for tasks in (1, 4)]
    random.Random(2).shuffle(given)
    assert results[0] == results[1] == kept(tmp_path / "shuffled", given, 2, 0.4)[0] and 150 < len(results[0]) < 250


def test_equal_scores_are_shared_out(tmp_path: Path) -> None:
    ids, _ = kept(tmp_path, corpus(4000, [1.0]), 1, 0.3)
    assert len(ids) / 4000 == pytest.approx(0.3, abs=0.03)


def test_shares_of_characters(tmp_path: Path) -> None:
    given = corpus(2000, [place / 10_000 for place in range(2000)])
    ids, _ = kept(tmp_path, given, 2, 0.5, "characters")
    for language in ("de", "hi", ""):
        mine = [one for one in given if one.metadata["language"] == language]
        length = sum(len(one.text) for one in mine)
        assert abs(sum(len(one.text) for one in mine if one.id in ids) - length / 2) <= 50


def test_what_has_no_score_is_dropped_and_counted(tmp_path: Path) -> None:
    given = [*corpus(10, [0.5]), Document(text="x", id="without", metadata={"language": "de"})]
    ids, counts = kept(tmp_path, given, 1, 1.0)
    assert "without" not in ids and counts["dropped_without a score"] == 1 and counts["forwarded"] == 10


def test_passes_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="counts of 0 tasks"):
        ranking.merge(tmp_path, 0.5)
    [*ranking.ScoreCounter(str(tmp_path), "quality").run(iter(corpus(4, [0.5])), 0, 2)]
    with pytest.raises(ValueError, match="counts of 1 tasks, and 2 are needed"):
        ranking.merge(tmp_path, 0.5)
    [*ranking.ScoreCounter(str(tmp_path), "quality").run(iter(()), 1, 2)]
    with pytest.raises(ValueError, match="de=2: give a share"):
        ranking.merge(tmp_path, 0.5, {"de": 2})
    with pytest.raises(ValueError, match="no ranking.json there"):
        [*ranking.RankFilter(str(tmp_path), "quality").run(iter(corpus(1, [0.5])))]
    ranking.merge(tmp_path, 0.5)
    other = Document(text="x", id="x", metadata={"language": "th", "quality": 0.5})
    with pytest.raises(ValueError, match="has seen no th"):
        [*ranking.RankFilter(str(tmp_path), "quality").run(iter([other]))]
    assert json.loads((tmp_path / "ranking.json").read_text())["share"] == 0.5
    with pytest.raises(ValueError, match="unit=tokens"):
        ranking.ScoreCounter(str(tmp_path), "quality", "tokens")


def test_chances_are_even() -> None:
    drawn = [ranking.chance(f"d{i}") for i in range(10_000)]
    assert all(abs(sum(one < part for one in drawn) - part * 10_000) < 200 for part in (0.1, 0.5, 0.9))
    assert ranking.chance("d1") != ranking.chance("d1", "salt") and 0 <= min(drawn) <= max(drawn) < 1
