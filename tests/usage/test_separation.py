"""Coefficients at infinity: named in every fit, without p-values of Wald, with a sane ratio, finite under priors."""

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrosplice import MultinomGLM, MultinomGLMM, SplisosmGLMM
from pyrosplice.glmm._separation import separated
from pyrosplice.spatial.car import IdentityCovariance
from tests.studies import separation as study

QUIET = {"print_progress": False}
N = 72
METHODS = [(method, fixed) for method in ("marginal_newton", "joint_newton") for fixed in (True, False)]


def spots(seed=0):
    rng = np.random.default_rng(seed)
    return rng, {"group": (np.arange(N) < 24).astype(float), "x": rng.normal(size=N), "z": rng.normal(size=N)}


def lacking(kind, n_isos, seed=0):
    """Counts ``(N, K)`` of a gene that is separated in the way of ``kind``, and its covariates ``(N, P)``."""
    rng, table = spots(seed)
    design = np.column_stack([table[name] for name in ("group", "x", "z")])
    usage = np.full((N, n_isos), 1 / n_isos)
    if kind == "level":
        usage[table["group"] == 1, -1] = 0.0
    else:  # the first isoform is alone on one side and absent on the other
        along = table["x"] + (table["z"] if kind == "combination" else 0.0)
        usage[:, 0] = 0.0
        usage[along > 0] = np.eye(n_isos)[0]
        if kind == "quasi":  # but at one point of the border
            nearest = np.argsort(np.abs(along))[:1]
            usage[nearest], design[nearest, 1] = 1 / n_isos, 0.0
    usage /= usage.sum(1, keepdims=True)
    return np.stack([rng.multinomial(5, row) for row in usage]), design


@pytest.mark.slow
@pytest.mark.parametrize("n_isos", [2, 3, 6])
@pytest.mark.parametrize("kind", ["level", "combination", "complete", "quasi"])
def test_every_kind_of_separation_has_its_name(kind, n_isos):
    counts, design = lacking(kind, n_isos)
    rng, _ = spots(1)
    counts = np.stack([counts, rng.multinomial(5, np.full(n_isos, 1 / n_isos), N)])
    model = MultinomGLM()
    model.setup_data(counts, design)
    model.fit()
    assert model.logger.reason == ["separated", "converged"]
    if kind == "quasi" and n_isos == 6:
        return
    for method, fixed in METHODS:
        mixed = MultinomGLMM(fitting_method=method, var_fix_sigma=fixed)
        mixed.setup_data(counts, IdentityCovariance(N), design)
        mixed.fit()
        runs_to_zero = ["unbounded"] if method == "joint_newton" and not fixed else []  # σ, before anything else
        assert mixed.logger.reason[0] in ["separated", *runs_to_zero], (method, fixed)
        assert mixed.logger.reason[1] in ["converged", *runs_to_zero], (method, fixed)
    firm = MultinomGLM(priors="weak")
    firm.setup_data(counts, design)
    firm.fit()
    assert firm.logger.reason == ["converged"] * 2
    assert firm.beta.abs().max() < 8


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 3), st.integers(1, 2), st.integers(4, 9))
def test_the_program_finds_what_enumeration_finds(seed, n_isos, n_columns, n_spots):
    """Directions on a fine grid, for data whose directions of recession are on that grid: designs of whole numbers."""
    rng = np.random.default_rng(seed)
    design = np.column_stack([rng.integers(-1, 2, (n_spots, n_columns - 1)), np.ones(n_spots)]).astype(float)
    counts = rng.multinomial(rng.integers(1, 3), np.full(n_isos, 1 / n_isos), n_spots)
    grid = itertools.product((-2, -1, 0, 1, 2), repeat=n_columns * (n_isos - 1))
    expected = False
    for direction in grid:
        weights = np.column_stack([np.reshape(direction, (n_columns, n_isos - 1)), np.zeros(n_columns)])
        move = design @ weights
        least = np.where(counts > 0, move, np.inf).min(1)
        most = move.max(1)
        expected |= bool((least >= most - 1e-9).all() and (most > move.min(1) + 1e-9).any())
    far = torch.full((1, n_spots, n_isos - 1), 9.0, dtype=torch.float64)
    assert bool(separated(torch.from_numpy(counts)[None], torch.from_numpy(design), far)) == expected


def tissue(counts, obs):
    names = [f"s{i}" for i in range(len(counts))]
    var = pd.DataFrame({"gene_symbol": ["g"] * counts.shape[1]}, index=[f"t{i}" for i in range(counts.shape[1])])
    adata = ad.AnnData(counts.astype(float), obs=pd.DataFrame(obs, index=names), var=var)
    adata.layers["counts"] = adata.X
    adata.obsm["spatial"] = np.stack(np.divmod(np.arange(len(counts)), 9), 1).astype(float)
    return adata


