import anndata as ad
import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyrosplice._hypothesis.variance.score_test import variance_component_test
from pyrosplice._hypothesis.variance.spatial_kernel import spatial_kernel
from pyrosplice._usage.analysis.options import USAGE_OPTIONS
from pyrosplice._usage.analysis.splisosm import SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.glmm._laplace import Laplace
from tests.paths import shared

QUIET = {"print_progress": False}
MARGINAL = {"fitting_method": "marginal_newton", "var_fix_sigma": False}


def fitted(adata, model_type="glm", *, options=None, fit=None, **setup):
    model = SplisosmGLMM(model_type, **(options or {}))
    model.setup_data(adata, **setup)
    model.fit(batch_size=32, **QUIET, **(fit or {}))
    return model


def table_of(model, kind="du"):
    return model.get_formatted_test_results(kind)


def counts_of(model, gene):
    return model.filtered_adata[:, model.filtered_adata.var["gene_symbol"] == gene].layers["counts"].toarray()


# differential usage


def test_glm_score_of_a_binary_covariate_is_pearson_s_chi_square(tissue):
    model = fitted(tissue, design_mtx="half")
    model.test_differential_usage(variance="model", **QUIET)
    table = table_of(model).set_index(["gene", "covariate"])
    upper = (tissue.obs["half"] == "upper").to_numpy()
    for gene in model.gene_names:
        counts = counts_of(model, gene)
        pearson = stats.chi2_contingency(np.stack([counts[upper].sum(0), counts[~upper].sum(0)]), correction=False)
        for level in ("half_upper", "half_lower"):
            np.testing.assert_allclose(table.loc[(gene, level), "statistic"], pearson.statistic, rtol=1e-8)
            np.testing.assert_allclose(table.loc[(gene, level), "pvalue"], pearson.pvalue, rtol=1e-6)


def test_glm_wald_of_two_groups_is_the_closed_form(tissue):
    model = fitted(tissue, design_mtx="half", fit={"with_design_mtx": True})
    model.test_differential_usage("wald", variance="model", **QUIET)
    table = table_of(model).set_index(["gene", "covariate"])
    upper = (tissue.obs["half"] == "upper").to_numpy()
    for gene in model.gene_names:
        counts = counts_of(model, gene)
        groups = [counts[mask].sum(0).astype(float) for mask in (upper, ~upper)]
        difference = np.subtract(*[np.log(n[:-1] / n[-1]) for n in groups])
        covariance = sum(np.diag(1 / n[:-1]) + 1 / n[-1] for n in groups)
        expected = difference @ np.linalg.solve(covariance, difference)
        for level in ("half_upper", "half_lower"):
            np.testing.assert_allclose(table.loc[(gene, level), "statistic"], expected, rtol=1e-6)
        beta = model.get_gene_model(gene).beta[0].numpy()
        np.testing.assert_allclose(beta, [-difference / 2, difference / 2], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["glm", "glmm-full"])
def test_shift_unit_and_recoding_of_covariates_change_nothing(tissue, model_type):
    values = tissue.obs[["smooth", "iid"]].to_numpy()
    mixed = np.stack([3 - 2 * values[:, 0], 1e3 * values[:, 1] + 7], 1)
    for method in ("score", "wald"):
        found = []
        for design in (values, mixed):
            model = fitted(
                tissue, model_type, options=MARGINAL, design_mtx=design, fit={"with_design_mtx": method == "wald"}
            )
            model.test_differential_usage(method, **QUIET)
            found.append(table_of(model)["pvalue"])
        np.testing.assert_allclose(found[0], found[1], rtol=2e-3 if model_type != "glm" and method == "wald" else 1e-8)


def test_a_gene_whose_effects_cannot_be_estimated_disturbs_no_other(tissue):
    apart = tissue.copy()
    counts = apart.layers["counts"].toarray()
    upper = (apart.obs["half"] == "upper").to_numpy()
    counts[upper, 1] = 0  # the second isoform of gene_1 is never seen there
    apart.layers["counts"] = counts
    wide = np.column_stack([np.arange(36) % 9 == level for level in range(8)]).astype(float)
    found = []
    for adata in (tissue, apart):
        model = fitted(adata, design_mtx=np.column_stack([upper, wide]), fit={"with_design_mtx": True})
        model.test_differential_usage("wald", **QUIET)
        found.append(table_of(model).set_index("gene"))
    assert model.get_training_summary().loc["gene_1", "reason"] == "separated"
    others = model.gene_names[1:]
    np.testing.assert_allclose(found[1].loc[others, "pvalue"], found[0].loc[others, "pvalue"], rtol=1e-6)


