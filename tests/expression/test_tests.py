"""Differential expression tests: closed forms, agreement with each other and with scipy, tables, figures."""

import anndata as ad
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

import pyrosplice.api as de
from pyrosplice._hypothesis.fdr import adjust_jointly
from pyrosplice.errors import InvalidArgumentError


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(7)
    n, g = 300, 12
    obs = pd.DataFrame({"group": np.repeat(["a", "b", "c"], 100), "batch": np.tile(["x", "y"], 150)})
    obs["two"] = np.where(obs["group"] == "a", "a", "b")
    obs["time"] = rng.uniform(0, 10, n)
    effect = np.zeros((n, g))
    effect[:, 0] = 0.8 * (obs["group"] == "b")
    effect[:, 1] = np.sin(obs["time"] / 1.5)
    mean = np.exp(rng.normal(1.2, 0.4, g) + effect)
    x = rng.poisson(rng.gamma(3.0, mean / 3.0)).astype(float)
    x[:, 11] = 0
    obs.index = obs.index.astype(str)
    return ad.AnnData(x, obs, pd.DataFrame(index=[f"G{i}" for i in range(g)]))


def test_wald_lrt_and_score_agree_near_the_null(data):
    wald = de.test.wald(data, factor_loc_totest="group", formula_loc="~1+group+batch")
    lrt = de.test.lrt(data, "~1+group+batch", "~1+batch")
    score = de.test.score(data, factor_loc_totest="group", formula_loc="~1+group+batch")
    null = slice(1, 11)
    np.testing.assert_allclose(wald.statistic[null], lrt.statistic[null], rtol=0.06, atol=0.05)
    np.testing.assert_allclose(score.statistic[null], lrt.statistic[null], rtol=0.06, atol=0.05)
    for test in (wald, lrt, score):
        assert test.pval[0] < 1e-4 and np.isnan(test.pval[11]) and test.qval[0] < 1e-3
    np.testing.assert_allclose(lrt.pval[null], stats.chi2.sf(lrt.statistic[null], 2))


def test_wald_is_estimate_over_standard_error(data):
    test = de.test.wald(data, coef_to_test="group[T.b]", formula_loc="~1+group")
    estim = test.estimator
    z = estim.a_var[1] / np.sqrt(estim.fisher_inv[:, 1, 1])
    np.testing.assert_allclose(test.statistic[:11], z[:11])
    np.testing.assert_allclose(test.pval[:11], 2 * stats.norm.sf(np.abs(z[:11])))
    np.testing.assert_allclose(test.log2_fold_change()[:11], estim.a_var[1, :11] / np.log(2))
    assert abs(test.log2_fold_change()[0] - 0.8 / np.log(2)) < 0.4
    again = de.test.wald_repeated(test, factor_loc_totest="group")
    both = de.test.wald(data, factor_loc_totest=["group"], formula_loc="~1+group")
    np.testing.assert_allclose(again.pval, both.pval)


def test_factors_may_be_wrapped_and_interact(data):
    plain = de.test.wald(data, "group", formula_loc="~1+group*batch")
    wrapped = de.test.wald(data, "group", formula_loc="~1+C(group)*batch")
    np.testing.assert_allclose(plain.pval, wrapped.pval)
    both = de.test.wald(data, ["group", "group:batch"], formula_loc="~1+group*batch")
    lrt = de.test.lrt(data, "~1+group*batch", "~1+batch")
    np.testing.assert_allclose(both.statistic[1:11], lrt.statistic[1:11], rtol=0.15, atol=0.1)


def test_parts_of_data_on_disk(data, tmp_path):
    ad.AnnData(sp.csr_matrix(data.X), data.obs, data.var).write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for test in ("wald", "t-test", "rank"):
        found = de.test.partition(backed, "batch").two_sample(grouping="two", test=test)
        expected = de.test.partition(data, "batch").two_sample(grouping="two", test=test)
        np.testing.assert_allclose(found.pval, expected.pval, atol=1e-9)


