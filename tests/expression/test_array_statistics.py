"""The documented statistics on arrays, against scipy."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import pyrosplice.api as de
from pyrosplice.errors import InvalidArgumentError

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(2, 30), st.integers(2, 30), st.sampled_from([np.asarray, sp.csr_matrix, sp.coo_array]))
def test_two_groups_of_observations(seed, n0, n1, form):
    rng = np.random.default_rng(seed)
    x0, x1 = rng.poisson(3.0, (n0, 4)).astype(float), rng.poisson(4.0, (n1, 4)).astype(float)
    x0[:2], x1[:2] = [[0.0], [2.0]], [[9.0], [4.0]]
    t = stats.ttest_ind(x0, x1, equal_var=False).pvalue
    np.testing.assert_allclose(de.stats.t_test_raw(form(x0), form(x1)), t, rtol=1e-8)
    u = stats.mannwhitneyu(x0, x1, method="asymptotic").pvalue
    np.testing.assert_allclose(de.stats.mann_whitney_u_test(form(x0), form(x1)), u, rtol=1e-8)
    moments = [x.mean(0) for x in (x0, x1)] + [x.var(0, ddof=1) for x in (x0, x1)]
    np.testing.assert_allclose(de.stats.t_test_moments(*moments, n0, n1), t, rtol=1e-8)
    one = de.stats.t_test_raw(x0[:, 0], x1[:, 0]), de.stats.mann_whitney_u_test(x0[:, 0], x1[:, 0])
    np.testing.assert_allclose(np.concatenate(one), [t[0], u[0]], rtol=1e-8)


@given(SEEDS, st.floats(-5, 5), st.integers(1, 4))
def test_estimates(seed, theta0, k):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 3, (2, 6))
    sa, sb = rng.uniform(0.1, 2, (2, 6))
    np.testing.assert_allclose(de.stats.wald_test(a, sa, theta0), 2 * stats.norm.sf(np.abs(a - theta0) / sa))
    np.testing.assert_allclose(
        de.stats.two_coef_z_test(a, b, sa, sb), 2 * stats.norm.sf(np.abs(a - b) / np.hypot(sa, sb))
    )
    full = rng.uniform(0, 9, 6)
    np.testing.assert_allclose(de.stats.likelihood_ratio_test(full, np.zeros(6), k + 2, 2), stats.chi2.sf(2 * full, k))
    root = rng.normal(size=(6, k, k)) + 3 * np.eye(k)
    covariance, theta = root @ root.transpose(0, 2, 1), rng.normal(size=(k, 6))
    statistic = [(t - theta0) @ np.linalg.inv(v) @ (t - theta0) for t, v in zip(theta.T, covariance, strict=True)]
    found = de.stats.wald_test_chisq(theta, covariance, theta0)
    np.testing.assert_allclose(found, stats.chi2.sf(statistic, k), rtol=1e-7, atol=1e-300)


@given(SEEDS)
def test_sets_of_genes(seed):
    rng = np.random.default_rng(seed)
    background, enquiry = 60, int(rng.integers(1, 40))
    sets = rng.integers(1, 50, 5)
    shared = rng.hypergeometric(sets, background - sets, enquiry)
    table = [[[k, n - k], [enquiry - k, background - n - enquiry + k]] for k, n in zip(shared, sets, strict=True)]
    expected = [stats.fisher_exact(t, alternative="greater").pvalue for t in table]
    np.testing.assert_allclose(de.stats.hypergeom_test(shared, enquiry, sets, background), expected, rtol=1e-8)


def test_tails_do_not_underflow_to_a_difference():
    assert 0 < de.stats.wald_test([30.0], [1.0])[0] < 1e-190
    assert 0 < de.stats.likelihood_ratio_test([400.0], [0.0], 2, 1)[0] < 1e-170
    assert 0 < de.stats.hypergeom_test([100], 100, [100], 1000)[0] < 1e-100


def test_what_is_undefined_is_nan_and_hurts_no_neighbor():
    np.testing.assert_array_equal(np.isnan(de.stats.wald_test([1.0, 1.0, np.nan], [0.0, 1.0, 1.0])), [1, 0, 1])
    np.testing.assert_array_equal(np.isnan(de.stats.two_coef_z_test([1.0, 1], [1, 2], [0, 1], [0, 1])), [1, 0])
    singular = np.stack([np.ones((2, 2)), np.eye(2), np.full((2, 2), np.nan)])
    np.testing.assert_array_equal(np.isnan(de.stats.wald_test_chisq(np.ones((2, 3)), singular)), [1, 0, 1])
    tiny = np.diag([1e-14, 1e12])[None]
    np.testing.assert_allclose(de.stats.wald_test_chisq([[2e-7], [1e6]], tiny), stats.chi2.sf(5, 2))
    assert np.isnan(de.stats.t_test_moments([1], [2], [0], [0], 5, 5)[0])
    assert de.stats.mann_whitney_u_test(np.ones(5), np.ones(4))[0] == 1
    shifted = np.random.default_rng(0).normal(size=(2, 50, 1)) + 1e8
    np.testing.assert_allclose(
        de.stats.t_test_raw(*shifted), stats.ttest_ind(*shifted, equal_var=False).pvalue, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("likelihood_ratio_test", ([1.0], [0.0], 1, 1), "reduced"),
        ("likelihood_ratio_test", ([1.0], [0.0, 1.0], 2, 1), "one shape"),
        ("wald_test", ([1.0, 2.0], [1.0]), "one shape"),
        ("wald_test", ([1.0], [-1.0]), "theta_sd"),
        ("wald_test", (["a"], [1.0]), "theta_mle"),
        ("wald_test", ([1.0, 2.0], [1.0, 1.0], [1.0, 2.0, 3.0]), "theta0"),
        ("wald_test_chisq", (np.ones((2, 3)), np.ones((2, 2, 2))), "theta_covar"),
        ("two_coef_z_test", ([1.0], [1.0], [1.0], [-1.0]), "theta_sd1"),
        ("mann_whitney_u_test", (np.ones((3, 2)), np.ones((3, 1))), "x1"),
        ("t_test_raw", (np.ones((1, 2)), np.ones((3, 2))), "two observations"),
        ("t_test_moments", ([1.0], [1.0], [-1.0], [1.0], 3, 3), "var0"),
        ("t_test_moments", ([1.0], [1.0], [1.0], [1.0], 1, 3), "n0"),
        ("hypergeom_test", ([5], 4, [10], 20), "intersections"),
        ("hypergeom_test", ([1.5], 4, [10], 20), "intersections"),
    ],
)
def test_bad_arrays_are_named(name, arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        getattr(de.stats, name)(*arguments)


@given(
    offset=st.sampled_from([0.0, 1e3, 1e6, 1e8, -1e8]),
    spread=st.sampled_from([1.0, 30.0]),
    make=st.sampled_from([np.asarray, sp.csr_matrix, sp.csc_matrix]),
    seed=st.integers(0, 50),
)
def test_moments_far_from_zero_are_those_near_it(offset, spread, make, seed):
    rng = np.random.default_rng(seed)
    y = np.round(rng.normal(0, spread, (40, 3)) * 2**20) / 2**20  # what an offset leaves to the digit
    y[:, 1] = np.round(y[:, 1]) - 3
    y[:, 2] = 7.25
    y[20:, 2] = 7.5
    group = np.repeat(["a", "b"], 20)
    found = de.test.t_test(make(y + offset), group, is_logged=True, batch_size=7)
    expected = stats.ttest_ind(y[:20, :2], y[20:, :2], equal_var=False)
    np.testing.assert_allclose(found.pval[:2], expected.pvalue, rtol=1e-4)
    assert found.pval[2] == 0.0 and found.zero_variance.tolist() == [False, False, True]
    np.testing.assert_allclose(
        de.stats.t_test_raw(*(make(part + offset) for part in (y[:20, :2], y[20:, :2]))), expected.pvalue, rtol=1e-4
    )
