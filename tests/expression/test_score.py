"""The saddlepoint law of the score: tails of small groups, invariance, and what it refuses."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pyrosplice._expression.count_score import NullScore, saddlepoint_test
from pyrosplice._expression.expression_glm import ExpressionGLM
from pyrosplice.errors import InvalidArgumentError
from tests.benchmarks.shrinkage import simulated


def groups(genes, n0, n1, mean, dispersion, *, spread=0.0, seed=0):
    rng = np.random.default_rng(seed)
    size = np.exp(rng.normal(0, spread, n0 + n1))
    y = rng.poisson(rng.gamma(1 / dispersion, dispersion * mean * size[:, None], (n0 + n1, genes))).astype(float)
    return y, pd.DataFrame({"group": ["a"] * n0 + ["b"] * n1, "size": size, "batch": np.arange(n0 + n1) % 3})


@pytest.mark.parametrize(("n1", "mean", "spread"), [(20, 0.2, 0.0), (20, 0.2, 0.5), (50, 0.2, 0.5), (10, 2.0, 0.3)])
def test_five_hundred_cells_against_few_keep_their_level(n1, mean, spread):
    y, obs = groups(3000, 500, n1, mean, 0.5, spread=spread, seed=1)
    glm = ExpressionGLM("~1+group").fit(y, sample_description=obs, size_factors="size")
    pval = glm.test(factor="group", method="score").pval
    for level, low, high in ((0.05, 0.025, 0.06), (0.01, 0.002, 0.014), (0.001, 0.0, 0.003)):
        assert low <= np.mean(pval < level) <= high


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_the_tails_are_those_of_one_sum(alpha):
    # sum of n equal counts: negative binomial itself, or Poisson; tails halfway through the observed count
    n, mean = 25, 0.3
    total = np.arange(0, 30)
    r = n / max(alpha, 1e-9)
    law = stats.nbinom(r, r / (r + n * mean)) if alpha else stats.poisson(n * mean)
    null = NullScore(total - n * mean, np.ones((30, 1)), np.full((30, 1), mean), np.full((30, 1), alpha), np.array([n]))
    root, pval = saddlepoint_test(null)
    middle = law.sf(total) + law.pmf(total) / 2
    inside = (middle > 1e-6) & (total > 1)
    np.testing.assert_allclose(stats.norm.sf(root)[inside], middle[inside], rtol=0.12)
    np.testing.assert_allclose(pval, np.minimum(2 * stats.norm.sf(np.abs(root)), 1))


def test_coordinates_order_and_sparse_rows_change_nothing():
    y, obs = groups(40, 300, 40, 0.5, 0.5, spread=0.4, seed=2)
    glm = ExpressionGLM("~1+group+batch").fit(y, sample_description=obs, size_factors="size")
    first = glm.test(factor="group", method="score")
    turned = ExpressionGLM("~0+group+batch").fit(y[::-1], sample_description=obs[::-1], size_factors="size")
    second = turned.test(turned.cond(group="b") - turned.cond(group="a"), method="score")
    np.testing.assert_allclose(first.pval, second.pval, rtol=1e-6)
    offsets = np.log(obs["size"].to_numpy())[:, None] + np.zeros(y.shape)
    wise = ExpressionGLM("~1+group+batch").fit(y, sample_description=obs, offsets=offsets)
    np.testing.assert_allclose(first.pval, wise.test(factor="group", method="score").pval, rtol=2e-2)
    twice = glm.test(2 * (glm.cond(group="b") - glm.cond(group="a")), method="score")
    np.testing.assert_allclose(first.pval, twice.pval, rtol=1e-8)


def test_large_counts_agree_with_the_likelihood_ratio_and_empty_genes_have_no_test():
    y, obs = groups(50, 200, 200, 20.0, 0.2, seed=3)
    y[:, 0] = 0
    glm = ExpressionGLM("~1+group").fit(y, sample_description=obs)
    score, ratio = (glm.test(factor="group", method=m) for m in ("score", "lrt"))
    assert np.isnan(score.pval[0]) and np.isfinite(score.pval[1:]).all()
    np.testing.assert_allclose(score.pval[1:], ratio.pval[1:], rtol=0.1, atol=1e-3)
    assert (np.sign(score.statistic) == np.sign(score.logfc))[1:].all()


def test_what_it_does_not_take_is_refused():
    y, obs = groups(5, 30, 30, 2.0, 0.5)
    poisson = ExpressionGLM("~1+group", noise_model="poisson").fit(y, sample_description=obs)
    with pytest.raises(InvalidArgumentError, match="noise_model"):
        poisson.test(factor="group", method="score")
    with pytest.raises(InvalidArgumentError, match="weights"):
        weighted = ExpressionGLM("~1+group").fit(y, sample_description=obs, weights=np.full(60, 0.5))
        weighted.test(factor="group", method="score")
    with pytest.raises(InvalidArgumentError, match="one contrast"):
        ExpressionGLM("~1+batch").fit(y, sample_description=obs).test(factor="batch", method="score")


@pytest.mark.parametrize("zeros", [0.0, 0.6])
def test_zeros_beyond_the_noise_are_told_and_the_sandwich_keeps_its_level(zeros):
    y, obs = groups(1000, 150, 150, 8.0, 0.2, seed=4)
    y *= np.random.default_rng(5).random(y.shape) > zeros
    glm = ExpressionGLM("~1+group").fit(y, sample_description=obs)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        wald, again = (glm.test(factor="group", method=m).pval for m in ("wald", "lrt"))
    robust = glm.test(factor="group", method="robust")
    assert 0.03 < np.mean(robust.pval < 0.05) < 0.07 and np.mean(robust.pval < 0.01) < 0.02
    assert (np.median(glm.variance_ratio()) < 0.6) == (zeros > 0)
    if zeros:
        assert len(told) == 1 and "method='robust'" in str(told[0].message) and told[0].filename == __file__
        assert max(np.mean(wald < 0.05), np.mean(again < 0.05)) < 0.02
    else:
        assert not told and abs(np.median(glm.variance_ratio()) - 1) < 0.03


def test_the_sandwich_of_two_groups_of_normal_data_is_nearly_welch():
    rng = np.random.default_rng(6)
    y = np.concatenate([rng.normal(size=(40, 5)), rng.normal(0.3, 3, (12, 5))])
    obs = pd.DataFrame({"group": ["a"] * 40 + ["b"] * 12})
    test = (
        ExpressionGLM("~1+group", noise_model="norm")
        .fit(y, sample_description=obs)
        .test(factor="group", method="robust")
    )
    welch = stats.ttest_ind(y[40:], y[:40], equal_var=False)
    np.testing.assert_allclose(test.statistic, welch.statistic, rtol=1e-8)


def test_a_separated_gene_has_no_sandwich_but_a_score():
    y, obs = groups(30, 200, 20, 0.5, 0.5, seed=7)
    y[200:, 0] = 0
    glm = ExpressionGLM("~1+group").fit(y, sample_description=obs)
    robust, score = (glm.test(factor="group", method=m).pval for m in ("robust", "score"))
    assert np.isnan(robust[0]) and np.isfinite(robust[1:]).all() and np.isfinite(score).all()


@pytest.mark.slow
def test_shrinkage_at_shrunken_dispersions_is_nearer_the_truth_with_few_samples():
    y, table, truth = simulated(600, 6, 0.2, False, seed=3)
    glm = ExpressionGLM("~1+group").fit(y.to_numpy(float), sample_description=table)
    fitted, shrunken = (glm.shrink("group[T.b]", dispersions=d) for d in ("fitted", "shrunken"))
    error = [np.sqrt(np.nanmean(np.square(s["effect"] - truth))) for s in (fitted, shrunken)]
    assert error[1] < error[0] < np.sqrt(np.nanmean(np.square(fitted["effect_mle"].clip(-20, 20) - truth)))
    pd.testing.assert_series_equal(fitted["effect_mle"], shrunken["effect_mle"])
    with pytest.raises(InvalidArgumentError, match="dispersions"):
        glm.shrink("group[T.b]", dispersions="trend")
