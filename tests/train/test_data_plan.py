"""Mixture and order of the documents as a run's config states them: refused where wrong, exact through every resume."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama31 import config
from llama31.checkpoint.publish import Meta
from llama31.command import entry, written
from llama31.command.validate import validate
from llama31.config import ConfigError
from llama31.data.batches import Batches, Rows
from llama31.data.mixture import Decision, Skip, Weights, to_record
from llama31.resilience import resume
from llama31.tokens import packed
from llama31.train.feeds import TextFeed
from tests.data.conftest import packed_source  # noqa: F401 - a fixture

pytestmark = pytest.mark.torch  # `runs` imports it

RAMP = [config.Ramp(from_tokens=1024, batch_tokens=128, sequence_length=64)]


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(entry.compose(config.Pretrain, "demo", overrides), 1)
    assert all(issue.key and issue.problem and issue.remedy for issue in caught.value.issues)
    return [str(issue) for issue in caught.value.issues]


def test_all_that_is_wrong_with_a_mixture_is_named_at_once() -> None:
    entries = [
        "{from_tokens:1e9,weights:{python:1,web:2}}",
        "{from_tokens:50,weights:{docs:0}}",
        "{from_tokens:50,weights:{}}",
        "{from_tokens:0,weights:{docs:1},length_weights:[1,2]}",
    ]
    result = refused(f"data.mixture=[{','.join(entries)}]")
    assert result == [
        "data.mixture=[1000000000, 50, 50, 0]: its from_tokens do not grow from above 0; put it in order",
        "data.mixture[0].from_tokens=1000000000: training ends before, at schedule.total_tokens=409600; give less, or "
        "leave this entry out",
        "data.mixture[0].weights.web=2.0: no such source; give some of python, docs",
        "data.mixture[1].weights={'docs': 0.0}: nothing would be drawn; give a weight above 0",
        "data.mixture[2].weights={}: nothing would be drawn; give a weight above 0",
        "data.mixture[3].length_weights=[1.0, 2.0]: there are 0 data.length_buckets; give one weight for each",
    ]


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ("[{min_tokens:5}]", "data.length_buckets=[5]: its min_tokens do not grow from 0; begin with 0, and put it in"),
        ("[{min_tokens:0},{min_tokens:0}]", "data.length_buckets=[0, 0]: its min_tokens do not grow from 0"),
        ("[{min_tokens:0,weight:0}]", "data.length_buckets=[0.0]: no weights; give numbers of at least 0, one of"),
        (
            "[{min_tokens:0},{min_tokens:9,weight:101}]",
            "data.length_buckets=[1.0, 101.0]: some documents would be read",
        ),
    ],
)
def test_buckets_that_cannot_be_are_named(buckets: str, message: str) -> None:
    result = refused("data.packing=whole", f"data.length_buckets={buckets}")
    assert len(result) == 1 and result[0].startswith(message)


def test_buckets_need_whole_documents() -> None:
    assert refused("data.length_buckets=[{min_tokens:0}]") == [
        "data.length_buckets=[0]: rows of data.packing=stream are cut from the text as it stands; give "
        "data.packing=whole, or no buckets"
    ]


@pytest.mark.parametrize("weights", ["{python:-1}", "{python:true}", "{python:much}", "7"])
def test_weights_of_a_mixture_have_a_type_and_bounds(weights: str) -> None:
    with pytest.raises(ConfigError, match=r"data.mixture\[0\].weights.*(wrong type|out of range)"):
        entry.compose(config.Pretrain, "demo", [f"data.mixture=[{{from_tokens:9,weights:{weights}}}]"])


def test_a_mixture_composes_and_is_written_back() -> None:
    mixture = "data.mixture=[{from_tokens:1e5,weights:{python:1,docs:2.5}},{from_tokens:2e5,weights:{docs:1}}]"
    run = entry.compose(config.Pretrain, "demo", [mixture, "data.packing=whole"])
    assert validate(run, 1) == []
    assert run.data.mixture == [config.Mix(100_000, {"python": 1.0, "docs": 2.5}), config.Mix(200_000, {"docs": 1.0})]
    assert "from_tokens: 200000" in written.to_yaml(run)


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, packed_source: Callable[..., None]) -> config.Pretrain:  # noqa: F811
    rng = np.random.default_rng(0)
    packed_source("a", rng.integers(1, 60, 100).tolist())
    packed_source("b", rng.integers(1, 20, 300).tolist(), first=50_000)
    data = config.Data(
        folder=str(tmp_path),
        sources={"a": config.Source(weight=3.0), "b": config.Source()},
        mixture=[config.Mix(640, {"b": 1.0}), config.Mix(1600, {"a": 1.0, "b": 2.0}, [1.0, 4.0])],
        packing="whole",
        length_buckets=[config.Bucket(0), config.Bucket(12, 2.0)],
    )
    schedule = config.Schedule(4096, 64, 16, list(RAMP), peak_lr=1e-3)
    return config.Pretrain("x", folder=str(tmp_path / "run"), model=config.Model("m", 1, 8, 8, 1, 1), data=data,
        schedule=schedule)  # fmt: skip


def opened(run: config.Pretrain, start: resume.Start) -> tuple[TextFeed, dict[str, Any], list[Decision]]:
    text = TextFeed(run.data, run.schedule)
    decisions = text.begin(start)
    return text, text.extra(), decisions


def saved(run: config.Pretrain, step: int, given: tuple[TextFeed, dict[str, Any], list[Decision]]) -> resume.Start:
    """What a resume finds after `step` steps."""
    text, record, decisions = given
    tokens = sum(np.prod(text.batch_shape(i)) for i in range(step))
    meta = Meta(
        dataclasses.asdict(run.model),
        step,
        int(tokens),
        schedule=dataclasses.asdict(run.schedule),
        decisions=[to_record(decision) for decision in decisions],
        extra={"updates": step, **record},
    )
    return resume.Start(None, Meta(**json.loads(json.dumps(dataclasses.asdict(meta)))), step)


def steps(batches: TextFeed | Batches, which: range) -> list[Rows]:
    return [batches.rows(step, np.arange(batches.batch_shape(step)[0])) for step in which]


def assert_equal(one: list[Rows], two: list[Rows]) -> None:
    for left, right in zip(one, two, strict=True):
        assert all(np.array_equal(getattr(left, key), getattr(right, key)) for key in Rows.__dataclass_fields__)


@pytest.mark.parametrize("packing", ["whole", "stream"])
def test_every_batch_is_the_same_after_resumes_in_all_stages(run: config.Pretrain, packing: str) -> None:
    if packing == "stream":
        run.data = dataclasses.replace(run.data, packing="stream", length_buckets=[])
        run.data.mixture = [dataclasses.replace(mix, length_weights=[]) for mix in run.data.mixture]
    first = opened(run, resume.Start())
    assert [decision for decision in first[2] if isinstance(decision, Weights)] == first[2] and len(first[2]) == 2
    expected = steps(Batches(run.data, run.schedule), range(40))
    given, begun = first, 0
    for step in (4, 10, 13, 16, 20, 21, 33):  # inside and at the edges of every stage of mixture and ramp
        assert_equal(steps(given[0], range(begun, step)), expected[begun:step])
        given, begun = opened(run, saved(run, step, given)), step
        assert given[2] == first[2]
    assert_equal(steps(given[0], range(40)), expected)


def test_another_plan_holds_from_the_resume_on(run: config.Pretrain) -> None:
    first = opened(run, resume.Start())
    start = saved(run, 12, first)
    changed = dataclasses.replace(
        run.data, mixture=[config.Mix(640, {"a": 1.0}), config.Mix(2048, {"b": 1.0}, [0.0, 1.0])]
    )
    other = dataclasses.replace(run, data=changed)
    given = opened(other, start)
    assert_equal(steps(given[0], range(12)), steps(first[0], range(12)))
    source = [set(rows.source.tolist()) for rows in steps(given[0], range(12, 40))]
    assert source == [{0}] * 12 + [{1}] * 16
    assert [to_record(decision) for decision in given[2][2:]] == [
        {"decision": "weights", "from_tokens": 768, "weights": {"a": 1.0}, "lengths": [1.0, 2.0]},
        {"decision": "weights", "from_tokens": 1600, "weights": {"a": 1.0}, "lengths": [1.0, 2.0]},
        {"decision": "weights", "from_tokens": 2048, "weights": {"b": 1.0}, "lengths": [0.0, 1.0]},
    ]
    again = opened(other, saved(other, 30, given))
    assert again[2] == given[2]
    assert_equal(steps(again[0], range(40)), steps(given[0], range(40)))


def test_a_plan_composes_with_skipped_ranges(run: config.Pretrain) -> None:
    first = opened(run, resume.Start())
    start = saved(run, 9, (first[0], first[1], [*first[2], Skip(7, 9)]))
    given = opened(run, start)
    assert given[2] == [*first[2], Skip(7, 9)]
    assert_equal(steps(given[0], range(7)), steps(first[0], range(7)))
    again = opened(run, saved(run, 22, given))
    assert_equal(steps(again[0], range(40)), steps(given[0], range(40)))


def test_another_order_of_the_documents_is_refused(run: config.Pretrain) -> None:
    start = saved(run, 9, opened(run, resume.Start()))
    assert start.resumed is not None
    resume.check_order(run.data, start.resumed)
    run.data = dataclasses.replace(run.data, packing="stream", seed=7, length_buckets=[])
    with pytest.raises(ValueError) as caught:
        resume.check_order(run.data, start.resumed)
    for part in (
        "data.seed=7: ",
        "data.packing=stream: ",
        "data.length_buckets=[]: ",
        "give data.seed=1234, data.pack",
    ):
        assert part in str(caught.value)


def test_data_whose_documents_end_otherwise_begin_no_run(run: config.Pretrain, monkeypatch: pytest.MonkeyPatch) -> None:
    words = types.SimpleNamespace(fingerprint="t", eos_id=7)
    monkeypatch.setattr(
        packed, "wrong_end", lambda data, name, record, documents, eos_id: f"{name} ends otherwise than {eos_id}"
    )
    model = dataclasses.replace(run.model, vocab_size=100_000)
    given = opened(run, resume.Start())
    with pytest.raises(ValueError, match="a ends otherwise than 7; pack it again"):
        given[0].check(model, words)
    resumed, *_ = opened(run, saved(run, 4, given))
    with pytest.warns(UserWarning, match="b ends otherwise than 7; this run began with them"):
        resumed.check(model, words)
