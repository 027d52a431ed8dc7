"""How far units' variation is from spherical: limits, known truths, and the size of the test that rests on it."""

import numpy as np
import pytest
from scipy import stats

from pyrosplice._hypothesis.coefficients.sphericity import sphericity
from pyrosplice._hypothesis.coefficients.unit_statistics import ratio_tail, wald_tail


def wishart(rng, n, df, eigenvalues):
    rows = rng.standard_normal((n, df, len(eigenvalues))) * np.sqrt(eigenvalues)
    return np.einsum("guq,gur->gqr", rows, rows) / df


@pytest.mark.parametrize("q", [1, 2, 3, 6])
def test_limits(q):
    """One for what is spherical, a Q-th for what has one direction, whatever the coordinates and the unit."""
    rng = np.random.default_rng(q)
    turn = rng.standard_normal((5, q, q))
    line = turn[:, :, :1] @ np.linalg.inv(turn)[:, :1]
    for df in (2, 4, 7.5, 100):
        np.testing.assert_allclose(sphericity(7.0 * np.tile(np.eye(q), (2, 1, 1)), df), 1.0)
        np.testing.assert_allclose(sphericity(1e-9 * line, df), 1 / q)
        found = sphericity(wishart(rng, 200, 6, np.ones(q)), df)
        assert ((found >= 1 / q) & (found <= 1)).all()
    missing = np.full((3, q, q), np.nan)
    missing[1], missing[2] = np.inf, 0.0
    np.testing.assert_array_equal(sphericity(missing, 6), 1.0)
    np.testing.assert_array_equal(sphericity(line, 1), 1.0)


def test_of_many_units_it_is_the_truth():
    values = np.array([1.0, 0.5, 0.1])
    found = sphericity(wishart(np.random.default_rng(0), 50, 20_000, values), 20_000)
    np.testing.assert_allclose(found, values.sum() ** 2 / (3 * np.square(values).sum()), rtol=0.02)


@pytest.mark.parametrize("df", [4, 6, 10])
@pytest.mark.parametrize("q", [2, 3, 5])
@pytest.mark.parametrize("others", [1.0, 0.3, 0.1, 0.0])
def test_size_where_predictors_vary_unequally(q, df, others):
    """20,000 normal genes; a law of one variance would reject too often, so that this test would show it."""
    rng, n = np.random.default_rng(df + q), 20_000
    values = np.array([1.0] + [max(others, 1e-9)] * (q - 1))
    variation = wishart(rng, n, df, values)
    estimate = rng.standard_normal((n, q)) * np.sqrt(values)
    statistic = q * np.square(estimate).sum(1) / np.trace(variation, axis1=1, axis2=2)
    share, freedom = sphericity(variation, df), np.full(n, float(q * df))
    pvalue = wald_tail(statistic, q, freedom, sphericity=share)
    for level, least, most in ((0.05, 0.2, 1.15), (0.01, 0.05, 1.5), (0.001, 0.0, 3.0)):
        chance = 3 * np.sqrt(level / n)
        assert least * level - chance < (pvalue < level).mean() < most * level + chance
    assert others > 0 or abs((pvalue < 0.05).mean() - 0.05) < 3 * np.sqrt(0.05 / n)
    size = (pvalue < 0.05).mean()
    assert others == 1.0 or (wald_tail(statistic, q, freedom) < 0.05).mean() > max(1.15 * size, 0.06)


def test_tails_are_those_of_f_with_a_share_of_both_degrees_of_freedom():
    statistic, df, share = np.array([3.0, 9.0, 9.0]), np.array([12.0, 12.0, np.inf]), np.array([0.5, 1.0, 1.0])
    expected = [stats.f.sf(1.0, 1.5, 6.0), stats.f.sf(3.0, 3, 12.0), stats.chi2.sf(9.0, 3)]
    np.testing.assert_allclose(wald_tail(statistic, 3, df, sphericity=share), expected)
    ratio = np.where(np.isfinite(df), 20 * np.log1p(statistic / np.where(np.isfinite(df), df, 1.0)), statistic)
    np.testing.assert_allclose(ratio_tail(ratio, 3, df, np.full(3, 20.0), sphericity=share), expected)
    for below_one in (0.3, 0.9):  # a number that a person gives stays
        found = wald_tail(statistic[:1], 3, np.array([below_one]))
        np.testing.assert_allclose(found, stats.f.sf(1.0, 3, below_one))
