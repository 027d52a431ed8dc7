"""Reduced version of tests/studies/glmm_tests.py: the tests that rest on a marginal fit of the GLMM."""

import pytest
import torch

from pyrosplice.estimators.gene_tests import linearised_at
from pyrosplice.hypothesis.score import score_test
from pyrosplice.models.likelihoods import Multinomial
from tests.hypothesis.oracle import random_effect_fit
from tests.studies.glmm_tests import covariates, null_fit, pvalues, rates
from tests.studies.simulation import grid, simulate_counts

LAYOUT = grid(12)


def test_engine_and_oracle_give_the_same_statistic():
    """At the engine's σ and θ; the intercept there is not the joint mode's, to which the test is insensitive."""
    counts = simulate_counts(LAYOUT, n_genes=2, depth=8, sigma=0.7, theta=0.7, seed=3)
    design = covariates(LAYOUT)[:, 7:10]
    fit, mode = null_fit(counts, LAYOUT)
    linear = linearised_at(mode)
    ours = score_test(linear.residual, linear.precision_product, design).statistic
    eye, ones = torch.eye(144, dtype=torch.float64), torch.ones(144, 1, dtype=torch.float64)
    for g in range(2):
        sigma, theta = fit.sigma[g, 0], fit.theta[g, 0].clamp(max=1 - 1e-9)
        spatial = sigma**2 * (theta * LAYOUT.dense() + (1 - theta) * eye)
        residual, _, inverse = random_effect_fit(counts[g], spatial, ones)
        blocks = torch.diagonal(inverse.reshape(144, 2, 144, 2), dim1=0, dim2=2).permute(2, 0, 1)
        torch.testing.assert_close(linear.spot_precision[g], blocks, rtol=0.1, atol=0.05)
        within = torch.block_diag(*mode.step.information[g])
        middle = torch.kron(spatial, torch.eye(2, dtype=torch.float64))
        exact = torch.linalg.inv(torch.linalg.inv(within) + middle).reshape(144, 2, 144, 2)
        blocks = torch.diagonal(exact, dim1=0, dim2=2).permute(2, 0, 1)
        torch.testing.assert_close(linear.spot_precision[g], blocks, rtol=1e-8, atol=1e-10)
        for j in range(3):
            x = torch.kron(design[:, [j]].contiguous(), torch.eye(2, dtype=torch.float64))
            a = inverse @ torch.kron(ones, torch.eye(2, dtype=torch.float64))
            projected = inverse - a @ torch.linalg.solve(a.reshape(144, 2, 2).sum(0), a.T)
            u = x.T @ residual.flatten()
            expected = float(u @ torch.linalg.solve(x.T @ projected @ x, u))
            assert float(ours[g, j]) == pytest.approx(expected, rel=0.05, abs=0.02)


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
        linear = linearised_at(null_fit(some, LAYOUT)[1])
        each = (score_test(linear.residual, linear.precision_product, design, spot_precision=one)
                for one in (None, linear.spot_precision))  # fmt: skip
        rejected.append(torch.stack([(test.pvalue < 0.05).double().mean(1) for test in each]))
    plain, robust = torch.cat(rejected, 1)
    error = float(robust.std()) / 16
    assert abs(float(robust.mean()) - 0.05) < 3 * error < 0.012
    assert float(plain.mean()) > 0.05 + 3 * error
