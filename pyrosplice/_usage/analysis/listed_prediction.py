"""Moments of the predictors of spots beside a list of effects: at the fitted spots and at new ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from pyrosplice._usage.analysis.fits import UsageAnalysis
from pyrosplice._usage.analysis.places import GIVEN, AskedSpots
from pyrosplice._usage.reading.isoforms import table_of
from pyrosplice.effects._effect_list import field_of
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.predictor_moments import NewRows
from pyrosplice.glmm._arrow.predictors_in_space import LinkMoments, fitted_predictors, predictors_in_space
from pyrosplice.spatial._new_spots import FieldPlaces


def listed_moments(
    analysis: UsageAnalysis, genes: Sequence[int], spots: AskedSpots, given: object, new_levels: str
) -> tuple[Tensor, Tensor]:
    """Mean ``(B, n, Q)`` and covariance ``(B, n, Q, Q)`` of logits of genes of one isoform count and one field.

    Raises
    ------
    InvalidArgumentError
        Coordinates without a table where groups, slopes or a multiplied field need one; levels that were not fitted,
        where these are refused or related to others; a new spot of a field whose ρ was estimated.
    """
    fits = [analysis.fit.genes[gene] for gene in genes]
    spec = analysis.grouped_spec(with_design=analysis.fit.with_design)
    problem, fit = spec.at(fits).problem(analysis.counts(genes)), spec.restored(fits)
    if given is None:
        return _tensors(fitted_predictors(problem, fit))
    rows = _rows(analysis, spots, given, new_levels)
    places = None if problem.space is None else FieldPlaces(spots.fitted.numpy(), spots.field)
    found = predictors_in_space(problem, fit, rows, places)
    old = np.flatnonzero((spots.fitted >= 0).numpy())
    if problem.noise and len(old):
        _require_as_fitted(analysis, spots, rows, old)
        own, at = fitted_predictors(problem, fit), spots.fitted.numpy()[old]
        found.mean[:, old], found.covariance[:, old] = own.mean[:, at], own.covariance[:, at]
    return _tensors(found)


def _tensors(moments: LinkMoments) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(moments.mean), torch.from_numpy(moments.covariance)


def _rows(analysis: UsageAnalysis, spots: AskedSpots, given: object, new_levels: str) -> NewRows:
    effects, n = analysis.effects, len(spots.names)
    field = field_of(effects.given)
    if effects.family is not None and bool((spots.fitted < 0).any()):
        raise InvalidArgumentError(
            f"{GIVEN}: {field!r} has a rho of its own for each gene, which predictions at new places do not know; fit "
            f"with a number for rho, or leave {GIVEN} out."
        )
    needed = [f"({block.name})" for block in effects.groups]
    needed += [] if field is None or field.by is None else [repr(field)]
    if needed and not isinstance(given, AnnData):
        raise InvalidArgumentError(
            f"{GIVEN}: expected an AnnData whose obs has the columns of {', '.join(needed)}, found coordinates alone."
        )
    table = table_of(given, "obs") if isinstance(given, AnnData) else pd.DataFrame(index=spots.names)
    design = np.concatenate([np.ones((n, 1)), spots.covariates.numpy()], 1)
    return effects.rows(design, table, analysis.prepared.data.adata.obs, new_levels)


def _require_as_fitted(analysis: UsageAnalysis, spots: AskedSpots, rows: NewRows, old: np.ndarray) -> None:
    """Raise where a fitted spot is asked about with covariates or groups that it was not fitted with.

    Its own effect is that of the spot as it was.
    """
    spec, at = analysis.grouped_spec(with_design=analysis.fit.with_design), spots.fitted.numpy()[old]
    same = np.isclose(rows.design[old], spec.columns[at]).all(1)
    for e, block in enumerate(spec.groups):
        same &= rows.levels[old, e] == block.levels[at]
        same &= np.isclose(rows.columns[e][old], block.columns[at]).all(1)
    if rows.space_by is not None and spec.effects.space_by is not None:
        same &= np.isclose(rows.space_by[old], spec.effects.space_by[at])
    if not same.all():
        name = spots.names[old[np.flatnonzero(~same)[0]]]
        raise InvalidArgumentError(
            f"{GIVEN}: spot {name!r} is at a fitted one, whose own effect goes with its covariates and groups, and has "
            "others; move it, or leave it out."
        )
