"""Importance sampling against exact values, and what it must repair in Laplace's method."""

import numpy as np
import pandas as pd
import pytest
import torch

from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.glmm._importance import Importance, importance, pareto_k, posterior_deviations
from pyrosplice.glmm._latents import Parameters
from pyrosplice.glmm._marginal import fit_marginal
from pyrosplice.glmm._mode import MixedModel
from pyrosplice.glmm._refine import refine
from pyrosplice.likelihoods._contract import Multinomial
from tests.glmm.test_laplace import edges, from_sigma2_theta, grid, small_problem
from tests.glmm.test_marginal import intercept
from tests.paths import shared


def at_points(points: pd.DataFrame, data: pd.DataFrame, suffix: str, graph: str, n_draws: int) -> Importance:
    first = data[f"y1{suffix}"]
    counts = torch.tensor(np.stack([first, data[f"n{suffix}"] - first], 1), dtype=torch.float64)
    design = torch.tensor(np.stack([np.ones(len(data)), data["x"]], 1))
    model = MixedModel(
        counts.expand(len(points), -1, -1), design, SparseSolver(edges(graph, len(data)).precision), Multinomial()
    )
    sigma2, theta = (torch.from_numpy(points[name].to_numpy()) for name in ("sigma2", "theta"))
    parameters = from_sigma2_theta(torch.from_numpy(points[["b0", "b1"]].to_numpy())[..., None], sigma2, theta)
    return importance(model.mode(parameters, model.zeros(), tolerance=1e-14), n_draws=n_draws, seed=1)


@pytest.mark.slow
def test_exact_values_of_twelve_spots() -> None:
    points = pd.read_csv(shared("gold", "b_tiny12_exact.csv"))
    found = at_points(points, pd.read_csv(shared("gold", "tiny12_binomial.csv")), "", "tiny12_edges.csv", 4000)
    z = (found.value.numpy() - points["exact"]) / found.standard_error.numpy()
    assert float(z.abs().max()) < 3
    assert np.abs(found.value.numpy() - points["exact"]).max() < 0.2 * points["laplace_minus_exact"].abs().max()


@pytest.mark.parametrize("depth", ["low", "mid", "high"])
def test_truth_of_the_grid(depth: str) -> None:
    points = pd.read_csv(shared("gold", "b_grid16_is_truth.csv"))
    points = points[points["set"] == f"grid16_{depth}"]
    data = pd.read_csv(shared("gold", "grid16_binomial.csv"))
    found = at_points(points, data, f"_{depth}", "grid16_edges.csv", 1000)
    usable = found.pareto_k.numpy() < 0.7
    error = np.hypot(found.standard_error.numpy(), points["is_se"])
    assert usable.sum() >= 7
    assert ((found.value.numpy() - points["is_loglik"]) / error).abs()[usable].max() < 3
    assert ((points["laplace"] - points["is_loglik"]) / error).abs()[usable].min() > 10  # Laplace would not pass
    assert depth == "high" or not usable.all()  # σ² = 3 at few counts a spot: k̂ says so


@pytest.mark.slow
def test_draws_have_the_laplace_covariance() -> None:
    counts, design, car = small_problem()
    model = MixedModel(counts, design, SparseSolver(car.precision), Multinomial())
    parameters = Parameters(
        torch.zeros(1, 2, 2, dtype=torch.float64),
        torch.tensor([[0.7, 0.4]], dtype=torch.float64),
        torch.tensor([[[0.3, 0.6]]], dtype=torch.float64),
    )
    mode = model.mode(parameters, model.zeros(), tolerance=1e-14)
    draws = torch.stack(
        [
            model.random_part(parameters, away)[0].flatten()
            for away in posterior_deviations(mode, 20_000, torch.Generator().manual_seed(0))
        ]
    )
    eye = torch.eye(counts.shape[1], dtype=torch.float64)
    prior = torch.zeros(25, 2, 25, 2, dtype=torch.float64)
    for k, (a, c) in enumerate(((0.7, 0.3), (0.4, 0.6))):
        prior[:, k, :, k] = a * a * car.dense() + c * c * eye
    information = torch.block_diag(*mode.step.information[0])
    posterior = torch.linalg.inv(torch.linalg.inv(prior.reshape(50, 50)) + information)
    scale = posterior.diagonal().sqrt()
    error = (draws.T @ draws / len(draws) - posterior) / (scale[:, None] * scale)
    assert float(error.abs().max()) < 5 * (2 / len(draws)) ** 0.5


def test_pareto_k_of_known_tails() -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(4000, 50, dtype=torch.float64, generator=generator)
    for shape in (0.3, 0.9):
        log_weights = -shape * uniform.log()  # Pareto with that shape
        assert abs(float(pareto_k(log_weights).mean()) - shape) < 0.06
    assert float(pareto_k(torch.zeros(100, 1))) == -float("inf")


@pytest.mark.slow
def test_refined_estimates_lose_laplaces_bias() -> None:
    """σ² at two counts a spot: Laplace shrinks it by 30 %, importance sampling by no more than a third of that."""
    generator, solver = torch.Generator().manual_seed(5), SparseSolver(grid(12).precision)
    field = solver.color(torch.randn(80, 144, 1, dtype=torch.float64, generator=generator))
    noise = torch.randn(80, 144, 1, dtype=torch.float64, generator=generator)
    totals = torch.poisson(torch.full((80, 144), 2.0), generator=generator)
    counts = Multinomial().sample(totals, 0.5**0.5 * (field + noise), generator=generator)
    model = MixedModel(counts, intercept(144), solver, Multinomial())
    fit = fit_marginal(model)
    refined = refine(model, fit, n_draws=200)
    reliable = refined.converged & (refined.importance.pareto_k < 0.7)
    assert float(reliable.double().mean()) > 0.85
    laplace, better = (float(x[reliable].square().mean()) - 1 for x in (fit.sigma, refined.sigma))
    assert laplace < -0.15
    assert abs(better) < abs(laplace) / 3
