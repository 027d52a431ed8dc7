"""Marginal fits against TMB's optima, recovery from simulation, and what must hold for every fit."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrosplice._linalg.lowrank import LowRankSolver
from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice._optimize.bfgs import Options
from pyrosplice.glmm._marginal import MarginalFit, fit_marginal, genes_at_once
from pyrosplice.glmm._mode import MixedModel
from pyrosplice.likelihoods._contract import Multinomial
from tests.glmm.test_laplace import edges, grid
from tests.paths import shared


def intercept(n: int) -> Tensor:
    return torch.ones(n, 1, dtype=torch.float64)


def simulate(side: int, n_genes: int, sigma: float, theta: float, depth: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    solver, n = SparseSolver(grid(side).precision), side * side
    field = solver.color(torch.randn(n_genes, n, 2, dtype=torch.float64, generator=generator))
    noise = torch.randn(n_genes, n, 2, dtype=torch.float64, generator=generator)
    totals = torch.poisson(torch.full((n_genes, n), depth), generator=generator)
    return Multinomial().sample(totals, sigma * (theta**0.5 * field + (1 - theta) ** 0.5 * noise), generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("depth", ["raw", "thinned"])
def test_reaches_tmb_on_real_families(depth: str) -> None:
    gold = pd.read_csv(shared("gold", "b_mob_families_tmb.csv"))
    gold = gold[gold["depth"] == depth].set_index("family")
    members = pd.read_csv(shared("gold", "mob_families_members.csv"))
    counts = pd.read_csv(shared("gold", f"mob_families_{depth}_counts.csv"))
    solver = SparseSolver(edges("mob_knn4_edges.csv", len(counts)).precision)
    for family, row in gold.iterrows():
        own = torch.tensor(counts[members["member"][members["family"] == family]].to_numpy(), dtype=torch.float64)
        fit = fit_marginal(MixedModel(own[None], intercept(len(own)), solver, Multinomial()))
        assert fit.convergence.reason == ["converged"], family
        assert float(fit.log_marginal) >= row["ll_free"] - 1e-6, family
        assert float(fit.log_marginal_null) == pytest.approx(row["ll_theta0"], abs=1e-5), family
        assert float(fit.log_marginal) >= float(fit.log_marginal_null) - 1e-9, family


@pytest.mark.parametrize(
    ("name", "share", "model"),
    [
        ("grid16_low", True, "theta_free"),
        ("grid16_mid", True, "theta_free"),
        ("grid16_multinomial3", True, "shared_theta_free"),
        ("grid16_multinomial3", False, "separate_theta_free"),
    ],
)
def test_reaches_tmb_with_a_covariate(name: str, share: bool, model: str) -> None:
    gold = pd.read_csv(shared("gold", "b_tmb_fits.csv"))
    gold = gold[(gold["set"] == name) & (gold["model"] == model)].set_index("param")
    if name.endswith("multinomial3"):
        data = pd.read_csv(shared("gold", "grid16_multinomial3.csv"))
        counts = data[["y1", "y2", "y3"]].to_numpy()
    else:
        data, k = pd.read_csv(shared("gold", "grid16_binomial.csv")), name.removeprefix("grid16_")
        counts = np.stack([data[f"y1_{k}"], data[f"n_{k}"] - data[f"y1_{k}"]], 1)
    design = torch.tensor(np.stack([data["x"], np.ones(len(data))], 1))
    solver = SparseSolver(edges("grid16_edges.csv", 256).precision)
    problem = MixedModel(torch.tensor(counts, dtype=torch.float64)[None], design, solver, Multinomial())
    fit = fit_marginal(problem, share_variance=share, options=Options(tolerance=1e-5))
    assert float(fit.log_marginal) == pytest.approx(gold["loglik"].iloc[0], abs=1e-6)
    expected = gold["est"][[p for p in gold.index if p.startswith("beta")]].to_numpy()
    found = fit.coefficients[0].flip(0).T.flatten()  # intercept, slope of each logit in turn
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(2 * fit.sigma[0].log(), [v for p, v in gold["est"].items() if "logs2" in p], atol=1e-3)


def check_optimum(fit: MarginalFit, tolerance: float = 1e-3) -> None:
    assert fit.convergence.reason == ["converged"] * len(fit.sigma)
    assert float(fit.gradient_norm.max()) <= 2 * tolerance
    assert bool((fit.log_marginal >= fit.log_marginal_null - 1e-8).all())
    assert bool((fit.sigma >= 0).all()) and bool(((fit.theta >= 0) & (fit.theta <= 1)).all())


@pytest.mark.slow
def test_recovers_the_truth() -> None:
    counts = simulate(20, 48, 0.7, 0.7, 10.0, seed=1)
    fit = fit_marginal(MixedModel(counts, intercept(400), SparseSolver(grid(20).precision), Multinomial()))
    check_optimum(fit)
    assert float(fit.sigma.median()) == pytest.approx(0.7, rel=0.1)
    assert float(fit.theta.median()) == pytest.approx(0.7, abs=0.12)


@pytest.mark.slow
def test_no_spatial_truth_gives_theta_zero() -> None:
    counts = simulate(16, 24, 0.7, 0.0, 5.0, seed=2)
    fit = fit_marginal(MixedModel(counts, intercept(256), SparseSolver(grid(16).precision), Multinomial()))
    check_optimum(fit)
    assert float((fit.theta == 0).double().mean()) > 0.3
    assert float(fit.theta.median()) < 0.1


@pytest.mark.slow
def test_solvers_agree() -> None:
    counts, car = simulate(8, 6, 0.8, 0.6, 8.0, seed=3), grid(8)
    options = Options(tolerance=1e-6)
    fits = [
        fit_marginal(MixedModel(counts, intercept(64), solver, Multinomial()), options=options)
        for solver in (SparseSolver(car.precision), LowRankSolver.from_dense(car.dense()))
    ]
    torch.testing.assert_close(fits[0].log_marginal, fits[1].log_marginal, rtol=0, atol=1e-8)
    torch.testing.assert_close(fits[0].nu, fits[1].nu, rtol=0, atol=1e-4)


def test_batches_agree_and_bad_genes_harm_no_other() -> None:
    counts, solver = simulate(8, 10, 0.8, 0.6, 5.0, seed=4), SparseSolver(grid(8).precision)
    counts[3] = 0  # never seen
    counts[7, :, 1:] = 0  # only one isoform ever seen
    together = fit_marginal(MixedModel(counts, intercept(64), solver, Multinomial()))
    for gene in (0, 9):
        alone = fit_marginal(MixedModel(counts[gene : gene + 1], intercept(64), solver, Multinomial()))
        assert float(alone.log_marginal) == pytest.approx(float(together.log_marginal[gene]), abs=1e-6)
    assert bool(torch.isfinite(together.log_marginal).all())


def test_fixed_sigma_and_priors() -> None:
    counts, solver = simulate(8, 5, 0.8, 0.6, 5.0, seed=5), SparseSolver(grid(8).precision)
    model = MixedModel(counts, intercept(64), solver, Multinomial())
    held = torch.full((5, 1), 0.4, dtype=torch.float64)
    fit = fit_marginal(model, fixed_sigma=held)
    assert torch.equal(fit.sigma, held)
    free = fit_marginal(model)
    assert bool((free.log_marginal >= fit.log_marginal - 1e-7).all())

    def log_prior(sites: dict[str, Tensor], genes: Tensor) -> Tensor:
        assert len(genes) == len(sites["sigma"])
        return dist.LogNormal(-1.5, 0.05).log_prob(sites["sigma"]).sum(-1) + dist.Normal(0.0, 0.1).log_prob(
            sites["theta_logit"]
        ).sum(-1)

    tight = fit_marginal(model, log_prior=log_prior)
    assert tight.convergence.reason == ["converged"] * 5
    np.testing.assert_allclose(tight.sigma, np.exp(-1.5), rtol=0.2)
    np.testing.assert_allclose(tight.theta, 0.5, atol=0.05)


def test_genes_at_once_are_few_or_a_multiple_of_eight() -> None:
    assert genes_at_once(256, 2, 2_000) == 64
    assert genes_at_once(10_000_000, 9, 10**9) == 1
    assert genes_at_once(100_000, 1, 4_600_000) == 8
    assert genes_at_once(200_000, 1, 10_000_000) == 3
    assert genes_at_once(10_000, 2, 2 * 190_000) % 8 == 0
