"""Diagnostics on trees whose answer is known, and their figures."""

import matplotlib
import numpy as np
import pytest
import xarray as xr

from pyrosplice.errors import InvalidArgumentError, NoResultsError
from pyrosplice.plotting import (
    convergence_traces,
    effect_forest,
    effect_table,
    rank_histogram,
    rootogram,
    variance_grid,
)
from pyrosplice.posterior import compare_posteriors, grid_table, leave_one_out, predictive_check, prior_sensitivity
from tests.posterior.test_posterior import data, mixed

matplotlib.use("agg")


def normal_tree(n_draws=4000, n=40, *, prior_sd=10.0, seed=0):
    """Mean of normal observations with unit variance, its exact posterior as draws of ``theta``."""
    rng = np.random.default_rng(seed)
    y = rng.normal(1.0, 1.0, (1, n, 1))
    variance = 1 / (n + prior_sd**-2)
    draws = rng.normal(variance * y.sum(), variance**0.5, (1, n_draws, 1))
    density = -0.5 * np.log(2 * np.pi) - 0.5 * (y[None, None, :, :, 0] - draws[..., None]) ** 2
    spots = ("chain", "draw", "gene", "spot")
    counts = rng.normal(draws[..., None, None], 1.0, (1, n_draws, 1, n, 1))
    groups = {
        "posterior": {"theta": (spots[:3], draws)},
        "log_likelihood": {"counts": (spots, density)},
        "log_prior": {"lp": (spots[:3], -0.5 * (draws / prior_sd) ** 2)},
        "sample_stats": {"log_weight": (spots[:3], np.zeros_like(draws))},
        "posterior_predictive": {"counts": ((*spots, "isoform"), counts)},
        "observed_data": {"counts": (("gene", "spot", "isoform"), y)},
    }
    tree = xr.DataTree.from_dict({k: xr.Dataset(v, coords={"gene": ["g"]}) for k, v in groups.items()})
    tree.attrs["method"] = "laplace"
    return tree, y.ravel(), variance


def test_leave_one_out_equals_the_exact_answer():
    tree, y, _ = normal_tree()
    n, exact = len(y), 0.0
    for i in range(n):
        rest = np.delete(y, i)
        variance = 1 / (n - 1 + 0.01)
        exact += -0.5 * np.log(2 * np.pi * (1 + variance)) - 0.5 * (y[i] - variance * rest.sum()) ** 2 / (1 + variance)
    row = leave_one_out(tree).loc["g"]
    assert row["elpd"] == pytest.approx(exact, abs=0.05)
    assert row["p_loo"] == pytest.approx(1, abs=0.4)
    assert row["verdict"] == "fine" and row["pareto_k"] < 0.7


def test_prior_sensitivity_sees_a_prior_that_speaks():
    weak, strong = (prior_sensitivity(normal_tree(prior_sd=sd)[0], sites=("theta",)).iloc[0] for sd in (10.0, 0.2))
    assert weak["diagnosis"] == "data speak" and abs(weak["prior"]) < 0.05
    assert strong["prior"] < -0.1 and strong["likelihood"] > 0.1 and strong["diagnosis"] == "prior and data pull apart"


def test_predictive_check_finds_what_the_model_cannot_make():
    tree, _, _ = normal_tree()
    table = predictive_check(tree, statistics={"sd": lambda x: x.std((-2, -1))})
    assert 0.02 < table["p"].iloc[0] < 0.98
    tree["observed_data"]["counts"][...] *= 3
    assert predictive_check(tree, statistics={"sd": lambda x: x.std((-2, -1))})["p"].iloc[0] < 0.001
    with pytest.raises(NoResultsError, match="prior_predictive: the tree has only"):
        predictive_check(tree, group="prior_predictive")


def test_comparison_speaks():
    tree, _, _ = normal_tree()
    other = normal_tree()[0]
    assert compare_posteriors(tree, other, sites=("theta",))["verdict"].tolist() == ["agrees"]
    other["posterior"]["theta"][...] = other["posterior"]["theta"] * 2
    (words,) = compare_posteriors(tree, other, sites=("theta",))["verdict"]
    assert "too low" in words and "too narrow" in words


def test_figures_of_a_posterior():
    model = mixed(*data(1))
    tree = model.posterior(num_samples=50, hyper="integrate")
    table = effect_table(tree)
    assert len(table) == 2 and (table["low"] < table["mean"]).all()
    axes = effect_forest(table)
    assert len(axes.get_yticklabels()) == 2
    assert variance_grid(grid_table(model, 0)).get_xlabel() == "σ"
    drawn = tree["posterior_predictive"].counts.values[0, :, 0]
    assert rootogram(tree["observed_data"].counts.values[0], drawn).get_xlabel() == "count"
    assert "1 of 1" in convergence_traces(model.logger.loss_history.numpy()).get_title()
    assert len(rank_histogram(np.arange(100), n_draws=99).patches) >= 20
    with pytest.raises(InvalidArgumentError, match="losses"):
        convergence_traces(np.zeros(3))
    matplotlib.pyplot.close("all")
