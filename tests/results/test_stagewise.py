"""Genes, then isoforms: stageR's rule, the false discovery rate over genes, and isoforms in any order."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pyrosplice import SplisosmGLMM
from pyrosplice._hypothesis.fdr import adjust_pvalues
from pyrosplice._hypothesis.stagewise import stagewise_tests
from pyrosplice._usage.analysis.isoform_tests import _by_stages
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError, NotReadyError


def shaffer(p, within, alpha_gene):
    """Which isoforms a gene's closed procedure rejects at a level, by its definition: step down while it rejects."""
    order, n, rejected = np.argsort(p, kind="stable"), len(p), np.zeros(len(p), bool)
    most = n - {"shares": 2, "any": 1}[within]
    for step, k in enumerate(order):
        true = min(most, n - step)
        if true > 0 and p[k] > alpha_gene / true:
            break
        rejected[k] = True
    return rejected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["shares", "any"]), st.sampled_from([0.01, 0.05, 0.2]))
def test_rejections_are_those_of_the_two_stages(seed, within, alpha):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 6, 12)
    gene = np.repeat(np.arange(12), sizes)
    p, gene_p = rng.beta(0.3, 2, len(gene)), rng.beta(0.2, 2, 12)
    found = stagewise_tests(gene_p, p, gene, alpha=alpha, within=within)
    screened = adjust_pvalues(gene_p) <= alpha
    for g in range(12):
        own = gene == g
        want = shaffer(p[own], within, alpha * screened.mean()) if screened[g] else np.zeros(own.sum(), bool)
        np.testing.assert_array_equal(found.confirmed[own] <= alpha, want)
    mixed = rng.permutation(len(p))
    again = stagewise_tests(gene_p, p[mixed], gene[mixed], alpha=alpha, within=within)
    np.testing.assert_allclose(again.confirmed, found.confirmed[mixed])


def test_two_isoforms_of_a_gene_that_was_found_have_both_changed():
    found = stagewise_tests([1e-6, 0.9], [0.2, 0.4, 0.5, 0.6], [0, 0, 1, 1])
    assert (found.confirmed[:2] <= 0.05).all() and (found.confirmed[2:] == 1).all()
    assert stagewise_tests([1e-6], [0.2, 0.4], [0, 0], within="any").confirmed.min() > 0.05


def test_isoforms_without_a_test_leave_the_others_to_all_of_their_number():
    found = stagewise_tests([1e-6, np.nan], [0.03, np.nan, 0.04, 0.001, 0.9], [0, 0, 0, 1, 1])
    np.testing.assert_allclose(found.confirmed, [0.06, np.nan, 0.06, np.nan, np.nan])
    assert np.isnan(found.screened[1])
    nothing = stagewise_tests([np.nan], [np.nan, np.nan], [0, 0])
    assert np.isnan(nothing.confirmed).all()


def test_no_genes_and_no_isoforms_are_no_tests():
    for genes in ([], [0.5]):
        nothing = stagewise_tests(genes, [], [])
        assert nothing.screened.shape == (len(genes),) and nothing.confirmed.shape == (0,)


def test_isoforms_of_a_gene_that_could_not_be_screened_have_its_reason():
    table = pd.DataFrame(
        {"covariate": "x", "position": [0, 0, 1, 1], "pvalue": [0.01, 0.02, np.nan, 0.3], "reason": ["", "", "b", ""]}
    )
    screen = {"pvalue": np.array([[np.nan], [0.2]]), "reason": [["few counts"], [""]]}
    out = _by_stages(table, screen, ["x"], 0.05)
    assert out["reason"].tolist() == ["few counts", "few counts", "b", ""]
    assert np.isnan(out["pvalue_stagewise"]).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0},
        {"within": "holm"},
        {"gene": [0, 2]},
        {"gene": [0]},
        {"pvalue": [0.1, 1.2]},
        {"gene_pvalue": [[0.1]]},
    ],
)
def test_what_is_no_family_of_tests_is_refused(wrong):
    usual = {"gene_pvalue": [0.1], "pvalue": [0.1, 0.2], "gene": [0, 0], "alpha": 0.05}
    with pytest.raises(InvalidArgumentError):
        stagewise_tests(**usual | wrong)


