"""The null law of the ratio where a likelihood estimates an over-dispersion of its own."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from pyrosplice._hypothesis.variance import ratio_null
from pyrosplice._hypothesis.variance.noise_freedom import NoiseFreedom, freely_scaled, noise_freedom
from pyrosplice._hypothesis.variance.ratio_null import spatial_ratio_null
from pyrosplice._hypothesis.variance.spatial_kernel import spatial_kernel
from pyrosplice.likelihoods._contract import Multinomial
from pyrosplice.likelihoods._isoform_shares import BetaBinomial, DirichletMultinomial
from pyrosplice.spatial.car import CarCovariance
from tests.hypothesis.variance.test_ratio_null import LAYOUT, dense_log_likelihood, draws_of
from tests.studies.simulation import grid


@pytest.mark.parametrize(("share", "floor"), [(0.05, -0.3), (0.6, -0.3), (0.6, -5.0), (1.0, -5.0)])
def test_scale_is_at_its_best(share: float, floor: float) -> None:
    quadratic = torch.tensor([[20.0, 49.0, 90.0], [40.0, 60.0, 55.0]], dtype=torch.float64)
    pull, stiff = torch.tensor([[0.0], [0.2]], dtype=torch.float64), (1 - share) / share
    found = freely_scaled(quadratic, 49.0, pull, share, floor)
    for row, (values, pulled) in enumerate(zip(quadratic.tolist(), pull.flatten().tolist(), strict=True)):
        for column, value in enumerate(values):

            def loss(delta: float, value: float = value, pulled: float = pulled) -> float:
                return value * np.exp(-delta) + 49 * (delta + stiff * delta**2 / 2 - pulled * delta)

            best = minimize_scalar(loss, bounds=(floor, 4.0), method="bounded", options={"xatol": 1e-9}).fun
            assert float(found[row, column]) == pytest.approx(best, abs=1e-5)


@pytest.mark.slow
def test_ratio_is_that_of_the_dense_linear_model_with_a_free_scale_of_the_noise() -> None:
    """Draw by draw, against a search over σ², θ and δ without grid."""
    rng, share, floor = np.random.default_rng(2), 0.7, -0.4
    design, matrix, n, stiff = np.full((49, 1), 1 / 7), LAYOUT.dense().numpy(), 98, 0.3 / 0.7
    noise = torch.full((2,), 0.8, dtype=torch.float64)
    root = np.linalg.cholesky(np.eye(49) + 2 * matrix)
    unit = torch.from_numpy(root @ rng.standard_normal((25, 49, 2)))
    unit = unit / unit.square().mean((1, 2), keepdim=True).sqrt()
    draws, none = draws_of(unit, torch.from_numpy(matrix), torch.from_numpy(design)), torch.zeros(2).double()
    factor, pull = draws.given(none, noise, [0, 1], share)
    ratios = ratio_null._ratio(draws, noise, none, [0, 1], share, floor)
    scaled = unit * noise.sqrt() * factor.sqrt()[:, None, None]
    for data, pulled, ratio in zip(scaled.numpy(), pull.tolist(), ratios.tolist(), strict=True):

        def loss(point: np.ndarray, data: np.ndarray = data, pulled: float = pulled) -> float:
            delta, size, theta = point[0], np.exp(point[1]), point[2] if len(point) > 2 else 0.0
            shape = size * (theta * matrix + (1 - theta) * np.eye(49))
            covariances = [v * np.exp(delta) * np.eye(49) + shape for v in noise.numpy()]
            return n * (stiff * delta**2 / 4 - pulled * delta / 2) - dense_log_likelihood(data, covariances, design)

        bounds = [(floor, 3), (-9, 3), (0, 1)]
        null = min(minimize(loss, [0.0, at], bounds=bounds[:2], tol=1e-10).fun for at in (-8.0, -2.0))
        starts = [[-0.1, -3.0, 0.02], [-0.2, 0.0, 0.5], [-0.2, 0.0, 0.95]]
        full = min(minimize(loss, start, bounds=bounds, tol=1e-10).fun for start in starts)
        assert ratio == pytest.approx(2 * (null - full), rel=0.04, abs=0.04)
    assert (ratios > 0.3).sum() > 3


def test_share_is_that_of_the_information_by_quadrature() -> None:
    """Derivatives of each spot's marginal likelihood in σ² and in log A, by differences."""
    totals = torch.tensor([1.0, 2.0, 30.0], dtype=torch.float64).repeat_interleave(100).expand(2, -1)
    eta, size = torch.full((2, 300, 1), 0.4, dtype=torch.float64), torch.full((2, 1), 5.0, dtype=torch.float64)
    counts = BetaBinomial(size).sample(totals, eta, generator=torch.Generator().manual_seed(0))
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(9))

    def marginal(variance: float, concentration: Tensor) -> Tensor:
        at = BetaBinomial(concentration).log_prob(counts, eta + variance**0.5 * nodes[:, None, None, None])
        return torch.logsumexp(at + (weights / weights.sum()).log()[:, None, None], 0)

    along = (marginal(2e-5, size) - marginal(0.0, size)) / 2e-5
    slope = (marginal(0.0, size * 1.001) - marginal(0.0, size)) / 1e-3
    expected = [np.corrcoef(u, d)[0, 1] ** 2 for u, d in zip(along.numpy(), slope.numpy(), strict=True)]
    found = noise_freedom(BetaBinomial(size), ("concentration",), counts, eta, torch.zeros(2, 1, dtype=torch.float64))
    np.testing.assert_allclose(found.share[:, 0].numpy(), expected, rtol=5e-3)
    assert (found.share > 0.9).all()


