"""A gene that is not seen wherever a covariate varies: tested is what its spots identify, as if there were no other."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2

from pyrosplice import SplisosmGLMM

QUIET = {"print_progress": False}
ASK = {"return_results": True, **QUIET}
N = 144
MODELS = ("glm", "glmm-null", "glmm-full")
VARIANCES = ("robust", "model")


def tissue(uncovered, seed=3, n_isos=3):
    """Two genes; the second has no molecules at the spots of ``uncovered``, a function of the table of covariates."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"region": pd.Categorical(np.repeat(["A", "B", "C"], 48))}, index=[f"s{i}" for i in range(N)])
    obs["x"] = rng.normal(size=N)
    obs["only_in_a"] = np.where(obs["region"] == "A", rng.normal(size=N), 0.0)
    obs["x_but_in_a"] = np.where(obs["region"] == "A", rng.normal(size=N), 2 * obs["x"] + 1)
    totals = rng.poisson(8, (2, N))
    totals[1, uncovered(obs)] = 0
    usage = np.full((N, n_isos), 1.0)
    usage[obs["region"] == "B", 0] = 2.0
    usage /= usage.sum(1, keepdims=True)
    counts = np.concatenate(
        [np.stack([rng.multinomial(t, p) for t, p in zip(t, usage, strict=True)]) for t in totals], 1
    )
    names = [f"{gene}_{i}" for gene in ("seen", "partly") for i in range(n_isos)]
    var = pd.DataFrame({"gene_symbol": np.repeat(["seen", "partly"], n_isos)}, index=names)
    adata = ad.AnnData(counts.astype(float), obs=obs, var=var)
    adata.layers["counts"] = adata.X
    adata.obsm["spatial"] = np.stack(np.divmod(np.arange(N), 12), 1).astype(float)
    return adata


def in_a(obs):
    return (obs["region"] == "A").to_numpy()


def results_of(adata, model_type, design, method, **how):
    model = SplisosmGLMM(model_type, fitting_method="marginal_newton", var_fix_sigma=False)
    model.setup_data(adata, design_mtx=design, covariance=how.pop("covariance", None))
    model.fit(batch_size=2, with_design_mtx=method == "wald", **QUIET)
    return model, model.test_differential_usage(method, **how, **ASK)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("method", ["score", "wald", "lrt"])
