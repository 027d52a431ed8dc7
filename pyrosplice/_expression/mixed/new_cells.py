"""Predictors of cells beside random effects, with what is not known of them: at fitted cells and at others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice.effects._reference_df import degrees_of_freedom
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.predictor_moments import (
    NEW_LEVEL,
    NewRows,
    PredictorMoments,
    new_predictors,
    of_new_levels,
)
from pyrosplice.glmm._arrow.predictors_in_space import fitted_predictors, predictors_in_space
from pyrosplice.glmm._arrow.satterthwaite import CovarianceLaw
from pyrosplice.glmm._arrow.standard_columns import StandardColumns
from pyrosplice.spatial._new_spots import FieldPlaces

Array = NDArray[np.float64]
STEP = 1e-3  # difference of a standard deviation to either side


def moments_of_fitted(estimator: MixedEstimator, genes: NDArray[np.intp]) -> PredictorMoments:
    """Moments of the predictors of the fitted cells, (g, N) each, size factors included."""
    problem, fit = estimator.problem(genes), estimator.mixed.take(torch.from_numpy(genes))
    found = fitted_predictors(problem, fit).of_one
    offset = estimator.source.design.offset
    return replace(found, mean=found.mean + (offset if offset.ndim == 1 else offset[:, genes].T))


def moments_of_new(
    estimator: MixedEstimator,
    genes: NDArray[np.intp],
    design: Array,
    table: pd.DataFrame,
    places: FieldPlaces | None,
    *,
    new_levels: str,
) -> PredictorMoments:
    """Moments of the predictors of cells of a table, (g, n) each, without size factors.

    Parameters
    ----------
    estimator, genes
        The fit, and positions of its genes.
    design
        Free columns ``(n, F)`` of the cells.
    table
        Grouping factors and slopes, a row a cell.
    places
        Where they are; None for a fit without a field.
    new_levels
        ``"population"`` or ``"raise"``.

    Raises
    ------
    InvalidArgumentError
        Levels that the fit never saw, where these are refused or related to others; columns that are missing.
    """
    rows = estimator.effects.rows(design, table, estimator.input_data.sample_description, new_levels)
    problem, fit = estimator.problem(genes), estimator.mixed.take(torch.from_numpy(genes))
    if places is None:
        found = new_predictors(problem, fit, rows)
    else:
        found = predictors_in_space(problem, fit, rows, places).of_one
    if not (rows.levels == NEW_LEVEL).any():
        return found
    law = estimator.record.law.take(torch.from_numpy(genes))
    return replace(found, df=freedom_of_new_levels(problem, fit, rows, law, found.variance))


def freedom_of_new_levels(
    problem: EffectsProblem, fit: EffectsFit, rows: NewRows, law: CovarianceLaw, variance: Array
) -> Array:
    r"""Degrees of freedom (g, n) of the variance of predictors of levels that were not fitted; infinite for others.

    By Satterthwaite, :math:`2 V^2 / \nabla V' A \nabla V`, within one and twice the levels of the effect less one. A is
    that of the parameters; slopes of V are those of the variances of new levels, and of the coefficients' part where no
    level was fitted.
    """
    standard = StandardColumns.of(problem)
    engine = standard.engine_parameters(fit.parameters.numpy())
    slopes = np.zeros((law.parameter_covariance.shape[1], *variance.shape))
    for j in range(engine.shape[1]):
        step = STEP * (np.arange(engine.shape[1]) == j)
        ends = [
            of_new_levels(problem, fit.changed({"parameters": torch.from_numpy(standard.parameters(at))}), rows)
            for at in (engine + step, engine - step)
        ]
        slopes[j] = (ends[0] - ends[1]) / (2 * STEP)
    alone = (rows.levels == NEW_LEVEL).all(1) & (problem.space is None)
    design = rows.design[alone]
    slopes[:, :, alone] += np.einsum("np,gdpq,nq->dgn", design, law.slopes.numpy(), design)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.einsum("dgn,gde,egn->gn", slopes, law.parameter_covariance.numpy(), slopes)
        found = 2 * variance**2 / spread
    sizes = np.array([len(block.level_names) - 1.0 for block in problem.groups])
    least = np.where(rows.levels == NEW_LEVEL, sizes, np.inf).min(1, initial=np.inf)
    new = np.isfinite(least)
    out = np.full(variance.shape, np.inf)
    out[:, new] = degrees_of_freedom(found[:, new], np.maximum(least[new], 1.0))
    return out
