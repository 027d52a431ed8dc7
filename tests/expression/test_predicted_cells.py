"""Predictions of cells: fitted and new ones, known and unknown levels, size factors, coverage, refusals."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyrosplice import ExpressionGLM
from pyrosplice._expression.expression_model import ExpressionModel
from pyrosplice.effects import Field, Groups, Independent
from pyrosplice.errors import InvalidArgumentError, NotReadyError, RefusedModelError
from pyrosplice.spatial import CarCovariance, knn_graph
from tests.expression.test_random_effects import Batch, donors, tissue

FORMULAS = (
    "~ treatment",
    "~ treatment + state:age",
    "~ treatment + (1 | donor)",
    "~ treatment + (1 + state | donor)",
    "~ state + (1 | donor/state)",
)


def numbers(table: pd.DataFrame) -> np.ndarray:
    return table[["mean", "sd", "lower", "upper"]].to_numpy()


def fit(formula: str, **options: object) -> ExpressionGLM:
    return ExpressionGLM(formula, as_numeric=["age"], **options).fit(donors(genes=3), size_factors="size")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> ExpressionGLM:
    return fit("~ treatment + (1 | donor)")


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("what", ["mean", "link"])
def test_a_fitted_cell_is_predicted_alike_by_its_table(formula: str, what: str) -> None:
    glm, adata = fit(formula), donors(genes=3)
    own = glm.predict(what=what)  # type: ignore[arg-type]
    assert (
        list(own.columns) == ["gene", "cell", "mean", "sd", "lower", "upper", "reason"] and (own["reason"] == "").all()
    )
    assert list(own["cell"][: adata.n_obs]) == list(adata.obs_names)
    order = np.random.default_rng(0).permutation(adata.n_obs)[:40]  # some levels are not among them
    order = order[(adata.obs["state"] == "b").to_numpy()[order]]
    for new in (adata[order].copy(), adata.obs.iloc[order]):
        found = glm.predict(new, what=what, size_factors="size", genes=["g2"])  # type: ignore[arg-type]
        expected = own[own["gene"] == "g2"].iloc[order]
        np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-7)
        assert list(found["cell"]) == list(expected["cell"])


def test_the_mean_is_the_lognormals_and_size_factors_multiply() -> None:
    glm = fit("~ treatment + (1 | donor)")
    new = pd.DataFrame({"treatment": ["drug"], "donor": ["d1"]})
    link, mean = glm.predict(new, what="link"), glm.predict(new, level=0.5)
    np.testing.assert_allclose(mean["mean"], np.exp(link["mean"] + link["sd"] ** 2 / 2))
    np.testing.assert_allclose(mean["sd"], mean["mean"] * np.sqrt(np.expm1(link["sd"] ** 2)))
    np.testing.assert_allclose(np.log(mean["upper"] / mean["lower"]), 2 * 0.6744897502 * link["sd"])
    np.testing.assert_allclose(glm.predict(new, size_factors=[3.0])["mean"], 3 * mean["mean"] / 1.0, rtol=1e-12)


def test_a_level_that_was_not_seen_has_the_variance_of_the_effect() -> None:
    glm = fit("~ treatment + (1 | donor)")
    new = pd.DataFrame({"treatment": ["control", "drug"], "donor": ["somebody", "else"]})
    table = glm.predict(new, what="link")
    summary = glm.summary().set_index(["gene", "coefficient"])
    sd = glm.variance_components().set_index("gene")["estimate"]
    for gene in ("g0", "g1", "g2"):
        intercept = summary.loc[(gene, "Intercept")]
        found = table[table["gene"] == gene].iloc[0]
        np.testing.assert_allclose(found["mean"], intercept["effect"], rtol=1e-8)
        np.testing.assert_allclose(found["sd"], np.hypot(intercept["se"], sd[gene]), rtol=1e-5)
    with pytest.raises(InvalidArgumentError, match=r"new_levels.*'else', 'somebody'"):
        glm.predict(new, new_levels="raise")


def test_means_and_draws_of_a_fit_are_given_the_modes() -> None:
    glm, adata = fit("~ treatment + (1 | donor)"), donors(genes=3)
    level = glm.random_effects().pivot(index="level", columns="gene", values="effect").loc[adata.obs["donor"]]
    location = glm.summary().pivot(index="coefficient", columns="gene", values="effect")
    design = np.stack([np.ones(adata.n_obs), adata.obs["treatment"] == "drug"], 1)
    eta = design @ location.to_numpy() + level.to_numpy() + np.log(adata.obs["size"].to_numpy())[:, None]
    model = glm.estimator.model
    np.testing.assert_allclose(model.location, np.exp(eta), rtol=1e-9)
    np.testing.assert_allclose(model.location_j(["g1"]), np.exp(eta[:, [1]]), rtol=1e-9)
    drawn = np.mean([glm.sample_counts(slice(None), seed=seed) for seed in range(40)], 0)
    group = adata.obs["donor"].to_numpy()
    ratio = pd.DataFrame(drawn).groupby(group).mean() / pd.DataFrame(np.exp(eta)).groupby(group).mean()
    assert ((ratio - 1).abs() < 0.12).all(axis=None)


def test_intervals_cover_the_predictors_of_known_and_new_donors() -> None:
    rng, n_genes, n_donors = np.random.default_rng(1), 200, 24
    donor = np.repeat(np.arange(n_donors), 12)
    x = rng.normal(size=len(donor))
    u = rng.normal(0, 0.5, (n_donors, n_genes))
    eta = 1.0 + 0.3 * x[:, None] + u[donor]
    counts = rng.negative_binomial(4, 4 / (4 + np.exp(eta))).astype(float)
    obs = pd.DataFrame({"donor": [f"d{k}" for k in donor], "x": x})
    fitted = donor < 18
    glm = ExpressionGLM("~ x + (1 | donor)", as_numeric=["x"])
    glm.fit(counts[fitted], sample_description=obs[fitted].reset_index(drop=True))
    covered = {}
    for name, rows in (("known", np.flatnonzero(fitted)[::7]), ("new", np.flatnonzero(~fitted)[::6])):
        table = glm.predict(obs.iloc[rows], what="link")
        truth = eta[rows].T.ravel()
        covered[name] = table["lower"].le(truth).to_numpy() & table["upper"].ge(truth).to_numpy()
    assert 0.86 < covered["known"].mean() < 0.93  # measured: .885
    assert 0.82 < covered["new"].mean() < 0.93  # measured: .874; the variance is taken as known


def test_effects_of_cells_and_fields_are_known_at_fitted_cells() -> None:
    adata = tissue(genes=2)
    glm = ExpressionGLM("~ condition + (1 | section)", space=Field(k_neighbors=4), section_key="section").fit(adata)
    own = glm.predict(what="link")
    assert (own["sd"] > 0).all() and (own["reason"] == "").all()
    np.testing.assert_allclose(own["mean"], glm.estimator.model.eta_loc.T.ravel(), rtol=1e-12)
    noisy = ExpressionGLM("~ condition", effects=[Groups("section"), Independent()]).fit(adata)
    sd = noisy.variance_components().query("effect == 'cell'")["estimate"].to_numpy()
    other, known = noisy.predict(adata, what="link"), noisy.predict(what="link")
    assert (other["sd"].to_numpy() >= np.repeat(sd, adata.n_obs)).all()
    assert (known["sd"] <= other["sd"] + 1e-9).all()


def space(adata: ad.AnnData) -> ExpressionGLM:
    glm = ExpressionGLM("~ condition + (1 | section)", space=Field(k_neighbors=4), section_key="section")
    return glm.fit(adata)


def test_a_field_is_predicted_in_holes_and_at_fitted_cells() -> None:
    adata = tissue(genes=4, side=10)
    place = np.asarray(adata.obsm["spatial"])
    hole = ((np.abs(place - 4.5) < 2).all(1)) & (adata.obs["section"] == "s1").to_numpy()
    glm = space(adata[~hole].copy())
    inside = glm.predict(adata[hole].copy(), what="link")
    wave = np.tile(np.sin(place[hole, 0] / 1.5), 2)
    first = inside[inside["gene"].isin(["g0", "g1"])]
    assert np.corrcoef(first["mean"], wave)[0, 1] > 0.6 and (first["reason"] == "").all()
    known = glm.predict(what="link", genes=["g0"])
    assert first["sd"].mean() > known["sd"].mean()
    again = glm.predict(adata[~hole][:50].copy(), what="link", genes=["g0"])  # at their positions: the same
    np.testing.assert_allclose(numbers(again), numbers(known)[:50], rtol=1e-6)


def test_a_section_that_was_not_fitted_has_the_prior_of_the_field() -> None:
    adata = tissue(genes=2, sections=5)
    glm = space(adata[adata.obs["section"] != "s4"].copy())
    new = adata[adata.obs["section"] == "s4"].copy()
    table = glm.predict(new, what="link")
    assert (table["reason"] == "no_neighbors").all()
    sd = glm.variance_components().pivot(index="gene", columns="effect", values="estimate")
    least = np.hypot(sd["space"], sd["1 | section"])
    assert (table.groupby("gene")["sd"].mean() > 0.9 * least).all()


@pytest.mark.parametrize("how", ["table", "no positions", "by", "covariance", "dimensions"])
def test_places_that_say_nothing_are_refused(how: str) -> None:
    adata = tissue(genes=2, sections=2)
    adata.obs["x"] = np.random.default_rng(0).normal(size=adata.n_obs)
    field = Field(k_neighbors=4, by="x") if how == "by" else Field(k_neighbors=4)
    if how == "covariance":
        field = Field(covariance=CarCovariance(knn_graph(adata.obsm["spatial"][:64], k_neighbors=4)))
        adata = adata[:64].copy()
    glm = ExpressionGLM("~ 1", space=field, section_key=None if how == "covariance" else "section").fit(adata)
    new: object = adata.obs if how == "table" else adata.copy()
    if how == "no positions":
        del new.obsm["spatial"]  # type: ignore[attr-defined]
    if how == "dimensions":
        new.obsm["spatial"] = np.zeros((adata.n_obs, 3))  # type: ignore[attr-defined]
    with pytest.raises(InvalidArgumentError, match="new"):
        glm.predict(new)  # type: ignore[arg-type]


def test_genes_without_a_fit_say_why_and_change_no_other() -> None:
    adata = donors(genes=4)
    whole = ExpressionGLM("~ treatment + (1 | donor)").fit(adata).predict()
    adata.X[:, 2] = 0
    adata.X[(adata.obs["treatment"] == "drug").to_numpy(), 3] = 0
    for formula in ("~ treatment + (1 | donor)", "~ treatment"):
        table = ExpressionGLM(formula).fit(adata).predict()
        reasons = table.groupby("gene")["reason"].unique()
        assert list(reasons["g2"]) == ["no_counts"] and list(reasons["g3"]) == ["separated"]
        if "donor" in formula:
            np.testing.assert_allclose(numbers(table)[: 2 * adata.n_obs], numbers(whole)[: 2 * adata.n_obs], rtol=1e-5)
        assert table[table["gene"] == "g2"]["mean"].isna().all()


def test_other_likelihoods_offsets_and_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"group": ["a", "b"] * 20})
    values = rng.normal(2.0, 1.0, (40, 2)) + (table["group"] == "b").to_numpy()[:, None]
    normal = ExpressionGLM("~ group", noise_model="norm").fit(values, sample_description=table)
    found = normal.predict(table.iloc[:2])
    np.testing.assert_allclose(found["mean"][:2], [values[::2, 0].mean(), values[1::2, 0].mean()], rtol=1e-6)
    with pytest.raises(InvalidArgumentError, match="size_factors"):
        normal.predict(table, size_factors=np.ones(40))
    counts = rng.poisson(3.0, (40, 2)).astype(float)
    glm = ExpressionGLM("~ group").fit(counts, sample_description=table, offsets=np.zeros((40, 2)))
    assert len(glm.predict()) == 80
    with pytest.raises(InvalidArgumentError, match="offset"):
        glm.predict(table)
    glm = ExpressionGLM("~ group").fit(counts, sample_description=table)
    glm.save(tmp_path / "a.pyrosplice")
    loaded = ExpressionGLM.load(tmp_path / "a.pyrosplice")
    pd.testing.assert_frame_equal(loaded.predict(table), glm.predict(table))
    with pytest.raises(NotReadyError, match="data"):
        loaded.predict()


@pytest.mark.parametrize(
    ("new", "options", "words"),
    [
        (5, {}, "new: expected an AnnData"),
        (pd.DataFrame({"treatment": []}), {}, "a cell or more"),
        (pd.DataFrame({"treatment": ["drug"]}), {}, "donor"),
        (pd.DataFrame({"donor": ["d1"]}), {}, "treatment"),
        (pd.DataFrame({"treatment": ["pill"], "donor": ["d1"]}), {}, "never saw"),
        (pd.DataFrame({"treatment": ["drug"], "donor": [None]}), {}, "donor"),
        (pd.DataFrame({"treatment": ["drug"], "donor": ["d1"]}), {"size_factors": "size"}, "size_factors"),
        (pd.DataFrame({"treatment": ["drug"], "donor": ["d1"]}), {"new_levels": "zero"}, "new_levels"),
        (None, {"size_factors": "size"}, "size_factors"),
        (None, {"what": "usage"}, "what"),
        (None, {"level": 1.0}, "level"),
        (None, {"genes": "nobody"}, "nobody"),
    ],
)
def test_what_cannot_be_predicted_is_refused(
    fitted: ExpressionGLM,
    new: object,
    options: dict,  # type: ignore[type-arg]
    words: str,
) -> None:
    with pytest.raises((InvalidArgumentError, KeyError), match=words):
        fitted.predict(new, **options)  # type: ignore[arg-type]


def test_other_models_are_refused_and_own_effects_follow() -> None:
    with pytest.raises(NotReadyError):
        ExpressionGLM("~ treatment").predict()
    adata: ad.AnnData = donors(genes=2)
    own = ExpressionGLM("~ treatment", effects=[Batch("donor")]).fit(adata)
    term = ExpressionGLM("~ treatment + (1 | donor)").fit(adata)
    np.testing.assert_allclose(numbers(own.predict(adata)), numbers(term.predict(adata)), rtol=1e-5)
    with pytest.raises(RefusedModelError, match="Wide"):
        ExpressionGLM("~ treatment", model=Wide).fit(adata).predict()


class Wide(ExpressionModel):
    """A model of one's own: a prior that pulls."""

    def __call__(self, counts=None, *, n_genes=None):  # type: ignore[no-untyped-def]
        self.location_prior = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
        return super().__call__(counts, n_genes=n_genes)


