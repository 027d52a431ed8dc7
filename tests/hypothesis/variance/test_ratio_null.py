import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import chi2

from pyrosplice._hypothesis.variance import ratio_null as module
from pyrosplice._hypothesis.variance.ratio_null import RatioNull, spatial_ratio_null
from pyrosplice._hypothesis.variance.score_test import orthonormal_columns
from pyrosplice._hypothesis.variance.spatial_kernel import spatial_kernel
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods._contract import Multinomial
from pyrosplice.spatial.car import CarCovariance
from tests.studies.simulation import grid, scattered, simulate_counts

LAYOUT = CarCovariance(grid(7).adjacency, rho=0.7)
KERNEL = spatial_kernel(LAYOUT, damping=0.0)
NOISE = torch.tensor([0.5, 1.5], dtype=torch.float64)
FIXED = [(0.0, 0.0)]


def draws_of(data, covariance, design):
    """Data (M, N, Q) of spots as draws, all eigenvalues kept."""
    values, vectors = torch.linalg.eigh(covariance)
    loading = vectors.T @ design
    single = torch.einsum("ij,miq->qmj", vectors, data)
    grams = loading.unsqueeze(-1) * loading.unsqueeze(-2)
    return module._Draws(values, torch.ones_like(values), grams, single.square(), single.unsqueeze(-1) * loading)


def dense_log_likelihood(data, covariances, design):
    """Log likelihood of logits (N, Q) with one dense covariance each, coefficients profiled out."""
    value = 0.0
    for k, whole in enumerate(covariances):
        inverse = np.linalg.inv(whole)
        fitted = design @ np.linalg.solve(design.T @ inverse @ design, design.T @ inverse @ data[:, k])
        rest = data[:, k] - fitted
        value -= 0.5 * (np.linalg.slogdet(whole)[1] + rest @ inverse @ rest)
    return value


