"""The law of a contrast whose units may be groups: Student's t or F, with degrees of freedom that go by the units."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pyrosplice.effects._reference_df import DfRule, degrees_of_freedom
from pyrosplice.effects._units import ContrastUnits, DesignUnits
from pyrosplice.glmm._arrow.satterthwaite import CovarianceLaw

Array = NDArray[np.float64]


@dataclass(frozen=True)
class UnitLaw:
    """Covariances of the free coefficients, how well they are known, and what the units of contrasts are."""

    covariance: CovarianceLaw
    units: DesignUnits


def fewest_units(units: DesignUnits, rows: Array, df: DfRule | float, *, stacklevel: int) -> ContrastUnits:
    """Units of contrasts ``(k, F)`` that are tested together: of the one that has the fewest degrees of freedom.

    Warns where observations are units of a contrast that varies within groups.
    """
    found = [units.of(row) if df in ("clip", "between-within") else units.describe(row) for row in rows]
    for words in dict.fromkeys(filter(None, (units.warning(row) for row in rows))):
        warnings.warn(words, UserWarning, stacklevel=stacklevel + 1)
    return min(found, key=lambda one: one.df)


def freedom_of(
    covariance: CovarianceLaw, rows: Array, units: ContrastUnits, df: DfRule | float, *, n_predictors: int = 1
) -> Array:
    """Degrees of freedom ``(G,)`` of contrasts ``(k, F)`` tested together, each in Q predictors.

    All predictors share the variance of an effect, so that Q of them have Q times the between–within degrees of freedom
    of one, in the balanced normal model exactly.
    """
    whole = np.kron(np.asarray(rows, dtype=np.float64), np.eye(n_predictors))
    curvature, design = covariance.df(torch.from_numpy(whole)).numpy(), n_predictors * units.df
    if df == "clip" and units.of_observations:
        # a field leaves a smooth covariate fewer than its cells: nothing of the design says so, the curvature does
        return np.clip(np.where(np.isnan(curvature), design, curvature), 1.0, design)
    return degrees_of_freedom(curvature, design, df)