def test_summary_columns_and_filters(data):
    test = de.test.wald(data, coef_to_test="group[T.b]", formula_loc="~1+group")
    table = test.summary()
    expected = [
        "gene",
        "pval",
        "qval",
        "log2fc",
        "mean",
        "zero_mean",
        "grad",
        "coef_mle",
        "coef_sd",
        "ll",
        "effect",
        "se",
        "lower",
        "upper",
        "statistic",
        "pvalue",
        "pvalue_adj",
        "reason",
        "fit_ended",
    ]
    assert list(table.columns) == expected and len(table) == 12
    assert table["zero_mean"].to_list() == [False] * 11 + [True]
    assert table["reason"].to_list() == [""] * 11 + ["no_counts"] and table["fit_ended"].iloc[11] == "no_counts"
    for ours, documented in (("pvalue", "pval"), ("pvalue_adj", "qval"), ("effect", "log2fc")):
        np.testing.assert_array_equal(table[ours], table[documented])
    np.testing.assert_allclose(table["mean"], data.X.mean(0))
    half = stats.norm.isf(0.025) * table["se"]
    np.testing.assert_allclose(table["upper"] - table["effect"], half)
    assert test.summary(qval_thres=0.01)["gene"].to_list() == ["G0"]
    assert test.summary(qval_thres=0.01, fc_lower_thres=0.5).empty
    assert test.summary(fc_upper_thres=1.5)["gene"].to_list() == ["G0"]
    assert (test.summary(mean_thres=3.0)["mean"] >= 3).all()
    with pytest.raises(InvalidArgumentError, match="fc_upper_thres"):
        test.summary(fc_upper_thres=-1)


@pytest.mark.parametrize("form", ["dense", "csr"])
def test_t_test_is_welch(data, form):
    x = data.X if form == "dense" else sp.csr_matrix(data.X)
    test = de.test.t_test(x, "two", sample_description=data.obs, is_logged=True)
    a, b = data.X[:100], data.X[100:]
    expected = stats.ttest_ind(b[:, :11], a[:, :11], equal_var=False)
    np.testing.assert_allclose(test.statistic[:11], expected.statistic)
    np.testing.assert_allclose(test.pval[:11], expected.pvalue)
    assert np.isnan(test.pval[11]) and test.summary()["zero_variance"].iloc[11]
    np.testing.assert_allclose(test.log_fold_change()[:11], (b.mean(0) - a.mean(0))[:11])
    raw = de.test.t_test(x, "two", sample_description=data.obs)
    np.testing.assert_allclose(raw.log2_fold_change()[:11], np.log2(b.mean(0)[:11] / a.mean(0)[:11]))


def test_zero_variance_is_significant_only_where_asked():
    x = np.column_stack([np.repeat([1.0, 2.0], 5), np.ones(10)])
    assert list(de.test.t_test(x, np.repeat(["a", "b"], 5)).pval) == [0.0, 1.0]
    assert np.isnan(de.test.t_test(x, np.repeat(["a", "b"], 5), is_sig_zerovar=False).pval[0])


def test_rank_test_is_mann_whitney(data):
    test = de.test.rank_test(data, "two")
    expected = stats.mannwhitneyu(data.X[100:, :11], data.X[:100, :11], method="asymptotic")
    np.testing.assert_allclose(test.statistic[:11], expected.statistic)
    np.testing.assert_allclose(test.pval[:11], expected.pvalue)
    assert np.isnan(test.pval[11])


@pytest.mark.parametrize("test", ["t-test", "rank", "wald", "lrt"])
def test_two_sample_and_partition(data, test):
    result = de.test.two_sample(data, "two", test=test)
    parts = de.test.partition(data, "batch").two_sample(grouping="two", test=test)
    alone = de.test.two_sample(data[data.obs["batch"] == "y"].copy(), "two", test=test)
    np.testing.assert_allclose(parts.pval[1], alone.pval)
    assert parts.pval.shape == (2, 12) and result.pval[0] < 0.01
    assert parts.summary_group("y")["gene"].iloc[0] == "G0"


