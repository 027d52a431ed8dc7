"""Likelihood ratio of space by importance sampling and by parametric bootstrap."""

import numpy as np
import pytest

from pyrosplice._usage.analysis.splisosm import SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError

QUIET = {"print_progress": False, "return_results": True}
MARGINAL = {"fitting_method": "marginal_newton", "var_fix_sigma": False}


def fitted(adata, **setup):
    model = SplisosmGLMM("glmm-full", **MARGINAL)
    model.setup_data(adata, **setup)
    model.fit(batch_size=32, from_null=True, with_design_mtx="design_mtx" in setup, print_progress=False)
    return model


@pytest.fixture(scope="module")
def model():
    theta = np.repeat([0.0, 0.9], [10, 6])
    return fitted(simulate_isoforms(n_spots=100, n_genes=16, n_isoforms=2, depth=6.0, theta=theta, sigma=1.0, seed=3))


def test_the_corrected_ratio_is_near_laplaces_where_counts_are_many():
    adata = simulate_isoforms(n_spots=64, n_genes=8, n_isoforms=2, depth=60.0, sigma=0.7, theta=0.7, seed=1)
    model = fitted(adata)
    plain = model.test_spatial_variability(**QUIET)
    found = model.test_spatial_variability(importance=True, n_draws=200, **QUIET)
    np.testing.assert_allclose(found["statistic"], plain["statistic"], atol=0.2)
    assert (found["statistic_se"] < 0.2).all()
    assert (found["pareto_k"] < 0.7).all()
    assert found["statistic"].max() > 4  # there is something to agree on


@pytest.mark.slow
def test_the_corrected_ratio_of_unspatial_genes_is_zero_or_small(model):
    found = model.test_spatial_variability(importance=True, n_draws=200, **QUIET)
    plain = model.test_spatial_variability(**QUIET)
    flat = plain["statistic"] < 1e-6
    assert flat.sum() >= 2
    assert found["statistic"].min() >= 0
    assert found["statistic"][flat].max() < 0.5  # the same random numbers on both sides
    assert (found["pvalue"][10:] < 0.05).sum() >= (plain["pvalue"][10:] < 0.05).sum() - 1
    again = model.test_spatial_variability(importance=True, n_draws=200, **QUIET)
    np.testing.assert_array_equal(found["statistic"], again["statistic"])


@pytest.mark.slow
def test_the_bootstrap_is_seeded_and_agrees_with_the_mixture(model):
    plain = model.test_spatial_variability(**QUIET)
    found = model.test_spatial_variability(n_bootstrap=39, random_seed=2, **QUIET)
    np.testing.assert_allclose(found["statistic"], plain["statistic"], atol=1e-9)
    steps = found["pvalue"] * 40
    np.testing.assert_allclose(steps, np.rint(steps))
    assert steps.min() >= 1
    assert (found["pvalue"][plain["statistic"] < 1e-6] == 1).all()
    error = np.sqrt(plain["pvalue"] * (1 - plain["pvalue"]) / 39) + 1 / 40
    inside = plain["statistic"] > 1e-6
    assert (np.abs(found["pvalue"] - plain["pvalue"])[inside] < 4 * error[inside]).all()
    again = model.test_spatial_variability(n_bootstrap=39, random_seed=2, n_jobs=1, **QUIET)
    np.testing.assert_array_equal(found["pvalue"], again["pvalue"])


def test_factors_among_the_covariates_are_no_obstacle(tissue):
    model = fitted(tissue[:, :5].copy(), design_mtx="half")
    for ask in ({"importance": True, "n_draws": 50}, {"n_bootstrap": 3}):
        found = model.test_spatial_variability(**ask, **QUIET)
        assert ((found["pvalue"] > 0) & (found["pvalue"] <= 1)).all()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"method": "score", "importance": True}, "importance: expected method='llr'"),
        ({"method": "score", "n_bootstrap": 9}, "n_bootstrap: expected method='llr'"),
        ({"importance": True, "n_bootstrap": 9}, "expected one of importance"),
        ({"use_perm_null": True, "n_bootstrap": 9}, "expected one of importance"),
        ({"n_bootstrap": 0}, "n_bootstrap: expected a whole number of at least 1, found 0"),
        ({"importance": True, "n_draws": 3}, "n_draws: expected an even number"),
    ],
)
def test_options_that_exclude_each_other_say_so(model, ask, message):
    with pytest.raises(InvalidArgumentError, match=message):
        model.test_spatial_variability(**ask, **QUIET)
