"""Which tests of covariates a tissue can answer, and what they are held to."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pyro import distributions as dist

from pyrosplice import SplisosmGLMM
from pyrosplice._hypothesis.coefficients.working_model import Spectra
from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial.car import CarCovariance
from tests.studies.du_covariates import ALL, SET, Cell, Tissue, one_set, simulate

SIDE = 9
MARGINAL: dict[str, Any] = {"fitting_method": "marginal_newton", "var_fix_sigma": False}


@pytest.fixture(scope="module")
def adata() -> Any:
    found = simulate_isoforms(n_spots=SIDE**2, n_genes=3, n_isoforms=2, seed=3)
    rng = np.random.default_rng(0)
    found.obsm["spatial"] = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2).astype(float)
    found.obs["noise"] = rng.standard_normal(SIDE**2)
    found.obs["gradient"] = found.obsm["spatial"][:, 0]
    found.obs["kind"] = pd.Categorical(rng.choice(list("abc"), SIDE**2))
    found.obs["section"] = np.where(np.arange(SIDE**2) < SIDE**2 // 2, "one", "two")
    found.obs["treated"] = (found.obs["section"] == "two").astype(float)
    return found


def fitted(adata: Any, design: Any, *, with_design: bool = False, setup: Any = None, **options: Any) -> SplisosmGLMM:
    marginal = {} if options.get("model_type") == "glm" else MARGINAL
    model = SplisosmGLMM(**marginal, **options)
    model.setup_data(adata, design_mtx=design, **(setup or {}))
    model.fit(with_design_mtx=with_design, batch_size=3, print_progress=False)
    return model


@pytest.fixture(scope="module")
def fit_of(adata: Any) -> Callable[..., SplisosmGLMM]:
    """Fits of the tissue as it is, by covariates and options; each is made once, and tests only ask it."""
    return functools.cache(lambda *design, **options: fitted(adata, list(design), **options))


def results_of(model: SplisosmGLMM, method: str = "score", **options: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model.test_differential_usage(method, return_results=True, print_progress=False, **options)
    assert found is not None
    return found


def test_a_gradient_is_told_from_noise(fit_of: Callable[..., SplisosmGLMM]) -> None:
    model = fit_of("noise", "gradient")
    with pytest.warns(UserWarning, match="gradient.*covariate_modes"):
        found = model.test_differential_usage(return_results=True, print_progress=False)
    assert found["reliable"][:, 0].mean() > 0.6 and not found["reliable"][:, 1].any()
    assert (found["posterior_df"][:, 0] > found["posterior_df"][:, 1]).all()
    table = model.covariate_modes().set_index("covariate")
    assert table.loc["noise", "modes"] > 10 > 4 > table.loc["gradient", "modes"]
    np.testing.assert_allclose(table["posterior_df"], np.median(found["posterior_df"], 0))
    np.testing.assert_allclose(table[["reliable", "few", "refused"]].sum(axis=1), 1.0)


def test_before_a_fit_modes_are_known_and_degrees_of_freedom_are_not(adata: Any) -> None:
    model = SplisosmGLMM()
    model.setup_data(adata, design_mtx=["noise", "gradient"])
    table = model.covariate_modes()
    assert table["modes"].notna().all() and table["posterior_df"].isna().all()


@pytest.mark.parametrize("method, within", [("score", 0.0), ("wald", 0.0), ("lrt", 0.0), ("score", 0.05)])
def test_the_section_of_two_is_refused(adata: Any, method: str, within: float) -> None:
    """Also where it varies a little within each."""
    adata = adata.copy()
    adata.obs["treated"] += within * np.random.default_rng(0).standard_normal(adata.n_obs)
    model = fitted(adata, ["treated", "noise"], with_design=method == "wald", setup={"section_key": "section"})
    found = results_of(model, method)
    assert np.isnan(found["pvalue"][:, 0]).all()
    assert {row[0] for row in found["reason"]} == {"between_sections"}
    assert np.isfinite(found["pvalue"][:, 1]).all()


@pytest.mark.parametrize("method", ["score", "wald", "lrt"])
def test_laws_agree_on_independent_noise(fit_of: Callable[..., SplisosmGLMM], method: str) -> None:
    model = fit_of("noise", with_design=method == "wald")
    averaged, plugin = (results_of(model, method, law=law)["pvalue"] for law in ("averaged", "plugin"))
    assert np.abs(np.log10(averaged / plugin)).max() < 0.5
    assert not np.array_equal(averaged, plugin)


@pytest.mark.parametrize("effect", ["independent", "symmetric"])
def test_scores_and_estimates_agree_near_the_null(fit_of: Callable[..., SplisosmGLMM], effect: str) -> None:
    score = results_of(fit_of("noise", isoform_effect=effect))["pvalue"]
    wald = results_of(fit_of("noise", with_design=True, isoform_effect=effect), "wald")["pvalue"]
    assert np.abs(np.log10(score / wald)).max() < 0.35


def test_intervals_and_wald_tests_agree(fit_of: Callable[..., SplisosmGLMM]) -> None:
    model = fit_of("noise", "gradient", with_design=True)
    found, effects = results_of(model, "wald"), model.get_effects(level=0.95)
    for law in ("averaged", "plugin"):
        effects = model.get_effects(law=law)
        assert np.isfinite(effects["log_odds"]).all() and (effects["reason"] == "").all()
        assert (effects["log_odds_lower"] < effects["log_odds_upper"]).all()
    assert found["law"] == "averaged"


def test_unit_origin_and_order_of_spots_make_no_difference(adata: Any, fit_of: Callable[..., SplisosmGLMM]) -> None:
    base = results_of(fit_of("noise", with_design=False, model_type="glmm-full"))
    moved = adata.copy()
    moved.obs["noise"] = 1e3 + 7 * moved.obs["noise"]
    shuffled = adata[np.random.default_rng(1).permutation(adata.n_obs)].copy()
    for other in (moved, shuffled):
        found = results_of(fitted(other, ["noise"]))
        np.testing.assert_allclose(found["pvalue"], base["pvalue"], rtol=2e-3)
        np.testing.assert_allclose(found["posterior_df"], base["posterior_df"], rtol=2e-2)


def test_a_prior_of_sigma_is_that_of_the_law(adata: Any) -> None:
    tight = dist.LogNormal(torch.tensor(np.log(0.05)), torch.tensor(0.05))
    with_prior = fitted(adata, ["gradient"], priors={"sigma": tight})
    free = results_of(fitted(adata, ["gradient"]))["posterior_df"]
    assert (results_of(with_prior)["posterior_df"] > free).all()  # what is known needs no data


@pytest.mark.parametrize("method", ["score", "wald"])
def test_an_unequal_field_is_of_one_covariate(fit_of: Callable[..., SplisosmGLMM], method: str) -> None:
    model = fit_of("noise", "kind", with_design=method == "wald")
    found = results_of(model, method, variance="het")
    assert np.isfinite(found["statistic"][:, 0]).all() and found["variance"] == "het"
    with pytest.raises(InvalidArgumentError, match="several covariates"):
        results_of(model, method, variance="het", by="factor")


@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [
        ("glm", "score", {"law": "averaged"}),
        ("glm", "score", {"variance": "het"}),
        ("glmm-null", "score", {"variance": "het"}),
        ("glmm-null", "score", {"law": "averaged"}),
        ("glmm-full", "score", {"variance": "het", "law": "plugin"}),
        ("glmm-full", "lrt", {"variance": "het"}),
        ("glmm-full", "score", {"law": "exact"}),
    ],
)
def test_what_excludes_each_other_is_refused(
    fit_of: Callable[..., SplisosmGLMM], kind: str, method: str, options: dict[str, str]
) -> None:
    model = fit_of("noise", with_design=False, model_type=kind)
    with pytest.raises(InvalidArgumentError):
        results_of(model, method, **options)


def test_results_come_back_from_a_file(adata: Any, tmp_path: Path) -> None:
    model = fitted(adata, ["noise", "gradient"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.test_differential_usage(print_progress=False)
    model.save(tmp_path / "model")
    before = model.get_formatted_test_results("du")
    loaded = SplisosmGLMM.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.get_formatted_test_results("du"), before)
    again = results_of(loaded)
    np.testing.assert_allclose(again["posterior_df"], results_of(model)["posterior_df"], rtol=1e-6)
    assert {"posterior_df", "reliable"} <= set(before.columns)


@pytest.mark.parametrize("seed", range(2))
def test_modes_count_eigenvectors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    car = CarCovariance(knn_graph(rng.uniform(size=(150, 2)), k_neighbors=4, graph="connected"))
    spectra = Spectra.of(SparseSolver(car.precision), 150)
    one = spectra.vectors[:, 1].numpy() - spectra.vectors[:, 1].mean().item()
    noise = np.mean([spectra.effective_modes(torch.from_numpy(rng.standard_normal((150, 1)))) for _ in range(20)])
    assert spectra.effective_modes(torch.from_numpy(one[:, None])) < 1.5
    assert noise > 40


def test_a_covariate_of_few_modes_is_never_called_reliable() -> None:
    deep = simulate(Tissue("grid"), Cell("grid", "domains", 10), np.random.default_rng(0))[:, :20]
    model = fitted(deep.copy(), ["half"], setup=ALL)
    found, table = results_of(model), model.covariate_modes()
    assert (found["posterior_df"] > 25).any() and not found["reliable"].any()
    assert table["reliable"].item() == 0 < table["few"].item()


def test_steeper_spectra_are_of_waves_over_the_tissue_whatever_the_graph() -> None:
    """In pieces or not; within a grid they are those of the model's own graph, and so they are of one that is given."""
    modes = {}
    for name in ("grid", "scattered"):
        tissue, shares = Tissue(name), {}
        found = simulate(tissue, Cell(name, "model", 1), np.random.default_rng(0))
        for how in ({}, {"covariance": tissue.car}):
            model = SplisosmGLMM(**MARGINAL)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a graph in pieces
                model.setup_data(found, design_mtx=["gradient"], **how, **ALL)
            shares[len(how)] = float(model.covariate_modes()["modes"].iloc[0])
        modes[name] = shares
    assert modes["grid"][0] == pytest.approx(modes["grid"][1], rel=0.1) and modes["grid"][0] < 2
    assert modes["scattered"][0] < 2 and modes["scattered"][1] > 1.4 * modes["scattered"][0]


