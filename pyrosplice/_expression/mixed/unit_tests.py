"""Tests of coefficients beside random effects: Wald, ratio and score, by t and F of the units' degrees of freedom."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pyrosplice._expression.constraints import Constraints
from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._expression.mixed.contrast_statistics import UnitStatistics
from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.mixed.mixed_record import MixedRecord
from pyrosplice._expression.results import ExpressionTest
from pyrosplice._expression.tests import contrast_test, with_statistic
from pyrosplice._hypothesis.coefficients.unit_law import fewest_units
from pyrosplice.effects._reference_df import DfRule
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.reasons import Reason

Array = NDArray[np.float64]
METHODS = ("wald", "lrt", "score")
MOST_EXCESS = 1.2  # variance over a Poisson mean: standard errors are 10 % too small, 5 % tests reject 7 %


@dataclass(frozen=True)
class MixedResults:
    """What tests of a fit with random effects rest on.

    Attributes
    ----------
    fit, constraints, record
        Estimates, how all coefficients follow from the free ones, and what is known of these.
    genes, mean
        Names of the genes and mean of each.
    estimator
        The estimator; None of a loaded model, which has Wald tests.
    """

    fit: GlmFit
    constraints: Constraints
    record: MixedRecord
    genes: NDArray[np.object_]
    mean: Array
    estimator: MixedEstimator | None = None

    def test(self, rows: Array, method: str, df: DfRule | float) -> ExpressionTest:
        """Test contrasts ``(k, P)`` of all location coefficients, as :meth:`pyrosplice.ExpressionGLM.test` says."""
        if method not in METHODS:
            raise InvalidArgumentError(
                f"method: expected one of {METHODS}, found {method!r}; the random effects are in the formula."
            )
        free = rows @ self.constraints.matrix
        rank = int(np.linalg.matrix_rank(free))
        if rank < len(free):
            raise InvalidArgumentError(f"contrast: expected independent rows, found {len(free)} of rank {rank}.")
        units = fewest_units(self.record.unit_law.units, free, df, stacklevel=5)
        if units.of_observations and self.estimator is not None:
            _warn_of_poisson(self.estimator, stacklevel=6)
        law = self.record.contrast_law(free, df, units)
        wald = contrast_test(self.fit, self.constraints, rows, gene_ids=self.genes, mean=self.mean, robust=law.robust)
        wald = replace(wald, otherwise=Reason.NOT_IDENTIFIED.value)
        wald.extra.pop("grad")
        if method == "wald":
            return wald
        if self.estimator is None:
            raise NotReadyError(f"method {method!r} needs the counts, which a loaded model has not; call fit.")
        if np.abs(rows @ self.constraints.shift).any():
            raise InvalidArgumentError(f"contrast: method {method!r} takes no coefficient bound to a constant.")
        found = UnitStatistics(self.estimator, method, free, df, law).all_genes()
        wald.extra["df"] = found.df
        return with_statistic(replace(wald, df=found.df), found.statistic, found.pvalue, otherwise=found.ended)


def _warn_of_poisson(estimator: MixedEstimator, *, stacklevel: int) -> None:
    """Warn where cells are the units of a test whose Poisson noise is less than that of most genes.

    Where donors are the units their variance takes up what noise lacks: of 600 genes with six times Poisson's variance
    2 to 5.7 % were found at 5 % (3 v 3 and 6 v 6 donors, of 60 or of 5 to 300 cells, mean 5).
    """
    excess = estimator.poisson_excess
    if excess is None or not (np.isfinite(excess).any() and np.nanmedian(excess) > MOST_EXCESS):
        return
    warnings.warn(
        f"noise_model: around donors and covariates counts vary {np.nanmedian(excess):.1f} times as much as Poisson's, "
        "in the median gene, and cells are the units of this test: too many genes are found. Use noise_model='nb', or "
        "add effects=pyrosplice.effects.Independent().",
        UserWarning,
        stacklevel=stacklevel,
    )