def test_glmm_score_is_the_dense_formula(tissue):
    """Score of each covariate at the fit with the other, the covariance as estimated."""
    names = ["smooth", "iid"]
    model = fitted(tissue, "glmm-full", options=MARGINAL, design_mtx=names)
    model.test_differential_usage(variance="model", law="plugin", **QUIET)
    found = table_of(model)["statistic"].to_numpy().reshape(6, 2)
    covariance = model.sp_kernel.dense().numpy()
    for j, (name, other) in enumerate(zip(names, reversed(names), strict=True)):
        beside = fitted(tissue, "glmm-full", options=MARGINAL, design_mtx=[other], fit={"with_design_mtx": True})
        for g, gene in enumerate(model.gene_names):
            counts, fit = counts_of(model, gene), beside.get_gene_model(gene)
            n_logits = counts.shape[1] - 1
            sigma2, theta = fit.var_total()[0, 0].item(), fit.var_sp_prop()[0, 0].item()
            usage = fit.get_isoform_ratio()[0].numpy()[:, :-1]
            total = counts.sum(1)
            prior = np.kron(sigma2 * (theta * covariance + (1 - theta) * np.eye(36)), np.eye(n_logits))
            weight = np.zeros_like(prior)
            for i, (n, p) in enumerate(zip(total, usage, strict=True)):
                block = slice(i * n_logits, (i + 1) * n_logits)
                weight[block, block] = n * (np.diag(p) - np.outer(p, p))
            precision = weight - weight @ prior @ np.linalg.solve(np.eye(len(prior)) + weight @ prior, weight)
            laplace = Laplace(fit.posterior_mode())
            at_mode = (counts[:, :-1] - total[:, None] * usage).ravel()
            np.testing.assert_allclose(laplace.mode.score.ravel(), at_mode, rtol=1e-4, atol=1e-4)
            residual = laplace.residual.numpy().ravel()
            own, others = tissue.obs[[name]].to_numpy(), np.column_stack([np.ones(36), tissue.obs[other]])
            own, others = (np.kron(columns, np.eye(n_logits)) for columns in (own, others))
            own = own - others @ np.linalg.solve(others.T @ precision @ others, others.T @ precision @ own)
            score, information = own.T @ residual, own.T @ precision @ own
            np.testing.assert_allclose(found[g, j], score @ np.linalg.solve(information, score), rtol=1e-4)


def test_strong_effects_of_other_covariates_do_not_spill_over():
    """A covariate without effect that goes with the exponential of one with a strong effect: 5 % in either model."""
    adata = simulate_isoforms(n_spots=200, n_genes=60, n_isoforms=2, covariates=("iid",), beta=1.0, sigma=0.0, seed=5)
    rng = np.random.default_rng(1)
    adata.obs["curved"] = np.exp(adata.obs["iid"]) + 0.5 * rng.standard_normal(200)
    for model_type, options in (("glm", None), ("glmm-full", MARGINAL)):
        model = fitted(adata, model_type, options=options, design_mtx=["iid", "curved"])
        pvalue = model.test_differential_usage(return_results=True, **QUIET)["pvalue"][:, 1]
        rejected = int((pvalue < 0.05).sum())
        assert rejected <= stats.binom.ppf(0.999, 60, 0.05)


def test_other_covariates_are_adjusted_for():
    rng = np.random.default_rng(0)
    adata = simulate_isoforms(n_spots=400, n_genes=30, covariates=("iid",), beta=1.0, sigma=0.0, depth=10, seed=3)
    adata.obs["shadow"] = adata.obs["iid"] + 0.5 * rng.standard_normal(400)
    model = fitted(adata, design_mtx=["iid", "shadow"])
    model.test_differential_usage(**QUIET)
    together = table_of(model).pivot(index="gene", columns="covariate", values="pvalue")
    assert (together["iid"] < 1e-8).all()
    assert (together["shadow"] < 0.05).mean() < 0.2
    alone = fitted(adata, design_mtx="shadow")
    alone.test_differential_usage(**QUIET)
    assert (table_of(alone)["pvalue"] < 1e-3).all()


