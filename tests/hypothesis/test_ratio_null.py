import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import chi2

from pyrosplice.hypothesis import ratio_null as module
from pyrosplice.hypothesis.ratio_null import RatioNull, spatial_ratio_null
from pyrosplice.hypothesis.spatial_kernel import spatial_kernel
from pyrosplice.models.likelihoods import Multinomial
from pyrosplice.spatial.car import CarCovariance
from tests.studies.simulation import grid, scattered, simulate_counts

LAYOUT = CarCovariance(grid(7).adjacency, rho=0.7)
KERNEL = spatial_kernel(LAYOUT, damping=0.0)


def dense_log_likelihood(data, noise, design, size, share):
    """Of logits (N, Q) under the linear model, coefficients profiled out, by dense algebra."""
    covariance, value = LAYOUT.dense().numpy(), 0.0
    for k, v in enumerate(noise):
        whole = v * np.eye(49) + size * (share * covariance + (1 - share) * np.eye(49))
        inverse = np.linalg.inv(whole)
        fitted = design @ np.linalg.solve(design.T @ inverse @ design, design.T @ inverse @ data[:, k])
        rest = data[:, k] - fitted
        value -= 0.5 * (np.linalg.slogdet(whole)[1] + rest @ inverse @ rest)
    return value


@pytest.mark.parametrize("covariates", [0, 2])
def test_law_is_that_of_the_dense_linear_model(covariates):
    """Ratios optimised one by one, without a grid and without compressing the spectrum."""
    rng = np.random.default_rng(1)
    noise, variance, n_draws = np.array([0.5, 1.5]), 0.6, 120
    design = np.concatenate([np.ones((49, 1)), rng.standard_normal((49, covariates))], 1)
    ratios = []
    for _ in range(n_draws):
        data = rng.standard_normal((49, 2)) * np.sqrt(noise + variance)

        def loss(point, data=data):
            return -dense_log_likelihood(data, noise, design, np.exp(point[0]), point[1] if len(point) > 1 else 0.0)

        null = minimize(loss, [np.log(variance)], bounds=[(-6, 3)])
        starts = [[null.x[0], 0.02], [null.x[0], 0.5], [null.x[0], 0.95]]
        full = min(minimize(loss, start, bounds=[(-6, 3), (0, 1)]).fun for start in starts)
        ratios.append(2 * (null.fun - full))
    ratios = np.array(ratios)
    basis = torch.linalg.qr(torch.from_numpy(design)).Q
    draws = module._Draws.of(KERNEL, basis, 2, 4000, 0)
    positive, scale = module._law(draws, torch.from_numpy(noise), torch.full((2,), variance, dtype=torch.float64), True)
    share = (ratios > module._POSITIVE).mean()
    assert float(positive) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n_draws))
    law = RatioNull(positive, scale)
    for level in (0.1, 0.05):
        rejected = (law.sf(torch.from_numpy(ratios)).numpy() < level).mean()
        assert abs(rejected - level) < 4 * np.sqrt(level * (1 - level) / n_draws)


def test_profiled_likelihood_is_the_dense_one():
    """One draw put back into the spots, all eigenvalues kept."""
    kernel = spatial_kernel(scattered(25), damping=0.0)
    design = torch.linalg.qr(torch.randn(25, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    draws = module._Draws.of(kernel, design, 1, 3, 5)
    vectors = kernel.vectors * (design[:, :1].T @ kernel.vectors).sign()
    rng = np.random.default_rng(5)
    single = torch.from_numpy(rng.standard_normal((1, 3, 25)))[0]
    values = kernel.values
    variances = torch.stack([0.3 + 0.5 * (0.2 + 0.8 * values), 0.3 + 2.0 * values])
    ours = draws.log_likelihood(0, torch.tensor(1.7, dtype=torch.float64), variances)
    for m in range(3):
        data = vectors @ single[m] * 1.7**0.5
        for j, diagonal in enumerate(variances):
            covariance = kernel.vectors @ torch.diag(diagonal) @ kernel.vectors.T
            inverse = torch.linalg.inv(covariance)
            beta = torch.linalg.solve(design.T @ inverse @ design, design.T @ inverse @ data)
            rest = data - design @ beta
            expected = -0.5 * (torch.logdet(covariance) + rest @ inverse @ rest)
            assert float(ours[m, j]) == pytest.approx(float(expected), rel=1e-9)


def test_tail_is_a_scaled_chi_square_and_zero_is_one():
    law = RatioNull(torch.tensor(0.12, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64))
    x = torch.tensor([0.0, 1e-7, 1.0, 40.0, 1e6, torch.nan], dtype=torch.float64)
    out = law.sf(x)
    assert out[:2].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(out[2:4].numpy(), 0.12 * chi2.sf([1 / 0.7, 40 / 0.7], 1))
    assert float(out[4]) > 0 and torch.isnan(out[5])


def test_every_gene_has_its_own_law_and_seed_fixes_it():
    counts = simulate_counts(LAYOUT, n_genes=3, depth=5, sigma=0.5, theta=0.0, seed=1)
    information = Multinomial().information(counts, torch.zeros_like(counts[..., :-1]))
    sigma = torch.tensor([[0.5], [0.0], [1.0]], dtype=torch.float64)
    law = spatial_ratio_null(information, sigma, KERNEL, n_draws=400)
    again = spatial_ratio_null(information[1:2], sigma[1:2], KERNEL, n_draws=400)
    torch.testing.assert_close(again.positive, law.positive[1:2])
    torch.testing.assert_close(again.scale, law.scale[1:2])
    assert ((law.positive > 0) & (law.positive < 0.5) & (law.scale > 0)).all()
    apart = spatial_ratio_null(information, sigma, KERNEL, n_draws=400, share_variance=False)
    assert (apart.positive > law.positive).all()  # two chances to be above 0


def test_a_logit_without_information_changes_nothing():
    """That of an isoform with a handful of counts, beside one that is known well."""
    draws = module._Draws.of(KERNEL, torch.full((49, 1), 1 / 7, dtype=torch.float64), 2, 2000, 0)
    noise = torch.tensor([0.5, 500.0], dtype=torch.float64)
    variance = torch.full((2,), 0.6, dtype=torch.float64)
    positive, scale = module._law(draws, noise, variance, True)
    alone = module._law(draws, noise[:1], variance[:1], True)
    assert float(positive) == pytest.approx(float(alone[0]), rel=0.15)
    assert float(scale) == pytest.approx(float(alone[1]), rel=0.15)


@pytest.mark.parametrize("layout", [grid(5), scattered(30)])
def test_the_order_of_the_spots_changes_nothing(layout):
    """A square grid has eigenvalues that occur twice."""
    order = torch.randperm(layout.n_spots, generator=torch.Generator().manual_seed(0))
    constant = torch.full((layout.n_spots, 1), layout.n_spots**-0.5, dtype=torch.float64)
    loadings = [
        module._loading(spatial_kernel(matrix, damping=0.0), constant)
        for matrix in (layout.dense(), layout.dense()[order][:, order])
    ]
    torch.testing.assert_close(loadings[1], loadings[0], rtol=1e-6, atol=1e-9)
    assert float(loadings[0].square().sum()) == pytest.approx(1.0)
