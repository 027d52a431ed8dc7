"""Reduced version of tests/studies/glmm_tests.py: the tests that rest on a marginal fit of the GLMM."""

from copy import copy
from dataclasses import replace

import pytest
import torch

from pyrosplice.glmm.laplace import Laplace
from pyrosplice.hypothesis.coefficients.score import score_test
from pyrosplice.likelihoods.contract import Multinomial
from pyrosplice.usage.gene_tests.linearized import linearized_at
from tests.studies.glmm_tests import covariates, null_fit, pvalues, rates
from tests.studies.simulation import grid, simulate_counts

LAYOUT = grid(12)


def test_statistic_is_the_dense_one():
    """At the engine's σ and θ, W and residuals, with V⁻¹ from the inverses of W and Σ."""
    counts = simulate_counts(LAYOUT, n_genes=2, depth=8, sigma=0.7, theta=0.7, seed=3)
    design = covariates(LAYOUT)[:, 7:10]
    fit, mode = null_fit(counts, LAYOUT)
    linear = linearized_at(mode)
    ours = score_test(linear, design).statistic
    eye, two = torch.eye(144, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    for g in range(2):
        sigma, theta = fit.sigma[g, 0], fit.theta[g, 0].clamp(max=1 - 1e-9)
        spatial = torch.kron(sigma**2 * (theta * LAYOUT.dense() + (1 - theta) * eye), two)
        inverse = torch.linalg.inv(torch.linalg.inv(torch.block_diag(*mode.step.information[g])) + spatial)
        blocks = torch.diagonal(inverse.reshape(144, 2, 144, 2), dim1=0, dim2=2).permute(2, 0, 1)
        torch.testing.assert_close(linear.spot_precision[g], blocks, rtol=1e-8, atol=1e-10)
        ones = torch.kron(torch.ones(144, 1, dtype=torch.float64), two)
        for j in range(3):
            x = torch.kron(design[:, [j]].contiguous(), two)
            x = x - ones @ torch.linalg.solve(ones.T @ inverse @ ones, ones.T @ inverse @ x)
            u = x.T @ linear.residual[g].flatten()
            expected = float(u @ torch.linalg.solve(x.T @ inverse @ x, u))
            assert float(ours[g, j]) == pytest.approx(expected, rel=1e-8)


def test_residual_is_the_derivative_of_the_log_marginal_likelihood():
    """By differences of its value when one spot's linear predictor is shifted."""
    counts = simulate_counts(LAYOUT, n_genes=2, depth=2, sigma=0.7, theta=0.7, seed=3)
    _, mode = null_fit(counts, LAYOUT)
    step, residual = 1e-4, linearized_at(mode).residual
    model, at = mode.step.model, mode.step.parameters
    for spot in (0, 77):
        shifted = copy(model)
        shifted.design = torch.cat([torch.eye(144, dtype=torch.float64)[:, [spot]], model.design], 1)
        for logit in range(2):
            values = []
            for sign in (1, -1):
                extra = torch.zeros_like(at.coefficients)
                extra[:, 0, logit] = sign * step
                moved = replace(at, coefficients=torch.cat([extra, at.coefficients], 1))
                values.append(Laplace(shifted.mode(moved, mode.latents, tolerance=1e-14)).value)
            slope = (values[0] - values[1]) / (2 * step)
            torch.testing.assert_close(residual[:, spot, logit], slope, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_size_with_a_spatial_truth():
    """The hard case: smooth covariates, smooth residual usage. Rates within 0.7 to 1.3 times 5 % (SE ≤ 0.006)."""
    counts = simulate_counts(LAYOUT, n_genes=256, depth=5, sigma=0.7, theta=0.7, seed=12)
    row = rates(*pvalues(counts, LAYOUT, covariates(LAYOUT)))
    for kind in ("iid", "smooth", "binary"):
        assert 0.035 - 2 * row[f"SE {kind} 0.05"] < row[f"{kind} 0.05"] < 0.065 + 2 * row[f"SE {kind} 0.05"]
    assert row["LLR 0.05"] > 0.5


@pytest.mark.slow
def test_size_of_the_spatial_ratio():
    """Without space. The exact 99.9 % interval of 256 genes at 5 %; under the limit law it would reject 1 %."""
    counts = simulate_counts(LAYOUT, n_genes=256, depth=5, sigma=0.7, theta=0.0, seed=13)
    row = rates(*pvalues(counts, LAYOUT, covariates(LAYOUT)))
    assert 0.012 < row["LLR 0.05"] < 0.102
    assert row["LLR boundary 0.05"] < 0.03


@pytest.mark.slow
def test_size_where_the_logits_depend_on_each_other():
    """One variance for all logits is then the wrong model: its own variance of the score is too small in places."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(256, 144, 2, generator=generator, dtype=torch.float64)
    eta = noise @ torch.linalg.cholesky(torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)).T
    counts = Multinomial().sample(torch.full((256, 144), 20.0, dtype=torch.float64), eta, generator=generator)
    design, rejected = covariates(LAYOUT), []
    for some in counts.split(128):
        linear = linearized_at(null_fit(some, LAYOUT)[1])
        each = (score_test(linear, design, robust=robust) for robust in (False, True))
        rejected.append(torch.stack([(test.pvalue < 0.05).double().mean(1) for test in each]))
    plain, robust = torch.cat(rejected, 1)
    error = float(robust.std()) / 16
    assert abs(float(robust.mean()) - 0.05) < 3 * error < 0.012
    assert float(plain.mean()) > 0.05 + 3 * error
