"""Predictors of cells beside random effects, with what is not known of them: at fitted cells and at others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice.glmm._arrow.predictor_moments import PredictorMoments, new_predictors
from pyrosplice.glmm._arrow.predictors_in_space import fitted_predictors, predictors_in_space
from pyrosplice.spatial._new_spots import FieldPlaces

Array = NDArray[np.float64]


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
        return new_predictors(problem, fit, rows)
    return predictors_in_space(problem, fit, rows, places).of_one