@pytest.mark.parametrize("layout", ["grid", "scattered"])
def test_domains_are_no_field_of_the_model_and_their_size_holds(layout: str) -> None:
    tissue = Tissue(layout)
    shares = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for law in ("averaged", "plugin"):
            options = {"law": law, "method": "score", "variance": "robust"}
            found = one_set(tissue, Cell(layout, "domains", 5), options, np.random.default_rng(5))
            some = found[found["covariate"].isin(["domain", "gradient", "half"])]
            shares[law] = float((some["pvalue"] < 0.05).sum()) / (3 * SET)
    assert shares["plugin"] > 0.14 and shares["averaged"] < 0.1, shares


@pytest.mark.slow
def test_a_field_of_two_sizes_is_seen_and_told_from_one_of_one_size() -> None:
    tissue, seen = Tissue("grid"), {}
    for truth in ("halves", "model"):
        adata = simulate(tissue, Cell("grid", truth, 5), np.random.default_rng(2))
        model = SplisosmGLMM(**MARGINAL)
        model.setup_data(adata, covariance=tissue.car, design_mtx=["half", "iid"], **ALL)
        model.fit(batch_size=SET, print_progress=False)
        found = results_of(model)
        seen[truth] = found["unequal_field"].mean(0)
        assert not (found["reliable"] & found["unequal_field"]).any()
    assert seen["halves"][0] > 0.35 and seen["halves"][1] < 0.15
    assert (seen["model"] < 0.1).all()


