"""Laplace's method against TMB, a dense oracle differentiated by autograd, and itself where nothing may change."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pyrosplice._linalg.lowrank import LowRankSolver
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.glmm._laplace import Laplace
from pyrosplice.glmm._latents import Latents, Parameters
from pyrosplice.glmm._mode import MixedModel
from pyrosplice.likelihoods._contract import Likelihood, Multinomial
from pyrosplice.likelihoods._counts import NegativeBinomial
from pyrosplice.likelihoods._isoform_shares import DirichletMultinomial
from pyrosplice.spatial.car import CarCovariance
from tests.paths import shared

N_SPOTS, N_ISOS = 25, 3


def edges(name: str, n: int) -> CarCovariance:
    pairs = pd.read_csv(shared("gold", name)).to_numpy()
    adjacency = np.zeros((n, n))
    adjacency[pairs[:, 0], pairs[:, 1]] = adjacency[pairs[:, 1], pairs[:, 0]] = 1
    return CarCovariance(adjacency)


def grid(side: int) -> CarCovariance:
    index = np.arange(side * side).reshape(side, side)
    adjacency = np.zeros((side * side, side * side))
    for i, j in ((index[:, :-1], index[:, 1:]), (index[:-1], index[1:])):
        adjacency[i.ravel(), j.ravel()] = adjacency[j.ravel(), i.ravel()] = 1
    return CarCovariance(adjacency)


def from_sigma2_theta(coefficients: Tensor, sigma2: Tensor, theta: Tensor) -> Parameters:
    q = coefficients.shape[-1]
    spatial, white = (sigma2 * theta).sqrt(), (sigma2 * (1 - theta)).sqrt()
    return Parameters(coefficients, spatial[:, None].expand(-1, q), white[:, None, None].expand(-1, 1, q))


def laplace(model: MixedModel, parameters: Parameters, *, tolerance: float = 1e-12) -> Laplace:
    return Laplace(model.mode(parameters, model.zeros(), tolerance=tolerance))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", ["grid16_low", "grid16_mid", "grid16_high", "tiny12"])
def test_equals_tmb_binomial(name: str, dense: bool) -> None:
    points = pd.read_csv(shared("gold", "b_tmb_laplace_at_points.csv"))
    points = points[points["set"] == name]
    if points.empty:
        pytest.skip(f"no gold rows for {name}")
    if name == "tiny12":
        data, covariance, k = pd.read_csv(shared("gold", "tiny12_binomial.csv")), edges("tiny12_edges.csv", 12), ""
    else:
        data, covariance = pd.read_csv(shared("gold", "grid16_binomial.csv")), edges("grid16_edges.csv", 256)
        k = name.removeprefix("grid16")
    first = data[f"y1{k}"]
    counts = torch.tensor(np.stack([first, data[f"n{k}"] - first], 1), dtype=torch.float64)
    design = torch.tensor(np.stack([np.ones(len(data)), data["x"]], 1))
    solver: SpatialSolver = SparseSolver(covariance.precision)
    if dense:
        solver = LowRankSolver.from_dense(covariance.dense())
    value = torch.from_numpy
    parameters = from_sigma2_theta(
        value(points[["b0", "b1"]].to_numpy())[..., None],
        value(points["sigma2"].to_numpy()),
        value(points["theta"].to_numpy()),
    )
    model = MixedModel(counts.expand(len(points), -1, -1), design, solver, Multinomial())
    np.testing.assert_allclose(laplace(model, parameters).value, points["laplace_loglik"], rtol=0, atol=1e-7)


def test_equals_tmb_multinomial() -> None:
    points = pd.read_csv(shared("gold", "b_tmb_laplace_at_points_mn3.csv"))
    data = pd.read_csv(shared("gold", "grid16_multinomial3.csv"))
    counts = torch.tensor(data[["y1", "y2", "y3"]].to_numpy(), dtype=torch.float64)
    design = torch.tensor(np.stack([np.ones(len(data)), data["x"]], 1))
    coefficients = torch.tensor(points[["b10", "b20", "b11", "b21"]].to_numpy()).reshape(-1, 2, 2)
    sigma2, theta = (torch.from_numpy(points[name].to_numpy()) for name in ("sigma2", "theta"))
    solver = SparseSolver(edges("grid16_edges.csv", 256).precision)
    model = MixedModel(counts.expand(len(points), -1, -1), design, solver, Multinomial())
    found = laplace(model, from_sigma2_theta(coefficients, sigma2, theta))
    np.testing.assert_allclose(found.value, points["laplace_loglik"], rtol=0, atol=1e-7)


class PlainMultinomial(Likelihood):
    """Only what a user must write: everything else by autograd."""

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        return Multinomial().log_prob(counts, eta)


class Overdispersed(Likelihood):
    """Dirichlet-multinomial with concentration 9: a likelihood whose information depends on the counts."""

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        alpha = 9 * Multinomial().mean(eta)
        total = counts.sum(-1)
        out = torch.lgamma(total + 1) - torch.lgamma(counts + 1).sum(-1) + math.lgamma(9.0) - torch.lgamma(total + 9)
        return out + (torch.lgamma(counts + alpha) - torch.lgamma(alpha)).sum(-1)


def oracle(
    likelihood: Likelihood, counts: Tensor, design: Tensor, covariance: Tensor, parameters: Parameters
) -> Tensor:
    """Laplace log marginal of one gene by dense algebra in ν, differentiable in the parameters."""
    n, q = counts.shape[0], parameters.spatial.shape[1]
    fixed = design @ parameters.coefficients[0]
    white = parameters.white[0].expand(n, q)
    sigma = torch.stack([parameters.spatial[0, k] ** 2 * covariance + torch.diag(white[:, k] ** 2) for k in range(q)])
    precision = torch.block_diag(*torch.linalg.inv(sigma))  # logit-major

    def log_joint(flat: Tensor) -> Tensor:
        nu = flat.reshape(q, n).T
        density = likelihood.log_prob(counts, fixed + nu).sum() - 0.5 * flat @ precision @ flat
        return density - 0.5 * torch.logdet(sigma).sum() - 0.5 * n * q * math.log(2 * math.pi)

    nu = torch.zeros(n * q, dtype=torch.float64)
    for _ in range(60):
        step = torch.linalg.solve(torch.func.hessian(log_joint)(nu), torch.func.grad(log_joint)(nu)).detach()
        nu = nu - step / max(1.0, float(step.abs().max()))
    # one more step that autograd sees: it moves nothing, and carries the derivative of the mode
    nu = nu - torch.linalg.solve(torch.func.hessian(log_joint)(nu).detach(), torch.func.grad(log_joint)(nu))
    hessian = -torch.func.hessian(log_joint)(nu)
    return log_joint(nu) - 0.5 * torch.logdet(hessian) + 0.5 * n * q * math.log(2 * math.pi)


def small_problem(seed: int = 0) -> tuple[Tensor, Tensor, CarCovariance]:
    rng = np.random.default_rng(seed)
    counts = torch.tensor(rng.poisson(2.0, (1, N_SPOTS, N_ISOS)), dtype=torch.float64)
    counts[0, 4] = 0
    design = torch.tensor(np.stack([rng.standard_normal(N_SPOTS), np.ones(N_SPOTS)], 1))
    return counts, design, grid(5)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", [Multinomial(), PlainMultinomial(), Overdispersed()])
@pytest.mark.parametrize("kind", ["sparse", "dense", "truncated", "white"])
def test_value_and_gradient_equal_the_dense_oracle(likelihood: Likelihood, kind: str) -> None:
    counts, design, car = small_problem()
    values, vectors = car.eigen(6)
    truncated = (vectors * values) @ vectors.T
    solver, covariance = {
        "sparse": (SparseSolver(car.precision), car.dense()),
        "dense": (LowRankSolver.from_dense(car.dense()), car.dense()),
        "truncated": (LowRankSolver(values, vectors), truncated),
        "white": (None, torch.zeros_like(truncated)),
    }[kind]
    coefficients = torch.tensor([[[0.3, -0.2], [0.4, 0.1]]], dtype=torch.float64, requires_grad=True)
    spatial = torch.tensor([[0.7, 0.4]], dtype=torch.float64, requires_grad=True)
    white = torch.tensor([[[0.3, 0.6]]], dtype=torch.float64, requires_grad=True)
    if kind == "truncated":  # another variance at every spot, as truncation leaves behind
        white = torch.linspace(0.2, 0.8, 2 * N_SPOTS, dtype=torch.float64).reshape(1, N_SPOTS, 2).requires_grad_(True)
    expected = oracle(likelihood, counts[0], design, covariance, Parameters(coefficients, spatial, white))
    gradient = torch.autograd.grad(expected, (coefficients, spatial, white))
    model = MixedModel(counts, design, solver, likelihood)
    found = laplace(model, Parameters(coefficients.detach(), spatial.detach(), white.detach()))
    torch.testing.assert_close(found.value[0], expected.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.coefficients_gradient, gradient[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(found.spatial_gradient, gradient[1], rtol=0, atol=1e-7)
    per_spot = found.white_gradient if kind == "truncated" else found.white_gradient.sum(1, keepdim=True)
    torch.testing.assert_close(per_spot, gradient[2], rtol=0, atol=1e-7)


def test_posterior_covariance_and_marginal_precision() -> None:
    counts, design, car = small_problem()
    model = MixedModel(counts, design, SparseSolver(car.precision), Multinomial())
    parameters = Parameters(
        torch.zeros(1, 2, 2, dtype=torch.float64),
        torch.tensor([[0.7, 0.4]], dtype=torch.float64),
        torch.tensor([[[0.3, 0.6]]], dtype=torch.float64),
    )
    found = laplace(model, parameters)
    eye = torch.eye(N_SPOTS, dtype=torch.float64)
    sigma = torch.stack([a * a * car.dense() + c * c * eye for a, c in ((0.7, 0.3), (0.4, 0.6))])
    prior = torch.zeros(N_SPOTS, 2, N_SPOTS, 2, dtype=torch.float64)
    prior[:, 0, :, 0], prior[:, 1, :, 1] = sigma
    prior = prior.reshape(2 * N_SPOTS, -1)
    information = torch.block_diag(*found.mode.step.information[0])
    posterior = torch.linalg.inv(torch.linalg.inv(prior) + information).reshape(N_SPOTS, 2, N_SPOTS, 2)
    blocks = posterior.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    torch.testing.assert_close(found.covariance[0], blocks)
    x = torch.randn(1, N_SPOTS, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = information - information @ posterior.reshape(2 * N_SPOTS, -1) @ information
    product = found.mode.step.marginal_precision_product(x)
    torch.testing.assert_close(product.reshape(-1, 3), expected @ x.reshape(-1, 3))


def test_response_of_the_mode() -> None:
    counts, design, car = small_problem()
    model = MixedModel(counts, design, SparseSolver(car.precision), Multinomial())
    base = from_sigma2_theta(torch.zeros(1, 2, 2, dtype=torch.float64), *torch.tensor([[0.5], [0.6]]).double())
    change = Parameters(
        torch.full((1, 2, 2), 0.3, dtype=torch.float64),
        torch.tensor([[0.2, -0.1]], dtype=torch.float64),
        torch.tensor([[[0.1, 0.3]]], dtype=torch.float64),
    )
    mode, h = model.mode(base, model.zeros(), tolerance=1e-20), 1e-5

    def moved(h: float) -> Latents:
        parameters = Parameters(*(x + h * d for x, d in zip(vars(base).values(), vars(change).values(), strict=True)))
        return model.mode(parameters, mode.latents, tolerance=1e-20).latents

    response, ahead, behind = mode.response(change), moved(h), moved(-h)
    torch.testing.assert_close((ahead.field - behind.field) / (2 * h), response.field, rtol=0, atol=1e-6)
    torch.testing.assert_close((ahead.noise - behind.noise) / (2 * h), response.noise, rtol=0, atol=1e-6)


def test_spots_without_counts_change_nothing() -> None:
    """Dropping an empty spot equals integrating it out: V restricted to the others."""
    counts, design, car = small_problem()
    kept = counts[0].sum(-1) > 0
    parameters = from_sigma2_theta(
        torch.full((1, 2, 2), 0.2, dtype=torch.float64), *torch.tensor([[0.5], [0.6]]).double()
    )
    whole = MixedModel(counts, design, LowRankSolver.from_dense(car.dense()), Multinomial())
    part = LowRankSolver.from_dense(car.dense()[kept][:, kept])
    rest = MixedModel(counts[:, kept], design[kept], part, Multinomial())
    torch.testing.assert_close(laplace(whole, parameters).value, laplace(rest, parameters).value, rtol=0, atol=1e-9)


def test_genes_are_independent() -> None:
    _, design, car = small_problem()
    rng = np.random.default_rng(3)
    counts = torch.tensor(rng.poisson(2.0, (11, N_SPOTS, N_ISOS)), dtype=torch.float64)
    parameters = from_sigma2_theta(
        torch.zeros(11, 2, 2, dtype=torch.float64), torch.full((11,), 0.5).double(), torch.full((11,), 0.5).double()
    )
    solver = SparseSolver(car.precision)
    together = laplace(MixedModel(counts, design, solver, Multinomial()), parameters)
    broken = Parameters(parameters.coefficients.clone(), parameters.spatial, parameters.white)
    broken.coefficients[4] = torch.nan
    beside = laplace(MixedModel(counts, design, solver, Multinomial()), broken)
    others = torch.arange(11) != 4
    torch.testing.assert_close(beside.value[others], together.value[others], rtol=0, atol=1e-9)
    assert not bool(beside.mode.converged[4]) and bool(beside.mode.converged[others].all())
    alone = laplace(MixedModel(counts[2:3], design, solver, Multinomial()), parameters.select(torch.tensor([2])))
    torch.testing.assert_close(alone.value[0], together.value[2], rtol=0, atol=1e-9)


HYPER = [
    (DirichletMultinomial(), {"concentration": torch.tensor([[6.0]], dtype=torch.float64)}),
    (NegativeBinomial(), {"dispersion": torch.tensor([[0.7]], dtype=torch.float64)}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("likelihood", "values"), HYPER, ids=["Dirichlet-multinomial", "negative binomial"])
@pytest.mark.parametrize("kind", ["sparse", "white"])
def test_hyperparameter_gradients_equal_the_dense_oracle(likelihood: Likelihood, values: dict, kind: str) -> None:
    """The derivative in a log concentration or log dispersion, the mode and the determinant moving with it."""
    counts, design, car = small_problem()
    counts = counts[..., : (likelihood.n_categories[1] or 3)]
    q = likelihood.n_predictors(counts.shape[-1])
    solver = SparseSolver(car.precision) if kind == "sparse" else None
    covariance = car.dense() if kind == "sparse" else torch.zeros(N_SPOTS, N_SPOTS, dtype=torch.float64)
    coefficients = torch.tensor([[[0.3, -0.2], [0.4, 0.1]]], dtype=torch.float64)[..., :q]
    spatial, white = torch.tensor([[0.7, 0.4]]).double()[:, :q], torch.tensor([[[0.3, 0.6]]]).double()[..., :q]
    parameters = Parameters(coefficients, spatial, white)
    (name,) = values
    log = values[name].log().requires_grad_(True)
    expected = oracle(likelihood.bind({name: log.exp()[0]}), counts[0], design, covariance, parameters)
    (gradient,) = torch.autograd.grad(expected, log)
    model = MixedModel(counts, design, solver, likelihood).bound(values)
    found = laplace(model, parameters)
    torch.testing.assert_close(found.value[0], expected.detach(), rtol=0, atol=1e-8)
    torch.testing.assert_close(found.hyper_gradient((name,))[0], gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize("concentration", [0.1, 5.0, 1e9])
@pytest.mark.parametrize("kind", ["sparse", "white"])
def test_mode_is_reached_to_rounding_where_the_likelihood_is_not_log_concave(
    concentration: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive part of the information alone takes hundreds of steps, for the spots it calls flat."""
    counts, design, car = small_problem()
    coefficients = torch.tensor([[[0.3, -2.0], [1.4, 0.1]]], dtype=torch.float64)
    spatial, white = torch.full((1, 2), 1.7, dtype=torch.float64), torch.full((1, 1, 2), 2.6, dtype=torch.float64)
    solver, steps, newton = (SparseSolver(car.precision) if kind == "sparse" else None), [], MixedModel.newton
    monkeypatch.setattr(MixedModel, "newton", lambda *args, **named: steps.append(0) or newton(*args, **named))
    model = MixedModel(counts, design, solver, DirichletMultinomial(concentration))
    mode = model.mode(Parameters(coefficients, spatial, white), model.zeros(), tolerance=1e-20)
    assert bool(mode.converged.all())
    assert len(steps) < 20
    gradient = mode.step.pull_back(mode.score, mode.latents)
    assert float(gradient.noise.abs().max()) < 1e-10
    assert gradient.field.numel() == 0 or float(gradient.field.abs().max()) < 1e-10