def test_intervals_of_new_donors_allow_for_a_variance_that_few_donors_tell():
    rng = np.random.default_rng(5)
    donor, n_genes = np.repeat(np.arange(6), 40), 150
    levels = rng.normal(0, 0.4, (7, n_genes))
    counts = rng.poisson(2 * np.exp(levels[donor])).astype(float)
    glm = ExpressionGLM("~ 1 + (1 | donor)", likelihood="poisson")
    glm.fit(counts, sample_description=pd.DataFrame({"donor": donor.astype(str)}))
    found = glm.predict(pd.DataFrame({"donor": ["another"]}), what="link", level=0.9)
    reach = (found["upper"] - found["lower"]) / 2 / found["sd"]
    assert (reach > 1.7).all() and reach.nunique() > 100
    truth = np.log(2) + levels[-1]
    inside = (found["lower"] < truth) & (truth < found["upper"])
    assert 0.85 < inside.mean() < 0.97
    plug_in = np.abs(truth - found["mean"]) < stats.norm.ppf(0.95) * found["sd"]
    assert plug_in.mean() < inside.mean()
    seen = glm.predict(pd.DataFrame({"donor": ["0"]}), what="link", level=0.9)
    np.testing.assert_allclose(seen["upper"] - seen["mean"], stats.norm.ppf(0.95) * seen["sd"])
