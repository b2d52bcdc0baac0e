"""Which tokens a row takes: shares within one row at every prefix, and every token once through all changes."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest

from llama31 import config
from llama31.data.mixture import Mixture, Skip, Weights, from_record, parts, plan, replanned, to_record

RAMP = [
    config.Ramp(from_tokens=1000, batch_tokens=128, sequence_length=32),
    config.Ramp(from_tokens=3000, batch_tokens=256, sequence_length=16),
]


def _schedule(ramp: list[config.Ramp] = [], total_tokens: int = 6000) -> config.Schedule:  # noqa: B006
    return config.Schedule(
        total_tokens=total_tokens, batch_tokens=64, sequence_length=16, ramp=list(ramp), peak_lr=1e-3
    )


def _spans(mixture: Mixture, steps: range) -> list[tuple[int, int, int]]:
    """(source, first token, token behind the last) of every row of the steps, in order."""
    result = []
    for step in steps:
        rows, length = mixture.shape(step)
        draw = mixture.draw(step, np.arange(rows))
        result += [(int(source), int(first), int(first) + length) for source, first in zip(draw.source, draw.position)]
    return result


def _sources(mixture: Mixture, steps: range) -> list[int]:
    return [source for source, _, _ in _spans(mixture, steps)]


WEIGHTS = [
    {"a": 1.0},
    {"a": 0.5, "b": 0.25, "c": 0.17, "d": 0.08},  # the report's data mix, section 3.1.2
    {"a": 0.9, **{f"s{i:02}": 0.1 / 16 for i in range(16)}},
    {"a": 3.0, "b": 0.0, "c": 4.0},
    {"a": 0.123457, "b": 0.700001, "c": 0.176542},
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_shares_hold_within_one_row_at_every_prefix(weights: dict[str, float]) -> None:
    mixture = Mixture(weights, _schedule())
    drawn = np.array(_sources(mixture, range(1000)))
    counts = np.cumsum(drawn[:, None] == np.arange(len(weights)), axis=0)
    whole = np.array(parts([weights[name] for name in mixture.names]))
    shares = whole / whole.sum()
    rows = np.arange(1, drawn.size + 1)[:, None]
    assert np.abs(counts - rows * shares).max() < 1
    given = np.array([weights[name] for name in mixture.names]) / sum(weights.values())
    assert np.abs(shares - given).max() <= 2e-5 and not (shares[given == 0]).any()


def test_parts_are_exact_where_short() -> None:
    assert parts([0.5, 0.25, 0.17, 0.08]) == [50, 25, 17, 8]
    assert parts([2.0, 0.0, 6.0]) == [1, 0, 3]
    assert sum(parts([1.0, 1e-9])) <= 65_537 and min(parts([1.0, 1e-9])) == 1  # rounded, but not to nothing
    exact = [Fraction(part, sum(parts([1.0, 3.0]))) for part in parts([1.0, 3.0])]
    assert exact == [Fraction(1, 4), Fraction(3, 4)]


@pytest.mark.parametrize("decisions", [[], [Weights(500, {"a": 1.0, "b": 5.0}), Weights(3500, {"b": 1.0})]])
def test_every_token_is_drawn_once_through_ramps_and_weights(decisions: list[Weights]) -> None:
    mixture = Mixture({"a": 2.0, "b": 1.0}, _schedule(RAMP), decisions)
    assert {mixture.shape(step) for step in range(60)} == {(4, 16), (4, 32), (16, 16)}
    ends = [0, 0]
    for source, first, end in _spans(mixture, range(60)):
        assert first == ends[source]
        ends[source] = end
    assert mixture.drawn(60) == dict(zip("ab", ends))


@pytest.mark.parametrize("ramp", [[], RAMP])
def test_new_weights_keep_what_was_drawn(ramp: list[config.Ramp]) -> None:
    old = Mixture({"a": 2.0, "b": 1.0, "c": 1.0}, _schedule(ramp))
    new = Mixture({"a": 2.0, "b": 1.0, "c": 1.0}, _schedule(ramp), [Weights(1500, {"b": 9.0, "c": 1.0})])
    change = next(step for step in range(100) if old.shape(step) and _tokens(old, step) >= 1500)
    assert _spans(new, range(change)) == _spans(old, range(change))
    later = _sources(new, range(change, change + 20))
    assert later.count(0) == 0 and abs(later.count(1) - 0.9 * len(later)) < 1
    assert new.weights(1400) == {"a": 2.0, "b": 1.0, "c": 1.0}
    assert new.weights(1500 + 256) == {"a": 0.0, "b": 9.0, "c": 1.0}


def _tokens(mixture: Mixture, step: int) -> int:
    return sum(mixture.shape(i)[0] * mixture.shape(i)[1] for i in range(step))


def _data(mixture: list[tuple[int, dict[str, float]]], **first: float) -> config.Data:
    sources = {name: config.Source(weight=weight) for name, weight in first.items()}
    return config.Data(folder="x", sources=sources, mixture=[config.Mix(*entry) for entry in mixture])


PLANNED = _data([(1000, {"b": 1.0}), (2500, {"a": 1.0, "b": 4.0})], a=2.0, b=1.0)


@pytest.mark.parametrize("ramp", [[], RAMP])
def test_a_planned_mixture_holds_from_the_first_step_that_has_seen_its_tokens(ramp: list[config.Ramp]) -> None:
    first, *changes = plan(PLANNED)
    mixture = Mixture(first.weights, _schedule(ramp), changes)
    by_share: dict[Fraction, list[int]] = {}
    for step in range(60):
        seen = _tokens(mixture, step)
        share = Fraction(1, 3) if seen < 1000 else Fraction(1) if seen < 2500 else Fraction(4, 5)
        by_share.setdefault(share, []).extend(_sources(mixture, range(step, step + 1)))
    for share, drawn in by_share.items():
        assert len(drawn) > 10 and abs(sum(drawn) - share * len(drawn)) < 1
    ends = [0, 0]
    for source, begin, end in _spans(mixture, range(60)):
        assert begin == ends[source]
        ends[source] = end


OTHERS = [
    (_data([(1000, {"b": 1.0}), (2500, {"a": 1.0, "b": 4.0})], a=2.0, b=1.0), False),
    (_data([(1000, {"b": 1.0}), (2500, {"a": 1.0, "b": 4.0})], a=9.0, b=1.0), False),  # of what has passed
    (_data([(2500, {"a": 1.0, "b": 4.0})], a=0.0, b=1.0), False),  # the same from here on, said in another way
    (_data([(1000, {"b": 1.0})], a=2.0, b=1.0), True),  # a change that was to come is off
    (_data([(1000, {"b": 1.0}), (2000, {"a": 1.0}), (3500, {"b": 2.0})], a=2.0, b=1.0), True),
    (_data([(1000, {"a": 3.0, "b": 1.0})], a=2.0, b=1.0), True),  # other weights from here on
    (_data([], a=5.0, b=1.0), True),
]


@pytest.mark.parametrize(("given", "differs"), OTHERS)
@pytest.mark.parametrize("ramp", [[], RAMP])
def test_another_plan_on_resume_keeps_what_was_drawn(
    given: config.Data, differs: bool, ramp: list[config.Ramp]
) -> None:
    first, *changes = plan(PLANNED)
    old = Mixture(first.weights, _schedule(ramp), changes)
    step, tokens = next((step, _tokens(old, step)) for step in range(60) if _tokens(old, step) >= 1500)
    decided = replanned([first, *changes], plan(given), tokens)
    assert bool(decided) == differs
    new = Mixture(first.weights, _schedule(ramp), [*changes, *decided])
    assert _spans(new, range(step)) == _spans(old, range(step))
    wanted = Mixture(plan(given)[0].weights, _schedule(ramp), plan(given)[1:])
    for later in range(step, 60):
        at = _tokens(new, later)
        shares = [[w / sum(m.weights(at).values()) for w in m.weights(at).values()] for m in (new, wanted)]
        assert shares[0] == shares[1]
    again = replanned([first, *changes, *decided], plan(given), _tokens(new, 40))
    assert again == []  # the next resume with this plan has nothing to decide


def test_a_plan_composes_with_skips() -> None:
    """Weights belong to training's tokens, not to the data: a skipped range moves no change of the plan."""
    first, *changes = plan(PLANNED)
    mixture = Mixture(first.weights, _schedule(), [*changes, Skip(3, 30)])
    assert set(_sources(mixture, range(16, 39))) == {1} and 0 in _sources(mixture, range(10, 16))


