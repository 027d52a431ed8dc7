"""The joint mode: its value is the Pyro model's density, and nothing near it is higher."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrosplice._linalg.lowrank import LowRankSolver
from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.glmm._joint import JITTER, JointObjective, fit_joint
from pyrosplice.glmm._mode import MixedModel
from pyrosplice.glmm._multinomial import MultinomialGLMM
from pyrosplice.glmm._objective import Unknowns
from pyrosplice.likelihoods._contract import Multinomial
from tests.glmm.test_laplace import grid
from tests.glmm.test_marginal import intercept, simulate


def density(counts: Tensor, values: dict[str, Tensor]) -> Tensor:
    """Log joint density of every gene by the Pyro model."""
    model = MultinomialGLMM(counts, torch.zeros(counts.shape[1], 0, dtype=torch.float64), grid(8).dense())
    trace = pyro.poutine.trace(pyro.poutine.condition(model, data=values)).get_trace()
    trace.compute_log_prob()
    return trace.nodes["nu"]["log_prob"] + trace.nodes["counts"]["log_prob"].sum(-1)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_value_gradient_and_optimality(share: bool, kind: str) -> None:
    counts, car = simulate(8, 4, 0.8, 0.6, 5.0, seed=1), grid(8)
    solver = SparseSolver(car.precision) if kind == "sparse" else LowRankSolver.from_dense(car.dense())
    model = MixedModel(counts, intercept(64), solver, Multinomial())
    width = 1 if share else 2
    unknowns = Unknowns(1, 2, width, True, None, torch.full((1,), JITTER, dtype=torch.float64))
    objective, genes = JointObjective(model, unknowns, None), torch.arange(4)
    generator = torch.Generator().manual_seed(0)
    point = torch.rand(4, 2 + 2 * width, dtype=torch.float64, generator=generator) + 0.2
    loss, gradient = objective.evaluate(genes, point, tolerance=1e-16)
    direction, h = torch.randn(point.shape, dtype=torch.float64, generator=generator), 1e-4
    ahead, _ = objective.evaluate(genes, point + h * direction, tolerance=1e-16)
    behind, _ = objective.evaluate(genes, point - h * direction, tolerance=1e-16)
    torch.testing.assert_close((ahead - behind) / (2 * h), (gradient * direction).sum(1), rtol=1e-5, atol=1e-5)
    objective.evaluate(genes, point, tolerance=1e-16)
    assert objective.mode is not None
    sites = unknowns.sites(point, genes)
    values = {**sites, "nu": model.random_part(objective.mode.step.parameters, objective.mode.latents)}
    for name in ("sigma", "theta_logit"):
        values[name] = values[name].expand(-1, 2) if not share else values[name]
    if share:
        torch.testing.assert_close(density(counts, values), -loss, rtol=0, atol=1e-5)


def test_theta_runs_to_one_and_beats_every_smaller_theta() -> None:
    """Degenerate by nature: that is what the joint density has, so that is what the mode must find."""
    counts = simulate(8, 4, 0.8, 0.0, 5.0, seed=2)
    model = MixedModel(counts, intercept(64), SparseSolver(grid(8).precision), Multinomial())
    sigma = torch.full((4, 1), 0.6, dtype=torch.float64)
    fit = fit_joint(model, sigma=sigma)
    assert fit.convergence.reason == ["converged"] * 4
    assert float(fit.theta.min()) > 0.999 and torch.equal(fit.sigma, sigma)
    unknowns = Unknowns(1, 2, 1, True, sigma, torch.full((1,), JITTER, dtype=torch.float64))
    objective = JointObjective(model, unknowns, None)
    for angle in (0.2, 0.8, 1.2):
        point = torch.cat([fit.coefficients.flatten(1), torch.full((4, 1), angle, dtype=torch.float64)], 1)
        assert bool((-objective.evaluate(torch.arange(4), point)[0] < fit.log_joint).all())


def test_free_sigma_needs_a_prior() -> None:
    counts = simulate(8, 3, 0.8, 0.6, 5.0, seed=3)
    model = MixedModel(counts, intercept(64), SparseSolver(grid(8).precision), Multinomial())
    sigma = torch.full((3, 1), 0.6, dtype=torch.float64)
    assert fit_joint(model, sigma=sigma, fix_sigma=False).convergence.reason == ["unbounded"] * 3

    def log_prior(sites: dict[str, Tensor], genes: Tensor) -> Tensor:
        return dist.LogNormal(-0.5, 0.05).log_prob(sites["sigma"]).sum(-1)

    fit = fit_joint(model, sigma=sigma, fix_sigma=False, log_prior=log_prior)
    assert fit.convergence.reason == ["converged"] * 3
    assert float((fit.sigma - 0.6).abs().max()) < 0.2
