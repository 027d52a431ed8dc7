"""Tests against a fold change of a size: level at the ends of the null, the test itself at zero, refused elsewhere."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import pyrosplice.api as de
from pyrosplice import ExpressionGLM
from pyrosplice._hypothesis.beyond_threshold import threshold_test
from pyrosplice.errors import InvalidArgumentError


@pytest.mark.parametrize("df", [None, 5.0, np.inf])
def test_the_law_is_uniform_at_both_ends_and_the_two_sided_test_at_zero(df):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(200_000)
    se = np.ones_like(noise) if df in (None, np.inf) else np.sqrt(rng.chisquare(df, len(noise)) / df)
    for end in (-1.0, 1.0):
        _, p = threshold_test(end + noise, se, 1.0, df)
        for level in (0.01, 0.05):
            error = 4 * np.sqrt(level / len(noise))
            least = 0.9 * level if df == 5 else level  # with few degrees of freedom a little less
            assert least - error < (p <= level).mean() < level + error, (df, end)
        assert (threshold_test(0.5 * end + noise, se, 1.0, df)[1] <= 0.05).mean() < 0.05
    tail = stats.norm.sf(np.abs(noise) / se) if df in (None, np.inf) else stats.t.sf(np.abs(noise) / se, df)
    np.testing.assert_allclose(threshold_test(noise, se, 0.0, df)[1], 2 * tail, rtol=1e-12)


def test_the_p_value_rises_with_the_threshold_and_knows_no_sign():
    effect, se = np.array([2.0, -2.0, 0.0, np.nan, 1.0, 1.0]), np.array([0.5, 0.5, 1.0, 1.0, np.inf, 0.0])
    grid = [threshold_test(effect, se, c, None)[1] for c in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert (np.diff(np.stack(grid)[:, :3], axis=0) >= 0).all() and np.isnan(grid[2][3:]).all()
    assert grid[2][0] == grid[2][1] and np.nanmax(grid[4]) <= 1 and grid[3][2] > 0.9


def simulated(lfc: float, seed: int, *, donors: bool) -> tuple[np.ndarray, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"g": np.repeat(["a", "b"], 60), "donor": np.repeat([f"d{i}" for i in range(12)], 10)})
    level = 0.3 * rng.standard_normal((12, 150))[np.repeat(np.arange(12), 10)] if donors else 0.0
    mean = np.exp(np.log(8.0) + level + (obs["g"] == "b").to_numpy()[:, None] * lfc * np.log(2) * np.ones(150))
    return rng.negative_binomial(5, 5 / (5 + mean)), obs


@pytest.mark.parametrize("method", ["wald", "robust", "glmm", "random"])
def test_genes_at_the_boundary_are_found_as_often_as_the_level_says(method):
    beside = method in ("glmm", "random")
    found = []
    for seed, lfc in ((1, 1.0), (2, -1.0)):
        counts, obs = simulated(lfc, seed, donors=beside)
        glm = ExpressionGLM("~ g + (1 | donor)" if method == "random" else "~ g").fit(counts, sample_description=obs)
        more = {"method": "glmm", "donors": "donor"} if method == "glmm" else {}
        more |= {} if beside else {"method": method}
        found.append(glm.test(factor="g", lfc_threshold=1.0, **more).pval)
        np.testing.assert_allclose(
            glm.test(factor="g", lfc_threshold=0, **more).pval, glm.test(factor="g", **more).pval
        )
    share = (np.concatenate(found) <= 0.05).mean()
    assert 0.01 <= share <= 0.10, share


def test_group_tests_take_thresholds_and_others_refuse_them():
    counts, obs = simulated(1.0, 3, donors=False)
    pairs = de.test.pairwise(counts[:, :20], "g", sample_description=obs, noise_model="nb")
    beyond = pairs.against_threshold(0.5)
    assert (beyond.pval[0, 1] > pairs.pval[0, 1]).all() and "lfc_threshold" in beyond.to_frame()
    glm = ExpressionGLM("~ g").fit(counts[:, :20], sample_description=obs)
    for method in ("lrt", "score", "ql", "cluster"):
        donors = {"donors": "donor"} if method == "cluster" else {}
        with pytest.raises(InvalidArgumentError, match="lfc_threshold: expected one coefficient, tested by"):
            glm.test(factor="g", method=method, lfc_threshold=1.0, **donors)
    with pytest.raises(InvalidArgumentError, match="2 coefficients together"):
        glm.test(coefficient=["Intercept", "g[T.b]"], lfc_threshold=1.0)
    with pytest.raises(InvalidArgumentError, match="lfc_threshold: expected a test of one coefficient"):
        de.test.t_test(counts, "g", sample_description=obs).against_threshold(1.0)
    for wrong in (-1, "1", None, np.nan, np.inf):
        with pytest.raises(InvalidArgumentError, match="lfc_threshold"):
            glm.test(factor="g", lfc_threshold=wrong)
    normal = ExpressionGLM("~ g", noise_model="norm").fit(counts[:, :3] * 1.0, sample_description=obs)
    with pytest.raises(InvalidArgumentError, match="lfc_threshold: a fold change exists"):
        normal.test(factor="g", lfc_threshold=1.0)


def test_a_gene_without_a_test_has_none_against_a_threshold():
    counts, obs = simulated(0.0, 4, donors=False)
    counts[:, 0], counts[:60, 1] = 0, 0
    test = ExpressionGLM("~ g").fit(counts[:, :4], sample_description=obs).test(factor="g")
    beyond = test.against_threshold(0.1)
    assert (np.isnan(test.pval) == np.isnan(beyond.pval)).all() and np.isnan(beyond.pval[:2]).all()
    assert (beyond.to_frame()["reason"][:2] != "").all()