@pytest.mark.parametrize("kind", ["sparse", "white"])
def test_spots_that_are_not_curved_do_not_lead_the_exact_steps_astray(kind: str) -> None:
    """Binomial spots of which a few may be anything: their information is negative far from the mode, and at some."""

    class Contaminated(Likelihood):
        n_categories = (2, 2)

        def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
            total = counts.sum(-1)
            own = torch.distributions.Binomial(total, logits=eta[..., 0], validate_args=False).log_prob(counts[..., 0])
            return torch.logaddexp(own + math.log(0.99), math.log(0.01) - (total + 1).log())

    generator = torch.Generator().manual_seed(1)
    usage = torch.rand(32, N_SPOTS, generator=generator, dtype=torch.float64)
    counts = torch.binomial(torch.full_like(usage, 40.0), usage, generator=generator)
    solver = SparseSolver(grid(5).precision) if kind == "sparse" else None
    design, zero = torch.ones(N_SPOTS, 1, dtype=torch.float64), torch.zeros(32, 1, 1, dtype=torch.float64)
    model = MixedModel(torch.stack([counts, 40.0 - counts], -1), design, solver, Contaminated())
    parameters = Parameters(zero, zero[:, 0] + 0.7, zero + 0.7)
    mode = model.mode(parameters, model.zeros(), tolerance=1e-12)
    assert bool(mode.converged.all())
    assert bool((mode.log_joint > model.log_joint(parameters, model.zeros())).all())
    assert float(mode.step.pull_back(mode.score, mode.latents).noise.abs().max()) < 1e-8


def test_a_posterior_without_curvature_is_reported_and_troubles_no_other_gene() -> None:
    """A mixture likelihood whose information is negative at the mode of one gene."""

    class Bimodal(Likelihood):
        n_categories = (2, 2)

        def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
            far = counts[..., 0] - 1  # two bumps, ± this far from zero
            bumps = torch.stack([-4 * (eta[..., 0] - far).square(), -4 * (eta[..., 0] + far).square()])
            return torch.logsumexp(bumps, 0)

    counts = torch.ones(2, N_SPOTS, 2, dtype=torch.float64)
    counts[1] = 2.0
    design = torch.ones(N_SPOTS, 1, dtype=torch.float64)
    zero = torch.zeros(2, 1, 1, dtype=torch.float64)
    model = MixedModel(counts, design, None, Bimodal())
    mode = model.mode(Parameters(zero, zero[:, 0], zero + 2.0), model.zeros())
    assert mode.converged.tolist() == [True, False]
    assert bool(torch.isfinite(Laplace(mode).value[0]))
