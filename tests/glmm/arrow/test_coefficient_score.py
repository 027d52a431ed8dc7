"""Scores of coefficients at the estimates of a smaller model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pyrosplice.glmm._arrow.coefficient_score import coefficient_score
from pyrosplice.glmm._arrow.fitting import EffectsOptions, fit_effects
from tests.glmm.arrow.dense_laplace import dense_value, design_of
from tests.glmm.arrow.test_fit_effects import with_effects

TIGHT = EffectsOptions(tolerance=1e-7)


@pytest.mark.parametrize(("layout", "family"), [("slopes", "nb"), ("crossed", "normal")])
def test_score_is_the_derivative_of_the_dense_likelihood(layout, family):
    problem = with_effects(layout, family, seed=3, n_genes=2)
    null = fit_effects(replace(problem, design=problem.design[:, :2]), restricted=False, options=TIGHT)
    beta = torch.cat([null.coefficients, torch.zeros(2, 1, 1, dtype=torch.float64)], 1)
    score, covariance = coefficient_score(problem, beta, null.parameters, null.sds, null.hyper)
    np.testing.assert_allclose(score[:, :2], 0, atol=1e-4)  # what the smaller model maximizes
    log_hyper = torch.cat([value.log() for value in null.hyper.values()], 1).numpy()
    step = np.zeros(3)
    step[2] = 1e-4
    for gene in range(2):
        up, down = (
            dense_value(
                problem,
                gene,
                (null.parameters[gene].numpy(), log_hyper[gene], beta[gene, :, 0].numpy() + sign * step),
                restricted=False,
            )
            for sign in (1, -1)
        )
        assert score[gene, 2].item() == pytest.approx((up - down) / 2e-4, abs=1e-5)
        if family == "normal":
            z = design_of(problem, null.parameters[gene]).numpy()
            precision = np.linalg.inv(z @ z.T + np.exp(2 * log_hyper[gene]) * np.eye(len(z)))
            x = problem.design
            np.testing.assert_allclose(covariance[gene], np.linalg.inv(x.T @ precision @ x), atol=1e-9)
