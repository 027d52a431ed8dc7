"""What simulated genes are made of: numbers of molecules, patterns, usage, and the cells of expression."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pyrosplice.data import (
    simulate_counts,
    simulate_expression,
    simulate_isoforms,
    simulate_totals,
    spatial_patterns,
)
from pyrosplice.data._patterns import LEVELS, MASKS
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial import CarCovariance
from tests.studies.simulation import grid

LAYOUT = grid(12)
PLACES = np.stack(np.divmod(np.arange(144), 12), 1).astype(float)
TRUTH = {"n_genes": 6, "sigma": 0.5, "theta": 0.3, "seed": 2}
CELLS = pd.DataFrame({"group": np.repeat(["a", "b"], 300), "donor": np.repeat(list("uvwxyz"), 100)})
SHAPES = [*LEVELS, *MASKS]


@given(
    st.integers(1, 144),
    st.sampled_from([0.0, 1.5]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 99),
    st.sampled_from([{"molecules": 40}, {"depth": 3.0}, {"depth": np.linspace(0, 2, 144)}]),
)
@settings(max_examples=30)
def test_molecules_lie_where_genes_are_seen(covered, spread, theta, seed, how_many):
    found = simulate_totals(LAYOUT, n_genes=4, covered=covered, spread=spread, theta=theta, seed=seed, **how_many)
    assert found.shape == (4, 144) and (found >= 0).all() and (found == found.floor()).all()
    assert ((found > 0).sum(1) <= covered).all()
    if "molecules" in how_many:
        assert (found.sum(1) == 40).all()
    again = simulate_totals(LAYOUT, n_genes=4, covered=covered, spread=spread, theta=theta, seed=seed, **how_many)
    assert (found == again).all()


def test_exact_totals_are_the_same_at_every_covered_spot():
    found = simulate_totals(LAYOUT, n_genes=20, depth=5, covered=30, exact=True, seed=0)
    assert ((found == 5).sum(1) == 30).all() and ((found == 0).sum(1) == 114).all()
    assert len(np.unique(found.numpy(), axis=0)) == 20


@pytest.mark.parametrize("covered", [None, 50])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_depth_is_the_mean_of_the_spots_that_are_covered(covered, spread):
    found = simulate_totals(LAYOUT, n_genes=500, depth=4.0, covered=covered, spread=spread, seed=1)
    mean = float(found.sum(1).mean()) / (covered or 144)
    assert abs(mean - 4) < 4 * (4 / (500 * (covered or 144))) ** 0.5  # totals over the spots are Poisson


def test_uneven_depth_has_the_spread_and_the_share_of_space_that_it_is_given():
    logs = {}
    for theta in (0.0, 1.0):
        deep = simulate_totals(LAYOUT, n_genes=300, depth=1e6, spread=0.8, theta=theta, seed=2).log().numpy()
        logs[theta] = deep - deep.mean(1, keepdims=True)
    assert np.sqrt((logs[0.0] ** 2).mean()) == pytest.approx(0.8, rel=0.02)
    neighbors = LAYOUT.adjacency.toarray() > 0
    alike = {theta: (log.T @ log / 300)[neighbors].mean() / (log**2).mean() for theta, log in logs.items()}
    assert abs(alike[0.0]) < 0.05 < 0.5 < alike[1.0]


def test_one_seed_for_depth_and_usage_does_not_tie_them():
    """The same stream for both would make deep spots those of one isoform."""
    covariance = CarCovariance(np.eye(400, k=1))
    for theta in (0.0, 1.0):
        deep = simulate_totals(covariance, n_genes=20, depth=1e5, spread=1.0, theta=theta, seed=7).numpy()
        counts = simulate_counts(covariance, n_genes=20, totals=deep, sigma=1.0, theta=theta, seed=7, n_isos=2).numpy()
        ratio = np.log(counts[..., 0] / counts[..., 1])
        correlation = [np.corrcoef(np.log(deep[g]), ratio[g])[0, 1] for g in range(20)]
        assert abs(np.mean(correlation)) < 0.3  # of fields, which have few independent spots


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "depth, molecules: expected one"),
        ({"depth": 1.0, "molecules": 3}, "depth, molecules: expected one"),
        ({"depth": 1.0, "covered": 145}, "covered: expected at most 144"),
        ({"depth": 1.5, "exact": True}, "depth: expected whole numbers"),
        ({"molecules": 5, "exact": True}, "exact"),
        ({"depth": 2, "spread": 1.0, "exact": True}, "exact"),
        ({"depth": np.ones(3)}, r"depth: .*found shape \(3,\)"),
        ({"depth": -1.0}, "depth"),
        ({"depth": np.inf}, "depth"),
        ({"depth": 1.0, "theta": 1.1}, r"theta: expected a number in \[0, 1\]"),
        ({"depth": 1.0, "spread": -1.0}, "spread"),
        ({"molecules": -1}, "molecules"),
        ({"depth": 1.0, "seed": 0.5}, "seed"),
    ],
)
def test_impossible_totals_are_refused_by_name(wrong, message):
    with pytest.raises(InvalidArgumentError, match=message):
        simulate_totals(LAYOUT, **({"n_genes": 2, "seed": 0} | wrong))


@pytest.mark.parametrize("wrong", [LAYOUT.dense(), np.eye(144), CarCovariance, None], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("draw", [simulate_counts, simulate_totals])
def test_a_covariance_without_fields_is_refused_by_name(draw, wrong):
    asked = TRUTH if draw is simulate_counts else {"n_genes": 2, "seed": 0}
    with pytest.raises(InvalidArgumentError, match=rf"^covariance: .*CarCovariance.*found {type(wrong).__name__}\.$"):
        draw(wrong, depth=3, **asked)


@pytest.mark.parametrize("each", [False, True])
def test_counts_have_the_totals_that_are_given(each):
    totals = np.random.default_rng(0).poisson(3, (6, 144) if each else 144).astype(float)
    counts = simulate_counts(LAYOUT, totals=totals, **TRUTH)
    np.testing.assert_array_equal(counts.sum(-1), np.broadcast_to(totals, (6, 144)))
    for wrong in (totals + 0.5, -totals, totals[..., :3]):
        with pytest.raises(InvalidArgumentError, match="totals"):
            simulate_counts(LAYOUT, totals=wrong, **TRUTH)
    for depth in (3.0, None):
        with pytest.raises(InvalidArgumentError, match="depth, totals: expected one"):
            simulate_counts(LAYOUT, totals=totals if depth else None, depth=depth, **TRUTH)


def test_intercepts_and_effects_may_be_each_genes_own():
    rng = np.random.default_rng(3)
    bias, effect = rng.uniform(-1, 1, (6, 2)), rng.uniform(-1, 1, (6, 144, 2))
    truth = TRUTH | {"sigma": 0.0, "totals": np.full(144, 1e6)}
    for options, logits in (
        ({"bias": bias}, np.broadcast_to(bias[:, None], effect.shape)),
        ({"bias": bias[0], "effect": effect}, bias[0] + effect),
        ({"effect": effect[0]}, np.broadcast_to(effect[0], effect.shape)),
    ):
        counts = simulate_counts(LAYOUT, **truth, **options).numpy()
        np.testing.assert_allclose(np.log(counts[..., :-1] / counts[..., -1:]), logits, atol=0.05)
    for wrong in ({"bias": bias[:, :1]}, {"effect": effect[:, :3]}, {"bias": ["a", "b"]}, {"effect": 1.0}):
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
            simulate_counts(LAYOUT, **truth, **wrong)


@pytest.mark.parametrize("theta", [0.0, 1.0])
def test_a_symmetric_effect_varies_every_pair_of_isoforms_alike(theta):
    counts = simulate_counts(
        LAYOUT,
        n_genes=400,
        totals=np.full(144, 1e6),
        sigma=0.5,
        theta=theta,
        seed=4,
        n_isos=4,
        isoform_effect="symmetric",
    )
    logs = counts.log().numpy()
    for first in range(4):
        for second in range(first):
            assert (logs[..., first] - logs[..., second]).var() == pytest.approx(2 * 0.25, rel=0.1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_logits", [1, 2])
def test_patterns_have_one_size_and_a_place_each(shape, n_logits):
    found = spatial_patterns(PLACES, shape, n_genes=20, n_logits=n_logits, seed=0)
    assert found.shape == (20, 144, n_logits)
    np.testing.assert_allclose(found.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(np.square(found).mean((1, 2)), 1)
    assert len(np.unique(found.round(9), axis=0)) >= (15 if n_logits == 1 else 20)  # which of one logit may coincide
    moved = spatial_patterns(7 * PLACES - 3, shape, n_genes=20, n_logits=n_logits, seed=0)
    np.testing.assert_allclose(found, moved, atol=1e-9)  # units of the coordinates do not matter


@pytest.mark.parametrize(("shape", "levels"), [("domains", 6), ("stripes", 2), ("hot-spot", 2), ("ring", 2)])
def test_patterns_have_as_many_levels_as_their_names_say(shape, levels):
    for gene in spatial_patterns(PLACES, shape, n_genes=20, n_logits=1, seed=1):
        assert len(np.unique(gene.round(9))) == levels


@pytest.mark.parametrize(
    ("coords", "shape", "message"),
    [
        (PLACES, "spiral", "shape"),
        (np.column_stack([PLACES, PLACES[:, 0]]), "ring", "coords: expected two dimensions"),
        (PLACES[[0, 5, 140]], "ring", "coords: 3 spots are too few"),
    ],
)
def test_patterns_without_room_are_refused(coords, shape, message):
    with pytest.raises(InvalidArgumentError, match=message):
        spatial_patterns(coords, shape, n_genes=5, seed=0)


@pytest.mark.parametrize("each", [False, True])
def test_usage_and_size_factors_of_a_tissue(each):
    usage = np.array([0.6, 0.1, 0.3])
    usage = np.stack([usage, usage[::-1], usage[[1, 0, 2]]]) if each else usage
    factors = np.exp(np.random.default_rng(0).normal(size=900))
    truth = {"n_spots": 900, "n_genes": 3, "depth": [2.0, 9.0, 30.0], "sigma": 0.0, "usage": usage}
    adata = simulate_isoforms(**truth, intercept_scale=0.0, size_factors=factors)
    np.testing.assert_allclose(adata.layers["true_ratios"][0].reshape(3, 3), np.broadcast_to(usage, (3, 3)), rtol=1e-5)
    np.testing.assert_array_equal(adata.obs["size_factor"], factors)
    totals = adata.layers["counts"].toarray().reshape(900, 3, 3).sum(-1)
    expected = np.outer(factors, [2.0, 9.0, 30.0])
    residual = np.square(totals - expected).sum(0) / expected.sum(0)
    assert (np.abs(residual - 1) < 0.25).all()  # Poisson
    named = pd.Series(factors, index=adata.obs_names)[::-1]
    again = simulate_isoforms(**truth, intercept_scale=0.0, size_factors=named)
    assert (adata.layers["counts"] != again.layers["counts"]).nnz == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"usage": [0.5, 0.5]},
        {"usage": [0.5, 0.5, 0.5]},
        {"usage": [1.0, 0.0, 0.0]},
        {"usage": np.full((2, 3), 1 / 3)},
        {"size_factors": np.ones(5)},
        {"size_factors": np.zeros(16)},
        {"size_factors": np.full(16, np.nan)},
        {"size_factors": ["a"] * 16},
        {"sigma": np.inf},
    ],
)
def test_impossible_usage_and_sizes_are_refused_by_name(wrong):
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        simulate_isoforms(**({"n_spots": 16, "n_genes": 3} | wrong))


@pytest.mark.parametrize("dispersion", [0.0, 0.2, 2.0])
def test_expression_has_the_stated_mean_and_variance(dispersion):
    mean = np.where(CELLS["group"] == "b", 6.0, 3.0)[:, None]
    found = simulate_expression(CELLS, n_genes=200, mean=mean, dispersion=dispersion, seed=1)
    counts = found.X.toarray()
    for group, expected in (("a", 3.0), ("b", 6.0)):
        some = counts[(CELLS["group"] == group).to_numpy()]
        variance = expected + dispersion * expected**2
        assert abs(some.mean() - expected) < 4 * np.sqrt(variance / some.size)
        assert some.var() == pytest.approx(variance, rel=0.1)
    assert (found.var["dispersion"] == dispersion).all() and np.allclose(found.var["mean"], 4.5)
    assert found.obs["group"].tolist() == CELLS["group"].tolist()


def test_donors_sizes_and_zeros_are_in_the_counts():
    sizes = np.random.default_rng(0).lognormal(0, 0.5, 600)
    cells = CELLS.assign(size=sizes)
    found = simulate_expression(
        cells, n_genes=400, mean=1e4, dispersion=0.0, size_factors="size", donors="donor", donor_sd=0.4, seed=2
    )
    logs = np.log(found.X.toarray() / (1e4 * sizes[:, None]))
    donor = pd.DataFrame(logs).groupby(cells["donor"].to_numpy()).mean()
    assert float(donor.to_numpy().std()) == pytest.approx(0.4, rel=0.05)
    within = logs - donor.loc[cells["donor"]].to_numpy()
    assert within.std() < 0.03  # Poisson noise of 10,000 counts of a cell of size 1
    by_array = simulate_expression(
        CELLS, n_genes=400, mean=1e4, dispersion=0.0, size_factors=sizes, donors=CELLS["donor"], donor_sd=0.4, seed=2
    )
    assert (found.X != by_array.X).nnz == 0
    empty = simulate_expression(CELLS, n_genes=50, mean=100.0, dispersion=0.1, zeros=0.3, seed=3).X
    assert abs(1 - empty.nnz / 30_000 - 0.3) < 4 * np.sqrt(0.21 / 30_000)


def test_expression_of_single_genes():
    mean, dispersion = np.array([1.0, 10.0, 100.0]), np.array([0.0, 0.5, 2.0])
    counts = simulate_expression(pd.DataFrame(index=range(20_000)), n_genes=3, mean=mean, dispersion=dispersion).X
    dense = counts.toarray()
    np.testing.assert_allclose(dense.mean(0), mean, rtol=0.06)
    np.testing.assert_allclose(dense.var(0), mean + dispersion * mean**2, rtol=0.15)
    poisson = np.bincount(dense[:, 0].astype(int))
    kept = stats.poisson.pmf(range(len(poisson)), 1.0) * 20_000 > 5
    assert (
        stats.chisquare(
            poisson[kept],
            stats.poisson.pmf(np.flatnonzero(kept), 1.0)
            / stats.poisson.pmf(np.flatnonzero(kept), 1.0).sum()
            * poisson[kept].sum(),
        ).pvalue
        > 1e-3
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mean": -1.0}, "mean"),
        ({"mean": np.inf}, "mean"),
        ({"mean": np.ones(5)}, r"mean: .*found shape \(5,\)"),
        ({"dispersion": -0.1}, "dispersion"),
        ({"donor_sd": 0.2}, "donor_sd: expected 0 without donors"),
        ({"donors": "patient"}, "donors: no column 'patient'"),
        ({"size_factors": "depth"}, "size_factors: no column"),
        ({"zeros": 1.2}, "zeros"),
        ({"n_genes": 0}, "n_genes"),
        ({"seed": -1}, "seed"),
        ({"obs": 60}, "obs: expected a DataFrame"),
    ],
)
def test_impossible_expression_is_refused_by_name(wrong, message):
    options = {"obs": CELLS, "n_genes": 3} | wrong
    with pytest.raises(InvalidArgumentError, match=message):
        simulate_expression(**options)
