"""Trees through both generations of ArviZ: ``arviz`` 0.23, and ``arviz-base``, ``arviz-stats``, ``arviz-plots``."""

import warnings

import matplotlib as mpl
import numpy as np
import pytest

from pyrosplice.posterior import leave_one_out, prior_sensitivity
from tests.posterior.test_diagnostics import normal_tree
from tests.posterior.test_posterior import data, mixed

mpl.use("agg")


@pytest.fixture(scope="module")
def legacy():
    return pytest.importorskip("arviz")


@pytest.fixture(scope="module")
def stats():
    return pytest.importorskip("arviz_stats")


@pytest.fixture(scope="module")
def plots():
    return pytest.importorskip("arviz_plots")


@pytest.fixture(scope="module")
def tree():
    return mixed(*data()).posterior(num_samples=200, hyper="integrate", names={"gene": ["a", "b"]})


@pytest.fixture(autouse=True)
def close_figures():
    yield
    mpl.pyplot.close("all")


def test_summary(tree, stats, legacy):
    beta, names = tree["posterior"].beta, ["beta", "sigma", "theta", "effect_on_usage"]
    new = stats.summary(tree, var_names=names, round_to="none")
    old = legacy.summary(legacy.InferenceData.from_datatree(tree), var_names=names, round_to="none")
    for table in (new, old):
        assert len(table) == 2 * 2 + 2 + 2 + 2 * 3
        assert table.loc["beta[a, 0, 1]", "mean"] == pytest.approx(float(beta.sel(gene="a").isel(logit=1).mean()))
        assert table.loc["beta[b, 0, 0]", "sd"] == pytest.approx(
            float(beta.sel(gene="b").isel(logit=0).std()), rel=5e-3
        )


def test_leave_one_out_is_ours(stats, legacy):
    """Draws with weights of one: all three compute the same number."""
    tree, _, _ = normal_tree()
    ours = leave_one_out(tree).loc["g"]
    new = stats.loo(tree, pointwise=True)
    old = legacy.loo(legacy.InferenceData.from_datatree(tree), pointwise=True)
    for elpd, se, p, k in (
        (new.elpd, new.se, new.p, new.pareto_k),
        (old.elpd_loo, old.se, old.p_loo, old.pareto_k),
    ):
        assert elpd == pytest.approx(ours["elpd"], abs=1e-3)
        assert se == pytest.approx(ours["se"], rel=1e-3)
        assert p == pytest.approx(ours["p_loo"], abs=1e-3)
        assert float(np.max(k)) == pytest.approx(ours["pareto_k"], abs=0.05)


def test_leave_one_out_of_a_gene(tree, stats, legacy):
    """Without our correction for Laplace's method, and near ours where k̂ is small; they warn where it is not."""
    ours, one = leave_one_out(tree).loc["a"], tree.sel(gene="a")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter")
        new, old = stats.loo(one), legacy.loo(legacy.InferenceData.from_datatree(one))
    assert new.n_data_points == old.n_data_points == 25
    assert new.elpd == pytest.approx(old.elpd_loo, abs=0.5)
    assert abs(new.elpd - ours["elpd"]) < 2 * ours["se"]


def test_prior_sensitivity_agrees_about_what_is_sensitive(stats, legacy):
    """Ours is the shift of the mean, theirs a distance between distributions: the same finding, another number."""
    for prior_sd, sensitive in ((10.0, False), (0.2, True)):
        tree, _, _ = normal_tree(prior_sd=prior_sd)
        found = abs(prior_sensitivity(tree, sites=("theta",))["prior"].item())
        new = float(stats.psense(tree, group="prior")["theta"].item())
        old = float(legacy.psens(legacy.InferenceData.from_datatree(tree), component="prior")["theta"].item())
        assert (found > 0.1, new > 0.05, old > 0.05) == (sensitive,) * 3
        assert new == pytest.approx(old, rel=1e-3)


def test_prior_sensitivity_of_every_gene(tree, stats, legacy):
    table = stats.psense_summary(tree, var_names=["beta", "sigma", "theta"])
    assert len(table) == 2 * 2 + 2 + 2 and np.isfinite(table["prior"]).all()
    old = legacy.psens(legacy.InferenceData.from_datatree(tree), component="prior", var_names=["sigma", "theta"])
    assert old["sigma"].shape == (2, 1)
    # the prior of σ speaks more than that of the covariate's effect, by theirs and by ours
    ours = prior_sensitivity(tree).assign(size=lambda t: t["prior"].abs()).groupby("site")["size"].mean()
    assert ours["sigma"] > ours["beta"]
    theirs = table["prior"].groupby(table.index.str.split("[").str[0]).mean()
    assert theirs["sigma"] > theirs["beta"]


def test_predictive_plots(tree, plots, legacy):
    plots.plot_ppc_dist(tree, kind="ecdf", backend="matplotlib", num_samples=20)
    plots.plot_ppc_tstat(tree, backend="matplotlib")
    plots.plot_forest(tree, var_names=["beta"], backend="matplotlib")
    plots.plot_prior_posterior(tree, var_names=["sigma", "theta"], backend="matplotlib")
    plots.plot_ppc_rootogram(tree.sel(gene="a").isel(isoform=0), backend="matplotlib")  # counts are integers
    old = legacy.InferenceData.from_datatree(tree)
    assert len(np.atleast_1d(legacy.plot_ppc(old, num_pp_samples=20, show=False)).ravel()) == 1
    legacy.plot_ppc(old, group="prior", num_pp_samples=20, show=False)
    legacy.plot_forest(old, var_names=["beta"], show=False)
