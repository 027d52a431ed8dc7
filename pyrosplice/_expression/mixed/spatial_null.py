"""Whether genes vary in space beside random effects of groups: the score test of their levels' GLM, and the ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression.constraints import no_constraints
from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.formula_design import DesignMatrix
from pyrosplice._expression.mixed.component_tests import cell_component, component_table
from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.positions import SPATIAL_KEY, SpotOptions, Spots
from pyrosplice._expression.spatial_variability import spatial_table, spatial_variability
from pyrosplice._tables.coordinates import spatial_key_of
from pyrosplice.effects._level_columns import columns_with_levels
from pyrosplice.errors import InvalidArgumentError, NotReadyError, check_option
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
    spatial_key: str | Sequence[str] = SPATIAL_KEY,
    adj_key: str | None = None,
    k_neighbors: int | None = None,
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
        ``"score"``, or, of a fit with ``space=``, ``"llr"``: twice the gain in restricted log likelihood by the field,
        as :meth:`pyrosplice.ExpressionGLM.test_component` says.

    Raises
    ------
    InvalidArgumentError
        Options that the fit does not use; levels that leave nothing to test.
    NotReadyError
        A fit of something else than an AnnData, which has no places.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> spots = np.stack(np.divmod(np.arange(100), 10), 1)
    >>> mean = np.column_stack([3.0 + spots[:, 0], np.full(100, 5.0)])  # the first gene rises along the rows
    >>> adata = simulate_expression(pd.DataFrame(index=range(100)), n_genes=2, mean=mean, seed=0)
    >>> adata.obsm["spatial"] = spots
    >>> table = ExpressionGLM("~ 1").fit(adata).test_spatial_variability()
    >>> (table["pvalue"] < 0.01).tolist()
    [True, False]
    """
    space = SpotOptions(spatial_key_of(spatial_key), adj_key, k_neighbors, section_key)
    if not self._has_effects():
        return spatial_variability(self._data(), self._spots, space, method)
    estimator = self._mixed_estimator()
    field = estimator.effects.field
    if field is not None and space != SpotOptions():
        raise InvalidArgumentError("spatial_key: the fit has a field, whose neighbours are tested; leave options out.")
    if field is None and method == "score" and self._spots is not None:
        covariance = self._spots.covariance(estimator.input_data.cells, space)
        table = spatial_variability_beside(estimator, covariance, method)
        table.attrs["graph"] = self._spots.graph_name(space)
        return table
    return spatial_variability_beside(estimator, field, method)


test_in_space.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest's


def spatial_variability_beside(estimator: MixedEstimator, field: SpatialCovariance | None, method: str) -> pd.DataFrame:
    """Test every gene for variability in space beside random effects.

    ``"score"``: every level of a random effect has a coefficient of its own, so that nothing of it is left in what is
    tested (:mod:`pyrosplice._expression.spatial_variability`). ``"llr"``: twice the gain in restricted log likelihood
    by the fit's field (:mod:`pyrosplice._expression.mixed.component_tests`). Of a field that multiplies a covariate
    residuals are multiplied by it: what varies in space at equal values of the covariate counts too.
    Of 1,000 genes that vary in nothing it rejects 3.7 to 5.9 % at 5 % (256 spots, means of 0.05 to 20, half of the
    spots or a normal covariate; tests/studies/variance_components.py).

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
    effects = estimator.effects
    if method == "llr":
        if effects.space is None:
            raise InvalidArgumentError(
                "method: 'llr' is of the field that was fitted, and there is none; give space=Field()."
            )
        return component_table(estimator, cell_component(estimator, "space"))
    if field is None:
        raise NotReadyError("The test needs the places of the spots: fit an AnnData that has them in obsm or obsp.")
    return spatial_table(glm_with_levels(estimator), field, by=effects.space_by)


def glm_with_levels(estimator: MixedEstimator) -> Estimator:
    """The GLM in which every level of every random effect of groups has coefficients, of an estimator fitted or not."""
    inputs, design = estimator.input_data, estimator.source.design
    kept = columns_with_levels(design.x, estimator.effects.groups, "cells")
    names = [f"column {k + 1}" for k in range(kept.shape[1])]
    location, offset = DesignMatrix(kept, names), design.offset
    glm = Estimator(
        replace(inputs, location=location, constraints_loc=no_constraints(names), offset=offset, effects=None)
    )
    glm.train()
    return glm
