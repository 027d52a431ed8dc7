"""Few donors, unequal in size: the laws of the cluster-robust test and of the mixed model."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from pyrosplice._expression.engine.donor_sandwich import _law, _tail
from pyrosplice._expression.expression_glm import ExpressionGLM
from pyrosplice._expression.quasi_likelihood import inverse_trigamma

SIZES = np.array([10, 13, 17, 23, 30, 39, 51, 67, 88, 115, 152, 200])


def counts(genes, tau, *, seed=0, mean=2.0, treated=(1, 2, 5, 6, 9, 10), sizes=SIZES):
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(len(sizes)), sizes)
    rate = mean * np.exp(rng.normal(0, tau, (len(sizes), genes)))[donor]
    y = rng.poisson(rng.gamma(2.0, rate / 2)).astype(float)
    return y, pd.DataFrame({"group": np.isin(donor, treated).astype(str), "donor": [f"d{d:02}" for d in donor]})


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.2, 0.6])
@pytest.mark.parametrize("method", ["cluster", "glmm"])
@pytest.mark.parametrize("treated", [(1, 2, 5, 6, 9, 10), (1, 6, 11)])
def test_donors_of_ten_to_two_hundred_cells_keep_their_level(tau, method, treated):
    y, obs = counts(1000, tau, treated=treated, seed=3)
    test = ExpressionGLM("~1+group").fit(y, sample_description=obs).test(factor="group", method=method, donors="donor")
    for level, low, high in ((0.05, 0.02, 0.072), (0.01, 0.001, 0.02)):
        assert low <= np.mean(test.pval < level) <= high


def test_the_tail_of_a_dependent_ratio_is_that_of_draws():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 6)) * np.array([3.0, 1, 2, 0.5, 1, 0.1])
    e, *r = (rng.normal(size=(400_000, 5)) @ root).T
    for t in (0.5, 2.0, 6.0):
        found = _tail(torch.as_tensor(root)[None], torch.tensor([t], dtype=torch.float64))
        drawn = np.mean(e**2 > t**2 * np.square(r).sum(0))
        assert abs(float(found) - drawn) < 5 * np.sqrt(drawn / 400_000)


@pytest.mark.parametrize("t", [1e-3, 0.1, 1.0, 3.0, 30.0, 1e4])
@pytest.mark.parametrize("df", [1, 2, 5, 40])
def test_the_law_of_equal_donors_is_students_t(t, df):
    joint = torch.diag(torch.tensor([1.0] + [1 / df] * df, dtype=torch.float64))[None]
    pval, found = _law(joint, torch.tensor([t], dtype=torch.float64))
    np.testing.assert_allclose(float(pval), 2 * stats.t.sf(t, df), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(float(found), df, rtol=1e-5)


def test_intervals_agree_with_p_values_and_few_genes_have_the_widest():
    y, obs = counts(300, 0.3, seed=5)
    glm = ExpressionGLM("~1+group").fit(y, sample_description=obs)
    test = glm.test(factor="group", method="cluster", donors="donor")
    table = test.summary()
    covered = (table["lower"] < 0) & (table["upper"] > 0)
    np.testing.assert_array_equal(covered, test.pval > 0.05)
    few = ExpressionGLM("~1+group").fit(y[:, :5], sample_description=obs)
    alone = few.test(factor="group", method="cluster", donors="donor")
    np.testing.assert_allclose(alone.statistic, test.statistic[:5], rtol=1e-6)
    assert (alone.df < test.df[:5]).all() and (alone.pval > test.pval[:5]).all()


@pytest.mark.parametrize("method", ["cluster", "glmm"])
def test_a_gene_without_counts_or_separated_changes_no_other(method):
    y, obs = counts(60, 0.3, seed=6)
    bad = np.column_stack([y, np.zeros(len(y)), np.where(obs["group"] == "True", y[:, 0], 0)])
    both = [ExpressionGLM("~1+group").fit(m, sample_description=obs) for m in (y, bad)]
    first, second = (g.test(factor="group", method=method, donors="donor") for g in both)
    np.testing.assert_allclose(first.pval, second.pval[:60], rtol=0.1)
    assert np.isnan(second.pval[60])


def test_the_inverse_of_trigamma_has_its_limits():
    np.testing.assert_allclose(inverse_trigamma(np.array([1e-8, 1e9])), [1e8, 1e9**-0.5])
