"""Tests in one direction, independent filtering and outlier counts: closed forms, other libraries, refusals."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import pyrosplice.api as de
from pyrosplice import ExpressionGLM
from pyrosplice._hypothesis.fdr import adjust_pvalues
from pyrosplice._hypothesis.independent_filter import cut_for_most, lowess
from pyrosplice.errors import InvalidArgumentError

WAYS = ("greater", "less")


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(1)
    obs = pd.DataFrame({"group": np.repeat(["a", "b"], [50, 40]), "donor": ""})
    obs["donor"] = obs["group"] + np.tile(list("xyz"), 30)
    obs["three"] = np.tile(["p", "q", "r"], 30)
    mean = np.where((obs["group"] == "b").to_numpy()[:, None], np.exp(np.linspace(-1, 1, 8)), 1.0) * 6
    counts = rng.negative_binomial(4, 4 / (4 + mean)).astype(float)
    counts[:, 6] = 0
    obs.index = [f"cell {i}" for i in range(90)]
    return ad.AnnData(counts, obs, pd.DataFrame(index=[f"G{i}" for i in range(8)]))


def halves_agree(two_sided, greater, less):
    """One tail and the other are one, and twice the smaller is the two-sided p-value."""
    np.testing.assert_allclose(greater + less, np.where(np.isnan(two_sided), np.nan, 1.0), rtol=1e-10)
    np.testing.assert_allclose(2 * np.minimum(greater, less), two_sided, rtol=1e-9)


@pytest.mark.parametrize("method", ["wald", "robust", "glmm"])
def test_the_two_directions_of_a_fitted_test_share_the_two_sided_one(cells, method):
    glm = ExpressionGLM("~ group").fit(cells)
    options = {"method": method, "factor": "group"} | ({"donors": "donor"} if method == "glmm" else {})
    two = glm.test(**options)
    greater, less = (glm.test(**options, alternative=way) for way in WAYS)
    halves_agree(two.pval, greater.pval, less.pval)
    known = np.isfinite(two.pval)
    assert ((greater.pval < 0.5) == (two.effect > 0))[known].all()
    frame = greater.to_frame()
    assert frame["alternative"].eq("greater").all() and frame["lower"].equals(two.to_frame()["lower"])
    np.testing.assert_allclose(stats.norm.sf(frame["score"]), frame["pvalue"], rtol=1e-9)
    np.testing.assert_allclose(stats.norm.cdf(less.to_frame()["score"]), less.pval, rtol=1e-9)


def test_beside_random_effects_the_law_is_t_of_the_units(cells):
    glm = ExpressionGLM("~ group + (1 | donor)", noise_model="nb").fit(cells)
    two = glm.test(factor="group")
    greater = glm.test(factor="group", alternative="greater")
    known = np.isfinite(two.pval)
    df = np.broadcast_to(two.df, known.shape)
    t = (two.effect / two.effect_se)[known]
    np.testing.assert_allclose(greater.pval[known], stats.t.sf(t, df[known]), rtol=1e-9)


def test_against_a_threshold_the_null_is_all_of_the_other_side(cells):
    glm = ExpressionGLM("~ group").fit(cells)
    two, c = glm.test(factor="group"), 0.5
    z = {"greater": (two.effect - c * np.log(2)) / two.effect_se, "less": -(two.effect + c * np.log(2)) / two.effect_se}
    for way, value in z.items():
        found = glm.test(factor="group", alternative=way, lfc_threshold=c)
        np.testing.assert_allclose(found.pval, stats.norm.sf(value), rtol=1e-9)
        np.testing.assert_allclose(found.pval, two.one_sided(way, lfc_threshold=c).pval)
        assert (found.pval >= two.one_sided(way).pval)[np.isfinite(two.pval)].all()
        assert found.to_frame()["lfc_threshold"].eq(c).all()


@pytest.mark.parametrize("way", WAYS)
def test_tests_of_groups_are_those_of_scipy(cells, way):
    first, second = (cells.X[(cells.obs["group"] == name).to_numpy()] for name in "ab")
    some = np.delete(np.arange(8), 6)
    t = de.test.t_test(cells, "group").one_sided(way).pval
    expected = stats.ttest_ind(second, first, equal_var=False, alternative=way).pvalue
    np.testing.assert_allclose(t[some], expected[some], rtol=1e-9)
    rank = de.test.rank_test(cells, "group").one_sided(way).pval
    expected = stats.mannwhitneyu(second, first, alternative=way, method="asymptotic").pvalue
    np.testing.assert_allclose(rank[some], expected[some], rtol=1e-9)
    assert np.isnan(t[6]) and np.isnan(rank[6])


@pytest.mark.parametrize("test", [de.test.t_test, de.test.rank_test])
def test_constant_genes_have_all_of_their_p_value_in_one_direction(test):
    counts = np.repeat([[1.0, 2.0, 4.0, 3.0], [3.0, 2.0, 1.0, 3.0]], 5, axis=0)
    counts[0, 3] = 7
    found = test(counts, np.repeat(["a", "b"], 5))
    assert found.pval[:3].tolist() == [0, 1, 0]
    assert [found.one_sided(way).pval[:3].tolist() for way in WAYS] == [[0, 1, 1], [1, 1, 0]]


def test_each_group_against_the_rest_in_one_direction(cells):
    two = de.test.versus_rest(cells, "three")
    greater = two.one_sided("greater")
    for name in "pqr":
        expected = two.tests[(name,)].one_sided("greater")
        np.testing.assert_allclose(greater.pval_group(name), expected.pval)
    assert greater.to_frame()["alternative"].eq("greater").all()
    adata = cells.copy()
    greater.write(adata)
    names, scores = (adata.uns["rank_genes_groups"][key] for key in ("names", "scores"))
    assert (np.diff(scores["p"]) <= 0).all() and set(names["p"]) == set(cells.var_names)


def refusals(cells):
    glm = ExpressionGLM("~ group + three").fit(cells)
    yield "'lrt'", lambda: glm.test(factor="group", method="lrt", alternative="greater")
    yield "'score'", lambda: glm.test(factor="group", method="score", alternative="less")
    yield "'ql'", lambda: glm.test(factor="group", method="ql", alternative="less")
    yield "2 coefficients", lambda: glm.test(factor="three", alternative="greater")
    yield "alternative: expected one of", lambda: glm.test(factor="group", alternative="higher")
    yield "alternative: expected one of", lambda: glm.test(factor="group").one_sided("two-sided")
    yield "lfc_threshold", lambda: glm.test(factor="group").one_sided("less", lfc_threshold=-1)
    yield "alternative.*'lrt'", lambda: de.test.two_sample(cells, "group", test="lrt").one_sided("greater")
    yield "lfc_threshold", lambda: de.test.t_test(cells, "group").one_sided("greater", lfc_threshold=1.0)
    yield "two directions", lambda: de.test.pairwise(cells, "three").one_sided("greater")
    yield "one-sided", lambda: glm.test(factor="group").one_sided("less").one_sided("less")
    yield "filter what it gives", lambda: glm.test(factor="group").filtered().one_sided("less")
    yield "filter what it gives", lambda: glm.test(factor="group").filtered().against_threshold(1.0)
    yield "filtered already", lambda: glm.test(factor="group").filtered().filtered()
    yield "alpha", lambda: glm.test(factor="group").filtered(alpha=1.0)
    yield "by: expected 8 numbers", lambda: glm.test(factor="group").filtered(by=np.ones(7))
    yield "by: expected finite", lambda: glm.test(factor="group").filtered(by=np.full(8, np.nan))
    yield "by: expected a number", lambda: glm.test(factor="group").filtered(by=["x"] * 8)
    yield "quantile", lambda: glm.outlier_counts(quantile=1.0)
    yield (
        "three|3 samples",
        lambda: (
            ExpressionGLM("~ d", as_numeric=["d"])
            .fit(cells.X, sample_description=pd.DataFrame({"d": np.arange(90.0)}))
            .outlier_counts()
        ),
    )
    yield "noise_model", lambda: ExpressionGLM("~ group", noise_model="poisson").fit(cells).outlier_counts()


def test_what_has_no_direction_no_cut_or_no_replicates_is_refused_by_name(cells):
    for said, call in refusals(cells):
        with pytest.raises(InvalidArgumentError, match=said):
            call()


def simulated(seed, n_genes=1000):
    """P-values of genes of which those of high means are found more often."""
    rng = np.random.default_rng(seed)
    mean = np.exp(rng.normal(2, 2, n_genes))
    real = rng.random(n_genes) < 0.3 / (1 + np.exp(2 - np.log(mean)))
    return np.where(real, rng.random(n_genes) ** 8, rng.random(n_genes)), mean, real


@pytest.mark.parametrize(("seed", "n_filtered", "n_found"), [(0, 39, 99), (1, 39, 86), (2, 0, 106), (3, 0, 113)])
def test_the_cut_is_that_of_pydeseq2(seed, n_filtered, n_found):
    """PyDESeq2 0.5.4, ``DeseqStats._independent_filtering`` with alpha 0.1."""
    pval, mean, _ = simulated(seed)
    cut = cut_for_most(pval, mean, 0.1, by="mean")
    assert cut.record()["n_filtered"] == n_filtered
    assert (adjust_pvalues(pval[cut.passes]) <= 0.1).sum() == n_found


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 3, 40, 300]), st.floats(0, 0.5), st.floats(0, 1))
def test_the_cut_keeps_what_is_above_it_whatever_is_missing(seed, n_genes, missing, silent):
    pval, mean, _ = simulated(seed, n_genes)
    rng = np.random.default_rng(seed)
    mean[rng.random(n_genes) < silent] = 0
    pval[(rng.random(n_genes) < missing) | (mean == 0)] = np.nan
    cut = cut_for_most(pval, mean, 0.05, by="mean")
    np.testing.assert_array_equal(cut.passes, mean >= cut.cut)
    assert (adjust_pvalues(pval[cut.passes]) <= 0.05).sum() >= (adjust_pvalues(pval) <= 0.05).sum() - 10


def test_lowess_is_that_of_statsmodels():
    smoothers = pytest.importorskip("statsmodels.nonparametric.smoothers_lowess")
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, y = np.linspace(0.1, 0.95, 50), np.round(rng.normal(100, 10, 50) + 40 * np.sin(np.arange(50) / 8))
        expected = smoothers.lowess(y, x, frac=0.2, it=3, return_sorted=False)
        np.testing.assert_allclose(lowess(x, y), expected, atol=0.02)


def test_filtered_q_values_are_of_the_kept_genes_alone_and_p_values_stay(cells):
    rng = np.random.default_rng(0)
    mean = np.exp(rng.normal(0, 2, 600))
    change = np.where(rng.random(600) < 0.2, 1.5, 0.0)
    counts = rng.poisson(mean * np.exp(np.outer(np.repeat([0, 1], 10), change)))
    adata = ad.AnnData(
        counts.astype(float), pd.DataFrame({"g": np.repeat(["a", "b"], 10)}, index=list("abcdefghijklmnopqrst"))
    )
    plain = de.test.t_test(adata, "g")
    found = plain.filtered(alpha=0.05)
    table = found.to_frame()
    record = table.attrs["independent_filtering"]
    kept = plain.mean >= record["cut"]
    assert 0 < record["n_filtered"] == (~kept).sum() == table["filtered"].sum() and record["by"] == "mean"
    np.testing.assert_array_equal(found.pval, plain.pval)
    np.testing.assert_allclose(found.qval[kept], adjust_pvalues(plain.pval[kept]))
    assert np.isnan(found.qval[~kept]).all() and (found.qval <= 0.05).sum() > (plain.qval <= 0.05).sum()
    assert "independent_filtering" in found.summary().attrs and "filtered" not in plain.to_frame()
    symbols = pd.Series(plain.mean[::-1], plain.gene_ids[::-1], name="depth")
    named = plain.filtered(by=symbols)  # by name, in another order
    np.testing.assert_array_equal(named.qval, found.qval)
    assert named.summary().attrs["independent_filtering"]["by"] == "depth"


def test_a_test_of_curves_can_be_filtered_and_has_no_direction(cells):
    data = cells.copy()
    data.obs["time"] = np.linspace(0, 1, 90)
    curves = de.test.continuous_1d(data, "time", formula_loc="~ 1 + time", df=3)
    filtered = curves.filtered()
    assert type(filtered) is type(curves) and curves.kept is None
    assert filtered.summary(non_numeric=True).attrs["independent_filtering"]["by"] == "mean"
    with pytest.raises(InvalidArgumentError, match="alternative"):
        curves.one_sided("greater")


def test_filtering_by_the_mean_keeps_the_false_discovery_rate():
    shares = []
    for seed in range(60):
        pval, mean, real = simulated(seed)
        cut = cut_for_most(pval, mean, 0.1, by="mean")
        found = adjust_pvalues(np.where(cut.passes, pval, np.nan)) <= 0.1
        shares.append((found & ~real).sum() / max(found.sum(), 1))
    assert np.mean(shares) < 0.1 + 3 * np.std(shares) / np.sqrt(60)


def few_samples(seed, n_genes=300):
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"group": np.repeat(["a", "b"], 5), "batch": np.tile(["x", "y"], 5)})
    obs.index = [f"s{i}" for i in range(10)]
    mean = np.exp(rng.normal(4, 1, n_genes))
    return ad.AnnData(rng.negative_binomial(8, 8 / (8 + np.tile(mean, (10, 1)))).astype(float), obs)


def test_a_planted_outlier_is_told_and_others_are_not():
    adata = few_samples(0)
    rng = np.random.default_rng(5)
    genes, samples = rng.choice(300, 12, replace=False), rng.integers(0, 10, 12)
    adata.X[samples, genes] = adata.X[:, genes].max(0) * 30 + 200
    glm = ExpressionGLM("~ group").fit(adata)
    before = glm.test(factor="group").pval
    table = glm.outlier_counts().set_index("gene")
    assert table["outlier"].iloc[genes].all() and table["outlier"].sum() <= 12 + 6
    assert table["sample"].iloc[genes].tolist() == [f"s{i}" for i in samples]
    np.testing.assert_array_equal(table["count"].iloc[genes], adata.X[samples, genes])
    np.testing.assert_array_equal(glm.test(factor="group").pval, before)
    order = rng.permutation(10)
    other = ExpressionGLM("~ group").fit(adata[order].copy()).outlier_counts()
    np.testing.assert_allclose(other["cooks_distance"], table["cooks_distance"], rtol=1e-5)


def test_distances_are_those_of_the_hat_matrix():
    adata = few_samples(1, n_genes=4)
    adata.X[:, 3] = 0
    sizes = np.linspace(0.5, 2, 10)
    glm = ExpressionGLM("~ group").fit(adata, size_factors=sizes)
    table, estimator = glm.outlier_counts(), glm.estimator
    x, y = estimator.input_data.location.matrix, adata.X
    for g in range(3):
        mu = estimator.model.location_j([g])[:, 0]
        alpha = 1 / estimator.model.scale_j([g])[:, 0]
        w = np.diag(mu / (1 + alpha * mu))
        hat = np.diag(np.sqrt(w) @ x @ np.linalg.inv(x.T @ w @ x) @ x.T @ np.sqrt(w))
        scaled = y[:, g] / sizes
        variances = []
        for group in (slice(0, 5), slice(5, 10)):
            squares = np.sort((scaled[group] - np.sort(scaled[group])[1:4].mean()) ** 2)
            variances.append(1.86 * squares[1:4].mean())
        robust = max((max(variances) - scaled.mean()) / scaled.mean() ** 2, 0.04)
        cooks = (y[:, g] - mu) ** 2 / (mu + robust * mu**2) / 2 * hat / (1 - hat) ** 2
        np.testing.assert_allclose(table["cooks_distance"][g], cooks.max(), rtol=1e-6)
        assert table["sample"][g] == f"s{cooks.argmax()}"
    assert table["reason"][3] == "no_counts" and not table["outlier"][3] and np.isnan(table["cooks_distance"][3])


def test_samples_that_no_two_others_are_like_are_not_judged():
    adata = few_samples(2, n_genes=40)
    adata.obs["group"] = ["a"] * 4 + ["b"] * 4 + ["c"] * 2
    adata.X[9, :] *= 40
    table = ExpressionGLM("~ group").fit(adata).outlier_counts()
    assert not table["sample"].isin(["s8", "s9"]).any() and table["cooks_distance"].notna().all()