def test_weights_by_length_are_carried_on() -> None:
    decisions = [Weights(640, {"a": 1.0}, [1.0, 5.0]), Weights(1280, {"a": 2.0})]
    assert [from_record(json.loads(json.dumps(to_record(decision)))) for decision in decisions] == decisions
    chapters = Mixture({"a": 1.0}, _schedule(RAMP), decisions, [1.0, 1.0]).chapters()
    assert [(c.sequence_length, c.lengths) for c in chapters] == [
        (16, (1.0, 1.0)),
        (16, (1.0, 5.0)),
        (32, (1.0, 5.0)),
        (16, (1.0, 5.0)),
    ]
    assert chapters[1].cursors == (640,)


def test_skipped_steps_are_left_out() -> None:
    weights = {"a": 3.0, "b": 1.0}
    plain = Mixture(weights, _schedule())
    skipped = Mixture(weights, _schedule(), [Skip(10, 14)])
    assert _spans(skipped, range(10)) == _spans(plain, range(10))
    assert _spans(skipped, range(10, 30)) == _spans(plain, range(14, 34))
    assert skipped.drawn(10) == plain.drawn(14)


def test_skips_stand_on_each_other() -> None:
    """A later skip, counted in the steps of its own time, never brings back what an earlier one left out."""
    cases = [
        ([Skip(10, 14), Skip(10, 12)], [*range(10), *range(16, 26)]),  # the first batches after the skip were bad too
        ([Skip(10, 14), Skip(5, 7)], [*range(5), 7, 8, 9, *range(14, 30)]),  # rolled back further
        ([Skip(10, 14), Skip(8, 12)], [*range(8), *range(16, 30)]),  # around the first
        ([Skip(0, 3)], list(range(3, 20))),
    ]
    weights = {"a": 1.0, "b": 0.3}
    plain = Mixture(weights, _schedule())
    for decisions, expected in cases:
        mixture = Mixture(weights, _schedule(), decisions)
        for step, original in enumerate(expected):
            assert _spans(mixture, range(step, step + 1)) == _spans(plain, range(original, original + 1))


