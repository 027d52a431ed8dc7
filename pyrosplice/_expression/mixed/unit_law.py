"""The law of a contrast whose units may be groups: Student's t or F, with degrees of freedom that go by the units."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pyrosplice._expression.engine.cell_sandwich import RobustCovariance
from pyrosplice.effects._reference_df import DfRule, degrees_of_freedom
from pyrosplice.effects._units import ContrastUnits, DesignUnits
from pyrosplice.glmm._arrow.satterthwaite import CovarianceLaw

Array = NDArray[np.float64]


@dataclass(frozen=True)
class UnitLaw:
    """Covariances of the free coefficients, how well they are known, and what the units of contrasts are."""

    covariance: CovarianceLaw
    units: DesignUnits

    def of(self, rows: Array, df: DfRule | float, *, stacklevel: int) -> tuple[RobustCovariance, list[ContrastUnits]]:
        """Law and units of contrasts ``(k, F)`` that are tested together; F has the fewest degrees of freedom of any.

        Warns where observations are units of a contrast that varies within groups.
        """
        found = [self.units.of(row) if df in ("clip", "between-within") else self.units.describe(row) for row in rows]
        for words in dict.fromkeys(filter(None, (self.units.warning(row) for row in rows))):
            warnings.warn(words, UserWarning, stacklevel=stacklevel)
        curvature = self.covariance.df(torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float64))).numpy()
        fewest = min(found, key=lambda units: units.df)
        degrees = degrees_of_freedom(curvature, fewest.df, df)
        if df == "clip" and fewest.unit == self.units.observations:
            # a field leaves a smooth covariate fewer than its cells: nothing of the design says so, the curvature does
            degrees = np.clip(np.where(np.isnan(curvature), fewest.df, curvature), 1.0, fewest.df)
        return RobustCovariance(self.covariance.covariance.numpy(), degrees), found