@pytest.mark.slow
def test_null_genes_have_the_right_size_and_effects_are_found():
    beta = np.zeros((120, 2, 2))
    beta[60:, 1] = [0.6, 0.0]
    adata = simulate_isoforms(n_spots=196, n_genes=120, covariates=("smooth", "iid"), beta=beta, seed=5)
    model = fitted(adata, "glmm-full", options=MARGINAL, design_mtx=["smooth", "iid"])
    model.test_differential_usage(**QUIET)
    pvalues = table_of(model).pivot(index="gene", columns="covariate", values="pvalue").loc[model.gene_names]
    null = np.concatenate([pvalues["smooth"], pvalues["iid"].iloc[:60]])
    assert stats.binomtest(int((null < 0.05).sum()), len(null), 0.05).pvalue > 1e-3
    assert (pvalues["iid"].iloc[60:] < 0.05).mean() > 0.9


def test_du_tables_are_gene_major_and_adjusted_by_covariate(tissue):
    model = fitted(tissue, design_mtx=["smooth", "iid"])
    results = model.test_differential_usage(return_results=True, **QUIET)
    assert results["pvalue"].shape == (6, 2)
    with pytest.raises(ValueError, match="no results yet"):
        table_of(model)
    assert model.test_differential_usage(**QUIET) is None
    table = table_of(model)
    assert list(table.columns) == ["gene", "covariate", "statistic", "pvalue", "pvalue_adj", "reason"]
    assert list(table["gene"]) == list(np.repeat(model.gene_names, 2))
    assert list(table["covariate"]) == ["smooth", "iid"] * 6
    for _, some in table.groupby("covariate"):
        np.testing.assert_allclose(some["pvalue_adj"], stats.false_discovery_control(some["pvalue"]))
    wide = model.get_formatted_test_results("du", with_gene_summary=True)
    assert list(wide.columns[6:]) == ["n_isos", "perplexity", "pct_bin_on", "count_avg", "count_std"]
    assert list(wide["gene"]) == list(table["gene"])


# spatial variability


def test_sv_score_is_the_variance_component_test_gene_by_gene(tissue):
    model = SplisosmGLMM()
    model.setup_data(tissue)
    model.test_spatial_variability(method="score", **QUIET)  # needs no fit
    table = table_of(model, "sv")
    assert list(table.columns) == ["gene", "statistic", "pvalue", "pvalue_adj", "reason"]
    kernel = spatial_kernel(model.sp_kernel)
    for row in table.itertuples():
        expected = variance_component_test(torch.tensor(counts_of(model, row.gene))[None], kernel)
        np.testing.assert_allclose(row.statistic, expected.statistic.item(), rtol=1e-10)
        np.testing.assert_allclose(row.pvalue, expected.pvalue.item(), rtol=1e-8)
    np.testing.assert_allclose(table["pvalue_adj"], stats.false_discovery_control(table["pvalue"]))


@pytest.mark.parametrize("with_design", [False, True])
def test_tests_of_space_adjust_for_the_covariates_whatever_the_fit(with_design):
    adata = simulate_isoforms(n_spots=144, n_genes=20, covariates=("smooth",), beta=0.8, sigma=0.0, depth=20, seed=2)
    fit = {"with_design_mtx": with_design, "from_null": True}
    model = fitted(adata, "glmm-full", design_mtx="smooth", options=MARGINAL, fit=fit)
    for method in ("score", "llr"):
        model.test_spatial_variability(method, **QUIET)
        assert (table_of(model, "sv")["pvalue"] < 0.01).sum() <= 2
        model.test_spatial_variability(method, adjust_for_design=False, **QUIET)
        assert (table_of(model, "sv")["pvalue"] < 0.01).all()


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"use_perm_null": True, "n_perms_per_gene": 3}, {"n_bootstrap": 3}])
def test_ratios_of_space_do_not_depend_on_what_was_fitted_before(tissue, how):
    found = []
    for options, with_design in ((MARGINAL, True), (MARGINAL, False), ({}, False)):
        fit = {"with_design_mtx": with_design, "from_null": True}
        model = fitted(tissue[:, :5].copy(), "glmm-full", options=options, design_mtx="iid", fit=fit)
        found.append(model.test_spatial_variability(return_results=True, **how, **QUIET))
    for other in found[1:]:
        np.testing.assert_allclose(other["statistic"], found[0]["statistic"], atol=1e-4)
        np.testing.assert_allclose(other["pvalue"], found[0]["pvalue"], atol=0.02)


