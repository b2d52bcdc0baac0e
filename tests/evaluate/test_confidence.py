"""Intervals against their formulas, and against what they promise: to hold the truth 95 times in 100."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llama31.evaluate.confidence import mean_over, paired, proportion, t_quantile


def test_proportions_are_those_of_the_report() -> None:
    result = proportion([1] * 30 + [0] * 70)
    assert result.json() == {"score": 0.3, "ci95": pytest.approx(1.96 * math.sqrt(0.3 * 0.7 / 100)), "count": 100}
    assert result.low == pytest.approx(0.3 - result.ci95)
    assert proportion([True, True]).ci95 == 0 and proportion([[0.5, 1.0]]).score == 0.75
    with pytest.raises(ValueError, match="a score of no outcomes"):
        proportion([])


def test_means_weigh_their_values() -> None:
    mean, ci = mean_over(np.array([0, 1, 2]), np.array([1.0, 3.0, 9.0]), np.array([3.0, 1.0, 0.0]))
    assert mean == 1.5 and ci == pytest.approx(1.96 * math.sqrt(2 * 2 * 1.5**2) / 4)
    assert mean_over(np.zeros(5), np.arange(5.0), np.ones(5)) == (2.0, None)
    with pytest.raises(ValueError, match="a mean of nothing"):
        mean_over(np.zeros(2), np.ones(2), np.zeros(2))


def test_intervals_hold_the_truth_where_values_of_a_document_resemble_each_other() -> None:
    random = np.random.default_rng(0)
    held, naive = 0, 0
    for _ in range(300):
        sizes = random.integers(5, 60, 80)
        documents = np.repeat(np.arange(80), sizes)
        values = 2.0 + random.normal(0, 0.5, 80)[documents] + random.normal(0, 0.5, documents.size)
        mean, ci = mean_over(documents, values, np.ones(documents.size))
        assert ci is not None
        held += abs(mean - 2.0) < ci
        _, alone = mean_over(np.arange(documents.size), values, np.ones(documents.size))
        naive += abs(mean - 2.0) < (alone or 0)
    assert 0.91 < held / 300 < 0.98
    assert naive / 300 < 0.6  # tokens taken for independent promise far too much


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 30, 99, 100])
def test_quantiles_of_t_are_those_of_scipy(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for share in (0.5, 0.6, 0.9, 0.975, 0.995):
        assert t_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-9, abs=1e-12)


def test_quantiles_of_t_as_printed_in_tables() -> None:
    printed = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 9: 2.2622, 29: 2.0452}
    assert {n: round(t_quantile(0.975, n), 4) for n in printed} == printed
    for share, freedom in ((0.4, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="a quantile of share="):
            t_quantile(share, freedom)


def test_paired_differences() -> None:
    mean, half = paired([1.0, 2.0, 3.0, 6.0])
    assert mean == 3 and half == pytest.approx(3.1824463 * math.sqrt(14 / 3) / 2)
    assert paired([0.5]) == (0.5, None)
    with pytest.raises(ValueError, match="no differences"):
        paired([])


def test_intervals_of_paired_differences_hold_the_truth() -> None:
    """Four seeds are few: 1.96 standard errors would hold it 85 times in 100."""
    random = np.random.default_rng(2)
    held = [abs(mean - 0.3) <= half for mean, half in (paired(random.normal(0.3, 1, 4)) for _ in range(4000)) if half]
    assert 0.94 < np.mean(held) < 0.96
