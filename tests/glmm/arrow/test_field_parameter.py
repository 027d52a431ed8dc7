"""A field's own number by its profile: beside a dense profile, over genes, graphs and families."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar

from pyrosplice.effects._field_family import FieldFamily, car_family
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.field_parameter import fit_field_parameter
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.likelihoods import NegativeBinomial, Normal, Poisson
from pyrosplice.spatial import GraphMatern
from pyrosplice.spatial.car import CarCovariance
from tests.studies.simulation import grid


def simulated(side, rho, seed, *, likelihood, n_genes=2, sd=0.8, mean=4.0):
    adjacency, rng = grid(side).adjacency, np.random.default_rng(seed)
    field = CarCovariance(adjacency, rho=rho).sample(n_genes, torch.Generator().manual_seed(seed)).numpy()
    design = np.column_stack([np.ones(side**2), rng.normal(size=side**2)])
    eta = sd * field + 0.3 * design[:, 1]
    counts = eta + rng.normal(0, 0.5, eta.shape) if isinstance(likelihood, Normal) else rng.poisson(mean * np.exp(eta))
    counts = torch.as_tensor(counts[..., None], dtype=torch.float64)
    return EffectsProblem(counts, design, likelihood), car_family(adjacency)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "rho"), [(0, 0.8), (1, 0.97)])
def test_rho_is_that_of_the_dense_restricted_likelihood(seed, rho):
    """The normal linear mixed model, whose Laplace approximation is exact, searched by other means."""
    problem, family = simulated(6, rho, seed, likelihood=Normal())
    found = fit_field_parameter(problem, family, default=4.6)
    x, n = problem.design, len(problem.design)
    for gene in range(2):
        y = problem.counts[gene, :, 0].numpy()

        def profile(at, y=y):
            dense = family.covariance(family.value(at)).dense().numpy()

            def loss(logs):
                v = np.exp(2 * logs[0]) * dense + np.exp(2 * logs[1]) * np.eye(n)
                vx = np.linalg.solve(v, x)
                rest = y - x @ np.linalg.solve(x.T @ vx, vx.T @ y)
                out = np.linalg.slogdet(v)[1] + rest @ np.linalg.solve(v, rest) + np.linalg.slogdet(x.T @ vx)[1]
                return 0.5 * (out + (n - 2) * np.log(2 * np.pi))

            return minimize(loss, [-0.3, -0.8], bounds=[(-8, 2), (-8, 2)], tol=1e-12).fun

        nearest = min(np.linspace(0, 7, 15), key=profile)
        bounds = max(nearest - 0.5, 0), min(nearest + 0.5, 7)
        best = minimize_scalar(profile, bounds=bounds, method="bounded", options={"xatol": 1e-3}).fun
        assert found.fit.log_likelihood[gene].item() == pytest.approx(-profile(found.coordinate[gene]), abs=1e-4)
        assert -found.fit.log_likelihood[gene].item() - best < 0.02  # four times what the parabola promised


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", [NegativeBinomial(), Poisson()])
def test_no_value_on_a_finer_grid_is_better(likelihood):
    problem, family = simulated(12, 0.9, 3, likelihood=likelihood, n_genes=4)
    found = fit_field_parameter(problem, family, default=4.6)
    from_fine = [
        fit_effects(EffectsProblem(problem.counts, problem.design, likelihood, space=family.solver(at)))
        for at in np.linspace(0, 7, 29)
    ]
    best = np.max([fit.log_likelihood.numpy() for fit in from_fine], 0)
    assert (found.fit.log_likelihood.numpy() > best - 0.01).all()
    assert len(np.unique(found.coordinate)) > 2  # each gene its own


@pytest.mark.slow
def test_a_gene_has_the_same_estimate_alone():
    problem, family = simulated(6, 0.9, 5, likelihood=Poisson(), n_genes=3)
    together = fit_field_parameter(problem, family, default=4.6)
    for gene in range(3):
        alone = EffectsProblem(problem.counts[gene : gene + 1], problem.design, problem.likelihood)
        found = fit_field_parameter(alone, family, default=4.6)
        assert found.coordinate[0] == together.coordinate[gene]
        torch.testing.assert_close(found.fit.log_likelihood[0], together.fit.log_likelihood[gene])


def test_ends_and_genes_that_say_nothing_are_named():
    problem, family = simulated(8, 0.0, 6, likelihood=Poisson(), n_genes=4, sd=0.7)
    board = np.indices((8, 8)).sum(0).ravel() % 2
    counts, rng = problem.counts.clone(), np.random.default_rng(0)
    counts[0] = torch.as_tensor(rng.poisson(2 + 6 * board))[:, None]  # neighbours differ
    counts[1] = 0
    counts[2] = torch.as_tensor(np.round(4 * np.exp(0.3 * problem.design[:, 1:])))  # less than Poisson's variance
    counts[3] = torch.as_tensor(rng.poisson(3, (64, 1)) * 0 + (np.arange(64)[:, None] >= 32) * 9 + 3)
    found = fit_field_parameter(EffectsProblem(counts, problem.design, Poisson()), family, default=4.6)
    assert found.flat.tolist() == [False, True, True, False]
    assert found.coordinate[[1, 2]].tolist() == [4.6, 4.6]
    assert found.fit.reason[1] == "no_counts" and float(found.fit.sds[2, 0]) < 1e-2
    assert found.coordinate[0] == 0.0 and found.at_end[0]
    assert found.coordinate[3] > 3.0


def test_any_family_of_one_number_can_be_estimated():
    adjacency = grid(10).adjacency
    smooth = GraphMatern(adjacency, range_=6.0).sample(1, torch.Generator().manual_seed(1)).numpy()
    counts = np.random.default_rng(0).poisson(6 * np.exp(0.8 * smooth))
    family = FieldFamily(
        "range",
        lambda reach: GraphMatern(adjacency, range_=reach),
        grid=tuple(np.log(1.0) + 0.8 * np.arange(5)),
        value=np.exp,
        coordinate=np.log,
    )
    problem = EffectsProblem(torch.as_tensor(counts[..., None], dtype=torch.float64), np.ones((100, 1)), Poisson())
    found = fit_field_parameter(problem, family, default=1.6)
    assert 1.5 < family.value(found.coordinate[0]) < 20 and not found.at_end[0]
    others = [
        fit_effects(EffectsProblem(problem.counts, problem.design, Poisson(), space=family.solver(float(at))))
        for at in family.grid
    ]
    assert found.fit.log_likelihood[0] >= max(other.log_likelihood[0] for other in others) - 1e-6