def test_the_overall_false_discovery_rate_is_held():
    """Dirichlet shares, a t-like test: half of the genes null, two of five isoforms changed in the others."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(300):
        truth = np.zeros((60, 5))
        truth[30:, 0], truth[30:, 1] = 3.0, -3.0
        noise = rng.standard_normal((60, 5))
        z = truth + (noise - noise.mean(1, keepdims=True)) / np.sqrt(0.8)
        p = 2 * stats.norm.sf(np.abs(z))
        statistic = 0.8 * (z**2).sum(1)
        gene_p = stats.chi2.sf(statistic, 4)
        found = stagewise_tests(gene_p, p.ravel(), np.repeat(np.arange(60), 5), alpha=0.1)
        rejected = found.confirmed.reshape(60, 5) <= 0.1
        screened = found.screened <= 0.1
        false = screened & ((np.arange(60) < 30) | (rejected & (truth == 0)).any(1))
        rates.append(false.sum() / max(screened.sum(), 1))
    assert np.mean(rates) < 0.1 + 4 * np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) > 0.02  # the rule is used, not idle


# ---- isoforms of fitted genes -------------------------------------------------------------------------------------


def analysis(adata, covariate="iid", kind="glm"):
    options = {} if kind == "glm" else {"fitting_method": "marginal_newton", "var_fix_sigma": False}
    model = SplisosmGLMM(kind, isoform_effect="symmetric", **options)
    model.setup_data(adata, design_mtx=covariate)
    model.fit(with_design_mtx=True, batch_size=50, print_progress=False)
    return model


@pytest.mark.parametrize("kind", ["glm", "glmm-null"])
def test_order_of_isoforms_makes_no_difference(kind):
    adata = simulate_isoforms(n_spots=64, n_genes=2, covariates=("iid",), beta=[[[0.6, -0.2]]] * 2, seed=4)
    one = analysis(adata, kind=kind).test_isoforms(threshold=1.0)
    turned = analysis(adata[:, list(adata.var_names[::-1])].copy(), kind=kind).test_isoforms(threshold=1.0)
    a, b = (table.set_index(["gene", "isoform"]).sort_index() for table in (one, turned))
    for column in ("effect", "pvalue", "gene_pvalue", "pvalue_stagewise"):
        np.testing.assert_allclose(a[column], b[column], rtol=1e-5)


def test_isoforms_agree_with_the_intervals_and_with_the_genes():
    adata = simulate_isoforms(
        n_spots=100, n_genes=6, covariates=("iid",), beta=[[[0.8, 0.0]]] * 3 + [[[0, 0]]] * 3, seed=2
    )
    model = analysis(adata)
    table = model.test_isoforms()
    effects = model.get_effects()
    np.testing.assert_allclose(table["effect"], effects["usage_points"])
    outside = (effects["usage_points_lower"] > 0) | (effects["usage_points_upper"] < 0)
    np.testing.assert_array_equal(table["pvalue"] < 0.05, outside)
    genes = model.test_differential_usage("wald", return_results=True, print_progress=False)
    np.testing.assert_allclose(table["gene_pvalue"][::3], genes["pvalue"][:, 0])
    found = table["pvalue_stagewise"] <= 0.05
    assert found.any() and (table["gene_pvalue_adj"][found] <= 0.05).all()
    odds = model.test_isoforms(scale="log_odds")
    np.testing.assert_allclose(odds["effect"], effects["log_odds"])
    far = model.test_isoforms(threshold=50.0)
    assert (far["pvalue"] >= table["pvalue"]).all() and (far["pvalue_stagewise"] > 0.05).all()


def test_what_has_no_isoform_tests_is_refused():
    adata = simulate_isoforms(n_spots=36, n_genes=1, covariates=("iid",), seed=0)
    model = SplisosmGLMM("glm")
    with pytest.raises(NotReadyError):
        model.test_isoforms()
    model.setup_data(adata, design_mtx="iid")
    model.fit(print_progress=False)
    with pytest.raises(InvalidArgumentError, match="test_isoforms: expected models with covariates"):
        model.test_isoforms()
    fitted = analysis(adata)
    for wrong in ({"alpha": 1}, {"scale": "points"}, {"threshold": -1}, {"variance": "het"}, {"level": 0}):
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
            fitted.test_isoforms(**wrong)


@pytest.mark.slow
def test_null_isoforms_are_found_at_the_level_and_genes_at_the_rate():
    beta = [[[0.0, 0.0, 0.0]]] * 120 + [[[0.7, 0.0, 0.0]]] * 40
    adata = simulate_isoforms(n_spots=120, n_genes=160, n_isoforms=4, covariates=("iid",), beta=beta, sigma=0.4, seed=3)
    for kind in ("glm", "glmm-null"):
        table = analysis(adata, kind=kind).test_isoforms(alpha=0.1)
        null = pd.Series(np.arange(len(table)) // 4 < 120)
        size = (table["pvalue"][null] <= 0.05).mean()
        assert 0.02 < size < 0.085, (kind, size)
        found = (table["gene_pvalue_adj"] <= 0.1)[::4].to_numpy()
        false = found & (np.arange(160) < 120)
        assert false.sum() / max(found.sum(), 1) < 0.25 and found[120:].mean() > 0.5, kind
