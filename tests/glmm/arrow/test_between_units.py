"""How units vary between predictors: against a normal model by hand, near no variance, and per column."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from pyrosplice.effects import Groups
from pyrosplice.effects._units import Coefficients, DesignUnits
from pyrosplice.glmm._arrow.between_units import variation_of_units
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.likelihoods import Multinomial

N_GENES, N_UNITS, DEPTH = 4, 10, 2e5


def problem_of(eta, table, formula="~ 1", effect="independent"):
    """Counts of so many molecules that usage is known; columns of an intercept and a condition."""
    whole = np.concatenate([eta, np.zeros((*eta.shape[:2], 1))], -1)
    counts = np.round(DEPTH * np.exp(whole) / np.exp(whole).sum(-1, keepdims=True))
    design = np.stack([np.ones(len(table)), table["condition"].to_numpy(float)], 1)
    block = Groups("unit", formula).bind(table)
    return EffectsProblem(torch.from_numpy(counts), design, Multinomial(), groups=(block,), isoform_effect=effect)


def units_of(problem, contrast):
    return DesignUnits(Coefficients(problem.design, ["one", "condition"]), problem.groups, "spots").of(contrast)


def same_eigenvalues(found, expected):
    ratios = [np.sort(np.linalg.eigvals(matrix).real) for matrix in (found, expected)]
    ratios = [values / values.sum(-1, keepdims=True) for values in ratios]
    np.testing.assert_allclose(*ratios, atol=2e-3)


@pytest.mark.parametrize("effect", ["independent", "symmetric"])
@pytest.mark.parametrize("own_slopes", [False, True])
def test_of_endless_counts_it_is_the_covariance_of_what_is_compared(own_slopes, effect):
    """Between units of their levels, within units of their slopes, which vary in other predictors than levels do."""
    rng = np.random.default_rng(3)
    root = np.linalg.cholesky(np.eye(2) + (effect == "symmetric"))
    unit = np.repeat(np.arange(N_UNITS), 4)
    condition = np.tile([0, 1], 2 * N_UNITS) if own_slopes else unit % 2
    level = rng.standard_normal((N_GENES, N_UNITS, 2)) * [0.5, 0.1]
    slope = rng.standard_normal((N_GENES, N_UNITS, 2)) * [0.1, 0.4]
    latent = level[:, unit] + (slope[:, unit] * condition[:, None] if own_slopes else 0.0)
    table = pd.DataFrame({"unit": unit.astype(str), "condition": condition})
    problem = problem_of(latent @ root.T, table, "~ 1 + condition" if own_slopes else "~ 1", effect)
    units = units_of(problem, np.array([0.0, 1.0]))
    squares = np.diag([0.0, 1.0]) if own_slopes else np.ones((1, 1))
    np.testing.assert_allclose(units.compared[0], squares, atol=1e-12)
    found = variation_of_units(problem, fit_effects(problem), units.compared)
    compared = slope if own_slopes else level
    rest = [compared - compared.mean(1, keepdims=True)]
    if not own_slopes:
        rest = [compared[:, k::2] - compared[:, k::2].mean(1, keepdims=True) for k in (0, 1)]
    same_eigenvalues(found.numpy(), sum(np.einsum("guq,gur->gqr", part, part) for part in rest))


def test_without_a_variance_it_is_that_of_what_counts_say_of_units():
    """Near a variance of zero ratios have a limit, which a fit at zero has too."""
    rng = np.random.default_rng(1)
    unit = np.repeat(np.arange(N_UNITS), 20)
    table = pd.DataFrame({"unit": unit.astype(str), "condition": unit % 2})
    usage = rng.dirichlet([4, 3, 5], N_GENES)
    counts = torch.from_numpy(rng.multinomial(30, usage[:, None], (N_GENES, len(unit))).astype(float))
    design = np.stack([np.ones(len(unit)), unit % 2], 1).astype(float)
    block = Groups("unit").bind(table)
    problem = EffectsProblem(counts, design, Multinomial(), groups=(block,))
    fit, compared = fit_effects(problem), units_of(problem, np.array([0.0, 1.0])).compared
    at = {
        sd: variation_of_units(problem, replace(fit, parameters=torch.full_like(fit.parameters, sd)), compared)
        for sd in (0.0, 1e-5, 0.005)
    }
    assert torch.isfinite(at[0.0]).all()
    same_eigenvalues(at[1e-5].numpy(), at[0.0].numpy())
    same_eigenvalues(at[0.005].numpy(), at[0.0].numpy())


def test_genes_without_estimates_have_none():
    table = pd.DataFrame({"unit": np.repeat(list("abcd"), 3), "condition": np.repeat([0, 1, 0, 1], 3)})
    eta = np.random.default_rng(0).standard_normal((2, 12, 2))
    problem = problem_of(eta, table)
    problem.counts[1] = 0.0
    found = variation_of_units(problem, fit_effects(problem), units_of(problem, np.array([0.0, 1.0])).compared)
    assert torch.isfinite(found[0]).all() and torch.isnan(found[1]).all()
