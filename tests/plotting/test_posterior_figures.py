"""Figures of posteriors and predictive checks: asserted on the artists."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.colors import same_color
from scipy.special import expit
from scipy.stats import binom, norm

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.plotting import (
    convergence_traces,
    effect_forest,
    effect_table,
    posterior_usage_table,
    predictive_intervals,
    rank_histogram,
    rootogram,
    usage_map,
    variance_grid,
)
from pyrosplice.plotting._style import OKABE_ITO


@pytest.fixture(autouse=True)
def _headless():
    matplotlib.use("Agg")
    yield
    plt.close("all")


def tree(*, isoforms=("a", "b", "c"), n_logits=2, covariates=("age",)):
    """101 draws that are 0, 1, ..., 100 plus ten times the logit's number, for two genes; usage from the same."""
    draws = np.arange(101.0)[None, :, None, None, None]
    beta = np.broadcast_to(draws, (1, 101, 2, 1, n_logits)) + 10 * np.arange(n_logits)
    usage = np.broadcast_to(draws / 200, (1, 101, 2, 3, len(isoforms))).copy()
    usage[..., 1, :] = 0.25  # the second spot is known
    counts = np.zeros((2, 3, len(isoforms)))
    counts[0] = [[2, 1, 1], [0, 0, 0], [0, 0, 5]] if len(isoforms) == 3 else 1
    leading = ("chain", "draw", "gene")
    coords = {"gene": ["g1", "g2"]}
    posterior = xr.Dataset(
        {"beta": ((*leading, "covariate", "logit"), beta), "usage": ((*leading, "spot", "isoform"), usage)},
        coords=coords | {"covariate": list(covariates), "logit": np.arange(n_logits)},
    )
    observed = xr.Dataset({"counts": (("gene", "spot", "isoform"), counts)}, coords | {"isoform": list(isoforms)})
    return xr.DataTree.from_dict({"posterior": posterior, "observed_data": observed})


def test_effect_table_has_means_intervals_and_odds_in_words():
    table = effect_table(tree(), probability=0.8)
    assert table["gene"].tolist() == ["g1", "g1", "g2", "g2"]
    assert table["label"].tolist() == ["age: a vs c", "age: b vs c"] * 2
    np.testing.assert_allclose(table[["lower", "mean", "upper"]].to_numpy()[:2], [[10, 50, 90], [20, 60, 100]])


def test_effect_labels_of_numbers_and_of_counts_say_what_they_are():
    numbered = effect_table(tree(isoforms=(0, 1), n_logits=1, covariates=(0,)))
    assert numbered["label"].tolist() == ["covariate 0: isoform 0 vs 1"] * 2
    assert effect_table(tree(isoforms=("all",), n_logits=1))["label"].tolist() == ["age"] * 2


def test_forest_fills_what_does_not_cover_zero_and_names_each_gene_once():
    table = pd.DataFrame(
        {"gene": ["g", "g", "h"], "label": ["x", "y", "x"], "mean": [1.0, 0.2, -2.0], "lower": [0.5, -1.0, -3.0]}
    ).assign(upper=[1.5, 1.4, -1.0])
    ax = effect_forest(table, name="log odds")
    assert [label.get_text().split() for label in ax.get_yticklabels()] == [["g", "x"], ["y"], ["h", "x"]]
    intervals, points = ax.lines[0:6:2], ax.lines[1:6:2]
    np.testing.assert_allclose([line.get_xdata() for line in intervals], table[["lower", "upper"]])
    np.testing.assert_allclose([point.get_xdata()[0] for point in points], table["mean"])
    assert [same_color(point.get_markerfacecolor(), "white") for point in points] == [False, True, False]
    assert points[0].get_color() == points[2].get_color() != points[1].get_color()
    assert (np.diff([point.get_ydata()[0] for point in points]) < 0).all()
    assert ax.get_xlabel().startswith("log odds")
    with pytest.raises(InvalidArgumentError, match="at most 60"):
        effect_forest(pd.concat([table] * 21))


def grid(center=0.0):
    """Log σ normal(−0.2, 0.1) and logit θ normal(centre, 0.5), independent, at 13 × 13 nodes."""
    log_sigma, logit = np.meshgrid(np.linspace(-0.6, 0.2, 13), np.linspace(center - 2.2, center + 2.2, 13))
    density = norm.logpdf(log_sigma, -0.2, 0.1) + norm.logpdf(logit, center, 0.5)
    return pd.DataFrame(
        {"sigma": np.exp(log_sigma).ravel(), "theta": expit(logit).ravel(), "log_density": density.ravel()}
    ).sample(frac=1, random_state=0)


def test_variance_regions_hold_the_mass_that_they_say():
    ax = variance_grid(grid())
    rng = np.random.default_rng(0)
    draws = np.column_stack([np.exp(rng.normal(-0.2, 0.1, 4000)), expit(rng.normal(0.0, 0.5, 4000))])
    (regions,) = ax.collections
    inside = [path.contains_points(draws).mean() for path in regions.get_paths()]  # widest first; holes count too
    np.testing.assert_allclose(inside, [0.99, 0.95, 0.8, 0.5], atol=0.025)
    low, high = ax.get_xlim()
    assert low < np.quantile(draws[:, 0], 0.005) and high > np.quantile(draws[:, 0], 0.995)


