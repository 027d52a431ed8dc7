"""How well levels of an absent effect are known, beside dense matrices; and counts drawn from a fit."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch

from pyrosplice._linalg.select import solver_for
from pyrosplice.glmm._arrow.component_freedom import component_freedom
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._arrow.simulated_counts import simulated_counts
from pyrosplice.likelihoods import NegativeBinomial, Poisson
from tests.glmm.arrow.dense_laplace import block
from tests.studies.simulation import grid

SIDE = 8
N = SIDE**2


def problem_of(seed, likelihood, *, space=True, noise=False):
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(N), rng.normal(size=N)])
    donor, batch = rng.integers(0, 7, N), rng.integers(0, 5, N)
    groups = (block(donor, x[:, :1], name="1 | donor"), block(batch, x[:, :1], name="1 | batch"))
    mean = 3 * np.exp(0.5 * rng.normal(size=7)[donor] + 0.5 * rng.normal(size=5)[batch])
    counts = torch.as_tensor(rng.poisson(mean, (3, N))[..., None], dtype=torch.float64)
    offset = rng.normal(0, 0.2, N)
    return EffectsProblem(
        counts, x, likelihood, offset, groups, space=solver_for(grid(SIDE)) if space else None, noise=noise
    )


def dense_freedom(problem, null, gene, component):
    """Of the linear mixed model with the observed information of the counts at the null's predictor."""
    eta = null.linear_predictor(component[2])[gene : gene + 1]
    hyper = {name: value[gene : gene + 1] for name, value in null.hyper.items()}
    known = problem.likelihood.bind(hyper).information(problem.counts[gene : gene + 1], eta)[0, :, 0, 0].numpy()
    covariance = np.diag(1 / known)
    for e, group in enumerate(component[2].groups):
        z = group.columns * np.eye(len(group.level_names))[group.levels]
        covariance += float(null.effect_covariance(e)[gene, 0, 0]) * z @ z.T
    if "space" in null.inner:
        place = null.inner.index("space")
        covariance += float(null.sds[gene, place]) ** 2 * problem.space.dense_covariance().numpy()
    inverse, x = np.linalg.inv(covariance), problem.design
    rest = inverse - inverse @ x @ np.linalg.solve(x.T @ inverse @ x, x.T @ inverse)
    matrix = component[1].T @ rest @ component[1]
    return np.trace(matrix) ** 2 / (matrix**2).sum()


@pytest.mark.parametrize("likelihood", [Poisson(), NegativeBinomial()])
@pytest.mark.parametrize("component", ["donor", "space", "donor without a field"])
def test_it_is_that_of_the_dense_model(component, likelihood):
    problem = problem_of(0, likelihood, space="without" not in component)
    if component == "space":
        smaller, root, which = replace(problem, space=None), np.linalg.cholesky(grid(SIDE).dense().numpy()), "space"
    else:
        smaller, which = replace(problem, groups=problem.groups[1:]), 0
        root = np.eye(7)[problem.groups[0].levels]
    null = fit_effects(smaller)
    found = component_freedom(problem, which, null)
    for gene in range(3):
        expected = dense_freedom(problem, null, gene, (which, root, smaller))
        assert found[gene] == pytest.approx(expected, rel=0.01)


def test_genes_without_estimates_have_none():
    problem = problem_of(1, Poisson(), space=False)
    counts = problem.counts.clone()
    counts[1] = 0
    problem = replace(problem, counts=counts)
    found = component_freedom(problem, 1, fit_effects(replace(problem, groups=problem.groups[:1])))
    assert np.isnan(found[1]) and (found[[0, 2]] > 1).all() and (found[[0, 2]] <= 4.01).all()


@pytest.mark.slow
def test_drawn_counts_have_the_moments_of_the_model():
    problem = problem_of(2, NegativeBinomial(), noise=True)
    fit = fit_effects(problem)
    fit = replace(
        fit.take(torch.tensor([0])),
        parameters=torch.tensor([[0.5, 0.2]], dtype=torch.float64),
        sds=torch.tensor([[0.4, 0.3]], dtype=torch.float64),
    )
    alone = replace(problem, counts=problem.counts[:1])
    drawn = simulated_counts(alone, fit, 40_000, torch.Generator().manual_seed(0))[..., 0]
    fixed = problem.design @ fit.coefficients[0, :, 0].numpy() + problem.offset
    variance = 0.25 + 0.04 + 0.16 + 0.09
    mean = np.exp(fixed + variance / 2)
    np.testing.assert_allclose(drawn.mean(0).numpy(), mean, rtol=0.05)
    z = [np.eye(len(g.level_names))[g.levels] for g in problem.groups]
    shared = 0.25 * z[0] @ z[0].T + 0.04 * z[1] @ z[1].T + 0.16 * problem.space.dense_covariance().numpy()
    covariance = np.cov(drawn.numpy().T) / np.outer(mean, mean)
    off = ~np.eye(N, dtype=bool)
    assert np.corrcoef(covariance[off], np.expm1(shared)[off])[0, 1] > 0.95
    assert np.median(covariance[off] - np.expm1(shared)[off]) == pytest.approx(0, abs=0.01)
    assert scipy.linalg.norm(covariance[off] - np.expm1(shared)[off]) < 0.2 * scipy.linalg.norm(covariance[off])
