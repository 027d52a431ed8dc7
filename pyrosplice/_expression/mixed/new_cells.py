"""Predictors of cells beside random effects, with what is not known of them: at fitted cells and at others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._tables.labels import read_labels
from pyrosplice.effects._effect import Effect
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._reference_df import degrees_of_freedom
from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.predictor_moments import (
    NEW_LEVEL,
    NewRows,
    PredictorMoments,
    fitted_predictors,
    new_predictors,
    of_new_levels,
)
from pyrosplice.glmm._arrow.predictors_in_space import predictors_in_space
from pyrosplice.glmm._arrow.satterthwaite import CovarianceLaw
from pyrosplice.glmm._arrow.standard_columns import StandardColumns
from pyrosplice.spatial._new_spots import FieldPlaces

Array = NDArray[np.float64]
NEW_LEVELS = ("population", "raise")
STEP = 1e-3  # difference of a standard deviation to either side


def moments_of_fitted(estimator: MixedEstimator, genes: NDArray[np.intp]) -> PredictorMoments:
    """Moments of the predictors of the fitted cells, (g, N) each, size factors included."""
    problem, fit = estimator.problem(genes), estimator.mixed.take(torch.from_numpy(genes))
    found = fitted_predictors(problem, fit)
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
    check_option("new_levels", new_levels, NEW_LEVELS)
    effects = [one for one in estimator.effects.given if isinstance(one, Effect)]
    fitted = estimator.input_data.sample_description
    parts = [
        (_levels(effect, block, table, new_levels), effect.columns_again(table, fitted, block.column_names))
        for effect, block in zip(effects, estimator.groups, strict=True)
    ]
    levels = np.column_stack([np.zeros((len(table), 0), np.int64), *(own for own, _ in parts)])
    rows = NewRows(design, levels, tuple(columns for _, columns in parts))
    problem, fit = estimator.problem(genes), estimator.mixed.take(torch.from_numpy(genes))
    found = new_predictors(problem, fit, rows) if places is None else predictors_in_space(problem, fit, rows, places)
    if not (levels == NEW_LEVEL).any():
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


def _levels(effect: Effect, block: GroupBlock, table: pd.DataFrame, new_levels: str) -> NDArray[np.int64]:
    """Position (n,) of each row's level among the fitted ones."""
    argument = f"effect ({block.name})"
    labels = read_labels(effect.levels(table), argument)
    if len(labels.codes) != len(table):
        raise InvalidArgumentError(f"{argument}: expected {len(table)} labels, found {len(labels.codes)}.")
    known = {name: k for k, name in enumerate(block.level_names)}
    place = np.array([known.get(name, NEW_LEVEL) for name in labels.levels], dtype=np.int64)
    unknown = [name for name, k in zip(labels.levels, place, strict=True) if k == NEW_LEVEL]
    if unknown and (new_levels == "raise" or block.root is not None):
        why = "they are related to those of the fit, in a way that is not known" if block.root is not None else ""
        raise InvalidArgumentError(
            f"new_levels: {argument} has levels that the fit never saw, {unknown[:5]}"
            f"{f'; {why}.' if why else '; new_levels=' + repr('population') + ' predicts for any such.'}"
        )
    return place[labels.codes]
