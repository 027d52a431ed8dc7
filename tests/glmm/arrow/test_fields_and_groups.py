"""The whole engine with fields and effects of single observations beside the dense oracle."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.effects._isoform_effect import SoftmaxBasis
from pyrosplice.glmm._arrow.arrow import Arrow
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import EffectsOptions, fit_effects
from pyrosplice.glmm._arrow.joint_mode import OuterPoint
from pyrosplice.glmm._arrow.laplace_value import ArrowLaplace, laplace_at
from pyrosplice.glmm._arrow.layout import SupportLayout
from pyrosplice.glmm._arrow.problem_eliminator import eliminator_of
from pyrosplice.likelihoods import Normal
from pyrosplice.likelihoods._contract import Multinomial
from pyrosplice.likelihoods._counts import NegativeBinomial, Poisson
from pyrosplice.likelihoods._isoform_shares import DirichletMultinomial
from tests.glmm.arrow.dense_laplace import design_of
from tests.glmm.arrow.oracle import DenseModel, Values
from tests.glmm.arrow.random_problems import SECTION, field_of_sections, group, random_problem
from tests.glmm.test_laplace import grid

N = len(SECTION)


def named_problem(kind: str, seed: int = 0) -> EffectsProblem:
    """The lists of effects that people ask for."""
    rng = np.random.default_rng(seed)
    x, one = rng.standard_normal(N), np.ones((N, 1))
    design = np.stack([np.ones(N), x], 1)
    section = group("1 | section", SECTION, one)
    inside = group("1 + x | donor", rng.permutation(np.arange(N) % 3), design)
    donors = group("1 | donor", SECTION % 2, one)
    groups, likelihood, n_isos, more = {
        "field + section": ((section,), NegativeBinomial(), 1, {}),
        "field + noise + donors of several sections": ((donors, section), NegativeBinomial(), 1, {"noise": True}),
        "donors inside a section": ((inside,), Poisson(), 1, {}),
        "donors inside a section, noise": ((inside, section), NegativeBinomial(), 1, {"noise": True}),
        "varying coefficient": ((section,), NegativeBinomial(), 1, {"space_by": x}),
        "usage of 3 isoforms": ((section,), Multinomial(), 3, {}),
        "usage, symmetric": ((section,), Multinomial(), 3, {"isoform_effect": "symmetric", "noise": True}),
        "usage, donors inside": ((inside,), Multinomial(), 3, {"isoform_effect": "symmetric"}),
        "Dirichlet-multinomial": ((section,), DirichletMultinomial(), 3, {}),
        "noise": ((section, inside), Multinomial(), 3, {"noise": True, "space": None}),
        "nothing but a field": ((), NegativeBinomial(), 1, {}),
    }[kind]
    counts = torch.tensor(rng.poisson(4.0, (1, N, n_isos)), dtype=torch.float64)
    problem = EffectsProblem(counts, design, likelihood, 0.2 * rng.standard_normal(N), groups, field_of_sections())
    return replace(problem, **more)


KINDS = (
    "field + section",
    "field + noise + donors of several sections",
    "donors inside a section",
    "donors inside a section, noise",
    "varying coefficient",
    "usage of 3 isoforms",
    "usage, symmetric",
    "usage, donors inside",
    "Dirichlet-multinomial",
    "noise",
    "nothing but a field",
)


def random_point(problem: EffectsProblem, seed: int, *, restricted: bool) -> OuterPoint:
    """Parameters of all genes, coefficients in the coordinates of the engine."""
    rng = np.random.default_rng(seed)
    n_genes, q = len(problem.counts), problem.likelihood.n_predictors(problem.counts.shape[-1])
    n_inner = int(problem.space is not None) + int(problem.noise)
    hyper = 0.3 * rng.standard_normal((n_genes, len(problem.likelihood.free)))
    if "concentration" in problem.likelihood.free:
        hyper = hyper + 3
    psi = 0.5 * rng.standard_normal((n_genes, sum(len(g.basis) for g in problem.groups)))
    beta = 0.3 * rng.standard_normal((n_genes, 0 if restricted else problem.design.shape[1] * q))
    sds = 0.6 * rng.standard_normal((n_genes, n_inner))
    return OuterPoint(torch.arange(n_genes), psi, torch.from_numpy(sds), torch.from_numpy(hyper), beta)


def engine_at(problem: EffectsProblem, point: OuterPoint, *, restricted: bool) -> ArrowLaplace:
    layout = SupportLayout.of(problem)
    arrow, eliminator = Arrow(layout, problem.groups, restricted=restricted), eliminator_of(problem, layout)
    start = arrow.zeros(len(point.psi)), eliminator.zeros(point.genes)
    return laplace_at(arrow, eliminator, point, start, tolerance=1e-20)


def oracle_at(problem: EffectsProblem, point: OuterPoint, gene: int, *, restricted: bool) -> tuple[float, np.ndarray]:
    """Value and gradient in the engine's parameters."""
    q = problem.likelihood.n_predictors(problem.counts.shape[-1])
    basis = SoftmaxBasis.of(problem.counts[[gene]]) if problem.isoform_effect == "symmetric" else None
    leaf = torch.cat([torch.as_tensor(x)[gene] for x in (point.psi, point.sds, point.log_hyper, point.coefficients)])
    leaf = leaf.clone().requires_grad_(True)
    sizes = [len(g.basis) for g in problem.groups]
    psi, sds, hyper, beta = leaf.split(
        [x.shape[1] for x in (point.psi, point.sds, point.log_hyper, point.coefficients)]
    )
    coefficients = None if restricted else beta.reshape(-1, q)
    if coefficients is not None and basis is not None:
        coefficients = coefficients @ basis.root.reshape(q, q).T
    values = Values(
        tuple(psi.split(sizes)) if sizes else (),
        sds[0] if problem.space is not None else None,
        sds[-1] if problem.noise else None,
        hyper if len(hyper) else None,
        coefficients,
    )
    value = DenseModel(problem, gene).laplace(values)
    gradient = torch.autograd.grad(value, leaf)[0] if len(leaf) else leaf.detach()
    if restricted and basis is not None:  # coefficients of logits and of coordinates have different volumes
        value = value - problem.design.shape[1] * 0.5 * math.log(q + 1)
    return float(value.detach()), gradient.numpy()