def test_single_counts_say_nothing_of_a_concentration() -> None:
    totals, eta = torch.ones(1, 50, dtype=torch.float64), torch.zeros(1, 50, 1, dtype=torch.float64)
    for n, concentration, share, floor in ((1.0, 5.0, 0.0, 0.0), (8.0, 5.0, 1.0, np.log(6 / 13)), (8.0, 1e7, 1.0, 0.0)):
        bound = BetaBinomial(torch.full((1, 1), concentration, dtype=torch.float64))
        counts = bound.sample(n * totals, eta, generator=torch.Generator().manual_seed(1))
        found = noise_freedom(bound, ("concentration",), counts, eta, torch.zeros(1, 1, dtype=torch.float64))
        assert float(found.share) == pytest.approx(share, abs=0.02)
        assert float(found.floor) == pytest.approx(floor, abs=0.15)  # (1 + A) / (n + A), expected counts


def test_law_does_not_jump_as_the_noise_comes_to_its_least() -> None:
    kernel = spatial_kernel(LAYOUT, damping=0.0)
    information, sigma = torch.ones(1, 49, 1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    error, at = (2 / 49) ** 0.5, torch.tensor([2.0], dtype=torch.float64)

    def tail(gap: float) -> float:
        free = NoiseFreedom(torch.full((1, 1), 0.9).double(), torch.full((1, 1), -gap * error).double())
        return float(spatial_ratio_null(information, sigma, kernel, n_draws=2048, freedom=free).sf(at))

    gaps = [0.5, 0.99, 1.01, 2.0]
    tails = [tail(gap) for gap in gaps]
    assert tails == sorted(tails)
    assert tails[2] < 1.05 * tails[1]


def test_law_with_hyperparameters_at_their_end_is_that_without() -> None:
    kernel = spatial_kernel(CarCovariance(grid(7).adjacency), damping=0.0)
    generator = torch.Generator().manual_seed(3)
    counts = torch.poisson(torch.full((2, 49, 3), 3.0, dtype=torch.float64), generator=generator)
    eta, sigma = torch.zeros(2, 49, 2, dtype=torch.float64), torch.tensor([[0.0], [0.4]], dtype=torch.float64)
    information = Multinomial().information(counts, eta)

    def law(concentration: float) -> torch.Tensor:
        bound = DirichletMultinomial(torch.full((2, 1), concentration, dtype=torch.float64))
        free = noise_freedom(bound, ("concentration",), counts, eta, sigma)
        return spatial_ratio_null(information, sigma, kernel, n_draws=1024, freedom=free).positive

    without = spatial_ratio_null(information, sigma, kernel, n_draws=1024).positive
    torch.testing.assert_close(law(1e8), without, rtol=0, atol=0)
    assert float(law(3.0)[0]) > 1.1 * float(without[0])  # σ² = 0 no longer stands in the way