@pytest.mark.slow
@pytest.mark.parametrize("variance", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("covariates", [0, 2])
def test_ratio_is_that_of_the_dense_linear_model(covariates, variance):
    """Draw by draw, rescaled to the estimate, against a search without grid; data have a field."""
    rng = np.random.default_rng(1)
    design = np.linalg.qr(np.concatenate([np.ones((49, 1)), rng.standard_normal((49, covariates))], 1))[0]
    matrix = LAYOUT.dense()
    root = torch.linalg.cholesky(torch.eye(49) + 2 * matrix)
    unit = root @ torch.from_numpy(rng.standard_normal((25, 49, 2)))
    unit = unit / unit.square().mean((1, 2), keepdim=True).sqrt()
    draws = draws_of(unit, matrix, torch.from_numpy(design))
    total = NOISE + variance
    ratios = module._ratio(draws, NOISE, torch.full((2,), variance, dtype=torch.float64), [0, 1])
    factor, _ = draws.given(torch.full((2,), variance), total, [0, 1])
    scaled = unit * total.sqrt() * factor.sqrt()[:, None, None]
    for data, ratio in zip(scaled.numpy(), ratios.tolist(), strict=True):

        def loss(point, data=data):
            size, share = np.exp(point[0]), point[1] if len(point) > 1 else 0.0
            shape = size * (share * matrix.numpy() + (1 - share) * np.eye(49))
            return -dense_log_likelihood(data, [v * np.eye(49) + shape for v in NOISE.numpy()], design)

        null = minimize(loss, [np.log(variance + 0.1)], bounds=[(-7, 3)], tol=1e-10)
        assert np.exp(null.x[0]) == pytest.approx(variance, rel=2e-3, abs=2e-3)
        starts = [[null.x[0], 0.02], [0.0, 0.5], [0.0, 0.95]]
        full = min(minimize(loss, start, bounds=[(-7, 3), (0, 1)], tol=1e-10).fun for start in starts)
        assert ratio == pytest.approx(2 * (null.fun - full), rel=0.03, abs=0.03)
    assert (ratios > 0.3).sum() > 3


def test_profiled_likelihood_is_the_dense_one():
    matrix = scattered(25).dense()
    design = torch.linalg.qr(torch.randn(25, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    unit = torch.randn(3, 25, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draws = draws_of(unit, matrix, design)
    variances = torch.stack([0.3 + 0.5 * (0.2 + 0.8 * draws.values), 0.3 + 2.0 * draws.values])
    model = module._Model.of(draws, variances)
    ours = -0.5 * (draws.quadratic(0, torch.full((3,), 1.7, dtype=torch.float64), model) + model.logdet)
    for m in range(3):
        eye = torch.eye(25, dtype=torch.float64)
        for j, covariance in enumerate([0.4 * eye + 0.4 * matrix, 0.3 * eye + 2.0 * matrix]):
            expected = dense_log_likelihood((unit[m] * 1.7**0.5).numpy(), [covariance.numpy()], design.numpy())
            assert float(ours[m, j]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("variance", [0.0, 0.3, 2.0])
def test_scaled_chi_square_fits_the_ratios(variance):
    """New draws, given the same estimate: as many below a p-value as it says."""
    basis = torch.full((49, 1), 1 / 7, dtype=torch.float64)
    size = torch.full((2,), variance, dtype=torch.float64)
    law = RatioNull(*module._law(module._Draws.of(KERNEL, basis, 2, 4096, 0), NOISE, size, True, FIXED))
    ratios = module._ratio(module._Draws.of(KERNEL, basis, 2, 8192, 1), NOISE, size, [0, 1])
    rates = [float((law.sf(ratios) < level).double().mean()) for level in (0.05, 0.01)]
    assert rates[0] == pytest.approx(0.05, rel=0.2)
    assert 0.003 < rates[1] < 0.014  # a ratio is bounded given the estimate, which 49 spots can feel


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
    law = spatial_ratio_null(information, sigma, KERNEL, n_draws=512)
    again = spatial_ratio_null(information[1:2], sigma[1:2], KERNEL, n_draws=512)
    torch.testing.assert_close(again.positive, law.positive[1:2])
    torch.testing.assert_close(again.scale, law.scale[1:2])
    assert ((law.positive > 0) & (law.positive < 0.5) & (law.scale > 0)).all()
    apart = spatial_ratio_null(information, sigma.expand(-1, 2), KERNEL, n_draws=512)
    assert (apart.positive > law.positive).all()  # two chances to be above 0


def test_a_logit_without_information_changes_nothing():
    """That of an isoform with a handful of counts, beside one that is known well."""
    draws = module._Draws.of(KERNEL, torch.full((49, 1), 1 / 7, dtype=torch.float64), 2, 2048, 0)
    for noise, size, free in (
        (500.0, 0.6, FIXED),
        (50.0, 0.1, FIXED),
        (5000.0, 0.0, FIXED),
        (5000.0, 0.0, [(0.99, -1.0)]),
    ):
        both = torch.tensor([0.5, noise], dtype=torch.float64)
        variance = torch.full((2,), size, dtype=torch.float64)
        positive, scale = module._law(draws, both, variance, True, free)
        alone = module._law(draws, both[:1], variance[:1], True, free)
        assert float(positive) == pytest.approx(float(alone[0]), rel=0.1)
        assert float(scale) == pytest.approx(float(alone[1]), rel=0.1)


def test_logits_with_a_variance_each_may_change_places():
    """Q = 3 free logits whose information differs; the reference isoform stays."""
    counts = simulate_counts(LAYOUT, n_genes=1, depth=5, sigma=0.5, theta=0.0, seed=1, n_isos=4)
    eta = torch.tensor([1.0, -1.0, 0.3], dtype=torch.float64).expand_as(counts[..., :-1])
    information = Multinomial().information(counts, eta)
    sigma, order = torch.tensor([[1.0, 0.1, 0.4]], dtype=torch.float64), [2, 0, 1]
    noise, variance = module._noise(information, sigma, False)
    moved = module._noise(information[..., order][..., order, :], sigma[:, order], False)
    torch.testing.assert_close(moved[0], noise[:, order])
    torch.testing.assert_close(moved[1], variance[:, order])


@pytest.mark.parametrize("covariates", [0, 1, 2])
@pytest.mark.parametrize("layout", [grid(5), grid(6), scattered(30)])
def test_the_order_of_the_spots_changes_nothing(layout, covariates):
    """A square grid has eigenvalues that occur twice, and eigenvectors that the constant has no part in."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(layout.n_spots, generator=generator)
    design = torch.randn(layout.n_spots, covariates, generator=generator, dtype=torch.float64)
    dense, loadings = layout.dense(), []
    for rows in (torch.arange(layout.n_spots), order, order.flip(0)):
        kernel = spatial_kernel(dense[rows][:, rows], damping=0.0)
        basis = orthonormal_columns(design[rows] if covariates else None, kernel.diagonal)
        loadings.append(module._loading(kernel, basis))
    for other in loadings[1:]:
        torch.testing.assert_close(other, loadings[0], rtol=1e-6, atol=1e-8)
    assert float(loadings[0].square().sum()) == pytest.approx(float((kernel.vectors.T @ basis).square().sum()))


def test_draws_are_a_power_of_two():
    information = torch.eye(1, dtype=torch.float64).expand(1, 49, 1, 1)
    with pytest.raises(InvalidArgumentError, match="n_draws: expected a power of two, found 1000"):
        spatial_ratio_null(information, torch.ones(1, 1), KERNEL, n_draws=1000)
