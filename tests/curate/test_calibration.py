"""Calibration, each figure against the few lines that say what it means."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31.curate.scoring import calibration

SCORES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.51, 0.9, 1.0]), st.booleans()), min_size=1, max_size=30
)


@settings(max_examples=100, deadline=None)
@given(SCORES)
def test_area_under_the_curve_is_the_share_of_pairs_in_order(pairs: list[tuple[float, bool]]) -> None:
    good, bad = ([score for score, is_good in pairs if is_good is kind] for kind in (True, False))
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(good, bad)]
    found = calibration.auc(*zip(*pairs))
    assert found is None if not wins else found == pytest.approx(np.mean(wins))


@settings(max_examples=100, deadline=None)
@given(SCORES)
def test_figures_are_those_of_a_loop_over_bins(pairs: list[tuple[float, bool]]) -> None:
    found = calibration.figures(*zip(*pairs), bins=4)
    error = 0.0
    for low in (0, 0.25, 0.5, 0.75):
        inside = [pair for pair in pairs if low <= pair[0] < low + 0.25 or (pair[0] == 1 and low == 0.75)]
        if inside:
            error += abs(sum(score for score, _ in inside) - sum(good for _, good in inside)) / len(pairs)
    assert found["calibration_error"] == pytest.approx(error)
    assert found["brier"] == pytest.approx(np.mean([(score - good) ** 2 for score, good in pairs]))
    assert sum(one["documents"] for one in found["bins"]) == found["documents"] == len(pairs)
    assert found["accuracy"] == np.mean([(score >= 0.5) == good for score, good in pairs])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.7, 1.0]), min_size=1, max_size=20),
    st.sampled_from([0.01, 0.1, 0.25, 0.3, 0.5, 0.7, 1.0]),
)
def test_the_threshold_is_the_highest_that_keeps_enough(scores: list[float], share: float) -> None:
    found, kept = calibration.threshold(scores, share)
    shares = {least: sum(score >= least for score in scores) / len(scores) for least in scores}
    assert found == max(least for least in scores if shares[least] >= share - 1e-9) and kept == shares[found]


def test_a_scale_is_found_again() -> None:
    chance = np.random.default_rng(3)
    logits = chance.normal(1, 3, 200_000)
    good = chance.random(logits.size) < 1 / (1 + np.exp(-(0.4 * logits - 1.5)))
    slope, intercept = calibration.scale(logits, good)
    assert slope == pytest.approx(0.4, abs=0.01) and intercept == pytest.approx(-1.5, abs=0.02)
    better = calibration.figures(calibration.sigmoid(slope * logits + intercept), good)
    worse = calibration.figures(calibration.sigmoid(logits), good)
    assert better["calibration_error"] < 0.01 < 0.1 < worse["calibration_error"] and better["auc"] == pytest.approx(
        worse["auc"]
    )


@pytest.mark.parametrize("logits", [[-5.0, -4.0, 4.0, 5.0], [0.0, 0.0, 0.0, 0.0], [-1e4, -1.0, 1.0, 1e4], [1, 2, 1, 2]])
def test_a_scale_stays_finite(logits: list[float]) -> None:
    slope, intercept = calibration.scale(logits, [0, 0, 1, 1])
    chances = calibration.sigmoid(slope * np.array(logits) + intercept)
    assert math.isfinite(slope) and math.isfinite(intercept) and ((chances > 0) & (chances < 1)).all()
    assert calibration.scale(logits, [1, 1, 1, 1]) == (1.0, 0.0)


def test_scores_that_are_none_are_refused() -> None:
    for scores in ([0.5, 1.1], [-0.1, 0.2], [math.nan, 0.2]):
        with pytest.raises(ValueError, match="scores: they go from 0 to 1"):
            calibration.figures(scores, [0, 1])
    with pytest.raises(ValueError, match="scores=0, targets=0"):
        calibration.figures([], [])
    with pytest.raises(ValueError, match="share=0 of 1 documents"):
        calibration.threshold([0.5], 0)


def test_the_diagram_is_drawn(tmp_path: Path) -> None:
    one = calibration.figures([0.1, 0.6, 0.9], [0, 1, 1])
    path = calibration.reliability(tmp_path / "reliability.svg", "a model", {"before": one, "after": one})
    assert "a model" in path.read_text() or path.stat().st_size > 10_000
