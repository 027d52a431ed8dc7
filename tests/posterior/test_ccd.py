"""Integration over hyper-parameters by a central composite design, beside the grid and NUTS."""

import itertools

import numpy as np
import pytest
import torch

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods import DirichletMultinomial
from pyrosplice.posterior import NutsOptions, compare_posteriors
from pyrosplice.posterior._ccd import F0, MOST_HYPER, corners, design, hyper_design
from tests.posterior.test_posterior import data, mixed


@pytest.mark.parametrize("d", range(1, MOST_HYPER + 1))
def test_corners_tell_every_pair_of_interactions_apart(d):
    points = corners(d)
    pairs = [points[:, i] * points[:, j] for i, j in itertools.combinations(range(d), 2)]
    columns = torch.stack([torch.ones(len(points)).double(), *points.T, *pairs], 1)
    assert torch.equal(columns.T @ columns, len(points) * torch.eye(columns.shape[1]).double())


def test_the_design_is_small_and_on_a_sphere():
    assert [len(design(d)) for d in (2, 3, 4, 5, 6)] == [9, 15, 25, 27, 45]
    for d in (1, 2, 5):
        points = design(d)
        torch.testing.assert_close(points[1:].norm(dim=1), torch.full((len(points) - 1,), F0 * d**0.5).double())
        assert not points[0].any()
    with pytest.raises(InvalidArgumentError, match="'ccd' is for up to 12 hyper-parameters, found 13"):
        corners(13)


class Bowl:
    """Log density of φ with different normal sides along two axes at an angle, in place of a model's."""

    mode = torch.tensor([[0.3, -0.5]]).double()
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]]).double()
    above, below = torch.tensor([0.5, 1.2]).double(), torch.tensor([0.4, 0.8]).double()

    def __call__(self, target, coefficients, at):
        z = (at - self.mode) @ self.turn
        value = -0.5 * (z / torch.where(z > 0, self.above, self.below)).square().sum(-1)
        return value, at.sum(-1)[..., None, None] * torch.ones_like(coefficients)


def test_a_split_normal_density_is_found_and_drawn_from(monkeypatch):
    bowl = Bowl()
    monkeypatch.setattr("pyrosplice.posterior._ccd.evaluated", bowl)
    limits = torch.full((1, 2), 9.0).double()
    monkeypatch.setattr("pyrosplice.posterior._ccd.plausible", lambda target, phi: (-limits, limits))
    found = hyper_design(None, torch.zeros(1, 2, 1).double(), torch.tensor([[2.0, 2.0]]).double())
    torch.testing.assert_close(found.mode, bowl.mode, atol=0.05, rtol=0)
    phi, log_density, coefficients = found.sample(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(coefficients[..., 0, 0], phi.sum(-1), atol=0.1, rtol=0)  # a plane is a quadratic surface
    weights = torch.softmax(bowl(None, torch.zeros(1, 2, 1).double(), phi)[0] - log_density, 0)
    assert float(1 / weights.square().sum()) > 0.9 * len(phi)


def agree(model, *, n_draws=2000, hyper_sds=0.3, hyper_ratio=1.35):
    """β within a tenth of an sd and 10 %, intercepts .15 and 20 %, σ, logit θ and log concentration as told."""
    grid, ccd = (
        model.posterior(num_samples=n_draws, hyper=hyper, groups=(), num_chains=1) for hyper in ("integrate", "ccd")
    )
    logs = model.likelihood.free
    for site, shift, ratio in (
        ("beta", 0.1, 1.1),
        ("bias_eta", 0.15, 1.2),
        ("theta_logit", hyper_sds, hyper_ratio),
        *((name, hyper_sds, hyper_ratio) for name in ("sigma", *logs)),
    ):
        theirs, ours = (tree["posterior"][site].values[0].reshape(n_draws, -1) for tree in (grid, ccd))
        if site in logs:
            theirs, ours = np.log(theirs), np.log(ours)
        assert (abs(ours.mean(0) - theirs.mean(0)) / theirs.std(0) < shift + 3 * (2 / n_draws) ** 0.5).all(), site
        spread = ours.std(0) / theirs.std(0)
        assert ((spread < ratio) & (spread > 1 / ratio)).all(), (site, spread)
    assert (ccd["sample_stats"].pareto_k < 1).all() and ccd.attrs["hyper"] == "ccd"


@pytest.mark.slow
@pytest.mark.parametrize("depth", [4.0, 15.0])
def test_two_hyperparameters_as_on_the_grid(depth):
    agree(mixed(*data(4, depth=depth, seed=13)))


@pytest.mark.slow
def test_three_hyperparameters_as_on_the_grid():
    agree(mixed(*data(2, seed=13), likelihood=DirichletMultinomial()), hyper_sds=0.5, hyper_ratio=1.8)


@pytest.mark.slow
def test_four_hyperparameters_beside_nuts():
    """One (σ, θ) for each of two logits: by the design, and by importance sampling that starts from it."""
    model = mixed(*data(1, seed=13), share_variance=False)
    options = NutsOptions(warmup_steps=100, max_tree_depth=6, num_chains=2)
    nuts = model.posterior(num_samples=100, method="nuts", nuts_options=options, groups=())
    for hyper, tolerance in (("ccd", 0.3), ("integrate", 0.2)):
        drawn = model.posterior(num_samples=1000, hyper=hyper, groups=())
        table = compare_posteriors(drawn, nuts, sites=("beta", "bias_eta", "sigma", "theta"))
        allowed = table["site"].map({"beta": 0.15, "bias_eta": 0.15}).fillna(tolerance)
        assert (table["shift"].abs() < allowed + 3 * table["shift_error"]).all(), table
        assert table["sd_ratio"].between(0.5, 1.7).all(), table  # NUTS alone: .56 to 1.62 over 6 seeds


@pytest.mark.slow
def test_too_many_hyperparameters_for_points_are_few_enough_for_the_design():
    """One (σ, θ) for each of four logits."""
    generator = torch.Generator().manual_seed(0)
    model = mixed(torch.poisson(torch.full((1, 25, 5), 3.0), generator=generator).double(), None, share_variance=False)
    with pytest.raises(InvalidArgumentError, match="up to 6 hyper-parameters, found 8; use hyper='ccd'"):
        model.posterior(num_samples=10, hyper="integrate")
    assert np.isfinite(model.posterior(num_samples=50, hyper="ccd", groups=())["posterior"].sigma).all()
