"""Whether genes vary in space beside random effects of groups: the score test of their levels' GLM, and the ratio."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from pyrosplice._expression.constraints import no_constraints
from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.formula_design import DesignMatrix
from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.places import K_NEIGHBORS, SPATIAL_KEY, SpotOptions, Spots
from pyrosplice._expression.spatial_variability import spatial_table, spatial_variability
from pyrosplice._hypothesis.fdr import adjust_pvalues
from pyrosplice._hypothesis.test_table import TestTable, unless_ended
from pyrosplice.effects._level_columns import columns_with_levels
from pyrosplice.errors import InvalidArgumentError, NotReadyError, check_option
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.reasons import Reason
from pyrosplice.spatial._covariance import SpatialCovariance

Array = NDArray[np.float64]
SPACE_METHODS = ("score", "llr")


class InSpace(Protocol):
    """A fitted model of expression, with the places of its cells."""

    _spots: Spots | None

    def _has_effects(self) -> bool: ...

    def _data(self) -> Estimator: ...

    def _mixed_estimator(self) -> MixedEstimator: ...


def test_in_space(
    self: InSpace,
    method: str = "score",
    *,
    spatial_key: str = SPATIAL_KEY,
    adj_key: str | None = None,
    k_neighbors: int = K_NEIGHBORS,
    section_key: str | None = None,
) -> pd.DataFrame:
    """Test every gene for variability in space beside all else that was fitted: a table by gene.

    By :func:`~pyrosplice._expression.spatial_variability.spatial_variability`; the arguments are as for
    :func:`pyrosplice.spatially_variable_genes`, but that sections have levels of their own where the formula says.
    Beside random effects every level of these has a coefficient of its own, so that nothing of them is left in what is
    tested; a fit with a field is tested with the neighbours of that.

    Parameters
    ----------
    method
        ``"score"``, or, of a fit with ``space=``, ``"llr"``: twice the gain in restricted log likelihood by the field.

    Raises
    ------
    InvalidArgumentError
        Options that the fit does not use; levels that leave nothing to test.
    NotReadyError
        A fit of something else than an AnnData, which has no places.
    """
    space = SpotOptions(spatial_key, adj_key, k_neighbors, section_key)
    if not self._has_effects():
        return spatial_variability(self._data(), self._spots, space, method)
    estimator = self._mixed_estimator()
    field = estimator.effects.field
    if field is not None and space != SpotOptions():
        raise InvalidArgumentError("spatial_key: the fit has a field, whose neighbours are tested; leave options out.")
    if field is None and method == "score" and self._spots is not None:
        field = self._spots.covariance(estimator.input_data.cells, space)
    return spatial_variability_beside(estimator, field, method)


test_in_space.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest's


def spatial_variability_beside(estimator: MixedEstimator, field: SpatialCovariance | None, method: str) -> pd.DataFrame:
    """Test every gene for variability in space beside random effects.

    ``"score"``: every level of a random effect has a coefficient of its own, so that nothing of it is left in what is
    tested (:mod:`pyrosplice._expression.spatial_variability`). ``"llr"``: twice the gain in restricted log likelihood
    by the fit's field, under the equal mixture of zero and χ² with one degree of freedom.

    Parameters
    ----------
    estimator
        The fit.
    field
        Whose neighbours count.
    method
        ``"score"`` or ``"llr"``.

    Raises
    ------
    InvalidArgumentError
        No field for the ratio; levels that leave nothing to test.
    """
    check_option("method", method, SPACE_METHODS)
    if estimator.effects.space_by is not None and method == "score":
        raise InvalidArgumentError("method: the field multiplies a covariate, which method='llr' tests.")
    if method == "llr":
        return _ratio_table(estimator)
    if field is None:
        raise NotReadyError("The test needs the places of the spots: fit an AnnData that has them in obsm or obsp.")
    return spatial_table(_with_levels(estimator), field)


def _with_levels(estimator: MixedEstimator) -> Estimator:
    """The GLM in which every level of every random effect of groups has coefficients."""
    inputs, design = estimator.input_data, estimator.source.design
    kept = columns_with_levels(design.x, estimator.effects.groups, "cells")
    names = [f"column {k + 1}" for k in range(kept.shape[1])]
    location, offset = DesignMatrix(kept, names), design.offset
    glm = Estimator(
        replace(inputs, location=location, constraints_loc=no_constraints(names), offset=offset, effects=None)
    )
    glm.train()
    return glm


def _ratio_table(estimator: MixedEstimator) -> pd.DataFrame:
    if estimator.effects.space is None:
        raise InvalidArgumentError(
            "method: 'llr' is of the field that was fitted, and there is none; give space=Field()."
        )
    problems = (estimator.problem(genes) for genes in estimator.blocks())
    nulls = [fit_effects(replace(problem, space=None, space_by=None)) for problem in problems]
    reduced = np.concatenate([null.log_likelihood.numpy() for null in nulls])
    full, inputs = estimator.mixed, estimator.input_data
    statistic = np.maximum(2 * (full.log_likelihood.numpy() - reduced), 0.0)
    pvalue = np.where(statistic > 0, 0.5 * stats.chi2.sf(statistic, 1), 1.0)
    pvalue[np.isnan(statistic)] = np.nan
    table = TestTable(
        labels={},
        statistic=statistic,
        pvalue=pvalue,
        pvalue_adj=adjust_pvalues(pvalue),
        why=unless_ended(full.reason, Reason.NOT_FINITE.value),
    ).to_frame()
    return table.set_axis(pd.Index(inputs.counts.gene_names, name="gene"))
