r"""Mean and variance of one linear predictor in Laplace's posterior at new observations that no field reaches.

Parameters are at their estimates. A new observation with covariates x, and z of every effect,

.. math:: \eta_* = x'\beta + \sum_e z_e' u_{l_e} + c\, e_*

is linear in what the Gaussian posterior is of; a level that was not fitted has the law :math:`N(0, L_e L_e')` of its
effect, and :math:`e_*` is an effect of its own. For one predictor, Q = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyrosplice._modes import outside_inference_mode
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.laid_out import LaidOut
from pyrosplice.glmm._arrow.layout import equal_rows
from pyrosplice.glmm._arrow.unknowns_posterior import ArrowPosterior

Array = NDArray[np.float64]
NEW_LEVEL, NO_LEVEL = -1, -2


@dataclass(frozen=True)
class NewRows:
    """Observations that are asked about.

    Attributes
    ----------
    design : (n, P)
        Their covariates.
    levels : (n, E)
        Level of each effect: that of a fitted one, :data:`NEW_LEVEL`, or :data:`NO_LEVEL` for none.
    columns
        z of each effect, (n, q).
    noise
        Whether each has an effect of its own, where the fit has such.
    space_by
        What multiplies the field at each, (n,); None for 1.
    """

    design: Array
    levels: NDArray[np.int64]
    columns: tuple[Array, ...]
    noise: bool = True
    space_by: Array | None = None


@dataclass(frozen=True)
class PredictorMoments:
    """Mean and variance of predictors, offset not included, (G, n) each; NaN for a gene without estimates.

    ``df``: degrees of freedom of the variance, (G, n); None where it is taken as known.
    """

    mean: Array
    variance: Array
    df: Array | None = None


@outside_inference_mode
def new_predictors(problem: EffectsProblem, fit: EffectsFit, rows: NewRows) -> PredictorMoments:
    """Moments of the predictors of other observations, which no field reaches.

    Parameters
    ----------
    problem, fit
        What was fitted under the restricted likelihood, and its estimates.
    rows
        The observations.
    """
    laid_out, shape = LaidOut(problem), (len(problem.counts), len(rows.design))
    mean, variance = np.full(shape, np.nan), np.full(shape, np.nan)
    first, combination = equal_rows(np.column_stack([np.zeros(shape[1], np.int64), rows.levels]))
    order = np.argsort(combination, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(combination))[:-1])
    weights = np.concatenate([rows.design, *rows.columns], 1)
    for genes, laplace in laid_out.at_fit(fit):
        posterior, own = ArrowPosterior(laplace), np.flatnonzero(laplace.mode.found)
        for some, at in zip(members, first, strict=True):
            moments = posterior.together(np.maximum(rows.levels[at], -1).tolist())
            z, place = weights[some], np.ix_(genes.numpy()[own], some)
            mean[place] = moments.mean[own] @ z.T
            variance[place] = np.einsum("nk,bkl,nl->bn", z, moments.covariance[own], z)
    return PredictorMoments(mean, variance + of_new_levels(problem, fit, rows))


def of_new_levels(problem: EffectsProblem, fit: EffectsFit, rows: NewRows) -> Array:
    """Variance (G, n) that levels which were not fitted add, and effects of single observations."""
    out = np.zeros((len(problem.counts), len(rows.design)))
    for e, columns in enumerate(rows.columns):
        new = rows.levels[:, e] == NEW_LEVEL
        if new.any():
            covariance = fit.effect_covariance(e).numpy()
            out[:, new] += np.einsum("nk,gkl,nl->gn", columns[new], covariance, columns[new])
    if problem.noise and rows.noise:
        out += fit.sds[:, [fit.inner.index("noise")]].square().numpy()
    return out
