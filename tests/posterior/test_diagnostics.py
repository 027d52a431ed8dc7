"""Diagnostics on trees whose answer is known, and their figures."""

import matplotlib
import numpy as np
import pytest
import torch
import xarray as xr

from pyrosplice.errors import InvalidArgumentError, NoResultsError
from pyrosplice.glmm._importance import pareto_k
from pyrosplice.plotting import (
    convergence_traces,
    effect_forest,
    effect_table,
    rank_histogram,
    rootogram,
    variance_grid,
)
from pyrosplice.posterior import (
    compare_posteriors,
    grid_table,
    laplace_check,
    laplace_shifts,
    leave_one_out,
    predictive_check,
    prior_sensitivity,
)
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


def sensitivity_of(**options):
    return prior_sensitivity(normal_tree(**options)[0], sites=("theta",)).iloc[0]


def test_prior_sensitivity_sees_a_prior_that_speaks():
    """A mean of 40 data near 1 under Normal(0, sd): no say, a conflict, and a prior that says all."""
    weak = sensitivity_of(prior_sd=10.0)
    assert weak["diagnosis"] == "data speak" and abs(weak["prior_shift"]) < 0.05 and weak["prior"] < 0.01
    conflict = sensitivity_of(prior_sd=0.2)
    assert conflict["diagnosis"].startswith("prior-data conflict: ") and conflict["likelihood"] > 0.05
    assert conflict["prior_shift"] < -0.3 and conflict["likelihood_shift"] > 0.3
    strong = sensitivity_of(prior_sd=0.01, n=2, seed=4)
    assert strong["likelihood"] < 0.05 < strong["prior"]
    assert strong["diagnosis"] == "strong prior or weak likelihood" and abs(strong["prior_shift"]) < 0.1


def test_prior_sensitivity_is_quiet_where_the_mean_hardly_moves():
    """The prior pulls by .1 to .3 sd, and data are there to pull back."""
    for prior_sd in (0.6, 0.7, 0.9):
        row = sensitivity_of(prior_sd=prior_sd)
        assert 0.1 < abs(row["prior_shift"]) < 0.3
        assert row["diagnosis"].startswith("data speak" if row["prior"] < 0.05 else "mean hardly moves"), row
    assert sensitivity_of(prior_sd=0.3)["diagnosis"].startswith("prior-data conflict: the prior moves the mean by ")


def test_shifts_are_the_derivative_of_the_exact_posterior_mean():
    for prior_sd, n in ((0.3, 40), (1.0, 5)):
        tree, y, _ = normal_tree(prior_sd=prior_sd, n=n, n_draws=20000)
        row = prior_sensitivity(tree, sites=("theta",)).iloc[0]
        precision, sd = prior_sd**-2, (n + prior_sd**-2) ** -0.5
        slope = -y.sum() * precision / (n + precision) ** 2 * np.log(2) / sd
        assert row["prior_shift"] == pytest.approx(slope, rel=0.1)
        assert row["likelihood_shift"] == pytest.approx(-slope, rel=0.1)


def test_predictive_check_finds_what_the_model_cannot_make():
    tree, _, _ = normal_tree()
    table = predictive_check(tree, statistics={"sd": lambda x: x.std((-2, -1))})
    assert 0.02 < table["pvalue"].iloc[0] < 0.98
    tree["observed_data"]["counts"][...] *= 3
    assert predictive_check(tree, statistics={"sd": lambda x: x.std((-2, -1))})["pvalue"].iloc[0] < 0.001
    with pytest.raises(NoResultsError, match="prior_predictive: the tree has only"):
        predictive_check(tree, group="prior_predictive")