def test_variance_grid_shows_its_nodes_and_the_highest():
    table = grid(1.0)
    nodes, best = variance_grid(table).lines
    np.testing.assert_allclose(nodes.get_xydata(), table[["sigma", "theta"]])
    assert best.get_xydata()[0] in table[["sigma", "theta"]].to_numpy()
    assert abs(best.get_ydata()[0] - expit(1.0)) < 0.1
    with pytest.raises(InvalidArgumentError, match="full grid"):
        variance_grid(table.iloc[:50])


def test_rootogram_hangs_the_observed_bars_from_the_prediction():
    observed = np.array([0] * 4 + [1] * 9 + [2] * 4)
    drawn = np.array([[0] * 16 + [1] * 1 + [2] * 0, [0] * 16 + [1] * 1 + [2] * 0, [0] * 16 + [1] * 1 + [5] * 0])
    ax = rootogram(observed, drawn, most=2)
    heights = [bar.get_height() for bar in ax.patches[:3]]
    np.testing.assert_allclose(heights, [2, 3, 2])
    tops = [bar.get_y() + bar.get_height() for bar in ax.patches[:3]]
    np.testing.assert_allclose(tops, [4, 1, 0])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [4, 1, 0])
    assert all(float(tick).is_integer() for tick in ax.get_xticks())


def test_rank_histogram_counts_ranks_and_has_the_binomial_band():
    ranks = np.repeat(np.arange(100), 3)
    ax = rank_histogram(ranks, n_draws=99, bins=20, name="β")
    band, *bars = ax.patches
    assert [bar.get_height() for bar in bars] == [15] * 20
    np.testing.assert_allclose([band.get_y(), band.get_y() + band.get_height()], binom.ppf([0.005, 0.995], 300, 0.05))
    assert "β" in ax.get_xlabel()


def test_traces_end_where_they_are_at_their_best_and_mark_failures():
    losses = np.array([[5.0, 9.0], [3.0, 8.0], [3.0, 7.0], [3.0, 6.0]])
    ax = convergence_traces(losses, converged=np.array([True, False]))
    good, bad = ax.lines
    np.testing.assert_allclose(good.get_ydata(), [2.0, 1e-8])
    np.testing.assert_allclose(bad.get_ydata(), [3.0, 2.0, 1.0, 1e-8])
    assert bad.get_linestyle() == "--" and good.get_linestyle() == "-" and bad.get_color() != good.get_color()
    assert ax.get_yscale() == "log" and "1 of 2" in ax.get_title()
    with pytest.raises(InvalidArgumentError, match="losses"):
        convergence_traces(np.zeros(3))


def test_predictive_intervals_are_in_units_of_the_interval():
    table = pd.DataFrame(
        {
            "gene": ["g", "h", "g", "h"],
            "statistic": ["zeros", "zeros", "largest", "largest"],
            "observed": [0.5, 0.2, 30.0, 12.0],
            "mean": [0.5, 0.4, 10.0, 10.0],
            "lower": [0.4, 0.3, 8.0, 8.0],
            "upper": [0.6, 0.5, 11.0, 12.0],
        }
    )
    ax = predictive_intervals(table)
    zeros, largest = ax.collections[1:]
    np.testing.assert_allclose(zeros.get_offsets()[:, 0], [0.0, -2.0])
    np.testing.assert_allclose(largest.get_offsets()[:, 0], [4.0, 1.0])  # 20 is beyond the frame
    assert len(ax.texts) == 1  # and its arrow says so
    assert [tuple(c[:3]) == (1.0, 1.0, 1.0) for c in zeros.get_facecolors()] == [True, False]
    assert [label.get_text().split() for label in ax.get_yticklabels()] == [
        ["g", "zeros"],
        ["largest"],
        ["h", "zeros"],
        ["largest"],
    ]
    rows = [y for _, y in sorted(zip(ax.get_yticks(), range(4), strict=True), reverse=True)]
    assert rows == [0, 1, 2, 3]
    assert same_color(zeros.get_edgecolors()[0], OKABE_ITO[0])


def test_usage_maps_have_a_row_of_posterior_standard_deviations():
    place = np.array([[0, 0], [1, 0], [2, 0]])
    table = posterior_usage_table(tree(), place, gene="g1")
    first = table[table.isoform == "a"]
    np.testing.assert_allclose(first.raw, [0.5, np.nan, 0.0])
    np.testing.assert_allclose(first.fitted, 0.25)
    spread = np.arange(101).std() / 200
    np.testing.assert_allclose(first.sd, [spread, 0.0, spread], atol=1e-12)
    axes = usage_map(table)
    assert axes.shape == (3, 3) and axes[2, 0].get_ylabel() == "posterior sd"
    drawn = [ax.collections[1] for ax in axes[2]]
    np.testing.assert_allclose(drawn[0].get_array(), first.sd)
    np.testing.assert_allclose([image.get_clim() for image in drawn], [(0.0, spread)] * 3)
    assert drawn[0].get_cmap().name != axes[1, 0].collections[1].get_cmap().name


def test_bad_requests_of_usage_are_refused_by_name():
    place = np.zeros((3, 2))
    with pytest.raises(InvalidArgumentError, match="gene: expected one of"):
        posterior_usage_table(tree(), place, gene="g3")
    with pytest.raises(InvalidArgumentError, match=r"coordinates: expected \(3, 2\)"):
        posterior_usage_table(tree(), place[:2], gene="g1")
    bare = tree()
    bare["posterior"] = xr.DataTree(bare["posterior"].to_dataset().drop_vars("usage"))
    with pytest.raises(InvalidArgumentError, match="usage=True"):
        posterior_usage_table(bare, place, gene="g1")
