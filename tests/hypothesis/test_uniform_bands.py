"""Exact intervals and bands against scipy, closed forms and simulation."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest, kstest

from pyrosplice._hypothesis.uniform_bands import exact_interval, order_band, rank_band, rank_pvalue, staying_probability


@pytest.mark.parametrize(("rejected", "tests"), [(0, 7), (3, 100), (50, 1000), (1000, 1000), (1, 2)])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_intervals_are_scipys(rejected, tests, confidence):
    expected = binomtest(rejected, tests).proportion_ci(confidence, method="exact")
    np.testing.assert_allclose(exact_interval(rejected, tests, confidence), expected, rtol=1e-9, atol=1e-12)


def test_no_tests_have_no_interval():
    assert np.isnan(exact_interval(0, 0)).all()


def test_one_point_is_binomial_and_two_are_multinomial():
    low, high, n = np.array([2]), np.array([5]), 11
    expected = binom.cdf(5, n, 0.3) - binom.cdf(1, n, 0.3)
    assert staying_probability(np.array([0.3]), low, high, n) == pytest.approx(expected, abs=1e-12)
    both = sum(
        binom.pmf(a, n, 0.2) * binom.pmf(b - a, n - a, 0.5 / 0.8) for a in range(1, 4) for b in range(6, 10) if b >= a
    )
    found = staying_probability(np.array([0.2, 0.7]), np.array([1, 6]), np.array([3, 9]), n)
    assert found == pytest.approx(both, abs=1e-12)


def test_the_chance_of_kolmogorovs_statistic_is_scipys():
    n = 30
    uniform = np.sort(np.random.default_rng(1).uniform(size=n))
    distance = kstest(uniform, "uniform", method="exact")
    rank = np.arange(1, n + 1)
    low, high = np.clip(rank / n - distance.statistic, 0, 1), np.clip((rank - 1) / n + distance.statistic, 0, 1)
    points = np.sort(np.concatenate([low, high]))
    least, most = np.searchsorted(high, points, side="right"), np.searchsorted(low, points, side="left")
    most[points == 0], least[points == 1] = n, 0
    assert 1 - staying_probability(points, least, most, n) == pytest.approx(distance.pvalue, abs=1e-9)


@pytest.mark.parametrize("size", [1, 2, 17, 200])
def test_order_statistics_stay_in_the_band_together_as_often_as_it_says(size):
    low, high = order_band(size, 0.9, simultaneous=True)
    uniform = np.sort(np.random.default_rng(size).uniform(size=(20_000, size)), 1)
    share = ((uniform >= low) & (uniform <= high)).all(1).mean()
    assert abs(share - 0.9) < 0.009
    each = order_band(size, 0.9, simultaneous=False)
    assert (low <= each[0]).all() and (high >= each[1]).all()


@pytest.mark.parametrize(("n", "n_ranks"), [(40, 10), (100, 20)])
def test_ranks_stay_in_their_band_and_have_valid_pvalues(n, n_ranks):
    ranks = np.random.default_rng(2).integers(0, n_ranks, (4_000, n))
    below = np.stack([(ranks < k).sum(1) for k in range(1, n_ranks)], 1)
    low, high = rank_band(n, n_ranks, 0.95)
    outside = ((below < low) | (below > high)).any(1)
    assert 0.03 < outside.mean() < 0.06  # the counts go in steps: never above .05 but by chance
    pvalue = np.array([rank_pvalue(some, n_ranks) for some in ranks[:600]])
    np.testing.assert_array_equal(pvalue < 0.05, outside[:600])
    assert binom.ppf(0.001, 600, 0.03) <= (pvalue < 0.05).sum() <= binom.ppf(0.999, 600, 0.05)
    assert rank_pvalue(np.zeros(n, dtype=int), n_ranks) < 1e-8