@pytest.mark.parametrize("test", ["z-test", "wald", "lrt", "t-test", "rank"])
def test_pairwise(data, test):
    result = de.test.pairwise(data, "group", test=test)
    assert result.pval.shape == result.log_fold_change().shape == (3, 3, 12)
    np.testing.assert_allclose(result.log2_fold_change()[0, 1, :11], -result.log2_fold_change()[1, 0, :11])
    assert result.pval[0, 1, 0] < 1e-3 and (result.pval[0, 0, :11] == 1).all()
    b_over_a = np.log(data.X[100:200, 0].mean() / data.X[:100, 0].mean())
    np.testing.assert_allclose(result.log_fold_change()[0, 1, 0], b_over_a, atol=0.02)
    table = result.summary_pair("b", "a", qval_thres=0.05)
    assert table["gene"].to_list()[0] == "G0" and table["log2fc"].iloc[0] < 0
    assert result.pval_pairs("a", ["b", "c"]).shape == (1, 2, 12)
    raw = np.stack([result.pval[0, 1], result.pval[0, 2], result.pval[1, 2]])
    np.testing.assert_allclose(result.qval[0, 2], adjust_jointly(raw)[1])
    assert result.summary()["comparison"].iloc[0] in ("b vs a", "c vs b")


@pytest.mark.parametrize(
    "labels", [["B", "NK", "T"], ["a", "b", "c vs a", "a vs b", "c"], ["vs", "a vs", "'a'", "vs a"]]
)
def test_a_comparison_has_one_name_in_every_table_and_no_other_has_it(labels):
    rng = np.random.default_rng(0)
    groups = np.repeat(labels, 12)
    result = de.test.pairwise(rng.poisson(3.0, (len(groups), 3)), groups, test="t-test")
    frame, k = result.to_frame(), len(labels)
    assert frame.groupby(["contrast", "gene"]).size().eq(1).all() and frame["contrast"].nunique() == k * (k - 1) // 2
    smallest = frame.loc[frame.groupby("gene")["pvalue"].idxmin()].set_index("gene")
    summary = result.summary().set_index("gene").loc[smallest.index]
    assert summary["comparison"].tolist() == smallest["contrast"].tolist()
    np.testing.assert_allclose(summary["effect"], smallest["log2fc"])
    adata = ad.AnnData(np.zeros((2, 3)), var=pd.DataFrame(index=result.gene_ids.astype(str)))
    result.write(adata)
    assert set(adata.uns["rank_genes_groups"]["names"].dtype.names) == set(frame["contrast"])


def test_pairs_of_a_picked_order_are_named_as_their_fold_changes_read():
    counts = np.repeat([[2.0], [2.1], [20.0]], 30, axis=0) + np.tile([[0.0], [1.0]], (45, 1))
    result = de.test.pairwise(counts, np.repeat(["B", "NK", "T"], 30), test="t-test")
    for pair, name, sign in ((("B", "T"), "T vs B", 1), (("T", "B"), "B vs T", -1)):
        row = result.summary_pairs(*pair).iloc[0]
        assert row["comparison"] == name and np.sign(row["log2fc"]) == sign
    assert result.summary().loc[0, "comparison"] in repr(result)


def test_pairwise_z_is_two_means_over_their_standard_error(data):
    result = de.test.pairwise(data, "group", test="z-test", pval_correction="by_test")
    estim = result.tests["a", "c"].estimator
    v = estim.fisher_inv
    z = (estim.a_var[2] - estim.a_var[0]) / np.sqrt(v[:, 0, 0] + v[:, 2, 2])
    np.testing.assert_allclose(result.tests["a", "c"].statistic[:11], z[:11])


@pytest.mark.parametrize("test", ["wald", "lrt", "t-test", "rank"])
def test_versus_rest(data, test):
    result = de.test.versus_rest(data, "group", test=test)
    assert result.pval.shape == (1, 3, 12)
    assert result.summary_group("b")["log2fc"].iloc[0] > 0.5
    assert result.qval[0, 1, 0] < 0.01


