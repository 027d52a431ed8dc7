"""Likelihood ratios, joint tests of factors, and contrasts."""

import numpy as np
import pytest
from scipy import stats

from pyrosplice._usage.analysis.splisosm import SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError

QUIET = {"print_progress": False}
MARGINAL = {"fitting_method": "marginal_newton", "var_fix_sigma": False}


@pytest.fixture
def tissue(tissue):
    tissue.obs["kind"] = np.array(["a", "b", "c"])[np.arange(36) % 3]
    return tissue


def after(adata, method, model_type="glm", with_design_mtx=None, design_mtx="kind", **ask):
    model = SplisosmGLMM(model_type, **({} if model_type == "glm" else MARGINAL))
    model.setup_data(adata, design_mtx=design_mtx)
    model.fit(batch_size=32, with_design_mtx=method == "wald" if with_design_mtx is None else with_design_mtx, **QUIET)
    model.test_differential_usage(method, **ask, **QUIET)
    return model


def table_of(model, value="pvalue"):
    table = model.get_formatted_test_results("du")
    return table.pivot(index="gene", columns="covariate", values=value).loc[model.gene_names]


def groups_of(model, gene, labels):
    counts = model.filtered_adata[:, model.filtered_adata.var["gene_symbol"] == gene].layers["counts"].toarray()
    return np.stack([counts[model.filtered_adata.obs["kind"] == label].sum(0) for label in labels])


def test_joint_tests_of_a_factor_are_those_of_the_contingency_table(tissue):
    score, ratio = (after(tissue, method, by="factor", variance="model") for method in ("score", "lrt"))
    for gene in score.gene_names:
        counts = groups_of(score, gene, "abc")
        for model, power in ((score, "pearson"), (ratio, "log-likelihood")):
            expected = stats.chi2_contingency(counts, correction=False, lambda_=power)
            assert table_of(model, "statistic").loc[gene, "kind"] == pytest.approx(expected.statistic, rel=1e-6)
            assert table_of(model).loc[gene, "kind"] == pytest.approx(expected.pvalue, rel=1e-5)


def test_a_level_by_itself_is_compared_with_all_others(tissue):
    model = after(tissue, "lrt", variance="model")
    for gene in model.gene_names:
        a, b, c = groups_of(model, gene, "abc")
        expected = stats.chi2_contingency(np.stack([b, a + c]), correction=False, lambda_="log-likelihood")
        assert table_of(model).loc[gene, "kind_b"] == pytest.approx(expected.pvalue, rel=1e-5)


def test_wald_contrasts_are_the_closed_form(tissue):
    contrasts = {"a or b": {"kind_a": 1, "kind_b": -1}, "any": np.array([[1, 0, -1], [1, -1, 0]])}
    model = after(tissue, "wald", contrasts=contrasts, variance="model")
    joint = after(tissue, "wald", by="factor", variance="model")
    for gene in model.gene_names:
        a, b, _ = groups_of(model, gene, "abc").astype(float)
        difference = np.log(a[:-1] / a[-1]) - np.log(b[:-1] / b[-1])
        covariance = sum(np.diag(1 / n[:-1]) + 1 / n[-1] for n in (a, b))
        expected = difference @ np.linalg.solve(covariance, difference)
        assert table_of(model, "statistic").loc[gene, "a or b"] == pytest.approx(expected, rel=1e-6)
        assert table_of(model).loc[gene, "any"] == pytest.approx(table_of(joint).loc[gene, "kind"], rel=1e-6)
    found = model.analysis.results["du"]
    assert found["by"] == "contrast"
    np.testing.assert_array_equal(found["df"], np.outer(np.array(model.n_isos_per_gene) - 1, [1, 2]))