def test_surrogates_are_a_check_beside_the_default(fit_of: Callable[..., SplisosmGLMM]) -> None:
    model = fit_of("noise", "gradient")
    found, default = results_of(model, law="surrogates", n_surrogates=199), results_of(model)
    assert found["law"] == "surrogates" and found["variance"] == "model"
    ranks = found["pvalue"] * 200
    np.testing.assert_allclose(ranks, np.round(ranks), atol=1e-9)
    assert np.abs(np.log10(found["pvalue"][:, 0] / default["pvalue"][:, 0])).max() < 1.0
    assert not found["reliable"][:, 1].any()
    np.testing.assert_array_equal(found["pvalue"], results_of(model, law="surrogates", n_surrogates=199)["pvalue"])
    other = results_of(model, law="surrogates", n_surrogates=199, random_seed=1)["pvalue"]
    assert (other != found["pvalue"]).any() and np.abs(np.log10(other / found["pvalue"])).max() < 0.6


def test_surrogates_of_a_factor_are_drawn_together(fit_of: Callable[..., SplisosmGLMM]) -> None:
    found = results_of(fit_of("noise", "kind"), law="surrogates", n_surrogates=99, by="factor")
    assert found["covariate"] == ["noise", "kind"] and np.isfinite(found["pvalue"]).all()
    assert (found["df"] == [[1, 2]] * 3).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wald", "law": "surrogates"}, "law='surrogates': expected method='score'"),
        ({"law": "surrogates", "variance": "robust"}, "law='surrogates': expected no variance"),
        ({"law": "surrogates", "n_surrogates": 5}, "n_surrogates"),
        ({"law": "surrogates", "random_seed": -1}, "random_seed"),
        ({"n_surrogates": 99}, "n_surrogates: expected law='surrogates'"),
        ({"law": "plugin", "random_seed": 1}, "random_seed: expected law='surrogates'"),
    ],
)
def test_surrogates_refuse_what_they_have_no_use_for(
    fit_of: Callable[..., SplisosmGLMM], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        fit_of("noise").test_differential_usage(**options)


@pytest.mark.slow
def test_a_strong_effect_is_not_taken_for_a_field_of_two_sizes() -> None:
    beta = np.full((12, 1, 2), [1.0, -1.0])
    found = simulate_isoforms(
        n_spots=900, n_genes=12, theta=0.0, covariates=("smooth",), beta=beta, sigma=0.5, depth=5.0, seed=2
    )
    results = results_of(fitted(found, ["smooth"], setup={"group_gene_by_n_iso": True}))
    assert (results["pvalue"] < 1e-6).all() and not results["unequal_field"].any()
