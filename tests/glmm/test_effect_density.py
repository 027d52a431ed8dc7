"""Density of the random effect and its Laplace posterior against dense Gaussians, for every kind of solver."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyrosplice._linalg.lowrank import LowRankSolver
from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.glmm._effect_density import effect_density, split_effect
from pyrosplice.glmm._effect_posterior import RandomEffectPosterior
from pyrosplice.glmm._laplace import Laplace
from pyrosplice.glmm._latents import Parameters
from pyrosplice.glmm._mode import MixedModel
from pyrosplice.likelihoods._contract import Multinomial
from pyrosplice.spatial.car import CarCovariance

G, SIDE, Q = 2, 4, 2
N = SIDE**2
SOLVERS = ["sparse", "dense", "truncated", "none"]


def adjacency():
    index = torch.arange(N).reshape(SIDE, SIDE)
    matrix = torch.zeros(N, N, dtype=torch.float64)
    for one, two in ((index[:, :-1], index[:, 1:]), (index[:-1], index[1:])):
        matrix[one.flatten(), two.flatten()] = matrix[two.flatten(), one.flatten()] = 1
    return matrix.numpy()


def solver_of(kind):
    """A solver and the covariance of the field, without what the truncated solver puts on the diagonal."""
    car = CarCovariance(adjacency(), rho=0.9)
    if kind == "none":
        return None, torch.zeros(N, N, dtype=torch.float64)
    if kind == "sparse":
        return SparseSolver(car.precision), car.dense()
    if kind == "dense":
        return LowRankSolver.from_dense(car.dense()), car.dense()
    values, vectors = car.eigen(5)
    return LowRankSolver(values, vectors, variances=torch.ones(N).double()), (vectors * values) @ vectors.T


def problem(kind):
    rng = torch.Generator().manual_seed(0)
    solver, covariance = solver_of(kind)
    counts = torch.randint(0, 5, (G, N, Q + 1), generator=rng).double()
    counts[:, 3] = 0
    model = MixedModel(counts, torch.ones(N, 1).double(), solver, Multinomial())
    spatial = torch.tensor([[0.7, 0.3], [0.0, 1.1]]).double() * (solver is not None)
    white = torch.rand(G, N, Q, generator=rng, dtype=torch.float64) + 0.2
    parameters = Parameters(0.3 * torch.ones(G, 1, Q).double(), spatial, white)
    dense = spatial.square()[:, :, None, None] * covariance + torch.diag_embed(white.square().mT)
    return model, parameters, dense, torch.randn(G, N, Q, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("kind", SOLVERS)
def test_effect_density_and_its_derivatives(kind):
    model, parameters, _, nu = problem(kind)
    found = effect_density(model, parameters, nu)
    nu = nu.requires_grad_(True)
    a, c = parameters.spatial.clone().requires_grad_(True), parameters.white.clone().requires_grad_(True)
    _, covariance = solver_of(kind)
    matrix = a.square()[:, :, None, None] * covariance + torch.diag_embed(c.square().mT)
    expected = MultivariateNormal(torch.zeros(N).double(), matrix).log_prob(nu.mT).sum(-1)
    torch.testing.assert_close(found.value, expected.detach(), rtol=0, atol=1e-9)
    slopes = torch.autograd.grad(expected.sum(), [nu, a, c])
    for ours, theirs in zip((found.nu, found.spatial, found.white), slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_effect_density_is_stable_at_the_end_of_theta(kind):
    model, parameters, _, nu = problem(kind)
    white = torch.full_like(parameters.white, 1.5e-8)
    spatial = torch.ones_like(parameters.spatial)
    found = effect_density(model, Parameters(parameters.coefficients, spatial, white), nu).value
    _, covariance = solver_of(kind)
    expected = MultivariateNormal(torch.zeros(N).double(), covariance).log_prob(nu.mT).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("kind", SOLVERS)
def test_split_effect_adds_up(kind):
    model, parameters, _, nu = problem(kind)
    torch.testing.assert_close(model.random_part(parameters, split_effect(model, parameters, nu)), nu)


def posterior_of(kind):
    model, parameters, dense, nu = problem(kind)
    mode = model.mode(parameters, model.zeros(), tolerance=1e-14)
    precision = torch.linalg.inv(dense)
    information = model.likelihood.information(model.counts, mode.eta)
    blocks = torch.diag_embed(information.permute(0, 2, 3, 1))  # (G, Q, Q, N, N)
    joint = blocks.permute(0, 1, 3, 2, 4).reshape(G, Q * N, Q * N)
    for q in range(Q):
        joint[:, q * N : (q + 1) * N, q * N : (q + 1) * N] += precision[:, q]
    return mode, joint, nu


@pytest.mark.parametrize("kind", SOLVERS)
def test_posterior_density_is_the_gaussian_at_the_mode(kind):
    mode, precision, nu = posterior_of(kind)
    posterior = RandomEffectPosterior(mode)
    reference = MultivariateNormal(posterior.mean.mT.reshape(G, -1), precision_matrix=precision)
    torch.testing.assert_close(posterior.log_prob(nu), reference.log_prob(nu.mT.reshape(G, -1)), rtol=0, atol=1e-6)
    several = torch.stack([nu, posterior.mean])
    assert posterior.log_prob(several).shape == (2, G)
    torch.testing.assert_close(posterior.log_prob(several)[0], posterior.log_prob(nu))
    variance = torch.diagonal(torch.linalg.inv(precision), dim1=1, dim2=2).reshape(G, Q, N).mT
    torch.testing.assert_close(posterior.variance, variance, rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOLVERS)
def test_posterior_draws_have_its_covariance_and_repeat(kind):
    mode, precision, _ = posterior_of(kind)
    posterior = RandomEffectPosterior(mode)
    draws = posterior.sample((40_000,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(draws[:3], posterior.sample((40_000,), generator=torch.Generator().manual_seed(1))[:3])
    for gene in range(G):
        flat = draws[:, gene].mT.reshape(len(draws), -1)
        expected = torch.linalg.inv(precision[gene])
        scale = expected.diagonal().sqrt()
        assert ((flat.T.cov() - expected) / scale / scale[:, None]).abs().max() < 0.03  # 6 standard errors
        assert ((flat.mean(0) - posterior.mean[gene].mT.flatten()) / scale).abs().max() < 0.03


def test_spot_covariance_is_that_of_laplace():
    mode, *_ = posterior_of("sparse")
    assert torch.equal(RandomEffectPosterior(mode).spot_covariance, Laplace(mode).covariance)
