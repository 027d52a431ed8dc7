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
from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.glmm._arrow.predictor_moments import (
    NEW_LEVEL,
    NewRows,
    PredictorMoments,
    fitted_predictors,
    new_predictors,
)
from pyrosplice.glmm._arrow.predictors_in_space import predictors_in_space
from pyrosplice.spatial._new_spots import FieldPlaces

Array = NDArray[np.float64]
NEW_LEVELS = ("population", "raise")


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
    return new_predictors(problem, fit, rows) if places is None else predictors_in_space(problem, fit, rows, places)


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
