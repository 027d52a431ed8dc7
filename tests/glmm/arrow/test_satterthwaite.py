"""Degrees of freedom of contrasts: those of balanced analysis of variance, and what follows from their definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import EffectsOptions, fit_effects
from pyrosplice.glmm._arrow.satterthwaite import covariance_law
from pyrosplice.likelihoods import Normal
from tests.glmm.arrow.dense_laplace import block
from tests.glmm.arrow.test_fit_effects import with_effects

TIGHT = EffectsOptions(tolerance=1e-7)


def balanced(n_levels, n_each, seed, *, scale=1.0):
    """Normal observations, groups of levels of equal size, a covariate between and one within them."""
    rng = np.random.default_rng(seed)
    level = np.repeat(np.arange(n_levels), n_each)
    between, within = (level % 2) - 0.5, np.tile(np.arange(n_each) % 2, n_levels) - 0.5
    y = scale * (rng.normal(size=(4, n_levels))[:, level] + 0.7 * rng.normal(size=(4, len(level))))
    x = np.column_stack([np.ones(len(level)), between, within])
    counts = torch.as_tensor(y[..., None])
    return EffectsProblem(counts, x, Normal(), None, (block(level, x[:, :1]),))


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_balanced_designs_have_the_degrees_of_analysis_of_variance(scale):
    problem = balanced(10, 8, seed=1, scale=scale)
    slopes = covariance_law(problem, fit_effects(problem, options=TIGHT))
    rows = torch.eye(3, dtype=torch.float64)
    np.testing.assert_allclose(slopes.df(rows[:1]), 8, rtol=0.03)  # levels less two
    np.testing.assert_allclose(slopes.df(rows[1:2]), 8, rtol=0.03)
    np.testing.assert_allclose(slopes.df(rows[2:]), 80 - 10 - 1, rtol=0.03)  # observations less levels less one


def test_contrasts_of_equal_degrees_share_them():
    problem = balanced(10, 8, seed=2)
    law = covariance_law(problem, fit_effects(problem, options=TIGHT))
    np.testing.assert_allclose(law.df(torch.eye(3, dtype=torch.float64)[:2]), 8, rtol=0.03)


def test_degrees_of_several_contrasts_are_those_of_uncorrelated_ones():
    problem = with_effects("slopes", "nb", seed=4)
    law = covariance_law(problem, fit_effects(problem))
    rows = torch.eye(3, dtype=torch.float64)[1:]
    np.testing.assert_allclose(law.df(rows), law.df(-3.0 * rows.flip(0)), rtol=1e-6)
    np.testing.assert_allclose(law.df(rows[:1]), law.df(-2.0 * rows[:1]), rtol=1e-10)
    _, vectors = torch.linalg.eigh(rows @ law.covariance[0] @ rows.T)
    apart = torch.stack([law.df(row[None])[0] for row in vectors.T @ rows])
    expected = (apart / (apart - 2)).sum() if bool((apart > 2).all()) else torch.tensor(torch.inf)
    assert law.df(rows)[0].item() == pytest.approx(float(2 * expected / (expected - 2)), rel=1e-8)


def test_genes_without_estimates_have_none_and_change_no_other():
    problem = with_effects("intercept", "nb", seed=5)
    counts = problem.counts.clone()
    counts[1] = 0
    rows = torch.eye(3, dtype=torch.float64)
    whole, part = (covariance_law(p, fit_effects(p)).df(rows[1:]) for p in (problem, replace(problem, counts=counts)))
    assert part[1].isnan().all()
    np.testing.assert_allclose(part[[0, 2]], whole[[0, 2]], rtol=1e-6)


def test_maximum_likelihood_is_refused():
    problem = with_effects("intercept", "nb", seed=6)
    with pytest.raises(InvalidArgumentError, match="restricted=True"):
        covariance_law(problem, fit_effects(problem, restricted=False))