@pytest.mark.filterwarnings("ignore::pyrosplice.errors.UnreliableWarning")
@pytest.mark.parametrize(
    "model_type, law",
    [("glm", None), ("glmm-null", "plugin"), ("glmm-full", "plugin"), ("glmm-full", "averaged")],
)
@pytest.mark.parametrize("priors", [None, "weak"])
def test_tests_of_a_separated_gene(model_type, law, priors):
    """Strong evidence; a little less of it where a group of spots of one tissue may go with its field."""
    strong = 1e-4 if law != "averaged" else 4e-2  # three isoforms, and a group of few modes
    counts, design = lacking("level", 3)
    model = SplisosmGLMM(model_type, fitting_method="marginal_newton", var_fix_sigma=False, priors=priors)
    model.setup_data(tissue(counts, {"group": design[:, 0]}), design_mtx="group", min_counts=1)
    model.fit(with_design_mtx=True, **QUIET)
    ask = {"return_results": True, "law": law, **QUIET}
    wald = model.test_differential_usage("wald", **ask)
    effects = model.get_effects(law=law)
    if priors is None:
        assert model.get_training_summary()["reason"].tolist() == ["separated"]
        assert np.isnan(wald["pvalue"]).all() and wald["reason"] == [["separated"]]
        assert effects["log_odds_se"].isna().all()
        model.test_differential_usage("wald", law=law, **QUIET)
        assert model.get_formatted_test_results("du")["reason"].tolist() == ["separated"]
    else:
        assert model.get_training_summary()["reason"].tolist() == ["converged"]
        assert (wald["pvalue"] < strong).all() and wald["reason"] == [[""]]
        assert effects["log_odds_se"].between(0, 1).all()
        assert (effects["log_odds"].abs() < 4).all()
    for variance in ("robust", "model"):
        ratio = model.test_differential_usage("lrt", variance=variance, **ask)
        assert (ratio["pvalue"] < strong).all()
        assert np.isfinite(ratio["statistic"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["glm", "glmm-null"])
def test_sizes_where_groups_lack_a_rare_isoform(model_type):
    """The study with fewer genes: the ratio no longer rejects most null genes that are separated."""
    adata = study.tissue(160, study.NOISES["noisy"], depth=2.0, seed=5)
    apart = study.is_separated(adata)
    assert apart.sum() >= 10
    for priors in (None, "weak"):
        found = study.pvalues(adata, model_type, priors)
        for test in ("score robust", "lrt robust", "wald robust"):
            sizes = study.sizes(found[test], apart)
            assert sizes["all .05"] < 0.1, (priors, test)
            assert sizes["separated .05"] < 0.35, (priors, test)
            assert np.isnan(found[test]).sum() == (0 if priors or "wald" not in test else apart.sum())


def test_spots_of_one_isoform_each_have_no_finite_variance():
    rng, _ = spots(2)
    pure = 4 * np.eye(3)[rng.integers(3, size=N)]
    mixed = rng.multinomial(4, [0.3, 0.3, 0.4], N)
    counts = np.stack([pure, mixed])
    for method in ("marginal_newton", "marginal_gd"):
        model = MultinomGLMM(fitting_method=method, var_fix_sigma=False)
        model.setup_data(counts, IdentityCovariance(N))
        model.fit()
        assert model.logger.reason[0] == "all_or_nothing"
        held = MultinomGLMM(fitting_method=method, var_fix_sigma=True)
        held.setup_data(counts, IdentityCovariance(N))
        held.fit()
        assert held.logger.reason[0] == "converged"
    firm = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False, priors="weak")
    firm.setup_data(counts, IdentityCovariance(N))
    firm.fit()
    assert firm.logger.reason[0] == "converged"


@pytest.mark.parametrize("n_mixed", [0, 3])
def test_where_nearly_every_spot_has_one_isoform_only_the_score_test_speaks(n_mixed):
    rng, _ = spots(4)
    counts = np.concatenate([9 * np.eye(3, dtype=int)[rng.integers(3, size=N)] for _ in range(3)], 1)
    counts[rng.permutation(N)[:n_mixed], :] = 3
    var = pd.DataFrame({"gene_symbol": np.repeat(["a", "b", "c"], 3)}, index=[f"i{k}" for k in range(9)])
    obs = pd.DataFrame({"x": rng.normal(size=N)}, index=[f"s{i}" for i in range(N)])
    adata = ad.AnnData(np.zeros(counts.shape), obs=obs, var=var, layers={"counts": counts})
    model = SplisosmGLMM("glmm-null", fitting_method="marginal_newton", var_fix_sigma=False)
    model.setup_data(adata, design_mtx="x")
    ask = {"return_results": True} | QUIET
    model.fit(batch_size=3, with_design_mtx=True, **QUIET)
    reason = "endless_sigma" if n_mixed else "all_or_nothing"
    for variance in ("robust", "model"):
        found = model.test_differential_usage("wald", variance=variance, **ask)
        assert found["reason"] == [[reason]] * 3
        assert np.isnan(found["pvalue"]).all()
    assert model.get_effects()["log_odds_se"].isna().all()
    model.fit(batch_size=3, **QUIET)
    score, ratio = (model.test_differential_usage(method, **ask) for method in ("score", "lrt"))
    np.testing.assert_allclose(ratio["statistic"], score["statistic"])
    assert (score["pvalue"] > 0.01).all()
    for method in ("score", "lrt"):
        assert model.test_differential_usage(method, variance="model", **ask)["reason"] == [[reason]] * 3