def normal_posteriors(shift, scale=1.0, *, n_draws, seed=0):
    """Trees of independent draws of N(shift, scale²) and N(0, 1), in two chains."""
    rng = np.random.default_rng(seed)
    trees = []
    for mean, sd in ((shift, scale), (0.0, 1.0)):
        draws = xr.Dataset({"theta": (("chain", "draw"), rng.normal(mean, sd, (2, n_draws // 2)))})
        trees.append(xr.DataTree.from_dict({"posterior": draws, "sample_stats": xr.Dataset()}))
    return trees


def verdict_of(*trees):
    return compare_posteriors(*trees, sites=("theta",)).iloc[0]


def test_comparison_speaks():
    assert verdict_of(*normal_posteriors(0.0, n_draws=4000))["verdict"] == "agrees"
    row = verdict_of(*normal_posteriors(-0.5, 0.5, n_draws=4000))
    assert row["verdict"].startswith("differs: mean 0.5") and "too low, sd 5" in row["verdict"]
    assert "too narrow" in row["verdict"] and row["more_draws"] == 0
    tree, _, _ = normal_tree(n_draws=6)
    with pytest.raises(InvalidArgumentError, match="8 draws a chain"):
        compare_posteriors(tree, tree, sites=("theta",))


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.11, 0.19])
def test_comparison_says_how_many_draws_would_decide(shift):
    """Too few draws either side of the tolerance; as many as it asks for, and half as many again, settle it."""
    few = 200
    row = verdict_of(*normal_posteriors(shift, n_draws=few, seed=3))
    assert row["verdict"].startswith("cannot tell: ") and "more NUTS draws needed" in row["verdict"]
    assert row["more_draws"] > 0 and row["shift_error"] == pytest.approx((2 / few) ** 0.5, rel=0.3)
    gap = abs(shift - 0.15)
    needed = 2 * int(1.5 * (2 * 2**0.5 / gap) ** 2)
    assert verdict_of(*normal_posteriors(shift, n_draws=needed))["verdict"].split(":")[0] == (
        "agrees" if shift < 0.15 else "differs"
    )


def test_what_is_above_the_tolerance_is_never_said_to_agree():
    for seed in range(40):
        row = verdict_of(*normal_posteriors(0.15, n_draws=400, seed=seed))
        beyond = abs(row["shift"]) > 0.15 or abs(row["sd_ratio"] - 1) > 0.15
        assert not (beyond and row["verdict"].startswith("agrees")), row


@pytest.mark.slow
def test_monte_carlo_errors_of_a_comparison_are_those_of_repetition():
    rows = [verdict_of(*normal_posteriors(0.1, 1.2, n_draws=400, seed=seed)) for seed in range(150)]
    for name, truth in (("shift", 0.1), ("sd_ratio", 1.2)):
        z = [(row[name] - truth) / row[f"{name}_error"] for row in rows]
        assert 0.8 < np.std(z) < 1.25 and abs(np.mean(z)) < 0.35, (name, np.mean(z), np.std(z))


def weighted_tree(shift, scale=1.0, *, n_draws=2000, seed=0, method="laplace"):
    """Draws of N(shift, scale²) with the log weights that make them N(0, 1)."""
    draws = np.random.default_rng(seed).normal(shift, scale, (1, n_draws, 1))
    log_weight = -0.5 * draws**2 + 0.5 * ((draws - shift) / scale) ** 2
    dims = ("chain", "draw", "gene")
    k_hat = np.broadcast_to(pareto_k(torch.from_numpy(log_weight[0])).numpy(), draws.shape)
    groups = {
        "posterior": {"theta": (dims, draws), "held": (dims, np.full_like(draws, 3.0))},
        "sample_stats": {"log_weight": (dims, log_weight), "pareto_k": (dims, k_hat)},
    }
    tree = xr.DataTree.from_dict({k: xr.Dataset(v, coords={"gene": ["g"]}) for k, v in groups.items()})
    tree.attrs["method"] = method
    return tree


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.1), (-0.2, 1.3), (0.2, 0.9)])
def test_weights_say_how_far_draws_are_off(shift, scale):
    """Against the truth, and the error against repetition."""
    rows = [laplace_shifts(weighted_tree(shift, scale, seed=seed)).iloc[0] for seed in range(100)]
    for name, truth in (("shift", shift), ("sd_ratio", scale)):
        found, error = (np.array([row[key] for row in rows]) for key in (name, f"{name}_error"))
        if (shift, scale) == (0.0, 1.0):  # weights of one: exact, and known to be
            np.testing.assert_allclose(found, truth, atol=1e-12)
            np.testing.assert_allclose(error, 0, atol=1e-12)
            continue
        assert found.mean() == pytest.approx(truth, abs=0.02)
        assert 0.7 < found.std() / error.mean() < 1.4, (name, found.std(), error.mean())


def test_laplace_check_speaks():
    assert laplace_check(weighted_tree(0.05, 1.05)).loc["g", "verdict"] == "fine"
    words = laplace_check(weighted_tree(-0.4, 1.3)).loc["g", "verdict"]
    assert words.startswith("off: theta[0] mean 0.4") and "too low" in words and "too wide" in words
    assert "more draws needed" in laplace_check(weighted_tree(0.14, n_draws=100)).loc["g", "verdict"]
    assert laplace_check(weighted_tree(0.0, 0.4)).loc["g", "verdict"].startswith("off: k̂")  # too narrow to correct
    assert "too few draws" in laplace_check(weighted_tree(0.1, n_draws=30).map_over_datasets(no_k)).loc["g", "verdict"]
    with pytest.raises(InvalidArgumentError, match="method='laplace'"):
        laplace_check(weighted_tree(0.0, method="nuts"))


def no_k(dataset):
    return dataset.assign(pareto_k=dataset["pareto_k"] * np.nan) if "pareto_k" in dataset else dataset


@pytest.mark.slow
def test_laplace_check_flags_one_count_a_spot_and_not_twenty():
    found = {}
    for depth in (1.0, 20.0):
        model = mixed(*data(6, depth=depth, seed=4))
        tree = model.posterior(num_samples=3000, hyper="integrate", groups=())
        found[depth] = laplace_check(tree)["verdict"].str.startswith("off")
    assert found[1.0].mean() >= 0.5 and not found[20.0].any(), found


@pytest.mark.slow
def test_figures_of_a_posterior():
    model = mixed(*data(1))
    tree = model.posterior(num_samples=50, hyper="integrate")
    table = effect_table(tree)
    assert len(table) == 2 and (table["lower"] < table["mean"]).all()
    axes = effect_forest(table)
    assert len(axes.get_yticklabels()) == 2
    assert variance_grid(grid_table(model, 0)).get_xlabel() == "σ"
    drawn = tree["posterior_predictive"].counts.values[:, :, 0].reshape(50, 25, -1)
    assert rootogram(tree["observed_data"].counts.values[0], drawn).get_xlabel() == "count"
    assert "1 of 1" in convergence_traces(model.logger.loss_history.numpy()).get_title()
    assert len(rank_histogram(np.arange(100), n_draws=99).patches) >= 20
    with pytest.raises(InvalidArgumentError, match="losses"):
        convergence_traces(np.zeros(3))
    matplotlib.pyplot.close("all")
