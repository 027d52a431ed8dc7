"""Predictions at fitted and new spots: what they are equal to, what they cover, and what is refused."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pyrosplice import SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.likelihoods import NegativeBinomial
from tests.usage.conftest import tissue_of

MARGINAL = {"fitting_method": "marginal_newton", "var_fix_sigma": False}
BESIDE = {"spot_a": (2.5, 2.5), "spot_b": (5.5, 1.0)}


def fitted(adata, *, options=MARGINAL, kind="glmm-full", **setup):
    model = SplisosmGLMM(kind, **options)
    model.setup_data(adata, min_counts=0, **setup)
    with_design = "design_mtx" in setup
    model.fit(batch_size=32, print_progress=False, with_design_mtx=with_design)
    return model


def new_tissue(**obs):
    return ad.AnnData(obs=pd.DataFrame(obs, index=list(BESIDE)), obsm={"spatial": np.array(list(BESIDE.values()))})


@pytest.fixture(scope="module")
def tissue():
    adata = tissue_of(seed=1, covariates=("smooth", "iid"))
    adata.obs["sample id"] = adata.obs["half"]
    return adata


@pytest.fixture(scope="module")
def model(tissue):
    return fitted(tissue, design_mtx="~ half + iid")


@pytest.fixture(scope="module")
def plain(tissue):
    return fitted(tissue)


def test_at_the_fitted_spots_the_link_is_the_fitted_predictor(model, tissue):
    link = model.predict(what="link")
    assert list(link.columns) == ["gene", "spot", "isoform", "mean", "sd", "lower", "upper", "reason"]
    for gene, one in zip(model.gene_names, model.get_fitted_models(), strict=True):
        expected = one.linear_predictor()[0].detach().numpy()
        np.testing.assert_allclose(link[link.gene == gene]["mean"], expected.ravel(), atol=1e-6)
    np.testing.assert_allclose((link["upper"] - link["mean"]) / link["sd"], 1.6449, atol=1e-4)


@pytest.mark.parametrize("what", ["usage", "mean", "link"])
def test_an_anndata_of_fitted_spots_is_the_fit_in_any_order(model, tissue, what):
    order = np.random.default_rng(0).permutation(tissue.n_obs)
    totals = pd.DataFrame(
        {g: c.sum(-1).numpy() for g, c in zip(model.gene_names, model.analysis.prepared.counts, strict=True)}
    )
    given = {"totals": totals.iloc[order]} if what == "mean" else {}
    here, there = model.predict(what=what), model.predict(tissue[order], what=what, **given)
    keys = ["gene", "spot", "isoform"]
    pd.testing.assert_frame_equal(here.sort_values(keys, ignore_index=True), there.sort_values(keys, ignore_index=True))


def test_usage_and_expected_counts_add_up(model):
    usage, mean = model.predict(genes="gene_1"), model.predict(genes="gene_1", what="mean")
    np.testing.assert_allclose(usage.groupby("spot")["mean"].sum(), 1.0)
    assert ((usage.lower < usage["mean"]) & (usage["mean"] < usage.upper) & (usage.lower > 0)).all()
    totals = model.analysis.prepared.counts[0].sum(-1).repeat_interleave(3).numpy()
    np.testing.assert_allclose(mean["mean"], usage["mean"] * totals)
    np.testing.assert_allclose(mean["upper"], usage["upper"] * totals)


def test_of_two_isoforms_the_interval_is_that_of_the_logit(model):
    """A monotone function of one Gaussian: its quantiles are those of the predictor."""
    link, usage = model.predict(genes="gene_2", what="link"), model.predict(genes="gene_2")
    first = usage[usage.isoform == link.isoform[0]].reset_index()
    for end in ("lower", "upper"):
        expected = 1 / (1 + np.exp(-link[end]))
        np.testing.assert_allclose(first[end], expected, atol=0.01)
    place, weight = np.polynomial.hermite_e.hermegauss(41)
    eta = link["mean"].to_numpy()[:, None] + link["sd"].to_numpy()[:, None] * place
    np.testing.assert_allclose(first["mean"], (1 / (1 + np.exp(-eta))) @ weight / weight.sum(), atol=1e-3)


@pytest.mark.slow
def test_draws_are_joint_repeatable_and_of_the_same_law(model, tissue):
    new = new_tissue(half=["upper", "lower"], iid=[0.0, 1.0])
    places = np.concatenate([tissue.obsm["spatial"][:3], new.obsm["spatial"]])
    both = ad.AnnData(obs=pd.concat([tissue.obs[["half", "iid"]][:3], new.obs]), obsm={"spatial": places})
    genes = ["gene_2", "gene_1"]
    drawn, again = (model.predict(both, draws=600, genes=genes, seed=3) for _ in range(2))
    assert drawn.dims == ("draw", "gene", "spot", "isoform") and drawn.shape == (600, 2, 5, 3)
    assert list(drawn.gene.values) == genes and drawn.isoform_name.values[0, 2] == ""
    np.testing.assert_array_equal(drawn, again)
    assert np.isnan(drawn[:, 0, :, 2]).all()
    table = model.predict(both, genes=genes).set_index(["gene", "spot"])
    for gene, n_isos in zip(genes, (2, 3), strict=True):
        expected, own = table.loc[gene], drawn.sel(gene=gene).isel(isoform=slice(n_isos))
        np.testing.assert_allclose(own.mean("draw").values.ravel(), expected["mean"], atol=0.04)
        np.testing.assert_allclose(own.std("draw").values.ravel(), expected["sd"], rtol=0.15)
        np.testing.assert_allclose(own.quantile(0.05, "draw").values.ravel(), expected["lower"], atol=0.06)


def test_new_covariates_move_the_link_by_their_effect(model, tissue):
    here, there = tissue[:4].copy(), tissue[:4].copy()
    there.obs["iid"] = there.obs["iid"] + 2.0
    moved = model.predict(there, what="link")["mean"] - model.predict(here, what="link")["mean"]
    effect = {
        g: one.beta[0, 1].detach().numpy() for g, one in zip(model.gene_names, model.get_fitted_models(), strict=True)
    }
    expected = np.concatenate([np.tile(2 * effect[g], 4) for g in model.gene_names])
    np.testing.assert_allclose(moved, expected, atol=1e-8)


@pytest.mark.parametrize("design", ["~ half + iid", ["half", "iid"]], ids=str)
def test_covariates_are_made_again_or_given(tissue, design):
    model = fitted(tissue, design_mtx=design)
    new = new_tissue(half=["upper", "lower"], iid=[0.3, -1.0])
    found = model.predict(new)
    columns = {"half[T.upper]": [1, 0], "half_upper": [1, 0], "half_lower": [0, 1], "iid": [0.3, -1.0]}
    given = pd.DataFrame({name: np.array(columns[name], dtype=float) for name in model.covariate_names})
    pd.testing.assert_frame_equal(found, model.predict(new, design_mtx=given[given.columns[::-1]]))
    with pytest.raises(InvalidArgumentError, match="never saw: \\['middle'\\]"):
        model.predict(new_tissue(half=["middle", "lower"], iid=[0.0, 0.0]))
    with pytest.raises(InvalidArgumentError, match="half"):
        model.predict(new_tissue(iid=[0.0, 0.0]))
    with pytest.raises(InvalidArgumentError, match="coordinates alone"):
        model.predict(np.array(list(BESIDE.values())))
    with pytest.raises(InvalidArgumentError, match="expected shape"):
        model.predict(new, design_mtx=np.zeros((2, 5)))


def test_coordinates_alone(plain):
    found = plain.predict(np.array(list(BESIDE.values())))
    np.testing.assert_array_equal(found["mean"], plain.predict(new_tissue())["mean"])
    assert set(found.spot) == {0, 1} and (found.reason == "").all()


def test_sections_by_name_and_an_unknown_one_from_the_prior(tissue):
    whole = ad.concat([tissue, tissue], index_unique="-", merge="same")
    whole.obs["section"] = np.repeat(["a", "b"], tissue.n_obs)
    model = fitted(whole, section_key="section")
    new = new_tissue(section=["a", "elsewhere"])
    found = model.predict(new, what="link", genes="gene_2")
    assert found.reason.tolist() == ["", "no_neighbors"]
    fit = model.analysis.fit.genes[1]
    variance = found["sd"][1] ** 2
    intercept = float(model.get_gene_model("gene_2").vcov()[0, 0, 0])
    assert variance == pytest.approx(float(fit.values["sigma"][0] ** 2) + intercept, rel=0.2)
    assert found["mean"][1] == pytest.approx(float(fit.values["bias_eta"][0]), abs=1e-6)
    with pytest.raises(InvalidArgumentError, match="names the section"):
        model.predict(np.zeros((1, 2)))


@pytest.mark.parametrize("kind", ["glm", "glmm-null"])
def test_without_space_all_are_new(tissue, kind):
    model = fitted(tissue, kind=kind, design_mtx="iid", options=MARGINAL if kind == "glmm-null" else {})
    link = model.predict(new_tissue(iid=[0.5, -0.5]), what="link", genes="gene_2")
    fit = model.analysis.fit.genes[1].values
    expected = float(fit["bias_eta"][0]) + np.array([0.5, -0.5]) * float(fit["beta"][0, 0])
    np.testing.assert_allclose(link["mean"], expected, atol=1e-6)
    spread = float(fit["sigma"][0]) if kind == "glmm-null" else 0.0
    assert (link["sd"] > spread).all() and (link["sd"] < spread + 1.0).all()


def test_saved_models_predict_the_same(model, tmp_path):
    model.save(tmp_path / "model")
    new = new_tissue(half=["upper", "lower"], iid=[0.3, -1.0])
    pd.testing.assert_frame_equal(SplisosmGLMM.load(tmp_path / "model").predict(new), model.predict(new))


def test_what_cannot_be_predicted_is_refused(model, plain, tissue):
    new = new_tissue(half=["upper", "lower"], iid=[0.3, -1.0])
    with pytest.raises(InvalidArgumentError, match="totals"):
        model.predict(new, what="mean")
    with pytest.raises(InvalidArgumentError, match="2 numbers ≥ 0"):
        model.predict(new, what="mean", totals=[1.0, 2.0, 3.0])
    with pytest.raises(InvalidArgumentError, match="totals: expected None"):
        model.predict(new, totals=3)
    with pytest.raises(InvalidArgumentError, match="what"):
        model.predict(new, what="ratio")
    with pytest.raises(KeyError, match="gene_9"):
        model.predict(new, genes="gene_9")
    with pytest.raises(InvalidArgumentError, match="spatial_key"):
        plain.predict(ad.AnnData(obs=new.obs))
    with pytest.raises(InvalidArgumentError, match="2 coordinates a spot, found 3"):
        plain.predict(np.zeros((2, 3)))
    with pytest.raises(InvalidArgumentError, match="joint"):
        fitted(tissue, options={}).predict()
    unread = SplisosmGLMM(**MARGINAL)
    with pytest.raises(NotReadyError):
        unread.predict()


def test_a_given_graph_says_nothing_of_other_spots(tissue):
    tissue = tissue.copy()
    tissue.obsp["graph"] = tissue.obsp["connectivities"]
    model = fitted(tissue, adj_key="graph")
    assert len(model.predict()) == 36 * 17
    with pytest.raises(InvalidArgumentError, match="adj_key"):
        model.predict(new_tissue())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "sigma", "theta", "least", "most"),
    [(2, 0.7, 0.7, 0.74, 0.88), (6, 1.0, 0.7, 0.83, 0.93), (20, 1.0, 0.9, 0.86, 0.95), (6, 1.0, 0.2, 0.83, 0.93)],
)
def test_intervals_cover_the_usage_of_spots_that_were_left_out(depth, sigma, theta, least, most):
    """Nine of ten, where σ can be estimated; at two molecules a spot Laplace's σ is too small, at all spots alike."""
    inside = []
    for seed in range(3):
        settings = {"n_spots": 400, "n_genes": 8, "n_isoforms": 3, "depth": depth, "sigma": sigma, "theta": theta}
        adata = simulate_isoforms(**settings, seed=seed)
        alone, hole = np.random.default_rng(seed).random(400) < 0.15, np.abs(adata.obsm["spatial"] - 10).max(1) <= 3
        model = fitted(adata[~(alone | hole)].copy(), options=MARGINAL | {"graph": "union"})
        truth = pd.DataFrame(np.asarray(adata.layers["true_ratios"]), adata.obs_names, adata.var_names).stack()
        found = model.predict(adata)
        values = truth.loc[list(zip(found.spot, found.isoform, strict=True))].to_numpy()
        covered = (found.lower < values) & (values < found.upper)
        kinds = (alone & ~hole, hole, ~(alone | hole))
        inside.append([covered[found.spot.isin(adata.obs_names[some])].mean() for some in kinds])
    shares = np.mean(inside, 0)
    assert (least < shares).all() and (shares < most).all()


def test_counts_of_random_totals(tissue):
    one = tissue[:, [0, 3, 5]].copy()
    model = fitted(one, options=MARGINAL | {"likelihood": NegativeBinomial(0.2)})
    table, link = model.predict(new_tissue(), what="mean"), model.predict(new_tissue(), what="link")
    assert len(table) == 6 and (table["lower"] > 0).all()
    np.testing.assert_allclose(table["upper"], np.exp(link["upper"]), rtol=0.03)
    np.testing.assert_allclose(table["mean"], np.exp(link["mean"] + link["sd"] ** 2 / 2), rtol=0.01)
    with pytest.raises(InvalidArgumentError, match="random totals"):
        model.predict(new_tissue(), what="mean", totals=3)
    with pytest.raises(InvalidArgumentError, match="what='mean'"):
        model.predict(new_tissue())
    scores = model.cross_validate()
    assert (scores.n_spots == 36).all() and np.isfinite(scores.elpd).all()
    with pytest.raises(InvalidArgumentError, match="laplace"):
        model.cross_validate(method="refit")
