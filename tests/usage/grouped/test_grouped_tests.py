"""Tests of covariates beside random effects of groups: their laws, units, size, and what they refuse."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from pyrosplice import SplisosmGLMM
from pyrosplice._hypothesis.coefficients.sphericity import sphericity
from pyrosplice._usage.analysis.grouped_usage import UnitContrast, unit_tests
from pyrosplice._usage.gene_tests.terms import Contrast
from pyrosplice._usage.grouped.usage_problem import GroupedSpec
from pyrosplice._usage.reading.design import Design
from pyrosplice.effects import Groups
from pyrosplice.effects._level_columns import columns_with_levels
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._bound_effects import BoundEffects
from pyrosplice.likelihoods import Multinomial
from tests.missing_results import check_reasons
from tests.usage.grouped.tissues import NEWTON, QUIET, fitted, sections

COLUMNS = ["gene", "covariate", "statistic", "pvalue", "pvalue_adj", "reason", "df", "unit", "n_units"]
METHODS = ("wald", "lrt", "score")


@pytest.mark.parametrize("effect", ["independent", "symmetric"])
@pytest.mark.parametrize("n_isoforms", [2, 3, 4])
@pytest.mark.parametrize("n_levels", [2, 3])
def test_of_endless_counts_every_test_is_the_f_test_of_section_means(n_levels, n_isoforms, effect):
    """Q logits of k contrasts are k Q coefficients, with Q times the degrees of freedom of one; by default times ε."""
    rng, n_sections, q = np.random.default_rng(10 * n_levels + n_isoforms), 9, n_isoforms - 1
    section, level = np.repeat(np.arange(n_sections), 2), np.arange(n_sections) % n_levels
    root = np.linalg.cholesky(np.eye(q) + (effect == "symmetric"))
    latent = 0.4 * rng.standard_normal((4, n_sections, q))
    eta = np.concatenate([latent @ root.T, np.zeros((4, n_sections, 1))], -1)
    counts = torch.from_numpy(np.round(1e7 * np.exp(eta) / np.exp(eta).sum(-1, keepdims=True)))[:, section]
    columns = (level[section][:, None] == np.arange(1, n_levels)).astype(float)
    names = tuple(f"level{k}" for k in range(1, n_levels))
    block = Groups("section").bind(pd.DataFrame({"section": section.astype(str)}))
    design, effects = Design(columns, names, names), BoundEffects((), (block,))
    spec = GroupedSpec(len(section), design, effects, Multinomial(), effect)
    means = np.stack([latent[:, level == k].mean(1) for k in range(n_levels)], 1)
    within = np.square(latent - means[:, level]).sum((1, 2))
    between = np.square(means[:, level] - latent.mean(1, keepdims=True)).sum((1, 2))
    k, df = q * (n_levels - 1), q * (n_sections - n_levels)
    rest = latent - means[:, level]
    share = sphericity(np.einsum("gsq,gsr->gqr", rest, rest), n_sections - n_levels)
    one = UnitContrast.of(spec, Contrast("level", np.eye(n_levels - 1)), "clip", stacklevel=1)
    assert (one.units.unit, one.units.n_units, one.units.df) == ("section", n_sections, n_sections - n_levels)
    genes = spec.fit(counts)
    for method in METHODS:
        for rule, own in (("satterthwaite", np.ones(4)), ("clip", share)):
            found = unit_tests(counts, spec, genes, [one], method, rule)
            np.testing.assert_allclose(found.sphericity[:, 0], own, atol=1e-3, err_msg=method)
            np.testing.assert_allclose(found.df[:, 0], df * own, rtol=0.03, err_msg=method)  # by differences
            expected = stats.f.sf(between / k / (within / df), k * own, df * own)
            np.testing.assert_allclose(found.pvalue[:, 0], expected, atol=2e-3, err_msg=method)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["glm", "glmm-full"])
def test_methods_agree_and_tables_say_what_the_units_are(kind, tmp_path):
    adata = sections(1, side=3)
    adata.layers["counts"][:, 6] *= adata.obs["condition"].to_numpy() == "control"
    formula, tables = "~ condition + age + (1 + age | section)", {}
    for with_design, methods in ((True, ("wald", "lrt")), (False, ("score", "lrt"))):
        model = fitted(adata, formula, kind=kind, with_design=with_design)
        for method in methods:
            model.test_differential_usage(method, **QUIET)
            table = model.get_formatted_test_results("du")
            assert list(table.columns) == COLUMNS and set(table["unit"]) == {"section"}
            assert set(table["n_units"]) == {8} and table["df"].dropna().between(1, 30).all()
            check_reasons(table, least=1)
            assert list(table["reason"][-2:]) == ["separated"] * 2 or method == "score"
            if method == "lrt" and with_design is False:
                np.testing.assert_allclose(table["pvalue"][:4], tables["lrt"]["pvalue"][:4], atol=1e-4)
            tables[method] = table
    first = tables["wald"]["pvalue"][:4]
    for method in ("lrt", "score"):
        np.testing.assert_allclose(tables[method]["pvalue"][:4], first, atol=0.12, err_msg=method)
    model = fitted(adata, formula, kind=kind)
    model.test_differential_usage("wald", **QUIET)
    model.save(tmp_path / "model")
    again = SplisosmGLMM.load(tmp_path / "model")
    pd.testing.assert_frame_equal(again.get_formatted_test_results("du"), model.get_formatted_test_results("du"))
    for method in ("wald", "lrt"):
        own, other = (m.test_differential_usage(method, return_results=True, **QUIET) for m in (model, again))
        np.testing.assert_allclose(other["pvalue"], own["pvalue"], atol=1e-8)
    pd.testing.assert_frame_equal(again.get_effects(), model.get_effects())
    assert list(again.units()["unit"]) == ["section"] * 3


def test_the_rule_of_degrees_of_freedom_is_followed():
    model = fitted(sections(2, n_genes=2, side=3))

    def test(**options):
        return model.test_differential_usage("wald", return_results=True, **QUIET, **options)

    assert bool((test(df="between-within")["df"] == 12).all()) and bool((test(df=5)["df"] == 5).all())
    normal, statistic = test(df="normal"), test()["statistic"]
    np.testing.assert_allclose(normal["pvalue"], stats.chi2.sf(statistic, 2))
    np.testing.assert_allclose(test(df=5.0)["pvalue"], stats.f.sf(statistic / 2, 2, 5))
    assert test()["n_tested"].tolist() == [[2], [2]] and bool(((test()["df"] > 1) & (test()["df"] <= 24)).all())
    joint = test(contrasts={"any": [[1.0]]}, df=7)
    assert (joint["by"], joint["covariate"]) == ("contrast", ["any"])
    wide, narrow = model.get_effects(df=3), model.get_effects(df="normal")
    ratio = (wide["log_odds_upper"] - wide["log_odds"]) / (narrow["log_odds_upper"] - narrow["log_odds"])
    np.testing.assert_allclose(ratio, stats.t.ppf(0.975, 3) / stats.norm.ppf(0.975))


def test_effects_are_those_of_the_fit():
    adata = sections(3, n_genes=1, side=3)
    model = fitted(adata)
    table, own = model.get_effects().set_index("isoform"), model.get_gene_model("g0")
    beta, covariance = own.beta[0, 0].numpy(), own.vcov()[0, :2, :2].numpy()
    centre = np.eye(3, 2) - 1 / 3
    np.testing.assert_allclose(table["log_odds"], centre @ beta, atol=1e-9)
    np.testing.assert_allclose(table["log_odds_se"], np.sqrt(np.diag(centre @ covariance @ centre.T)), atol=1e-9)
    eta = own.linear_predictor()[0].detach().numpy()
    drug = (adata.obs["condition"] == "drug").to_numpy()[:, None]
    at = [np.concatenate([eta + (k - drug) * beta, np.zeros((len(eta), 1))], 1) for k in (0, 1)]
    control, treated = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in at)
    np.testing.assert_allclose(table["usage_points"], 100 * (treated - control).mean(0), atol=1e-8)


def test_what_varies_within_groups_is_warned_about():
    adata = sections(4, n_genes=1, side=3)
    model = fitted(adata, "~ age + (1 | section)")
    with pytest.warns(
        UserWarning, match=r"^age varies within section; spots are the units of this test. Add \(1 \+ age"
    ):
        found = model.test_differential_usage("wald", return_results=True, **QUIET)
    assert found["unit"] == [["spots"]] and found["df"][0, 0] > 60
    with pytest.warns(UserWarning, match="spots are the units"):
        model.get_effects()
    model = fitted(adata, "~ condition + (1 | donor)")
    with pytest.warns(UserWarning, match=r"Add \(1 \| donor/sample\) or \(1 \+ condition \| donor\)"):
        model.test_differential_usage("wald", **QUIET)


def test_covariates_that_groups_explain_all_are_refused():
    adata = sections(5, n_genes=1, n_sections=2, side=4)
    with pytest.raises(InvalidArgumentError, match=r"effect \(1 \| section\): .*explain them all"):
        fitted(adata)


def test_space_is_tested_beside_every_level():
    adata = sections(6, n_genes=3)
    pvalues = []
    for formula in ("~ age + condition + (1 | section)", "~ age + section"):
        model = SplisosmGLMM("glmm-full", **NEWTON)
        model.setup_data(adata, design_mtx=formula, section_key="section", min_counts=0)
        model.test_spatial_variability("score", **QUIET)
        pvalues.append(model.get_formatted_test_results("sv")["pvalue"])
    np.testing.assert_allclose(*pvalues, rtol=1e-6)
    adata.obs["pair"] = [f"p{k // 2}" for k in range(adata.n_obs)]
    model.setup_data(adata, design_mtx="~ (1 | pair)", section_key="section", min_counts=0)
    with pytest.raises(InvalidArgumentError, match="have 64 levels for 128 spots, which leaves too little"):
        model.test_spatial_variability("score", **QUIET)


@pytest.mark.parametrize("seed", range(3))
def test_columns_of_levels_span_what_they_stand_for(seed):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"donor": rng.integers(0, 5, 80).astype(str), "age": rng.standard_normal(80)})
    table["sample"] = table["donor"] + rng.choice(["a", "b"], 80)
    groups = [Groups("donor", "~ 1 + age").bind(table), Groups("sample").bind(table)]
    fixed = np.stack([np.ones(80), rng.standard_normal(80)], 1)
    found = columns_with_levels(fixed, groups, "spots")
    dummies = pd.get_dummies(table["donor"]).to_numpy(float)
    every = [fixed, dummies, dummies * table[["age"]].to_numpy(), pd.get_dummies(table["sample"]).to_numpy(float)]
    whole = np.concatenate(every, 1)
    rank = np.linalg.matrix_rank(whole)
    assert found.shape[1] == rank == np.linalg.matrix_rank(found) == np.linalg.matrix_rank(np.hstack([found, whole]))
    np.testing.assert_array_equal(found[:, :2], fixed)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "n_genes"), [("glm", 300), ("glmm-full", 100)])
def test_size_of_a_condition_between_sections(kind, n_genes):
    """Four sections against four: nominal with sections as units, and not at all without."""
    adata = sections(8, n_genes=n_genes, side=6, depth=3.0, sd=0.3)
    model = fitted(adata, kind=kind, isoform_effect="symmetric")
    pvalues = {m: model.test_differential_usage(m, return_results=True, **QUIET)["pvalue"] for m in ("wald", "lrt")}
    null = fitted(adata, kind=kind, isoform_effect="symmetric", with_design=False)
    pvalues["score"] = null.test_differential_usage("score", return_results=True, **QUIET)["pvalue"]
    for method, found in pvalues.items():
        assert np.isfinite(found).all() and stats.binomtest(int((found < 0.05).sum()), n_genes, 0.05).pvalue > 1e-3, (
            method
        )
    naive = SplisosmGLMM("glm")
    naive.setup_data(adata, design_mtx="~ condition", min_counts=0)
    naive.fit(batch_size=64, **QUIET)
    assert (naive.test_differential_usage("score", return_results=True, **QUIET)["pvalue"] < 0.05).mean() > 0.2
