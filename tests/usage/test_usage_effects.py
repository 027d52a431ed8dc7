import numpy as np
import pytest

from pyrosplice._usage.analysis.splisosm import SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError, NotReadyError

QUIET = {"print_progress": False}
MARGINAL = {"fitting_method": "marginal_newton", "var_fix_sigma": False}


def fitted(adata, model_type="glm", with_design_mtx=True, **setup):
    model = SplisosmGLMM(model_type, **({} if model_type == "glm" else MARGINAL))
    model.setup_data(adata, **setup)
    model.fit(batch_size=32, with_design_mtx=with_design_mtx, **QUIET)
    return model


@pytest.mark.parametrize("design", ["half", "number"])
def test_two_groups_differ_by_their_proportions(tissue, design):
    tissue.obs["number"] = (tissue.obs["half"] == "upper").astype(float)
    model = fitted(tissue, design_mtx=design)
    table = model.get_effects(level=0.9, variance="model")
    upper = (tissue.obs["half"] == "upper").to_numpy()
    share, name = (0.5, "half_upper") if design == "half" else (1.0, "number")
    table = table[table["covariate"] == name]
    assert list(table["isoform"]) == list(model.filtered_adata.var_names)
    for gene in model.gene_names:
        rows = table[table["gene"] == gene]
        counts = model.filtered_adata[:, rows["isoform"]].layers["counts"].toarray()
        totals = [counts[mask].sum(0) for mask in (upper, ~upper)]
        ratios = [total / total.sum() for total in totals]
        variance = sum(p * (1 - p) / n.sum() for p, n in zip(ratios, totals, strict=True))
        np.testing.assert_allclose(rows["usage_points"], 100 * share * (ratios[0] - ratios[1]), atol=1e-5)
        np.testing.assert_allclose(rows["usage_points_se"], 100 * share * variance**0.5, rtol=1e-5)
        difference = np.log(ratios[0] / ratios[1])
        np.testing.assert_allclose(rows["log_odds"], share * (difference - difference.mean()), atol=1e-6)
        half = 1.6448536269514722 * rows["log_odds_se"]
        np.testing.assert_allclose(rows["log_odds_upper"] - rows["log_odds"], half)
        np.testing.assert_allclose(rows["log_odds"] - rows["log_odds_lower"], half)


@pytest.mark.parametrize("model_type", ["glm", "glmm-full"])
def test_the_order_of_isoforms_makes_no_difference(tissue, model_type):
    columns = ["gene", "covariate", "isoform"]
    tables = []
    for data in (tissue, tissue[:, ::-1].copy()):
        tables.append(fitted(data, model_type, design_mtx=["smooth", "half"]).get_effects().set_index(columns))
    other = tables[1].loc[tables[0].index]
    assert list(tables[0].columns[:4]) == ["log_odds", "log_odds_se", "log_odds_lower", "log_odds_upper"]
    # one (σ, θ) for all logits is a model of logits, so that the reference matters a little for estimates of the GLMM
    tolerance = 1e-6 if model_type == "glm" else 0.7
    for name in ("log_odds", "usage_points"):
        error = (other[name] - tables[0][name]).abs() / tables[0][f"{name}_se"]
        assert error.max() < tolerance
        np.testing.assert_allclose(other[f"{name}_se"], tables[0][f"{name}_se"], rtol=tolerance)


@pytest.mark.slow
def test_intervals_cover_what_the_data_were_drawn_with():
    adata = simulate_isoforms(n_spots=196, n_genes=120, covariates=("iid",), beta=0.5, sigma=0.5, theta=0.5, seed=11)
    table = fitted(adata, "glmm-full", design_mtx="iid").get_effects()
    beta = adata.var["beta_iid"].to_numpy().reshape(120, 3)
    truth = (beta - beta.mean(1, keepdims=True)).ravel()
    assert np.mean(table["log_odds"] - truth) == pytest.approx(0, abs=0.02)
    covered = (table["log_odds_lower"] < truth) & (truth < table["log_odds_upper"])
    usage = adata.layers["true_ratios"]
    usage = (usage.toarray() if hasattr(usage, "toarray") else np.asarray(usage)).reshape(196, 120, 3)
    slope = usage * (beta - (usage * beta).sum(-1, keepdims=True))
    points = 100 * slope.mean(0).ravel()
    inside = (table["usage_points_lower"] < points) & (points < table["usage_points_upper"])
    for share in (covered.mean(), inside.mean()):
        assert 0.91 < share < 0.985
    np.testing.assert_allclose(table.groupby("gene")["usage_points"].sum(), 0.0, atol=1e-8)


def test_effects_that_there_are_none_of_say_why(tissue):
    model = SplisosmGLMM("glm")
    model.setup_data(tissue, design_mtx="iid")
    with pytest.raises(NotReadyError, match="fit"):
        model.get_effects()
    model.fit(**QUIET)
    with pytest.raises(InvalidArgumentError, match="with_design_mtx=True"):
        model.get_effects()
    model.fit(with_design_mtx=True, **QUIET)
    with pytest.raises(InvalidArgumentError, match=r"level: .*found 95"):
        model.get_effects(level=95)