def test_skip_across_a_ramp_draws_nothing_twice() -> None:
    plain = Mixture({"a": 1.0}, _schedule(RAMP))
    mixture = Mixture({"a": 1.0}, _schedule(RAMP), [Skip(12, 20)])
    spans = _spans(mixture, range(60))
    assert spans[:48] == _spans(plain, range(12)) and spans[48][1] == plain.drawn(20)["a"]
    assert all(later[1] == earlier[2] for earlier, later in itertools.pairwise(spans[48:]))


def test_far_steps_cost_nothing() -> None:
    """405B's pretraining: 15.6T tokens (report, section 3.4.1)."""
    ramp = [
        config.Ramp(252_000_000, 8 << 20, 8192),
        config.Ramp(2_870_000_000_000, 16 << 20, 8192),
    ]
    schedule = config.Schedule(15_600_000_000_000, 4 << 20, 4096, ramp, peak_lr=8e-5)
    mixture = Mixture({"a": 50, "b": 25, "c": 17, "d": 8}, schedule)
    draw = mixture.draw(1_000_000, np.arange(2048))
    assert draw.position.max() > 5e12 and np.bincount(draw.source, minlength=4).tolist() == pytest.approx(
        [1024, 512, 348, 164], abs=1
    )


def test_order_of_the_sources_does_not_matter() -> None:
    one, two = (Mixture(dict(pairs), _schedule()) for pairs in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)]))
    assert _spans(one, range(20)) == _spans(two, range(20))


def test_decisions_survive_json() -> None:
    for decision in (Weights(100, {"a": 1.0}), Skip(3, 7)):
        assert from_record(json.loads(json.dumps(to_record(decision)))) == decision
    with pytest.raises(ValueError, match="no decision about data"):
        from_record({"decision": "stop", "step": 3})


def test_bad_weights_and_skips_are_named() -> None:
    with pytest.raises(ValueError, match=r"data.sources.a.weight=0.0: give weights"):
        Mixture({"a": 0.0}, _schedule())
    with pytest.raises(ValueError, match=r"data.sources.a.weight=-1.0"):
        Mixture({"a": -1.0, "b": 2.0}, _schedule())
    with pytest.raises(ValueError, match="weights name c: data.sources has a only"):
        Mixture({"a": 1.0}, _schedule(), [Weights(0, {"c": 1.0})])
    with pytest.raises(ValueError, match="skips nothing"):
        Mixture({"a": 1.0}, _schedule(), [Skip(5, 5)])