@pytest.mark.slow
def test_llr_compares_marginal_optima_whatever_the_fit_was(tissue):
    tables = []
    for options in ({}, MARGINAL, {**MARGINAL, "fitting_configs": {"max_epochs": 1}}):
        model = fitted(tissue, "glmm-full", options=options, fit={"from_null": True})
        model.test_spatial_variability(**QUIET)
        tables.append(table_of(model, "sv"))
        assert (tables[-1]["statistic"] >= -1e-6).all()
    for table in tables[1:]:
        np.testing.assert_allclose(table["statistic"], tables[0]["statistic"], atol=1e-3)
    positive = tables[0]["statistic"] > 1e-5
    limit = np.where(positive, 0.5 * stats.chi2.sf(tables[0]["statistic"], 1), 1.0)
    assert (tables[0]["pvalue"][positive] < limit[positive]).all()  # few spots: most ratios are 0 without space
    model.test_spatial_variability(null_law="boundary", **QUIET)
    np.testing.assert_allclose(table_of(model, "sv")["pvalue"], limit, rtol=1e-6, atol=1e-4)
    with pytest.raises(InvalidArgumentError, match="null_law"):
        model.test_spatial_variability(null_law="exact", **QUIET)


def test_results_as_a_dictionary_say_how_they_were_made(tissue):
    model = fitted(tissue, "glmm-full", options=MARGINAL, fit={"from_null": True})
    found = model.test_spatial_variability(return_results=True, **QUIET)
    assert (found["method"], found["df"], found["use_perm_null"]) == ("llr", 1, False)
    apart = fitted(tissue, "glmm-full", options={**MARGINAL, "share_variance": False}, fit={"from_null": True})
    found = apart.test_spatial_variability(return_results=True, **QUIET)
    assert list(found["df"]) == [k - 1 for k in apart.n_isos_per_gene]


@pytest.mark.slow
def test_spatial_genes_are_found_and_others_are_not():
    theta = np.repeat([0.0, 0.9], 40)
    adata = simulate_isoforms(n_spots=196, n_genes=80, theta=theta, depth=8, seed=7)
    model = fitted(adata, "glmm-full", options=MARGINAL, fit={"from_null": True})
    for method in ("score", "llr"):
        model.test_spatial_variability(method, **QUIET)
        pvalue = table_of(model, "sv")["pvalue"].to_numpy()
        assert stats.binomtest(int((pvalue[:40] < 0.05).sum()), 40, 0.05).pvalue > 1e-3
        assert (pvalue[40:] < 0.05).mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("method", ["score", "llr"])
@pytest.mark.parametrize("with_design", [False, True])
def test_permutations_are_seeded_distinct_and_never_give_zero(tissue, method, with_design):
    tissue = tissue[:, :7].copy()
    fit = {"from_null": True, "with_design_mtx": with_design}
    model = fitted(tissue, "glmm-full", options=MARGINAL, fit=fit, design_mtx="iid")
    n = 19 if method == "score" else 5
    ask = {"use_perm_null": True, "n_perms_per_gene": n, "return_results": True, **QUIET}
    first = model.test_spatial_variability(method, random_seed=1, **ask)
    again = model.test_spatial_variability(method, random_seed=1, **ask)
    plain = model.test_spatial_variability(method, return_results=True, **QUIET)
    np.testing.assert_array_equal(first["pvalue"], again["pvalue"])
    np.testing.assert_allclose(first["statistic"], plain["statistic"], atol=1e-8)
    steps = first["pvalue"] * (n + 1)
    np.testing.assert_allclose(steps, np.rint(steps))
    assert steps.min() >= 1
    if method == "score":
        others = (model.test_spatial_variability(method, random_seed=seed, **ask)["pvalue"] for seed in range(2, 7))
        assert any((other != first["pvalue"]).any() for other in others)


@pytest.mark.filterwarnings("ignore::pyrosplice.errors.UnreliableWarning")
def test_results_survive_a_file_and_not_a_new_fit(tissue, tmp_path):
    model = fitted(tissue, "glmm-full", options=MARGINAL, design_mtx=["smooth", "half"])
    model.test_spatial_variability("score", **QUIET)
    model.test_differential_usage(**QUIET)
    model.save(tmp_path / "model")
    again = SplisosmGLMM.load(tmp_path / "model")
    for kind in ("sv", "du"):
        pd.testing.assert_frame_equal(table_of(again, kind), table_of(model, kind))
    assert "score" in repr(again).split("sv test")[1]
    again.fit(batch_size=32, **QUIET)
    for kind in ("sv", "du"):
        with pytest.raises(ValueError, match="no results yet"):
            table_of(again, kind)