@pytest.mark.parametrize("model_type", ["glm", "glmm-null"])
def test_a_factor_is_tested_as_without_its_empty_level(model_type, method, variance):
    adata = tissue(in_a)
    how = {"by": "factor", "variance": variance}
    _, whole = results_of(adata, model_type, ["region", "x"], method, **how)
    _, part = results_of(adata[~in_a(adata.obs)].copy(), model_type, ["region", "x"], method, **how)
    assert whole["df"].tolist() == [[4, 2], [2, 2]]
    assert part["df"].tolist() == [[2, 2], [2, 2]]
    np.testing.assert_allclose(whole["statistic"][1], part["statistic"][1], rtol=2e-3 if model_type != "glm" else 1e-6)
    np.testing.assert_allclose(whole["pvalue"][1], part["pvalue"][1], rtol=2e-2 if model_type != "glm" else 1e-6)
    assert whole["reason"] == [["", ""], ["", ""]]
    if variance == "model":
        np.testing.assert_allclose(whole["pvalue"], chi2.sf(whole["statistic"], whole["df"]), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyrosplice.errors.UnreliableWarning")
@pytest.mark.parametrize("method", ["score", "wald", "lrt"])
@pytest.mark.parametrize("model_type", MODELS)
def test_what_is_not_identified_says_so_and_spoils_nothing_else(model_type, method):
    adata = tissue(in_a)
    model, found = results_of(adata, model_type, ["region", "x", "only_in_a"], method)
    rows = dict(zip(found["covariate"], zip(*found["reason"], strict=True), strict=True))
    missing = {"region_A", "only_in_a"} | ({"region_B", "region_C"} if method == "wald" else set())
    assert {name for name, reasons in rows.items() if reasons[1]} == missing
    assert {reason for reasons in rows.values() for reason in reasons} == {"", "not_identified"}
    assert np.isfinite(found["pvalue"][0]).all()
    assert (np.isnan(found["pvalue"][1]) == [name in missing for name in found["covariate"]]).all()
    assert ((found["df"][1] == 0) == np.isnan(found["pvalue"][1])).all()
    assert model.test_differential_usage(method, **QUIET) is None
    table = model.get_formatted_test_results("du").set_index(["gene", "covariate"])
    assert table.loc[("partly", "only_in_a"), "reason"] == "not_identified"
    assert (table["reason"] != "").sum() == len(missing)


@pytest.mark.parametrize("model_type", ["glm", "glmm-null"])
def test_collinear_over_the_covered_spots_only(model_type):
    """Beside each other neither is identified; together they have one column."""
    adata = tissue(in_a)
    design = "~ x + x_but_in_a"
    for method in ("score", "wald", "lrt"):
        _, found = results_of(adata, model_type, design, method)
        assert found["reason"] == [["", ""], ["not_identified", "not_identified"]]
    together = {"both": np.eye(2)}
    _, found = results_of(adata, model_type, design, "wald", contrasts=together)
    _, alone = results_of(adata[~in_a(adata.obs)].copy(), model_type, "x", "wald")
    assert found["df"].tolist() == [[4], [2]]
    np.testing.assert_allclose(found["pvalue"][1], alone["pvalue"][1], rtol=2e-2)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("model_type", ["glm", "glmm-null"])
def test_contrasts_and_effects_of_the_levels_that_are_seen(model_type, variance):
    adata = tissue(in_a)
    contrasts = {"B - C": {"region_B": 1, "region_C": -1}, "A - C": {"region_A": 1, "region_C": -1}}
    model, whole = results_of(adata, model_type, ["region", "x"], "wald", contrasts=contrasts, variance=variance)
    del contrasts["A - C"]
    part_of = adata[~in_a(adata.obs)].copy()
    other, part = results_of(part_of, model_type, ["region", "x"], "wald", contrasts=contrasts, variance=variance)
    np.testing.assert_allclose(whole["pvalue"][1, 0], part["pvalue"][1, 0], rtol=2e-2)
    assert whole["reason"] == [["", ""], ["", "not_identified"]]
    effects, alone = (
        m.get_effects(variance=variance).set_index(["gene", "covariate"]).sort_index() for m in (model, other)
    )
    columns = effects.columns.drop(["isoform", "reason"])
    assert effects.loc["partly"].loc[["region_A", "region_B", "region_C"], columns].isna().all(axis=None)
    np.testing.assert_allclose(
        effects.loc[("partly", "x"), columns].to_numpy(), alone.loc[("partly", "x"), columns].to_numpy(), rtol=1e-3
    )
    assert effects.loc["seen", columns].notna().all(axis=None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyrosplice.errors.UnreliableWarning")
@pytest.mark.parametrize("model_type", MODELS)
def test_few_and_no_spots(model_type):
    """Genes seen at one, two or a few spots beside one that is seen everywhere, which stays as it is."""
    adata = tissue(lambda obs: np.zeros(N, bool))
    seen = None
    for n_spots in (1, 2, 4):
        some = adata.copy()
        counts = some.layers["counts"].copy()
        counts[0, 3:], counts[n_spots:, 3:] = (2, 3, 1), 0
        some.layers["counts"] = counts
        for method in ("score", "wald", "lrt"):
            model = SplisosmGLMM(model_type, fitting_method="marginal_newton", var_fix_sigma=False)
            model.setup_data(some, design_mtx=["region", "x"], min_counts=1)
            model.fit(batch_size=2, with_design_mtx=method == "wald", **QUIET)
            found = model.test_differential_usage(method, by="factor", **ASK)
            missing = np.isnan(found["pvalue"])
            assert not missing[0].any()
            assert all(bool(reason) == gone for reason, gone in zip(found["reason"][1], missing[1], strict=True))
            assert missing[1].all() or n_spots > 2
            if method == "score":
                seen = found["pvalue"][0] if seen is None else seen
                np.testing.assert_allclose(found["pvalue"][0], seen, rtol=1e-4)