@pytest.mark.parametrize("restricted", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_of_named_lists(kind: str, restricted: bool) -> None:
    problem = named_problem(kind)
    point = random_point(problem, 0, restricted=restricted)
    found = engine_at(problem, point, restricted=restricted)
    value, gradient = oracle_at(problem, point, 0, restricted=restricted)
    np.testing.assert_allclose(found.value[0], value, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.gradient[0], gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_value_and_gradient_of_random_lists(seed: int) -> None:
    problem, restricted = random_problem(seed), bool(seed % 3)
    point = random_point(problem, seed, restricted=restricted)
    found = engine_at(problem, point, restricted=restricted)
    for gene in range(len(problem.counts)):
        value, gradient = oracle_at(problem, point, gene, restricted=restricted)
        np.testing.assert_allclose(found.value[gene], value, rtol=0, atol=1e-8)
        np.testing.assert_allclose(found.gradient[gene], gradient, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["field + section", "usage, symmetric", "donors inside a section"])
def test_a_fit_is_at_an_optimum_of_the_dense_oracle(kind: str) -> None:
    """Its restricted likelihood is the oracle's at its parameters, of logits, and flat there."""
    problem = named_problem(kind, seed=3)
    fit = fit_effects(problem, options=EffectsOptions(tolerance=1e-6))
    hyper = torch.cat([fit.hyper[name].log() for name in problem.likelihood.free] or [torch.zeros(1, 0).double()], 1)
    none = np.zeros((1, 0))
    point = OuterPoint(torch.arange(1), fit.parameters.numpy(), fit.sds, hyper, none)
    value, gradient = oracle_at(problem, point, 0, restricted=True)
    volume = 0.5 * math.log(3) * problem.design.shape[1] if problem.isoform_effect == "symmetric" else 0.0
    np.testing.assert_allclose(float(fit.log_likelihood[0]), value + volume, rtol=0, atol=1e-7)
    interior = np.concatenate([np.ones(fit.parameters.shape[1] + fit.sds.shape[1], bool), np.exp(hyper[0]) > 1e-3])
    assert np.abs(gradient[interior]).max() < 1e-3


@pytest.mark.slow
def test_truth_is_recovered() -> None:
    """Standard deviations of the field and of sections, dispersion and slope, over genes of one truth."""
    rng, n_genes, side = np.random.default_rng(0), 12, 14
    section = np.repeat(np.arange(8), side * side)
    space = SparseSolver(sp.block_diag([grid(side).precision] * 8))
    x = rng.standard_normal(len(section))
    field = space.color(torch.from_numpy(rng.standard_normal((n_genes, len(section), 1))))[..., 0].numpy()
    eta = 1.0 + 0.3 * x + 0.5 * field + 0.4 * rng.standard_normal((n_genes, 8))[:, section]
    counts = rng.poisson(np.exp(eta) * rng.gamma(2.0, 0.5, eta.shape))
    problem = EffectsProblem(
        torch.tensor(counts, dtype=torch.float64).unsqueeze(-1),
        np.stack([np.ones(len(section)), x], 1),
        NegativeBinomial(),
        groups=(group("1 | section", section, np.ones((len(section), 1))),),
        space=space,
    )
    fit = fit_effects(problem)
    assert (fit.reason == "converged").all()
    found = {
        "slope": (fit.coefficients[:, 1, 0], 0.3, 0.02),
        "field": (fit.sds[:, 0], 0.5, 0.04),
        "section": (fit.parameters[:, 0], 0.4, 0.12),
        "dispersion": (fit.hyper["dispersion"][:, 0], 0.5, 0.06),
    }
    for name, (estimates, truth, tolerance) in found.items():
        assert abs(float(estimates.mean()) - truth) < tolerance, name


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["field + section", "donors inside a section, noise"])
def test_value_and_gradient_are_carried_to_the_mode(kind: str, seed: int) -> None:
    """Of a linear model the value is exact wherever it is taken, the gradient to second order in the distance."""
    problem, rng = replace(named_problem(kind, seed), likelihood=Normal()), np.random.default_rng(seed)
    point = random_point(problem, seed, restricted=True)
    exact = engine_at(problem, point, restricted=True)
    arrow, eliminator, beside = exact.search.arrow, exact.search.eliminator, exact.search.arrow.zeros(1)
    beside.border[:], beside.private[:] = rng.normal(size=beside.border.shape), rng.normal(size=beside.private.shape)
    errors = []
    for distance in (0.1, 0.01):
        start = exact.unknowns.moved(beside, np.full(1, distance)), exact.latents
        found = laplace_at(arrow, eliminator, point, start, tolerance=np.inf)
        assert found.mode.system.decrement[0] > 1e-6
        np.testing.assert_allclose(found.value, exact.value, rtol=0, atol=1e-9)
        errors.append(np.abs(found.gradient - exact.gradient).max())
    assert errors[1] < errors[0] / 90


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_average_information_is_that_of_a_linear_model(noise: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = torch.from_numpy(rng.normal(size=(1, N, 1)))
    problem = replace(named_problem("field + section", seed), likelihood=Normal(), noise=noise, counts=counts)
    point = random_point(problem, seed, restricted=True)
    found = engine_at(problem, point, restricted=True).inner_information()[0]
    z, x = design_of(problem, torch.from_numpy(point.psi[0])).numpy(), problem.design
    correlations = [problem.space.dense_covariance().numpy(), np.eye(N)][: 1 + noise]
    sds, residual = point.sds[0].numpy(), math.exp(2 * float(point.log_hyper[0, 0]))
    slopes = [2 * sd * own for sd, own in zip(sds, correlations, strict=True)]
    inner = sum(0.5 * sd * slope for sd, slope in zip(sds, slopes, strict=True))
    precision = np.linalg.inv(z @ z.T + residual * np.eye(N) + inner)
    project = precision - precision @ x @ np.linalg.solve(x.T @ precision @ x, x.T @ precision)
    moved = np.stack([slope @ project @ (counts[0, :, 0].numpy() - problem.offset) for slope in slopes])
    np.testing.assert_allclose(found, 0.5 * moved @ project @ moved.T, rtol=1e-8, atol=1e-10)