@pytest.mark.parametrize(
    ("model_type", "setup", "fit", "ask", "message"),
    [
        ("glm", {}, {}, lambda m: m.test_differential_usage(), "design_mtx: .*without a design"),
        ("glm", {"design_mtx": "iid"}, {}, lambda m: m.test_differential_usage("wald"), "with_design_mtx=True, found"),
        (
            "glm",
            {"design_mtx": "iid"},
            {"with_design_mtx": True},
            lambda m: m.test_differential_usage("score"),
            "with_design_mtx=False, found True",
        ),
        ("glm", {"design_mtx": "iid"}, {}, lambda m: m.test_differential_usage("anova"), "method: .*'anova'"),
        ("glm", {}, {}, lambda m: m.test_spatial_variability("score"), "model_type='glm' has no space"),
        ("glmm-null", {}, {}, lambda m: m.test_spatial_variability("score"), "model_type='glmm-null' has no space"),
        ("glmm-full", {}, {}, lambda m: m.test_spatial_variability(), "from_null=True"),
        ("glmm-full", {}, {}, lambda m: m.test_spatial_variability("wald"), "method: .*'wald'"),
        ("glmm-full", {}, {}, lambda m: m.test_spatial_variability("score", perms=3), "'perms'"),
        (
            "glmm-full",
            {},
            {},
            lambda m: m.test_spatial_variability("score", use_perm_null=True, n_perms_per_gene=0),
            "n_perms_per_gene: .*found 0",
        ),
        ("glm", {}, {}, lambda m: m.get_formatted_test_results("sv"), "test_type='sv': there are no results yet"),
        ("glm", {}, {}, lambda m: m.get_formatted_test_results("dtu"), "test_type: .*'dtu'"),
    ],
)
def test_what_cannot_be_tested_says_why(tissue, model_type, setup, fit, ask, message):
    model = fitted(tissue[:, :5].copy(), model_type, fit=fit, **setup)
    with pytest.raises(InvalidArgumentError, match=message):
        ask(model)


def test_tests_that_need_a_fit_say_so(tissue):
    model = SplisosmGLMM()
    model.setup_data(tissue, design_mtx="iid")
    for ask in (model.test_spatial_variability, model.test_differential_usage):
        with pytest.raises(NotReadyError, match="fit"):
            ask()


@pytest.mark.filterwarnings("ignore::pyrosplice.errors.UnreliableWarning")
@pytest.mark.slow
def test_mouse_olfactory_bulb_from_file_to_tables():
    adata = ad.read_h5ad(shared("data", "mob_rep11_families.h5ad"))
    gold = pd.read_csv(shared("gold", "b_mob_families_tmb.csv")).set_index(["depth", "family"])
    adata.obs["x"] = adata.obsm["spatial"][:, 0]
    model = SplisosmGLMM(graph="union", **MARGINAL)
    model.setup_data(adata, layer="counts_thinned", design_mtx="x", group_gene_by_n_iso=True, min_counts=1)
    model.fit(batch_size=32, from_null=True, **QUIET)
    assert (model.n_spots, model.n_genes) == (260, 30)
    assert model.get_training_summary()["converged"].all()
    found = -model.get_training_summary()["best_loss"]
    expected = gold.loc["thinned"].loc[found.index, "ll_free"]
    assert (found >= expected - 1e-4).all()
    for method in ("llr", "score"):
        model.test_spatial_variability(method, **QUIET)
        assert table_of(model, "sv")["pvalue"].between(0, 1).all()
    model.test_differential_usage(**QUIET)
    table = table_of(model)  # a coordinate is one wave over the tissue
    given = table["pvalue"].between(0, 1)
    assert (table.loc[~given, "reason"] == "few_modes").all() and given.any()
    ratios = model.get_fitted_ratios_anndata().layers["fitted_ratios"]
    np.testing.assert_allclose(ratios.sum(1), 30.0)


@pytest.mark.parametrize("name", sorted({option for options in USAGE_OPTIONS.values() for option in options}))
def test_a_covariate_may_be_called_as_an_option_is(name):
    """Its tests are those of any other name."""
    adata = simulate_isoforms(n_spots=36, n_genes=2, seed=0)
    values = np.random.default_rng(0).normal(size=36)
    found = []
    for covariate in ("z", name):
        model = SplisosmGLMM(model_type="glm")
        model.setup_data(adata, design_mtx=values, covariate_names=[covariate])
        model.fit(print_progress=False)
        model.test_differential_usage(method="score", print_progress=False)
        found.append(model.get_formatted_test_results("du")["pvalue"].to_numpy())
    np.testing.assert_array_equal(*found)


