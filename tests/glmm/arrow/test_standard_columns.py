"""Scale and zero of a covariate do not matter to its slopes, and parameters go to the engine's columns and back."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pyrosplice._hypothesis.coefficients.unit_statistics import ratio_of_units, score_of_units
from pyrosplice.glmm._arrow.component_freedom import component_freedom
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import EffectsOptions, fit_effects
from pyrosplice.glmm._arrow.satterthwaite import covariance_law
from pyrosplice.glmm._arrow.standard_columns import StandardColumns
from pyrosplice.likelihoods import NegativeBinomial
from tests.glmm.arrow.dense_laplace import block
from tests.glmm.arrow.random_problems import group, random_problem

TIGHT = EffectsOptions(tolerance=1e-6)
SCALES = [1e-5, 1e-2, 1e6]
MOVES = [*[(scale, 0.0) for scale in SCALES], (1e-2, 3.0), (1.0, 50.0), (1.0, 2020.0), (1.0, 1e5), (1e4, -1e5)]


def slopes(scale, shift, *, diagonal=False, n_genes=2):
    """Ten donors with slopes of a covariate of cells, which is ``scale`` z + ``shift``."""
    rng = np.random.default_rng(3)
    donor, z = np.repeat(np.arange(10), 12), rng.normal(size=120)
    u, v = rng.normal(0, 0.4, (n_genes, 10)), rng.normal(0, 0.35, (n_genes, 10))
    mean = np.exp(1 + u[:, donor] + (0.1 + v[:, donor]) * z)
    counts = torch.as_tensor(rng.poisson(mean * rng.gamma(4, 0.25, mean.shape))[..., None], dtype=torch.float64)
    x = np.column_stack([np.ones(120), scale * z + shift])
    return EffectsProblem(counts, x, NegativeBinomial(), None, (block(donor, x, diagonal=diagonal),))


def of_slopes(problem, scale, *, restricted):
    """What must not depend on the covariate's scale and zero."""
    fit = fit_effects(problem, restricted=restricted, options=TIGHT)
    assert set(fit.reason) == {"converged"}
    out = {
        "log likelihood": fit.log_likelihood + (np.log(scale) if restricted else 0.0),
        "estimate": fit.coefficients[:, 1, 0] * scale,
        "error": fit.covariance[:, 1, 1].sqrt() * scale,
        "sd": fit.effect_covariance(0)[:, 1, 1].sqrt() * scale,
        "modes": fit.group_modes[0][:, :, 1, 0] * scale,
        "posterior sds": fit.group_sds[0][:, :, 1, 0] * scale,
        "n_iter": fit.n_iter.double(),
    }
    row = np.array([[0.0, 1.0]])
    if restricted:
        out["df"] = covariance_law(problem, fit).df(torch.from_numpy(row))
        out["score"] = torch.from_numpy(score_of_units(problem, row, fit)[0])
    else:
        out["ratio"] = torch.from_numpy(ratio_of_units(problem, row, fit)[0])
    return out


@pytest.mark.parametrize(("restricted", "diagonal"), [(True, False), (False, False), (True, True)])
def test_scale_and_zero_of_a_covariate_do_not_matter(restricted, diagonal):
    before = of_slopes(slopes(1.0, 0.0, diagonal=diagonal), 1.0, restricted=restricted)
    for scale, shift in MOVES:
        if diagonal and shift:
            continue  # another model
        after = of_slopes(slopes(scale, shift, diagonal=diagonal), scale, restricted=restricted)
        for name, values in before.items():
            # the null of scores and ratios is fitted to 3e-4 sqrt(nats) by default
            rtol = 1e-4 if name in ("score", "ratio") else 1e-6
            np.testing.assert_allclose(after[name], values, rtol=rtol, atol=1e-9, err_msg=f"{name}, {scale}, {shift}")


@pytest.mark.parametrize("scale", SCALES)
def test_one_variance_of_several_columns_takes_their_common_scale(scale):
    problem = slopes(1.0, 0.0)
    x = np.array(problem.design)
    one = replace(problem, groups=(group("donor", problem.groups[0].levels, x, kind="one"),))
    other = replace(one, groups=(replace(one.groups[0], columns=x * scale),))
    first, second = (fit_effects(own, options=TIGHT) for own in (one, other))
    assert set(second.reason) == {"converged"}
    np.testing.assert_allclose(second.parameters * scale, first.parameters, rtol=1e-6)
    np.testing.assert_allclose(second.log_likelihood, first.log_likelihood, rtol=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_freedom_of_a_slope_does_not_depend_on_its_scale(scale):
    problem = slopes(1.0, 0.0)
    own = block(problem.groups[0].levels, problem.design[:, 1:])
    null = fit_effects(replace(problem, groups=()))
    before, after = (
        component_freedom(replace(problem, groups=(replace(own, columns=own.columns * by),)), 0, null)
        for by in (1.0, scale)
    )
    np.testing.assert_allclose(after, before, rtol=1e-6)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("linear", [True, False])
def test_parameters_come_back(seed, linear):
    problem = random_problem(seed)
    standard = StandardColumns.of(problem, linear=linear)
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((4, sum(len(one.basis) for one in problem.groups)))
    there = standard.engine_parameters(own)
    back, at = standard.parameters(there), 0
    for one, turn in zip(problem.groups, standard.effects, strict=True):
        root, engine, again = (
            np.einsum("bj,jkl->bkl", part[:, at : at + len(one.basis)], one.basis) for part in (own, there, back)
        )
        covariance, whole = root @ np.swapaxes(root, 1, 2), turn @ engine
        np.testing.assert_allclose(whole @ np.swapaxes(whole, 1, 2), covariance, atol=1e-12)
        np.testing.assert_allclose(again @ np.swapaxes(again, 1, 2), covariance, atol=1e-12)
        at += len(one.basis)
    if linear:
        np.testing.assert_allclose(back, own, atol=1e-12)
    beta = rng.standard_normal((4, len(standard.expanded(standard.fixed))))
    np.testing.assert_allclose(standard.coefficients(standard.engine_coefficients(beta)), beta, atol=1e-12)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_a_log_prior_is_of_the_parameters_that_are_given(kind):
    problem = slopes(40.0, 300.0, diagonal=kind == "diagonal")
    seen = []

    def log_prior(psi, sds, log_hyper):
        seen.append(psi.detach())
        return -0.5 * ((psi - 0.02) / 1e-5).square()[:, -1]

    fit = fit_effects(problem, log_prior=log_prior)
    np.testing.assert_allclose(fit.parameters[:, -1], 0.02, atol=1e-4)
    assert seen[-1].shape[1] == fit.parameters.shape[1]