def test_a_matrix_is_one_contrast_a_row(tissue):
    model = after(tissue, "wald", design_mtx=["smooth", "iid"], contrasts=[[1, 0], [1, -1]])
    plain = after(tissue, "wald", design_mtx=["smooth", "iid"])
    assert list(table_of(model).columns) == ["contrast_1", "contrast_2"]
    np.testing.assert_allclose(table_of(model)["contrast_1"], table_of(plain)["smooth"], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyrosplice.errors.UnreliableWarning")
@pytest.mark.parametrize("model_type", ["glm", "glmm-full", "glmm-null"])
def test_the_ratio_does_not_depend_on_which_fit_it_starts_from(tissue, model_type):
    found = [
        table_of(after(tissue, "lrt", model_type, with_design, ["smooth", "kind"], by="factor"), "statistic")
        for with_design in (False, True)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6 if model_type == "glm" else 1e-3)
    assert (found[0] > -1e-4).all(axis=None)


@pytest.mark.parametrize("method", ["score", "wald", "lrt"])
def test_the_coding_of_a_factor_does_not_matter_to_its_joint_test(tissue, method):
    ours = table_of(after(tissue, method, by="factor"))["kind"]
    for formula, term in (("~ kind", "kind"), ("~ C(kind, contr.treatment('c'))", "C(kind, contr.treatment('c'))")):
        theirs = table_of(after(tissue, method, design_mtx=formula, by="factor"))[term]
        np.testing.assert_allclose(theirs, ours, rtol=1e-6)


@pytest.mark.slow
def test_ratios_of_the_mixed_model_find_effects_and_hold_their_size():
    beta = np.zeros((100, 2, 2))
    beta[60:, 1] = [0.6, 0.0]
    adata = simulate_isoforms(n_spots=196, n_genes=100, covariates=("iid", "iid"), beta=beta, sigma=0.5, seed=5)
    names = [name for name in adata.obs.columns if name.startswith("iid")]
    model = after(adata, "lrt", "glmm-full", design_mtx=names)
    pvalues = table_of(model)[names].to_numpy()
    null = np.concatenate([pvalues[:, 0], pvalues[:60, 1]])
    assert stats.binomtest(int((null < 0.05).sum()), len(null), 0.05).pvalue > 1e-3
    assert (pvalues[60:, 1] < 0.05).mean() > 0.9


def test_results_of_factors_survive_a_file(tissue, tmp_path):
    model = after(tissue, "lrt", design_mtx="~ smooth + kind", by="factor")
    model.save(tmp_path / "model")
    again = SplisosmGLMM.load(tmp_path / "model")
    assert again.get_formatted_test_results("du").equals(model.get_formatted_test_results("du"))
    again.test_differential_usage("score", by="factor", **QUIET)
    assert list(table_of(again).columns) == ["kind", "smooth"]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"by": "level"}, r"by: .*'level'"),
        ({"variance": "sandwich"}, r"variance: .*'sandwich'"),
        ({"contrasts": {"x": {"kind_d": 1}}}, r"contrasts\['x'\]: .*found \['kind_d'\]"),
        ({"contrasts": [[1, 2]]}, r"contrasts\['contrast_1'\]: expected 3 weights"),
        ({"contrasts": {"x": {"kind_a": np.nan}}}, r"expected finite weights"),
        ({"contrasts": [[1, 1, 1]]}, r"the effects of a factor's levels sum to zero"),
        ({"contrasts": {"x": np.eye(3)}}, r"linearly independent"),
        ({"contrasts": {}}, r"contrasts: expected at least one"),
        ({"method": "lrt", "contrasts": [[1, 0, 0]]}, r"contrasts: expected method='wald'"),
    ],
)
def test_what_cannot_be_tested_says_why(tissue, ask, message):
    model = SplisosmGLMM("glm")
    model.setup_data(tissue, design_mtx="kind")
    model.fit(with_design_mtx=True, **QUIET)
    with pytest.raises(InvalidArgumentError, match=message):
        model.test_differential_usage(**{"method": "wald", **ask})
