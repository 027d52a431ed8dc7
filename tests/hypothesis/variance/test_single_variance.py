"""The law of the ratio of one variance, beside draws of it and beside its limit."""

import numpy as np
import pytest
from scipy import stats

from pyrosplice._hypothesis.variance.single_variance import mixture_sf, single_variance_sf


def drawn_ratios(eigenvalues, n, seed):
    """The supremum over a grid of variances."""
    squares = np.random.default_rng(seed).chisquare(1, (n, len(eigenvalues)))
    best = np.zeros(n)
    for size in np.exp(np.linspace(-6, 8, 80)) / eigenvalues.mean():
        known = size * eigenvalues
        np.maximum(best, squares @ (known / (1 + known)) - np.log1p(known).sum(), out=best)
    return best


def effective(eigenvalues):
    return eigenvalues.sum() ** 2 / (eigenvalues**2).sum()


@pytest.mark.parametrize("k", [1, 5, 11, 39])
def test_law_of_equal_groups_is_exact(k):
    ratios = drawn_ratios(np.ones(k), 40_000, k)
    for chance in (0.3, 0.05, 0.01):
        cut = np.quantile(ratios, 1 - chance)
        found = single_variance_sf(np.array([cut]), np.array([float(k)]))[0]
        assert found == pytest.approx(chance, rel=5 / np.sqrt(chance * 40_000))


@pytest.mark.parametrize("seed", range(6))
def test_law_of_unequal_groups_is_near_theirs(seed):
    rng = np.random.default_rng(seed)
    eigenvalues = np.exp(rng.normal(0, rng.uniform(0.3, 1.5), rng.integers(4, 40)))
    ratios = drawn_ratios(eigenvalues, 40_000, seed)
    for chance in (0.05, 0.01):
        cut = np.quantile(ratios, 1 - chance)
        found = single_variance_sf(np.array([cut]), np.array([effective(eigenvalues)]))[0]
        assert found == pytest.approx(chance, rel=0.1 + 4 / np.sqrt(chance * 40_000))


def test_many_groups_are_the_equal_mixture_and_few_reject_more():
    ratio = np.array([0.5, 2.7, 6.6, 30.0])
    limit = 0.5 * stats.chi2.sf(ratio, 1)
    np.testing.assert_allclose(single_variance_sf(ratio, np.full(4, 1e7)), limit, rtol=5e-3)
    few = single_variance_sf(ratio, np.full(4, 5.0))
    assert (few < limit).all() and (few > limit / 10).all()
    np.testing.assert_allclose(mixture_sf(ratio, 1), limit)


@pytest.mark.parametrize("freedom", [0.7, 5.0, 300.0])
def test_chances_fall_from_one_and_reach_far(freedom):
    ratio = np.array([0.0, 1e-6, 1e-3, 0.1, 1.0, 10.0, 100.0, 1200.0])
    chance = single_variance_sf(ratio, np.full(8, freedom))
    assert (chance[:2] == 1).all() and (np.diff(chance[1:]) < 0).all() and chance[-1] >= 0
    assert chance[2] == pytest.approx(stats.chi2.sf(freedom, freedom), rel=0.1)
    missing = single_variance_sf(np.array([np.nan, 3.0]), np.array([freedom, np.nan]))
    assert np.isnan(missing).all()


def test_mixture_of_several_parameters():
    ratio = np.array([0.0, 3.0, np.nan])
    found = mixture_sf(ratio, 2)
    assert found[0] == 1 and np.isnan(found[2])
    assert found[1] == pytest.approx(0.5 * (stats.chi2.sf(3, 1) + stats.chi2.sf(3, 2)))
