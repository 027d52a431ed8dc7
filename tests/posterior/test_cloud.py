"""Adaptive importance sampling of three hyper-parameters or four, against quadrature of a bent ridge."""

import math

import pytest
import torch

from pyrosplice.posterior import _ccd as ccd
from pyrosplice.posterior import _cloud as cloud
from pyrosplice.posterior._cloud import Mixture, effective, flattened, hyper_cloud
from pyrosplice.posterior._grid import COARSE, nodes_of

LOW, HIGH = torch.tensor([-6.5, -8.0, -1.0]).double(), torch.tensor([1.7, 8.0, 7.0]).double()
LOG_2PI = math.log(2 * math.pi)
WIDTHS = torch.tensor([0.08, 0.3]).double()  # of the ridge, one a gene


def ridge(points, width):
    """log σ, logit θ, log A: data that know σ² + 1 / A, under the weak priors of all three (up to a constant).

    A fourth is standard normal and independent of them.
    """
    log_sigma, logit, log_size, *more = points.unbind(-1)
    total = torch.logaddexp(2 * log_sigma, -log_size)
    priors = log_sigma - 1.5 * log_sigma.exp() - 0.5 * ((log_size - 3.0) / 1.5).square()
    spatial = -torch.nn.functional.softplus(logit) - torch.nn.functional.softplus(-logit)
    independent = sum((-0.5 * (x.square() + LOG_2PI) for x in more), torch.zeros_like(total))
    return priors + spatial + independent - 0.5 * ((total + 2.0) / width).square()


class Ridges:
    """Stands in for a target: genes with ridges of some widths."""

    def __init__(self, widths):
        self.widths = widths

    def select(self, genes):
        return Ridges(self.widths[genes])


@pytest.fixture(autouse=True)
def known_density(monkeypatch):
    def evaluated(target, start, points):
        return ridge(points, target.widths), start.expand(len(points), *start.shape[-3:])

    def coarse_grid(target, coefficients, phi):
        axes = LOW[:, None] + (HIGH - LOW)[:, None] * torch.linspace(0, 1, COARSE[3], dtype=torch.float64)
        axes = axes.expand(len(phi), -1, -1)
        table = ridge(nodes_of(axes), target.widths[:, None])
        return axes, table, coefficients.unsqueeze(1).expand(-1, table.shape[1], -1, -1)

    def plausible(target, phi):
        more = torch.full((phi.shape[1] - 3,), 4.0)
        return tuple(torch.cat(side).expand_as(phi) for side in ((LOW, -more), (HIGH, more)))

    for module in (cloud, ccd):
        monkeypatch.setattr(module, "evaluated", evaluated)
        monkeypatch.setattr(module, "plausible", plausible)
    monkeypatch.setattr(cloud, "coarse_grid", coarse_grid)


def exact(width):
    """Means, sds and log integral by quadrature over (log σ, log A); logit θ is logistic, and independent of them."""
    sides = torch.linspace(-11, 2, 600).double(), torch.linspace(-3, 9, 600).double()
    cell = sum((side[1] - side[0]).log() for side in sides)
    table = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).flatten(0, 1)
    points = torch.stack([table[:, 0], torch.zeros(len(table)).double(), table[:, 1]], -1)
    value = ridge(points, width)
    chance = torch.softmax(value, 0).unsqueeze(-1)
    mean = (chance * points).sum(0)
    variance = (chance * (points - mean).square()).sum(0)
    variance[1] = torch.pi**2 / 3
    logistic_at_zero = torch.tensor(0.25).double().log()
    return mean, variance.sqrt(), torch.logsumexp(value, 0) + cell - logistic_at_zero


@pytest.mark.slow
@pytest.mark.parametrize("d", [3, 4])
def test_draws_along_a_bent_ridge_have_its_means_and_spreads_and_their_density(d):
    n_draws, blank = 4000, torch.zeros(2, 1, 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    found = hyper_cloud(Ridges(WIDTHS), blank, torch.zeros(2, d, dtype=torch.float64), n_draws, generator)
    assert (effective(found.log_weights) > 0.2 * n_draws).all()
    drawn, log_density, _ = found.sample(n_draws, generator)
    for gene, width in enumerate(WIDTHS):
        mean, sd, log_integral = exact(float(width))
        mean, sd = torch.nn.functional.pad(mean, (0, d - 3)), torch.nn.functional.pad(sd, (0, d - 3), value=1.0)
        shift = (drawn[:, gene].mean(0) - mean) / sd
        assert (shift.abs() < 0.12).all(), shift
        torch.testing.assert_close(drawn[:, gene].std(0), sd, rtol=0.1 if d == 3 else 0.15, atol=0)
        normalized = ridge(drawn[:, gene], width) - log_integral
        torch.testing.assert_close(log_density[:, gene], normalized, rtol=0, atol=0.1 if d == 3 else 0.15)


def test_a_ridge_that_is_not_found_is_said(caplog):
    """In six dimensions and a thousand times narrower, few points have the weight, however often one tries."""
    blank = torch.zeros(1, 1, 1, dtype=torch.float64)
    narrow = Ridges(torch.tensor([1e-4]).double())
    hyper_cloud(narrow, blank, torch.zeros(1, 6, dtype=torch.float64), 400, torch.Generator().manual_seed(0))
    assert "hyper: p(φ | y) of 1 of 1 genes was not found" in caplog.text


def test_mixtures_are_densities_of_their_own_draws():
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[[0.0, 0.0], [3.0, 1.0]]]).double()
    roots = torch.tensor([[[[1.0, 0.0], [0.5, 0.7]], [[0.3, 0.0], [0.0, 2.0]]]]).double()
    mixture = Mixture(centers, roots, torch.tensor([[0.3, 0.7]]).double().log(), torch.arange(2.0).reshape(1, 2, 1, 1))
    kernels = torch.distributions.MultivariateNormal(centers[0], scale_tril=roots[0])
    expected = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(mixture.log_shares[0].exp()), kernels
    )
    points, which = mixture.sample(4000, generator)
    torch.testing.assert_close(mixture.log_prob(points)[0], expected.log_prob(points[0]))
    assert abs(float(which.mean()) - 0.7) < 0.03
    torch.testing.assert_close(points[0].mean(0), expected.mean, atol=0.1, rtol=0)


def test_flattened_weights_leave_enough_points_and_no_more_than_they_must():
    generator = torch.Generator().manual_seed(0)
    weights = torch.stack([20.0 * torch.randn(500, generator=generator), torch.zeros(500)]).double()
    weights[0, 3] = -torch.inf
    flat = flattened(weights)
    torch.testing.assert_close(effective(flat), torch.tensor([cloud.FEWEST, 500.0]).double(), rtol=0.01, atol=0)
    assert torch.isfinite(flat).all()