def test_a_covariate_in_the_place_of_an_option_is_recognized(tissue):
    model = fitted(tissue[:, :5].copy(), design_mtx="iid")
    for option in ("method", "by", "variance"):
        with pytest.raises(InvalidArgumentError, match=f"{option}: .*'iid', a covariate"):
            model.test_differential_usage(**{option: "iid"})
    model.fit(with_design_mtx=True, **QUIET)
    with pytest.raises(InvalidArgumentError, match=r"\['iid'\], found \['idi'\]"):
        model.test_differential_usage("wald", contrasts={"typo": {"idi": 1}})


def test_what_is_missing_first_is_named_first(tissue):
    model = SplisosmGLMM()
    with pytest.raises(ValueError, match="setup_data"):
        model.test_differential_usage()
    model.setup_data(tissue)
    with pytest.raises(ValueError, match="design_mtx"):
        model.test_differential_usage()
    model.setup_data(tissue, design_mtx="iid")
    with pytest.raises(ValueError, match="fit"):
        model.test_differential_usage()


@pytest.mark.parametrize("model_type", ["glm", "glmm-null", "glmm-full"])
def test_no_epochs_give_the_start_values_and_tests_fit_by_themselves(tissue, model_type):
    start = {"fitting_configs": {"max_epochs": 0}}
    model = fitted(tissue[:, :8].copy(), model_type, options={**MARGINAL, **start}, design_mtx="iid")
    assert set(model.get_training_summary()["reason"]) == {"max_epochs"}
    assert all((one.bias_eta == 0).all() for one in model.get_fitted_models())
    other = fitted(tissue[:, :8].copy(), model_type, options=MARGINAL, design_mtx="iid")
    for method in ("score", "lrt"):
        found = [m.test_differential_usage(method, return_results=True, **QUIET)["pvalue"] for m in (model, other)]
        np.testing.assert_allclose(*found, rtol=1e-4)


def test_fits_that_tests_need_are_made_once(tissue, monkeypatch):
    model = fitted(tissue[:, :5].copy(), design_mtx=["iid", "smooth"])
    model.test_differential_usage("lrt", **QUIET)
    fits = len(model.analysis.test_fits)
    monkeypatch.setattr("pyrosplice._usage.analysis.fits.fit_genes", None)
    for method, variance in (("score", "robust"), ("lrt", "model")):
        model.test_differential_usage(method, variance=variance, **QUIET)
    assert len(model.analysis.test_fits) == fits


@pytest.mark.parametrize("model_type", ["glm", "glmm-null"])
def test_priors_enter_the_tests_of_usage(tissue, model_type):
    """Ratios are of maxima of one density, whatever constants the priors have; narrow priors leave nothing to see."""
    narrow = {"beta": dist.Normal(torch.tensor(0.0).double(), torch.tensor(1e-4).double())}
    wide = {"beta": dist.Normal(torch.tensor(0.0).double(), torch.tensor(1e4).double())}
    found = {}
    for name, priors in (("none", None), ("wide", wide), ("narrow", narrow)):
        options = {**MARGINAL, "priors": priors}
        for method in ("lrt", "wald"):
            fit = {"with_design_mtx": method == "wald"}
            model = fitted(tissue[:, :8].copy(), model_type, options=options, design_mtx=["iid", "smooth"], fit=fit)
            for variance in ("robust", "model"):
                test = model.test_differential_usage(method, variance=variance, return_results=True, **QUIET)
                found[name, method, variance] = test["pvalue"]
    for method in ("lrt", "wald"):
        for variance in ("robust", "model"):
            np.testing.assert_allclose(found["wide", method, variance], found["none", method, variance], rtol=1e-3)
            assert (found["narrow", method, variance] > 0.99).all()


def test_the_ratio_of_space_says_that_it_leaves_out_priors(tissue):
    small = tissue[:, :5].copy()
    plain = fitted(small, "glmm-full", options=MARGINAL, fit={"from_null": True})
    model = fitted(small, "glmm-full", options={**MARGINAL, "priors": "weak"}, fit={"from_null": True})
    with pytest.warns(UserWarning, match="priors are left out"):
        model.test_spatial_variability(**QUIET)
    plain.test_spatial_variability(**QUIET)
    np.testing.assert_allclose(table_of(model, "sv")["statistic"], table_of(plain, "sv")["statistic"], atol=1e-4)