@pytest.mark.parametrize("basis", ["bs", "cr", "cc"])
@pytest.mark.parametrize("test", ["wald", "lrt"])
def test_continuous(data, basis, test):
    result = de.test.continuous_1d(data, "time", formula_loc="~1+time+batch", spline_basis=basis, test=test, df=5)
    assert np.nanargmin(result.pval) == 1 and result.pval[1] < 1e-8 and np.nanmin(result.pval[2:11]) > 1e-4
    if basis != "cc":
        assert 1.0 < result.argmax()[1] < 4.0 and 5.0 < result.argmin()[1] < 9.0
    np.testing.assert_allclose(result.logfc, result.max() - result.min())
    result.plot_heatmap(["G1", "G2"])
    plt.close("all")


def colored(ax):
    """Points lower and higher; those at the floor are drawn again as a fourth collection."""
    return sum(len(points.get_offsets()) for points in ax.collections[1:3])


@pytest.mark.slow
def test_figures_show_the_right_colors(data):
    test = de.test.wald(data, coef_to_test="group[T.b]", formula_loc="~1+group")
    ax = test.plot_volcano(highlight_ids=["G0"])
    assert colored(ax) == (test.qval <= 0.05).sum() > 0
    assert [text.get_text() for text in ax.texts] == ["G0"]
    ax = test.plot_ma(corrected_pval=True)
    assert colored(ax) == (test.qval <= 0.05).sum()
    ax = test.plot_ma(corrected_pval=False, alpha=0.3)
    assert colored(ax) == (test.pval <= 0.3).sum()
    large = np.abs(test.log2_fold_change()) >= 1.0
    assert colored(test.plot_volcano(min_fc=2.0)) == (large & (test.qval <= 0.05)).sum()
    with pytest.raises(InvalidArgumentError, match="nope"):
        test.plot_volcano(highlight_ids=["nope"])
    plt.close("all")


def test_tail_probabilities_do_not_underflow_to_a_difference():
    x = np.column_stack([np.r_[np.full(200, 1), np.full(200, 9)], np.r_[np.full(200, 3), np.full(200, 4)]])
    x = np.random.default_rng(0).poisson(x)
    pval = de.test.wald(
        x, "g", formula_loc="~1+g", sample_description=pd.DataFrame({"g": np.repeat(["a", "b"], 200)})
    ).pval
    assert 0 < pval[0] < 1e-100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: de.test.wald(d, formula_loc="~1+group"), "factor_loc_totest"),
        (lambda d: de.test.wald(d, "group", "x", formula_loc="~1+group"), "factor_loc_totest"),
        (lambda d: de.test.wald(d, "nope", formula_loc="~1+group"), "nope"),
        (lambda d: de.test.wald(d, coef_to_test="nope", formula_loc="~1+group"), "nope"),
        (lambda d: de.test.lrt(d, "~1", "~1+group"), "nested"),
        (lambda d: de.test.lrt(d, "~1+group", "~1+group"), "reduced"),
        (lambda d: de.test.t_test(d, "group"), "two groups"),
        (lambda d: de.test.t_test(d, "nope"), "nope"),
        (lambda d: de.test.pairwise(d, np.ones(300)), "two groups"),
        (lambda d: de.test.pairwise(d, "group", test="best"), "test"),
        (lambda d: de.test.continuous_1d(d, "time", formula_loc="~1+batch"), "continuous"),
        (lambda d: de.test.continuous_1d(d, "time", df=1), "df"),
        (lambda d: de.test.wald_repeated(de.test.t_test(d, "two"), "group"), "det"),
    ],
)
def test_bad_arguments_are_named(call, message, data):
    with pytest.raises(InvalidArgumentError, match=message):
        call(data)


def test_codes_of_a_test_are_those_of_its_estimator() -> None:
    counts = np.random.default_rng(0).poisson(3.0, (40, 4))
    counts[:, 1] = 0
    counts[:20, 2] = 0
    found = de.test.wald(
        counts,
        formula_loc="~1+group",
        factor_loc_totest="group",
        sample_description=pd.DataFrame({"group": np.repeat(["a", "b"], 20)}),
    )
    assert found.code.tolist() == found.model_estim.error_codes.tolist()
    assert found.code[1] != found.code[2] != found.code[0]
